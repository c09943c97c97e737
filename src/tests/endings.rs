//! How runs end: with too many errors, behind an old listing, with lost answers, with parts or shards that have
//! changed behind their back.

#[path = "support/gcs/mod.rs"]
mod gcs;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use gcs::Gcs;
use rustix::process::Signal;
use support::*;

/// Rows without what differs between attempts.
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

/// Two shards, half of whose records are no images.
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

    // the same command scores nothing again, and says the same
    let again = bench.run("out", &[]);
    assert_code(&again, 5);
    assert!(stdout(&again).contains("4 rows were there"), "{}", stdout(&again));
    assert_eq!(bench.manifest("out"), manifest);
    assert_verified(&bench, "out", "too many errors");

    // any change is found
    let part = whole_parts(&bench).remove(0);
    let whole = fs::read(&part).expect("a part");
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&part, changed).expect("a part");
    assert_code(&ask("verify", &bench.path("out")), 9);
    fs::write(&part, whole).expect("a part");

    // with higher limits it succeeds
    let allowed = bench.run("out", &ALLOWED);
    assert_code(&allowed, 0);
    assert!(stdout(&allowed).contains("4 rows were there"), "{}", stdout(&allowed));
    let succeeded = bench.manifest("out");
    assert_eq!(succeeded["summary"]["outcome"], "succeeded");
    assert_eq!((&succeeded["run_id"], &succeeded["parts"]), (&manifest["run_id"], &manifest["parts"]));
    assert_verified(&bench, "out", "the output holds");
    for folder in ["_attempts", "_displaced", "_workers"] {
        assert!(!bench.path("out").join(folder).exists(), "{folder} is left");
    }
    // and stays so
    assert_code(&bench.run("out", &[]), 0);
    assert_eq!(bench.manifest("out"), succeeded);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_summary_that_counts_otherwise_than_its_parts_does_not_hold() {
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
fn a_run_with_too_many_errors_can_be_overwritten_and_loses_nothing_when_its_manifest_is_gone() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let first = bench.manifest("out");
    assert_code(&bench.run("out", &["--overwrite"]), 5);
    let second = bench.manifest("out");
    assert!(first["run_id"] != second["run_id"]);
    assert_verified(&bench, "out", "too many errors");
    // as when an attempt dies that has removed the old manifest and not created the new one
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
fn the_last_of_several_workers_says_that_there_were_too_many_errors_and_any_of_them_ends_it_later() {
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
fn a_finished_run_that_lacks_a_part_is_not_done_before() {
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
        let said = stderr(&output);
        assert!(said.contains(&format!("{name} {words}")), "{said}");
        assert!(said.contains("remove its _SUCCESS and _manifest.json"), "{said}");
        assert!(!stdout(&output).contains("done before"), "{}", stdout(&output));
    };
    for part in [whole_parts(&bench).remove(1), parts(&bench.path("out/batches")).remove(0)] {
        let whole = fs::read(&part).expect("a part");
        fs::write(&part, &whole[..whole.len() / 2]).expect("a part");
        refused(&part, &format!("has {} bytes, it had {}", whole.len() / 2, whole.len()));
        fs::write(&part, &whole).expect("a part");
        assert_code(&bench.run("out", &[]), 0);
    }
    let part = whole_parts(&bench).remove(1);
    fs::remove_file(&part).expect("a part");
    refused(&part, "is missing");
    // as the advice is
    for name in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(name)).expect("a file");
    }
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("20 rows were there"), "{}", stdout(&output));
    assert!(predictions(&bench, "out") == expected);
    assert_verified(&bench, "out", "the output holds");
}

/// Change one byte in the middle of a file, and nothing that a listing shows of it.
fn flip(path: &Path) {
    let bytes = fs::read(path).expect("a file");
    let at = bytes.len() / 2;
    rot(path, at as u64, &[bytes[at] ^ 1]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_part_that_has_rotted_is_not_taken_over_by_a_run_that_goes_on() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let expected = predictions(&bench, "out");
    for (index, part) in whole_parts(&bench).iter().enumerate() {
        flip(part);
        // attempts that end with 5 see it, too
        let more: &[&str] = if index == 0 { &[] } else { &ALLOWED };
        let output = bench.run("out", more);
        assert_code(&output, if index == 0 { 5 } else { 0 });
        let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
        let warned = stderr(&output);
        let warned =
            warned.lines().find(|line| line.contains("removing a damaged part: its shard is scored again"));
        assert!(warned.is_some_and(|line| line.contains(name)), "{}", stderr(&output));
        assert!(stdout(&output).contains("2 rows were there"), "{}", stdout(&output));
        assert!(predictions(&bench, "out") == expected);
        assert_verified(&bench, "out", if index == 0 { "too many errors" } else { "the output holds" });
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn rows_that_have_rotted_are_not_taken_over_though_nothing_but_their_part_tells_of_them() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 40));
    write_tar(&bench.path("in/b.tar"), &images(40, 40));
    assert_code(&bench.run("out", &[]), 0);
    let expected = predictions(&bench, "out");
    // as is advised where a part of a finished run is missing: there are no notes any more
    for name in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(name)).expect("a file");
    }
    let part = whole_parts(&bench).remove(1);
    let at = 100;
    rot(&part, at, &[fs::read(&part).expect("a part")[at as usize] ^ 1]);
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(
        stderr(&output).contains("removing a damaged part: its shard is scored again"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).contains("40 rows were there"), "{}", stdout(&output));
    assert!(predictions(&bench, "out") == expected);
    assert_verified(&bench, "out", "the output holds");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn batches_that_have_rotted_are_given_up_and_the_run_ends_without_them() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let batches = parts(&bench.path("out/batches")).remove(0);
    flip(&batches);
    let output = bench.run("out", &ALLOWED);
    assert_code(&output, 0);
    assert!(stderr(&output).contains("its batches are lost"), "{}", stderr(&output));
    assert!(!batches.exists());
    assert_verified(&bench, "out", "the output holds");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_part_of_another_worker_that_has_rotted_is_named_with_that_worker() {
    let bench = Bench::new();
    half_bad(&bench);
    let worker = |index: &str| {
        bench.run("out", &[&["--shard-index", index, "--num-shards", "2"], &ALLOWED[..]].concat())
    };
    assert_code(&worker("1"), 0);
    let part = whole_parts(&bench).remove(0);
    flip(&part);
    let refused = worker("0");
    assert_code(&refused, 6);
    let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(stderr(&refused).contains(&format!("{name} is damaged")), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("run worker 1 again"), "{}", stderr(&refused));
    assert!(part.exists() && !bench.path("out/_manifest.json").exists());
    assert_code(&worker("1"), 0);
    assert_verified(&bench, "out", "the output holds");
    assert_code(&bench.run("one-go", &ALLOWED), 0);
    assert!(predictions(&bench, "out") == predictions(&bench, "one-go"));
}

