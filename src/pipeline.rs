//! The only file that knows all stages. It wires them, keeps them running, and takes calls.
//!
//! ```text
//! calls → source ⇒ decode → batch → engine(s) → sink → answers
//!         readers  rayon    1 thread 1 each      2 threads
//! ```
//!
//! - The stages run from [`Pipeline::start`] until [`Pipeline::finish`], even if single calls fail.
//! - Every queue is bounded ([`Bounds`]), so memory is bounded too ([`MemoryBound`]), however many calls are waiting.
//! - Shards are taken in the order of their calls, one after another, so records keep their order.
//! - A shard that fails ends its own call. If a stage is lost to a panic, every call that needs it gets an error. No
//!   call waits for ever, because a channel without a receiver drops its items ([`channel`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::select;
use serde::Serialize;

use crate::batch::{self, BufferPool};
use crate::decode::{self, Decoder};
use crate::engine::{self, Engine};
use crate::error::{EngineError, Error, ReadError, panic_message};
use crate::flow::{
    Arrivals, BudgetLimits, Halt, StageMeter, StageShare, StopSignal, channel, hand_over, lock, spawn_stage,
};
use crate::items::{
    BatchBuffer, BatchShape, Call, CallOptions, Feed, Outcome, Resume, Scored, ShardRef, Ticket,
};
use crate::plan::Plan;
use crate::report::OutputReport;
use crate::sink::{self, Sink};
use crate::source::{self, OpenedShard, ReadAhead, Turn};

/// Capacities of all queues, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Shard streams waiting for their turn: the plan's `look_ahead`. One more is being decoded,
    /// and each has a reader.
    pub look_ahead: usize,
    /// Records waiting in one stream. Thumbnails of a few kB reach this before the byte bound;
    /// a batch or two of them are ready when a shard's turn comes.
    pub records_per_shard: usize,
    /// Encoded bytes of the shard being decoded, from reading to decoded: the longest image the
    /// plan allows, and more than a hundred ordinary photos.
    pub current_bytes: u64,
    /// Encoded bytes of all shards read ahead: some thirty ordinary photos. That is enough when a shard ends, because
    /// the reader of the next one is running. The store's responses that a reader holds come on top.
    pub ahead_bytes: u64,
    /// Records between dispatch and batch. One batch, so that a slow image delays nothing while
    /// the batch before it fills, and four for each thread, so that no thread runs out of work.
    pub decode_slots: usize,
    /// Batches waiting for an engine: one for each engine, and one more to even out the supply.
    pub engine_queue: usize,
    /// Batches reserved in the sink's order: those queued, those in the engines, and two whose
    /// rows are waiting to be written.
    pub sink_queue: usize,
}

impl Bounds {
    /// The bounds of a plan with these numbers of threads and engines.
    pub fn new(plan: &Plan, decode_threads: usize, engines: usize) -> Self {
        let engine_queue = engines + 1;
        Self {
            look_ahead: plan.input.look_ahead,
            records_per_shard: 256,
            current_bytes: plan.input.max_image_bytes,
            ahead_bytes: plan.input.max_image_bytes / 4,
            decode_slots: plan.engine.batch_size + 4 * decode_threads,
            engine_queue,
            sink_queue: engine_queue + engines + 2,
        }
    }

    /// Batch buffers of a run: one being filled, those queued, and those in the engines.
    pub fn batch_buffers(&self, engines: usize) -> usize {
        1 + self.engine_queue + engines
    }

    fn readers(&self) -> usize {
        self.look_ahead + 1
    }
}

/// The most memory that queues and decoders can hold, in bytes; the model's own comes on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryBound {
    /// Responses of stores, and unfinished records, that shard readers hold.
    pub readers_bytes: u64,
    /// Encoded images, read and not yet decoded.
    pub encoded_bytes: u64,
    /// Decoded rows waiting for their batch.
    pub rows_bytes: u64,
    /// Batch buffers in circulation.
    pub batches_bytes: u64,
    /// Scores waiting to be written, rows being encoded, and finished parts on their way to a store.
    pub sink_bytes: u64,
    /// Pages of the Parquet shard being decoded, if they are as long as the limit.
    pub parquet_pages_bytes: u64,
    /// Decoders, if every thread meets an image of `max_pixels` at once.
    pub decoders_bytes: u64,
}

