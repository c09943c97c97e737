//! The scorer from its callers to the stored parts, with the tests' own shards and engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use arrow_array::{Array, RecordBatch};
use arrow_cast::display::array_value_to_string;
use object_store::local::LocalFileSystem;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::commit::testing::seal;
use crate::commit::{RunRecord, SCHEMA_VERSION};
use crate::decode::PANICKING_ID;
use crate::engine::{Engine, Inference};
use crate::error::{ReadError, StorageError, WrongChecksum};
use crate::flow::StopSignal;
use crate::items::{
    BatchShape, Call, Entry, Inferred, PixelElement, PixelsRef, RawRecord, RecordMeta, Rejected,
    ShardContent, ShardFormat, Status,
};
use crate::pipeline::{Bounds, OpenShard};
use crate::progress::ProgressCounters;
use crate::sink::Sink;
use crate::source::{OpenedShard, Skips};

/// Scores of a row: the sum of its bytes, and their number.
struct Sums;

const SHAPE: BatchShape = BatchShape { batch_size: 32, row_elements: 12, element: PixelElement::U8 };

impl Engine for Sums {
    fn describe(&self) -> String {
        "sums".to_owned()
    }

    fn batch_shape(&self) -> BatchShape {
        SHAPE
    }

    fn classes(&self) -> usize {
        2
    }

    fn computes_on_cpu(&self) -> bool {
        false
    }

    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String> {
        let rows = pixels.rgb()?.chunks(SHAPE.row_elements).take(rows);
        let scores = rows.flat_map(|row| [row.iter().map(|&byte| f32::from(byte)).sum(), row.len() as f32]);
        let none = Duration::ZERO;
        Ok(Inference { scores: scores.collect(), h2d: none, compute: none, d2h: none })
    }

    fn infer_floats(&mut self, _: &[f32]) -> Result<Vec<f32>, String> {
        Err("takes bytes".to_owned())
    }
}

/// Number of records of a shard: none to some hundred.
fn records_of(shard: u64) -> u64 {
    match shard % 5 {
        0 => 0,
        1 => 1,
        2 => 7,
        3 => 40,
        _ => 150 + shard,
    }
}

/// A record: an image whose pixels depend on its shard and index, or, for every eleventh, no image.
fn record(shard: u64, index: u64) -> RawRecord {
    if index % 11 == 10 {
        return RawRecord::new(index.to_string(), Err(Rejected::new(Status::MissingImage, "no image")));
    }
    let pixel = image::Rgb([shard as u8, index as u8, (shard * 7 + index * 3) as u8]);
    let mut bmp = Vec::new();
    let image = image::RgbImage::from_pixel(1, 1, pixel);
    image.write_to(&mut std::io::Cursor::new(&mut bmp), image::ImageFormat::Bmp).expect("an image in memory");
    RawRecord::new(index.to_string(), Ok(bmp.into()))
}

fn opened(shard: u64, first: u64) -> OpenedShard {
    let records = (first..records_of(shard)).map(move |index| Ok(record(shard, index)));
    OpenedShard { first_record: first, records: Box::new(records), skips: Skips::default() }
}

pub(crate) fn sound() -> Box<OpenShard> {
    Box::new(|shard, first, _| Ok(opened(shard.index, first)))
}

pub(crate) fn shard(index: u64) -> ShardRef {
    ShardRef::new(index, format!("shard-{index}"), ShardFormat::Webdataset, ShardContent::Objects(Vec::new()))
}

