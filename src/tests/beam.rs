//! The same input through `sluice run` and through the runners of Apache Beam.

mod support;
#[path = "beam/transform.rs"]
mod transform;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::*;

/// The first port of the runners that this test starts.
const FIRST_PORT: &str = "22000";

/// Held by the test that uses the ports.
static PORTS: Mutex<()> = Mutex::new(());

/// Runners that run until this is dropped.
struct Runners {
    _ports: MutexGuard<'static, ()>,
    /// Name and job endpoint of each.
    endpoints: Vec<(String, String)>,
}

impl Runners {
    fn start(names: &[&str]) -> Self {
        let ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
        let started = script("start", names);
        assert!(started.status.success(), "runners: {}", stderr(&started));
        let endpoint = |line: &str| line.split_once(' ').map(|(name, at)| (name.to_owned(), at.to_owned()));
        let endpoints: Vec<_> = stdout(&started).lines().filter_map(endpoint).collect();
        assert_eq!(endpoints.len(), names.len(), "{endpoints:?}");
        Self { _ports: ports, endpoints }
    }
}

impl Drop for Runners {
    fn drop(&mut self) {
        let names: Vec<_> = self.endpoints.iter().map(|(name, _)| name.as_str()).collect();
        script("stop", &names);
    }
}

fn script(command: &str, names: &[&str]) -> Output {
    let mut script = Command::new(format!("{REPOSITORY}/scripts/beam-runners.sh"));
    script.arg(command).args(names).env("BEAM_RUNNERS_PORT", FIRST_PORT);
    script.output().expect("the script starts")
}

/// A server of sluice that runs until this is dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// Start `sluice beam ARGS…`, which logs its address.
    fn start(mut sluice: Command, args: &[&str]) -> Self {
        sluice.args(["--log-format", "json", "beam"]).args(args).stderr(Stdio::piped());
        let mut process = sluice.spawn().expect("the binary starts");
        let mut log = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut line = String::new();
        log.read_line(&mut line).expect("a line of the log");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let address = line["address"].as_str().expect("the address of the server").to_owned();
        // the server must not wait for a reader of its log
        std::thread::spawn(move || log.read_to_string(&mut String::new()));
        Self { process, address }
    }

    /// A pool of workers.
    fn pool() -> Self {
        Self::start(sluice(), &["worker", "--pool", "127.0.0.1:0"])
    }

    /// The environment of workers from this pool.
    fn environment(&self) -> String {
        format!("external={}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("killed, or gone");
        self.process.wait().expect("a child");
    }
}

/// A worker has the variables of its runner. This is the one that it needs besides.
fn library() -> String {
    let sluice = sluice();
    let set = sluice.get_envs().find(|(name, _)| *name == "ORT_DYLIB_PATH").and_then(|(_, at)| at);
    let library = set.map(ToOwned::to_owned).or_else(|| std::env::var_os("ORT_DYLIB_PATH"));
    format!("ORT_DYLIB_PATH={}", library.expect("set here or there").display())
}

fn submit(bench: &Bench, endpoint: &str, environment: &str, out: &str, args: &[&str]) -> Output {
    let mut submit = sluice();
    submit.current_dir(bench.path("")).args([
        "beam",
        "submit",
        "pipeline.toml",
        "--input",
        "in",
        "--output",
        out,
    ]);
    submit.args(["--job-endpoint", endpoint, "--environment", environment, "--parallelism", "2"]);
    if environment == "process" {
        submit.args(["--worker-env", &library()]);
    }
    submit.args(args).output().expect("the binary starts")
}

/// `sluice run` on the same addresses: a job makes paths absolute, since its workers run in other folders.
fn run(bench: &Bench, out: &str, args: &[&str]) -> Command {
    let input = bench.path("in").display().to_string();
    bench.command("run", out, &[&["--input", &input], args].concat())
}

fn run_to_end(bench: &Bench, out: &str, args: &[&str]) -> Output {
    run(bench, out, args).output().expect("the binary starts")
}

fn verify(bench: &Bench, out: &str) {
    let verified = sluice().current_dir(bench.path("")).args(["verify", out]).output().expect("starts");
    assert_code(&verified, 0);
}