impl MemoryBound {
    /// The bound for a plan with these queues and engines.
    pub fn new(
        plan: &Plan,
        bounds: &Bounds,
        shape: BatchShape,
        classes: usize,
        decode_threads: usize,
        engines: usize,
    ) -> Self {
        let row_bytes = shape.bytes() / shape.batch_size as u64;
        Self {
            readers_bytes: bounds.readers() as u64 * (source::READER_BYTES + plan.input.max_image_bytes),
            parquet_pages_bytes: source::parquet_pages_bytes(plan.input.max_page_bytes),
            // bytes read ahead count as current when their shard's turn comes, and others replace them
            encoded_bytes: bounds.current_bytes + 2 * bounds.ahead_bytes,
            rows_bytes: (bounds.decode_slots as u64 + 2) * row_bytes,
            batches_bytes: bounds.batch_buffers(engines) as u64 * shape.bytes(),
            // 4 rows more: the scores and class indices of the last row before an encoding, in columns that grow by
            // doubling
            sink_bytes: ((bounds.sink_queue * shape.batch_size + 4) * classes * size_of::<f32>()) as u64
                + sink::PARTS_BYTES,
            decoders_bytes: decode_threads as u64
                * (plan.preprocess.max_pixels * Decoder::MAX_BYTES_PER_PIXEL + Decoder::CODEC_BYTES),
        }
    }

    /// All but the decoders and long pages.
    pub fn queues_bytes(&self) -> u64 {
        self.readers_bytes + self.encoded_bytes + self.rows_bytes + self.batches_bytes + self.sink_bytes
    }
}

/// The meters of all stages, shared with the progress display.
#[derive(Debug, Clone)]
pub struct Meters {
    /// Of the readers.
    pub source: Arc<StageMeter>,
    /// Of the decode pool.
    pub decode: Arc<StageMeter>,
    /// Of the batch stage.
    pub batch: Arc<StageMeter>,
    /// Of the engines.
    pub engine: Arc<StageMeter>,
    /// Of the sink.
    pub sink: Arc<StageMeter>,
}

impl Meters {
    /// Meters at zero for stages with these numbers of threads.
    pub fn new(readers: usize, decode_threads: usize, engines: usize) -> Self {
        let meter = |name, workers| Arc::new(StageMeter::new(name, workers));
        Self {
            source: meter("source", readers),
            decode: Arc::new(StageMeter::dispatched("decode", decode_threads, 1)),
            batch: meter("batch", 1),
            engine: meter("engine", engines),
            sink: meter("sink", 1),
        }
    }

    /// How each stage spent a run that took `wall`, in flow order.
    pub fn shares(&self, wall: Duration) -> Vec<StageShare> {
        [&self.source, &self.decode, &self.batch, &self.engine, &self.sink]
            .map(|meter| meter.share(wall))
            .into()
    }
}

/// Opens a shard at a record.
pub type OpenShard = dyn Fn(&ShardRef, u64, &Turn) -> Result<OpenedShard, ReadError> + Send + Sync;

/// What the stages are made of.
pub struct Stages {
    /// Opens the shards.
    pub open: Box<OpenShard>,
    /// Turns encoded images into rows.
    pub decoder: Decoder,
    /// Threads of the decode pool.
    pub decode_threads: usize,
    /// At least one, all with the same batch shape.
    pub engines: Vec<Box<dyn Engine>>,
    /// [`Bounds::batch_buffers`] of them, of the engines' own kind.
    pub buffers: Vec<Box<dyn BatchBuffer>>,
    /// Takes what leaves the engines.
    pub sink: Box<dyn Sink>,
    /// Limits on what is in flight.
    pub bounds: Bounds,
    /// The meters of the stages.
    pub meters: Meters,
}

/// Stages that are running.
pub struct Pipeline {
    calls: Option<crossbeam_channel::Sender<Feed<Arc<Call>>>>,
    arrivals: Arc<Arrivals>,
    panics: Arc<Panics>,
    stages: Vec<JoinHandle<()>>,
    sink: Option<JoinHandle<Option<Box<dyn Sink>>>>,
    sink_meter: Arc<StageMeter>,
}

