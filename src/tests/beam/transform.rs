//! Pipelines of other SDKs that score with sluice: `scripts/beam/score.py` and `scripts/beam/Score.java`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use super::support::*;
use super::{Runners, Server, library, verify, write_input};

/// A service that expands transforms for workers in `environment`. It runs in `folder`.
fn service(folder: &Path, environment: &str) -> Server {
    let mut sluice = sluice();
    sluice.current_dir(folder);
    let mut args = vec!["expansion-service", "--listen", "127.0.0.1:0", "--environment", environment];
    let library = library();
    if environment == "process" {
        args.extend(["--worker-env", &library]);
    }
    Server::start(sluice, &args)
}

/// A program with a pipeline, its arguments before those of the pipeline, and the options of a runner.
struct Program {
    words: Vec<String>,
    options: Vec<String>,
}

impl Program {
    /// In Python, on the job service at `endpoint`, or on Beam's own runner within the program.
    fn python(endpoint: Option<&str>) -> Self {
        let python = installed("beam/python/bin/python", "scripts/setup.sh --with beam");
        let words = vec![python.display().to_string(), format!("{REPOSITORY}/scripts/beam/score.py")];
        let options = match endpoint {
            None => vec!["--runner=FnApiRunner".to_owned()],
            Some(endpoint) => vec![
                "--runner=PortableRunner".to_owned(),
                format!("--job_endpoint={endpoint}"),
                "--environment_type=LOOPBACK".to_owned(),
                "--parallelism=2".to_owned(),
            ],
        };
        Self { words, options }
    }

    /// In Java, compiled into `classes`, on the job service at `endpoint`.
    fn java(classes: &Path, endpoint: &str) -> Self {
        let pom = installed("beam/java/beam-java.xml", "scripts/setup.sh --with beam");
        let jars = format!("{}/*", pom.with_file_name("jars").display());
        let source = format!("{REPOSITORY}/scripts/beam/Score.java");
        let javac = Command::new("javac").args(["-cp", &jars, &source, "-d"]).arg(classes).output();
        let javac = javac.expect("javac starts");
        assert!(javac.status.success(), "{}", stderr(&javac));
        let class_path = format!("{}:{jars}", classes.display());
        Self {
            words: ["java", "-cp", &class_path, "Score"].map(str::to_owned).into(),
            options: vec![
                "--runner=PortableRunner".to_owned(),
                format!("--jobEndpoint={endpoint}"),
                "--defaultEnvironmentType=LOOPBACK".to_owned(),
                // Beam replaces it, and refuses to expand transforms without it
                "--defaultEnvironmentConfig=localhost:1".to_owned(),
            ],
        }
    }

    /// Score `uris`, in another folder than the bench. Returns the counts of rows, if the pipeline has written them.
    fn score(
        &self,
        bench: &Bench,
        service: &Server,
        uris: &[String],
        pipeline: &str,
    ) -> (Output, Option<String>) {
        let path = |name: &str| bench.path(name);
        let lines: String = uris.iter().map(|uri| format!("{uri}\n")).collect();
        fs::write(path("uris.txt"), lines).expect("a file");
        fs::write(path("job.toml"), pipeline).expect("a file");
        let mut score = Command::new(&self.words[0]);
        score.current_dir(path("in")).args(&self.words[1..]);
        score.arg(path("uris.txt")).arg(path("job.toml")).arg(&service.address).arg(path("counts"));
        let ended = score.args(&self.options).output().expect("the program starts");
        let counts = fs::read_to_string(path("counts")).ok();
        if counts.is_some() {
            fs::remove_file(path("counts")).expect("a file");
        }
        (ended, counts)
    }

    /// Score `uris` into `out`, and check the counts against its manifest.
    fn score_to_end(&self, bench: &Bench, service: &Server, uris: &[String], out: &str, set: &[&str]) {
        let (ended, counts) = self.score(bench, service, uris, &pipeline(bench, out, set));
        assert!(ended.status.success(), "{}", stderr(&ended));
        let manifest = bench.manifest(out);
        let rows = manifest["summary"]["rows_by_status"].as_object().expect("an object");
        let mut expected: Vec<_> = rows.iter().map(|(status, rows)| format!("{status} {rows}")).collect();
        let counts = counts.expect("counts");
        let mut counts: Vec<_> = counts.lines().map(str::to_owned).collect();
        expected.sort_unstable();
        counts.sort_unstable();
        assert_eq!(counts, expected);
    }
}

