//! Beginning a run in an output, or joining its run.
//!
//! - A vacant output is claimed by creating `_run.json`. Of several attempts that begin at the same time one creates
//!   it, and the others join its run.
//! - An output of another run is refused with the first difference. An output with foreign objects is refused, too.
//! - Each attempt creates a note. Its number makes the attempt's batch ids unique in the run.

use super::attempts::{AttemptNote, Notes};
use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::fence::{LEFT_BEHIND, is_of_another_run};
use super::finish::{Decided, complete_sealed};
use super::listing::OutputListing;
use super::names::{ATTEMPTS, MANIFEST, MAX_ATTEMPT, ObjectName, RUN, SUCCESS};
use super::output::{Output, json};
use super::overwrite::replace_run;
use super::record::{RunRecord, check_current_async};
use super::resume::Share;
use super::state::{OutputState, observe};
use super::takeover::remove_parts_of_other_runs;
use crate::error::SinkError;
use crate::store::retry::pause;

/// Attempts that may have begun and be missing from a listing: more than the workers that anybody starts together.
const MOST_UNLISTED: u32 = 10_000;

/// How many times an attempt takes over the removal of a run and loses it to another that does the same. The pauses in
/// between double each time and add up to about a minute, so that one of them completes.
const MOST_LOST: u32 = 9;

/// The start of an attempt.
#[derive(Debug)]
pub struct Claim {
    /// The run, as its first attempt has recorded it.
    pub record: RunRecord,
    /// The note of this attempt, as it was created.
    pub note: AttemptNote,
    /// The objects of the output.
    pub listing: OutputListing,
    /// The notes of earlier attempts.
    pub notes: Notes,
    /// The rows of unfinished shards.
    pub checkpoints: Checkpoints,
    /// The records on which decoders and readers crashed.
    pub crashes: Crashes,
}

/// Check that the run of `wanted` may begin or resume in the output, and return its state.
///
/// # Errors
/// Those of the store; [`SinkError::OtherRun`] and [`SinkError::Occupied`] if it may not.
pub fn admit(output: &Output, wanted: &RunRecord) -> Result<OutputState, SinkError> {
    let uri = || output.uri().to_owned();
    let state = observe(output)?;
    let difference = match &state {
        OutputState::Vacant => None,
        OutputState::Foreign(what) => return Err(SinkError::Occupied { uri: uri(), what: what.clone() }),
        OutputState::Removing(record) => record
            .difference(wanted)
            .map(|difference| format!("a run was being removed for another run than this one: {difference}")),
        OutputState::Unfinished(record)
        | OutputState::Failed(record, _)
        | OutputState::Sealed(record, _)
        | OutputState::Succeeded(record, _) => record.difference(wanted),
    };
    difference.map_or(Ok(state), |difference| Err(SinkError::OtherRun { uri: uri(), difference }))
}

/// Begin the run of `wanted`, or join it. `note` is the note of this attempt, and gets its number here.
///
/// # Errors
/// See [`admit`].
pub fn claim(output: &Output, wanted: &RunRecord, note: &AttemptNote) -> Result<Claim, SinkError> {
    match claim_once(output, wanted, note) {
        // on a disk, an attempt that finishes the run removes the folder of notes, even while a note is being created
        Err(SinkError::Storage(error)) if output.local().is_some() => {
            tracing::debug!(%error, "claiming the output once more");
            claim_once(output, wanted, note)
        }
        done => done,
    }
}

fn claim_once(output: &Output, wanted: &RunRecord, note: &AttemptNote) -> Result<Claim, SinkError> {
    let (mut is_finished, mut failed, mut lost) = (false, None, 0);
    let record = loop {
        match admit(output, wanted)? {
            OutputState::Unfinished(record) => break record,
            OutputState::Sealed(record, manifest) => {
                drop(complete_sealed(output, &record.run_id, Decided::of(&manifest))?);
            }
            OutputState::Failed(record, manifest) => {
                failed = Some(*manifest);
                break record;
            }
            OutputState::Succeeded(record, _) => {
                is_finished = true;
                break record;
            }
            OutputState::Removing(observed) => {
                tracing::warn!("the removal of a run was interrupted: removing the rest of it");
                match replace_run(output, wanted, Some(&observed)) {
                    // another attempt has taken over: join its run, or take over again if it was killed
                    Err(SinkError::OtherRun { .. }) if lost < MOST_LOST => {
                        output.runtime().block_on(pause(lost));
                        lost += 1;
                    }
                    done => {
                        done?;
                        break wanted.clone();
                    }
                }
            }
            OutputState::Vacant | OutputState::Foreign(_) => {
                if output.create(RUN, json(wanted))? {
                    break wanted.clone();
                }
                // another attempt was first
            }
        }
    };
    let run_id = &record.run_id;
    let listing = OutputListing::read(output)?;
    let note = AttemptNote { run_id: run_id.clone(), ..note.clone() };
    let note = claim_number(output, note, &listing)?;
    let notes = Notes::read(output, &listing, run_id, failed)?;
    let listing = if is_finished { listing } else { without_other_runs(output, listing, &note, &notes)? };
    let checkpoints = Checkpoints::of(&listing.segments, run_id);
    let crashes = Crashes::of(&listing.crashes, run_id);
    Ok(Claim { record, note, listing, notes, checkpoints, crashes })
}

