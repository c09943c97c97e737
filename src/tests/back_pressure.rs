//! The pipeline with a test source, a test engine and a test sink: how many records it admits while the sink is
//! stalled, and which calls fail after a fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use sluice::config::{Filter, Fit, PreprocessSection, Resize};
use sluice::decode::Decoder;
use sluice::engine::{Engine, Inference};
use sluice::error::{Error, ReadError, SinkError, StorageError};
use sluice::flow::StopSignal;
use sluice::items::{
    Allowance, BatchShape, Call, CallOptions, Cut, Entry, Inferred, Kept, PixelElement, PixelsRef, RawRecord,
    Rejected, Resume, Scored, ShardContent, ShardFormat, ShardRef, Status, Ticket,
};
use sluice::pipeline::{Bounds, Meters, OpenShard, Pipeline, Stages};
use sluice::report::{OutputReport, PartReport};
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

/// Time in which a source that is not blocked admits another record.
const QUIET: Duration = Duration::from_millis(500);

/// Time in which the queues fill on any machine.
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

/// An engine that gives scores of zero, and fails or panics at a given batch.
struct TestEngine {
    fails_at: Option<u64>,
    panics: bool,
    /// The engine finishes no batch before the other end is dropped.
    gate: Option<Receiver<()>>,
    batches: u64,
}

impl TestEngine {
    fn good() -> Self {
        Self { fails_at: None, panics: false, gate: None, batches: 0 }
    }

    /// An engine that finishes its first batch when `gate` opens.
    fn good_behind(gate: Receiver<()>) -> Self {
        Self { gate: Some(gate), ..Self::good() }
    }

    /// An engine that panics on its first batch when `gate` opens.
    fn panics_behind(gate: Receiver<()>) -> Self {
        Self { fails_at: Some(0), panics: true, gate: Some(gate), batches: 0 }
    }
}

impl Engine for TestEngine {
    fn describe(&self) -> String {
        "a test engine".to_owned()
    }

    fn infer_floats(&mut self, _: &[f32]) -> Result<Vec<f32>, String> {
        Err("no test compares engines".to_owned())
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
        self.batches += 1;
        if let Some(gate) = &self.gate {
            // fails at once if the gate is open
            let _ = gate.recv();
        }
        if self.fails_at == Some(self.batches - 1) {
            assert!(!self.panics, "the test engine panics");
            return Err("the device fell off the bus".to_owned());
        }
        let none = Duration::ZERO;
        Ok(Inference { scores: vec![0.0; rows], h2d: none, compute: none, d2h: none })
    }
}

/// A sink that blocks until the test drops the other end of `gate`, and then reports the records that it gets.
struct GatedSink {
    gate: Receiver<()>,
    seen: Sender<(u64, u64)>,
    open: Option<Arc<Call>>,
    /// The index of a shard that the sink cannot store.
    fails_at: Option<u64>,
}

impl Sink for GatedSink {
    fn accept(&mut self, inferred: Inferred) {
        // fails at once if the gate is open
        let _ = self.gate.recv();
        let Inferred { entries, outcome } = inferred;
        for entry in entries {
            match entry {
                Entry::ShardStart(call) => self.open = Some(call),
                Entry::Scored(meta) | Entry::Rejected(meta, _) => {
                    if let Err(failure) = &outcome {
                        self.answer(Err(failure.into()));
                    }
                    if self.fails_at == Some(meta.shard.index) {
                        let full = SinkError::Uri { uri: "out".into(), message: "disk full".into() };
                        self.answer(Err(full.into()));
                    }
                    self.seen.send((meta.shard.index, meta.record_index)).expect("the test listens");
                }
                Entry::Panicked(error) => self.answer(Err(error)),
                Entry::ShardEnd(end) => {
                    let part = PartReport { rows: Some(end.records), ..Default::default() };
                    self.answer(Ok(Scored::Part(part.into())));
                }
                Entry::ShardCut(Cut::Stopped) => self.answer(Ok(Scored::Stopped(Kept::default()))),
                Entry::ShardCut(Cut::Failed(error)) => self.answer(Err(error)),
                Entry::StoreBatches(stored) => stored.send(Ok(())).expect("the caller waits"),
            }
        }
    }

    fn lose_batch(&mut self) {
        self.open = None;
    }

    fn stop_signal(&self) -> Option<StopSignal> {
        None
    }