/// A folder with an output, and what a scorer needs.
pub(crate) struct Bench {
    pub(crate) runtime: Runtime,
    pub(crate) folder: TempDir,
    plan: Plan,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = Plan::for_tests("");
        Self { runtime: Runtime::new().expect("runtime"), folder, plan }
    }

    fn output(&self, name: &str) -> Output {
        let store = LocalFileSystem::new_with_prefix(self.folder.path()).expect("a store");
        let local = self.folder.path().join(name);
        Output::new(Arc::new(store), name.into(), name.to_owned(), Some(local), self.runtime.handle().clone())
    }

    /// The sink of a new attempt at the run in `output`, and the run's id.
    fn sink(&self, output: &Output) -> (ParquetSink, String) {
        let record = RunRecord {
            schema_version: SCHEMA_VERSION.to_owned(),
            sluice_version: env!("CARGO_PKG_VERSION").to_owned(),
            run_id: format!("run-{}", output.uri()),
            started_at: String::new(),
            plan_sha256: String::new(),
            limit: None,
            determinants: serde_json::json!({}),
            removing: None,
        };
        let claim = claim(output, &record, &AttemptNote::begun(0, 1)).expect("the output is this run's");
        let model_sha256 = String::new();
        let sink = ParquetSink::new(output.clone(), &self.plan, model_sha256, 2, claim.note, Vec::new());
        (sink.expect("a sink"), record.run_id)
    }

    /// The scorer of a new attempt at the run in `name`.
    fn scorer(&self, name: &str, open: Box<OpenShard>) -> Scorer {
        self.scorer_with(Box::new(Sums), name, open)
    }

    pub(crate) fn scorer_with(
        &self,
        mut engine: Box<dyn Engine>,
        name: &str,
        open: Box<OpenShard>,
    ) -> Scorer {
        let output = self.output(name);
        let (sink, run_id) = self.sink(&output);
        let bounds = Bounds::new(&self.plan, 2, 1);
        let stages = Stages {
            open,
            decoder: Decoder::new(&self.plan.preprocess, 1 << 20, PixelElement::U8),
            decode_threads: 2,
            buffers: engine.buffers(bounds.batch_buffers(1)).expect("memory"),
            engines: vec![engine],
            sink: Box::new(sink),
            bounds,
            meters: Meters::new(bounds.look_ahead + 1, 2, 1),
        };
        let pipeline = Pipeline::start(stages).expect("threads");
        Scorer { pipeline, output, run_id, reading: Mutex::default() }
    }

    /// Rows of a part, without the columns that differ between runs.
    fn rows(&self, output: &str, part: &PartReport) -> Vec<Vec<String>> {
        let path: PathBuf = self.folder.path().join(output).join(&part.path);
        let file = std::fs::File::open(path).expect("the part is stored");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("rows");
        reader.flat_map(|batch| table(&batch.expect("rows"))).collect()
    }
}

fn table(rows: &RecordBatch) -> Vec<Vec<String>> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns());
    let columns: Vec<_> = columns
        .filter(|(field, _)| !["run_id", "batch_id"].contains(&field.name().as_str()))
        .map(|(_, column)| column)
        .collect();
    let cell = |column: &dyn Array, row| array_value_to_string(column, row).expect("a value");
    (0..rows.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect()
}