impl Pipeline {
    /// Start all stages.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system has too few threads.
    ///
    /// # Panics
    /// If there is no engine.
    pub fn start(stages: Stages) -> Result<Self, Error> {
        let Stages { open, decoder, decode_threads, engines, buffers, sink, bounds, meters } = stages;
        let shape = engines.first().expect("a pipeline has at least one engine").batch_shape();
        let shares_cores = engines.iter().any(|engine| engine.computes_on_cpu());
        let pool = decode::thread_pool(decode_threads, shares_cores)
            .map_err(|error| Error::threads(decode_threads, &error))?;

        // a rendezvous: a call is taken only when the source can begin with it
        let (calls, called) = crossbeam_channel::bounded(0);
        let (stream_tx, stream_rx) = channel(bounds.look_ahead, &meters.source, &meters.decode);
        let (decoded_tx, decoded_rx) = channel(bounds.decode_slots, &meters.decode, &meters.batch);
        let (batch_tx, batch_rx) = channel(bounds.engine_queue, &meters.batch, &meters.engine);
        let (inferred_tx, inferred_rx) = channel(bounds.sink_queue, &meters.batch, &meters.sink);
        let (used_tx, used_rx) = crossbeam_channel::bounded(buffers.len());
        let buffers = BufferPool::new(buffers, used_rx, engines.len());

        let (arrivals, panics) = (Arc::new(Arrivals::default()), Arc::new(Panics::default()));
        let mut running = Self {
            calls: Some(calls),
            arrivals: Arc::clone(&arrivals),
            panics: Arc::clone(&panics),
            stages: Vec::new(),
            sink: None,
            sink_meter: Arc::clone(&meters.sink),
        };
        let read_ahead = ReadAhead {
            readers: bounds.readers(),
            records_per_shard: bounds.records_per_shard,
            budget: BudgetLimits { current_bytes: bounds.current_bytes, ahead_bytes: bounds.ahead_bytes },
        };
        let (source_meter, decode_meter) = (Arc::clone(&meters.source), Arc::clone(&meters.decode));
        running.spawn("source", called, move |called| {
            source::run(called, open, stream_tx, read_ahead, &source_meter, &decode_meter);
        })?;
        let (ends, meter) = ((stream_rx, decoded_tx), Arc::clone(&meters.decode));
        // a stage that ends because its neighbour ended is not at fault
        running.spawn("decode", ends, move |(streams, decoded)| {
            let _ = decode::run(streams, decoded, decoder, &pool, &arrivals, &meter);
        })?;
        let (ends, meter) = ((decoded_rx, batch_tx, inferred_tx), Arc::clone(&meters.batch));
        running.spawn("batch", ends, move |(decoded, batches, inferred)| {
            let _ = batch::run(decoded, batches, inferred, buffers, shape, &meter);
        })?;
        for mut engine in engines {
            let (ends, meter) = ((batch_rx.clone(), used_tx.clone()), Arc::clone(&meters.engine));
            let panics = Arc::clone(&panics);
            running.spawn("engine", ends, move |(batches, used)| {
                if let Err(message) = engine::run(engine.as_mut(), batches, used, &meter) {
                    panics.add("engine", message);
                }
            })?;
        }
        drop((batch_rx, used_tx));
        let meter = Arc::clone(&meters.sink);
        let sink = spawn_stage("sink", move || {
            let mut sink = sink;
            panics.guard("sink", || sink::run(sink.as_mut(), &inferred_rx, &meter)).map(|()| sink)
        })
        .map_err(|error| Error::threads(1, &error))?;
        running.sink = Some(sink);
        Ok(running)
    }

