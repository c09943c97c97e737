//! One job of a job service: prepared, staged, run, and followed to its end.
//!
//! - The service's messages and states arrive on a stream. A stream that breaks is opened again, and messages that were
//!   seen before are skipped.
//! - The state and the metrics are polled every few seconds, so that a dead service is noticed even if its connection
//!   stays open. After [`Limits::lost`] without an answer the job is lost.
//! - Every call has a deadline. While nothing happens, a line of the log says so.
//! - A stop is heard at each step. If the service was not asked to run the job, nothing runs; otherwise the job is
//!   cancelled.
//! - The state of a job decides nothing about its output: some runners mark a job as cancelled and let it run on.

use std::error::Error as _;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use super::failure::Failure;
use super::payload::StagedFile;
use super::proto::job_management::job_message::MessageImportance;
use super::proto::job_management::job_messages_response::Response as Event;
use super::proto::job_management::job_service_client::JobServiceClient;
use super::proto::job_management::job_state::Enum as State;
use super::proto::job_management::{
    CancelJobRequest, GetJobMetricsRequest, GetJobStateRequest, JobMessage, JobMessagesRequest,
    JobMessagesResponse, PrepareJobRequest, RunJobRequest,
};
use super::row_counts::RowCounts;
use super::service_error::{ServiceError, add_causes, no_answer, status_error, words};
use super::staging::stage;
use crate::flow::StopSignal;

/// Time limits of a job.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the answer to a call, and for progress of the staging.
    pub answer: Duration,
    /// Between two looks at the stop signal.
    pub tick: Duration,
    /// After a stop, for the id of a job that the service was asked to run.
    pub id: Duration,
    /// Between two polls of the state and the metrics.
    pub poll: Duration,
    /// Without any answer, until the job counts as lost.
    pub lost: Duration,
    /// For the end of a cancelled job.
    pub cancel: Duration,
    /// For the last messages of a job that has ended.
    pub last_messages: Duration,
    /// Without a line in the log.
    pub quiet: Duration,
    /// For the first sign of a worker, on a runner that does not report a worker that cannot start.
    pub no_worker: Duration,
}

impl Default for Limits {
    /// A line of the log at least every minute.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            answer: seconds(25),
            tick: Duration::from_millis(200),
            id: seconds(10),
            poll: seconds(5),
            lost: seconds(20),
            cancel: seconds(20),
            last_messages: seconds(5),
            quiet: seconds(30),
            no_worker: seconds(45),
        }
    }
}

/// A connection to `HOST:PORT`.
async fn connect(endpoint: &str, limits: &Limits) -> Result<Channel, ServiceError> {
    let unreachable = |error: tonic::transport::Error| {
        let mut message = error.to_string();
        add_causes(&mut message, error.source());
        ServiceError::Unreachable { endpoint: endpoint.to_owned(), message }
    };
    let to = Endpoint::from_shared(format!("http://{endpoint}")).map_err(unreachable)?;
    // no keepalive: Java's servers close the connection of a client that pings often
    to.connect_timeout(limits.answer).connect().await.map_err(unreachable)
}

/// Why there is no job to follow.
#[derive(Debug)]
pub enum NotStarted {
    /// The stop came before the service was asked to run the job.
    Stopped,
    /// The service does not run the job.
    Failed(ServiceError),
    /// The service was asked to run the job, and its answer is missing: the job may run.
    Unknown(ServiceError),
}

