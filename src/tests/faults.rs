//! A bucket that answers wrongly, late or not at all: the run's rows are the same, or it stops and says
//! why, and goes on when it is begun again.

#[path = "support/gcs/mod.rs"]
mod gcs;
mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use gcs::{Fault, Gcs, faults};
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
fn bytes_that_are_not_those_of_the_store_are_never_scored() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = cloud.rows("whole");
    // every answer has a bit wrong
    cloud.gcs.schedule((0..10_000).map(|number| (number, Fault::WrongBytes)));
    let output = cloud.run("out");
    assert_code(&output, 3);
    assert!(last_error(&output).contains("arrived with the checksum"), "{}", stderr(&output));
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
