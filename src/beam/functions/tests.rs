//! Our functions on outputs in a folder, without a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::beam::artifacts::{Fetched, Offer};
use crate::beam::bundle::Bundle;
use crate::beam::bundle_state::BundleState;
use crate::beam::connection::WorkerId;
use crate::beam::data::Piece;
use crate::beam::fake_runner::{descriptor, element, function};
use crate::beam::graph::Graph;
use crate::beam::payload::VERSION;
use crate::beam::proto::pipeline::PTransform;
use crate::beam::scorers::Scorers;
use crate::beam::urns;
use crate::config::Overrides;
use crate::engine::{Engine, Inference};
use crate::error::Retry;
use crate::exit_code;
use crate::items::{BatchShape, PixelElement, PixelsRef, ShardContent, ShardFormat};
use crate::plan::hex;
use crate::report::Outcome;
use crate::skipped::Skipped;

/// A folder with an input of two shards, and no model.
struct Bench {
    runtime: Runtime,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            runtime: Runtime::new().expect("a runtime"),
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::create_dir(bench.path("in")).expect("a folder");
        ["a", "b"].iter().for_each(|name| bench.add_shard(name));
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn add_shard(&self, name: &str) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        tar.append_data(&mut header, "x.jpg", &b"abc"[..]).expect("in memory");
        fs::write(self.path(&format!("in/{name}.tar")), tar.into_inner().expect("in memory"))
            .expect("a file");
    }

    fn payload(&self, more: &str) -> Payload {
        let text =
            "name = \"t\"\n[preprocess]\nresize = { width = 2, height = 2 }\n[model]\npath = \"none.onnx\"\n";
        let overrides = Overrides {
            inputs: vec![self.path("in").to_string_lossy().into_owned()],
            output: Some(self.path("out").to_string_lossy().into_owned()),
            set: Vec::new(),
        };
        Payload {
            version: VERSION,
            path: self.path("p.toml"),
            text: format!("{text}{more}"),
            overrides,
            model_sha256: "00".to_owned(),
            staged: Vec::new(),
        }
    }

    fn context(&self) -> Context {
        let runtime = self.runtime.handle();
        let artifacts = Artifacts::new(Offer {
            worker: WorkerId::new("1").expect("an id"),
            runtime: runtime.clone(),
            address: None,
            offered: Vec::new(),
            fetched: Arc::<Fetched>::default(),
        });
        Context::new(runtime.clone(), Arc::new(Scorers::new(runtime.clone())).for_worker(), artifacts)
    }

    /// The names and contents of all files of the output.
    fn output(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(&path, files);
                } else {
                    files.insert(path.display().to_string(), fs::read(&path).expect("a file"));
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(&self.path("out"), &mut files);
        files
    }

    /// Begin a run of `payload`, with parts of the shards of `messages`, each in this run or in the one given. Returns
    /// the id of the run.
    fn begin_with(&self, payload: &Payload, messages: &[(&[u8], Option<&str>)]) -> String {
        let opened = self.context().open(payload).expect("a plan");
        let begun = claim(&opened.output, &opened.record(), &AttemptNote::begun(0, 1)).expect("vacant");
        let run_id = begun.record.run_id;
        for (message, run) in messages {
            let ToScore::Shard(json) = decode(message).expect("a shard") else { panic!("not a shard") };
            let shard = ShardRef::from_json(&json).expect("a shard");
            let identity = shard.identity();
            let footer = [
                (commit::ATTEMPT, "0"),
                (commit::SHARD, &shard.name[..]),
                (commit::SHARD_IDENTITY, &identity),
                (commit::SHARD_FORMAT, "webdataset"),
                (commit::ROWS_BY_STATUS, "{}"),
            ];
            let part = commit::testing::part(run.unwrap_or(&run_id), &footer);
            opened.output.create(&PartName::of(&shard).to_string(), part).expect("created");
        }
        run_id
    }

    /// Make the output that of a run of `payload` that has finished, with parts of `names` and 5 rows each.
    fn finish_with(&self, payload: &Payload, names: &[String]) {
        let record = run_record(&payload.plan().expect("a plan"), &payload.model_sha256, None);
        let mut rows = Tally::default();
        (0..5).for_each(|_| rows.count(crate::items::Status::Ok));
        let part = |path: &String| PartReport {
            path: path.clone(),
            rows: Some(5),
            rows_by_status: Some(rows.clone()),
            ..PartReport::default()
        };
        let manifest = json!({
            "run_id": record.run_id,
            "finished_at": "2026-11-28T00:00:00.000Z",
            "plan_sha256": record.plan_sha256,
            "model_sha256": "00",
            "limit": null,
            "summary": { "outcome": Outcome::Succeeded, "rows": 10, "rows_by_status": {} },
            "parts": names.iter().map(part).collect::<Vec<_>>(),
            "batches": [],
            "record": PartReport::default(),
        });
        let manifest = manifest.to_string();
        fs::create_dir_all(self.path("out")).expect("a folder");
        fs::write(self.path("out/_run.json"), serde_json::to_vec(&record).expect("JSON")).expect("a file");
        fs::write(self.path("out/_SUCCESS"), format!("{}\n", hex(&Sha256::digest(&manifest))))
            .expect("a file");
        fs::write(self.path("out/_manifest.json"), manifest).expect("a file");
    }
}

