//! Workers of a scripted runner.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};

use tokio::runtime::Runtime;

use super::*;
use crate::beam::boot::{Endpoints, Process};
use crate::beam::fake_runner::{
    ControlStream, FakeRunner, Faults, closed_port, data, descriptor, element, flatten, function,
};
use crate::beam::proto::fn_execution::beam_fn_external_worker_pool_client::BeamFnExternalWorkerPoolClient;
use crate::beam::proto::fn_execution::process_bundle_split_request::DesiredSplit;
use crate::beam::proto::fn_execution::{ProcessBundleProgressRequest, StartWorkerRequest};
use crate::beam::proto::pipeline::{ApiServiceDescriptor, FunctionSpec, PTransform};
use crate::beam::urns;
use crate::error::Retry;
use crate::exit_code;

/// More than a worker needs to end, and less than anybody would wait.
const END: Duration = Duration::from_secs(20);

/// A worker on a runtime of its own.
struct Bench {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    process: Process,
}

impl Bench {
    fn new() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let process = Process::new(runtime.handle().clone());
        Self { runtime, stop: watch::Sender::new(false), process }
    }

    fn runner(&self) -> FakeRunner {
        FakeRunner::start(self.runtime.handle())
    }

    /// Start a worker. Returns how it ends.
    fn start(&self, runner: &FakeRunner) -> Receiver<Result<(), String>> {
        let endpoints = Endpoints { provision: Some(runner.address.clone()), ..Endpoints::default() };
        let (process, stop) = (self.process.clone(), self.stop.subscribe());
        let (ended, end) = channel();
        self.runtime.spawn(async move {
            let _ = ended.send(process.worker("'1-1'", endpoints, stop).await);
        });
        end
    }

    /// Start a pool. Returns its address, and how it ends.
    fn pool(&self) -> (SocketAddr, Receiver<Result<(), String>>) {
        let (process, stop) = (self.process.clone(), self.stop.subscribe());
        let (ready, address) = channel();
        let (ended, end) = channel();
        self.runtime.spawn(async move {
            let pool = process.pool("127.0.0.1:0", stop, |address| ready.send(address).expect("a test"));
            let _ = ended.send(pool.await);
        });
        (address.recv_timeout(END).expect("a pool"), end)
    }

    /// Ask a pool for a worker of the runner at `runner`. Returns the error in its answer.
    fn start_in(&self, pool: SocketAddr, id: &str, runner: &str) -> String {
        let here = ApiServiceDescriptor { url: runner.to_owned(), authentication: None };
        let request = StartWorkerRequest {
            worker_id: id.to_owned(),
            provision_endpoint: Some(here),
            ..Default::default()
        };
        let started = async {
            let mut client = BeamFnExternalWorkerPoolClient::connect(format!("http://{pool}")).await?;
            client.start_worker(request).await.map_err(Box::<dyn std::error::Error>::from)
        };
        self.runtime.block_on(started).expect("an answer").into_inner().error
    }

    fn feed(&self, runner: &FakeRunner, instruction: &str, transform: &str, bytes: Vec<u8>, is_last: bool) {
        runner.feed(self.runtime.handle(), data(instruction, transform, bytes, is_last));
    }
}

/// A worker and its runner, which has the descriptor "d": so many sources, this transform and a sink.
fn serving(
    sources: usize,
    transform: PTransform,
) -> (Bench, FakeRunner, Receiver<Result<(), String>>, ControlStream) {
    let bench = Bench::new();
    let runner = bench.runner();
    runner.describe("d", descriptor(&runner.address, sources, transform));
    let end = bench.start(&runner);
    let control = runner.worker();
    (bench, runner, end, control)
}

fn ended(end: &Receiver<Result<(), String>>) -> Result<(), String> {
    end.recv_timeout(END).expect("the worker ends")
}

/// The failure of a bundle of `middle`.
fn failure_of(middle: PTransform) -> Failure {
    let bench = Bench::new();
    let runner = bench.runner();
    runner.describe("d", descriptor(&runner.address, 1, middle));
    failure_of_bundle(&bench, &runner)
}

