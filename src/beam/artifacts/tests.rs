//! Files from a scripted artifact service.

use std::sync::mpsc::channel;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::beam::fake_runner::{Artifact, FakeRunner};
use crate::beam::payload::VERSION;
use crate::config::Overrides;
use crate::error::Retry;
use crate::exit_code;

struct Bench {
    runtime: Runtime,
    folder: TempDir,
    fetched: Arc<Fetched>,
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let fetched = Fetched::below(folder.path().to_owned());
        Self { runtime: Runtime::new().expect("a runtime"), folder, fetched: Arc::new(fetched) }
    }

    /// A payload whose model and labels exist nowhere on this machine.
    fn payload(&self, model: &[u8], labels: &[u8]) -> Payload {
        self.payload_of(&[("m.onnx", model), ("labels.txt", labels)])
    }

    /// A payload with these files: the model, its weights, and the labels.
    fn payload_of(&self, files: &[(&str, &[u8])]) -> Payload {
        let path = |name: &str| self.folder.path().join(name);
        let staged = files.iter().map(|(name, content)| StagedFile {
            path: path(name),
            sha256: sha256(content),
            name: format!("{}-{}", &sha256(content)[..16], name.rsplit('/').next().unwrap_or_default()),
        });
        let ((model, content), (labels, _)) = (files[0], files[files.len() - 1]);
        let text = format!(
            "name = \"t\"\n[input]\nuri = \"/in\"\n[preprocess]\nresize = {{ width = 2, height = 2 }}\n\
             [model]\npath = \"{model}\"\nlabels = \"{}\"\n[output]\nuri = \"/out\"\n",
            path(labels).display()
        );
        Payload {
            version: VERSION,
            path: path("p.toml"),
            text,
            overrides: Overrides::default(),
            model_sha256: sha256(content),
            staged: staged.collect(),
        }
    }

    /// The files of a worker whose runner offers `artifacts`.
    fn worker(&self, runner: &FakeRunner, artifacts: &[(&StagedFile, Artifact)]) -> Artifacts {
        let offer = |(file, artifact): &(&StagedFile, Artifact)| runner.offer(&file.name, artifact.clone());
        let offer = Offer {
            worker: WorkerId::new("1").expect("an id"),
            runtime: self.runtime.handle().clone(),
            address: Some(runner.address.clone()),
            offered: artifacts.iter().map(offer).collect(),
            fetched: Arc::clone(&self.fetched),
        };
        Artifacts { patience: Duration::from_millis(300), ..Artifacts::new(offer) }
    }
}

fn content(bytes: &[u8]) -> Artifact {
    Artifact::Content(bytes.to_vec())
}

#[test]
fn files_are_fetched_as_far_as_they_are_needed_and_removed_with_the_last_worker() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload(b"the model", b"a\nb\n");
    let [model, labels] = &payload.staged[..] else { panic!("{payload:?}") };
    let lister = bench.worker(&runner, &[(labels, content(b"a\nb\n"))]);
    let localized = lister.localize(&payload, Needs::Labels).expect("only the labels are needed");
    assert_eq!(localized.plan().expect("a plan").model.labels.expect("labels").len(), 2);
    let missing = lister.localize(&payload, Needs::All).expect_err("no model");
    assert!(
        missing.message.contains("m.onnx is missing") && missing.message.contains("not offer"),
        "{missing}"
    );
    assert_eq!((missing.code, missing.retry), (exit_code::ENGINE, Retry::Elsewhere));

    let scorer = bench.worker(&runner, &[(labels, content(b"")), (model, content(b"the model"))]);
    let localized = scorer.localize(&payload, Needs::All).expect("the labels were fetched before");
    let path = localized.plan().expect("a plan").model.path;
    assert_eq!(fs::read(&path).expect("a file"), b"the model");
    assert_eq!(bench.fetched.in_use().len(), 1);
    drop(lister);
    assert!(path.exists(), "another worker uses it");
    drop(scorer);
    assert!(!path.exists());
    assert_eq!(bench.fetched.in_use().len(), 0);
}

#[test]
fn a_file_that_is_there_is_not_fetched() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload(b"the model", b"a\n");
    fs::write(&payload.staged[0].path, b"the model").expect("a file");
    fs::write(&payload.staged[1].path, b"a\n").expect("a file");
    let worker = bench.worker(&runner, &[]);
    assert_eq!(worker.localize(&payload, Needs::All).expect("all are there"), payload);
    fs::write(&payload.staged[0].path, b"another model").expect("a file");
    let different = worker.localize(&payload, Needs::All).expect_err("different");
    assert!(different.message.contains("m.onnx is missing or different"), "{different}");
}