/// Keys and messages of a listing.
fn list(context: &Context, payload: &Payload) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut emitted = Vec::new();
    context.list(payload, |key, message| {
        emitted.push((String::from_utf8_lossy(key).into_owned(), message.to_vec()));
        Ok(())
    })?;
    Ok(emitted)
}

fn finish(context: &Context, payload: &Payload, messages: &[Vec<u8>]) -> Result<(), Failure> {
    context.finish(payload, messages.iter().map(|message| Ok(Bytes::from(message.clone()))))
}

fn score(context: &Context, payload: &Payload, message: &[u8]) -> Result<ScoredShard, Failure> {
    context.score(payload, message, CallOptions::default())
}

fn summary_of(shards: u64) -> Vec<u8> {
    encode(&ToFinish::Listing(Listing { inputs: Vec::new(), shards, skipped: Skipped::default() }))
}

fn part_of(run_id: &str, rows: u64) -> Vec<u8> {
    let part = PartReport { path: "predictions/p".to_owned(), rows: Some(rows), ..PartReport::default() };
    encode(&ToFinish::Part { run_id: run_id.to_owned(), part: Box::new(part), seconds: 0.0 })
}

#[test]
fn functions_that_are_repeated_after_the_end_of_a_run_return_the_same_and_change_nothing() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let listed = list(&bench.context(), &payload).expect("two shards");
    let names: Vec<_> = listed.iter().map(|(key, _)| key.clone()).collect();
    let [a, b, end] = &names[..] else { panic!("{names:?}") };
    assert_eq!(end, "", "the summary of the listing");
    bench.finish_with(&payload, &[a.clone(), b.clone()]);
    let before = bench.output();
    // the model does not exist
    let context = bench.context();
    assert_eq!(list(&context, &payload).expect("the same shards"), listed);
    let scored = listed.iter().map(|(_, message)| score(&context, &payload, message).expect("its part"));
    let scored: Vec<_> = scored.collect();
    assert_eq!(scored.iter().map(|shard| shard.rows.rows()).collect::<Vec<_>>(), [5, 5, 0]);
    let messages: Vec<_> = scored.into_iter().map(|shard| shard.message).collect();
    finish(&context, &payload, &messages).expect("it is finished");
    finish(&context, &payload, &messages[..1]).expect("it is finished, whatever a runner has lost");
    drop(context);
    assert_eq!(bench.output(), before);

    bench.add_shard("c");
    let context = bench.context();
    let (_, added) = list(&context, &payload).expect("three shards").remove(2);
    let refused = score(&context, &payload, &added).err().expect("it has no part");
    assert_eq!((refused.code, refused.retry), (exit_code::OUTPUT, Retry::Never));
    assert!(refused.message.contains("added after the run finished"), "{refused}");
}

#[test]
fn a_finished_run_that_was_removed_is_forgotten() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let context = bench.context();
    let listed = list(&context, &payload).expect("two shards");
    let [(a, message), (b, _), _] = &listed[..] else { panic!("{listed:?}") };
    bench.finish_with(&payload, &[a.clone(), b.clone()]);
    assert_eq!(score(&context, &payload, message).expect("its part").rows.rows(), 5);
    fs::remove_dir_all(bench.path("out")).expect("removed");
    let missing = score(&context, &payload, message).err().expect("no part, and no model");
    assert!(missing.message.contains("none.onnx"), "{missing}");
}

#[test]
fn a_shard_whose_part_is_stored_needs_no_model() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let context = bench.context();
    let listed = list(&context, &payload).expect("two shards");
    let run = bench.begin_with(&payload, &[(&listed[0].1, None)]);
    let scored = score(&context, &payload, &listed[0].1).expect("its part");
    match decode(&scored.message).expect("a part") {
        ToFinish::Part { run_id, part, .. } => assert_eq!((run_id, &part.path), (run, &listed[0].0)),
        other => panic!("{other:?}"),
    }
    let missing = score(&context, &payload, &listed[1].1).err().expect("it has no part");
    assert!(missing.message.contains("none.onnx"), "{missing}");
}

