//! Looking up one shard in an output: its part, segments and crashes.
//!
//! - A whole run looks all shards up at once when it begins ([`super::Claim`]). A worker of a distributed runner scores
//!   single shards, and other workers may have stored parts and segments since it began, so it looks each shard up.

use std::sync::Mutex;

use super::attempts::Notes;
use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::listing::{ObjectEntry, OutputListing, names_in};
use super::names::{ATTEMPTS, PartName};
use super::output::Output;
use super::segments::sound_checkpoints;
use super::state::observe;
use super::takeover::{TakenOver, remove_damaged, remove_parts_of_other_runs, take_over};
use crate::error::SinkError;
use crate::flow::lock;
use crate::items::{Resume, ShardRef};
use crate::report::PartReport;

/// Read the notes of all attempts at a run. They show whether an unreadable object was a part of it.
fn all_notes(output: &Output, run_id: &str) -> Result<Notes, SinkError> {
    let mut attempts = OutputListing::default();
    names_in(output, ATTEMPTS)?.iter().for_each(|name| attempts.add(name, 0));
    attempts.add_unlisted_attempts(output, run_id, None)?;
    Notes::read(output, &attempts, run_id, None)
}

/// What earlier attempts left of a shard.
#[derive(Debug)]
pub struct ShardHistory {
    /// Its part, if that is stored and intact.
    pub part: Option<PartReport>,
    /// Where to resume the shard, if it has no such part.
    pub resume: Resume,
    /// Whether the parts of the run are decided: then none can be added.
    pub is_finished: bool,
}

/// Look `shard` up in the run `run_id`. If the run has not finished, a part that is damaged or of another run is
/// removed. Callers share the lock `reading`, so that only one of them holds a whole segment in memory.
///
/// # Errors
/// Those of the store, and when the part is not of this shard.
pub fn shard_history(
    output: &Output,
    run_id: &str,
    shard: &ShardRef,
    reading: &Mutex<()>,
) -> Result<ShardHistory, SinkError> {
    let part = PartName::of(shard);
    let name = part.to_string();
    let is_finished = observe(output)?.manifest_of(run_id).is_some();
    let mut listing = OutputListing::default();
    if let Some(bytes) = output.sizes_of(std::slice::from_ref(&name))?[0] {
        listing.predictions.insert(part.index, ObjectEntry { name: name.clone(), bytes });
    }
    let notes = Notes::default();
    if !is_finished {
        let parts = listing.predictions.values().cloned().collect();
        listing = remove_parts_of_other_runs(output, listing, parts, &notes, run_id)?;
    }
    let look = |notes: &Notes| take_over(output, listing.predictions.values(), notes, run_id);
    let TakenOver { mut sound, damaged } = match look(&notes) {
        Err(error) if !matches!(error, SinkError::Storage(_)) => {
            tracing::debug!(%error, "looking for the part in the notes");
            look(&all_notes(output, run_id)?)?
        }
        taken => taken?,
    };
    if let Some(part) = sound.pop() {
        return Ok(ShardHistory { part: Some(part), resume: Resume::default(), is_finished });
    }
    remove_damaged(output, &damaged, run_id, "removing a damaged part: its shard is scored again")?;
    let segments = Checkpoints::of(&names_in(output, &part.checkpoints())?, run_id);
    let crashes = Crashes::of(&names_in(output, &part.crashes())?, run_id);
    let segments = if segments.chain(&name).is_empty() {
        Vec::new()
    } else {
        let _reading = lock(reading);
        sound_checkpoints(output, segments, |_| true)?.chain(&name)
    };
    let resume = Resume { segments, crashed: crashes.in_shard(&name) };
    Ok(ShardHistory { part: None, resume, is_finished })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use object_store::memory::InMemory;

    use super::*;
    use crate::commit::attempts::AttemptNote;
    use crate::commit::claim::claim;
    use crate::commit::footer::{ATTEMPT, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY};
    use crate::commit::stored_part::read_part;
    use crate::commit::testing::{Hooked, in_memory, record, store_part};
    use crate::items::{Segment, ShardContent, ShardFormat};

    #[test]
    fn a_part_whose_footer_cannot_be_read_is_scored_again_if_a_note_knows_it() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = in_memory(&runtime);
        let note = claim(&output, &record("run"), &AttemptNote::begun(0, 1)).expect("an empty output").note;
        let shard = ShardRef::new(0, "0.tar", ShardFormat::Webdataset, ShardContent::Objects(Vec::new()));
        let (name, identity) = (PartName::of(&shard).to_string(), shard.identity());
        let footer = [
            (ATTEMPT, "0"),
            (SHARD, "0.tar"),
            (SHARD_IDENTITY, &identity),
            (SHARD_FORMAT, "webdataset"),
            (ROWS_BY_STATUS, "{}"),
        ];
        store_part(&output, "run", &name, &footer);
        let history = || shard_history(&output, "run", &shard, &Mutex::default());
        let part = read_part(&output, &name, "run").expect("sound");
        assert_eq!(history().expect("sound").part.as_ref(), Some(&part));
        let mut rotten = output.read(&name).expect("stored").to_vec();
        let last = rotten.len() - 1;
        rotten[last] ^= 1;
        output.replace(&name, rotten).expect("stored");
        history().expect_err("it may be somebody's own file");
        AttemptNote { parts: vec![part], ..note }.store(&output).expect("stored");
        assert_eq!(history().expect("a note knows it").part, None);
        assert_eq!(output.read_if_any(&name).expect("readable"), None);
    }

    #[test]
    fn segments_and_nothing_else_are_read_under_the_lock() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (reading, under_lock) = (Arc::new(Mutex::new(())), Arc::new(AtomicU64::new(0)));
        let (lock, count) = (Arc::clone(&reading), Arc::clone(&under_lock));
        let store = Hooked::new(InMemory::new(), false, move |_| {
            count.fetch_add(u64::from(lock.try_lock().is_err()), SeqCst);
            Ok(())
        });
        let root = object_store::path::Path::from("out");
        let output = Output::new(Arc::new(store), root, "out".to_owned(), None, runtime.handle().clone());
        claim(&output, &record("run"), &AttemptNote::begun(0, 1)).expect("an empty output");
        let shard = ShardRef::new(0, "0.tar", ShardFormat::Webdataset, ShardContent::Objects(Vec::new()));
        let segment = Segment::new(&PartName::of(&shard).to_string(), 0, 10, 0, "run");
        assert!(output.create(&segment.name, b"damaged".to_vec()).expect("stored"));
        let history = shard_history(&output, "run", &shard, &reading).expect("readable");
        assert_eq!(history.resume, Resume::default());
        // before and after each of two requests: the segment is read and removed
        assert_eq!(under_lock.load(SeqCst), 4);
    }
}