/// The bench's pipeline file, changed so that its output is `out`, and by `set`: `section.key=value`.
fn pipeline(bench: &Bench, out: &str, set: &[&str]) -> String {
    let text = fs::read_to_string(bench.path("pipeline.toml")).expect("a file");
    let mut file: toml::Table = text.parse().expect("TOML");
    let output = format!("output.uri={out}");
    for change in ["output.max_error_rate=1.0", &output].iter().chain(set) {
        let (key, value) = change.split_once('=').expect("a value");
        let (section, key) = key.split_once('.').expect("a section");
        let value = value.parse().unwrap_or_else(|_| toml::Value::String(value.to_owned()));
        let section = file.entry(section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a table").insert(key.to_owned(), value);
    }
    file.to_string()
}

/// The URIs of all shards.
fn shards(bench: &Bench) -> Vec<String> {
    parts(&bench.path("in")).iter().map(|path| path.display().to_string()).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn pipelines_in_python_and_java_leave_the_output_of_a_run_on_every_runner() {
    let bench = Bench::new();
    write_input(&bench);
    let shards = shards(&bench);
    let inputs: Vec<_> = shards.iter().flat_map(|uri| ["--input", uri]).collect();
    let alone = bench.run("alone", &[&["--set", "output.max_error_rate=1.0"], &inputs[..]].concat());
    assert_code(&alone, 0);
    let expected = bench.comparable_rows("alone");
    // neither the order nor repetitions matter
    let mut uris = shards.clone();
    uris.push(shards[3].clone());
    uris.reverse();
    let score = |program: &Program, service: &Server, out: &str| {
        program.score_to_end(&bench, service, &uris, out, &[]);
        assert_eq!(bench.comparable_rows(out), expected, "{out}");
        assert_eq!(bench.manifest(out)["plan"]["inputs"], bench.manifest("alone")["plan"]["inputs"]);
        verify(&bench, out);
        // the run is finished: its parts are reported again
        program.score_to_end(&bench, service, &uris, out, &[]);
    };
    let pool = Server::pool();
    score(&Program::python(None), &service(&bench.path(""), &pool.environment()), "python");
    let service = service(&bench.path(""), "process");
    let classes = tempfile::tempdir().expect("a folder");
    for runner in ["prism", "flink"] {
        let runners = Runners::start(&[runner]);
        let endpoint = &runners.endpoints[0].1;
        score(&Program::python(Some(endpoint)), &service, &format!("python-{runner}"));
        if runner == "flink" {
            score(&Program::java(classes.path(), endpoint), &service, "java");
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn a_pipeline_without_uris_ends_as_a_run_without_input() {
    let bench = Bench::new();
    let pool = Server::pool();
    let service = service(&bench.path(""), &pool.environment());
    let program = Program::python(None);
    let (ended, counts) = program.score(&bench, &service, &[], &pipeline(&bench, "out", &[]));
    assert!(!ended.status.success() && counts.is_none());
    let error = stderr(&ended);
    assert!(error.contains("input of the pipeline has nothing to score: it has no URI"), "{error}");
    program.score_to_end(&bench, &service, &[], "out", &["input.allow_empty=true"]);
    verify(&bench, "out");
    // workers run in other folders
    let relative = ["in/000.tar".to_owned()];
    let (ended, _) = program.score(&bench, &service, &relative, &pipeline(&bench, "out", &[]));
    let error = stderr(&ended);
    assert!(error.contains("\\\"in/000.tar\\\" is a relative path"), "{error}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn workers_get_the_model_and_the_labels_from_the_service() {
    let bench = Bench::new();
    write_tar(&bench.path("in/000.tar"), &images(0, 9));
    fs::copy(format!("{REPOSITORY}/fixtures/tiny.onnx"), bench.path("model.onnx")).expect("a copy");
    fs::write(bench.path("labels.txt"), "north\neast\nsouth\nwest\n").expect("a file");
    let uris = [bench.path("in").display().to_string()];
    assert_code(&bench.run("alone", &["--input", &uris[0]]), 0);
    let pool = Server::pool();
    let service = service(&bench.path(""), &pool.environment());
    // files in the folder of the process that opens them: only the service has them
    let files = ["model.path=/proc/self/cwd/model.onnx", "model.labels=/proc/self/cwd/labels.txt"];
    Program::python(None).score_to_end(&bench, &service, &uris, "python", &files);
    assert_eq!(bench.comparable_rows("python"), bench.comparable_rows("alone"));
    let runners = Runners::start(&["flink"]);
    let program = Program::python(Some(&runners.endpoints[0].1));
    program.score_to_end(&bench, &service, &uris, "flink", &files);
    assert_eq!(bench.comparable_rows("flink"), bench.comparable_rows("alone"));
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam"]
fn a_wrong_payload_is_an_error_of_the_pipeline_and_a_signal_ends_the_service() {
    let bench = Bench::new();
    let mut service = service(&bench.path(""), "process");
    let wrong = pipeline(&bench, "out", &["engine.batchsize=4"]);
    let (ended, _) = Program::python(None).score(&bench, &service, &[], &wrong);
    let error = stderr(&ended);
    let message = "RuntimeError: unknown key engine.batchsize, did you mean batch_size?";
    assert!(!ended.status.success() && error.contains(message), "{error}");
    send(Signal::TERM, &service.process);
    assert!(service.process.wait().expect("a child").success());
}
