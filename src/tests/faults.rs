//! Buckets that answer wrongly, late or not at all. The rows are the same as without faults, or the run stops with the
//! reason and resumes when it is repeated.

#[path = "faults/credentials.rs"]
mod credentials;
#[path = "support/gcs/mod.rs"]
mod gcs;
#[path = "faults/listings.rs"]
mod listings;
#[path = "faults/objects.rs"]
mod objects;
mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use gcs::{Fault, Gcs, ListingOddity, Oddity, faults};
use support::*;

/// Images per shard: few, so that a run has few requests and a test can inject faults into many of them.
const IMAGES: u32 = 6;

/// A bench whose input is in a bucket.
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

    /// Rows of an output in the bucket, without the batch ids, which differ between attempts.
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
fn a_run_from_bucket_to_bucket_gives_the_same_scores_as_one_on_disk() {
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
fn verify_gives_no_verdict_on_a_missing_bucket() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("a"), 0);
    cloud.gcs.set_gone("out", true);
    let mut verify = sluice();
    verify.args(["verify", "gs://out/a"]).env("STORAGE_EMULATOR_HOST", cloud.gcs.url());
    assert_code(&verify.output().expect("starts"), 3);
    cloud.gcs.set_gone("out", false);
    cloud.assert_verified("a");
}

/// The part needs a multipart upload, which is denied while rows are still being written.
#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_write_that_is_denied_in_the_middle_of_a_large_part_ends_the_run_with_the_reason() {
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
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before its upload began");
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
        // each kind starts at another request, and takes the first that the fault changes; scripts/torture.sh tries all
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
        assert!(hit.is_some(), "{fault:?} affected no request");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_missing_or_read_only_bucket_is_named_and_the_run_resumes_when_it_is_back() {
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
fn corrupted_bytes_are_never_scored() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = cloud.rows("whole");
    // every answer has a flipped bit
    cloud.gcs.schedule((0..10_000).map(|number| (number, Fault::WrongBytes)));
    let output = cloud.run("out");
    assert_code(&output, 3);
    assert!(last_error(&output).contains("checksum mismatch"), "{}", stderr(&output));
    cloud.gcs.schedule([]);
    assert_code(&cloud.run("out"), 0);
    assert!(cloud.rows("out") == expected);
}

/// The last error in the log.
fn last_error(output: &Output) -> String {
    let log = stderr(output);
    log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_default().to_owned()
}

/// Status and scores of rows, by the last segment of their ids.
fn by_stem(rows: &[Row]) -> std::collections::BTreeMap<String, (String, Option<Vec<u32>>)> {
    let stem = |id: &str| id.rsplit('/').next().unwrap_or_default().trim_end_matches(".png").to_owned();
    rows.iter().map(|row| (stem(&row.image_id), (row.status.clone(), row.score_bits.clone()))).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_busy_web_server_is_retried_but_not_for_every_image() {
    let bench = Bench::new();
    let gcs = Gcs::start();
    gcs.put("data", "a.png", png(1));
    std::fs::write(bench.path("list.txt"), format!("{}/data/a.png", gcs.url())).expect("a manifest");
    // more errors than a small fixed number of retries can overcome
    gcs.schedule((0..8).map(|number| (number, Fault::Status(503))));
    assert_code(&bench.run("out", &["--input", "list.txt", "--set", "storage.retry_seconds=60"]), 0);
    assert_eq!(bench.rows("out")[0].status, "ok");
    // after `retry_seconds` of errors, further images of that server are not retried
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
