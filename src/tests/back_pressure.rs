//! The whole flow with a sink and an engine of our own: what is admitted when the sink stands
//! still, and how faults end a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use sluice::config::{Filter, Fit, PreprocessSection, Resize};
use sluice::decode::Decoder;
use sluice::engine::{Engine, Inference};
use sluice::error::{Error, SinkError};
use sluice::flow::StopSignal;
use sluice::items::{
    BatchShape, Entry, Inferred, Outcome, PixelElement, PixelsRef, RawRecord, ShardContent, ShardFormat,
    ShardRef,
};
use sluice::pipeline::{Bounds, Meters, Stages};
use sluice::report::OutputReport;
use sluice::sink::Sink;
use sluice::source::{OpenedShard, Skips};

const BATCH_SIZE: usize = 4;
const THREADS: usize = 2;

const BOUNDS: Bounds = Bounds {
    look_ahead: 2,
    records_per_shard: 7,
    current_bytes: 1 << 20,
    ahead_bytes: 1 << 20,
    decode_slots: 11,
    engine_queue: 2,
    sink_queue: 5,
};

/// Long enough for a thread that has room to take one more step.
const QUIET: Duration = Duration::from_millis(500);

/// Long enough for the queues to fill, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn preprocess() -> PreprocessSection {
    let resize = Resize { width: 2, height: 2, fit: Fit::Stretch, filter: Filter::Nearest };
    PreprocessSection { resize, ..PreprocessSection::smallest() }
}

fn shape() -> BatchShape {
    BatchShape { batch_size: BATCH_SIZE, row_elements: 12, element: PixelElement::U8 }
}

fn shard(index: u64) -> ShardRef {
    let content = ShardContent::Objects(Vec::new());
    ShardRef::new(index, format!("shard-{index}"), ShardFormat::Files, content)
}

/// One black pixel.
fn image() -> bytes::Bytes {
    let mut bmp = Vec::new();
    let pixel = image::RgbImage::new(1, 1);
    pixel.write_to(&mut std::io::Cursor::new(&mut bmp), image::ImageFormat::Bmp).expect("an image in memory");
    bmp.into()
}

/// Fails or panics when its turn comes; scores are zero otherwise.
struct TestEngine {
    fails_at: Option<u64>,
    panics: bool,
    batches: u64,
}

impl TestEngine {
    fn good() -> Self {
        Self { fails_at: None, panics: false, batches: 0 }
    }
}

impl Engine for TestEngine {
    fn describe(&self) -> String {
        "a test engine".to_owned()
    }

    fn infer_floats(&mut self, _: &[f32]) -> Result<Vec<f32>, String> {
        Err("nothing is compared here".to_owned())
    }

    fn batch_shape(&self) -> BatchShape {
        shape()
    }

    fn classes(&self) -> usize {
        1
    }

    fn computes_on_cpu(&self) -> bool {
        false
    }

    fn infer(&mut self, _: PixelsRef<'_>, rows: usize) -> Result<Inference, String> {
        if self.fails_at == Some(self.batches) {
            assert!(!self.panics, "the test engine panics");
            return Err("the device fell off the bus".to_owned());
        }
        self.batches += 1;
        let none = Duration::ZERO;
        Ok(Inference { scores: vec![0.0; rows], h2d: none, compute: none, d2h: none })
    }
}

/// Takes nothing before the gate is opened (dropped), then remembers the records it was given.
struct GatedSink {
    gate: Receiver<()>,
    seen: Sender<(u64, u64)>,
    fails: bool,
}

impl Sink for GatedSink {
    fn accept(&mut self, inferred: Inferred) -> Result<(), SinkError> {
        // an open gate answers at once that nobody holds it
        let _ = self.gate.recv();
        if self.fails {
            return Err(SinkError::Uri { uri: "out".into(), message: "disk full".into() });
        }
        for entry in inferred.entries {
            if let Entry::Scored(meta) | Entry::Rejected(meta, _) = entry {
                self.seen.send((meta.shard.index, meta.record_index)).expect("the test listens");
            }
        }
        Ok(())
    }

