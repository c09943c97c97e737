//! The submitter against a scripted job service.

mod failures;
mod scripted;
mod stops;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use self::scripted::{Fake, Script, Staging, Then, counter};
use super::*;
use crate::beam::proto::job_management::artifact_staging_service_server::ArtifactStagingServiceServer;
use crate::beam::proto::job_management::job_message::MessageImportance as Level;
use crate::beam::proto::job_management::job_messages_response::Response as Event;
use crate::beam::proto::job_management::job_service_server::JobServiceServer;
use crate::beam::proto::job_management::{JobMessage, JobStateEvent, MetricResults};
use crate::beam::proto::pipeline::{ArtifactFilePayload, ArtifactInformation};
use crate::beam::urns;
use crate::items::Status as RowStatus;
use crate::plan::hex;
use crate::report::{Outcome, PartReport, Tally};

/// A limit that no test reaches.
const NEVER: Duration = Duration::from_secs(60);

/// Longer than one chunk.
const MODEL_BYTES: usize = 3_000_000;

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
            id: millis(100),
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
        let fake = Fake::new(script);
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