    fn stop(&mut self) {}

    fn finish(self: Box<Self>) -> Result<OutputReport, SinkError> {
        Ok(OutputReport::default())
    }
}

impl GatedSink {
    /// Answer the open call. Entries of a shard whose start was lost with a batch have none.
    fn answer(&self, scored: Result<Scored, Error>) {
        if let Some(open) = &self.open {
            open.answer(scored);
        }
    }
}

/// A sink without a gate.
fn ungated() -> (GatedSink, Receiver<(u64, u64)>) {
    let (_, gate) = bounded::<()>(0);
    let (seen_tx, seen) = unbounded();
    (GatedSink { gate, seen: seen_tx, open: None, fails_at: None }, seen)
}

/// Opens shards of `records` black images.
fn images(records: u64) -> Box<OpenShard> {
    let image = image();
    Box::new(move |_, first, _| {
        let image = image.clone();
        let records =
            (first..records).map(move |index| Ok(RawRecord::new(index.to_string(), Ok(image.clone()))));
        Ok(OpenedShard { first_record: first, records: Box::new(records), skips: Skips::default() })
    })
}

fn meters() -> Meters {
    Meters::new(BOUNDS.look_ahead + 1, THREADS, 1)
}

fn start(
    engine: TestEngine,
    sink: GatedSink,
    open: Box<OpenShard>,
    bounds: Bounds,
    meters: &Meters,
) -> Pipeline {
    start_decoding_to(PixelElement::U8, engine, sink, open, bounds, meters)
}

/// As [`start`], with a decoder that makes rows of `element`. The engine expects bytes.
fn start_decoding_to(
    element: PixelElement,
    engine: TestEngine,
    sink: GatedSink,
    open: Box<OpenShard>,
    bounds: Bounds,
    meters: &Meters,
) -> Pipeline {
    let mut engine: Box<dyn Engine> = Box::new(engine);
    let buffers = engine.buffers(bounds.batch_buffers(1)).expect("memory");
    let stages = Stages {
        open,
        decoder: Decoder::new(&preprocess(), 1 << 20, element),
        decode_threads: THREADS,
        engines: vec![engine],
        buffers,
        sink: Box::new(sink),
        bounds,
        meters: meters.clone(),
    };
    Pipeline::start(stages).expect("threads")
}

/// Submit shards in order. Returns the number of rows of each, or the reason for its failure.
fn score_all(pipeline: &Pipeline, shards: u64, options: &CallOptions) -> Vec<Result<u64, String>> {
    let more = pipeline.expect_more();
    let tickets: Vec<_> =
        (0..shards).map(|index| pipeline.submit(shard(index), Resume::default(), options.clone())).collect();
    drop(more);
    tickets.into_iter().map(|ticket| rows(ticket.and_then(|ticket| pipeline.wait(ticket)))).collect()
}

