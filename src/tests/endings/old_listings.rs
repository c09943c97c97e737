//! Runs with an output in a bucket whose listings are outdated, or whose answers are lost.

use super::*;

/// A bench whose output is in a bucket.
struct Cloud {
    bench: Bench,
    gcs: Gcs,
}

impl Cloud {
    fn new() -> Self {
        let (bench, gcs) = (Bench::new(), Gcs::start());
        for shard in 0..6 {
            write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 10, 10));
        }
        Self { bench, gcs }
    }

    fn run(&self, out: &str, args: &[&str]) -> Output {
        let mut run = self.bench.command("run", &format!("gs://out/{out}"), args);
        run.env("STORAGE_EMULATOR_HOST", self.gcs.url()).output().expect("starts")
    }

    fn ask(&self, command: &str, out: &str) -> Output {
        let mut ask = sluice();
        ask.arg(command).arg(format!("gs://out/{out}")).env("STORAGE_EMULATOR_HOST", self.gcs.url());
        ask.output().expect("starts")
    }

    /// Assert that `out` is finished, and that `verify` accepts it.
    fn assert_finished(&self, out: &str) {
        assert!(self.gcs.get("out", &format!("{out}/_SUCCESS")).is_some(), "no _SUCCESS");
        let verified = self.ask("verify", out);
        assert_code(&verified, 0);
        assert!(stdout(&verified).contains("60 rows"), "{}", stdout(&verified));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn runs_finish_although_listings_are_out_of_date() {
    let cloud = Cloud::new();
    // listings that never change, and listings that are updated after every 1, 2 or 3 listings
    for (number, listings) in [u64::MAX, 1, 2, 3].into_iter().enumerate() {
        let out = format!("alone-{number}");
        cloud.gcs.set_old_listings("out", listings);
        let output = cloud.run(&out, &[]);
        assert_code(&output, 0);
        assert!(stdout(&output).starts_with("done\n"), "{}", stdout(&output));
        cloud.assert_finished(&out);
        // a repeated run recognises it as finished
        let again = cloud.run(&out, &[]);
        assert_code(&again, 0);
        assert!(stdout(&again).contains("done before"), "{}", stdout(&again));

        let out = format!("shared-{number}");
        let worker = |index: &str| cloud.run(&out, &["--shard-index", index, "--num-shards", "3"]);
        for index in ["1", "0"] {
            let output = worker(index);
            assert_code(&output, 0);
            assert!(stdout(&output).contains("this worker's share is done"), "{}", stdout(&output));
        }
        assert_code(&worker("2"), 0);
        cloud.assert_finished(&out);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_with_too_many_errors_also_finishes_although_listings_are_out_of_date() {
    let cloud = Cloud::new();
    half_bad(&cloud.bench);
    cloud.gcs.set_old_listings("out", u64::MAX);
    let strict: &[&str] = &["--set", "output.max_error_rate=0.01"];
    assert_code(&cloud.run("a", strict), 5);
    assert_code(&cloud.ask("verify", "a"), 0);
    assert_code(&cloud.run("a", strict), 5);
    assert_code(&cloud.run("a", &ALLOWED), 0);
    assert_code(&cloud.ask("verify", "a"), 0);
    assert!(cloud.gcs.get("out", "a/_SUCCESS").is_some());
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_recognises_its_own_object_although_its_creation_was_reported_as_failed() {
    let cloud = Cloud::new();
    for (number, name) in
        ["/_attempts/", "_run.json", "/_workers/", "/predictions/", "/batches/", "_manifest.json", "_SUCCESS"]
            .into_iter()
            .enumerate()
    {
        let out = format!("lost-{number}");
        cloud.gcs.lose_answers(name);
        let output = cloud.run(&out, &[]);
        assert_code(&output, 0);
        cloud.assert_finished(&out);
        let manifest = cloud.gcs.get("out", &format!("{out}/_manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        assert_eq!(manifest["summary"]["reused_rows"], 0, "{name}");
        let attempts = manifest["attempts"].as_array().expect("attempts");
        assert_eq!((attempts.len(), &attempts[0]["attempt"]), (1, &0.into()), "{name}");
    }
}
