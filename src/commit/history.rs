//! What an output holds of one shard, looked up for that shard alone.
//!
//! - A whole run looks at all shards at once when it begins ([`super::Claim`]). Whoever scores single shards, as a worker
//!   of a distributed runner does, asks here: other workers may have stored parts and checkpoints since it began.

use super::attempts::Notes;
use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::listing::{ObjectEntry, OutputListing, names_in};
use super::names::PartName;
use super::output::Output;
use super::segments::sound_checkpoints;
use super::state::observe;
use super::takeover::{TakenOver, remove_damaged, remove_parts_of_other_runs, take_over};
use crate::error::SinkError;
use crate::items::{Resume, ShardRef};
use crate::report::PartReport;

/// What earlier attempts left of a shard.
#[derive(Debug)]
pub struct ShardHistory {
    /// Its part, if that is stored and sound.
    pub part: Option<PartReport>,
    /// Where to resume it, if it is not.
    pub resume: Resume,
    /// Whether the run has succeeded: no part comes in addition.
    pub is_finished: bool,
}

/// Look up what the run `run_id` has of `shard`. A part that is damaged or of another run is removed, if the run is not
/// finished.
///
/// # Errors
/// Those of the store, and when the part is not of this shard.
pub fn shard_history(output: &Output, run_id: &str, shard: &ShardRef) -> Result<ShardHistory, SinkError> {
    let part = PartName::of(shard);
    let name = part.to_string();
    let is_finished = observe(output)?.is_success_of(run_id);
    let mut listing = OutputListing::default();
    if let Some(bytes) = output.sizes_of(std::slice::from_ref(&name))?[0] {
        listing.predictions.insert(part.index, ObjectEntry { name: name.clone(), bytes });
    }
    let notes = Notes::default();
    if !is_finished {
        let parts = listing.predictions.values().cloned().collect();
        listing = remove_parts_of_other_runs(output, listing, parts, &notes, run_id)?;
    }
    let TakenOver { mut sound, damaged } = take_over(output, listing.predictions.values(), &notes, run_id)?;
    if let Some(part) = sound.pop() {
        return Ok(ShardHistory { part: Some(part), resume: Resume::default(), is_finished });
    }
    remove_damaged(output, &damaged, run_id, "removing a damaged part: its shard is scored again")?;
    let segments = Checkpoints::of(&names_in(output, &part.checkpoints())?, run_id);
    let crashes = Crashes::of(&names_in(output, &part.crashes())?, run_id);
    let segments = sound_checkpoints(output, segments, |_| true)?.chain(&name);
    let resume = Resume { segments, crashed: crashes.in_shard(&name) };
    Ok(ShardHistory { part: None, resume, is_finished })
}
