//! The sink stage: scored and rejected records in, Parquet parts out.
//!
//! Comes in: entries in input order, with the scores of their batch. Goes out: one predictions
//! part for each shard, one batches part for the run.
//!
//! - A part is handed to the store when its shard has ended, never before; uploads overlap with
//!   the next shards' rows, at most [`PENDING_PARTS`] of them.
//! - A shard whose end never comes (the run was interrupted, or has failed) leaves no part.
//! - A run that fails leaves the parts of shards that had ended, and a record of whose they are; the
//!   next attempt goes on from there.

use crate::error::SinkError;
use crate::flow::{Receiver, Slot, StageMeter};
use crate::items::{Inferred, Outcome};

mod claim;
mod output;
mod parquet_sink;
mod part;
mod rows;
mod run_record;
mod schema;
mod stored;
mod upload;

pub use claim::Claim;
pub use output::{MANIFEST, Output, SUCCESS};
pub use parquet_sink::{PARTS_BYTES, PENDING_PARTS, ParquetSink, RunIdentity};
pub use run_record::{RUN, RunRecord};
pub use schema::{BATCHES, PREDICTIONS, SCHEMA_VERSION};
pub use stored::{Holdings, attempt_name, part_name, shard_index};

use crate::report::OutputReport;

/// Takes what the pipeline produces, in input order.
pub trait Sink: Send {
    /// Take the entries of one batch and its scores.
    fn accept(&mut self, inferred: Inferred) -> Result<(), SinkError>;

    /// Take a warm-up run's times.
    fn accept_warm_up(&mut self, outcome: Outcome) -> Result<(), SinkError>;

    /// Everything has been accepted: make it durable.
    fn finish(self: Box<Self>) -> Result<OutputReport, SinkError>;

    /// The run has failed and says why itself: let what is whole appear, and nothing else.
    fn abandon(self: Box<Self>);
}

/// Feed the sink until the pipeline hangs up. Whether that was the end of the input or of a run
/// that has failed is known to the caller, who finishes or abandons the sink.
pub fn run(
    mut sink: Box<dyn Sink>,
    inferred: &Receiver<Slot<Inferred>>,
    meter: &StageMeter,
) -> Result<Box<dyn Sink>, SinkError> {
    while let Some(slot) = inferred.recv() {
        // a vacant slot: an engine failed and says why itself
        let Some(inferred) = slot.wait(meter) else { break };
        meter.add_items(inferred.entries.len() as u64);
        meter.busy(|| sink.accept(inferred))?;
    }
    Ok(sink)
}
