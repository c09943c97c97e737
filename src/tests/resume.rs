//! A run that is stopped, killed or begun again: nothing is lost, doubled or scored twice.

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

/// Shards of inputs that are small enough to score twice.
const SHARDS: u32 = 400;
const IMAGES: u32 = 50;

/// Rows without what differs between attempts.
fn predictions(bench: &Bench, out: &str) -> Vec<Row> {
    bench.rows(out).into_iter().map(|row| Row { batch_id: None, ..row }).collect()
}

/// Every file below a folder with its bytes.
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

/// See that `out` is finished and equal to a run of the same input in one go.
fn assert_as_in_one_go(bench: &Bench) {
    assert_code(&bench.run("one-go", &[]), 0);
    assert!(bench.path("out/_SUCCESS").is_file());
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
    let rows = predictions(bench, "out");
    assert_eq!(rows.len(), (SHARDS * IMAGES) as usize);
    assert!(rows == predictions(bench, "one-go"), "rows differ from those of one go");
    let manifest = bench.manifest("out");
    assert_eq!(manifest["summary"]["rows"], SHARDS * IMAGES);
    assert_eq!(manifest["summary"]["outcome"], "succeeded");
    let listed = manifest["parts"].as_array().expect("parts");
    assert_eq!(listed.len(), SHARDS as usize);
    for (part, there) in listed.iter().zip(whole_parts(bench)) {
        assert!(there.ends_with(part["path"].as_str().expect("path")), "{part} is not in its place");
        assert_eq!(part["rows"], IMAGES);
        let digest = sha256(&fs::read(&there).expect("part"));
        assert_eq!(part["sha256"], digest.as_str(), "{part}");
    }
    let batches = manifest["batches"].as_array().expect("batches");
    assert!(!batches.is_empty());
    for part in batches {
        let there = bench.path("out").join(part["path"].as_str().expect("path"));
        assert_eq!(part["sha256"], sha256(&fs::read(there).expect("part")).as_str(), "{part}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_killed_run_goes_on_where_it_was() {
    let bench = Bench::new();
    let mut running = started(&bench, 20);
    running.kill().expect("the child is there");
    running.wait().expect("a child");
    let before = contents(&bench.path("out/predictions"));
    let whole = before.iter().filter(|(name, _)| name.ends_with(".parquet"));
    let whole: BTreeMap<_, _> = whole.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();

    let resumed = bench.run("out", &[]);
    assert_code(&resumed, 0);
    let reused = whole.len() * IMAGES as usize;
    assert!(stdout(&resumed).contains(&format!("{reused} rows were there")), "{}", stdout(&resumed));
    let after = contents(&bench.path("out/predictions"));
    assert!(whole.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a part was written again");
    assert_as_in_one_go(&bench);
    assert_eq!(bench.manifest("out")["summary"]["reused_rows"], reused);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_drained_run_goes_on_and_no_batch_id_is_used_twice() {
    let bench = Bench::new();
    let running = started(&bench, 3);
    send(Signal::TERM, &running);
    assert_code(&running.wait_with_output().expect("a child"), 143);
    assert_code(&bench.run("out", &[]), 0);
    assert_as_in_one_go(&bench);
    // a batch holds at most as many rows as the model takes
    let mut rows_of = BTreeMap::<_, usize>::new();
    bench.rows("out").iter().for_each(|row| *rows_of.entry(row.batch_id).or_default() += 1);
    assert!(rows_of.values().all(|&rows| rows <= 4));
    assert_eq!(parts(&bench.path("out/batches")).len(), 2, "one for each attempt that came to an end");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn attempts_that_race_end_with_one_output_that_both_have_made() {
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
    assert_as_in_one_go(&bench);
    assert_nothing_passing_is_left(&bench);
}

fn assert_nothing_passing_is_left(bench: &Bench) {
    for folder in ["_staging", "_attempts", "_checkpoints", "_workers"] {
        assert!(!bench.path("out").join(folder).exists(), "{folder} is left");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_that_wakes_up_behind_the_end_of_its_run_does_no_harm() {
    let bench = Bench::new();
    let sleeping = started(&bench, 5);
    send(Signal::STOP, &sleeping);
    assert_code(&bench.run("out", &[]), 0);
    let finished = contents(&bench.path("out"));
    send(Signal::CONT, &sleeping);
    let woken = sleeping.wait_with_output().expect("a child");
    assert_code(&woken, 0);
    assert!(stdout(&woken).contains("20000 in 400 shards"), "{}", stdout(&woken));
    let after = contents(&bench.path("out"));
    assert!(finished.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "something has changed");
    assert_as_in_one_go(&bench);
    assert_nothing_passing_is_left(&bench);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_that_has_seen_more_input_than_the_finished_run_takes_it_back() {
    let bench = Bench::new();
    let first = started(&bench, 5);
    send(Signal::STOP, &first);
    write_tar(&bench.path("in/zz-late.tar"), &images(1_000_000, 5));
    let mut second = bench.command("run", "out", &[]);
    let second = second.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let goes_on = whole_parts(&bench).len() + 5;
    while whole_parts(&bench).len() < goes_on {
        std::thread::yield_now();
    }
    send(Signal::STOP, &second);
    send(Signal::CONT, &first);
    assert_code(&first.wait_with_output().expect("a child"), 0);
    send(Signal::CONT, &second);
    let second = second.wait_with_output().expect("a child");
    assert_code(&second, 6);
    assert!(stderr(&second).contains("zz-late.tar: it has come since"), "{}", stderr(&second));
    fs::remove_file(bench.path("in/zz-late.tar")).expect("a file");
    assert_as_in_one_go(&bench);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_attempt_at_a_run_that_was_removed_leaves_the_next_one_alone() {
    let bench = Bench::new();
    let sleeping = started(&bench, 5);
    send(Signal::STOP, &sleeping);
    assert_code(&bench.run("out", &["--overwrite", "--set", "preprocess.scale=0.5"]), 0);
    let finished = contents(&bench.path("out"));
    send(Signal::CONT, &sleeping);
    let woken = sleeping.wait_with_output().expect("a child");
    assert_code(&woken, 6);
    assert!(
        stderr(&woken).contains("was removed") || stderr(&woken).contains("names the run"),
        "{}",
        stderr(&woken)
    );
    let after = contents(&bench.path("out"));
    assert!(finished.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "something has changed");
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn any_tampering_with_a_finished_output_is_found() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(5, 3));
    assert_code(&bench.run("out", &[]), 0);
    let out = bench.path("out");
    let verify = || {
        let mut verify = sluice();
        verify.arg("verify").arg(&out).output().expect("starts")
    };
    let holds = verify();
    assert_code(&holds, 0);
    assert!(stdout(&holds).contains("the output holds: 3 parts, 8 rows"), "{}", stdout(&holds));

    for (name, bytes) in contents(&out) {
        let path = Path::new(&name);
        // first, last and some bytes in between
        let between = (0..bytes.len()).step_by(bytes.len() / 40 + 1);
        for at in between.chain([bytes.len() - 9, bytes.len() - 1]) {
            let mut tampered = bytes.clone();
            tampered[at] ^= 1;
            fs::write(path, &tampered).expect("write");
            let found = verify();
            assert_code(&found, 9);
            assert!(stdout(&found).contains("DOES NOT HOLD"), "{}", stdout(&found));
        }
        fs::remove_file(path).expect("a file");
        assert_code(&verify(), 9);
        fs::write(path, &bytes).expect("write");
    }
    assert_code(&verify(), 0);

    let first = whole_parts(&bench).remove(0);
    let stray = bench.path("out/predictions/part-000007-0123456789ab.parquet");
    fs::copy(first, &stray).expect("a copy");
    let found = verify();
    assert_code(&found, 9);
    assert!(stdout(&found).contains("part-000007-0123456789ab.parquet: it is not in the manifest"));
    // whoever looks at a finished run takes back what no manifest will ever list
    assert_code(&bench.run("out", &[]), 0);
    assert!(!stray.exists());
    assert_code(&verify(), 0);

    let batches = parts(&bench.path("out/batches")).remove(0);
    for stray in
        ["batches/part-000000-000009-000000.parquet", "batches/more.parquet", "predictions/a.parquet#1"]
    {
        let stray = bench.path("out").join(stray);
        fs::copy(&batches, &stray).expect("a copy");
        assert_code(&verify(), 9);
        fs::remove_file(stray).expect("the copy");
    }
    assert_code(&verify(), 0);
    // what cannot be looked at is not called tampered with
    let nowhere = sluice().arg("verify").arg(bench.path("nowhere")).output().expect("starts");
    assert_code(&nowhere, 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_finished_run_is_left_as_it_is() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    assert_code(&bench.run("out", &[]), 0);
    let before = contents(&bench.path("out"));
    let again = bench.run("out", &[]);
    assert_code(&again, 0);
    assert!(stdout(&again).contains("done before"), "{}", stdout(&again));
    assert!(contents(&bench.path("out")) == before);
    // but for what an attempt has left that came too late and was killed
    fs::create_dir(bench.path("out/_attempts")).expect("a folder");
    fs::write(bench.path("out/_attempts/000001.json"), "{}").expect("a note");
    assert_code(&bench.run("out", &[]), 0);
    assert!(contents(&bench.path("out")) == before);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn another_run_is_refused_with_what_differs_and_changes_nothing() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(5, 5));
    assert_code(&bench.run("out", &[]), 0);
    let before = contents(&bench.path("out"));
    let refused = |args: &[&str], words: &str| {
        let output = bench.run("out", args);
        assert_code(&output, 6);
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert!(contents(&bench.path("out")) == before, "{args:?} changed the output");
    };
    refused(&["--set", "preprocess.scale=0.5"], "preprocess.scale was");
    refused(&["--set", "engine.batch_size=8"], "batch_size was 4, is 8");
    refused(&["--limit", "3"], "--limit 3");

    write_tar(&bench.path("in/c.tar"), &images(10, 5));
    refused(&[], "c.tar: it has come since");
    fs::remove_file(bench.path("in/c.tar")).expect("a file");
    fs::remove_file(bench.path("in/b.tar")).expect("a file");
    refused(&[], "b.tar: its part is there, the shard is not any more");
    write_tar(&bench.path("in/b.tar"), &images(50, 5));
    refused(&[], "b.tar: it has another version now");

    assert_code(&bench.run("out", &["--overwrite"]), 0);
    assert_eq!(bench.rows("out")[5].image_id, "img-00050");
    assert!(bench.path("out/_SUCCESS").is_file());
}

/// As when a run is removed and begun anew beside an attempt that is still alive.
#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn what_attempts_at_a_removed_run_have_left_is_no_obstacle() {
    let bench = Bench::new();
    let mut killed = started(&bench, 2);
    killed.kill().expect("the child is there");
    killed.wait().expect("a child");
    let ready = whole_parts(&bench).len();
    assert_code(&bench.run("theirs", &[]), 0);
    let theirs = bench.path("theirs");
    for name in contents(&theirs).into_keys() {
        let below = Path::new(&name).strip_prefix(&theirs).expect("a file of the run").to_owned();
        let ours = bench.path("out").join(&below);
        if !ours.exists() {
            fs::create_dir_all(ours.parent().expect("a folder")).expect("a folder");
            fs::copy(&name, ours).expect("a copy");
        }
    }
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(
        stderr(&output).contains("removing what a run has left that was removed before"),
        "{}",
        stderr(&output)
    );
    assert!(predictions(&bench, "out") == predictions(&bench, "theirs"));
    let manifest = bench.manifest("out");
    assert!(manifest["run_id"] != bench.manifest("theirs")["run_id"]);
    assert!(manifest["summary"]["reused_rows"].as_u64() > Some(0) && ready >= 2, "{ready} parts were ours");
    assert_code(&sluice().arg("verify").arg(bench.path("out")).output().expect("starts"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn what_is_nothing_of_ours_is_never_touched() {
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
fn what_is_in_the_way_of_a_part_is_overwritten_or_refused() {
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
fn a_limited_run_ends_at_its_limit_however_often_it_is_begun() {
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

/// One shard that cannot be over before a checkpoint of it is taken.
fn long_shard(bench: &Bench) -> u32 {
    let records = 20_000;
    write_tar(&bench.path("in/long.tar"), &images(0, records));
    write_tar(&bench.path("in/short.tar"), &images(records, 7));
    records + 7
}

const OFTEN: [&str; 2] = ["--set", "output.checkpoint_seconds=0.05"];

/// A run of which `ready` checkpoints of a shard are there.
fn checkpointed(bench: &Bench, ready: usize) -> Child {
    let mut command = bench.command("run", "out", &OFTEN);
    let mut running = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    while segments(bench).len() < ready {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it was interrupted");
        std::thread::yield_now();
    }
    running
}

fn segments(bench: &Bench) -> Vec<PathBuf> {
    parts(&bench.path("out/_checkpoints")).iter().flat_map(|shard| parts(shard)).collect()
}

/// Records that are in a checkpoint.
fn kept(bench: &Bench) -> usize {
    segments(bench).iter().map(|segment| read_rows(segment).len()).sum()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_killed_run_goes_on_inside_its_shard() {
    let bench = Bench::new();
    let records = long_shard(&bench);
    let mut kept_before = 0;
    for ready in [1, 3] {
        let mut running = checkpointed(&bench, segments(&bench).len() + ready);
        running.kill().expect("the child is there");
        running.wait().expect("a child");
        assert!(kept(&bench) > kept_before);
        kept_before = kept(&bench);
    }
    assert!(whole_parts(&bench).is_empty(), "the shard has ended");
    assert_code(&bench.run("out", &[]), 0);
    assert_code(&bench.run("one-go", &[]), 0);
    let rows = predictions(&bench, "out");
    assert_eq!(rows.len(), records as usize);
    assert!(rows == predictions(&bench, "one-go"), "rows differ from those of one go");
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
    // what the last attempt has run itself
    let batches = bench.manifest("out")["summary"]["batches"].as_u64().expect("a number");
    assert!(
        batches * 4 <= (records as usize - kept_before) as u64 + 8,
        "{batches} batches, {kept_before} kept"
    );
    assert_eq!(bench.manifest("out")["attempts"].as_array().expect("attempts").len(), 3);
    assert!(!bench.path("out/_checkpoints").exists());
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_drained_run_keeps_every_row_it_has_scored() {
    let bench = Bench::new();
    long_shard(&bench);
    let running = checkpointed(&bench, 1);
    send(Signal::TERM, &running);
    let output = running.wait_with_output().expect("a child");
    assert_code(&output, 143);
    let scored: usize = parts(&bench.path("out/batches")).iter().map(|part| rows_of_batches(part)).sum();
    assert_eq!(kept(&bench), scored);
    let shown = sluice().arg("show").arg(bench.path("out")).output().expect("starts");
    let expected = format!("checkpoints hold {scored} more rows, of 1 shards that have not ended");
    for words in ["unfinished: run", "worker 0 of 1: 0 rows in parts", "interrupted", &expected] {
        assert!(stdout(&shown).contains(words), "{words} is missing:\n{}", stdout(&shown));
    }
    assert_code(&bench.run("out", &[]), 0);
    assert_code(&bench.run("one-go", &[]), 0);
    assert!(predictions(&bench, "out") == predictions(&bench, "one-go"));
}

fn rows_of_batches(part: &Path) -> usize {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(part).expect("part")).expect("Parquet");
    let mut rows = 0;
    for batch in reader.build().expect("reader") {
        let batch = batch.expect("rows");
        let (counts, warmup) = (batch["rows"].as_primitive::<Int32Type>(), batch["warmup"].as_boolean());
        rows +=
            (0..batch.num_rows()).filter(|&row| !warmup.value(row)).map(|row| counts.value(row)).sum::<i32>();
    }
    rows as usize
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn workers_share_an_output_and_one_of_them_finishes_it() {
    let bench = Bench::new();
    for shard in 0..SHARDS {
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &images(shard * IMAGES, IMAGES));
    }
    // the second one twice, as a scheduler does that has lost sight of it
    let workers: Vec<_> = ["0", "1", "2", "1"]
        .map(|index| {
            let mut worker = bench.command("run", "out", &["--num-shards", "3"]);
            worker.env("JOB_COMPLETION_INDEX", index).stderr(Stdio::piped()).stdout(Stdio::piped());
            worker.spawn().expect("starts")
        })
        .into_iter()
        .map(|worker| worker.wait_with_output().expect("a child"))
        .collect();
    for worker in &workers {
        assert_code(worker, 0);
    }
    assert_as_in_one_go(&bench);
    let workers = bench.manifest("out")["attempts"].as_array().expect("attempts").clone();
    assert!(workers.len() >= 3 && workers.iter().all(|worker| worker["num_shards"] == 3), "{workers:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_worker_alone_does_its_share_and_leaves_the_end_to_the_others() {
    let bench = Bench::new();
    for shard in 0..5 {
        write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 10, 10));
    }
    let worker = |index: &str| bench.run("out", &["--shard-index", index, "--num-shards", "2"]);
    let first = worker("1");
    assert_code(&first, 0);
    assert!(stdout(&first).contains("this worker's share is done"), "{}", stdout(&first));
    assert_eq!(whole_parts(&bench).len(), 2);
    assert!(!bench.path("out/_SUCCESS").exists());
    // what it has found done it does not do again
    assert_code(&worker("1"), 0);
    assert_eq!(bench.note("out", 1)["rows"], 0);
    assert_code(&worker("0"), 0);
    assert!(bench.path("out/_SUCCESS").is_file());
    assert_eq!(bench.rows("out").len(), 50);
    assert_eq!(bench.manifest("out")["summary"]["rows"], 50);

    let refused = bench.run("other", &["--shard-index", "0", "--num-shards", "2", "--limit", "3"]);
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("--limit: counts records"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_shard_that_comes_late_is_not_forgotten() {
    let bench = Bench::new();
    for shard in 0..4 {
        write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 10, 10));
    }
    let worker = |index: &str| bench.run("out", &["--shard-index", index, "--num-shards", "2"]);
    assert_code(&worker("0"), 0);
    write_tar(&bench.path("in/4.tar"), &images(40, 10));
    let refused = worker("1");
    assert_code(&refused, 6);
    assert!(stderr(&refused).contains("run worker 0 again"), "{}", stderr(&refused));
    assert_code(&worker("0"), 0);
    assert!(bench.path("out/_SUCCESS").is_file());
    assert_eq!(bench.rows("out").len(), 50);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn what_a_signal_has_left_in_flight_cannot_outlast_the_grace() {
    let bench = Bench::new();
    // a server that takes the connection and never answers
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
    let asked = Instant::now();
    send(Signal::TERM, &running);
    assert_eq!(running.wait().expect("a child").code(), Some(143));
    assert!(asked.elapsed() < Duration::from_secs(20), "it was asked to leave within half a second");
}
