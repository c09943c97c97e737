//! The submitter against a scripted job service.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::*;
use crate::beam::proto::job_management::artifact_request_wrapper::Request as Asked;
use crate::beam::proto::job_management::artifact_response_wrapper::Response as Answer;
use crate::beam::proto::job_management::artifact_staging_service_server::{
    ArtifactStagingService, ArtifactStagingServiceServer,
};
use crate::beam::proto::job_management::job_message::MessageImportance as Level;
use crate::beam::proto::job_management::job_messages_response::Response as Event;
use crate::beam::proto::job_management::job_service_server::{JobService, JobServiceServer};
use crate::beam::proto::job_management::*;
use crate::beam::proto::pipeline::{
    ApiServiceDescriptor, ArtifactFilePayload, ArtifactInformation, ArtifactStagingToRolePayload,
    MonitoringInfo,
};
use crate::beam::urns;
use crate::items::Status as RowStatus;
use crate::plan::hex;
use crate::report::{Outcome, PartReport, Tally};

/// Longer than one chunk.
const MODEL_BYTES: usize = 3_000_000;

/// What a stream of messages does after its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    Break,
    StayOpen,
}

/// What the job service does.
struct Script {
    /// The events of each stream of messages; the last ones are repeated.
    streams: Vec<(Vec<Event>, Then)>,
    /// `None` if it has no answer.
    state: Option<State>,
    /// Whether preparing a job is never answered.
    hangs: bool,
    /// What is asked for besides the files of the job.
    asks_for: Option<ArtifactInformation>,
    metrics: Option<MetricResults>,
    /// Whether a worker reports its progress each time.
    is_alive: bool,
    /// What the workers do while the job runs.
    work: Box<dyn Fn() + Send + Sync>,
}

impl Script {
    fn of(events: Vec<Event>, then: Then) -> Self {
        Self {
            streams: vec![(events, then)],
            state: Some(State::Running),
            hangs: false,
            asks_for: None,
            metrics: None,
            is_alive: false,
            work: Box::new(|| {}),
        }
    }
}