fn rows(scored: Result<Scored, Error>) -> Result<u64, String> {
    match scored {
        Ok(Scored::Part(part)) => Ok(part.rows.expect("a part has rows")),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Submit shards in order, and leave the pipeline running.
fn submit_all(pipeline: &Pipeline, shards: std::ops::Range<u64>) -> Vec<Ticket> {
    let more = pipeline.expect_more();
    let submit = |index| pipeline.submit(shard(index), Resume::default(), CallOptions::default());
    let tickets = shards.map(|index| submit(index).expect("taken")).collect();
    drop(more);
    tickets
}

/// Run `work` on a thread of its own, and fail if it does not end.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = bounded(1);
    std::thread::spawn(move || done.send(work()).expect("the test listens"));
    is_done.recv_timeout(PATIENCE).expect("it ends")
}

/// Assert that all calls end with the panic of `stage`, and that the pipeline can be closed.
fn assert_all_fail(mut pipeline: Pipeline, tickets: Vec<Ticket>, panic: &str) {
    let scored = ends(move || {
        let scored: Vec<_> = tickets.into_iter().map(|ticket| rows(pipeline.wait(ticket))).collect();
        drop(pipeline.finish());
        scored
    });
    let is_lost = |scored: &Result<u64, String>| scored.as_ref().is_err_and(|what| what.starts_with(panic));
    assert!(scored.iter().all(is_lost), "{scored:?}");
}

/// Assert that the source admits `expected` records, and then no more.
fn assert_stops_at(expected: u64, meters: &Meters) {
    let start = Instant::now();
    while meters.source.items() < expected && start.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let (_alive, never) = bounded::<()>(0);
    assert_eq!(never.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
    assert_eq!(meters.source.items(), expected);
}

/// Number of records in all stages while the sink is stalled.
fn admitted_records() -> u64 {
    // batches: the one that the sink is processing, a full sink queue, and the one in the batch stage
    let batches = 1 + BOUNDS.sink_queue + 1;
    // a full queue of decoded records, and the record that the dispatcher is waiting to enqueue
    let decoding = BOUNDS.decode_slots + 1;
    // a full stream for the shard being decoded, and for each shard read ahead
    let streams = (BOUNDS.look_ahead + 1) * BOUNDS.records_per_shard;
    (batches * BATCH_SIZE + decoding + streams) as u64
}

#[test]
fn a_stalled_sink_admits_exactly_what_the_queues_hold() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (mut sink, seen) = ungated();
    sink.gate = gate;
    let (shards, records) = (6, 100);
    let meters = meters();
    let mut pipeline = start(TestEngine::good(), sink, images(records), BOUNDS, &meters);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| score_all(&pipeline, shards, &CallOptions::default()));
        assert_stops_at(admitted_records(), &meters);
        drop(gate_holder);
        assert_eq!(running.join().expect("no panic"), vec![Ok(records); shards as usize]);
    });
    pipeline.finish().expect("no stage is lost");
    let all: Vec<_> = (0..shards).flat_map(|shard| (0..records).map(move |record| (shard, record))).collect();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), all, "records are missing, repeated or out of order");
}

#[test]
fn a_stopped_call_finishes_the_admitted_records_and_admits_no_more() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (mut sink, seen) = ungated();
    sink.gate = gate;
    let options = CallOptions::default();
    let meters = meters();
    let pipeline = start(TestEngine::good(), sink, images(1000), BOUNDS, &meters);
    let scored = std::thread::scope(|scope| {
        let running = scope.spawn(|| score_all(&pipeline, 3, &options));
        assert_stops_at(admitted_records(), &meters);
        options.stop.drain();
        drop(gate_holder);
        running.join().expect("no panic")
    });
    assert!(
        scored
            .iter()
            .all(|scored| scored.as_ref().is_err_and(|what| what.contains("Stopped") || what == "NotBegun")),
        "{scored:?}"
    );
    let seen: Vec<_> = seen.try_iter().collect();
    let expected: Vec<_> = (0..seen.len() as u64).map(|record| (0, record)).collect();
    assert_eq!(seen, expected, "not the first records of the first shard");
    let batches = 1 + BOUNDS.sink_queue + 1;
    assert!(seen.len() <= batches * BATCH_SIZE + BOUNDS.decode_slots + 1, "{} records", seen.len());
}

#[test]
fn a_batch_that_fails_ends_the_shards_that_have_a_row_in_it_and_no_other() {
    let (sink, _seen) = ungated();
    // with six records per shard and four rows per batch, the batches hold shards 0, then 0 and 1, then 1, then 2 …
    let engine = TestEngine { fails_at: Some(1), ..TestEngine::good() };
    let pipeline = start(engine, sink, images(6), BOUNDS, &meters());
    let scored = score_all(&pipeline, 4, &CallOptions::default());
    let failed = || Err("inference failed on batch 1: the device fell off the bus".to_owned());
    assert_eq!(scored, [failed(), failed(), Ok(6), Ok(6)]);
    // no buffer is lost: more batches follow than there are buffers
    assert_eq!(score_all(&pipeline, 20, &CallOptions::default()), vec![Ok(6); 20]);
}

#[test]
fn an_engine_that_panics_is_not_called_again_and_every_call_fails() {
    let (sink, _seen) = ungated();
    let engine = TestEngine { fails_at: Some(1), panics: true, ..TestEngine::good() };
    let pipeline = start(engine, sink, images(4), BOUNDS, &meters());
    let scored = score_all(&pipeline, 20, &CallOptions::default());
    let panicked = "the engine stage panicked: the test engine panics";
    assert_eq!(scored[0], Ok(4));
    assert!(scored[1..].iter().all(|scored| *scored == Err(panicked.to_owned())), "{scored:?}");
}

