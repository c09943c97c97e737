//! The example program, which scores shards from several threads with one scorer.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::support::{Bench, REPOSITORY};

/// The example program, built beside the test that runs.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("this test has a path");
    let profile = test.ancestors().nth(2).expect("tests are built below a profile's folder");
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(REPOSITORY).args(["build", "--locked", "--quiet", "--example", "score"]);
    build.arg("--target-dir").arg(profile.parent().expect("profiles are built below a target folder"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo starts").success(), "the example builds");
    profile.join("examples/score")
});

/// The example program, which scores `input` into `output` from so many threads.
pub fn example(bench: &Bench, input: &str, output: &str, threads: usize) -> Command {
    let mut score = Command::new(&*PROGRAM);
    score.current_dir(bench.path("")).arg("pipeline.toml");
    score.args(["--input", input, "--output", output, "--threads", &threads.to_string()]);
    score.env("ORT_DISABLE_TELEMETRY", "1");
    score
}
