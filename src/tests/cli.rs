//! The binary as users run it: inputs on disk, a real model, and the Parquet read back.

#[cfg(feature = "beam")]
#[path = "cli/beam.rs"]
mod beam;
#[path = "cli/diff.rs"]
mod diff;
#[path = "cli/extract.rs"]
mod extract;
#[path = "cli/messages.rs"]
mod messages;
#[path = "cli/progress.rs"]
mod progress;
#[path = "cli/reports.rs"]
mod reports;
#[path = "cli/scores.rs"]
mod scores;
#[path = "cli/shells.rs"]
mod shells;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use parquet::file::reader::{FileReader, SerializedFileReader};
use rustix::process::Signal;
use support::*;

fn statuses(rows: &[Row]) -> BTreeMap<&str, usize> {
    let mut statuses = BTreeMap::new();
    rows.iter().for_each(|row| *statuses.entry(row.status.as_str()).or_default() += 1);
    statuses
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn every_record_has_one_row_in_input_order_scored_or_with_a_reason() {
    let bench = Bench::new();
    let mut members = images(0, 10);
    members[3] = ("text".into(), b"hello, I am no image".to_vec());
    members[5] = ("nothing".into(), Vec::new());
    let mut cut = png(99);
    cut.truncate(cut.len() / 2);
    members[7] = ("cut".into(), cut);
    write_tar(&bench.path("in/a.tar"), &members);
    write_tar(&bench.path("in/b.tar"), &images(100, 3));

    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 0);

    let rows = bench.rows("out");
    let ids: Vec<_> = rows.iter().map(|row| row.image_id.as_str()).collect();
    let expected: Vec<_> = members
        .iter()
        .map(|member| member.0.clone())
        .chain(images(100, 3).into_iter().map(|m| m.0))
        .collect();
    assert_eq!(ids, expected);
    assert_eq!(statuses(&rows), BTreeMap::from([("ok", 10), ("decode_error", 2), ("empty", 1)]));
    for row in &rows {
        let ok = row.status == "ok";
        assert_eq!(
            (row.error.is_none(), row.top1.is_some(), row.score_bits.is_some(), row.batch_id.is_some()),
            (ok, ok, ok, ok)
        );
        assert!(!ok || row.size == Some((16, 12)));
    }
    assert_eq!(
        rows.iter().map(|row| row.record_index).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    );
    assert!(bench.path("out/_SUCCESS").is_file());
    let manifest = bench.manifest("out");
    assert_eq!(manifest["summary"]["rows"], 13);
    assert_eq!(manifest["summary"]["batches"], 3, "ten images in batches of four, filled across shards");
    assert_eq!(manifest["parts"][0]["rows"], 10);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn all_formats_give_the_same_image_the_same_scores() {
    let bench = Bench::new();
    let images = images(0, 9);
    write_tar(&bench.path("in/a.tar"), &images);
    write_tfrecord(&bench.path("in/a.tfrecord"), &images);
    fs::create_dir(bench.path("loose")).expect("folder");
    let mut list = String::new();
    for (id, bytes) in &images {
        fs::write(bench.path("loose").join(format!("{id}.png")), bytes).expect("image");
        list += &format!("{{\"uri\": \"loose/{id}.png\", \"id\": \"{id}\"}}\n");
    }
    fs::write(bench.path("list.jsonl"), list).expect("manifest");
    support::write_parquet(&bench.path("a.parquet"), &images);

    let inputs = ["in/a.tar", "in/a.tfrecord", "loose", "list.jsonl", "a.parquet"];
    let mut all = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let out = format!("out{number}");
        assert_code(&bench.run(&out, &["--input", input]), 0);
        let by_id = scores_by_id(&bench.rows(&out)).into_iter();
        // the id of a loose file is its URI; its stem is the id in every other format
        let stem = |id: String| id.rsplit('/').next().unwrap_or_default().trim_end_matches(".png").to_owned();
        all.push(by_id.map(|(id, scores)| (stem(id), scores)).collect::<BTreeMap<_, _>>());
    }
    assert_eq!(all[0].len(), 9);
    for scores in &all[1..] {
        assert_eq!(scores, &all[0]);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn scores_do_not_depend_on_shard_order_look_ahead_or_batch() {
    let bench = Bench::new();
    for shard in 0..5 {
        write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 100, 7 + shard));
    }
    assert_code(&bench.run("forward", &[]), 0);
    let mut backward = vec!["--set", "input.look_ahead=0", "--set", "preprocess.threads=1"];
    let inputs: Vec<_> = (0..5).rev().map(|shard| format!("in/{shard}.tar")).collect();
    inputs.iter().for_each(|input| backward.extend(["--input", input]));
    assert_code(&bench.run("backward", &backward), 0);
    let (forward, backward) = (bench.rows("forward"), bench.rows("backward"));
    assert_eq!(forward.len(), 45);
    assert_eq!(scores_by_id(&forward), scores_by_id(&backward));
    assert_ne!(
        forward.iter().map(|row| &row.image_id).collect::<Vec<_>>(),
        backward.iter().map(|row| &row.image_id).collect::<Vec<_>>(),
        "the two runs had the same order and prove nothing"
    );
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn every_part_has_the_same_schema_even_if_empty_or_all_failed() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    write_tar(&bench.path("in/b.tar"), &[]);
    write_tar(&bench.path("in/c.tar"), &[("bad".into(), b"not an image".to_vec())]);
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=1.0"]), 0);
    let parts = parts(&bench.path("out/predictions"));
    assert_eq!(parts.iter().map(|part| read_rows(part).len()).collect::<Vec<_>>(), [3, 0, 1]);
    let schemas: Vec<_> = parts
        .iter()
        .map(|part| {
            let file = fs::File::open(part).expect("part");
            let metadata =
                SerializedFileReader::new(file).expect("Parquet").metadata().file_metadata().clone();
            let footer = metadata.key_value_metadata().expect("a footer");
            let keys: Vec<_> = footer.iter().map(|pair| pair.key.as_str()).collect();
            for key in ["sluice.schema_version", "sluice.plan_sha256", "sluice.run_id"] {
                assert!(keys.contains(&key), "{key} is not in the footer: {keys:?}");
            }
            metadata.schema_descr().root_schema().clone()
        })
        .collect();
    assert_eq!(schemas[0], schemas[1]);
    assert_eq!(schemas[0], schemas[2]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_tar_cut_in_a_member_keeps_the_rows_before_it_and_is_reported() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 6));
    let whole = fs::read(bench.path("in/a.tar")).expect("tar");
    // a member is a header block and at least one data block; the cut is inside the fourth's data
    let member = (whole.len() - 1024) / 6;
    fs::write(bench.path("in/a.tar"), &whole[..3 * member + 512 + 100]).expect("cut tar");
    write_tar(&bench.path("in/b.tar"), &images(50, 2));

    let output = bench.run("out", &["--set", "output.max_error_rate=0.5"]);
    assert_code(&output, 5);
    let rows = bench.rows("out");
    assert_eq!(statuses(&rows), BTreeMap::from([("ok", 5), ("corrupt_record", 1)]));
    assert!(!bench.path("out/_SUCCESS").exists());
    assert_eq!(bench.manifest("out")["summary"]["outcome"], "too_many_errors");

    let tolerated =
        bench.run("out2", &["--set", "output.max_error_rate=0.5", "--set", "output.max_damaged_shards=1"]);
    assert_code(&tolerated, 0);
    let manifest = bench.manifest("out2");
    assert!(manifest["parts"][0]["damage"].is_string(), "{manifest:#}");
    assert_eq!(manifest["summary"]["damaged_shards"], 1);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_broken_record_checksum_costs_one_row_and_a_broken_length_the_rest() {
    let bench = Bench::new();
    write_tfrecord(&bench.path("in/a.tfrecord"), &images(0, 5));
    let whole = fs::read(bench.path("in/a.tfrecord")).expect("TFRecord");
    let mut data = whole.clone();
    data[12 + 40] ^= 1;
    fs::write(bench.path("in/a.tfrecord"), &data).expect("damaged data");
    assert_code(&bench.run("data", &["--set", "output.max_error_rate=0.5"]), 0);
    assert_eq!(statuses(&bench.rows("data")), BTreeMap::from([("ok", 4), ("corrupt_record", 1)]));

    let first = 16 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let mut length = whole;
    length[first] ^= 1;
    fs::write(bench.path("in/a.tfrecord"), &length).expect("damaged length");
    assert_code(&bench.run("length", &["--set", "output.max_error_rate=0.5"]), 5);
    assert_eq!(statuses(&bench.rows("length")), BTreeMap::from([("ok", 1), ("corrupt_record", 1)]));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_huge_header_is_too_large() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &[("huge".into(), huge_png(60_000, 60_000)), ("good".into(), png(1))]);
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 0);
    let rows = bench.rows("out");
    assert_eq!(rows[0].status, "too_large");
    assert_eq!(rows[0].size, Some((60_000, 60_000)));
    let error = rows[0].error.as_deref().unwrap_or_default();
    assert!(error.contains("60000×60000") && error.contains("100 megapixels"), "{error}");
    assert_eq!(rows[1].status, "ok");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_error_for_a_missing_parquet_column_names_the_existing_columns() {
    let bench = Bench::new();
    write_parquet(&bench.path("in/a.parquet"), &images(0, 2));
    let run = bench.run("out", &["--set", "input.image_key=photo"]);
    assert_code(&run, 3);
    let error = stderr(&run);
    assert!(error.contains("photo") && error.contains("image"), "{error}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_limit_stops_a_run_after_n_records() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(10, 5));
    assert_code(&bench.run("out", &["--limit", "7"]), 0);
    assert_eq!(bench.rows("out").len(), 7);
    assert_eq!(bench.manifest("out")["limit"], 7);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_output_keeps_the_top_n_scores_or_none() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    assert_code(&bench.run("top", &["--set", "output.scores=top2"]), 0);
    assert_code(&bench.run("none", &["--set", "output.scores=none"]), 0);
    assert!(
        bench.rows("top").iter().all(|row| row.score_bits.as_ref().is_some_and(|scores| scores.len() == 2))
    );
    assert!(bench.rows("none").iter().all(|row| row.score_bits.is_none() && row.top1.is_some()));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn invalid_settings_end_with_their_exit_code_before_anything_is_written() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    fs::write(bench.path("labels.txt"), "one\ntwo\n").expect("labels");
    let labels = format!("model.labels={}", bench.path("labels.txt").display());
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--set", "engine.batchsize=3"], 2, "unknown key engine.batchsize, did you mean batch_size?"),
        (&["--set", "engine.batch_size=0"], 2, "engine.batch_size: is 0, must be between 1 and 65536"),
        (&["--input", "nowhere/*.tar"], 3, "nowhere"),
        (&["--input", "missing.tar"], 3, "missing.tar"),
        (&["--set", "model.path=/no/model.onnx"], 4, "/no/model.onnx"),
        (&["--set", "preprocess.resize.width=9"], 4, "has shape N×8×8×3, the pipeline makes 4×8×9×3"),
        (&["--set", "preprocess.layout=nchw"], 4, "the pipeline makes 4×3×8×8 (nchw)"),
        (&["--set", &labels], 4, "it has 4 scores a row, model.labels has 2 names"),
        (&["--set", "model.path=pipeline.toml"], 4, "cannot load the model"),
    ];
    for (number, (args, code, words)) in cases.into_iter().enumerate() {
        let out = format!("out{number}");
        let output = bench.run(&out, args);
        assert_code(&output, code);
        assert!(stderr(&output).contains(words), "{args:?} printed:\n{}", stderr(&output));
        assert!(!bench.path(&out).exists(), "{args:?} left an output");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_address_with_a_blank_at_its_end_is_refused_and_creates_no_folder() {
    let bench = Bench::new();
    let before = fs::read_dir(bench.path("")).expect("a folder").count();
    for output in [" https://me:very-secret@h/x", "out ", "\tout", "o\u{7}ut", "out\n", "gs://b/out\r"] {
        let refused = bench.run(output, &[]);
        assert_code(&refused, 2);
        let printed = stderr(&refused);
        assert!(printed.contains("output.uri") && !printed.contains("very-secret"), "{printed}");
    }
    assert_eq!(fs::read_dir(bench.path("")).expect("a folder").count(), before);
    write_tar(&bench.path(" a.tar"), &images(0, 2));
    for input in [" a.tar", " gs://b/a.tar", "in/*.tar "] {
        let refused = bench.run("out", &["--input", input]);
        assert_code(&refused, 2);
        assert!(stderr(&refused).contains("input.uri: "), "{}", stderr(&refused));
    }
    assert_code(&bench.run("out", &["--input", "./ a.tar"]), 0);
}

#[test]
fn a_missing_onnx_runtime_is_an_error_that_names_it() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    let output =
        bench.command("run", "out", &[]).env("ORT_DYLIB_PATH", "/no/lib.so").output().expect("starts");
    assert_code(&output, 4);
    assert!(stderr(&output).contains("/no/lib.so"), "{}", stderr(&output));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_signal_drains_the_run_and_sets_the_exit_code() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let bench = Bench::new();
        let running = started(&bench, 3);
        send(signal, &running);
        let output = running.wait_with_output().expect("a child");
        assert_code(&output, code);

        assert!(!bench.path("out/_SUCCESS").exists() && !bench.path("out/_manifest.json").exists());
        let note = bench.note("out", 0);
        assert_eq!(note["outcome"], "interrupted");
        let rows = bench.rows("out");
        assert_eq!(note["rows"], rows.len());
        assert!(rows.len() >= 150 && rows.len().is_multiple_of(50));
        assert!(rows.iter().all(|row| row.status == "ok"));
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    let bench = Bench::new();
    // a server that accepts the connection and never answers
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let uri = format!("http://{}/a.tar", silent.local_addr().expect("an address"));
    let mut running = bench
        .command("run", "out", &["--input", &uri])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let (_connection, _) = silent.accept().expect("the run requests its input");
    send(Signal::INT, &running);
    let mut log = BufReader::new(running.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("a second signal exits at once") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("a log"), 0, "the first signal ended the run");
    }
    send(Signal::INT, &running);
    assert_eq!(running.wait().expect("a child").code(), Some(130));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_killed_run_leaves_complete_parts_and_no_success_marker() {
    let bench = Bench::new();
    let mut running = started(&bench, 20);
    running.kill().expect("the child is there");
    running.wait().expect("a child");
    assert!(!bench.path("out/_SUCCESS").exists() && !bench.path("out/_manifest.json").exists());
    let parts = whole_parts(&bench);
    assert!(parts.len() >= 20);
    for part in parts {
        let file = fs::File::open(&part).expect("part");
        let rows = SerializedFileReader::new(file).expect("whole").metadata().file_metadata().num_rows();
        assert_eq!(rows, 50, "{}", part.display());
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_input_that_matches_nothing_leaves_the_output_vacant() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    for input in ["in/*.typo", "in/none.tar"] {
        assert_code(&bench.run("out", &["--input", input]), 3);
    }
    assert!(!bench.path("out").exists());
    assert_code(&bench.run("out", &[]), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_shard_beyond_the_limit_may_be_missing() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 8));
    let inputs = ["--input", "in/a.tar", "--input", "in/*.typo", "--limit", "3"];
    assert_code(&bench.run("out", &inputs), 0);
    assert_eq!(bench.rows("out").len(), 3);
}

#[test]
fn an_output_inside_its_input_or_at_a_file_is_refused() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    fs::write(bench.path("file"), b"x").expect("write");
    for (output, args, words) in
        [("in/out", &["--input", "in"][..], "is inside the input"), ("file", &[], "is a file")]
    {
        let refused = bench.run(output, args);
        assert_code(&refused, 6);
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn check_prints_the_resolved_plan_and_writes_nothing() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    let output = bench.command("check", "out", &["--set", "engine.batch_size=8"]).output().expect("starts");
    assert_code(&output, 0);
    let resolved: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(resolved["plan"]["engine"]["batch_size"], 8);
    assert_eq!(resolved["classes"], 4);
    assert!(!bench.path("out").exists());
}
