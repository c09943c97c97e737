//! Submits a pipeline file to a job service, and reports on its output.
//!
//! - The submitter checks what it can before it contacts the runner: the file, the model, and whether the output is
//!   vacant or holds an unfinished part of this run. If the run is finished, no job is submitted.
//! - Workers may run anywhere, in any folder. So the payload has absolute paths, and the job's artifacts contain the
//!   model and the labels.
//! - The output decides how the run ended, not the state of the job: some runners mark a job as cancelled that
//!   continues to its end, or as failed after a worker has finished the run.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::runtime::Handle;

use super::absolute::absolute_path;
use super::environment::{Environment, is_address};
use super::failure::Failure;
use super::job_service::{Ended, Limits, NotStarted, RunningJob, Watch};
use super::payload::Payload;
use super::pipeline::pipeline;
use super::prepare::prepare;
use super::proto::job_management::PrepareJobRequest;
use super::proto::job_management::job_state::Enum as State;
use super::service_error::ServiceError;
use crate::checked::run_record;
use crate::commit::{
    Output, OutputListing, OutputState, RunRecord, StoredManifest, admit, check_finished, observe,
    shard_index,
};
use crate::config::Overrides;
use crate::error::{ConfigError, Error, Retry, SinkError};
use crate::flow::StopSignal;
use crate::plan::Plan;
use crate::progress::ProgressCounters;
use crate::regular_file::read_text;
use crate::report::{Outcome, OutputReport, Summary};
use crate::source::list_shards;
use crate::store::Stores;

/// What to submit, and where.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    /// The pipeline file.
    pub path: PathBuf,
    /// What the command line overrides in it.
    pub overrides: Overrides,
    /// `HOST:PORT` of the job service.
    pub job_endpoint: String,
    /// Where the runner gets its workers from.
    pub environment: Environment,
    /// Beam's option `parallelism`.
    pub parallelism: Option<u32>,
    /// Other options of the runner, by name. `true` and `false` are booleans, `[…]` is a list, all else is a string.
    pub options: Vec<(String, String)>,
}

/// A job that is ready to be submitted.
pub struct Submission {
    payload: Payload,
    plan: Plan,
    stores: Stores,
    output: Output,
    /// The run as a worker would begin it.
    wanted: RunRecord,
    options: SubmitOptions,
    is_finished: bool,
    runtime: Handle,
    limits: Limits,
}

/// Who waits for a job.
pub struct Follower<'a> {
    /// Cancels the job.
    pub stop: &'a StopSignal,
    /// Counts the rows of all workers, once the runner reports them.
    pub counters: &'a Arc<ProgressCounters>,
    /// Called when it reports the first ones.
    pub on_first_counts: &'a mut dyn FnMut(),
}

/// How a submission ended.
#[derive(Debug)]
pub enum Submitted {
    /// The run is finished: its output has a manifest.
    Finished(Box<FinishedJob>),
    /// The job was cancelled, and its run is not finished.
    Cancelled {
        /// What the runner says about the job, in Beam's words: `UNSPECIFIED` if it has said nothing. Empty if the job
        /// was not started.
        state: &'static str,
        /// What the output has, in words.
        output: String,
    },
}

/// A run that a job has finished.
#[derive(Debug)]
pub struct FinishedJob {
    /// Id of the run.
    pub run_id: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// Rows are those of the whole run. Times are those of the job, including the start of its workers; stages and
    /// latencies are only known to the workers.
    pub summary: Summary,
}

/// Why a submission failed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The plan, the model or the output cannot be used.
    #[error(transparent)]
    Local(#[from] Error),
    /// The job service is at fault. The rest says what the output has, if the job was started or may have been.
    #[error("{error}{output}")]
    Service {
        /// What went wrong.
        error: ServiceError,
        /// Empty, or `; ` and what the output has.
        output: String,
    },
    /// A worker said why it failed.
    #[error("{0}")]
    Worker(Failure),
    /// The runner ended the job without the words of a worker.
    #[error("the job ended as {state}{reason}; {output}")]
    Ended {
        /// In Beam's words.
        state: &'static str,
        /// What the runner says, or where to look.
        reason: String,
        /// What the output has.
        output: String,
    },
    /// The job succeeded, and its run is not in the output.
    #[error("the runner says that the job is done, but {output}")]
    NotDone {
        /// What the output has.
        output: String,
    },
}