fn failure_of_bundle(bench: &Bench, runner: &FakeRunner) -> Failure {
    let _end = bench.start(runner);
    let control = runner.worker();
    control.process("1", "d");
    let response = control.response();
    // some runners report no error of a worker without one
    runner.wait_for_data_stream(bench.runtime.handle());
    assert_eq!(response.instruction_id, "1");
    Failure::find(&response.error).expect("a failure")
}

fn never(code: u8) -> (u8, Retry) {
    (code, Retry::Never)
}

#[test]
fn what_a_worker_does_not_support_fails_its_bundles_for_good_and_is_named() {
    let spec = |urn: &str| Some(FunctionSpec { urn: urn.to_owned(), payload: Vec::new() });
    let cases = [
        (PTransform { spec: spec("beam:transform:combine:v1"), ..Default::default() }, "combine:v1"),
        (function("other:fn:v1", Vec::new()), "other:fn:v1"),
        (function(urns::SCORE, b"not a payload".to_vec()), "not a payload of sluice"),
        (function(urns::SCORE, br#"{"version":99}"#.to_vec()), "has version 99"),
    ];
    for (middle, named) in cases {
        let failure = failure_of(middle);
        assert_eq!((failure.code, failure.retry), never(exit_code::USAGE), "{failure:?}");
        assert!(failure.message.contains(named) && failure.message.contains("middle"), "{failure:?}");
    }
}

#[test]
fn an_unknown_coder_fails_its_bundles_for_good_and_is_named() {
    let bench = Bench::new();
    let runner = bench.runner();
    let mut unknown = descriptor(&runner.address, 1, flatten());
    let spec = FunctionSpec { urn: "other:coder:v1".to_owned(), payload: Vec::new() };
    unknown.coders.get_mut("bytes").expect("a coder").spec = Some(spec);
    runner.describe("d", unknown);
    let failure = failure_of_bundle(&bench, &runner);
    assert_eq!((failure.code, failure.retry), never(exit_code::USAGE));
    assert!(failure.message.contains("other:coder:v1"), "{failure:?}");
}

#[test]
fn an_unknown_instruction_fails_for_good() {
    let (_bench, _runner, _end, control) = serving(1, flatten());
    control.send("1", None);
    let failure = Failure::find(&control.response().error).expect("a failure");
    assert_eq!((failure.code, failure.retry), never(exit_code::USAGE), "{failure:?}");
}

#[test]
fn elements_that_do_not_fit_fail_their_bundle_for_good() {
    let key = || function(urns::KEY, Vec::new());
    let cut = element(b"abc")[..14].to_vec();
    let mut no_window = element(b"a");
    // the number of windows follows the timestamp
    no_window[11] = 0;
    let cases = [
        (flatten(), cut, "the data ends after 14 bytes"),
        (flatten(), no_window, "0 windows, expected 1"),
        (key(), element(b"/in/\xff.tar"), "a URI is not UTF-8"),
        (key(), element(b"/in"), "a pair"),
        (function(urns::UNGROUP, Vec::new()), element(b"a"), "an element is bytes, expected a pair"),
    ];
    for (middle, input, expected) in cases {
        let (bench, runner, _end, control) = serving(1, middle);
        control.process("1", "d");
        bench.feed(&runner, "1", "in-0", input, true);
        let failure = Failure::find(&control.response().error).expect("a failure");
        assert_eq!((failure.code, failure.retry), never(exit_code::USAGE), "{failure:?}");
        assert!(failure.message.contains(expected), "{failure:?}");
    }
}

#[test]
fn a_panic_in_the_setup_of_a_bundle_is_a_failure() {
    let runtime = Runtime::new().expect("a runtime");
    let failure = runtime.block_on(caught::<()>(async { panic!("a broken promise") }));
    let failure = failure.expect_err("a failure");
    assert!(failure.message.contains("a broken promise"), "{failure:?}");
}

#[test]
fn bundles_that_start_at_once_share_one_data_stream_and_any_number_of_them_waits_for_input() {
    let (bench, runner, _end, control) = serving(1, flatten());
    assert_eq!(control.worker, "1-1", "without quotes");
    let ids: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    ids.iter().for_each(|id| control.process(id, "d"));
    // the last one first: no bundle waits for another
    for id in ids.iter().rev() {
        bench.feed(&runner, id, "in-0", element(id.as_bytes()), true);
        assert_eq!(runner.outputs(id, 1)["out"], element(id.as_bytes()));
        let response = control.response();
        assert_eq!((&response.instruction_id, response.error.as_str()), (id, ""));
    }
    assert_eq!(runner.data_streams(), 1);
}

#[test]
fn messages_may_be_longer_than_the_usual_limit_of_grpc() {
    let (bench, runner, _end, control) = serving(1, flatten());
    control.process("1", "d");
    let long = element(&vec![7; 9 << 20]);
    bench.feed(&runner, "1", "in-0", long.clone(), true);
    assert!(runner.outputs("1", 1)["out"] == long);
    assert_eq!(control.response().error, "");
}

fn split(control: &ControlStream, transform: &str, total: i64) -> ProcessBundleSplitResponse {
    let desired = DesiredSplit { estimated_input_elements: total, ..Default::default() };
    let request = ProcessBundleSplitRequest {
        instruction_id: "1".to_owned(),
        desired_splits: HashMap::from([(transform.to_owned(), desired)]),
    };
    control.send("split", Request::ProcessBundleSplit(request));
    let response = control.response();
    assert_eq!(response.error, "");
    match response.response {
        Some(Response::ProcessBundleSplit(split)) => split,
        other => panic!("{other:?}"),
    }
}

/// Ask for the bundle's progress until its only source has started `elements` elements.
fn wait_for(control: &ControlStream, collection: &str, elements: u8) {
    loop {
        let request = ProcessBundleProgressRequest { instruction_id: "1".to_owned() };
        control.send("progress", Request::ProcessBundleProgress(request));
        let Some(Response::ProcessBundleProgress(progress)) = control.response().response else {
            panic!("an error");
        };
        let mut infos = progress.monitoring_infos.iter();
        let count = infos.find(|info| info.labels.get("PCOLLECTION").is_some_and(|of| of == collection));
        if count.is_some_and(|count| count.payload >= vec![elements]) {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_rest_of_a_bundle_is_released_and_its_last_element_is_not() {
    let (bench, runner, _end, control) = serving(1, flatten());
    control.process("1", "d");
    bench.feed(&runner, "1", "in-0", element(b"a"), false);
    wait_for(&control, "read-0", 1);
    let given = split(&control, "in-0", 3);
    let [channel] = &given.channel_splits[..] else { panic!("{given:?}") };
    assert_eq!((channel.last_primary_element, channel.first_residual_element), (0, 1));
    assert!(split(&control, "in-0", 3).channel_splits.is_empty(), "only a started element is left");
    bench.feed(&runner, "1", "in-0", [element(b"b"), element(b"c")].concat(), true);
    assert_eq!(runner.outputs("1", 1)["out"], element(b"a"));
    assert_eq!(control.response().error, "");
    assert!(split(&control, "in-0", 3).channel_splits.is_empty(), "the bundle has ended");
}

#[test]
fn a_bundle_of_several_sources_is_not_split() {
    let (bench, runner, _end, control) = serving(2, flatten());
    control.process("1", "d");
    bench.feed(&runner, "1", "in-0", element(b"a"), false);
    wait_for(&control, "read-0", 1);
    for source in ["in-0", "in-1"] {
        assert!(split(&control, source, 9).channel_splits.is_empty());
    }
    bench.feed(&runner, "1", "in-0", Vec::new(), true);
    bench.feed(&runner, "1", "in-1", element(b"b"), true);
    let output = &runner.outputs("1", 1)["out"];
    assert_eq!(*output, [element(b"a"), element(b"b")].concat());
}

#[test]
fn a_worker_whose_bundles_wait_ends_when_it_is_stopped_and_when_the_runner_ends() {
    for is_stopped in [true, false] {
        let bench = Bench::new();
        let runner = bench.runner();
        runner.describe("d", descriptor(&runner.address, 1, flatten()));
        let end = bench.start(&runner);
        let control = runner.worker();
        control.process("1", "d");
        control.process("2", "d");
        bench.feed(&runner, "1", "in-0", element(b"a"), false);
        if is_stopped {
            bench.stop.send_replace(true);
            let failed = control.ended();
            assert_eq!(failed.len(), 2, "the runner gets both answers");
            assert!(failed.iter().all(|response| response.error.contains("asked to stop")), "{failed:?}");
        } else {
            drop(control);
        }
        assert_eq!(ended(&end), Ok(()));
    }
}

#[test]
fn a_worker_ends_when_it_is_stopped_although_the_runner_does_not_answer_or_read() {
    let bench = Bench::new();
    let silent = FakeRunner::with(bench.runtime.handle(), Faults { no_provision: true, ..Faults::default() });
    let deaf = FakeRunner::with(bench.runtime.handle(), Faults { no_reading: true, ..Faults::default() });
    let ends = [bench.start(&silent), bench.start(&deaf)];
    deaf.describe("d", descriptor(&deaf.address, 1, flatten()));
    let control = deaf.worker();
    control.process("1", "d");
    // more than the windows of HTTP/2 and all queues take
    for _ in 0..64 {
        bench.feed(&deaf, "1", "in-0", element(&vec![7; 1 << 20]), false);
    }
    wait_for(&control, "read-0", 2);
    bench.stop.send_replace(true);
    ends.iter().for_each(|end| assert_eq!(ended(end), Ok(())));
}

#[test]
fn a_data_stream_that_ends_too_early_ends_the_worker_with_its_address() {
    let (bench, runner, end, control) = serving(1, flatten());
    control.process("1", "d");
    bench.feed(&runner, "1", "in-0", element(b"a"), false);
    wait_for(&control, "read-0", 1);
    runner.close_data();
    let error = ended(&end).expect_err("a broken stream");
    assert!(error.contains(&runner.address) && error.contains("ended early"), "{error}");
}

#[test]
fn a_runner_that_is_gone_is_named() {
    let bench = Bench::new();
    let closed = closed_port();
    let endpoints = Endpoints { control: Some(closed.clone()), ..Endpoints::default() };
    let worker = bench.process.worker("1", endpoints, bench.stop.subscribe());
    let error = bench.runtime.block_on(worker).expect_err("nobody listens");
    assert!(error.contains(&closed) && error.contains("control service"), "{error}");
}

#[test]
fn a_worker_without_a_log_at_its_runner_still_answers() {
    let bench = Bench::new();
    let runner = FakeRunner::with(bench.runtime.handle(), Faults { no_logging: true, ..Faults::default() });
    runner.describe("d", descriptor(&runner.address, 1, function("other:fn:v1", Vec::new())));
    assert!(failure_of_bundle(&bench, &runner).message.contains("other:fn:v1"));
}

#[test]
fn a_runner_learns_that_a_pool_cannot_reach_it() {
    let bench = Bench::new();
    let (pool, _end) = bench.pool();
    let nobody = closed_port();
    let error = bench.start_in(pool, "1-1", &nobody);
    let failure = Failure::find(&error).expect("a failure");
    assert!(failure.message.contains(&nobody) && failure.message.contains("cannot start"), "{error}");
    assert_eq!(bench.start_in(pool, "job-001[p]_env", &nobody), "", "an error would end Prism");
}

#[test]
fn jobs_of_two_runners_on_one_pool_do_not_disturb_each_other() {
    let bench = Bench::new();
    let (pool, end) = bench.pool();
    let runners = [bench.runner(), bench.runner()];
    for runner in &runners {
        runner.describe("d", descriptor(&runner.address, 1, flatten()));
        // runners give the same ids
        assert_eq!(bench.start_in(pool, "1-1", &runner.address), "");
    }
    let controls = runners.each_ref().map(FakeRunner::worker);
    controls.iter().for_each(|control| control.process("1", "d"));
    let [first, second] = &runners;
    bench.feed(first, "1", "in-0", element(b"a"), true);
    assert_eq!(first.outputs("1", 1)["out"], element(b"a"));
    let [first_control, second_control] = controls;
    assert_eq!(first_control.response().error, "");
    drop(first_control);
    bench.feed(second, "1", "in-0", element(b"b"), true);
    assert_eq!(second.outputs("1", 1)["out"], element(b"b"));
    assert_eq!(second_control.response().error, "");
    bench.stop.send_replace(true);
    assert_eq!(ended(&end), Ok(()));
}