/// Shards of all sizes, some images of which are damaged.
fn write_input(bench: &Bench) {
    for shard in 0..24_u32 {
        let mut members = images(shard * 100, shard * 13 % 23);
        if let Some((_, image)) = members.get_mut(2) {
            image.truncate(20);
        }
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &members);
    }
    write_tfrecord(&bench.path("in/b.tfrecord"), &images(5000, 3));
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn every_runner_leaves_the_rows_of_a_run() {
    let bench = Bench::new();
    write_input(&bench);
    assert_code(&run_to_end(&bench, "alone", &["--set", "output.max_error_rate=1.0"]), 0);
    let expected = bench.comparable_rows("alone");
    let pool = Server::pool();
    let external = pool.environment();
    // one after another: together they need more memory than a small machine has
    for (runner, environments) in [
        ("python", &[external.as_str()][..]),
        ("prism", &["process", &external]),
        ("flink", &["process", &external]),
        ("spark", &["process", &external]),
    ] {
        let runners = Runners::start(&[runner]);
        let (_, endpoint) = &runners.endpoints[0];
        for (number, environment) in environments.iter().enumerate() {
            let out = format!("{runner}-{number}");
            let set = ["--set", "output.max_error_rate=1.0"];
            let submitted = submit(&bench, endpoint, environment, &out, &set);
            assert_code(&submitted, 0);
            assert_eq!(bench.comparable_rows(&out), expected, "{runner}, {environment}");
            verify(&bench, &out);
            let again = submit(&bench, endpoint, environment, &out, &set);
            assert_code(&again, 0);
            assert!(stdout(&again).contains("done before"), "{}", stdout(&again));
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn a_job_ends_as_a_run_does() {
    let bench = Bench::new();
    let runners = Runners::start(&["python"]);
    let (_, endpoint) = &runners.endpoints[0];
    let pool = Server::pool();
    let environment = pool.environment();
    let submit = |out: &str, args: &[&str]| submit(&bench, endpoint, &environment, out, args);

    let empty = submit("empty", &[]);
    assert_code(&empty, 3);
    let reason = stderr(&run_to_end(&bench, "empty", &[]));
    let reason =
        reason.split("ERROR ").nth(1).and_then(|line| line.split(" retry=").next()).expect("a reason");
    let name = reason.split_whitespace().last().expect("words");
    assert!(stderr(&empty).contains(name), "{reason}\n{}", stderr(&empty));
    let allowed = submit("allowed", &["--allow-empty"]);
    assert_code(&allowed, 0);
    verify(&bench, "allowed");
    assert_code(&run_to_end(&bench, "allowed", &["--allow-empty"]), 0);

    write_tar(&bench.path("in/a.tar"), &images(0, 30));
    write_tar(&bench.path("in/b.tar"), &[("bad".to_owned(), b"no image".to_vec())]);
    assert_code(&submit("errors", &["--set", "output.max_error_rate=0.0"]), 5);
    assert!(bench.path("errors/_manifest.json").exists() && !bench.path("errors/_SUCCESS").exists());
    // the same run with a higher limit
    assert_code(&submit("errors", &["--set", "output.max_error_rate=1.0"]), 0);
    verify(&bench, "errors");
    // another plan does not fit the run that is there
    let other = submit("errors", &["--set", "engine.batch_size=3", "--set", "preprocess.scale=0.5"]);
    assert_code(&other, 6);
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn a_job_finishes_the_run_of_a_killed_process() {
    let bench = Bench::new();
    for shard in 0..400 {
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &images(shard * 50, 50));
    }
    let mut running =
        run(&bench, "out", &[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    while whole_parts(&bench).len() < 20 {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it was killed");
        std::thread::yield_now();
    }
    running.kill().expect("running, or gone");
    running.wait().expect("a child");
    assert!(!bench.path("out/_SUCCESS").exists(), "the run ended before it was killed");
    let runners = Runners::start(&["python"]);
    let (_, endpoint) = &runners.endpoints[0];
    let pool = Server::pool();
    let environment = pool.environment();
    assert_code(&submit(&bench, endpoint, &environment, "out", &[]), 0);
    assert_code(&run_to_end(&bench, "alone", &[]), 0);
    assert_eq!(bench.comparable_rows("out"), bench.comparable_rows("alone"));
    verify(&bench, "out");
}