#[test]
fn an_input_that_has_changed_is_refused_when_it_is_listed() {
    // the place of a part, its run if that is another one, and what the error says
    for (place, run, expected) in [
        (0, None, Some("its place in the input was taken by before.tar")),
        (2, None, Some("before.tar: it has a part, but no longer exists")),
        (0, Some("theirs"), None),
        (2, Some("theirs"), None),
    ] {
        let bench = Bench::new();
        let payload = bench.payload("");
        let context = bench.context();
        let before =
            ShardRef::new(place, "before.tar", ShardFormat::Webdataset, ShardContent::Objects(Vec::new()));
        bench.begin_with(&payload, &[(&encode(&ToScore::Shard(before.to_json())), run)]);
        let listed = list(&context, &payload);
        match (listed, expected) {
            (Ok(listed), None) => assert_eq!(listed.len(), 3),
            (Err(failure), Some(expected)) => {
                assert_eq!((failure.code, failure.retry), (exit_code::OUTPUT, Retry::Never));
                assert!(failure.message.contains(expected), "{failure}");
            }
            (listed, _) => panic!("place {place}, run {run:?}: {listed:?}"),
        }
    }
}

/// An engine that takes other rows than the bench decodes: the batch stage is lost with the first one.
struct TakesFloats;

impl Engine for TakesFloats {
    fn describe(&self) -> String {
        "takes floats".to_owned()
    }

    fn batch_shape(&self) -> BatchShape {
        BatchShape { batch_size: 32, row_elements: 12, element: PixelElement::F32 }
    }

    fn classes(&self) -> usize {
        2
    }

    fn computes_on_cpu(&self) -> bool {
        false
    }

    fn infer(&mut self, _: PixelsRef<'_>, _: usize) -> Result<Inference, String> {
        Err("no batch reaches it".to_owned())
    }

    fn infer_floats(&mut self, _: &[f32]) -> Result<Vec<f32>, String> {
        Err("no warm-up reaches it".to_owned())
    }
}

#[test]
fn a_scorer_that_cannot_go_on_is_replaced() {
    let (bench, scorers) = (Bench::new(), crate::scorer::tests::Bench::new());
    let (context, payload) = (bench.context(), bench.payload(""));
    let key = payload.encode();
    let is_kept = || {
        let kept = context.scorers.get(&key, &StopSignal::default(), || Ok(None)).expect("no plan is needed");
        kept.is_some()
    };
    let open = || crate::scorer::tests::sound();
    let lost = context.scorers.put(&key, scorers.scorer_with(Box::new(TakesFloats), "lost", open()));
    assert!(context.store_batches(&lost, &StopSignal::default()).expect("nothing to store") && is_kept());
    let shard = crate::scorer::tests::shard(2);
    let failed = lost.scorer.score(&shard, CallOptions::default()).expect_err("a stage is lost");
    assert!(matches!(failed, Error::StagePanicked { .. }), "{failed}");
    context.store_batches(&lost, &StopSignal::default()).expect_err("a stage is lost");
    assert!(!is_kept());

    // its run was removed, so the shard is given to another scorer, which needs the model
    let scorer = scorers.scorer_with(Box::new(TakesFloats), "removed", open());
    fs::remove_file(scorers.folder.path().join("removed/_run.json")).expect("removed");
    context.scorers.put(&key, scorer);
    let message = encode(&ToScore::Shard(crate::scorer::tests::shard(0).to_json()));
    let missing = score(&context, &payload, &message).err().expect("no model");
    assert!(missing.message.contains("none.onnx"), "{missing}");
}

#[test]
fn a_shard_without_a_model_is_refused_and_its_output_stays_vacant() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let context = bench.context();
    let listed = list(&context, &payload).expect("two shards");
    let missing = score(&context, &payload, &listed[0].1).err().expect("no model");
    assert_eq!((missing.code, missing.retry), (exit_code::ENGINE, Retry::Elsewhere));
    assert!(missing.message.contains("none.onnx"), "{missing}");
    assert!(bench.output().is_empty());
}

