//! Runs that are interrupted inside a shard and resume from its checkpoints.

use super::*;

/// Write a shard that is long enough for checkpoints, and a short one. Returns the total number of records.
fn long_shard(bench: &Bench) -> u32 {
    let records = 20_000;
    write_tar(&bench.path("in/long.tar"), &images(0, records));
    write_tar(&bench.path("in/short.tar"), &images(records, 7));
    records + 7
}

const FREQUENT_CHECKPOINTS: [&str; 2] = ["--set", "output.checkpoint_seconds=0.05"];

/// Start a run, and wait until `ready` segments are stored.
fn started_with_segments(bench: &Bench, ready: usize) -> Child {
    let mut command = bench.command("run", "out", &FREQUENT_CHECKPOINTS);
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

/// Number of rows in segments.
fn rows_in_segments(bench: &Bench) -> usize {
    segments(bench).iter().map(|segment| read_rows(segment).len()).sum()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_killed_run_resumes_inside_its_shard() {
    let bench = Bench::new();
    let records = long_shard(&bench);
    let mut stored = 0;
    for ready in [1, 3] {
        let mut running = started_with_segments(&bench, segments(&bench).len() + ready);
        running.kill().expect("the child is running");
        running.wait().expect("a child");
        assert!(rows_in_segments(&bench) > stored);
        stored = rows_in_segments(&bench);
    }
    assert!(whole_parts(&bench).is_empty(), "a shard was finished before the kill");
    assert_code(&bench.run("out", &[]), 0);
    assert_code(&bench.run("uninterrupted", &[]), 0);
    let rows = predictions(&bench, "out");
    assert_eq!(rows.len(), records as usize);
    assert!(rows == predictions(&bench, "uninterrupted"), "rows differ from those of an uninterrupted run");
    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
    // the summary counts the batches of the last attempt only
    let batches = bench.manifest("out")["summary"]["batches"].as_u64().expect("a number");
    assert!(
        batches * 4 <= (records as usize - stored) as u64 + 8,
        "{batches} batches, {stored} rows in segments"
    );
    assert_eq!(bench.manifest("out")["attempts"].as_array().expect("attempts").len(), 3);
    assert!(!bench.path("out/_checkpoints").exists());
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_drained_run_stores_every_row_that_it_has_scored() {
    let bench = Bench::new();
    long_shard(&bench);
    let running = started_with_segments(&bench, 1);
    send(Signal::TERM, &running);
    let output = running.wait_with_output().expect("a child");
    assert_code(&output, 143);
    let scored: usize = parts(&bench.path("out/batches")).iter().map(|part| rows_of_batches(part)).sum();
    assert_eq!(rows_in_segments(&bench), scored);
    let shown = sluice().arg("show").arg(bench.path("out")).output().expect("starts");
    let expected = format!("checkpoints hold {scored} more rows, of 1 unfinished shards");
    for words in ["unfinished: run", "worker 0 of 1: 0 rows in parts", "interrupted", &expected] {
        assert!(stdout(&shown).contains(words), "{words} is missing:\n{}", stdout(&shown));
    }
    assert_code(&bench.run("out", &[]), 0);
    assert_code(&bench.run("uninterrupted", &[]), 0);
    assert!(predictions(&bench, "out") == predictions(&bench, "uninterrupted"));
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
