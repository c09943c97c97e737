//! How runs end: with too many errors, with outdated listings, with lost answers, and with parts or shards that were
//! damaged between two attempts.

#[path = "endings/damage.rs"]
mod damage;
#[path = "support/gcs/mod.rs"]
mod gcs;
#[path = "endings/old_listings.rs"]
mod old_listings;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use gcs::Gcs;
use rustix::process::Signal;
use support::*;

/// Rows without the batch ids, which differ between attempts.
fn predictions(bench: &Bench, out: &str) -> Vec<Row> {
    bench.rows(out).into_iter().map(|row| Row { batch_id: None, ..row }).collect()
}

fn ask(command: &str, out: &Path) -> Output {
    sluice().arg(command).arg(out).output().expect("starts")
}

fn assert_verified(bench: &Bench, out: &str, words: &str) {
    let verified = ask("verify", &bench.path(out));
    assert_code(&verified, 0);
    assert!(stdout(&verified).contains(words), "{words} is missing:\n{}", stdout(&verified));
}

/// Write two shards in which half of the records are not images.
fn half_bad(bench: &Bench) {
    let bad = |n: u32| (format!("bad-{n}"), b"not an image".to_vec());
    write_tar(&bench.path("in/a.tar"), &[bad(0), ("good-0".into(), png(0))]);
    write_tar(&bench.path("in/b.tar"), &[bad(1), ("good-1".into(), png(1))]);
}

const ALLOWED: [&str; 2] = ["--set", "output.max_error_rate=0.5"];

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn too_many_errors_leave_an_output_that_verify_accepts_and_that_says_so() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let manifest = bench.manifest("out");
    assert_eq!(manifest["summary"]["outcome"], "too_many_errors");
    assert_eq!(manifest["parts"].as_array().expect("parts").len(), 2);
    assert!(!bench.path("out/_SUCCESS").exists());
    assert_verified(&bench, "out", "too many errors: 2 of 4 rows were rejected, 0 shards ended early");
    let shown = ask("show", &bench.path("out"));
    assert!(stdout(&shown).contains("too many errors, no _SUCCESS: run tiny-"), "{}", stdout(&shown));

    // repeating the command scores nothing again, and ends the same way
    let again = bench.run("out", &[]);
    assert_code(&again, 5);
    assert!(stdout(&again).contains("4 rows are from earlier attempts"), "{}", stdout(&again));
    assert_eq!(bench.manifest("out"), manifest);
    assert_verified(&bench, "out", "too many errors");

    // verify detects a change
    let part = whole_parts(&bench).remove(0);
    let original = fs::read(&part).expect("a part");
    let mut changed = original.clone();
    changed[original.len() / 2] ^= 1;
    fs::write(&part, changed).expect("a part");
    assert_code(&ask("verify", &bench.path("out")), 9);
    fs::write(&part, original).expect("a part");

    // with a higher limit, the run succeeds
    let allowed = bench.run("out", &ALLOWED);
    assert_code(&allowed, 0);
    assert!(stdout(&allowed).contains("4 rows are from earlier attempts"), "{}", stdout(&allowed));
    let succeeded = bench.manifest("out");
    assert_eq!(succeeded["summary"]["outcome"], "succeeded");
    assert_eq!((&succeeded["run_id"], &succeeded["parts"]), (&manifest["run_id"], &manifest["parts"]));
    assert_verified(&bench, "out", "the output holds");
    for folder in ["_attempts", "_staging", "_workers"] {
        assert!(!bench.path("out").join(folder).exists(), "{folder} is left");
    }
    // a repeated run with the low limit leaves it successful
    assert_code(&bench.run("out", &[]), 0);
    assert_eq!(bench.manifest("out"), succeeded);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_summary_that_contradicts_its_parts_does_not_verify() {
    let bench = Bench::new();
    half_bad(&bench);
    write_tar(&bench.path("in/c.tar"), &[]);
    fs::write(bench.path("in/.hidden"), b"x").expect("a file");
    for name in ["in/d.tar", "in/e.tar"] {
        let mut tar = tar::Builder::new(fs::File::create(bench.path(name)).expect("a tar"));
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        tar.append_data(&mut header, "a.json", &b"{}"[..]).expect("a member");
        tar.finish().expect("a tar");
    }
    assert_code(&bench.run("out", &[]), 5);
    assert_verified(&bench, "out", "too many errors");
    let manifest = bench.manifest("out");
    let summary = &manifest["summary"];
    assert_eq!((&summary["empty_shards"], &summary["skipped_by_listing"]["hidden"]), (&3.into(), &1.into()));
    assert_eq!(summary["skipped"], serde_json::json!({"hidden": 1, "json": 2}));
    for (at, value, words) in [
        ("/summary/empty_shards", 2, "counts other shards"),
        ("/summary/damaged_shards", 1, "counts other shards"),
        ("/summary/shards", 6, "counts other shards"),
        ("/summary/skipped/json", 1, "counts other things as skipped"),
        ("/summary/skipped/hidden", 2, "counts other things as skipped"),
        ("/summary/skipped_by_listing/hidden", u64::MAX, "counts other things as skipped"),
    ] {
        let mut changed = manifest.clone();
        *changed.pointer_mut(at).expect(at) = value.into();
        fs::write(bench.path("out/_manifest.json"), changed.to_string()).expect("a manifest");
        let verified = ask("verify", &bench.path("out"));
        assert_code(&verified, 9);
        assert!(stdout(&verified).contains(words), "{at}: {}", stdout(&verified));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_with_too_many_errors_can_be_overwritten_and_survives_the_loss_of_its_manifest() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let first = bench.manifest("out");
    assert_code(&bench.run("out", &["--overwrite"]), 5);
    let second = bench.manifest("out");
    assert!(first["run_id"] != second["run_id"]);
    assert_verified(&bench, "out", "too many errors");
    // as after an attempt that died between removing the old manifest and creating the new one
    fs::remove_file(bench.path("out/_manifest.json")).expect("a manifest");
    let unfinished = ask("verify", &bench.path("out"));
    assert_code(&unfinished, 9);
    assert!(stdout(&unfinished).contains("2 shards have a part"), "{}", stdout(&unfinished));
    assert_code(&bench.run("out", &ALLOWED), 0);
    assert_eq!(bench.manifest("out")["run_id"], second["run_id"]);
    assert_verified(&bench, "out", "the output holds");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_last_worker_reports_too_many_errors_and_any_worker_can_finish_the_run_later() {
    let bench = Bench::new();
    half_bad(&bench);
    let worker = |index: &str, more: &[&str]| {
        bench.run("out", &[&["--shard-index", index, "--num-shards", "2"], more].concat())
    };
    assert_code(&worker("1", &[]), 0);
    assert!(!bench.path("out/_manifest.json").exists());
    assert_code(&worker("0", &[]), 5);
    assert_eq!(bench.manifest("out")["summary"]["outcome"], "too_many_errors");
    assert_verified(&bench, "out", "too many errors");
    assert_code(&worker("1", &ALLOWED), 0);
    assert_verified(&bench, "out", "the output holds");
    assert_eq!(bench.rows("out").len(), 4);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_finished_run_with_a_missing_or_truncated_part_is_refused() {
    let bench = Bench::new();
    for shard in 0..3 {
        write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 10, 10));
    }
    assert_code(&bench.run("out", &[]), 0);
    let expected = predictions(&bench, "out");
    let refused = |path: &Path, words: &str| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let output = bench.run("out", &[]);
        assert_code(&output, 6);
        let log = stderr(&output);
        assert!(log.contains(&format!("{name} {words}")), "{log}");
        assert!(log.contains("remove its _SUCCESS and _manifest.json"), "{log}");
        assert!(!stdout(&output).contains("done before"), "{}", stdout(&output));
    };
    for part in [whole_parts(&bench).remove(1), parts(&bench.path("out/batches")).remove(0)] {
        let original = fs::read(&part).expect("a part");
        fs::write(&part, &original[..original.len() / 2]).expect("a part");
        refused(&part, &format!("has {} bytes, it had {}", original.len() / 2, original.len()));
        fs::write(&part, &original).expect("a part");
        assert_code(&bench.run("out", &[]), 0);
    }
    let part = whole_parts(&bench).remove(1);
    fs::remove_file(&part).expect("a part");
    refused(&part, "is missing");
    // follow the advice of the message
    for name in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(name)).expect("a file");
    }
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("20 rows are from earlier attempts"), "{}", stdout(&output));
    assert!(predictions(&bench, "out") == expected);
    assert_verified(&bench, "out", "the output holds");
}