/// A run that was interrupted inside its only shard, `in/long.tfrecord`, with checkpoints.
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
fn a_shard_that_has_rotted_behind_a_checkpoint_is_scored_as_it_is_now() {
    let bench = Bench::new();
    interrupted(&bench, 20_000);
    let kept: usize = segments(&bench).iter().map(|segment| read_rows(segment).len()).sum();
    let shard = bench.path("in/long.tfrecord");
    assert!(kept > 3, "{kept} records are in a checkpoint");
    rot(&shard, tfrecord_starts(&shard)[3], b"rot");
    let output = bench.run("out", &[]);
    assert_code(&output, 5);
    assert!(stderr(&output).contains("fewer sound records than a checkpoint"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert_code(&bench.run("one-go", &[]), 5);
    let rows = predictions(&bench, "out");
    assert_eq!(rows.len(), 4);
    assert_eq!(rows.last().expect("rows").status, "corrupt_record");
    assert!(rows == predictions(&bench, "one-go"), "rows differ from those of one go");
    assert_verified(&bench, "out", "1 shards ended early");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_of_a_build_that_may_score_otherwise_is_refused_and_one_of_another_version_resumed() {
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
    // as records were before there was such a version
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

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn what_is_damaged_of_an_interrupted_run_costs_scoring_and_no_row() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(50_000, 10));
    interrupted(&bench, 8_000);
    assert_code(&bench.run("one-go", &[]), 0);
    let expected = predictions(&bench, "one-go");
    let out = bench.path("out");
    fs::rename(&out, bench.path("interrupted")).expect("an output");
    let (mut resumed, mut refused) = (0, 0);
    for name in files_below(&bench.path("interrupted")) {
        let whole = fs::read(bench.path("interrupted").join(&name)).expect("a file");
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        for damaged in [whole[..whole.len() / 2].to_vec(), changed, b"{}".to_vec(), Vec::new()] {
            let _ = fs::remove_dir_all(&out);
            copy_folder(&bench.path("interrupted"), &out);
            fs::write(out.join(&name), &damaged).expect("a file");
            let output = bench.run("out", &[]);
            let said = format!("{name}: {}", stderr(&output));
            assert!(!said.contains("panicked"), "{said}");
            match output.status.code() {
                Some(0) => {
                    // what was changed in a part and not in its size is found when it is read
                    if !ask("verify", &out).status.success() {
                        assert!(damaged.len() == whole.len() && is_part(&name), "{said}");
                    } else {
                        assert!(predictions(&bench, "out") == expected, "{said}");
                    }
                    resumed += 1;
                }
                // with its name, so that somebody can remove it
                Some(6) => {
                    assert!(said.contains(name.rsplit('/').next().expect("a name")), "{said}");
                    refused += 1;
                }
                code => panic!("{code:?} {said}"),
            }
        }
    }
    assert!(resumed > 0 && refused > 0, "{resumed} resumed, {refused} refused");
}

fn is_part(name: &str) -> bool {
    name.starts_with("predictions/") || name.starts_with("batches/")
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

fn copy_folder(from: &Path, to: &Path) {
    for name in files_below(from) {
        let target = to.join(&name);
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        fs::copy(from.join(&name), target).expect("a copy");
    }
}

/// A bench whose output lies in a bucket.
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

    /// See that `out` is finished, and that nothing is left of it that a finished run has no use for.
    fn assert_finished(&self, out: &str) {
        assert!(self.gcs.get("out", &format!("{out}/_SUCCESS")).is_some(), "no _SUCCESS");
        let verified = self.ask("verify", out);
        assert_code(&verified, 0);
        assert!(stdout(&verified).contains("60 rows"), "{}", stdout(&verified));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_listing_that_is_behind_leaves_no_run_without_its_end() {
    let cloud = Cloud::new();
    // what was never listed, and what is listed ever later
    for (number, listings) in [u64::MAX, 1, 2, 3].into_iter().enumerate() {
        let out = format!("alone-{number}");
        cloud.gcs.set_old_listings("out", listings);
        let output = cloud.run(&out, &[]);
        assert_code(&output, 0);
        assert!(stdout(&output).starts_with("done\n"), "{}", stdout(&output));
        cloud.assert_finished(&out);
        // it is seen to be finished, and what it has to be whole
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
fn a_run_with_too_many_errors_ends_behind_an_old_listing_too() {
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
fn an_object_whose_creation_was_answered_with_a_failure_is_not_taken_for_another_attempts() {
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