impl From<ServiceError> for NotStarted {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

/// A job that the service has accepted and not started.
struct Prepared {
    client: JobServiceClient<Channel>,
    run: RunJobRequest,
}

/// Prepare the job `request` at `endpoint`, and stage `files`.
async fn prepare(
    endpoint: &str,
    request: PrepareJobRequest,
    files: &[StagedFile],
    limits: &Limits,
) -> Result<Prepared, ServiceError> {
    let channel = connect(endpoint, limits).await?;
    let mut client = JobServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let prepared = timeout(limits.answer, client.prepare(request)).await;
    let prepared = prepared.map_err(|_| no_answer("the preparation of the job", limits.answer))?;
    let prepared = prepared.map_err(|status| not_a_service(endpoint, &status))?.into_inner();
    if !files.is_empty() {
        let to = prepared.artifact_staging_endpoint.unwrap_or_default().url;
        tracing::info!(files = files.len(), "staging the files of the plan");
        let to = if to.is_empty() { channel } else { connect(&to, limits).await? };
        stage(to, &prepared.staging_session_token, files, limits.answer).await?;
    }
    let run = RunJobRequest {
        preparation_id: prepared.preparation_id,
        retrieval_token: prepared.staging_session_token,
    };
    Ok(Prepared { client, run })
}

/// The id of the job, once the service runs it. A stop does not end this at once, because a job is cancelled by its id.
async fn run(prepared: &mut Prepared, stop: &StopSignal, limits: &Limits) -> Result<String, NotStarted> {
    const STEP: &str = "the start of the job";
    let request = prepared.run.clone();
    let mut run = pin!(answer(STEP, prepared.client.run(request), limits));
    let run = match unless_stopped(stop, limits.tick, run.as_mut()).await {
        Some(run) => run,
        None => timeout(limits.id, run).await.unwrap_or_else(|_| Err(no_answer(STEP, limits.id))),
    };
    match run {
        Ok(run) => Ok(run.job_id),
        Err(error @ (ServiceError::NoAnswer { .. } | ServiceError::Broken { .. })) => {
            Err(NotStarted::Unknown(error))
        }
        Err(error) => Err(NotStarted::Failed(error)),
    }
}

/// The result of `step`; `None` if the stop comes before it.
async fn unless_stopped<T>(stop: &StopSignal, tick: Duration, step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    while !stop.is_draining() {
        if let Ok(result) = timeout(tick, step.as_mut()).await {
            return Some(result);
        }
    }
    None
}

/// How a job ended, or was left.
#[derive(Debug)]
pub struct Ended {
    /// The last state that is known.
    pub state: State,
    /// The last failure in the messages.
    pub failure: Option<Failure>,
    /// The text of the last error message.
    pub error: Option<String>,
    /// Whether that one came after the failure, and is not about it.
    pub is_error_later: bool,
    /// Whether it was cancelled from here.
    pub is_cancelled: bool,
    /// Whether a worker has reported anything. Some runners pass reports on only when bundles end.
    pub has_workers: bool,
}

/// Who follows a job.
pub struct Watch<'a> {
    /// Cancels the job.
    pub stop: &'a StopSignal,
    /// Whether the runner starts the workers as processes.
    pub starts_processes: bool,
    /// Gets the counts of rows, when the runner reports some.
    pub counts: &'a mut dyn FnMut(RowCounts),
}

/// A job that a service runs.
pub struct RunningJob {
    client: JobServiceClient<Channel>,
    endpoint: String,
    job_id: String,
    limits: Limits,
    state: State,
    failure: Option<Failure>,
    error: Option<String>,
    is_error_later: bool,
    /// Messages that were taken from all streams.
    seen: usize,
    cancelled: Option<Instant>,
    has_counts: bool,
    /// What workers have reported last, and when it changed.
    signs_of_life: Vec<(String, Vec<u8>)>,
    last_sign: Instant,
    last_answer: Instant,
    last_line: Instant,
}

impl RunningJob {
    /// Prepare the job `request` at `endpoint`, stage `files` and run it, unless `stop` comes before.
    ///
    /// # Errors
    /// See [`NotStarted`].
    pub async fn start(
        endpoint: &str,
        request: PrepareJobRequest,
        files: &[StagedFile],
        stop: &StopSignal,
        limits: Limits,
    ) -> Result<Self, NotStarted> {
        let prepared = prepare(endpoint, request, files, &limits);
        let prepared = unless_stopped(stop, limits.tick, prepared).await;
        let mut prepared = prepared.ok_or(NotStarted::Stopped)??;
        if stop.is_draining() {
            return Err(NotStarted::Stopped);
        }
        let job_id = run(&mut prepared, stop, &limits).await?;
        tracing::info!(job_id, "the runner has accepted the job");
        let now = Instant::now();
        Ok(Self {
            client: prepared.client,
            endpoint: endpoint.to_owned(),
            job_id,
            limits,
            state: State::Unspecified,
            failure: None,
            error: None,
            is_error_later: false,
            seen: 0,
            cancelled: None,
            has_counts: false,
            signs_of_life: Vec::new(),
            last_sign: now,
            last_answer: now,
            last_line: now,
        })
    }

