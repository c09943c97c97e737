//! Workers that share the shards of one run.

use super::*;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn workers_share_an_output_and_one_of_them_finishes_it() {
    let bench = Bench::new();
    for shard in 0..SHARDS {
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &images(shard * IMAGES, IMAGES));
    }
    // worker 1 runs twice, as if its scheduler had restarted it although it was alive
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
    assert_as_uninterrupted(&bench);
    let workers = bench.manifest("out")["attempts"].as_array().expect("attempts").clone();
    assert!(workers.len() >= 3 && workers.iter().all(|worker| worker["num_shards"] == 3), "{workers:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_last_worker_to_finish_its_share_finishes_the_run() {
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
    // a repeated worker does not score its share again
    assert_code(&worker("1"), 0);
    assert_eq!(bench.note("out", 1)["rows"], 0);
    assert_code(&worker("0"), 0);
    assert!(bench.path("out/_SUCCESS").is_file());
    assert_eq!(bench.rows("out").len(), 50);
    assert_eq!(bench.manifest("out")["summary"]["rows"], 50);

    let refused = bench.run("other", &["--shard-index", "0", "--num-shards", "2", "--limit", "3"]);
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("--limit: is for a single worker"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_shard_that_is_added_between_two_workers_is_scored() {
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
