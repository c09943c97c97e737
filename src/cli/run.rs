//! `sluice run`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use sluice::error::Error;
use sluice::flow::StopSignal;
use sluice::job::{Job, JobOptions};
use sluice::plan::Plan;
use sluice::report::Outcome;
use sluice::source::{Stores, list_shards};

use super::print::print;
use super::progress::{Progress, Total};
use super::{PipelineArgs, exit, storage_runtime, summary};

/// Arguments of `sluice run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Remove the run that the output holds, and start anew.
    #[arg(long)]
    overwrite: bool,
}

/// Score the input; the exit code says how it went.
pub fn run(args: &RunArgs, progress: &Progress) -> anyhow::Result<ExitCode> {
    let stop = StopSignal::default();
    let received = drain_on_signals(&stop)?;
    let plan = args.pipeline.load().map_err(Error::from)?;
    let runtime = storage_runtime()?;
    let options = JobOptions { limit: args.limit, stop, overwrite: args.overwrite, ..JobOptions::default() };
    let job = Job::prepare(plan, runtime.handle(), options)?;
    announce(&job);
    let (plan, stores) = (&job.checked().plan, &job.checked().stores);
    let shards = list_shards(stores, &plan.inputs, &plan.input).map_err(Error::from)?;
    if job.is_finished() {
        let output = plan.output.uri.clone();
        job.check_finished(shards)?;
        print(&format!("done before: {output} holds this run, finished, and the input has not changed"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let total = Total { records: args.limit, ..Total::default() };
    if progress.is_terminal() {
        count_bytes(stores.clone(), plan.clone(), total.clone());
    }
    let watch = progress.watch(job.meters().clone(), total);
    let output = plan.output.uri.clone();
    let report = job.run(shards)?;
    drop(watch);
    print(&summary::text(&report, &output))?;
    Ok(ExitCode::from(match report.summary.outcome {
        Outcome::Succeeded => 0,
        Outcome::TooManyErrors => exit::TOO_MANY_ERRORS,
        Outcome::Interrupted if received.load(Relaxed) == SIGTERM => exit::TERMINATED,
        Outcome::Interrupted => exit::INTERRUPTED,
    }))
}

/// The first SIGINT or SIGTERM drains the run, the second leaves at once.
fn drain_on_signals(stop: &StopSignal) -> anyhow::Result<Arc<AtomicI32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let received = Arc::new(AtomicI32::new(0));
    let (stop, first) = (stop.clone(), Arc::clone(&received));
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if stop.is_draining() {
                std::process::exit(128 + signal);
            }
            first.store(signal, Relaxed);
            stop.drain();
            tracing::warn!("interrupted: finishing what is in flight; once more leaves at once");
        }
    });
    Ok(received)
}

fn announce(job: &Job) {
    let (memory, mib) = (&job.checked().memory, |bytes: u64| bytes >> 20);
    tracing::info!(
        "memory beside the model: at most {} MiB in queues, and {} MiB in decoders if every thread meets an image \
         of max_pixels at once",
        mib(memory.queues_bytes()),
        mib(memory.decoders_bytes),
    );
}

/// Add up the input's bytes beside the run, so that the bar knows how far it is. The sum shows
/// only when it is complete; a listing that fails here fails in the run, too, and is told there.
fn count_bytes(stores: Stores, plan: Plan, total: Total) {
    std::thread::spawn(move || {
        let sum = list_shards(&stores, &plan.inputs, &plan.input).and_then(|shards| {
            shards.map(|shard| shard.map(|shard| shard.size_bytes())).sum::<Result<u64, _>>()
        });
        total.bytes.store(sum.unwrap_or_default(), Relaxed);
    });
}