#[test]
fn a_shard_that_cannot_be_stored_or_read_leaves_the_others_alone() {
    let (mut sink, _seen) = ungated();
    sink.fails_at = Some(1);
    let good = images(5);
    let open: Box<OpenShard> = Box::new(move |shard, first, turn| match shard.index {
        3 => Err(ReadError::Storage(StorageError {
            uri: "gs://bucket/3".to_owned(),
            source: object_store::Error::Generic { store: "test", source: "no route to host".into() },
        })),
        5 => panic!("the test reader panics"),
        _ => good(shard, first, turn),
    });
    let pipeline = start(TestEngine::good(), sink, open, BOUNDS, &meters());
    let mut scored = score_all(&pipeline, 8, &CallOptions::default());
    assert_eq!(scored.remove(5), Err("the source stage panicked: the test reader panics".to_owned()));
    let unread = scored.remove(3).expect_err("its store fails");
    assert!(unread.contains("gs://bucket/3: no route to host"), "{unread}");
    assert_eq!(scored.remove(1), Err("output out: disk full".to_owned()));
    assert_eq!(scored, vec![Ok(5); 5]);
}

#[test]
fn calls_from_many_threads_share_batches_and_get_their_own_answers() {
    let (sink, seen) = ungated();
    let meters = meters();
    let pipeline = start(TestEngine::good(), sink, images(7), BOUNDS, &meters);
    let (threads, shards) = (8, 25);
    let more = pipeline.expect_more();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..threads)
            .map(|thread| {
                let pipeline = &pipeline;
                scope.spawn(move || {
                    (0..shards)
                        .map(|number| {
                            let shard = shard(thread * shards + number);
                            let ticket = pipeline.submit(shard, Resume::default(), CallOptions::default());
                            ticket.expect("taken")
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let tickets: Vec<_> =
            callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect();
        drop(more);
        tickets.into_iter().for_each(|ticket| assert_eq!(rows(pipeline.wait(ticket)), Ok(7)));
    });
    let all = threads * shards * 7;
    assert_eq!(
        meters.engine.items(),
        all / BATCH_SIZE as u64,
        "a batch was padded while more calls were expected"
    );
    let mut seen: Vec<_> = seen.try_iter().collect();
    // the sort is stable: within a shard, records stay in the order of arrival
    seen.sort_by_key(|&(shard, _)| shard);
    let expected: Vec<_> =
        (0..threads * shards).flat_map(|shard| (0..7).map(move |record| (shard, record))).collect();
    assert_eq!(seen, expected);
}

/// Opens shards of `records` images. The store of the shard `hanging` does not answer before `gate` is dropped.
fn hanging_at(hanging: u64, gate: Receiver<()>, records: u64) -> Box<OpenShard> {
    let good = images(records);
    Box::new(move |shard, first, turn| {
        if shard.index == hanging {
            let _ = gate.recv();
        }
        good(shard, first, turn)
    })
}

#[test]
fn the_last_rows_of_a_shard_never_wait_for_calls_that_may_not_come() {
    let (sink, _seen) = ungated();
    let (hanging, gate) = bounded::<()>(0);
    let pipeline = start(TestEngine::good(), sink, hanging_at(1, gate, 5), BOUNDS, &meters());
    // a shard alone makes a full batch and a padded one
    assert_eq!(score_all(&pipeline, 1, &CallOptions::default()), [Ok(5)]);
    // together with a shard whose store hangs
    let first = pipeline.submit(shard(0), Resume::default(), CallOptions::default()).expect("taken");
    let second = pipeline.submit(shard(1), Resume::default(), CallOptions::default()).expect("taken");
    assert_eq!(rows(pipeline.wait(first)), Ok(5));
    assert!(!second.is_answered());
    drop(hanging);
    assert_eq!(rows(pipeline.wait(second)), Ok(5));
}

#[test]
fn last_rows_that_wait_for_a_busy_engine_share_its_next_batch() {
    let (sink, _seen) = ungated();
    let (gate_holder, gate) = bounded::<()>(0);
    let meters = meters();
    let pipeline = start(TestEngine::good_behind(gate), sink, images(1), BOUNDS, &meters);
    // each call is alone on its way, so each would get a batch of its own if the engine were free
    let tickets: Vec<_> = (0..3)
        .flat_map(|index| {
            let ticket = submit_all(&pipeline, index..index + 1);
            assert_stops_at(index + 1, &meters);
            ticket
        })
        .collect();
    drop(gate_holder);
    tickets.into_iter().for_each(|ticket| assert_eq!(rows(pipeline.wait(ticket)), Ok(1)));
    assert_eq!(meters.engine.items(), 2);
}

#[test]
fn a_call_that_is_stopped_while_its_store_hangs_does_not_block_the_next() {
    let (sink, _seen) = ungated();
    let (hanging, gate) = bounded::<()>(0);
    let pipeline = start(TestEngine::good(), sink, hanging_at(0, gate, 5), BOUNDS, &meters());
    let options = CallOptions::default();
    let hung = pipeline.submit(shard(0), Resume::default(), options.clone()).expect("taken");
    let next = pipeline.submit(shard(1), Resume::default(), CallOptions::default()).expect("taken");
    // a stopped call behind the hanging one is not begun
    let queued = CallOptions::default();
    let behind = pipeline.submit(shard(2), Resume::default(), queued.clone()).expect("taken");
    queued.stop.drain();
    assert_eq!(rows(pipeline.wait(behind)), Err("NotBegun".to_owned()));
    assert!(!next.is_answered());
    options.stop.drain();
    assert_eq!(rows(pipeline.wait(next)), Ok(5));
    assert!(rows(pipeline.wait(hung)).expect_err("stopped").contains("Stopped"));
    drop(hanging);
}

#[test]
fn a_lost_stage_fails_every_call_and_hangs_none() {
    let (sink, _seen) = ungated();
    let good = images(6);
    let mut pipeline =
        start_decoding_to(PixelElement::F32, TestEngine::good(), sink, good, BOUNDS, &meters());
    let scored = score_all(&pipeline, 20, &CallOptions::default());
    let is_lost = |scored: &Result<u64, String>| {
        scored.as_ref().is_err_and(|what| what.starts_with("the batch stage panicked: a decoded row"))
    };
    assert!(scored.iter().all(is_lost), "{scored:?}");
    pipeline.finish().expect("the sink has not failed");
}

const ENGINE_PANICS: &str = "the engine stage panicked: the test engine panics";

#[test]
fn batches_and_records_behind_a_lost_engine_leave_no_call_waiting() {
    let batch = BATCH_SIZE as u64;
    // one batch in the engine and a full queue
    let batches = 1 + BOUNDS.engine_queue as u64;
    // with one batch in the batch stage, and the last shard between decode and batch
    let records = batches + 1 + 1;
    for shards in [batches, records] {
        let (gate_holder, gate) = bounded::<()>(0);
        let (sink, _seen) = ungated();
        let meters = meters();
        let pipeline = start(TestEngine::panics_behind(gate), sink, images(batch), BOUNDS, &meters);
        let tickets = submit_all(&pipeline, 0..shards);
        assert_stops_at(shards * batch, &meters);
        drop(gate_holder);
        assert_all_fail(pipeline, tickets, ENGINE_PANICS);
    }
}

#[test]
fn shards_behind_a_lost_engine_leave_no_call_waiting() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (sink, _seen) = ungated();
    let meters = meters();
    let pipeline = start(TestEngine::panics_behind(gate), sink, images(100), BOUNDS, &meters);
    let tickets = submit_all(&pipeline, 0..1 + BOUNDS.look_ahead as u64);
    let batches = 1 + BOUNDS.engine_queue + 1;
    let streams = (BOUNDS.look_ahead + 1) * BOUNDS.records_per_shard;
    assert_stops_at((batches * BATCH_SIZE + BOUNDS.decode_slots + 1 + streams) as u64, &meters);
    drop(gate_holder);
    assert_all_fail(pipeline, tickets, ENGINE_PANICS);
}

#[test]
fn a_pipeline_without_an_engine_can_be_dropped() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (sink, _seen) = ungated();
    let (meters, batch) = (meters(), BATCH_SIZE as u64);
    let (with_images, image_shards, rejected) = (images(batch), 1 + BOUNDS.engine_queue as u64, 100);
    let open: Box<OpenShard> = Box::new(move |shard, first, turn| {
        if shard.index < image_shards {
            return with_images(shard, first, turn);
        }
        let empty = || Err(Rejected::new(Status::Empty, "empty"));
        let records = (first..rejected).map(move |index| Ok(RawRecord::new(index.to_string(), empty())));
        Ok(OpenedShard { first_record: first, records: Box::new(records), skips: Skips::default() })
    });
    let pipeline = start(TestEngine::panics_behind(gate), sink, open, BOUNDS, &meters);
    let mut tickets = submit_all(&pipeline, 0..image_shards);
    assert_stops_at(image_shards * batch, &meters);
    drop(gate_holder);
    assert_eq!(rows(pipeline.wait(tickets.remove(0))), Err(ENGINE_PANICS.to_owned()));
    // batches without rows need no engine: more of them than the sink's queue holds
    let last = submit_all(&pipeline, image_shards..image_shards + 1).remove(0);
    ends(move || drop(pipeline));
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_none()));
    assert_eq!(rows(last.wait().expect("answered")), Ok(rejected));
}

