//! `sluice beam`: the commands for Apache Beam.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use clap::{Args, Subcommand};
use sluice::beam::{Follower, Submission, SubmitOptions, Submitted};
use sluice::commit::Share;
use sluice::error::{ConfigError, Error};
use sluice::flow::StopSignal;
use sluice::progress::ProgressCounters;
use sluice::report::Outcome;

use super::beam_environment::{EnvironmentArgs, name_and_value};
use super::beam_expansion_service::{self, ExpansionServiceArgs};
use super::beam_worker::{self, WorkerArgs};
use super::logging::LogFormat;
use super::pipeline_args::PipelineArgs;
use super::print::{print, print_json_line};
use super::progress::Progress;
use super::signals::{code_of_signal, stop_on_signals};
use super::storage::storage_runtime;
use super::{exit, help, summary, total};

/// Arguments of `sluice beam`.
#[derive(Debug, Args)]
pub struct BeamArgs {
    #[command(subcommand)]
    command: BeamCommand,
}

#[derive(Debug, Subcommand)]
enum BeamCommand {
    /// Submit a pipeline to a job service, and follow the job to its end.
    #[command(after_help = help::BEAM_SUBMIT)]
    Submit(SubmitArgs),
    /// Run a worker that a runner has started, or a pool of workers.
    #[command(after_help = help::BEAM_WORKER)]
    Worker(WorkerArgs),
    /// Serve the transform sluice:transform:score:v1 to pipelines in Python, Java and other languages.
    #[command(after_help = help::BEAM_EXPANSION_SERVICE)]
    ExpansionService(ExpansionServiceArgs),
}

/// Arguments of `sluice beam submit`.
#[derive(Debug, Args)]
struct SubmitArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Address of the runner's job service.
    #[arg(long, value_name = "HOST:PORT")]
    job_endpoint: String,
    #[command(flatten)]
    environment: EnvironmentArgs,
    /// Number of parallel tasks for each step. Flink runs one by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    parallelism: Option<u32>,
    /// Set an option of the runner; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    option: Vec<(String, String)>,
    /// Succeed with no rows if the input has no record.
    #[arg(long)]
    allow_empty: bool,
}

/// Run one of the commands.
pub fn run(args: &BeamArgs, log_format: LogFormat, progress: &Progress) -> anyhow::Result<ExitCode> {
    match &args.command {
        BeamCommand::Submit(args) => submit(args, log_format, progress),
        BeamCommand::Worker(args) => beam_worker::run(args),
        BeamCommand::ExpansionService(args) => beam_expansion_service::run(args),
    }
}

/// Submit the pipeline. The exit code tells the outcome, as that of `sluice run` does.
fn submit(args: &SubmitArgs, log_format: LogFormat, progress: &Progress) -> anyhow::Result<ExitCode> {
    let stop = StopSignal::default();
    let said = "interrupted: cancelling the job; a second signal exits at once, and leaves the job as it is";
    let stopped = stop.clone();
    let received = stop_on_signals(move || stopped.drain(), said, None)?;
    let runtime = storage_runtime()?;
    let submission = Submission::prepare(args.options().map_err(Error::from)?, runtime.handle())?;
    let output = submission.plan().output.uri.clone();
    if submission.is_finished() {
        submission.check_finished()?;
        summary::print_done_before(&output, log_format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let counters = Arc::new(ProgressCounters::default());
    let (stores, plan) = (submission.stores().clone(), submission.plan().clone());
    let mut count = Some(move || total::count(&stores, &plan, Share::default(), None));
    let mut display = None;
    let mut on_first_counts = || {
        if let Some(count) = count.take() {
            display = Some(progress.watch(Arc::clone(&counters), Box::new(count)));
        }
    };
    let follower = Follower { stop: &stop, counters: &counters, on_first_counts: &mut on_first_counts };
    let submitted = submission.run(follower);
    drop(display);
    match submitted? {
        Submitted::Finished(finished) => {
            let summary = &finished.summary;
            match log_format {
                LogFormat::Text => print(&summary::text(summary, &output))?,
                LogFormat::Json => {
                    let (run_id, finished_at) = (&finished.run_id, &finished.finished_at);
                    print_json_line(&summary::object(summary, run_id, finished_at, &output))?;
                }
            }
            Ok(ExitCode::from(if summary.outcome == Outcome::TooManyErrors {
                exit::TOO_MANY_ERRORS
            } else {
                0
            }))
        }
        Submitted::Cancelled { state, output } => {
            let runner = match state {
                "" => "the job had not started".to_owned(),
                "UNSPECIFIED" => {
                    "the runner has not confirmed the start of the job, which may run".to_owned()
                }
                state => format!("the runner reports {state}, but may let the job run to completion"),
            };
            tracing::warn!("cancelled: {runner}; {output}");
            Ok(ExitCode::from(code_of_signal(received.load(Relaxed))))
        }
    }
}

impl SubmitArgs {
    fn options(&self) -> Result<SubmitOptions, ConfigError> {
        let environment = self.environment.environment(Some(&self.job_endpoint))?;
        let mut overrides = self.pipeline.overrides();
        if self.allow_empty {
            overrides.set.push("input.allow_empty=true".to_owned());
        }
        Ok(SubmitOptions {
            path: self.pipeline.file().to_owned(),
            overrides,
            job_endpoint: self.job_endpoint.clone(),
            environment,
            parallelism: self.parallelism,
            options: self.option.clone(),
        })
    }
}
