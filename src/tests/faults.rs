//! A bucket that answers wrongly, late or not at all: the run's rows are the same, or it stops and says
//! why, and goes on when it is begun again.

#[path = "support/gcs/mod.rs"]
mod gcs;
mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use gcs::{Fault, Gcs, ListingOddity, Oddity, faults};
use support::*;

/// Small enough that each of a run's requests can fail in turn.
const IMAGES: u32 = 6;

/// A bench whose input lies in a bucket.
struct Cloud {
    bench: Bench,
    gcs: Gcs,
}

impl Cloud {
    fn new() -> Self {
        let (bench, gcs) = (Bench::new(), Gcs::start());
        write_tar(&bench.path("in/a.tar"), &images(0, IMAGES));
        write_tfrecord(&bench.path("in/b.tfrecord"), &images(10, IMAGES));
        write_parquet(&bench.path("in/c.parquet"), &images(20, IMAGES));
        for (id, bytes) in images(30, IMAGES) {
            std::fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
        }
        gcs.load_folder("data", &bench.path("in"));
        Self { bench, gcs }
    }

    fn command(&self, out: &str) -> Command {
        let output = format!("gs://out/{out}");
        let mut sluice = self.bench.command(
            "run",
            &output,
            &[
                "--input",
                "gs://data",
                "--set",
                "storage.timeout_seconds=2",
                "--set",
                "storage.retry_seconds=6",
            ],
        );
        sluice.env("STORAGE_EMULATOR_HOST", self.gcs.url());
        sluice
    }

    fn run(&self, out: &str) -> Output {
        self.command(out).output().expect("the binary starts")
    }

    /// Rows of an output in the bucket, without what differs between attempts.
    fn rows(&self, out: &str) -> Vec<Row> {
        let folder = self.bench.path(&format!("saved/{out}"));
        let _ = std::fs::remove_dir_all(&folder);
        self.gcs.save_folder("out", &format!("{out}/"), &folder);
        self.bench
            .rows(&format!("saved/{out}"))
            .into_iter()
            .map(|row| Row { batch_id: None, ..row })
            .collect()
    }