impl SubmitError {
    /// Whether a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Local(error) => error.retry(),
            Self::Worker(failure) => failure.retry,
            Self::Service { .. } | Self::Ended { .. } | Self::NotDone { .. } => Retry::Again,
        }
    }
}

impl Submission {
    /// Check the pipeline file, its model and its output. Blocks. `runtime` drives the requests.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn prepare(options: SubmitOptions, runtime: &Handle) -> Result<Self, Error> {
        if !is_address(&options.job_endpoint) {
            let message = format!("{:?} is not the HOST:PORT of a job service", options.job_endpoint);
            return Err(ConfigError::Argument { argument: "--job-endpoint", message }.into());
        }
        let path = absolute_path(&options.path)?;
        let text =
            read_text(&path).map_err(|source| ConfigError::Read { path: options.path.clone(), source })?;
        let (payload, plan) = prepare(path, text, &options.overrides, Plan::check)?;
        let stores = Stores::with(runtime.clone(), plan.storage.clone());
        let output = Output::open(&stores, &plan.output.uri)?;
        let wanted = run_record(&plan, &payload.model_sha256, None);
        let is_finished = matches!(admit(&output, &wanted)?, OutputState::Succeeded(..));
        let (runtime, limits) = (runtime.clone(), Limits::default());
        Ok(Self { payload, plan, stores, output, wanted, options, is_finished, runtime, limits })
    }

    /// The plan, with absolute paths.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The stores of the plan.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Whether the output holds this run, finished.
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Check that a finished run is complete, by names and sizes, and that its parts are those of the input.
    ///
    /// # Errors
    /// See [`crate::job::Job::check_finished`].
    pub fn check_finished(&self) -> Result<(), Error> {
        let shards = list_shards(&self.stores, &self.plan.inputs, &self.plan.input)?;
        check_finished(&self.output, shards, None)
    }

    /// Submit the job, and follow it to its end. Blocks; must not be called inside a runtime.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn run(self, follower: Follower<'_>) -> Result<Submitted, SubmitError> {
        let before = OutputListing::read(&self.output).map_err(Error::from)?;
        let before: HashSet<_> = before.predictions.into_values().map(|part| part.name).collect();
        let (stop, counters) = (follower.stop, follower.counters);
        let request = self.request();
        let start =
            RunningJob::start(&self.options.job_endpoint, request, &self.payload.staged, stop, self.limits);
        let started = self.runtime.block_on(start);
        let job = match started {
            Ok(job) => job,
            Err(not_started) => return self.not_started(not_started, stop.is_draining()),
        };
        let begun = Instant::now();
        let mut is_first = true;
        let mut counts = |counts: super::row_counts::RowCounts| {
            counters.set(counts.rows, counts.rejected);
            if std::mem::take(&mut is_first) {
                (follower.on_first_counts)();
            }
        };
        let starts_processes = matches!(self.options.environment, Environment::Process { .. });
        let mut watch = Watch { stop, starts_processes, counts: &mut counts };
        let ended = self.runtime.block_on(job.follow(&mut watch));
        let wall = begun.elapsed();
        let finished = || self.finished(&before, wall);
        match ended {
            Ok(Ended { state: State::Done, .. }) => match finished()? {
                Some(finished) => Ok(Submitted::Finished(Box::new(finished))),
                None => Err(SubmitError::NotDone { output: self.output_in_words() }),
            },
            Ok(Ended { state, failure, is_cancelled: true, .. })
                if state != State::Failed || failure.as_ref().is_none_or(Failure::is_stopped) =>
            {
                match finished()? {
                    // one with too many errors may be of an earlier job
                    Some(finished) if finished.summary.outcome == Outcome::Succeeded => {
                        Ok(Submitted::Finished(Box::new(finished)))
                    }
                    _ => Ok(Submitted::Cancelled {
                        state: state.as_str_name(),
                        output: self.output_in_words(),
                    }),
                }
            }
            failed => {
                let error = match failed {
                    Ok(Ended { failure: Some(failure), error, is_error_later, .. }) => {
                        let later = error.filter(|_| is_error_later);
                        SubmitError::Worker(with_later_error(failure, later.as_deref()))
                    }
                    Ok(Ended { state, error, has_workers, .. }) => {
                        let reason = self.reason(error.as_deref(), has_workers);
                        let (state, output) = (state.as_str_name(), self.output_in_words());
                        SubmitError::Ended { state, reason, output }
                    }
                    Err(error) => {
                        SubmitError::Service { error, output: format!("; {}", self.output_in_words()) }
                    }
                };
                // a worker may have finished the run before
                match finished() {
                    Ok(Some(finished)) if finished.summary.outcome == Outcome::Succeeded => {
                        tracing::warn!(%error, "the job has failed, but its run is finished");
                        Ok(Submitted::Finished(Box::new(finished)))
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// The end of a submission without a job to follow.
    fn not_started(&self, not_started: NotStarted, is_stopped: bool) -> Result<Submitted, SubmitError> {
        let output = || self.output_in_words();
        match not_started {
            NotStarted::Stopped => Ok(Submitted::Cancelled { state: "", output: output() }),
            NotStarted::Failed(error) => Err(SubmitError::Service { error, output: String::new() }),
            NotStarted::Unknown(error) if is_stopped => {
                tracing::warn!(%error, "the job may run: it cannot be cancelled, because its id is unknown");
                Ok(Submitted::Cancelled { state: State::Unspecified.as_str_name(), output: output() })
            }
            NotStarted::Unknown(error) => {
                let output = format!("; the job may run: see the runner's user interface; {}", output());
                Err(SubmitError::Service { error, output })
            }
        }
    }

    /// Why the job ended, by the runner's last error, which the log has in full.
    fn reason(&self, error: Option<&str>, has_workers: bool) -> String {
        let reason = match error {
            None => "; the runner gives no reason: see its log, and the logs of its workers".to_owned(),
            Some(error) => format!(": {}", essence(error)),
        };
        let advice = match &self.options.environment {
            environment if error.is_some_and(|error| error.contains(environment.urn())) => {
                "; it seems that the runner does not support this --environment".to_owned()
            }
            // runners pass on neither the command nor what it prints
            Environment::Process { command, .. } if !has_workers => format!(
                "; no worker has reported anything: its workers are started as {}: check that its hosts can run it",
                command.display()
            ),
            _ => String::new(),
        };
        reason + &advice
    }

    fn request(&self) -> PrepareJobRequest {
        let job_name = job_name(&self.plan.name, SystemTime::now());
        let parallelism = self.options.parallelism.map(|parallelism| parallelism.to_string());
        let given = self.options.options.iter().map(|(name, value)| (name.as_str(), option_value(value)));
        let all = [("job_name", Some(&job_name)), ("parallelism", parallelism.as_ref())];
        let all = all.into_iter().filter_map(|(name, value)| Some((name, text(value?)))).chain(given);
        let fields: BTreeMap<_, _> =
            all.map(|(name, value)| (format!("beam:option:{name}:v1"), value)).collect();
        PrepareJobRequest {
            pipeline: Some(pipeline(&self.payload, &self.options.environment)),
            pipeline_options: Some(Struct { fields }),
            job_name,
        }
    }

    /// The finished run, if the output holds this one with its manifest. `before` are the parts that it had before the
    /// job.
    fn finished(&self, before: &HashSet<String>, wall: Duration) -> Result<Option<FinishedJob>, Error> {
        let (OutputState::Succeeded(record, manifest) | OutputState::Failed(record, manifest)) =
            observe(&self.output)?
        else {
            return Ok(None);
        };
        if record.plan_sha256 != self.wanted.plan_sha256 {
            return Ok(None);
        }
        let StoredManifest { run_id, finished_at, summary, parts, .. } = *manifest;
        let (reused, own): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| before.contains(&part.path));
        let mut written = OutputReport {
            skipped_by_listing: summary.skipped_by_listing.unwrap_or_default(),
            ..OutputReport::default()
        };
        own.iter().filter_map(|part| part.rows_by_status.as_ref()).for_each(|rows| written.tally.add(rows));
        written.parts = own;
        let mut whole = written.with(reused);
        whole.parts.sort_by_key(|part| shard_index(&part.path));
        let mut summary = Summary::new(&whole, summary.outcome, Vec::new(), wall, Duration::ZERO);
        summary.bottleneck = "unknown: the stages ran on the runner's workers".to_owned();
        Ok(Some(FinishedJob { run_id, finished_at, summary }))
    }

    /// What the output has, for a message.
    fn output_in_words(&self) -> String {
        let uri = &self.plan.output.uri;
        let is_ours = |record: &RunRecord| record.plan_sha256 == self.wanted.plan_sha256;
        let parts = || OutputListing::read(&self.output).map(|listing| listing.predictions.len());
        let words = |state: OutputState| {
            Ok::<_, SinkError>(match state {
                OutputState::Vacant => format!("the output {uri} is empty, as seen from here"),
                OutputState::Unfinished(record) if is_ours(&record) => {
                    format!(
                        "the output {uri} has {} finished shards; the same command resumes from there",
                        parts()?
                    )
                }
                OutputState::Sealed(record, _) if is_ours(&record) => {
                    format!("the output {uri} has a manifest and no _SUCCESS; the same command finishes it")
                }
                OutputState::Succeeded(record, _) if is_ours(&record) => {
                    format!("the output {uri} is finished")
                }
                OutputState::Failed(record, _) if is_ours(&record) => {
                    format!("the output {uri} is complete, with too many errors")
                }
                _ => format!("the output {uri} does not have this run"),
            })
        };
        observe(&self.output)
            .and_then(words)
            .unwrap_or_else(|error| format!("the output cannot be read: {error}"))
    }
}

/// Longest part of a runner's error that is repeated.
const ESSENCE_CHARS: usize = 400;

/// The part of a stack trace that names the error, on one line: in Python, the text after the indented calls; in Java,
/// the first line.
fn essence(error: &str) -> String {
    let words: Vec<_> = match error.rsplit_once("Traceback (most recent call last):") {
        Some((_, calls)) => {
            calls.lines().skip_while(|line| line.is_empty() || line.starts_with(' ')).map(str::trim).collect()
        }
        None => error.lines().map(str::trim).filter(|line| !line.is_empty()).take(1).collect(),
    };
    words.join(" ").trim().chars().take(ESSENCE_CHARS).collect()
}

/// `failure`, and a later error of the runner that does not contain it.
fn with_later_error(failure: Failure, later: Option<&str>) -> Failure {
    let Some(later) = later else { return failure };
    let Failure { code, retry, message } = failure;
    let message = format!(
        "{message}; the runner's last error is another one, so a later attempt may have failed for another reason: {}",
        essence(later)
    );
    Failure { code, retry, message }
}

/// A name that every runner accepts: lower-case letters, digits and hyphens. Dataflow and some job services refuse two
/// jobs of one name, so it ends in the time.
fn job_name(name: &str, now: SystemTime) -> String {
    let accepted = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(accepted).collect();
    let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("sluice-{}-{millis}", name.trim_matches('-'))
}

/// The value of an option as Beam's SDKs send it. Numbers are strings, because a number of a Struct is a float.
fn option_value(value: &str) -> Value {
    let kind = match serde_json::from_str(value) {
        Ok(serde_json::Value::Bool(value)) => Kind::BoolValue(value),
        Ok(serde_json::Value::Array(values)) => {
            let as_text = |value: serde_json::Value| match value {
                serde_json::Value::String(value) => value,
                other => other.to_string(),
            };
            Kind::ListValue(ListValue {
                values: values.into_iter().map(|value| text(&as_text(value))).collect(),
            })
        }
        _ => return text(value),
    };
    Value { kind: Some(kind) }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

/// The path of this program, for a process environment on the same host.
///
/// # Errors
/// When the system cannot say it.
pub fn own_path() -> Result<PathBuf, ConfigError> {
    std::env::current_exe().map_err(|error| ConfigError::Argument {
        argument: "--worker-command",
        message: format!("must be given, because the path of this program is unknown: {error}"),
    })
}

/// Check the command of a process environment. Some runners wait forever for a command that does not exist. Log a
/// warning if it does not exist on this host and the runner at `job_endpoint` seems to be here.
///
/// # Errors
/// If it is relative: a runner starts its workers in another folder.
pub fn check_command(command: &Path, job_endpoint: Option<&str>) -> Result<(), ConfigError> {
    if command.is_absolute() {
        let is_here = |at: &str| ["localhost:", "127.", "[::1]:"].iter().any(|here| at.starts_with(here));
        let is_local = job_endpoint.is_some_and(is_here);
        if is_local && !command.is_file() {
            let command = command.display();
            tracing::warn!(
                "{command} does not exist on this host; it must exist where the runner starts workers"
            );
        }
        return Ok(());
    }
    let message = format!("{} is relative; a runner starts its workers in another folder", command.display());
    Err(ConfigError::Argument { argument: "--worker-command", message })
}