    /// Start a stage. Its channel ends are dropped only after its panic is recorded: a caller who finds them gone
    /// reports the panic.
    fn spawn<E: Send + 'static>(
        &mut self,
        stage: &'static str,
        ends: E,
        work: impl FnOnce(&E) + Send + 'static,
    ) -> Result<(), Error> {
        let panics = Arc::clone(&self.panics);
        let guarded = move || panics.guard(stage, || work(&ends)).unwrap_or_default();
        let started = spawn_stage(stage, guarded).map_err(|error| Error::threads(1, &error))?;
        self.stages.push(started);
        Ok(())
    }

    /// Begin to score a shard. Blocks until the source takes it, or its call asks to stop.
    ///
    /// # Errors
    /// [`Error::StagePanicked`] when the source has panicked.
    pub fn submit(&self, shard: ShardRef, resume: Resume, options: CallOptions) -> Result<Ticket, Error> {
        let stop = options.stop.clone();
        let (call, ticket) = Call::new(shard, resume, options);
        let calls = self.calls.as_ref().expect("open until the pipeline is closed");
        self.arrivals.expect();
        match hand_over(calls, Feed::Shard(Arc::clone(&call)), &stop) {
            Ok(()) => Ok(ticket),
            Err(Halt::Stopped) => {
                self.flush_if_last();
                call.answer(Ok(Scored::NotBegun));
                Ok(ticket)
            }
            Err(Halt::Ended) => Err(self.lost()),
        }
    }

    /// Wait for the answer to a call. Blocks.
    ///
    /// # Errors
    /// What failed the shard, or [`Error::StagePanicked`] when a stage has panicked.
    pub fn wait(&self, ticket: Ticket) -> Result<Scored, Error> {
        ticket.wait().unwrap_or_else(|| Err(self.lost()))
    }

    /// Store a batches part with all batches so far. Blocks. Returns whether they are stored; not if `stop` came first.
    ///
    /// # Errors
    /// Those of the store, and [`Error::StagePanicked`] when a stage has panicked.
    pub fn store_batches(&self, stop: &StopSignal) -> Result<bool, Error> {
        let (stored, answer) = crossbeam_channel::bounded(1);
        let calls = self.calls.as_ref().expect("open until the pipeline is closed");
        match hand_over(calls, Feed::StoreBatches(stored), stop) {
            Ok(()) => {}
            Err(Halt::Stopped) => return Ok(false),
            Err(Halt::Ended) => return Err(self.lost()),
        }
        select! {
            recv(answer) -> answer => answer.map_err(|_| self.lost())?.map(|()| true).map_err(Error::from),
            recv(stop.asked()) -> _ => Ok(false),
        }
    }

    /// While the returned guard lives, further shards are expected: batches wait for them rather than leave padded.
    pub fn expect_more(&self) -> MoreExpected<'_> {
        self.arrivals.expect();
        MoreExpected(self)
    }

    fn flush_if_last(&self) {
        if self.arrivals.done()
            && let Some(calls) = &self.calls
        {
            // stages that have panicked need no flush
            let _ = calls.send(Feed::Flush);
        }
    }

    fn lost(&self) -> Error {
        self.panics.first()
    }

    /// Take no more calls, wait for those that are under way, and make what they stored durable. The engines are
    /// released on their own threads, which may take a moment longer: dropping the pipeline waits for that. Call this
    /// once.
    ///
    /// # Errors
    /// Those of the sink, and [`Error::StagePanicked`] when it panicked.
    pub fn finish(&mut self) -> Result<OutputReport, Error> {
        self.calls = None;
        // the sink first: a reader that hangs in a request must not delay storing what was scored
        let sink =
            self.sink.take().and_then(|sink| sink.join().expect("a stage's panic is caught on its thread"));
        let Some(sink) = sink else { return Err(self.lost()) };
        match self.panics.guard("sink", || self.sink_meter.busy(|| sink.finish())) {
            Some(report) => Ok(report?),
            None => Err(self.lost()),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.calls = None;
        // every call is answered or dropped before this returns; a panic was reported by its own thread
        self.stages.drain(..).for_each(|stage| drop(stage.join()));
        self.sink.take().into_iter().for_each(|sink| drop(sink.join()));
    }
}

/// See [`Pipeline::expect_more`].
pub struct MoreExpected<'a>(&'a Pipeline);

impl Drop for MoreExpected<'_> {
    fn drop(&mut self) {
        self.0.flush_if_last();
    }
}

/// The first panic of a stage. Later ones follow from it.
#[derive(Debug, Default)]
struct Panics(Mutex<Option<(&'static str, String)>>);

impl Panics {
    /// Run a stage; `None` if it panicked.
    fn guard<T>(&self, stage: &'static str, work: impl FnOnce() -> T) -> Option<T> {
        // the state of a panicked stage is never used again
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(done) => Some(done),
            Err(panic) => {
                let message = panic_message(panic.as_ref()).to_owned();
                self.add(stage, message);
                None
            }
        }
    }

    fn add(&self, stage: &'static str, message: String) {
        tracing::error!(stage, message, "a stage panicked");
        lock(&self.0).get_or_insert((stage, message));
    }

    fn first(&self) -> Error {
        let first = lock(&self.0).clone();
        let (stage, message) = first.unwrap_or(("pipeline", "a stage dropped a shard".to_owned()));
        Error::StagePanicked { stage, message }
    }
}

/// Run each engine on zeros.
pub fn warm_up(engines: &mut [Box<dyn Engine>]) -> Result<Vec<Outcome>, EngineError> {
    engines.iter_mut().enumerate().map(|(worker, engine)| engine::warm_up(engine.as_mut(), worker)).collect()
}