/// Create `note` under the first free number: other attempts may have taken numbers since the listing, or the listing
/// may lag.
fn claim_number(
    output: &Output,
    mut note: AttemptNote,
    listing: &OutputListing,
) -> Result<AttemptNote, SinkError> {
    // an attempt may have left batches although its note was removed
    let of_batches = listing.batches.iter().filter_map(|entry| match ObjectName::parse(&entry.name) {
        Some(ObjectName::Batches { attempt, .. }) => Some(attempt),
        _ => None,
    });
    let first =
        of_batches.map(|last| last + 1).chain([listing.next_attempt(&note.run_id)]).max().unwrap_or(0);
    for number in first..=first.saturating_add(MOST_UNLISTED).min(MAX_ATTEMPT) {
        note.attempt = number;
        if output.create(&note.name(), note.to_json())? {
            return Ok(note);
        }
    }
    let message = format!(
        "the store refuses to create the note of an attempt under any of {MOST_UNLISTED} numbers from {first} on, as if \
         each existed already"
    );
    Err(SinkError::Uri { uri: output.uri_of(ATTEMPTS), message })
}

/// `listing` without the parts that removed runs have left in this worker's share. Other workers remove those of
/// theirs.
fn without_other_runs(
    output: &Output,
    listing: OutputListing,
    note: &AttemptNote,
    notes: &Notes,
) -> Result<OutputListing, SinkError> {
    remove_end_of_another_run(output, &note.run_id)?;
    let share = Share { shard_index: note.shard_index, num_shards: note.num_shards };
    let own =
        listing.predictions.iter().filter(|(index, _)| share.takes(**index)).map(|(_, entry)| entry.clone());
    let own = own.chain(listing.duplicate_parts()).collect();
    let listing = remove_parts_of_other_runs(output, listing, own, notes, &note.run_id)?;
    match listing.duplicates.first() {
        None => Ok(listing),
        Some(part) => {
            let difference = format!("{part} and another part are of two versions of one shard");
            Err(SinkError::OtherRun { uri: output.uri().to_owned(), difference })
        }
    }
}

/// Remove the manifest of another run, and a `_SUCCESS` without a manifest of this run.
fn remove_end_of_another_run(output: &Output, run_id: &str) -> Result<(), SinkError> {
    output.runtime().block_on(async {
        // `_SUCCESS` is read first, because its manifest is created before it
        let success = output.version(SUCCESS).await?;
        let manifest = output.version(MANIFEST).await?;
        if let Some(manifest) = &manifest
            && !is_of_another_run(output, run_id, manifest).await?
        {
            return Ok(());
        }
        let found: Vec<_> = success.into_iter().chain(manifest).collect();
        if found.is_empty() {
            return Ok(());
        }
        // both were read before the record, so they are not of a run that has begun since
        check_current_async(output, run_id).await?;
        for meta in &found {
            output.remove_version(meta, LEFT_BEHIND).await?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commit::testing::{in_memory, record};

    fn wide(run_id: &str, width: u32) -> RunRecord {
        RunRecord { determinants: json!({ "width": width }), ..record(run_id) }
    }

    #[test]
    fn the_first_attempt_begins_a_run_and_the_next_ones_join_it() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = in_memory(&runtime);
        let claim = |record: &RunRecord| claim(&output, record, &AttemptNote::begun(0, 1));
        let first = claim(&wide("first", 8)).expect("an empty output");
        assert_eq!((first.record.run_id.as_str(), first.note.attempt), ("first", 0));
        let second = claim(&wide("second", 8)).expect("the same run");
        assert_eq!((second.record.run_id.as_str(), second.note.attempt), ("first", 1));
        let refused = claim(&wide("third", 9)).expect_err("another plan");
        assert!(refused.to_string().contains("width was 8, is 9"), "{refused}");
    }

    #[test]
    fn an_output_with_a_foreign_object_is_refused() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = in_memory(&runtime);
        assert!(output.create("predictions/theirs.csv", b"x".to_vec()).expect("put"));
        let refused = claim(&output, &record("first"), &AttemptNote::begun(0, 1)).expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        assert!(!output.create("predictions/theirs.csv", b"y".to_vec()).expect("it is still there"));
    }

    #[test]
    fn the_end_of_a_removed_run_is_removed_when_an_attempt_begins() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = in_memory(&runtime);
        let begin = || claim(&output, &record("mine"), &AttemptNote::begun(0, 1)).expect("mine");
        begin();
        let manifest = json!({
            "run_id": "theirs", "finished_at": "", "plan_sha256": "", "model_sha256": "", "limit": null,
            "summary": {"outcome": "succeeded", "rows": 0, "rows_by_status": {}}, "parts": [], "batches": [],
            "record": {"path": "", "shard": "", "bytes": 0, "sha256": ""},
        });
        output.create(MANIFEST, manifest.to_string().into_bytes()).expect("stored");
        output.create(SUCCESS, b"hash".to_vec()).expect("stored");
        begin();
        let listing = OutputListing::read(&output).expect("a listing");
        assert!(!listing.has_manifest && !listing.has_success);
        // a manifest of this run stays
        let mut mine = manifest;
        mine["run_id"] = "mine".into();
        mine["summary"]["outcome"] = "too_many_errors".into();
        output.create(MANIFEST, mine.to_string().into_bytes()).expect("stored");
        output.create(SUCCESS, b"hash".to_vec()).expect("stored");
        begin();
        let listing = OutputListing::read(&output).expect("a listing");
        assert!(listing.has_manifest && listing.has_success);
    }
}