    fn accept_warm_up(&mut self, _: Outcome) -> Result<(), SinkError> {
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<OutputReport, SinkError> {
        Ok(OutputReport::default())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn has_begun(&self, _shard: u64) -> bool {
        false
    }

    fn abandon(self: Box<Self>, _garbled: &[u64]) {}
}

struct Run {
    engine: TestEngine,
    sink: GatedSink,
    shards: u64,
    records: u64,
    stop: StopSignal,
}

impl Run {
    /// Run to the end; `admitted` ticks for each record a reader has handed to its stream.
    fn go(self, meters: &Meters) -> Result<OutputReport, Error> {
        let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(self.engine)];
        let mut buffers = engines[0].buffers(BOUNDS.batch_buffers(1))?;
        let stages = Stages {
            decoder: Decoder::new(&preprocess(), 1 << 20, PixelElement::U8),
            decode_threads: THREADS,
            engines: &mut engines,
            buffers: &mut buffers,
            sink: Box::new(self.sink),
            bounds: BOUNDS,
            meters,
            stop: &self.stop,
            limit: None,
        };
        let (records, image) = (self.records, image());
        stages.run((0..self.shards).map(|index| Ok(shard(index))), move |_, _| {
            let image = image.clone();
            let records =
                (0..records).map(move |index| Ok(RawRecord::new(index.to_string(), Ok(image.clone()))));
            Ok(OpenedShard { first_record: 0, records: Box::new(records), skips: Skips::default() })
        })
    }
}

fn meters() -> Meters {
    Meters::new(BOUNDS.look_ahead + 1, THREADS, 1)
}

/// See the source admit `expected` records, and then no more.
fn assert_stops_at(expected: u64, meters: &Meters) {
    let start = Instant::now();
    while meters.source.items() < expected && start.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let (_alive, never) = bounded::<()>(0);
    assert_eq!(never.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
    assert_eq!(meters.source.items(), expected);
}

/// What the flow holds while its sink stands still.
fn held_records() -> u64 {
    // in batches: one in the sink's hand, a full sink queue, one in the batch stage's hand
    let batches = 1 + BOUNDS.sink_queue + 1;
    // beyond them: a full queue of decoded records and one in the dispatcher's hand
    let decoding = BOUNDS.decode_slots + 1;
    // and a full stream for the shard being decoded and for each one read ahead
    let streams = (BOUNDS.look_ahead + 1) * BOUNDS.records_per_shard;
    (batches * BATCH_SIZE + decoding + streams) as u64
}

#[test]
fn a_stalled_sink_admits_exactly_what_the_queues_hold() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (seen_tx, seen) = unbounded();
    let (shards, records) = (6, 100);
    let run = Run {
        engine: TestEngine::good(),
        sink: GatedSink { gate, seen: seen_tx, fails: false },
        shards,
        records,
        stop: StopSignal::default(),
    };
    let meters = meters();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run.go(&meters));
        assert_stops_at(held_records(), &meters);
        drop(gate_holder);
        running.join().expect("no panic").expect("the run ends well");
    });
    let seen: Vec<_> = seen.try_iter().collect();
    let all: Vec<_> = (0..shards).flat_map(|shard| (0..records).map(move |record| (shard, record))).collect();
    assert_eq!(seen, all, "every record once, in input order");
}

#[test]
fn a_drain_finishes_what_was_admitted_and_takes_no_more() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (seen_tx, seen) = unbounded();
    let stop = StopSignal::default();
    let run = Run {
        engine: TestEngine::good(),
        sink: GatedSink { gate, seen: seen_tx, fails: false },
        shards: 3,
        records: 1000,
        stop: stop.clone(),
    };
    let meters = meters();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run.go(&meters));
        assert_stops_at(held_records(), &meters);
        stop.drain();
        drop(gate_holder);
        running.join().expect("no panic").expect("a drained run ends well");
    });
    let batches = 1 + BOUNDS.sink_queue + 1;
    let taken = batches * BATCH_SIZE + BOUNDS.decode_slots + 1;
    let expected: Vec<_> = (0..taken as u64).map(|record| (0, record)).collect();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), expected);
}