#[test]
fn another_plan_is_refused_by_every_function_before_a_model_is_loaded() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let listed = list(&bench.context(), &payload).expect("two shards");
    bench.finish_with(&bench.payload("[input]\nmax_image_bytes = 9\n"), &[]);
    let context = bench.context();
    let failures = [
        list(&context, &payload).err(),
        score(&context, &payload, &listed[0].1).err(),
        finish(&context, &payload, &[summary_of(0)]).err(),
    ];
    for failure in failures.map(|failure| failure.expect("another run")) {
        assert_eq!((failure.code, failure.retry), (exit_code::OUTPUT, Retry::Never), "{failure}");
        assert!(failure.message.contains("out"), "{failure}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error_of_the_output() {
    let bench = Bench::new();
    let payload = bench.payload("[input]\nallow_empty = true\n");
    fs::write(bench.path("out"), "a file").expect("a file");
    let denied = finish(&bench.context(), &payload, &[summary_of(0)]).expect_err("not a folder");
    assert_eq!(denied.code, exit_code::OUTPUT, "{denied}");
}

#[test]
fn an_element_of_another_version_is_refused_for_good() {
    let bench = Bench::new();
    let (context, payload) = (bench.context(), bench.payload(""));
    let failures = [
        score(&context, &payload, br#"{"new":1}"#).err(),
        finish(&context, &payload, &[b"?".to_vec()]).err(),
    ];
    for failure in failures.map(|failure| failure.expect("unknown")) {
        assert_eq!((failure.code, failure.retry), (exit_code::USAGE, Retry::Never), "{failure}");
        assert!(failure.message.contains("version of sluice"), "{failure}");
    }
}

#[test]
fn a_run_is_finished_only_with_the_reports_of_all_its_shards() {
    let bench = Bench::new();
    let payload = bench.payload("[input]\nallow_empty = true\n");
    let opened = bench.context().open(&payload).expect("a plan");
    let claimed = claim(&opened.output, &opened.record(), &AttemptNote::begun(0, 1)).expect("vacant");
    let run = claimed.record.run_id;
    let context = bench.context();
    let message =
        |messages: &[Vec<u8>]| finish(&context, &payload, messages).expect_err("incomplete").message;
    let none = message(&[part_of(&run, 1)]);
    assert!(none.contains("did not deliver the summary"), "{none}");
    let few = message(&[part_of(&run, 1), summary_of(2)]);
    assert!(few.contains("reports for 1 of 2 shards"), "{few}");
    let other = message(&[part_of("theirs", 1), summary_of(1)]);
    assert!(other.contains("another run with the same plan"), "{other}");
    fs::remove_dir_all(bench.path("out")).expect("removed");
    let removed = message(&[part_of(&run, 1), summary_of(1)]);
    assert!(removed.contains("it was removed, or is on the disk of another host"), "{removed}");
    assert!(bench.output().is_empty(), "finish begins no run");
}

#[test]
fn a_finish_that_is_repeated_on_an_input_without_records_says_so_again() {
    let bench = Bench::new();
    let payload = bench.payload("");
    let context = bench.context();
    for _ in 0..2 {
        let messages = [part_of("removed", 0), summary_of(1)];
        let empty = finish(&context, &payload, &messages).expect_err("no row");
        assert_eq!((empty.code, empty.retry), (exit_code::INPUT, Retry::Again), "{empty}");
        assert!(empty.message.contains("none of its 1 shards has a record"), "{empty}");
    }
}

#[test]
fn an_empty_input_is_finished_if_the_plan_allows_it_and_only_once() {
    let bench = Bench::new();
    let payload = bench.payload("[input]\nallow_empty = true\n");
    let context = bench.context();
    finish(&context, &payload, &[summary_of(0)]).expect("finished");
    let output = bench.output();
    assert!(output.keys().any(|name| name.ends_with("_SUCCESS")), "{:?}", output.keys());
    finish(&context, &payload, &[summary_of(0)]).expect("finished before");
    assert_eq!(bench.output(), output);
}

#[test]
fn a_listing_that_feeds_scores_in_the_same_bundle_ends_with_the_first_failure() {
    let bench = Bench::new();
    (0..60).for_each(|number| bench.add_shard(&number.to_string()));
    let payload = bench.payload("");
    let one = |collection: &str| HashMap::from([("x".to_owned(), collection.to_owned())]);
    let mut fused = descriptor("unused:1", 1, function(urns::LIST, payload.encode()));
    fused.transforms.get_mut("middle").expect("a function").outputs = one("listed");
    let score = function(urns::SCORE, payload.encode());
    let score = PTransform { inputs: one("listed"), outputs: one("done"), ..score };
    fused.transforms.insert("score".to_owned(), score);
    let (pieces, input) = crossbeam_channel::unbounded();
    for piece in [Piece::Data(element(b"")), Piece::Last] {
        pieces.send(piece).expect("a receiver");
    }
    let (stream, _sent) = mpsc::channel(8);
    let (_stop, stopping) = watch::channel(false);
    let state = Arc::<BundleState>::default();
    let bundle = Bundle {
        instruction: "1".to_owned(),
        graph: Arc::new(Graph::new(&fused).0),
        coders: Arc::new(fused.coders),
        state: Arc::clone(&state),
        inputs: vec![input],
        streams: HashMap::from([("unused:1".to_owned(), stream)]),
        context: Arc::new(bench.context()),
        stopping,
    };
    let failure = bundle.run().expect_err("there is no model");
    assert!(failure.message.contains("none.onnx"), "{failure}");
    let listed = state.counts()["listed"];
    assert!(listed < 20, "{listed} of 62 shards were listed");
}