#[test]
fn shards_scored_from_many_threads_have_the_rows_of_shards_scored_one_after_another() {
    const THREADS: u64 = 8;
    const SHARDS: u64 = 200;
    const UNREADABLE: u64 = 33;
    const PANICKING: u64 = 64;
    const STOPPED: u64 = 99;
    let bench = Bench::new();
    let alone = bench.scorer("alone", sound());
    let expected: Vec<_> =
        (0..SHARDS).map(|index| alone.score(&shard(index), CallOptions::default()).expect("sound")).collect();
    alone.close().expect("stored");

    let stop = StopSignal::default();
    let asked = stop.clone();
    let faulty = Arc::new(AtomicBool::new(true));
    let is_faulty = Arc::clone(&faulty);
    let open: Box<OpenShard> = Box::new(move |shard, first, _| {
        let index = shard.index;
        if !is_faulty.load(SeqCst) {
            return Ok(opened(index, first));
        }
        if index == UNREADABLE {
            let source = object_store::Error::Generic { store: "test", source: "no route to host".into() };
            return Err(ReadError::Storage(StorageError { uri: "gs://bucket/33".to_owned(), source }));
        }
        let mut opened = opened(index, first);
        let asked = asked.clone();
        opened.records = Box::new(opened.records.enumerate().map(move |(at, record)| match record {
            Ok(record) if index == PANICKING && at == 100 => {
                Ok(RawRecord { image_id: PANICKING_ID.to_owned(), ..record })
            }
            record => {
                if index == STOPPED && at == 100 {
                    asked.drain();
                }
                record
            }
        }));
        Ok(opened)
    });
    let scorer = bench.scorer("together", open);
    let next = std::sync::atomic::AtomicU64::new(0);
    let score = |index| {
        let stop = if index == STOPPED { stop.clone() } else { StopSignal::default() };
        let options = CallOptions { stop, ..CallOptions::default() };
        let progress = Arc::clone(&options.progress);
        (index, scorer.score(&shard(index), options), progress.counts().rows)
    };
    let scored: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let numbers =
                        std::iter::from_fn(|| Some(next.fetch_add(1, SeqCst)).filter(|&n| n < SHARDS));
                    numbers.map(score).collect::<Vec<_>>()
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });
    let mut failed = Vec::new();
    for (index, scored, rows) in scored {
        match scored {
            Ok(part) => {
                assert_eq!(rows, records_of(index), "progress of shard {index}");
                assert_eq!(bench.rows("together", &part), bench.rows("alone", &expected[index as usize]));
            }
            Err(error) => failed.push((index, error.to_string())),
        }
    }
    failed.sort_unstable();
    let [(UNREADABLE, unreadable), (PANICKING, panicked), (STOPPED, stopped)] = &failed[..] else {
        panic!("{failed:?}")
    };
    assert!(unreadable.contains("no route to host"), "{unreadable}");
    assert!(panicked.contains("the decode stage panicked"), "{panicked}");
    assert!(stopped.contains("shard-99 was stopped"), "{stopped}");

    // a second call resumes from checkpoints, and scores no stored shard again
    faulty.store(false, SeqCst);
    for index in [UNREADABLE, PANICKING, STOPPED] {
        let part = scorer.score(&shard(index), CallOptions::default()).expect("the reader works");
        assert_eq!(bench.rows("together", &part), bench.rows("alone", &expected[index as usize]));
        assert_eq!(scorer.score(&shard(index), CallOptions::default()).expect("stored"), part);
    }
    let report = scorer.close().expect("stored");
    assert_eq!(report.parts.len() as u64, SHARDS);
    assert_eq!(report.batches.len(), 1, "one batches part of all shards");
}

/// Opens shards whose reader calls `act` once rows of them have arrived in the sink.
fn stopped_by(
    arrived: Arc<ProgressCounters>,
    act: impl Fn() + Clone + Send + Sync + 'static,
) -> Box<OpenShard> {
    Box::new(move |shard, first, _| {
        let (act, arrived) = (act.clone(), Arc::clone(&arrived));
        let opened = opened(shard.index, first);
        let records = opened.records.enumerate().map(move |(at, record)| {
            if at == 140 {
                while arrived.counts().rows == 0 {
                    std::thread::yield_now();
                }
                act();
            }
            record
        });
        Ok(OpenedShard { records: Box::new(records), ..opened })
    })
}