    /// Follow the job to its end. A stop cancels it; then this returns after [`Limits::cancel`] at the latest.
    ///
    /// # Errors
    /// [`ServiceError::Lost`], [`ServiceError::NoWorker`] and [`ServiceError::LostWorker`].
    pub async fn follow(mut self, watch: &mut Watch<'_>) -> Result<Ended, ServiceError> {
        // the stop may have come while the job was starting
        if watch.stop.is_draining() {
            self.cancel().await;
        }
        let mut stream = self.subscribe().await;
        let mut next_poll = Instant::now() + self.limits.poll;
        while !self.is_over() {
            match &mut stream {
                None => {
                    tokio::time::sleep(self.limits.tick).await;
                    self.poll(watch).await?;
                    stream = self.subscribe().await;
                }
                Some(Subscription { events, skip }) => {
                    match timeout(self.limits.tick, events.message()).await {
                        Ok(Ok(Some(event))) => self.take(event, skip),
                        Ok(Ok(None)) => stream = None,
                        Ok(Err(status)) => {
                            tracing::debug!(error = words(&status), "the stream of messages broke");
                            stream = None;
                        }
                        // nothing yet
                        Err(_) => {}
                    }
                }
            }
            if watch.stop.is_draining() && self.cancelled.is_none() {
                self.cancel().await;
            }
            if Instant::now() >= next_poll {
                self.poll(watch).await?;
                next_poll = Instant::now() + self.limits.poll;
            }
            if self.lacks_workers(watch.starts_processes) {
                let seconds = self.last_sign.elapsed().as_secs_f64();
                self.cancel().await;
                return Err(match self.signs_of_life.is_empty() {
                    true => ServiceError::NoWorker { seconds },
                    false => ServiceError::LostWorker { seconds },
                });
            }
            self.break_silence();
        }
        self.read_last_messages(stream).await;
        self.read_metrics(watch).await;
        let Self { state, failure, error, is_error_later, cancelled, signs_of_life, .. } = self;
        let (is_cancelled, has_workers) = (cancelled.is_some(), !signs_of_life.is_empty());
        Ok(Ended { state, failure, error, is_error_later, is_cancelled, has_workers })
    }

    /// Whether the job waits for workers that cannot start, or that have died. Prism may overlook both, and is
    /// recognised by the ids of its jobs. It reports the metrics of bundles from their start, and requests their
    /// progress at least every 30 s. Other runners fail such a job, and may queue a job for a long time without a sign
    /// of a worker.
    fn lacks_workers(&self, starts_processes: bool) -> bool {
        let number = self.job_id.strip_prefix("job-");
        let is_prism = number.is_some_and(|number| number.parse::<u32>().is_ok());
        let is_expected = starts_processes || !self.signs_of_life.is_empty();
        let runs = self.state == State::Running && self.cancelled.is_none();
        is_prism && is_expected && runs && self.last_sign.elapsed() >= self.limits.no_worker
    }

    /// Whether the job has ended, or was cancelled long enough ago.
    fn is_over(&self) -> bool {
        is_terminal(self.state) || self.cancelled.is_some_and(|at| at.elapsed() >= self.limits.cancel)
    }

    /// The stream of messages and states, if the service opens one. It begins with those of the past.
    async fn subscribe(&mut self) -> Option<Subscription> {
        let request = JobMessagesRequest { job_id: self.job_id.clone() };
        let call = self.client.get_message_stream(request);
        let events = timeout(self.limits.answer, call).await.ok()?.ok()?.into_inner();
        Some(Subscription { events, skip: self.seen })
    }

    /// `skip` is the number of messages that were seen on an earlier stream.
    fn take(&mut self, event: JobMessagesResponse, skip: &mut usize) {
        match event.response {
            Some(Event::MessageResponse(message)) => {
                if *skip > 0 {
                    *skip -= 1;
                    return;
                }
                self.seen += 1;
                self.take_message(message);
            }
            Some(Event::StateResponse(event)) => self.enter(event.state()),
            None => {}
        }
    }

    fn take_message(&mut self, message: JobMessage) {
        use MessageImportance as Level;
        let (level, text) = (message.importance(), message.message_text);
        (self.last_line, self.last_answer) = (Instant::now(), Instant::now());
        match level {
            Level::JobMessageError => tracing::error!("runner: {text}"),
            Level::JobMessageWarning => tracing::warn!("runner: {text}"),
            Level::JobMessageBasic => tracing::info!("runner: {text}"),
            _ => tracing::debug!("runner: {text}"),
        }
        let failure = Failure::find(&text);
        if level == Level::JobMessageError {
            self.error = Some(text);
            self.is_error_later = true;
        }
        if failure.is_some() {
            self.failure = failure;
            self.is_error_later = false;
        }
    }