    fn assert_verified(&self, out: &str) {
        let mut verify = sluice();
        verify.arg("verify").arg(format!("gs://out/{out}")).env("STORAGE_EMULATOR_HOST", self.gcs.url());
        assert_code(&verify.output().expect("starts"), 0);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_from_bucket_to_bucket_is_that_from_disk_to_disk() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("a"), 0);
    cloud.assert_verified("a");
    assert_code(&cloud.bench.run("local", &[]), 0);
    let ids = |rows: &[Row]| -> Vec<_> {
        let stem = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
        rows.iter().map(|row| (stem(&row.image_id), row.score_bits.clone())).collect()
    };
    assert_eq!(ids(&cloud.rows("a")), ids(&cloud.bench.rows("local")));
    let manifest = cloud.gcs.get("out", "a/_manifest.json").expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert!(manifest["parts"][0]["shard_version"].is_string(), "{manifest:#}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_bucket_that_is_gone_is_no_verdict() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("a"), 0);
    cloud.gcs.set_gone("out", true);
    let mut verify = sluice();
    verify.args(["verify", "gs://out/a"]).env("STORAGE_EMULATOR_HOST", cloud.gcs.url());
    assert_code(&verify.output().expect("starts"), 3);
    cloud.gcs.set_gone("out", false);
    cloud.assert_verified("a");
}

/// The part is larger than what is stored at once, so that it is refused while its rows are still coming.
#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_refusal_in_the_middle_of_a_large_part_ends_the_run_with_its_reason() {
    let cloud = Cloud::new();
    let long = images(0, 30_000).into_iter().enumerate();
    let long: Vec<_> = long.map(|(seed, (_, bytes))| (noise(seed as u64 + 1), bytes)).collect();
    write_tfrecord(&cloud.bench.path("long.tfrecord"), &long);
    let bytes = std::fs::read(cloud.bench.path("long.tfrecord")).expect("a file");
    cloud.gcs.put("long", "long.tfrecord", bytes);
    let run = |out: &str| {
        let mut command = cloud.command(out);
        command.args(["--input", "gs://long"]);
        command
    };
    let mut running = run("a").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    while !cloud.gcs.log().iter().any(|request| request.method == "POST") {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it was refused");
        std::thread::sleep(Duration::from_millis(1));
    }
    cloud.gcs.set_read_only("out", true);
    let output = running.wait_with_output().expect("a child");
    assert_code(&output, 6);
    assert!(stderr(&output).contains("AccessDenied"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    cloud.gcs.set_read_only("out", false);
    assert_code(&run("a").output().expect("starts"), 0);
    cloud.assert_verified("a");
    assert_eq!(cloud.rows("a").len(), long.len() + 4 * IMAGES as usize);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn one_fault_of_each_kind_changes_no_row() {
    let cloud = Cloud::new();
    cloud.gcs.schedule([]);
    assert_code(&cloud.run("whole"), 0);
    let (requests, expected) = (cloud.gcs.requests(), cloud.rows("whole"));
    assert_eq!(expected.len(), 4 * IMAGES as usize);
    for (number, fault) in faults::ALL.into_iter().enumerate() {
        // another request for each kind, up to one with which it makes a difference; scripts/torture.sh tries them all
        let hit = (0..requests).find_map(|offset| {
            let at = (number as u64 * 7 + 3 + offset) % requests;
            let out = format!("fault-{number}-{at}");
            cloud.gcs.schedule([(at, fault)]);
            let output = cloud.run(&out);
            let hit = cloud.gcs.log().into_iter().find(|request| request.fault.is_some())?;
            let code = output.status.code();
            if code != Some(0) {
                let stops = fault.may_stop() && matches!(code, Some(3 | 6));
                assert!(stops, "{hit:?}: {code:?}\n{}", stderr(&output));
                cloud.gcs.schedule([]);
                assert_code(&cloud.run(&out), 0);
            }
            assert!(cloud.rows(&out) == expected, "{hit:?} changed the rows");
            cloud.assert_verified(&out);
            Some(hit).filter(|hit| hit.changed)
        });
        assert!(hit.is_some(), "{fault:?} made no difference to any request");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_bucket_that_is_gone_or_closed_is_named_and_the_run_goes_on_when_it_is_back() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = cloud.rows("whole");
    let refused = |code: i32, words: &[&str]| {
        let output = cloud.run("out");
        assert_code(&output, code);
        for word in words {
            assert!(stderr(&output).contains(word), "{word}:\n{}", stderr(&output));
        }
        assert!(cloud.gcs.get("out", "out/_SUCCESS").is_none());
    };
    cloud.gcs.set_gone("data", true);
    refused(3, &["gs://data", "NoSuchBucket"]);
    cloud.gcs.set_gone("data", false);
    cloud.gcs.set_read_only("out", true);
    refused(6, &["gs://out/out", "AccessDenied"]);
    cloud.gcs.set_read_only("out", false);
    assert_code(&cloud.run("out"), 0);
    assert!(cloud.rows("out") == expected);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_outlives_its_access_tokens() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    cloud.gcs.require_tokens(10);
    let mut run = cloud.command("out");
    // as on a virtual machine of the cloud: no key, a metadata server
    run.env_remove("STORAGE_EMULATOR_HOST").env("GOOGLE_BASE_URL", cloud.gcs.url());
    run.env("GCE_METADATA_HOST", cloud.gcs.url().trim_start_matches("http://"));
    run.env("HOME", cloud.bench.path("nobody")).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    assert_code(&run.output().expect("starts"), 0);
    let (issued, refused) = cloud.gcs.tokens();
    assert!(issued > 2 && refused > 0, "{issued} tokens, {refused} requests refused: none ran out");
    assert!(cloud.rows("out") == cloud.rows("whole"));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn bytes_that_are_not_those_of_the_store_are_never_scored() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = cloud.rows("whole");
    // every answer has a bit wrong
    cloud.gcs.schedule((0..10_000).map(|number| (number, Fault::WrongBytes)));
    let output = cloud.run("out");
    assert_code(&output, 3);
    assert!(last_error(&output).contains("checksum mismatch"), "{}", stderr(&output));
    cloud.gcs.schedule([]);
    assert_code(&cloud.run("out"), 0);
    assert!(cloud.rows("out") == expected);
}

#[test]
fn credentials_that_are_nowhere_to_be_had_are_asked_for_and_not_for_long() {
    let cloud = Cloud::new();
    let mut run = cloud.command("out");
    let nobody = "127.0.0.1:9";
    // an empty name of an emulator is none
    run.env("STORAGE_EMULATOR_HOST", "").env("GOOGLE_BASE_URL", cloud.gcs.url());
    run.env("GCE_METADATA_HOST", nobody).env("GCE_METADATA_IP", nobody);
    run.env("HOME", cloud.bench.path("nobody")).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    let output = run.args(["--set", "storage.retry_seconds=1"]).output().expect("starts");
    assert!(matches!(output.status.code(), Some(3 | 6)), "{}", stderr(&output));
    let said = last_error(&output);
    for words in ["nothing answers at 127.0.0.1", "set GOOGLE_APPLICATION_CREDENTIALS", "refused"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.matches("refused").count(), 1, "{said}");
    assert!(!stderr(&output).contains("asking again"), "{}", stderr(&output));
    assert_eq!(cloud.gcs.requests(), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_key_file_of_a_service_account_signs_every_request_and_is_not_shown() {
    let cloud = Cloud::new();
    let key = Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]).output().expect("openssl");
    let key = String::from_utf8(key.stdout).expect("PEM");
    let account = serde_json::json!({
        "type": "service_account",
        "private_key": key,
        "private_key_id": "key-1",
        "client_email": "worker@project.iam.gserviceaccount.com",
    });
    let run = |file: &str| {
        let mut run = cloud.command("out");
        run.env_remove("STORAGE_EMULATOR_HOST").env("GOOGLE_BASE_URL", cloud.gcs.url());
        run.env("GOOGLE_APPLICATION_CREDENTIALS", cloud.bench.path(file)).output().expect("starts")
    };
    let missing = run("account.json");
    assert!(matches!(missing.status.code(), Some(3 | 6)), "{}", stderr(&missing));
    assert!(last_error(&missing).contains("account.json"), "{}", stderr(&missing));
    assert_eq!(cloud.gcs.requests(), 0);

    std::fs::write(cloud.bench.path("account.json"), account.to_string()).expect("a file");
    let output = run("account.json");
    assert_code(&output, 0);
    let said = stderr(&output) + &stdout(&output);
    for request in cloud.gcs.log() {
        let bearer = request.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        let signed = bearer.expect("a token");
        assert_eq!(signed.split('.').count(), 3, "{signed}");
        assert!(!said.contains(signed));
    }
    assert!(!said.contains(key.lines().nth(1).expect("a line of the key")));
}

/// The last line of the log that tells an error.
fn last_error(output: &Output) -> String {
    let said = stderr(output);
    said.lines().rfind(|line| line.contains("ERROR")).unwrap_or_default().to_owned()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

/// Rows by the end of their ids: status and score.
fn by_stem(rows: &[Row]) -> std::collections::BTreeMap<String, (String, Option<Vec<u32>>)> {
    let stem = |id: &str| id.rsplit('/').next().unwrap_or_default().trim_end_matches(".png").to_owned();
    rows.iter().map(|row| (stem(&row.image_id), (row.status.clone(), row.score_bits.clone()))).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_object_that_is_served_oddly_is_read_or_costs_its_row() {
    let bench = Bench::new();
    let gcs = Gcs::start();
    let oddities = [
        (Oddity::Gzip, true),
        (Oddity::AlwaysUnpacked, true),
        (Oddity::Labelled, true),
        (Oddity::Chunked, true),
        (Oddity::NoHead, true),
        (Oddity::Endless, false),
        (Oddity::Archived, false),
        (Oddity::NotAcceptable, false),
        (Oddity::Refused(400, "KMS.DisabledException"), false),
        (Oddity::Refused(402, "PaymentRequired"), false),
        (Oddity::Refused(405, "MethodNotAllowed"), false),
        (Oddity::Refused(410, "Gone"), false),
        (Oddity::Refused(421, "Misdirected"), false),
        (Oddity::Refused(451, "LegallyRestricted"), false),
        (Oddity::NoContent, false),
        (Oddity::Redirected, false),
        (Oddity::OtherChecksum, false),
        (Oddity::Refused(500, "InternalError"), false),
    ];
    let count = oddities.len() as u32 + 1;
    for (id, bytes) in images(0, count) {
        std::fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
    }
    assert_code(&bench.run("local", &[]), 0);
    let expected = by_stem(&bench.rows("local"));
    gcs.load_folder("data", &bench.path("in"));
    for ((id, bytes), (oddity, _)) in images(0, count).into_iter().zip(oddities) {
        let is_packed = matches!(oddity, Oddity::Gzip | Oddity::AlwaysUnpacked | Oddity::Labelled);
        gcs.put("data", &format!("{id}.png"), if is_packed { gzip(&bytes) } else { bytes });
        gcs.serve_oddly("data", &format!("{id}.png"), oddity);
    }
    let list: Vec<_> = (0..count).map(|number| format!("{}/data/img-{number:05}.png", gcs.url())).collect();
    std::fs::write(bench.path("list.txt"), list.join("\n")).expect("a manifest");
    for (out, input) in [("gs", "gs://data"), ("s3", "s3://data"), ("web", "list.txt")] {
        let args = ["--input", input, "--set", "output.max_error_rate=1", "--set", "storage.retry_seconds=2"];
        let mut run = bench.command("run", out, &args);
        run.env("STORAGE_EMULATOR_HOST", gcs.url()).env("AWS_ENDPOINT_URL", gcs.url());
        run.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "key");
        assert_code(&run.output().expect("starts"), 0);
        let (rows, found) = (bench.rows(out), by_stem(&bench.rows(out)));
        assert_eq!(rows.len(), count as usize);
        for (number, (id, expected)) in expected.iter().enumerate() {
            let oddity = oddities.get(number);
            match oddity {
                None | Some((_, true)) => assert_eq!(&found[id], expected, "{out}, {oddity:?}"),
                // of an image whose size nobody has told
                Some((Oddity::NoContent, _)) if out == "web" => assert_eq!(found[id].0, "empty"),
                Some(_) => assert_eq!(found[id].0, "read_error", "{out}, {oddity:?}"),
            }
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_object_is_not_taken_for_the_only_one_that_cannot_be_read_where_none_can() {
    let cloud = Cloud::new();
    let quick = ["--set", "storage.retry_seconds=1", "--set", "output.max_error_rate=1"];
    for (oddity, words) in [
        (Oddity::Refused(400, "ExpiredToken"), "ExpiredToken"),
        (Oddity::Refused(500, "InternalError"), "500 Internal Server Error"),
        (Oddity::Redirected, "too many redirects"),
        (Oddity::OtherChecksum, "checksum mismatch"),
    ] {
        cloud.gcs.serve_all_oddly("data", oddity);
        for input in ["gs://data", "gs://data/*.png", "gs://data/a.tar"] {
            let args = [&["--input", input][..], &quick].concat();
            let mut run = cloud.bench.command("run", "gs://out/none", &args);
            let output = run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts");
            assert_code(&output, 3);
            assert!(last_error(&output).contains(words), "{oddity:?}: {}", stderr(&output));
        }
    }
    // nor where most cannot
    cloud.gcs.serve_as_usual();
    for number in 31..30 + IMAGES {
        cloud.gcs.serve_oddly("data", &format!("img-{number:05}.png"), Oddity::Refused(503, "SlowDown"));
    }
    let args = [&["--input", "gs://data/*.png"][..], &quick].concat();
    let mut run = cloud.bench.command("run", "gs://out/none", &args);
    let output = run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts");
    assert_code(&output, 3);
    assert!(last_error(&output).contains("SlowDown"), "{}", stderr(&output));
    cloud.gcs.serve_as_usual();
    assert_code(&cloud.run("none"), 0);
    assert!(cloud.rows("none").iter().all(|row| row.status == "ok"));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_name_that_is_refused_is_a_folder_if_something_lies_below_it_and_no_image_while_nothing_is_served() {
    let cloud = Cloud::new();
    for (number, (_, bytes)) in (0..).zip(images(90, 2)) {
        cloud.gcs.put("data", &format!("day/{number}.png"), bytes);
    }
    let run = |input: &str, out: &str| {
        let args = ["--input", input, "--set", "storage.retry_seconds=1", "--set", "output.max_error_rate=1"];
        let mut run = cloud.bench.command("run", out, &args);
        run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
    };
    for code in [400, 405] {
        cloud.gcs.serve_oddly("data", "day", Oddity::Refused(code, "NotHere"));
        let out = format!("day-{code}");
        assert_code(&run("gs://data/day", &out), 0);
        let rows = cloud.bench.rows(&out);
        assert_eq!((rows.len(), rows.iter().all(|row| row.status == "ok")), (2, true), "{rows:?}");
    }
    // whatever it is, it is not alone
    cloud.gcs.serve_as_usual();
    cloud.gcs.put("data", "unnamed", b"a shard or an image".to_vec());
    cloud.gcs.serve_all_oddly("data", Oddity::Refused(400, "ExpiredToken"));
    let output = run("gs://data/unnamed", "unnamed");
    assert_code(&output, 3);
    assert!(last_error(&output).contains("ExpiredToken"), "{}", stderr(&output));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_container_that_is_served_oddly_is_read_or_is_a_damaged_shard() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = cloud.rows("whole");
    let tar = cloud.gcs.get("data", "a.tar").expect("a tar").to_vec();
    let scores = |rows: &[Row]| -> Vec<_> { rows.iter().map(|row| row.score_bits.clone()).collect() };
    for (oddity, is_read) in [
        (Oddity::Chunked, true),
        (Oddity::NoHead, true),
        (Oddity::Gzip, true),
        (Oddity::Labelled, true),
        (Oddity::Endless, false),
        (Oddity::Archived, false),
        (Oddity::AlwaysUnpacked, false),
        (Oddity::Refused(400, "KMS.DisabledException"), false),
        (Oddity::Refused(421, "Misdirected"), false),
        (Oddity::Refused(500, "InternalError"), false),
        (Oddity::NoContent, false),
        (Oddity::Redirected, false),
        (Oddity::OtherChecksum, false),
    ] {
        let is_packed = matches!(oddity, Oddity::Gzip | Oddity::Labelled | Oddity::AlwaysUnpacked);
        cloud.gcs.put("data", "a.tar", if is_packed { gzip(&tar) } else { tar.clone() });
        cloud.gcs.serve_oddly("data", "a.tar", oddity);
        let lenient = [
            "--set",
            "output.max_error_rate=1",
            "--set",
            "output.max_damaged_shards=1",
            "--set",
            "storage.retry_seconds=2",
        ];
        let web = format!("{}/data/a.tar", cloud.gcs.url());
        let list = cloud.bench.path("others.txt");
        let others = (30..30 + IMAGES).map(|number| format!("gs://data/img-{number:05}.png"));
        std::fs::write(&list, others.collect::<Vec<_>>().join("\n")).expect("a manifest");
        // found in a listing, and named: beside what is listed, and beside what others name
        for (kind, inputs, named) in [
            ("listed", vec!["gs://data"], false),
            ("named", vec!["gs://data/a.tar", "gs://data"], true),
            ("web", vec![web.as_str(), list.to_str().expect("UTF-8")], true),
        ] {
            // a server error is waited out when a named one is looked up, before anything is read
            if named && matches!(oddity, Oddity::Refused(500, _) | Oddity::Endless | Oddity::Labelled) {
                continue;
            }
            let out = format!("{oddity:?}-{kind}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            let inputs: Vec<_> = inputs.iter().flat_map(|input| ["--input", input]).collect();
            let mut run = cloud.bench.command("run", &out, &[&inputs, &lenient[..]].concat());
            assert_code(&run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts"), 0);
            let rows = cloud.bench.rows(&out);
            let (of_tar, others) = if rows.len() > IMAGES as usize {
                let of_others = if kind == "web" { 1 } else { 3 } * IMAGES as usize;
                rows.split_at(rows.len() - of_others)
            } else {
                panic!("{oddity:?}, {kind}: {rows:?}")
            };
            let expected_others = &expected[expected.len() - others.len()..];
            assert_eq!(scores(others), scores(expected_others), "{oddity:?}, {kind}");
            // a web server's answer is not unpacked on the way
            if is_read && !(kind == "web" && oddity == Oddity::Gzip) {
                assert_eq!(scores(of_tar), scores(&expected[..IMAGES as usize]), "{oddity:?}, {kind}");
            } else {
                let Some((end, before)) = of_tar.split_last() else { panic!("{oddity:?}, {kind}") };
                assert_eq!(end.status, "corrupt_record", "{oddity:?}, {kind}");
                assert!(before.is_empty(), "{oddity:?}, {kind}: {before:?}");
            }
        }
    }
}

/// Its checksum can be compared only when all of its ranges have come, and its rows with them.
#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_long_container_that_never_has_its_checksum_is_a_damaged_shard() {
    let cloud = Cloud::new();
    let long = cloud.bench.path("long.tar");
    write_tar(&long, &[images(0, IMAGES), vec![("long".to_owned(), vec![7; 5 << 20])]].concat());
    cloud.gcs.put("data", "a.tar", std::fs::read(&long).expect("a tar"));
    cloud.gcs.serve_oddly("data", "a.tar", Oddity::OtherChecksum);
    let lenient = ["--set", "output.max_error_rate=1", "--set", "output.max_damaged_shards=1"];
    assert_code(&cloud.command("out").args(lenient).output().expect("starts"), 0);
    cloud.assert_verified("out");
    let rows = cloud.rows("out");
    let (of_tar, others) = rows.split_at(rows.len() - 3 * IMAGES as usize);
    assert!(others.iter().all(|row| row.status == "ok"));
    let end = &of_tar[IMAGES as usize + 1];
    assert_eq!((of_tar.len(), end.status.as_str()), (IMAGES as usize + 2, "corrupt_record"));
    assert!(end.error.as_deref().is_some_and(|error| error.contains("each time")), "{end:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_listing_that_is_none_is_refused() {
    let cloud = Cloud::new();
    for oddity in [ListingOddity::Again, ListingOddity::Twice, ListingOddity::Backwards] {
        cloud.gcs.list_oddly(Some(oddity));
        let output = cloud
            .bench
            .command("run", "out", &["--input", "gs://data"])
            .env("STORAGE_EMULATOR_HOST", cloud.gcs.url())
            .output()
            .expect("starts");
        assert_code(&output, 3);
        assert!(last_error(&output).contains("listing cannot be used"), "{}", stderr(&output));
        let mut verify = sluice();
        verify.args(["verify", "gs://data"]).env("STORAGE_EMULATOR_HOST", cloud.gcs.url());
        assert_code(&verify.output().expect("starts"), 3);
    }
    cloud.gcs.list_oddly(None);
    assert_code(&cloud.run("out"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_odd_entry_of_a_listing_costs_at_most_its_own_row() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = by_stem(&cloud.rows("whole"));
    let run = |out: &str, input: &str, lenient: &[&str]| {
        let args = [&["--input", input, "--set", "storage.retry_seconds=2"], lenient].concat();
        let mut run = cloud.bench.command("run", out, &args);
        run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
    };
    for (number, (name, content)) in [
        ("LastModified", Some("yesterday")),
        ("LastModified", None),
        ("Size", Some("long")),
        ("Size", None),
        ("Size", Some("18446744073709551615")),
    ]
    .into_iter()
    .enumerate()
    {
        cloud.gcs.list_oddly(Some(ListingOddity::FirstHas(name, content)));
        // a container, and an image
        for (kind, input) in [("container", "gs://data"), ("image", "gs://data/img*")] {
            let out = format!("{kind}-{number}");
            assert_code(&run(&out, input, &[]), 0);
            let found = by_stem(&cloud.bench.rows(&out));
            assert!(found.len() >= IMAGES as usize);
            for (id, row) in found {
                assert_eq!(row, expected[&id], "{kind}, {name} {content:?}");
            }
        }
    }
    // what cannot be checked is not read
    cloud.gcs.list_oddly(Some(ListingOddity::FirstHas("ETag", Some("\"a&#10;b\""))));
    let lenient = ["--set", "output.max_error_rate=1", "--set", "output.max_damaged_shards=1"];
    for (kind, input, status) in
        [("container", "gs://data", "corrupt_record"), ("image", "gs://data/img*", "read_error")]
    {
        let out = format!("{kind}-tag");
        let output = run(&out, input, &lenient);
        assert_code(&output, 0);
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        let rows = cloud.bench.rows(&out);
        let (odd, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.status != "ok");
        let [odd] = odd[..] else { panic!("{kind}: {rows:?}") };
        assert_eq!(odd.status, status);
        assert!(odd.error.as_deref().is_some_and(|error| error.contains("cannot be sent")), "{odd:?}");
        assert!(others.len() >= IMAGES as usize - 1);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_container_of_azure_is_listed_and_read_as_any_bucket() {
    let cloud = Cloud::new();
    cloud.gcs.put("data", "below/img-00050.png", png(50));
    assert_code(&cloud.run("whole"), 0);
    let expected = by_stem(&cloud.rows("whole"));
    assert_eq!(expected.len(), 4 * IMAGES as usize + 1);
    let run = |out: &str, input: &str, args: &[&str]| {
        let args = [&["--input", input, "--set", "storage.retry_seconds=1"], args].concat();
        let mut run = cloud.bench.command("run", out, &args);
        run.env("AZURE_STORAGE_ENDPOINT", cloud.gcs.url()).env("AZURE_STORAGE_ACCOUNT_NAME", "account");
        run.env("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=x").output().expect("starts")
    };
    for page in [1000, 2, 1] {
        cloud.gcs.set_page_size(page);
        for (kind, input, count) in [
            ("all", "az://data", expected.len()),
            ("direct", "az://data/*.png", IMAGES as usize),
            ("named", "az://data/a.tar", IMAGES as usize),
        ] {
            let out = format!("{kind}-{page}");
            assert_code(&run(&out, input, &[]), 0);
            let rows = cloud.bench.rows(&out);
            assert_eq!(rows.len(), count, "{out}");
            for (id, row) in by_stem(&rows) {
                assert_eq!(row, expected[&id], "{out}");
            }
        }
    }
    cloud.gcs.set_page_size(1000);
    for (number, (name, content)) in
        [("Last-Modified", Some("2026")), ("Last-Modified", None), ("Content-Length", None)]
            .into_iter()
            .enumerate()
    {
        cloud.gcs.list_oddly(Some(ListingOddity::FirstHas(name, content)));
        let out = format!("odd-{number}");
        assert_code(&run(&out, "az://data", &[]), 0);
        assert!(by_stem(&cloud.bench.rows(&out)) == expected, "{name} {content:?}");
    }
    cloud.gcs.list_oddly(None);
    cloud.gcs.put("data", "img//odd.png", b"never read".to_vec());
    let passed = run("passed", "az://data", &[]);
    assert_code(&passed, 0);
    assert!(stderr(&passed).contains("img//"), "{}", stderr(&passed));
    assert!(by_stem(&cloud.bench.rows("passed")) == expected);
    // one blob is in trouble, or all are
    cloud.gcs.serve_oddly("data", "img-00030.png", Oddity::Refused(409, "BlobBeingRehydrated"));
    assert_code(&run("one", "az://data", &["--set", "output.max_error_rate=0.5"]), 0);
    cloud.gcs.serve_all_oddly("data", Oddity::Refused(400, "InvalidAuthenticationInfo"));
    let refused = run("none", "az://data", &["--set", "output.max_error_rate=1"]);
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("InvalidAuthenticationInfo"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_page_that_is_none_does_not_end_a_listing() {
    let cloud = Cloud::new();
    cloud.gcs.set_page_size(1);
    for (oddity, expected) in [
        (ListingOddity::NoToken, "does not say where"),
        (ListingOddity::LaterError, "InternalError"),
        (ListingOddity::LaterHtml, "\"html\" instead of ListBucketResult"),
    ] {
        cloud.gcs.list_oddly(Some(oddity));
        let with_url = |command: &mut std::process::Command| {
            command.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
        };
        let arguments = ["--input", "gs://data", "--set", "storage.retry_seconds=1"];
        let output = with_url(&mut cloud.bench.command("run", "out", &arguments));
        assert_code(&output, 3);
        assert!(last_error(&output).contains(expected), "{oddity:?}: {}", stderr(&output));
        assert!(!cloud.bench.path("out/_SUCCESS").exists());
        // outputs are listed as well; an error is waited out for as long as a run would
        if oddity != ListingOddity::LaterError {
            assert_code(&with_url(sluice().args(["verify", "gs://data"])), 3);
        }
    }
    cloud.gcs.list_oddly(None);
    assert_code(&cloud.run("out"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn folder_markers_of_consoles_are_no_objects() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("before"), 0);
    // beside an object of that name, and behind names that sort before the slash
    for (bucket, marker) in
        [("data", "a.tar/"), ("data", "img/"), ("out", "after/"), ("out", "after/predictions/")]
    {
        cloud.gcs.put(bucket, marker, Vec::new());
    }
    let after = cloud.run("after");
    assert_code(&after, 0);
    assert!(stderr(&after).contains("folder marker"), "{}", stderr(&after));
    cloud.gcs.remove("out", "after/");
    cloud.gcs.remove("out", "after/predictions/");
    assert!(cloud.rows("after") == cloud.rows("before"));
    // one with bytes is not passed over in silence
    cloud.gcs.put("data", "a.tar/", b"notes".to_vec());
    let refused = cloud.run("refused");
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("\"a.tar/\""), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn neighbours_of_a_key_that_cannot_be_addressed_are_not_lost() {
    let cloud = Cloud::new();
    cloud.gcs.put("data", "img//odd.png", b"never read".to_vec());
    let arguments = ["--input", "gs://data"];
    let run = |out: &str| {
        let mut command = cloud.bench.command("run", out, &arguments);
        command.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
    };
    let passed = run("passed");
    assert_code(&passed, 0);
    assert!(stderr(&passed).contains("img//"), "{}", stderr(&passed));
    // which key it was cannot be told where pages hold more than one
    cloud.gcs.list_oddly(Some(ListingOddity::FullPages));
    let refused = run("refused");
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("names in a page for which"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_web_server_that_is_busy_for_a_while_is_waited_for() {
    let bench = Bench::new();
    let gcs = Gcs::start();
    gcs.put("data", "a.png", png(1));
    std::fs::write(bench.path("list.txt"), format!("{}/data/a.png", gcs.url())).expect("a manifest");
    // more refusals than a fixed small number of tries would outlast
    gcs.schedule((0..8).map(|number| (number, Fault::Status(503))));
    assert_code(&bench.run("out", &["--input", "list.txt", "--set", "storage.retry_seconds=60"]), 0);
    assert_eq!(bench.rows("out")[0].status, "ok");
    // and one that is gone is not waited for once for each of its images
    let list: Vec<_> = (0..500).map(|number| format!("{}/data/{number}.png", gcs.url())).collect();
    std::fs::write(bench.path("list.txt"), list.join("\n")).expect("a manifest");
    gcs.schedule((0..100_000).map(|number| (number, Fault::Status(503))));
    let args =
        ["--input", "list.txt", "--set", "storage.retry_seconds=1", "--set", "output.max_error_rate=1"];
    assert_code(&bench.run("gone", &args), 0);
    let rows = bench.rows("gone");
    assert!(rows.len() == 500 && rows.iter().all(|row| row.status == "read_error"));
    let last = rows.last().and_then(|row| row.error.clone()).unwrap_or_default();
    assert!(last.contains("nothing but errors"), "{last}");
    assert!(gcs.requests() < 2000, "{} requests", gcs.requests());
}