/// A counter of ours.
fn counter(name: &str, value: u8) -> MonitoringInfo {
    let labels = [("NAMESPACE", "sluice"), ("NAME", name)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
    MonitoringInfo { urn: urns::USER_SUM.to_owned(), payload: vec![value], labels, ..Default::default() }
}

/// A job service that follows a script.
struct Fake {
    script: Script,
    calls: Mutex<Vec<&'static str>>,
    prepared: Mutex<Option<PrepareJobRequest>>,
    /// Staged files by name.
    staged: Mutex<HashMap<String, Vec<u8>>>,
    open: Mutex<Vec<Sender<Result<JobMessagesResponse, Status>>>>,
}

impl Fake {
    fn note(&self, call: &'static str) {
        self.calls.lock().expect("a lock").push(call);
    }

    fn count(&self, call: &str) -> usize {
        self.calls.lock().expect("a lock").iter().filter(|seen| **seen == call).count()
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[async_trait]
impl JobService for Fake {
    type GetStateStreamStream = ReceiverStream<Result<JobStateEvent, Status>>;
    type GetMessageStreamStream = ReceiverStream<Result<JobMessagesResponse, Status>>;

    async fn prepare(&self, request: Request<PrepareJobRequest>) -> Answered<PrepareJobResponse> {
        self.note("prepare");
        if self.script.hangs {
            std::future::pending::<()>().await;
        }
        *self.prepared.lock().expect("a lock") = Some(request.into_inner());
        Ok(Response::new(PrepareJobResponse {
            preparation_id: "preparation".to_owned(),
            // empty: the service itself
            artifact_staging_endpoint: Some(ApiServiceDescriptor::default()),
            staging_session_token: "token".to_owned(),
        }))
    }

    async fn run(&self, request: Request<RunJobRequest>) -> Answered<RunJobResponse> {
        self.note("run");
        let request = request.into_inner();
        assert_eq!(
            (request.preparation_id.as_str(), request.retrieval_token.as_str()),
            ("preparation", "token")
        );
        (self.script.work)();
        Ok(Response::new(RunJobResponse { job_id: "job-7".to_owned() }))
    }

    async fn get_message_stream(
        &self,
        request: Request<JobMessagesRequest>,
    ) -> Answered<Self::GetMessageStreamStream> {
        assert_eq!(request.into_inner().job_id, "job-7");
        let nth = self.count("stream");
        self.note("stream");
        let (events, then) = self.script.streams.get(nth).or(self.script.streams.last()).expect("a stream");
        let (sender, receiver) = channel(events.len() + 2);
        for event in events {
            let event = JobMessagesResponse { response: Some(event.clone()) };
            sender.try_send(Ok(event)).expect("room");
        }
        match then {
            Then::Close => {}
            Then::Break => sender.try_send(Err(Status::unavailable("reset"))).expect("room"),
            Then::StayOpen => self.open.lock().expect("a lock").push(sender),
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_state(&self, _: Request<GetJobStateRequest>) -> Answered<JobStateEvent> {
        self.note("state");
        let state = self.script.state.ok_or_else(|| Status::unavailable("going away"))?;
        Ok(Response::new(JobStateEvent { state: state.into(), timestamp: None }))
    }

    async fn cancel(&self, _: Request<CancelJobRequest>) -> Answered<CancelJobResponse> {
        self.note("cancel");
        Ok(Response::new(CancelJobResponse { state: State::Cancelling.into() }))
    }

    async fn get_job_metrics(&self, _: Request<GetJobMetricsRequest>) -> Answered<GetJobMetricsResponse> {
        self.note("metrics");
        let mut metrics = self.script.metrics.clone();
        if self.script.is_alive {
            let reports = u8::try_from(self.count("metrics")).expect("a short job");
            metrics.get_or_insert_default().attempted.push(counter("progress_reports", reports));
        }
        Ok(Response::new(GetJobMetricsResponse { metrics }))
    }

    async fn get_jobs(&self, _: Request<GetJobsRequest>) -> Answered<GetJobsResponse> {
        Err(Status::unimplemented("jobs"))
    }

    async fn get_pipeline(&self, _: Request<GetJobPipelineRequest>) -> Answered<GetJobPipelineResponse> {
        Err(Status::unimplemented("pipeline"))
    }

    async fn drain(&self, _: Request<DrainJobRequest>) -> Answered<DrainJobResponse> {
        Err(Status::unimplemented("drain"))
    }

    async fn get_state_stream(&self, _: Request<GetJobStateRequest>) -> Answered<Self::GetStateStreamStream> {
        Err(Status::unimplemented("states"))
    }

    async fn describe_pipeline_options(
        &self,
        _: Request<DescribePipelineOptionsRequest>,
    ) -> Answered<DescribePipelineOptionsResponse> {
        Err(Status::unimplemented("options"))
    }
}

#[async_trait]
impl ArtifactStagingService for Staging {
    type ReverseArtifactRetrievalServiceStream = ReceiverStream<Result<ArtifactRequestWrapper, Status>>;

    async fn reverse_artifact_retrieval_service(
        &self,
        request: Request<Streaming<ArtifactResponseWrapper>>,
    ) -> Answered<Self::ReverseArtifactRetrievalServiceStream> {
        let (requests, receiver) = channel(1);
        let (fake, answers) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move { fetch_all(&fake, answers, requests).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The staging half of the service.
struct Staging(Arc<Fake>);

/// Ask for every dependency of the job, as a service does.
async fn fetch_all(
    fake: &Fake,
    mut answers: Streaming<ArtifactResponseWrapper>,
    requests: Sender<Result<ArtifactRequestWrapper, Status>>,
) -> Option<()> {
    let hello = answers.message().await.ok()??;
    assert_eq!(hello.staging_token, "token");
    let prepared = fake.prepared.lock().expect("a lock").clone()?;
    let environments = prepared.pipeline?.components?.environments;
    let mut artifacts: Vec<_> = environments.into_values().flat_map(|all| all.dependencies).collect();
    artifacts.extend(fake.script.asks_for.clone());
    let resolve = Asked::ResolveArtifact(ResolveArtifactsRequest { artifacts, ..Default::default() });
    requests.send(Ok(ArtifactRequestWrapper { request: Some(resolve) })).await.ok()?;
    let Some(Answer::ResolveArtifactResponse(resolved)) = answers.message().await.ok()??.response else {
        return None;
    };
    for artifact in resolved.replacements {
        let name = ArtifactStagingToRolePayload::decode(&artifact.role_payload[..]).ok()?.staged_name;
        let get = Asked::GetArtifact(GetArtifactRequest { artifact: Some(artifact) });
        requests.send(Ok(ArtifactRequestWrapper { request: Some(get) })).await.ok()?;
        let mut content = Vec::new();
        loop {
            let answer = answers.message().await.ok()??;
            // as Prism does
            if answer.is_last {
                break;
            }
            let Some(Answer::GetArtifactResponse(chunk)) = answer.response else { return None };
            assert!(chunk.data.len() <= 2 << 20);
            content.extend(chunk.data);
        }
        fake.staged.lock().expect("a lock").insert(name, content);
    }
    Some(())
}

fn state(state: State) -> Event {
    Event::StateResponse(JobStateEvent { state: state.into(), timestamp: None })
}

fn message(level: Level, text: &str) -> Event {
    Event::MessageResponse(JobMessage {
        importance: level.into(),
        message_text: text.to_owned(),
        ..Default::default()
    })
}

/// A pipeline file with its model, and a runtime.
struct Bench {
    runtime: Runtime,
    folder: TempDir,
    stop: StopSignal,
    counters: Arc<ProgressCounters>,
    first_counts: usize,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let model: Vec<u8> = (0..MODEL_BYTES).map(|at| (at / 7) as u8).collect();
        fs::write(folder.path().join("m.plan"), model).expect("a file");
        fs::write(folder.path().join("labels.txt"), "a\nb\n").expect("a file");
        let text = "name = \"My Photos\"\n[input]\nuri = \"/in/*.tar\"\n[preprocess]\n\
                    resize = { width = 2, height = 2 }\n[model]\npath = \"m.plan\"\nlabels = \"labels.txt\"\n\
                    [engine]\nkind = \"tensorrt\"\n";
        fs::write(folder.path().join("p.toml"), text).expect("a file");
        let (runtime, stop) = (Runtime::new().expect("a runtime"), StopSignal::default());
        Self { runtime, folder, stop, counters: Arc::default(), first_counts: 0 }
    }

    fn submission(&self, endpoint: &str) -> Submission {
        let output = self.folder.path().join("out").to_string_lossy().into_owned();
        let options = SubmitOptions {
            path: self.folder.path().join("p.toml"),
            overrides: Overrides { output: Some(output), ..Overrides::default() },
            job_endpoint: endpoint.to_owned(),
            environment: Environment::External { pool: "localhost:1".to_owned() },
            parallelism: Some(4),
            options: vec![("streaming".to_owned(), "false".to_owned())],
        };
        let millis = Duration::from_millis;
        let submission = Submission::prepare(options, self.runtime.handle()).expect("a job");
        let limits = Limits {
            answer: millis(2000),
            tick: millis(5),
            poll: millis(20),
            lost: millis(100),
            cancel: millis(200),
            last_messages: millis(1000),
            quiet: millis(50),
            no_worker: millis(150),
        };
        Submission { limits, ..submission }
    }

    /// Start the service.
    fn serve(&self, script: Script) -> (Arc<Fake>, String) {
        let (prepared, open) = (Mutex::default(), Mutex::default());
        let fake = Fake { script, calls: Mutex::default(), prepared, staged: Mutex::default(), open };
        let fake = Arc::new(fake);
        let jobs = JobServiceServer::from_arc(Arc::clone(&fake));
        let staging = ArtifactStagingServiceServer::new(Staging(Arc::clone(&fake)));
        let server = Server::builder().add_service(jobs).add_service(staging);
        let address = self.listen(|incoming| server.serve_with_incoming(incoming));
        (fake, address)
    }

    fn listen<F>(&self, serve: impl FnOnce(TcpListenerStream) -> F) -> String
    where
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let _inside = self.runtime.enter();
        let listener = listener();
        let address = address(&listener).to_string();
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        self.runtime.spawn(serve(TcpListenerStream::new(listener)));
        address
    }

    fn follow(&mut self, submission: Submission) -> Result<Submitted, SubmitError> {
        let first_counts = &mut self.first_counts;
        let mut on_first_counts = || *first_counts += 1;
        let (stop, counters) = (&self.stop, &self.counters);
        submission.run(Follower { stop, counters, on_first_counts: &mut on_first_counts })
    }

    /// Submit to a service that follows `script`.
    fn submit(&mut self, script: Script) -> (Arc<Fake>, Result<Submitted, SubmitError>) {
        let (fake, address) = self.serve(script);
        let submission = self.submission(&address);
        (fake, self.follow(submission))
    }

    /// The error of a submission to `address`.
    fn refused(&mut self, address: &str) -> ServiceError {
        let mut submission = self.submission(address);
        submission.limits.answer = Duration::from_millis(300);
        match self.follow(submission) {
            Err(SubmitError::Service { error, output }) => {
                assert_eq!(output, "", "the job had not started");
                error
            }
            other => panic!("{other:?}"),
        }
    }

    /// What finishes the run in the output: two shards with two rows each, one of them rejected.
    fn finisher(&self, outcome: Outcome) -> impl Fn() + Send + Sync + 'static {
        let submission = self.submission("localhost:1");
        let (record, out) = (submission.wanted, self.folder.path().join("out"));
        move || {
            let mut rows = Tally::default();
            [RowStatus::Ok, RowStatus::DecodeError].into_iter().for_each(|status| rows.count(status));
            let part = |path: &str| PartReport {
                path: path.to_owned(),
                rows: Some(2),
                rows_by_status: Some(rows.clone()),
                ..PartReport::default()
            };
            let record_json = serde_json::to_vec(&record).expect("JSON");
            let manifest = json!({
                "run_id": record.run_id,
                "finished_at": "2026-11-28T00:00:00.000Z",
                "plan_sha256": record.plan_sha256,
                "model_sha256": "",
                "limit": null,
                "summary": { "outcome": outcome, "rows": 4, "rows_by_status": {} },
                "parts": PARTS.map(part),
                "batches": [],
                "record": PartReport::default(),
            });
            let manifest = manifest.to_string();
            fs::create_dir_all(out.join("predictions")).expect("a folder");
            fs::write(out.join("_run.json"), record_json).expect("a file");
            if outcome == Outcome::Succeeded {
                let success = format!("{}\n", hex(&Sha256::digest(&manifest)));
                fs::write(out.join("_SUCCESS"), success).expect("a file");
            }
            fs::write(out.join("_manifest.json"), manifest).expect("a file");
        }
    }
}

/// Names of two parts.
const PARTS: [&str; 2] =
    ["predictions/part-000000-000000000000.parquet", "predictions/part-000001-000000000000.parquet"];

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("an address")
}

fn done() -> Vec<Event> {
    vec![state(State::Running), message(Level::JobMessageBasic, "all done"), state(State::Done)]
}

fn finished(submitted: Result<Submitted, SubmitError>) -> Summary {
    match submitted {
        Ok(Submitted::Finished(finished)) => {
            assert_eq!(finished.finished_at, "2026-11-28T00:00:00.000Z");
            finished.summary
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_done_job_is_what_its_output_says() {
    for (outcome, shards) in [(Outcome::Succeeded, 2), (Outcome::TooManyErrors, 2)] {
        let mut bench = Bench::new();
        let script = Script { work: Box::new(bench.finisher(outcome)), ..Script::of(done(), Then::Close) };
        let (_, submitted) = bench.submit(script);
        let summary = finished(submitted);
        assert_eq!((summary.outcome, summary.rows, summary.shards), (outcome, 4, shards));
        assert_eq!((summary.rows_by_status.of(RowStatus::Ok), summary.reused_rows), (2, 0));
    }
}

#[test]
fn a_job_carries_its_files_and_options() {
    let mut bench = Bench::new();
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let (fake, submitted) = bench.submit(Script { work, ..Script::of(done(), Then::Close) });
    finished(submitted);
    let prepared = fake.prepared.lock().expect("a lock").clone().expect("a job");
    let fields = prepared.pipeline_options.expect("options").fields;
    assert_eq!(fields["beam:option:parallelism:v1"], text("4"));
    assert_eq!(fields["beam:option:streaming:v1"].kind, Some(Kind::BoolValue(false)));
    assert!(prepared.job_name.starts_with("sluice-my-photos-"), "{}", prepared.job_name);
    let staged = fake.staged.lock().expect("a lock");
    let file = |name: &str| staged.iter().find(|(staged, _)| staged.ends_with(name)).expect("staged").1;
    for name in ["m.plan", "labels.txt"] {
        let sent = fs::read(bench.folder.path().join(name)).expect("a file");
        assert!(file(name) == &sent, "{name} arrived with {} bytes", file(name).len());
    }
}

#[test]
fn rows_of_an_earlier_attempt_are_reused_ones() {
    let mut bench = Bench::new();
    bench.finisher(Outcome::TooManyErrors)();
    fs::write(bench.folder.path().join("out").join(PARTS[0]), "part").expect("a file");
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let summary = finished(bench.submit(Script { work, ..Script::of(done(), Then::Close) }).1);
    assert_eq!((summary.rows, summary.reused_rows), (4, 2));
}

#[test]
fn a_finished_output_needs_no_job() {
    let bench = Bench::new();
    assert!(!bench.submission("localhost:1").is_finished());
    bench.finisher(Outcome::Succeeded)();
    assert!(bench.submission("localhost:1").is_finished());
}

#[test]
fn a_done_job_without_a_manifest_is_an_error() {
    let mut bench = Bench::new();
    let (_, submitted) = bench.submit(Script::of(done(), Then::Close));
    let error = submitted.expect_err("no output");
    assert!(matches!(error, SubmitError::NotDone { .. }), "{error:?}");
    assert!(error.to_string().contains("is empty, as seen from here"), "{error}");
}

#[test]
fn the_error_of_a_worker_is_found_even_behind_the_state() {
    let failure = Failure { code: 3, retry: Retry::Never, message: "input denied".to_owned() };
    let trace = format!("java.lang.RuntimeException: {}\n\tat x.y", failure.to_text());
    let error = message(Level::JobMessageError, &trace);
    let orders = [vec![error.clone(), state(State::Failed)], vec![state(State::Failed), error]];
    for events in orders {
        let (_, submitted) = Bench::new().submit(Script::of(events, Then::Close));
        match submitted.expect_err("failed") {
            SubmitError::Worker(found) => assert_eq!(found, failure),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_that_fails_after_its_run_was_finished_has_succeeded() {
    let failure = Failure { code: 1, retry: Retry::Again, message: "late".to_owned() };
    let error = message(Level::JobMessageError, &failure.to_text());
    for events in [vec![error, state(State::Failed)], vec![state(State::Failed)]] {
        for (outcome, has_succeeded) in [(Outcome::Succeeded, true), (Outcome::TooManyErrors, false)] {
            let mut bench = Bench::new();
            let work = Box::new(bench.finisher(outcome));
            let (_, submitted) = bench.submit(Script { work, ..Script::of(events.clone(), Then::Close) });
            assert_eq!(submitted.is_ok(), has_succeeded, "{submitted:?}");
        }
    }
}

#[test]
fn a_failure_without_the_words_of_a_worker_says_what_the_runner_says() {
    let (_, silent) = Bench::new().submit(Script::of(vec![state(State::Failed)], Then::Close));
    let silent = silent.expect_err("failed").to_string();
    assert!(silent.contains("ended as FAILED; the runner gives no reason"), "{silent}");
    let python = "Traceback (most recent call last):\n  File \"a.py\"\nE: no env\n  'beam:env:external:v1'\n";
    let texts = [
        ("no slots\n\tat x.y", "ended as FAILED: no slots; the output"),
        (
            python,
            "ended as FAILED: E: no env 'beam:env:external:v1'; it seems that the runner does not support",
        ),
    ];
    for (text, expected) in texts {
        let told = vec![message(Level::JobMessageError, text), state(State::Failed)];
        let (_, told) = Bench::new().submit(Script::of(told, Then::Close));
        let told = told.expect_err("failed");
        assert!(told.to_string().contains(expected), "{told}");
        assert_eq!(told.retry(), Retry::Again);
    }
}

#[test]
fn a_stream_that_breaks_is_opened_again() {
    for then in [Then::Break, Then::Close] {
        let mut bench = Bench::new();
        let work = Box::new(bench.finisher(Outcome::Succeeded));
        let begun = vec![state(State::Running), message(Level::JobMessageBasic, "begun")];
        let script = Script { work, ..Script::of(begun, then) };
        let script = Script { streams: vec![script.streams[0].clone(), (done(), Then::Close)], ..script };
        let (fake, submitted) = bench.submit(script);
        assert_eq!(finished(submitted).rows, 4);
        assert_eq!(fake.count("stream"), 2);
    }
}

#[test]
fn the_end_is_noticed_without_a_stream() {
    let mut bench = Bench::new();
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let script =
        Script { work, state: Some(State::Done), ..Script::of(vec![state(State::Running)], Then::StayOpen) };
    let (_, submitted) = bench.submit(script);
    assert_eq!(finished(submitted).rows, 4);
}

#[test]
fn a_service_that_is_gone_is_reported_with_what_the_output_has() {
    let gone = || Script { state: None, ..Script::of(vec![state(State::Running)], Then::Break) };
    let mut bench = Bench::new();
    let (_, submitted) = bench.submit(gone());
    let error = submitted.expect_err("lost");
    assert!(matches!(error, SubmitError::Service { error: ServiceError::Lost { .. }, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("may still run the job job-7; the output"), "{text}");
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let (_, submitted) = bench.submit(Script { work, ..gone() });
    assert_eq!(finished(submitted).rows, 4, "the output was finished before");
}

#[test]
fn an_endpoint_that_is_no_job_service_is_an_error_that_says_so() {
    let mut bench = Bench::new();
    let closed = address(&listener()).to_string();
    let error = bench.refused(&closed);
    assert!(matches!(&error, ServiceError::Unreachable { endpoint, .. } if *endpoint == closed), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");

    let staging_only = Staging(bench.serve(Script::of(Vec::new(), Then::Close)).0);
    let server = Server::builder().add_service(ArtifactStagingServiceServer::new(staging_only));
    let other_service = bench.listen(|incoming| server.serve_with_incoming(incoming));
    let error = bench.refused(&other_service);
    assert!(matches!(error, ServiceError::NotAJobService { .. }), "{error:?}");

    let web = listener();
    let web_address = address(&web).to_string();
    std::thread::spawn(move || {
        for connection in web.incoming() {
            let mut connection = connection.expect("a connection");
            // the preface of HTTP/2 is 24 bytes
            connection.read_exact(&mut [0; 24]).expect("a preface");
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").expect("written");
        }
    });
    let error = bench.refused(&web_address);
    assert!(matches!(error, ServiceError::NotAJobService { .. }), "{error:?}");
}

#[test]
fn a_service_that_never_answers_is_given_up() {
    let mut bench = Bench::new();
    let (_, hanging) = bench.serve(Script { hangs: true, ..Script::of(Vec::new(), Then::Close) });
    // connections to it are accepted by the system, and by nobody else
    let silent = listener();
    for address in [hanging, address(&silent).to_string()] {
        let error = bench.refused(&address);
        assert!(matches!(error, ServiceError::NoAnswer { .. }), "{error:?}");
        assert!(error.to_string().contains("during the preparation of the job"), "{error}");
    }
}

#[test]
fn only_files_of_the_job_are_handed_out() {
    let mut bench = Bench::new();
    let path = bench.folder.path().join("p.toml").to_string_lossy().into_owned();
    let type_payload = ArtifactFilePayload { path, sha256: String::new() }.encode_to_vec();
    let asks_for =
        ArtifactInformation { type_urn: urns::FILE.to_owned(), type_payload, ..Default::default() };
    let (fake, submitted) =
        bench.submit(Script { asks_for: Some(asks_for), ..Script::of(done(), Then::Close) });
    let error = submitted.expect_err("refused").to_string();
    assert!(error.contains("p.toml\", which is no file of the job"), "{error}");
    assert_eq!(fake.count("run"), 0);
}

#[test]
fn a_stop_cancels_the_job_and_waits_for_its_end_only_for_a_while() {
    let mut bench = Bench::new();
    let stop = bench.stop.clone();
    let work = Box::new(move || stop.drain());
    let script = Script::of(vec![state(State::Running)], Then::StayOpen);
    let (fake, submitted) = bench.submit(Script { work, state: Some(State::Cancelling), ..script });
    let Ok(Submitted::Cancelled { state: said, output }) = submitted else { panic!("{submitted:?}") };
    assert_eq!((said, fake.count("cancel")), ("CANCELLING", 1));
    assert!(output.contains("is empty"), "{output}");
}

#[test]
fn a_cancelled_job_that_has_finished_its_output_is_finished() {
    for end in [State::Done, State::Cancelled] {
        let mut bench = Bench::new();
        let (stop, finish) = (bench.stop.clone(), bench.finisher(Outcome::Succeeded));
        let work = Box::new(move || {
            stop.drain();
            finish();
        });
        let script = Script::of(vec![state(State::Running)], Then::StayOpen);
        let (fake, submitted) = bench.submit(Script { work, state: Some(end), ..script });
        assert_eq!(finished(submitted).rows, 4);
        assert_eq!(fake.count("cancel"), 1);
    }
}

#[test]
fn a_stop_before_the_start_submits_nothing() {
    let mut bench = Bench::new();
    bench.stop.drain();
    let (fake, submitted) = bench.submit(Script::of(done(), Then::Close));
    assert!(matches!(submitted, Ok(Submitted::Cancelled { state: "", .. })), "{submitted:?}");
    assert_eq!((fake.count("prepare"), fake.count("run")), (1, 0));
}

#[test]
fn counts_of_the_runner_reach_the_display() {
    let mut bench = Bench::new();
    let attempted = vec![counter("images_ok", 90), counter("images_empty", 10)];
    let metrics = Some(MetricResults { attempted, committed: Vec::new() });
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let (_, submitted) = bench.submit(Script { work, metrics, ..Script::of(done(), Then::Close) });
    finished(submitted);
    let counts = bench.counters.counts();
    assert_eq!((counts.rows, counts.rejected, bench.first_counts), (100, 10, 1));
}

#[test]
fn a_command_that_a_runner_cannot_start_is_named() {
    let mut bench = Bench::new();
    let java = "java.io.IOException: error=2, No such file or directory";
    let events = vec![message(Level::JobMessageError, java), state(State::Failed)];
    let (_, address) = bench.serve(Script::of(events, Then::Close));
    let mut submission = bench.submission(&address);
    submission.options.environment =
        Environment::Process { command: "/opt/sluice".into(), variables: Vec::new() };
    let error = bench.follow(submission).expect_err("no worker").to_string();
    assert!(error.contains(java) && error.contains("its workers are started as /opt/sluice"), "{error}");
}

#[test]
fn a_job_whose_processes_cannot_start_is_cancelled() {
    let script = || Script::of(vec![state(State::Running)], Then::StayOpen);
    let process = || Environment::Process { command: "/nonexistent".into(), variables: Vec::new() };
    let mut bench = Bench::new();
    let (fake, address) = bench.serve(script());
    let mut submission = bench.submission(&address);
    submission.options.environment = process();
    let error = bench.follow(submission).expect_err("no worker");
    assert!(matches!(&error, SubmitError::Service { error: ServiceError::NoWorker { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("is empty, as seen from here"), "{error}");
    assert_eq!(fake.count("cancel"), 1);

    // a worker that has begun and has no row yet
    let streams = || vec![(vec![state(State::Running)], Then::StayOpen)];
    let (fake, address) = bench.serve(Script { is_alive: true, streams: streams(), ..script() });
    let mut submission = bench.submission(&address);
    submission.options.environment = process();
    // its end comes later than the limit for the first sign
    let (stop, asked) = (bench.stop.clone(), Arc::clone(&fake));
    std::thread::spawn(move || {
        while asked.count("state") < 12 {
            std::thread::yield_now();
        }
        stop.drain();
    });
    let submitted = bench.follow(submission);
    assert!(matches!(submitted, Ok(Submitted::Cancelled { .. })), "{submitted:?}");
}

#[test]
fn a_job_whose_workers_have_died_unnoticed_is_cancelled() {
    let mut bench = Bench::new();
    let metrics = Some(MetricResults { attempted: vec![counter("bundles", 1)], committed: Vec::new() });
    let script = Script::of(vec![state(State::Running)], Then::StayOpen);
    let (fake, submitted) = bench.submit(Script { metrics, ..script });
    let error = submitted.expect_err("no worker");
    assert!(
        matches!(&error, SubmitError::Service { error: ServiceError::LostWorker { .. }, .. }),
        "{error:?}"
    );
    assert_eq!(fake.count("cancel"), 1);
}

#[test]
fn options_are_booleans_lists_or_strings() {
    assert_eq!(option_value("true").kind, Some(Kind::BoolValue(true)));
    for plain in ["7", "a b", "[", "{\"a\":1}", "null"] {
        assert_eq!(option_value(plain), text(plain));
    }
    let list = Kind::ListValue(ListValue { values: vec![text("a"), text("1")] });
    assert_eq!(option_value("[\"a\", 1]").kind, Some(list));
}

#[test]
fn an_endpoint_needs_a_port() {
    let bench = Bench::new();
    let options = bench.submission("localhost:1").options;
    for wrong in ["localhost", "http://localhost:1", "localhost:0", ":1", ""] {
        let options = SubmitOptions { job_endpoint: wrong.to_owned(), ..options.clone() };
        let refused = Submission::prepare(options, bench.runtime.handle()).err().expect("refused");
        assert!(refused.to_string().starts_with("--job-endpoint"), "{refused}");
    }
}
