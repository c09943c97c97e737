//! The sink stage: scored and rejected records in, Parquet parts out.
//!
//! Comes in: entries in input order, with the scores of their batch. Goes out: one predictions
//! part for each shard, and a batches part now and then.
//!
//! - A part is handed to the store when its shard has ended, never before; uploads overlap with
//!   the next shards' rows, at most [`PENDING_PARTS`] of them.
//! - A shard whose end never comes (the run was interrupted, or has failed) leaves no part, but the
//!   rows that a checkpoint has stored. The next attempt goes on from there.

use crate::error::SinkError;
use crate::flow::{Halt, Receiver, Slot, StageMeter, StopSignal};
use crate::items::{Inferred, Outcome};

mod advance;
mod batches;
mod open_part;
mod parquet_sink;
mod part;
mod rows;
mod schema;

pub use advance::{Advance, Counts};
pub use parquet_sink::{PARTS_BYTES, PENDING_PARTS, ParquetSink, RunIdentity};
pub use schema::{BATCHES, PREDICTIONS};

use crate::report::OutputReport;

/// Takes what the pipeline produces, in input order.
pub trait Sink: Send {
    /// Take the entries of one batch and its scores.
    fn accept(&mut self, inferred: Inferred) -> Result<(), SinkError>;

    /// Take a warm-up run's times.
    fn accept_warm_up(&mut self, outcome: Outcome) -> Result<(), SinkError>;

    /// Begin to store what has been accepted, the rows of a shard that has not ended among it.
    fn checkpoint(&mut self) -> Result<(), SinkError>;

    /// Store what has been accepted, and return when it is stored.
    fn flush(&mut self) -> Result<(), SinkError>;

    /// Everything has been accepted: make it durable.
    fn finish(self: Box<Self>) -> Result<OutputReport, SinkError>;

    /// Whether anything of the shard in that place of the input has been accepted.
    fn has_begun(&self, shard: u64) -> bool;

    /// The run has failed and says why itself: keep what has been accepted, as far as that is possible, but
    /// nothing of the shards in the places `garbled` of the input, of which wrong bytes were read.
    fn abandon(self: Box<Self>, garbled: &[u64]);
}

/// Feed the sink until the pipeline hangs up. Whether that was the end of the input or of a run
/// that has failed is known to the caller, who finishes or abandons the sink; so is an error of the
/// sink's own, for what it had accepted before is to be kept.
///
/// When a drain is asked for a checkpoint is taken at once: what is still in flight may take longer than
/// this process is given. What came of that is stored here, too, for the caller waits for readers, which
/// may hang in a request.
pub fn run(
    sink: &mut dyn Sink,
    inferred: &Receiver<Slot<Inferred>>,
    stop: &StopSignal,
    meter: &StageMeter,
) -> Result<(), SinkError> {
    let mut draining = false;
    loop {
        let next = if draining { inferred.recv().ok_or(Halt::Ended) } else { inferred.recv_unless(stop) };
        let asked = matches!(next, Err(Halt::Stopped))
            || next.as_ref().is_ok_and(|slot| !draining && !slot.is_ready_unless(stop, meter));
        if asked {
            draining = true;
            meter.busy(|| sink.checkpoint())?;
        }
        // a vacant slot: an engine failed and says why itself
        match next {
            Err(Halt::Stopped) => {}
            Err(Halt::Ended) if draining => return meter.busy(|| sink.flush()),
            Err(Halt::Ended) => return Ok(()),
            Ok(slot) => match slot.wait(meter) {
                None => return Ok(()),
                Some(inferred) => {
                    meter.add_items(inferred.entries.len() as u64);
                    meter.busy(|| sink.accept(inferred))?;
                }
            },
        }
    }
}
