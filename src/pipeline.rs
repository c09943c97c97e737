//! The only file that knows all stages: wires them, runs them, and reports.
//!
//! ```text
//! shards → source ⇒ decode → batch → engine(s) → sink
//!          readers  rayon    1 thread 1 each      1 thread
//! ```
//!
//! - Every queue is bounded ([`Bounds`]), so memory is bounded too ([`MemoryBound`]).
//! - A stage that ends drops its channel ends: its successors run dry, its predecessors stop.
//!   The first fault is what the run returns. A source that fails on what was read ahead, but is
//!   not wanted any more, is no fault.
//! - Asked to drain, the decode stage takes no further record and what is in flight is finished.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::batch;
use crate::decode::{self, Decoder};
use crate::engine::{self, Engine};
use crate::error::{EngineError, Error, ReadError, SourceError, panic_message};
use crate::flow::{BudgetLimits, StageMeter, StageShare, StopSignal, channel, spawn_named};
use crate::items::{BatchBuffer, BatchShape, Outcome, ShardRef};
use crate::plan::Plan;
use crate::report::OutputReport;
use crate::sink::{self, Advance, Sink};
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
    /// Encoded bytes of all shards read ahead: some thirty ordinary photos. That is enough to go
    /// on with when a shard ends, for its successor's reader is running; what it holds of its
    /// store's answers comes on top.
    pub ahead_bytes: u64,
    /// Records between dispatch and batch. One batch, so that a slow image delays nothing while
    /// the batch before it fills, and four for each thread, so that no thread runs out of work.
    pub decode_slots: usize,
    /// Batches waiting for an engine: one ready for each the moment it is free, and one more to
    /// ride out an uneven supply.
    pub engine_queue: usize,
    /// Batches reserved in the sink's order: those queued, those in the engines, and two whose
    /// rows are waiting to be written.
    pub sink_queue: usize,
}

impl Bounds {
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
    /// What shard readers hold of stores' answers, and of a record being put together.
    pub readers_bytes: u64,
    /// Encoded images, read and not yet decoded.
    pub encoded_bytes: u64,
    /// Decoded rows waiting for their batch.
    pub rows_bytes: u64,
    /// Batch buffers in circulation.
    pub batches_bytes: u64,
    /// Scores waiting to be written, rows being encoded, and finished parts on their way to a store.
    pub sink_bytes: u64,
    /// Pages of a Parquet file whose turn it is, if they are as long as they may be.
    pub parquet_pages_bytes: u64,
    /// Decoders, if every thread meets an image of `max_pixels` at once.
    pub decoders_bytes: u64,
}

impl MemoryBound {
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
            // what was read ahead counts as current when its turn comes, and is replaced then
            encoded_bytes: bounds.current_bytes + 2 * bounds.ahead_bytes,
            rows_bytes: (bounds.decode_slots as u64 + 2) * row_bytes,
            batches_bytes: bounds.batch_buffers(engines) as u64 * shape.bytes(),
            // and of the row that fills what is encoded at once its scores with their classes, doubled
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

/// The meters of all stages, shared with whoever shows progress.
#[derive(Debug, Clone)]
pub struct Meters {
    pub source: Arc<StageMeter>,
    pub decode: Arc<StageMeter>,
    pub batch: Arc<StageMeter>,
    pub engine: Arc<StageMeter>,
    pub sink: Arc<StageMeter>,
    /// What of this worker's share is done.
    pub advance: Arc<Advance>,
}

impl Meters {
    pub fn new(readers: usize, decode_threads: usize, engines: usize) -> Self {
        let meter = |name, workers| Arc::new(StageMeter::new(name, workers));
        Self {
            source: meter("source", readers),
            decode: Arc::new(StageMeter::dispatched("decode", decode_threads, 1)),
            batch: meter("batch", 1),
            engine: meter("engine", engines),
            sink: meter("sink", 1),
            advance: Arc::default(),
        }
    }