#[test]
fn a_lost_sink_leaves_no_call_waiting() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (mut sink, seen) = ungated();
    sink.gate = gate;
    let meters = meters();
    let pipeline = start(TestEngine::good(), sink, images(100), BOUNDS, &meters);
    let tickets = submit_all(&pipeline, 0..1 + BOUNDS.look_ahead as u64);
    assert_stops_at(admitted_records(), &meters);
    // the sink panics if nobody listens
    drop((seen, gate_holder));
    assert_all_fail(pipeline, tickets, "the sink stage panicked: the test listens");
}

#[test]
fn calls_after_a_lost_stage_fail_while_a_store_hangs() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (hanging, store) = bounded::<()>(0);
    let (sink, _seen) = ungated();
    let (engine, meters) = (TestEngine::panics_behind(gate), meters());
    let pipeline = start(engine, sink, hanging_at(1, store, 100), BOUNDS, &meters);
    let tickets = submit_all(&pipeline, 0..2);
    let batches = 1 + BOUNDS.engine_queue + 1;
    let decoding = BOUNDS.decode_slots + 1;
    assert_stops_at((batches * BATCH_SIZE + decoding + BOUNDS.records_per_shard) as u64, &meters);
    drop(gate_holder);
    let (pipeline, scored) = ends(move || {
        let tickets = submit_all(&pipeline, 2..12);
        let scored: Vec<_> = tickets.into_iter().map(|ticket| rows(pipeline.wait(ticket))).collect();
        (pipeline, scored)
    });
    assert_eq!(scored, vec![Err(ENGINE_PANICS.to_owned()); 10]);
    drop(hanging);
    assert_all_fail(pipeline, tickets, ENGINE_PANICS);
}