#[test]
fn files_of_the_same_base_name_do_not_take_each_others_place() {
    for labels in ["labels/m.onnx", "labels/weights", "other/../weights"] {
        let bench = Bench::new();
        let runner = FakeRunner::start(bench.runtime.handle());
        let payload =
            bench.payload_of(&[("model/m.onnx", b"the model"), ("model/weights", b"1"), (labels, b"a\nb\n")]);
        let [model, weights, labels] = &payload.staged[..] else { panic!("{payload:?}") };
        let offered =
            [(labels, content(b"a\nb\n")), (weights, content(b"1")), (model, content(b"the model"))];
        let worker = bench.worker(&runner, &offered);
        let plan = worker.localize(&payload, Needs::All).expect("all are offered").plan().expect("a plan");
        assert_eq!(plan.model.labels.expect("labels").len(), 2, "{}", labels.path.display());
        assert_eq!(fs::read(&plan.model.path).expect("a file"), b"the model");
        assert_eq!(fs::read(plan.model.path.with_file_name("weights")).expect("a file"), b"1");
    }
}

#[test]
fn labels_outside_the_models_folder_stay_inside_the_folder_of_fetched_files() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload_of(&[("model/m.onnx", b"the model"), ("model/../labels.txt", b"a\n")]);
    let [model, labels] = &payload.staged[..] else { panic!("{payload:?}") };
    let worker = bench.worker(&runner, &[(labels, content(b"a\n")), (model, content(b"the model"))]);
    worker.localize(&payload, Needs::All).expect("both are offered");
    let entries = fs::read_dir(bench.folder.path()).expect("a folder");
    let names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_path_that_is_a_fifo_here_is_fetched_and_not_waited_for() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload(b"the model", b"a\n");
    let labels = &payload.staged[1];
    assert!(std::process::Command::new("mkfifo").arg(&labels.path).status().expect("mkfifo").success());
    let worker = bench.worker(&runner, &[(labels, content(b"a\n"))]);
    let plan = worker.localize(&payload, Needs::Labels).expect("it is offered").plan().expect("a plan");
    assert_eq!(plan.model.labels.expect("labels").len(), 1);
}

#[test]
fn an_artifact_with_the_same_content_may_have_another_name() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload(b"the same", b"the same");
    let worker = bench.worker(&runner, &[(&payload.staged[0], content(b"the same"))]);
    let localized = worker.localize(&payload, Needs::All).expect("one file for both");
    assert_eq!(localized.plan().expect("a plan").model.labels.expect("labels").len(), 1);
}

#[test]
fn an_artifact_with_other_content_is_refused() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let payload = bench.payload(b"the model", b"a\n");
    let worker = bench.worker(&runner, &[(&payload.staged[1], content(b"b\n"))]);
    let refused = worker.localize(&payload, Needs::Labels).expect_err("other content");
    assert!(refused.message.contains("differs from the file that was submitted"), "{refused}");
}

#[test]
fn a_service_that_stalls_is_an_error_and_delays_nobody_else() {
    let bench = Bench::new();
    let runner = FakeRunner::start(bench.runtime.handle());
    let (stuck, sound) = (bench.payload(b"one", b"a\n"), bench.payload(b"two", b"b\n"));
    let mut stalling = bench.worker(&runner, &[(&stuck.staged[1], Artifact::Stalls)]);
    let error = stalling.localize(&stuck, Needs::Labels).expect_err("nothing arrives");
    assert!(error.message.contains("nothing has arrived for 0.3 s"), "{error}");
    assert!(error.message.contains(&runner.address) && error.message.contains("labels.txt"), "{error}");

    // longer than the test
    stalling.patience = Duration::from_secs(3600);
    let (begun, is_fetching) = channel();
    let fetching = bench.fetched.clone();
    std::thread::spawn(move || {
        begun.send(()).expect("a test");
        let _ = stalling.localize(&stuck, Needs::Labels);
    });
    is_fetching.recv().expect("begun");
    // until the folder is being filled
    while !fetching.in_use().iter().any(|folder| folder.fetching.try_lock().is_err()) {
        std::thread::yield_now();
    }
    let worker = bench.worker(&runner, &[(&sound.staged[1], content(b"b\n"))]);
    worker.localize(&sound, Needs::Labels).expect("it does not wait for the other job");
    // the thread ends with the process
    bench.runtime.shutdown_background();
}
