//! What an output holds of one shard, looked up for that shard alone.
//!
//! - A whole run looks at all shards at once when it begins ([`super::Claim`]). Whoever scores single shards, as a worker
//!   of a distributed runner does, asks here: other workers may have stored parts and checkpoints since it began.

use super::attempts::Notes;
use super::checkpoints::{Checkpoints, checkpoint_folder};
use super::crashes::{Crashes, crash_folder};
use super::listing::ObjectEntry;
use super::names::part_name;
use super::output::Output;
use super::takeover::TakenOver;
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

/// Look up what the run `run_id` has of `shard`. A part that is damaged is removed, if the run is not finished.
///
/// # Errors
/// Those of the store, and when the part is one of another run or of another shard.
pub fn shard_history(output: &Output, run_id: &str, shard: &ShardRef) -> Result<ShardHistory, SinkError> {
    let name = part_name(shard);
    let is_finished = output.is_finished(run_id)?;
    if let Some(bytes) = output.size_of(&name)? {
        let entry = ObjectEntry { name: name.clone(), bytes };
        let TakenOver { mut sound, damaged } =
            output.take_over(std::iter::once(&entry), &Notes::default(), run_id)?;
        if let Some(part) = sound.pop() {
            return Ok(ShardHistory { part: Some(part), resume: Resume::default(), is_finished });
        }
        output.remove_damaged(&damaged, run_id, "removing a damaged part: its shard is scored again")?;
    }
    let segments = Checkpoints::of(&output.names_in(&checkpoint_folder(&name))?, run_id);
    let crashes = Crashes::of(&output.names_in(&crash_folder(&name))?, run_id);
    let segments = output.sound(segments, |_| true)?.chain(&name);
    let resume = Resume { segments, crashed: crashes.in_shard(&name) };
    Ok(ShardHistory { part: None, resume, is_finished })
}