    /// Shares of a run that took `wall`, in flow order.
    pub fn shares(&self, wall: Duration) -> Vec<StageShare> {
        [&self.source, &self.decode, &self.batch, &self.engine, &self.sink]
            .map(|meter| meter.share(wall))
            .into()
    }
}

/// Everything that one pass of data through the stages needs.
pub struct Stages<'a> {
    pub decoder: Decoder,
    pub decode_threads: usize,
    /// All with the same batch shape.
    pub engines: &'a mut [Box<dyn Engine>],
    /// [`Bounds::batch_buffers`] of them, of the engines' own kind. Taking and giving back pinned memory
    /// takes long, so both are left to the caller: a run leaves them here.
    pub buffers: &'a mut Vec<Box<dyn BatchBuffer>>,
    pub sink: Box<dyn Sink>,
    pub bounds: Bounds,
    pub meters: &'a Meters,
    pub stop: &'a StopSignal,
    /// Records to take at most.
    pub limit: Option<u64>,
}

impl Stages<'_> {
    /// Score all `shards`, opening each with `open`, and return what the sink has written.
    ///
    /// # Panics
    /// If there is no engine.
    pub fn run(
        self,
        shards: impl Iterator<Item = Result<ShardRef, SourceError>> + Send,
        open: impl Fn(&ShardRef, &Turn) -> Result<OpenedShard, ReadError> + Send + Sync,
    ) -> Result<OutputReport, Error> {
        let Self { decoder, decode_threads, engines, buffers, sink, bounds, meters, stop, limit } = self;
        let shape = engines.first().expect("a run has at least one engine").batch_shape();
        let shares_cores = engines.iter().any(|engine| engine.computes_on_cpu());
        let pool = decode::thread_pool(decode_threads, shares_cores)
            .map_err(|error| Error::Threads { threads: decode_threads, message: error.to_string() })?;

        let (stream_tx, stream_rx) = channel(bounds.look_ahead, &meters.source, &meters.decode);
        let (decoded_tx, decoded_rx) = channel(bounds.decode_slots, &meters.decode, &meters.batch);
        let (batch_tx, batch_rx) = channel(bounds.engine_queue, &meters.batch, &meters.engine);
        let (inferred_tx, inferred_rx) = channel(bounds.sink_queue, &meters.batch, &meters.sink);
        let (used_tx, used_rx) = crossbeam_channel::bounded(buffers.len());
        for buffer in buffers.drain(..) {
            used_tx.send(buffer).expect("the pool has room for its own buffers");
        }
        let returned_rx = used_rx.clone();

        let (faults, source_faults) = (Faults::default(), Faults::default());
        let (ending, sink) = std::thread::scope(|scope| {
            let (faults, source_faults) = (&faults, &source_faults);
            let read_ahead = ReadAhead {
                readers: bounds.readers(),
                records_per_shard: bounds.records_per_shard,
                budget: BudgetLimits { current_bytes: bounds.current_bytes, ahead_bytes: bounds.ahead_bytes },
            };
            spawn_named(scope, "source", move || {
                source_faults.guard("source", || {
                    source::run(shards, open, stream_tx, read_ahead, &meters.source, &meters.decode)
                        .map_err(Error::from)
                })
            });
            let pool = &pool;
            let decoding = spawn_named(scope, "decode", move || {
                faults.guard("decode", || {
                    let ending =
                        decode::run(&stream_rx, &decoded_tx, decoder, pool, limit, stop, &meters.decode);
                    // dropped here rather than with the closure, so that the neighbours learn of the end
                    drop((stream_rx, decoded_tx));
                    Ok(ending)
                })
            });
            spawn_named(scope, "batch", move || {
                faults.guard("batch", || {
                    let ended =
                        batch::run(&decoded_rx, &batch_tx, &inferred_tx, &used_rx, shape, &meters.batch);
                    drop((decoded_rx, batch_tx, inferred_tx));
                    // a neighbour that is gone is no fault of this stage
                    let _ = ended;
                    Ok(())
                })
            });
            for (number, engine) in engines.iter_mut().enumerate() {
                let (batches, used) = (batch_rx.clone(), used_tx.clone());
                spawn_named(scope, format!("engine-{number}"), move || {
                    faults.guard("engine", || {
                        engine::run(engine.as_mut(), &batches, &used, &meters.engine).map_err(Error::from)
                    })
                });
            }
            drop((batch_rx, used_tx));
            let sink = spawn_named(scope, "sink", move || {
                let mut sink = sink;
                faults.guard("sink", || {
                    let ended = sink::run(sink.as_mut(), &inferred_rx, stop, &meters.sink);
                    drop(inferred_rx);
                    // what it had accepted before it failed is kept; a sink that panicked is not trusted
                    ended.unwrap_or_else(|error| faults.add(error.into()));
                    Ok(sink)
                })
            });
            (decoding.join().ok().flatten(), sink.join().ok().flatten())
        });
        buffers.extend(returned_rx.try_iter());
        let wanted_more = ending.is_none_or(|ending| ending == decode::Ending::Dry);
        let (fault, source_fault) = (faults.first(), source_faults.first());
        let fault = match (fault, source_fault) {
            // rows that may be wrong are to be found by the next attempt in no case, whatever else has happened
            (fault, Some(Error::Source(SourceError::Garbled { shards, error })))
                if wanted_more
                    || sink.as_ref().is_none_or(|sink| shards.iter().any(|&shard| sink.has_begun(shard))) =>
            {
                fault.into_iter().for_each(|error| tracing::error!(%error, "something else has failed, too"));
                Some(SourceError::Garbled { shards, error }.into())
            }
            (None, Some(error)) if wanted_more => Some(error),
            (fault, Some(error)) => {
                tracing::debug!(%error, "reading failed as well, or on what is not wanted any more");
                fault
            }
            (fault, None) => fault,
        };
        match (fault, sink) {
            (None, Some(sink)) => {
                let finished = Faults::default();
                let report =
                    finished.guard("sink", || meters.sink.busy(|| sink.finish()).map_err(Error::from)).map(
                        |report| OutputReport { drained: ending == Some(decode::Ending::Drained), ..report },
                    );
                report.ok_or_else(|| finished.first().expect("a sink without a report has left a fault"))
            }
            (Some(fault), sink) => {
                if let Some(sink) = sink {
                    let garbled = match &fault {
                        Error::Source(SourceError::Garbled { shards, .. }) => &shards[..],
                        _ => &[],
                    };
                    let abandoned = Faults::default();
                    abandoned.guard("sink", || {
                        sink.abandon(garbled);
                        Ok(())
                    });
                    abandoned.first().into_iter().for_each(|error| tracing::error!(%error, "on top of that"));
                }
                Err(fault)
            }
            (None, None) => unreachable!("a sink that is gone has left a fault"),
        }
    }
}

/// The first thing that went wrong; what follows from it is noise.
#[derive(Debug, Default)]
struct Faults(Mutex<Option<Error>>);

impl Faults {
    /// Run a stage; an error or a panic is kept if it is the first.
    fn guard<T>(&self, stage: &'static str, work: impl FnOnce() -> Result<T, Error>) -> Option<T> {
        // what a panicking stage leaves half done is never looked at again
        let result = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref()).to_owned();
            Err(Error::StagePanicked { stage, message })
        });
        result.map_err(|error| self.add(error)).ok()
    }

    fn add(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn first(self) -> Option<Error> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Run each engine on zeros.
pub fn warm_up(engines: &mut [Box<dyn Engine>]) -> Result<Vec<Outcome>, EngineError> {
    engines.iter_mut().enumerate().map(|(worker, engine)| engine::warm_up(engine.as_mut(), worker)).collect()
}
