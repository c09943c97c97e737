//! Commands for GPU engines on a host without a GPU: refusals and messages.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::*;

/// The binary with all GPUs hidden.
fn without_gpu(args: &[&str]) -> Command {
    let mut command = sluice();
    command.env("CUDA_VISIBLE_DEVICES", "").args(args);
    command
}

fn output(mut command: Command) -> Output {
    command.output().expect("the binary starts")
}

fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for words in words {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}

fn tiny_model() -> String {
    Path::new(REPOSITORY).join("fixtures/tiny.onnx").display().to_string()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn building_an_engine_without_a_gpu_fails_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("temp folder");
    let engine = folder.path().join("tiny.engine");
    let args = ["build-engine", "--onnx", &tiny_model(), "--saveEngine", &engine.display().to_string()];
    let built = output(without_gpu(&[&args[..], &["--shapes", "pixels:4x8x8x3"]].concat()));
    assert_fails(&built, 4, &[]);
    let text = stderr(&built);
    assert!(text.contains("driver was not found") || text.contains("no GPU"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}

#[test]
fn build_engine_refuses_invalid_arguments() {
    let folder = tempfile::tempdir().expect("temp folder");
    let engine = folder.path().join("tiny.engine").display().to_string();
    let model = tiny_model();
    let build = |more: &[&str]| {
        let args = ["build-engine", "--onnx", &model, "--saveEngine", &engine];
        output(without_gpu(&[&args[..], more].concat()))
    };
    assert_fails(&build(&[]), 2, &["--minShapes", "pixels:32x8x8x3"]);
    assert_fails(&build(&["--shapes", "image:4x8x8x3"]), 2, &["no input image", "pixels"]);
    assert_fails(&build(&["--shapes", "pixels:4x8x9x3"]), 2, &["does not fit"]);
    let pool = ["--shapes", "pixels:4x8x8x3", "--memPoolSize", "workspace:much"];
    assert_fails(&build(&pool), 2, &["--memPoolSize", "workspace:512M"]);
    let nowhere = ["build-engine", "--onnx", "no.onnx", "--saveEngine", &engine];
    assert_fails(&output(without_gpu(&nowhere)), 4, &["no.onnx"]);
    let unwritable = ["build-engine", "--onnx", &model, "--saveEngine", "/no/such/folder/a.engine"];
    let unwritable = output(without_gpu(&[&unwritable[..], &["--shapes", "pixels:4x8x8x3"]].concat()));
    assert_fails(&unwritable, 4, &["/no/such/folder/a.engine"]);
}

#[test]
fn a_missing_tensorrt_is_reported_before_any_output() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    let mut run = bench.command("run", "out", &["--set", "engine.kind=tensorrt"]);
    run.env("SLUICE_TENSORRT_DIR", "/nowhere");
    let run = output(run);
    assert_fails(&run, 4, &["was not found", "/nowhere", "scripts/setup.sh --gpu"]);
    assert!(!bench.path("out").exists());
}

#[test]
fn invalid_engine_keys_are_usage_errors() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    for (setting, words) in [
        ("engine.lanes=0", "engine.lanes"),
        ("engine.devices=[]", "names no GPU"),
        ("engine.devices=[0, 1, 0]", "names GPU 0 twice"),
    ] {
        assert_fails(&bench.run("out", &["--set", setting]), 2, &[words]);
    }
    let settings = ["--set", "engine.provider=tensorrt-rtx", "--set", "engine.tf32=false"];
    assert_fails(&bench.run("out", &settings), 2, &["engine.tf32"]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn falling_back_to_the_cpu_must_be_allowed_and_is_recorded_in_the_manifest() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    let run = |out: &str, more: &[&str]| {
        let mut run = bench.command("run", out, &[&["--set", "engine.provider=cuda"], more].concat());
        run.env("CUDA_VISIBLE_DEVICES", "");
        output(run)
    };
    let refused = run("refused", &[]);
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert!(!bench.path("refused").exists());

    let allowed = run("allowed", &["--set", "engine.allow_fallback=true"]);
    assert_eq!(allowed.status.code(), Some(0), "{}", stderr(&allowed));
    let engines = bench.manifest("allowed")["engines"].to_string();
    assert!(engines.contains("on the CPU instead of the plan's provider"), "{engines}");
    assert_eq!(bench.rows("allowed").len(), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn bench_measures_the_available_setups_and_says_why_others_cannot_run() {
    let folder = tempfile::tempdir().expect("temp folder");
    let json = folder.path().join("bench.json");
    let (model, path) = (tiny_model(), json.display().to_string());
    let args = ["bench", "--onnx", &model, "--batch", "2,3", "--iterations", "3", "--check", "--json", &path];
    let bench = output(without_gpu(&args));
    assert_eq!(bench.status.code(), Some(0), "{}", stderr(&bench));
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&json).expect("figures")).expect("JSON");
    assert_eq!(rows.len(), 8);
    for row in &rows {
        if row["setup"] == "onnxruntime-cpu" {
            assert!(row["original"]["med_s"].as_f64().expect("a time") > 0.0, "{row}");
            assert!(row["own"]["med_s"].as_f64().expect("a time") > 0.0, "{row}");
            assert_eq!(row["max_difference"], 0.0, "{row}");
        } else {
            assert!(!row["reason"].as_str().expect("a reason").is_empty(), "{row}");
        }
    }
    assert_eq!(stdout(&bench).lines().filter(|line| line.starts_with("| onnxruntime-cpu | ")).count(), 2);
    for nonsense in [["--batch", "0"], ["--lanes", "0"], ["--iterations", "0"]] {
        let refused = output(without_gpu(&[&["bench", "--onnx", &model], &nonsense[..]].concat()));
        assert_fails(&refused, 2, &[nonsense[0]]);
    }
    let unknown = output(without_gpu(&["bench", "--onnx", &model, "--setups", "tensorrt,onnx"]));
    assert_fails(&unknown, 2, &["onnx is not a setup", "onnxruntime-cuda"]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn doctor_checks_every_engine_and_finds_the_one_on_the_cpu() {
    let doctor = output(without_gpu(&["doctor"]));
    assert_eq!(doctor.status.code(), Some(0), "{}", stderr(&doctor));
    let text = stdout(&doctor);
    for name in ["NVIDIA driver", "NVRTC", "ONNX parser", "cuDNN", "tensorrt", "onnxruntime, cuda"] {
        assert!(text.lines().any(|line| line.contains(name)), "no {name} in\n{text}");
    }
    assert!(text.lines().any(|line| line.contains("ok ") && line.contains("onnxruntime, cpu")), "{text}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn diff_exits_with_5_if_outputs_differ() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    let all = ["--set", "output.scores=all"];
    for (out, more) in [("a", &[][..]), ("b", &["--set", "engine.batch_size=3"]), ("c", &["--limit", "2"])] {
        let run = bench.run(out, &[&all[..], more].concat());
        assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    }
    let diff = |other: &str, more: &[&str]| {
        let (a, b) = (bench.path("a").display().to_string(), bench.path(other).display().to_string());
        output(without_gpu(&[&["diff", &a, &b], more].concat())).status.code()
    };
    assert_eq!(diff("b", &[]), Some(0), "the batch size changes no score");
    assert_eq!(diff("c", &[]), Some(5), "three records are missing");
    assert_eq!(diff("c", &["--common"]), Some(0));
}
