//! Runs that are stopped, killed or repeated: no row is lost or duplicated, and no stored row is scored again.

#[path = "resume/checkpoints.rs"]
mod checkpoints;
#[path = "resume/finished.rs"]
mod finished;
#[path = "resume/sharing.rs"]
mod sharing;
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rustix::process::Signal;
use support::*;

/// Number of shards of [`started`]. The input is small enough to score twice.
const SHARDS: u32 = 400;

/// Images in each of these shards.
const IMAGES: u32 = 50;

/// Rows without the batch ids, which differ between attempts.
fn predictions(bench: &Bench, out: &str) -> Vec<Row> {
    bench.rows(out).into_iter().map(|row| Row { batch_id: None, ..row }).collect()
}

/// Every file below a folder, with its content.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).expect("file"));
        }
    }
    found
}

/// Assert that `out` is finished, and that its rows equal those of an uninterrupted run over the same input.
fn assert_as_uninterrupted(bench: &Bench) {
    assert_code(&bench.run("uninterrupted", &[]), 0);
    assert!(bench.path("out/_SUCCESS").is_file());
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
    let rows = predictions(bench, "out");
    assert_eq!(rows.len(), (SHARDS * IMAGES) as usize);
    assert!(rows == predictions(bench, "uninterrupted"), "rows differ from those of an uninterrupted run");
    let manifest = bench.manifest("out");
    assert_eq!(manifest["summary"]["rows"], SHARDS * IMAGES);
    assert_eq!(manifest["summary"]["outcome"], "succeeded");
    let listed = manifest["parts"].as_array().expect("parts");
    assert_eq!(listed.len(), SHARDS as usize);
    for (part, file) in listed.iter().zip(whole_parts(bench)) {
        assert!(file.ends_with(part["path"].as_str().expect("path")), "{part} has another path");
        assert_eq!(part["rows"], IMAGES);
        let digest = sha256(&fs::read(&file).expect("part"));
        assert_eq!(part["sha256"], digest.as_str(), "{part}");
    }
    let batches = manifest["batches"].as_array().expect("batches");
    assert!(!batches.is_empty());
    for part in batches {
        let file = bench.path("out").join(part["path"].as_str().expect("path"));
        assert_eq!(part["sha256"], sha256(&fs::read(file).expect("part")).as_str(), "{part}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_killed_run_resumes_and_keeps_its_finished_parts() {
    let bench = Bench::new();
    let mut running = started(&bench, 20);
    running.kill().expect("the child is running");
    running.wait().expect("a child");
    let before = contents(&bench.path("out/predictions"));
    let finished = before.iter().filter(|(name, _)| name.ends_with(".parquet"));
    let finished: BTreeMap<_, _> = finished.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();

    let resumed = bench.run("out", &[]);
    assert_code(&resumed, 0);
    let reused = finished.len() * IMAGES as usize;
    assert!(
        stdout(&resumed).contains(&format!("{reused} rows are from earlier attempts")),
        "{}",
        stdout(&resumed)
    );
    let after = contents(&bench.path("out/predictions"));
    assert!(finished.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a part was rewritten");
    assert_as_uninterrupted(&bench);
    assert_eq!(bench.manifest("out")["summary"]["reused_rows"], reused);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_drained_run_resumes_and_uses_no_batch_id_twice() {
    let bench = Bench::new();
    let running = started(&bench, 3);
    send(Signal::TERM, &running);
    assert_code(&running.wait_with_output().expect("a child"), 143);
    assert_code(&bench.run("out", &[]), 0);
    assert_as_uninterrupted(&bench);
    // rows that share a batch id fit into one batch
    let mut rows_of = BTreeMap::<_, usize>::new();
    bench.rows("out").iter().for_each(|row| *rows_of.entry(row.batch_id).or_default() += 1);
    assert!(rows_of.values().all(|&rows| rows <= 4));
    assert_eq!(parts(&bench.path("out/batches")).len(), 2, "one part for each attempt");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn concurrent_attempts_at_one_run_finish_one_output() {
    let bench = Bench::new();
    let first = started(&bench, 1);
    let others: Vec<_> = (0..2)
        .map(|_| {
            let mut other = bench.command("run", "out", &[]);
            other.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for attempt in std::iter::once(first).chain(others) {
        assert_code(&attempt.wait_with_output().expect("a child"), 0);
    }
    assert_as_uninterrupted(&bench);
    assert_no_temporary_folder_is_left(&bench);
}

fn assert_no_temporary_folder_is_left(bench: &Bench) {
    for folder in ["_staging", "_attempts", "_checkpoints", "_workers"] {
        assert!(!bench.path("out").join(folder).exists(), "{folder} is left");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_suspended_attempt_that_continues_after_its_run_has_finished_changes_nothing() {
    let bench = Bench::new();
    let suspended = started(&bench, 5);
    send(Signal::STOP, &suspended);
    assert_code(&bench.run("out", &[]), 0);
    let finished = contents(&bench.path("out"));
    send(Signal::CONT, &suspended);
    let continued = suspended.wait_with_output().expect("a child");
    assert_code(&continued, 0);
    assert!(stdout(&continued).contains("20000 in 400 shards"), "{}", stdout(&continued));
    let after = contents(&bench.path("out"));
    assert!(finished.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a file has changed");
    assert_as_uninterrupted(&bench);
    assert_no_temporary_folder_is_left(&bench);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_that_listed_more_input_than_the_finished_run_removes_its_extra_parts() {
    let bench = Bench::new();
    let first = started(&bench, 5);
    send(Signal::STOP, &first);
    write_tar(&bench.path("in/zz-late.tar"), &images(1_000_000, 5));
    let mut second = bench.command("run", "out", &[]);
    let second = second.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let more = whole_parts(&bench).len() + 5;
    while whole_parts(&bench).len() < more {
        std::thread::yield_now();
    }
    send(Signal::STOP, &second);
    send(Signal::CONT, &first);
    assert_code(&first.wait_with_output().expect("a child"), 0);
    send(Signal::CONT, &second);
    let second = second.wait_with_output().expect("a child");
    assert_code(&second, 6);
    assert!(
        stderr(&second).contains("zz-late.tar: it was added after the run finished"),
        "{}",
        stderr(&second)
    );
    fs::remove_file(bench.path("in/zz-late.tar")).expect("a file");
    assert_as_uninterrupted(&bench);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_at_a_removed_run_does_not_disturb_the_next_run() {
    let bench = Bench::new();
    let suspended = started(&bench, 5);
    send(Signal::STOP, &suspended);
    assert_code(&bench.run("out", &["--overwrite", "--set", "preprocess.scale=0.5"]), 0);
    let finished = contents(&bench.path("out"));
    send(Signal::CONT, &suspended);
    let continued = suspended.wait_with_output().expect("a child");
    assert_code(&continued, 6);
    assert!(
        stderr(&continued).contains("was removed") || stderr(&continued).contains("names the run"),
        "{}",
        stderr(&continued)
    );
    let after = contents(&bench.path("out"));
    assert!(finished.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a file has changed");
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
}

/// Such objects appear if `--overwrite` runs beside a live attempt at the old run.
#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_removes_the_objects_of_an_earlier_removed_run() {
    let bench = Bench::new();
    let mut killed = started(&bench, 2);
    killed.kill().expect("the child is there");
    killed.wait().expect("a child");
    let ready = whole_parts(&bench).len();
    assert_code(&bench.run("removed", &[]), 0);
    let removed = bench.path("removed");
    for name in contents(&removed).into_keys() {
        let below = Path::new(&name).strip_prefix(&removed).expect("a file of the run").to_owned();
        let target = bench.path("out").join(&below);
        if !target.exists() {
            fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
            fs::copy(&name, target).expect("a copy");
        }
    }
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(
        stderr(&output).contains("removing an object of a run that was removed before"),
        "{}",
        stderr(&output)
    );
    assert!(predictions(&bench, "out") == predictions(&bench, "removed"));
    let manifest = bench.manifest("out");
    assert!(manifest["run_id"] != bench.manifest("removed")["run_id"]);
    assert!(manifest["summary"]["reused_rows"].as_u64() > Some(0) && ready >= 2, "{ready} parts of the run");
    assert_code(&sluice().arg("verify").arg(bench.path("out")).output().expect("starts"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn foreign_objects_are_never_touched() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    fs::create_dir(bench.path("out")).expect("folder");
    fs::write(bench.path("out/thesis.txt"), "years of work").expect("a file");
    for args in [&[][..], &["--overwrite"]] {
        let output = bench.run("out", args);
        assert_code(&output, 6);
        assert!(stderr(&output).contains("thesis.txt"), "{}", stderr(&output));
        assert_eq!(contents(&bench.path("out")).len(), 1);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_obstacle_in_the_place_of_a_part_is_overwritten_or_refused() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    assert_code(&bench.run("out", &[]), 0);
    let expected = predictions(&bench, "out");
    let part = whole_parts(&bench).remove(0);
    let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
    fs::remove_file(&part).expect("the part");
    fs::create_dir_all(part.join("empty")).expect("folders");
    let before = contents(&bench.path("out"));
    let refused = bench.run("out", &["--overwrite"]);
    assert_code(&refused, 6);
    assert!(
        stderr(&refused).contains(&format!("{name}, which is a folder that is not empty")),
        "{}",
        stderr(&refused)
    );
    assert!(contents(&bench.path("out")) == before && part.join("empty").is_dir());
    fs::remove_dir(part.join("empty")).expect("a folder");
    let overwritten = bench.run("out", &["--overwrite"]);
    assert_code(&overwritten, 0);
    assert!(stderr(&overwritten).contains("an empty folder"), "{}", stderr(&overwritten));
    assert!(predictions(&bench, "out") == expected);
    assert_code(&sluice().arg("verify").arg(bench.path("out")).output().expect("starts"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_repeated_limited_run_ends_at_its_limit() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(5, 5));
    let limit = &["--limit", "7"];
    assert_code(&bench.run("out", limit), 0);
    assert_eq!(bench.rows("out").len(), 7);
    for name in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(name)).expect("a file");
    }
    let first = parts(&bench.path("out/predictions")).remove(0);
    fs::remove_file(first).expect("a part");
    assert_code(&bench.run("out", limit), 0);
    assert_eq!(bench.rows("out").len(), 7);
    assert_code(&bench.run("out", limit), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn requests_in_flight_do_not_delay_the_exit_beyond_the_grace_period() {
    let bench = Bench::new();
    // a server that accepts the connection and never answers
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    write_tar(&bench.path("a.tar"), &images(0, 2));
    fs::write(bench.path("list.txt"), format!("http://{address}/a.png\n")).expect("a manifest");
    let mut running = bench
        .command("run", "out", &["--input", "a.tar", "--input", "list.txt", "--grace", "0.5"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    silent.accept().expect("a connection");
    let signalled = Instant::now();
    send(Signal::TERM, &running);
    assert_eq!(running.wait().expect("a child").code(), Some(143));
    assert!(signalled.elapsed() < Duration::from_secs(20), "the grace period was half a second");
}