    fn enter(&mut self, state: State) {
        // a stream that was opened again begins with the states of the past
        if state != self.state && !is_terminal(self.state) {
            self.state = state;
            (self.last_line, self.last_answer) = (Instant::now(), Instant::now());
            tracing::info!(state = state.as_str_name(), "the job's state");
        }
    }

    async fn cancel(&mut self) {
        self.cancelled = Some(Instant::now());
        let request = CancelJobRequest { job_id: self.job_id.clone() };
        match answer("the cancellation", self.client.cancel(request), &self.limits).await {
            Ok(answer) => {
                let state = answer.state();
                tracing::warn!(state = state.as_str_name(), "cancelled the job; this is the runner's answer");
                self.enter(state);
            }
            Err(error) => tracing::error!(%error, "the job cannot be cancelled"),
        }
    }

    /// Ask for the state and the metrics.
    async fn poll(&mut self, watch: &mut Watch<'_>) -> Result<(), ServiceError> {
        let request = GetJobStateRequest { job_id: self.job_id.clone() };
        match answer("the request for its state", self.client.get_state(request), &self.limits).await {
            Ok(event) => {
                self.last_answer = Instant::now();
                self.enter(event.state());
                self.read_metrics(watch).await;
                Ok(())
            }
            Err(error) if self.last_answer.elapsed() >= self.limits.lost => Err(ServiceError::Lost {
                endpoint: self.endpoint.clone(),
                job_id: self.job_id.clone(),
                message: error.to_string(),
            }),
            Err(error) => {
                tracing::debug!(%error, "the job service does not answer");
                Ok(())
            }
        }
    }

    /// A runner may have no metrics, or none of a job that still runs.
    async fn read_metrics(&mut self, watch: &mut Watch<'_>) {
        let request = GetJobMetricsRequest { job_id: self.job_id.clone() };
        match answer("the request for metrics", self.client.get_job_metrics(request), &self.limits).await {
            Ok(metrics) => {
                let metrics = metrics.metrics.unwrap_or_default();
                let signs = RowCounts::signs_of_life(&metrics);
                if signs != self.signs_of_life {
                    (self.signs_of_life, self.last_sign) = (signs, Instant::now());
                }
                if let Some(counts) = RowCounts::of(&metrics) {
                    self.has_counts = true;
                    (watch.counts)(counts);
                }
            }
            Err(error) => tracing::debug!(%error, "no metrics"),
        }
    }

    /// The messages that came with the end of the job. Some runners send the reason for a failure after the state.
    async fn read_last_messages(&mut self, stream: Option<Subscription>) {
        let until = tokio::time::Instant::now() + self.limits.last_messages;
        let stream = match stream {
            None if is_terminal(self.state) => self.subscribe().await,
            stream => stream,
        };
        let Some(Subscription { mut events, mut skip }) = stream else { return };
        while let Ok(Ok(Some(event))) = tokio::time::timeout_at(until, events.message()).await {
            self.take(event, &mut skip);
        }
    }

    fn break_silence(&mut self) {
        if self.last_line.elapsed() < self.limits.quiet {
            return;
        }
        self.last_line = Instant::now();
        let state = self.state.as_str_name();
        let silence = self.last_answer.elapsed();
        if silence > self.limits.poll + self.limits.answer {
            tracing::warn!(state, silent_seconds = silence.as_secs(), "the job service does not answer");
        } else if self.has_counts {
            // counts have a display of their own
        } else {
            tracing::info!(state, "waiting for the runner, which has nothing new to report");
        }
    }
}

/// An open stream of messages.
struct Subscription {
    events: Streaming<JobMessagesResponse>,
    /// Messages that were seen on an earlier stream.
    skip: usize,
}

/// Whether a job in this state has ended.
pub fn is_terminal(state: State) -> bool {
    matches!(state, State::Done | State::Failed | State::Cancelled | State::Updated | State::Drained)
}

/// The answer to a call, within the time for it.
async fn answer<T>(
    step: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
    limits: &Limits,
) -> Result<T, ServiceError> {
    let answer = timeout(limits.answer, call).await.map_err(|_| no_answer(step, limits.answer))?;
    Ok(answer.map_err(|status| status_error(step, &status))?.into_inner())
}

/// What a failed first call says about the endpoint.
fn not_a_service(endpoint: &str, status: &Status) -> ServiceError {
    if status.code() == Code::Unimplemented || status.source().is_some() {
        return ServiceError::NotAJobService { endpoint: endpoint.to_owned(), message: words(status) };
    }
    status_error("the preparation of the job", status)
}
