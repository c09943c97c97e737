//! The counts of the progress display, through the library.

use sluice::commit::Share;
use sluice::config::{Overrides, PipelineFile};
use sluice::job::{Job, JobOptions};
use sluice::plan::Plan;
use sluice::progress::Counts;
use sluice::source::list_shards;

use super::*;

/// Run the rest of the input for `share`, and return the counts.
fn counted(bench: &Bench, share: Share) -> Counts {
    let overrides = Overrides {
        inputs: vec![bench.path("in").display().to_string()],
        output: Some(bench.path("out").display().to_string()),
        set: vec!["output.max_error_rate=0.5".to_owned()],
    };
    let file = PipelineFile::load(&bench.path("pipeline.toml"), &overrides).expect("a pipeline");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let options = JobOptions { share, ..JobOptions::default() };
    let job = Job::prepare(Plan::check(file).expect("a plan"), runtime.handle(), options).expect("a job");
    let progress = std::sync::Arc::clone(job.progress());
    let (stores, plan) = (&job.checked().stores, &job.checked().plan);
    let shards = list_shards(stores, &plan.inputs, &plan.input).expect("a listing");
    job.run(shards).expect("a run");
    progress.counts()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn progress_counts_the_rows_of_this_worker_and_of_earlier_attempts() {
    let bench = Bench::new();
    let mut members = images(0, 5);
    members[2].1 = b"hello".to_vec();
    write_tar(&bench.path("in/a.tar"), &members);
    write_tar(&bench.path("in/b.tar"), &images(10, 3));
    write_tar(&bench.path("in/c.tar"), &images(20, 2));
    let bytes = |name: &str| fs::metadata(bench.path(name)).expect("a tar").len();
    let [a, b, c] = ["in/a.tar", "in/b.tar", "in/c.tar"].map(bytes);

    let second = counted(&bench, Share { shard_index: 1, num_shards: 2 });
    assert_eq!(second, Counts { rows: 3, rejected: 0, reused_rows: 0, bytes: b, reused_bytes: 0 });
    let all = counted(&bench, Share::default());
    assert_eq!(all, Counts { rows: 10, rejected: 1, reused_rows: 3, bytes: a + b + c, reused_bytes: b });
}
