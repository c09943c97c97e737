//! The example program, which scores many shards with one scorer, and `sluice run` on the output that it leaves.

#[path = "support/example.rs"]
mod example;
mod support;

use std::process::Stdio;
use std::time::Duration;

use example::example;
use support::*;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_example_scores_three_shards_from_two_threads() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 50));
    write_tfrecord(&bench.path("in/b.tfrecord"), &images(50, 3));
    write_tar(&bench.path("in/c.tar"), &images(60, 20));
    let output = example(&bench, "in", "out", 2).output().expect("starts");
    assert_code(&output, 0);
    assert!(stdout(&output).contains("73 rows, "), "{}", stdout(&output));
    // a run with the same plan finishes the output
    let finished = bench.run("out", &[]);
    assert_code(&finished, 0);
    assert!(stdout(&finished).contains("73 rows"), "{}", stdout(&finished));
    assert_code(&bench.run("alone", &[]), 0);
    assert_eq!(bench.comparable_rows("out"), bench.comparable_rows("alone"));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_resumes_the_output_of_a_killed_scorer_of_eight_threads() {
    let bench = Bench::new();
    for shard in 0..200_u32 {
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &images(shard * 100, shard * 13 % 23));
    }
    let start = std::time::Instant::now();
    assert_code(&bench.run("alone", &[]), 0);
    let took = start.elapsed();
    let expected = bench.comparable_rows("alone");
    let mut killed = 0;
    for round in 0..8 {
        let out = format!("out-{round}");
        let mut scoring = example(&bench, "in", &out, 8).stdout(Stdio::null()).spawn().expect("starts");
        std::thread::sleep(took.mul_f64(f64::from(round + 1) / 8.0).max(Duration::from_millis(20)));
        killed += u32::from(scoring.try_wait().expect("a child").is_none());
        scoring.kill().expect("killed, or gone");
        scoring.wait().expect("a child");
        assert_code(&bench.run(&out, &[]), 0);
        assert_eq!(bench.comparable_rows(&out), expected, "killed after {round} eighths");
        let verified = sluice().current_dir(bench.path("")).args(["verify", &out]).output().expect("starts");
        assert_code(&verified, 0);
    }
    assert!(killed > 0, "every scorer ended before it was killed");
}