#[test]
fn calls_share_an_allowance_in_their_order() {
    let (sink, _seen) = ungated();
    let pipeline = start(TestEngine::good(), sink, images(5), BOUNDS, &meters());
    let options = CallOptions { allowance: Some(Arc::new(Allowance::new(12))), ..CallOptions::default() };
    let scored = score_all(&pipeline, 4, &options);
    assert_eq!(scored, [Ok(5), Ok(5), Ok(2), Err("NotBegun".to_owned())]);
}

#[test]
fn streams_hold_no_more_bytes_than_their_budget() {
    let (gate_holder, gate) = bounded::<()>(0);
    let (mut sink, _seen) = ungated();
    sink.gate = gate;
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
    let counted = Arc::clone(&pulled);
    let open: Box<OpenShard> = Box::new(move |_, first, _| {
        let pulled = Arc::clone(&counted);
        let records = (0..200).map(move |index: u32| {
            pulled.fetch_add(1, SeqCst);
            Ok(RawRecord::new(index.to_string(), Ok(image())))
        });
        Ok(OpenedShard { first_record: first, records: Box::new(records), skips: Skips::default() })
    });
    let pipeline = start(TestEngine::good(), sink, open, bounds, &meters);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| score_all(&pipeline, shards, &CallOptions::default()));
        // Decoded images have returned their bytes to the budget. The last images of the current shard have not: one
        // is with the dispatcher, and the others are in the stream.
        let decoded = (1 + BOUNDS.sink_queue + 1) * BATCH_SIZE + BOUNDS.decode_slots;
        assert_stops_at(decoded as u64 + current + ahead, &meters);
        drop(gate_holder);
        assert_eq!(running.join().expect("no panic"), vec![Ok(200); shards as usize]);
    });
    assert_eq!(pulled.load(SeqCst), shards * 200);
}