#[test]
fn a_stopped_shard_is_resumed_after_its_rows_by_another_scorer() {
    let bench = Bench::new();
    let options = CallOptions::default();
    let (asked, arrived) = (options.stop.clone(), Arc::clone(&options.progress));
    let first = bench.scorer("out", stopped_by(arrived, move || asked.drain()));
    let stopped = first.score(&shard(4), options).expect_err("stopped");
    assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
    first.close().expect("noted");

    let second = bench.scorer("out", sound());
    let options = CallOptions::default();
    let progress = Arc::clone(&options.progress);
    let part = second.score(&shard(4), options).expect("scored");
    let counts = progress.counts();
    assert_eq!((part.rows, counts.rows), (Some(154), 154));
    assert!(counts.reused_rows > 0, "{counts:?}");
    let indices: Vec<_> = bench.rows("out", &part).into_iter().map(|row| row[2].clone()).collect();
    assert_eq!(indices, (0..154).map(|index| index.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_scorer_leaves_nothing_in_an_output_that_was_finished_meanwhile() {
    let bench = Bench::new();
    let output = bench.output("out");
    let options = CallOptions::default();
    let (asked, arrived) = (options.stop.clone(), Arc::clone(&options.progress));
    let finished = output.clone();
    let scorer = bench.scorer(
        "out",
        stopped_by(arrived, move || {
            seal(&finished, "run-out");
            asked.drain();
        }),
    );
    let stopped = scorer.score(&shard(4), options).expect_err("stopped");
    assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
    assert!(
        bench.folder.path().join("out/_checkpoints").exists(),
        "the rows so far are stored before the answer"
    );
    scorer.close().expect("ended");
    let mut left: Vec<_> = std::fs::read_dir(bench.folder.path().join("out"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name != "_staging")
        .collect();
    left.sort();
    assert_eq!(left, ["_manifest.json", "_run.json"]);
}

#[test]
fn a_dropped_scorer_ends_its_threads_and_stores_no_torn_part() {
    let bench = Bench::new();
    let scorer = bench.scorer("out", sound());
    let ticket = scorer.submit(shard(4), Resume::default(), CallOptions::default()).expect("taken");
    drop(scorer);
    match ticket.wait() {
        Some(Ok(Scored::Part(part))) => assert_eq!(bench.rows("out", &part).len() as u64, records_of(4)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_checkpoint_keeps_rows_of_wrong_bytes_whatever_stops_the_shard() {
    for (stops, index) in [(false, 4), (true, 9)] {
        let bench = Bench::new();
        let options = CallOptions::default();
        let (asked, arrived) = (options.stop.clone(), Arc::clone(&options.progress));
        let scorer = bench.scorer(
            "out",
            Box::new(move |shard, first, _| {
                let (asked, arrived) = (asked.clone(), Arc::clone(&arrived));
                let opened = opened(shard.index, first);
                // the reader finds the mismatch at the object's end
                let wrong = std::iter::once_with(move || {
                    while arrived.counts().rows == 0 {
                        std::thread::yield_now();
                    }
                    if stops {
                        asked.drain();
                    }
                    let source = WrongChecksum { found: 1, expected: 2 }.into();
                    let source = object_store::Error::Generic { store: "test", source };
                    Err(ReadError::Storage(StorageError { uri: "gs://bucket/4".to_owned(), source }))
                });
                Ok(OpenedShard { records: Box::new(opened.records.chain(wrong)), ..opened })
            }),
        );
        let failed = scorer.score(&shard(index), options).expect_err("not whole");
        assert!(stops || failed.is_wrong_checksum(), "{failed}");
        let output = scorer.output().clone();
        scorer.close().expect("noted");
        let history = shard_history(&output, "run-out", &shard(index), &Mutex::default()).expect("readable");
        assert_eq!((history.part, history.resume), (None, Resume::default()));
    }
}

#[test]
fn rows_before_a_lost_batch_are_kept_in_a_checkpoint() {
    let bench = Bench::new();
    let (output, shard) = (bench.output("out"), shard(4));
    let (mut sink, run_id) = bench.sink(&output);
    let (call, ticket) = Call::new(shard.clone(), Resume::default(), CallOptions::default());
    let rejected = (0..3).map(|record_index| {
        let meta = RecordMeta {
            shard: Arc::clone(&call.shard),
            record_index,
            image_id: record_index.to_string(),
            member: None,
            image_bytes: 0,
            header: None,
        };
        Entry::Rejected(meta, Rejected::new(Status::Empty, "empty"))
    });
    let entries = [Entry::ShardStart(Arc::clone(&call))].into_iter().chain(rejected).collect();
    sink.accept(Inferred { entries, outcome: Ok(None) });
    sink.lose_batch();
    assert!(matches!(ticket.wait(), Some(Err(Error::StagePanicked { stage: "engine", .. }))));
    Box::new(sink).finish().expect("stored");
    let history = shard_history(&output, &run_id, &shard, &Mutex::default()).expect("readable");
    assert_eq!(history.resume.rows(), 3);
}

#[test]
fn a_call_for_one_shard_refuses_an_allowance() {
    let bench = Bench::new();
    let scorer = bench.scorer("out", sound());
    let allowance = Some(Arc::new(crate::items::Allowance::new(3)));
    let refused = scorer.score(&shard(4), CallOptions { allowance, ..CallOptions::default() });
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
}
