//! Files from a scripted artifact service.

use std::sync::mpsc::channel;

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
        Self { runtime: Runtime::new().expect("a runtime"), folder, fetched: Arc::default() }
    }

    /// A payload whose model and labels exist nowhere on this machine.
    fn payload(&self, model: &[u8], labels: &[u8]) -> Payload {
        let path = |name: &str| self.folder.path().join(name);
        let text = "name = \"t\"\n[input]\nuri = \"/in\"\n[preprocess]\nresize = { width = 2, height = 2 }\n\
                    [model]\npath = \"m.onnx\"\nlabels = \"labels.txt\"\n[output]\nuri = \"/out\"\n";
        let staged = [("m.onnx", model), ("labels.txt", labels)].map(|(name, content)| StagedFile {
            path: path(name),
            sha256: sha256(content),
            name: format!("{}-{name}", &sha256(content)[..16]),
        });
        Payload {
            version: VERSION,
            path: path("p.toml"),
            text: text.to_owned(),
            overrides: Overrides::default(),
            model_sha256: sha256(model),
            staged: staged.into(),
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

/// The folders that exist for fetched files.
fn folders(fetched: &Fetched) -> usize {
    lock(&fetched.0).values().filter(|folder| folder.strong_count() > 0).count()
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
    assert_eq!(folders(&bench.fetched), 1);
    drop(lister);
    assert!(path.exists(), "another worker uses it");
    drop(scorer);
    assert!(!path.exists());
    assert_eq!(folders(&bench.fetched), 0);
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
    while !lock(&fetching.0).values().filter_map(Weak::upgrade).any(|one| one.fetching.try_lock().is_err()) {
        std::thread::yield_now();
    }
    let worker = bench.worker(&runner, &[(&sound.staged[1], content(b"b\n"))]);
    worker.localize(&sound, Needs::Labels).expect("it does not wait for the other job");
    // the thread ends with the process
    bench.runtime.shutdown_background();
}
