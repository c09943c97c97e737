//! The sink stage: scored and rejected records in, Parquet parts out.
//!
//! Input: entries in order, with the scores of their batch. Output: one predictions part for each shard, which
//! answers the shard's call, and a batches part every ten minutes.
//!
//! - The shards arrive one after another, so one part is open at a time.
//! - A part is handed to the store when its shard has ended, never before. Uploads overlap with the next shards' rows,
//!   at most [`PENDING_PARTS`] of them.
//! - A shard that is cut short leaves no part, but a checkpoint of its rows so far. The next attempt resumes after
//!   them.
//! - A failure ends only the call of its shard.

use crate::error::SinkError;
use crate::flow::{Halt, Receiver, Slot, StageMeter, StopSignal};
use crate::items::Inferred;
use crate::report::OutputReport;

mod attempt;
mod batches;
mod open_part;
mod parquet_sink;
mod part;
mod rows;
mod schema;
mod storing;

pub use parquet_sink::{PARTS_BYTES, ParquetSink};
pub use schema::{BATCHES, PREDICTIONS};
pub use storing::PENDING_PARTS;

/// Takes what the stages produce, in order, and answers the calls.
pub trait Sink: Send {
    /// Take the entries of one batch and its scores.
    fn accept(&mut self, inferred: Inferred);

    /// A batch was lost with the stage that had it: fail the shard whose rows are arriving, and keep those that
    /// arrived.
    fn lose_batch(&mut self);

    /// The stop signal of the call whose rows are arriving, until [`Sink::stop`] is called for it.
    fn stop_signal(&self) -> Option<StopSignal>;

    /// Store what was accepted of the shard whose call asked to stop. Its rows in flight may take longer than this
    /// process has.
    fn stop(&mut self);

    /// Make everything that was accepted durable, and report what this attempt stored.
    fn finish(self: Box<Self>) -> Result<OutputReport, SinkError>;
}

/// Feed the sink until the stages before it end.
pub fn run(sink: &mut dyn Sink, inferred: &Receiver<Slot<Inferred>>, meter: &StageMeter) {
    loop {
        let stop = sink.stop_signal();
        let next = match &stop {
            Some(stop) => inferred.recv_unless(stop),
            None => inferred.recv().ok_or(Halt::Ended),
        };
        let is_stopped = match (&next, &stop) {
            (Err(Halt::Stopped), _) => true,
            (Ok(slot), Some(stop)) => !slot.is_ready_unless(stop, meter),
            _ => false,
        };
        if is_stopped {
            meter.busy(|| sink.stop());
        }
        match next {
            Err(Halt::Stopped) => {}
            Err(Halt::Ended) => {
                // a stage that panicked may have lost the end of a shard
                sink.lose_batch();
                return;
            }
            Ok(slot) => match slot.wait(meter) {
                None => sink.lose_batch(),
                Some(inferred) => {
                    meter.add_items(inferred.entries.len() as u64);
                    meter.busy(|| sink.accept(inferred));
                }
            },
        }
    }
}