fn ungated(fails: bool) -> (GatedSink, Receiver<(u64, u64)>) {
    let (_, gate) = bounded::<()>(0);
    let (seen_tx, seen) = unbounded();
    (GatedSink { gate, seen: seen_tx, fails }, seen)
}

#[test]
fn an_engine_that_fails_ends_the_run_with_its_words() {
    let (sink, _seen) = ungated(false);
    let engine = TestEngine { fails_at: Some(3), panics: false, batches: 0 };
    let run = Run { engine, sink, shards: 5, records: 100, stop: StopSignal::default() };
    let error = run.go(&meters()).expect_err("the engine failed");
    assert_eq!(error.to_string(), "inference failed on batch 3: the device fell off the bus");
}

#[test]
fn a_panicking_stage_is_named() {
    let (sink, _seen) = ungated(false);
    let engine = TestEngine { fails_at: Some(0), panics: true, batches: 0 };
    let run = Run { engine, sink, shards: 5, records: 100, stop: StopSignal::default() };
    let error = run.go(&meters()).expect_err("the engine panicked");
    assert_eq!(error.to_string(), "the engine stage panicked: the test engine panics");
}

#[test]
fn a_sink_that_fails_ends_the_run_with_its_words() {
    let (sink, _seen) = ungated(true);
    let run = Run { engine: TestEngine::good(), sink, shards: 5, records: 100, stop: StopSignal::default() };
    let error = run.go(&meters()).expect_err("the sink failed");
    assert_eq!(error.to_string(), "output out: disk full");
}

#[test]
fn streams_hold_no_more_bytes_than_their_budget() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (seen_tx, _seen) = unbounded();
    let image_bytes = image().len() as u64;
    let pulled = Arc::new(AtomicU64::new(0));
    let meters = meters();
    // room for three images of the shard being decoded and for two of the others
    let (current, ahead) = (3, 2);
    let bounds = Bounds {
        current_bytes: current * image_bytes,
        ahead_bytes: ahead * image_bytes,
        records_per_shard: 100,
        ..BOUNDS
    };
    let shards = 5;
    std::thread::scope(|scope| {
        let (meters, pulled) = (&meters, Arc::clone(&pulled));
        let running = scope.spawn(move || {
            let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(TestEngine::good())];
            let mut buffers = engines[0].buffers(bounds.batch_buffers(1))?;
            let stages = Stages {
                decoder: Decoder::new(&preprocess(), 1 << 20, PixelElement::U8),
                decode_threads: THREADS,
                engines: &mut engines,
                buffers: &mut buffers,
                sink: Box::new(GatedSink { gate, seen: seen_tx, fails: false }),
                bounds,
                meters,
                stop: &StopSignal::default(),
                limit: None,
            };
            stages.run((0..shards).map(|index| Ok(shard(index))), move |_, _| {
                let pulled = Arc::clone(&pulled);
                let records = (0..200).map(move |index: u32| {
                    pulled.fetch_add(1, SeqCst);
                    Ok(RawRecord::new(index.to_string(), Ok(image())))
                });
                Ok(OpenedShard { first_record: 0, records: Box::new(records), skips: Skips::default() })
            })
        });
        // decoded images give their bytes back; the current shard's last ones still hold theirs,
        // one in the dispatcher's hand and the rest in the stream
        let decoded = (1 + BOUNDS.sink_queue + 1) * BATCH_SIZE + BOUNDS.decode_slots;
        assert_stops_at(decoded as u64 + current + ahead, meters);
        drop(gate_holder);
        running.join().expect("no panic").expect("the run ends well");
    });
    assert_eq!(pulled.load(SeqCst), shards * 200);
}
