//! Reports about an output, as text and as JSON.

use super::*;

fn object(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}:\n{line}"))
}

/// Score four records, one of which is not an image.
fn one_bad(bench: &Bench) {
    let mut members = images(0, 4);
    members[2] = ("text".into(), b"hello".to_vec());
    write_tar(&bench.path("in/a.tar"), &members);
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 0);
}

fn show(bench: &Bench, args: &[&str]) -> String {
    let shown =
        sluice().current_dir(bench.path("")).args(["show", "out"]).args(args).output().expect("starts");
    assert_code(&shown, 0);
    stdout(&shown)
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn json_logs_and_summary_are_objects_with_numbers() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    for again in [false, true] {
        let output = bench.run("out", &["--log-format", "json"]);
        assert_code(&output, 0);
        let (log, summary) = (stderr(&output), stdout(&output));
        assert_eq!(summary.lines().count(), 1, "{summary}");
        for line in log.lines().chain(summary.lines()) {
            let object = object(line);
            assert!(object["severity"].is_string() && object["message"].is_string(), "{line}");
            let numeric = |text: &str| text.parse::<f64>().is_ok();
            let fields = object.as_object().expect("an object");
            let quoted = fields.iter().find(|(_, value)| value.as_str().is_some_and(numeric));
            assert_eq!(quoted, None, "{line}");
        }
        let summary = object(&summary);
        assert_eq!((&summary["outcome"], &summary["output"]), (&"succeeded".into(), &"out".into()));
        if again {
            assert_eq!(summary["done_before"], true);
        } else {
            assert_eq!((&summary["rows"], &summary["rows_by_status"]["ok"]), (&2.into(), &2.into()));
            assert!(
                log.contains("finish_ms") && summary["images_per_second"].as_f64() > Some(0.0),
                "{summary}"
            );
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn show_and_inspect_summarise_output_and_input() {
    let bench = Bench::new();
    one_bad(&bench);
    let shown = show(&bench, &[]);
    for words in ["4 rows in 1 parts", "decode_error", "75.0%", "latency of 1 batches"] {
        assert!(shown.contains(words), "{words} is missing:\n{shown}");
    }

    let inspected =
        sluice().current_dir(bench.path("")).args(["inspect", "in/a.tar"]).output().expect("starts");
    assert_code(&inspected, 5);
    for words in ["webdataset", "4, 1 of them bad", "record 2 (text): decode_error"] {
        assert!(stdout(&inspected).contains(words), "{words} is missing:\n{}", stdout(&inspected));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn show_lists_failed_records_by_key_with_their_reasons() {
    let bench = Bench::new();
    one_bad(&bench);
    assert!(!show(&bench, &[]).contains("failed records"));
    for args in
        [&["out", "--failed"][..], &["out", "--failed", "7"], &["--failed", "out"], &["--failed", "7", "out"]]
    {
        let shown = sluice().current_dir(bench.path("")).arg("show").args(args).output().expect("starts");
        assert_code(&shown, 0);
        let shown = stdout(&shown);
        let listed: Vec<_> = shown.lines().skip_while(|line| *line != "failed records").skip(1).collect();
        assert!(listed[0].starts_with("  in/a.tar#2  text  decode_error: "), "{shown}");
        assert!(listed.get(1).is_none_or(|line| line.is_empty()), "{shown}");
    }
    for args in [&["--failed"][..], &["--failed", "7"], &["--failed", "out", "out"]] {
        let refused = sluice().current_dir(bench.path("")).arg("show").args(args).output().expect("starts");
        assert_code(&refused, 2);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn show_counts_what_an_unfinished_run_skipped() {
    let bench = Bench::new();
    for (id, bytes) in images(0, 2) {
        fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
    }
    fs::write(bench.path("in/img-00000.json"), "{}").expect("a companion");
    assert_code(&bench.run("out", &[]), 0);
    for mark in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(mark)).expect("a file");
    }
    assert!(
        show(&bench, &[]).contains("skipped so far 1 that are not images: 1 json"),
        "{}",
        show(&bench, &[])
    );
    assert_eq!(object(&show(&bench, &["--json"]))["run"]["skipped"]["json"], 1);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn verify_prints_json() {
    let bench = Bench::new();
    one_bad(&bench);
    let verify = |code| {
        let verified =
            sluice().current_dir(bench.path("")).args(["verify", "out", "--json"]).output().expect("starts");
        assert_code(&verified, code);
        object(&stdout(&verified))
    };
    let holds = verify(0);
    assert_eq!((&holds["holds"], &holds["rows"], &holds["parts"]), (&true.into(), &4.into(), &2.into()));
    assert!(holds["bytes"].as_u64() > Some(1000) && holds["too_many_errors"].is_null(), "{holds:#}");
    assert_eq!((&holds["problems"], &holds["output"]), (&serde_json::json!([]), &"out".into()));
    let part = parts(&bench.path("out/predictions")).remove(0);
    fs::write(part, b"no part").expect("written");
    let broken = verify(9);
    assert_eq!(broken["holds"], false);
    assert!(
        broken["problems"][0].as_str().is_some_and(|problem| problem.contains("predictions/")),
        "{broken:#}"
    );
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn inspect_prints_json() {
    let bench = Bench::new();
    one_bad(&bench);
    write_tfrecord(&bench.path("in/b.tfrecord"), &images(7, 2));
    let inspected =
        sluice().current_dir(bench.path("")).args(["inspect", "in", "--json"]).output().expect("starts");
    assert_code(&inspected, 5);
    let found = object(&stdout(&inspected));
    let (tar, tfrecord) = (&found["shards"][0], &found["shards"][1]);
    assert_eq!(
        (&found["all_good"], &tar["records"], &tar["bad_records"]),
        (&false.into(), &4.into(), &1.into())
    );
    assert_eq!((&tar["format"], &tar["shard"]), (&"webdataset".into(), &"in/a.tar".into()));
    let bad = &tar["first_bad"];
    assert_eq!((&bad["record_index"], &bad["status"]), (&2.into(), &"decode_error".into()));
    assert!(bad["error"].is_string() && bad["image_id"] == "text", "{bad:#}");
    assert_eq!((&tfrecord["records"], &tfrecord["first_bad"]), (&2.into(), &serde_json::Value::Null));
    assert!(tfrecord["image_bytes"]["med"].as_u64() > Some(10), "{tfrecord:#}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn show_prints_json() {
    let bench = Bench::new();
    one_bad(&bench);
    let shown = object(&show(&bench, &["--json", "--rows", "1", "--failed", "1"]));
    assert_eq!((&shown["rows"], &shown["parts"], &shown["batches"]), (&4.into(), &1.into(), &1.into()));
    assert_eq!((&shown["run"]["state"], &shown["run"]["summary"]["rows"]), (&"succeeded".into(), &4.into()));
    assert_eq!(shown["rows_by_status"], serde_json::json!({ "ok": 3, "decode_error": 1 }));
    assert_eq!(
        (&shown["reasons"][0]["status"], &shown["reasons"][0]["rows"]),
        (&"decode_error".into(), &1.into())
    );
    assert_eq!(
        (&shown["failed_rows"][0]["key"], &shown["first_rows"][0]["image_id"]),
        (&"in/a.tar#2".into(), &"img-00000".into())
    );
    assert!(
        shown["latency_ms"]["med"].is_number() && shown["first_rows"][0]["score"].is_number(),
        "{shown:#}"
    );
    let bars = shown["top1_scores"].as_array().expect("bars");
    assert_eq!(bars.iter().filter_map(|bar| bar["rows"].as_u64()).sum::<u64>(), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn show_names_shards_that_ended_early() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 6));
    let whole = fs::read(bench.path("in/a.tar")).expect("tar");
    fs::write(bench.path("in/a.tar"), &whole[..whole.len() / 2 + 100]).expect("cut tar");
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 5);
    let shown = object(&show(&bench, &["--json"]));
    assert_eq!(shown["damaged_shards"][0]["shard"], "in/a.tar", "{shown:#}");
    assert!(show(&bench, &[]).contains("shards that ended early\n  in/a.tar: "));
}

#[test]
fn an_output_that_cannot_be_read_is_an_input_error_of_every_command() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), b"no folder").expect("written");
    for out in ["nowhere://x/y", "file", "missing", "gs:///no-bucket"] {
        for command in [&["show", out][..], &["verify", out], &["extract", out, "-#1+2#0"]] {
            let asked = sluice().current_dir(bench.path("")).args(command).output().expect("starts");
            assert_code(&asked, 3);
            assert!(!stderr(&asked).contains("cannot write"), "{command:?}: {}", stderr(&asked));
        }
    }
}