/// Interrupt a run inside its last shard, `in/long.tfrecord`, after the first checkpoint. The shard has `records`
/// records.
fn interrupted(bench: &Bench, records: u32) {
    write_tfrecord(&bench.path("in/long.tfrecord"), &images(0, records));
    let mut command = bench.command("run", "out", &["--set", "output.checkpoint_seconds=0.05"]);
    let mut running = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    while segments(bench).is_empty() {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it was interrupted");
        std::thread::yield_now();
    }
    send(Signal::TERM, &running);
    assert_code(&running.wait_with_output().expect("a child"), 143);
}

fn segments(bench: &Bench) -> Vec<PathBuf> {
    parts(&bench.path("out/_checkpoints")).iter().flat_map(|shard| parts(shard)).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_of_another_scoring_version_is_refused_and_one_of_another_release_is_resumed() {
    let bench = Bench::new();
    interrupted(&bench, 8_000);
    let path = bench.path("out/_run.json");
    let text = fs::read(&path).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let store = |record: &serde_json::Value| fs::write(&path, record.to_string()).expect("a record");
    let refused = |words: &str| {
        let before = files_below(&bench.path("out"));
        let output = bench.run("out", &[]);
        assert_code(&output, 6);
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(files_below(&bench.path("out")), before);
    };
    let mut other = record.clone();
    // releases before the scoring version wrote such records
    other["determinants"].as_object_mut().expect("determinants").remove("scoring_version");
    store(&other);
    refused("with scoring version none");
    other["determinants"]["scoring_version"] = 1.into();
    store(&other);
    refused("with scoring version 1");
    let mut other = record;
    other["sluice_version"] = "0.0.9".into();
    store(&other);
    assert_code(&bench.run("out", &[]), 0);
    assert_verified(&bench, "out", "the output holds");
    assert_eq!(bench.rows("out").len(), 8_000);
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_str().expect("UTF-8").to_owned();
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found
}
