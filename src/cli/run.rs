//! `sluice run`.

use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use clap::Args;
use sluice::commit::{Output, note_crash};
use sluice::crash::{CrashWatch, leave, signal_name};
use sluice::error::Error;
use sluice::flow::StopSignal;
use sluice::job::{Job, JobOptions};
use sluice::limits::check_limits;
use sluice::report::Outcome;
use sluice::source::list_shards;

use super::logging::LogFormat;
use super::pipeline_args::PipelineArgs;
use super::print::{print, print_json_line};
use super::progress::Progress;
use super::share::ShareArgs;
use super::signals::{checked_grace, code_of_signal, stop_on_signals};
use super::storage::storage_runtime;
use super::{exit, summary, total};

/// Arguments of `sluice run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Stop after this many records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Succeed with no rows if the input has no record.
    #[arg(long)]
    allow_empty: bool,
    /// Remove the run in the output and start over.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    share: ShareArgs,
    /// Seconds from SIGTERM or SIGINT to the exit, in which work in flight is finished and stored.
    #[arg(long, value_name = "SECONDS", default_value_t = 25.0)]
    grace: f64,
}

/// Score the input. The exit code tells the outcome.
pub fn run(args: &RunArgs, log_format: LogFormat, progress: &Progress) -> anyhow::Result<ExitCode> {
    let share = args.share.resolve(|name| std::env::var(name).ok()).map_err(Error::from)?;
    let stop = StopSignal::default();
    let options = JobOptions { limit: args.limit, stop: stop.clone(), overwrite: args.overwrite, share };
    options.check().map_err(Error::from)?;
    let said = "interrupted: finishing the work in flight; a second signal exits at once";
    let grace = checked_grace(args.grace).map_err(Error::from)?;
    let received = stop_on_signals(move || stop.drain(), said, Some(grace))?;
    let mut plan = args.pipeline.load().map_err(Error::from)?;
    plan.input.allow_empty |= args.allow_empty;
    check_limits(&plan)?;
    let runtime = storage_runtime()?;
    let job = Job::prepare(plan, runtime.handle(), options)?;
    log_memory_bound(&job);
    let (plan, stores) = (&job.checked().plan, &job.checked().stores);
    let shards = list_shards(stores, &plan.inputs, &plan.input).map_err(Error::from)?;
    if job.is_finished() {
        let output = plan.output.uri.clone();
        job.check_finished(shards)?;
        summary::print_done_before(&output, log_format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let watch = {
        let (stores, plan, limit) = (stores.clone(), plan.clone(), args.limit);
        let count = move || total::count(&stores, &plan, share, limit);
        progress.watch(Arc::clone(job.progress()), Box::new(count))
    };
    note_crashes(CrashWatch::install()?, job.output().clone(), job.run_id());
    let output = plan.output.uri.clone();
    let report = job.run(shards)?;
    drop(watch);
    match log_format {
        LogFormat::Text => print(&summary::text(&report.summary, &output))?,
        LogFormat::Json => {
            print_json_line(&summary::object(&report.summary, &report.run_id, &report.finished_at, &output))?;
        }
    }
    Ok(ExitCode::from(match report.summary.outcome {
        Outcome::Succeeded | Outcome::ShareDone => 0,
        Outcome::TooManyErrors => exit::TOO_MANY_ERRORS,
        Outcome::Interrupted => code_of_signal(received.load(Relaxed)),
    }))
}

/// When a decoder or a reader crashes, note the record for the next attempt, and end the process.
fn note_crashes(watch: CrashWatch, output: Output, run_id: Arc<OnceLock<String>>) {
    std::thread::spawn(move || {
        let crash = match watch.wait() {
            Ok(crash) => crash,
            Err(error) => return tracing::error!(%error, "cannot watch for crashes"),
        };
        // the run id is set before anything is decoded
        let noted = note_crash(&output, &crash, run_id.wait());
        let (shard, signal) = (&crash.shard.name, signal_name(crash.signal));
        let (who, advice) = match crash.image_id {
            Some(_) => {
                ("a native decoder", "it resumes without that record, which becomes a decode_error row")
            }
            None => ("the reader", "it treats that shard as damaged from that record on"),
        };
        let what = format!("{who} crashed ({signal}) on record {} of {shard}", crash.record_index);
        match noted {
            Ok(()) => tracing::error!(image_id = crash.image_id, "{what}; run again: {advice}"),
            Err(error) => {
                // the next attempt would crash on the same record, so a retry does not help
                tracing::error!(image_id = crash.image_id, %error, "{what}; it could not be noted");
                leave(exit::FAILED)
            }
        }
        leave(exit::CRASHED)
    });
}

fn log_memory_bound(job: &Job) {
    let (memory, mib) = (&job.checked().memory, |bytes: u64| bytes >> 20);
    tracing::info!(
        "memory besides the model: at most {} MiB in queues, {} MiB in decoders if every thread meets an image of \
         max_pixels at once, and {} MiB in Parquet pages if they are max_page_bytes long",
        mib(memory.queues_bytes()),
        mib(memory.decoders_bytes),
        mib(memory.parquet_pages_bytes),
    );
}
