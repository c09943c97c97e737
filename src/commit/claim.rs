//! Beginning a run in an output, or going on with the one that is there.
//!
//! - An empty output is claimed by creating `_run.json`; whoever comes second goes on with what the
//!   first has created.
//! - An output of another run is refused with the first difference, one with anything else in it, too.
//! - Each attempt creates a note with its number, which sets its batches apart from those of others.

use super::attempts::{ATTEMPTS, AttemptNote, MAX_ATTEMPT, Notes, attempt_name};
use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::listing::OutputListing;
use super::names::batches_attempt;
use super::output::{Output, json};
use super::record::{RUN, RunRecord};
use crate::error::SinkError;

/// Attempts that may have begun and are in no listing yet: more than workers are ever started together.
const MOST_UNLISTED: u32 = 10_000;

/// What an attempt may go on from.
#[derive(Debug)]
pub struct Claim {
    /// The run, as its first attempt has recorded it.
    pub record: RunRecord,
    /// Of this attempt, as it was created.
    pub note: AttemptNote,
    /// What was there.
    pub listing: OutputListing,
    /// What earlier attempts have noted.
    pub notes: Notes,
    /// Rows of shards that had not ended.
    pub checkpoints: Checkpoints,
    /// Where decoders and readers have crashed.
    pub crashes: Crashes,
}

impl Output {
    /// Whether `wanted` may be written where `listing` lie: the run that is there, if it is the same. With
    /// `overwrite`, what is left of a run without a record is no obstacle.
    ///
    /// # Errors
    /// [`SinkError::OtherRun`] and [`SinkError::Occupied`].
    pub fn run_in(
        &self,
        listing: &OutputListing,
        wanted: &RunRecord,
        overwrite: bool,
    ) -> Result<Option<RunRecord>, SinkError> {
        // a listing may be behind
        match self.read_if_any(RUN)? {
            Some(record) => self.recorded(&record, wanted).map(Some),
            None if overwrite && listing.foreign.is_none() => Ok(None),
            None => match listing.anything().filter(|what| what != RUN) {
                None => Ok(None),
                Some(what) => Err(SinkError::Occupied { uri: self.uri().to_owned(), what }),
            },
        }
    }

    /// Begin `wanted` here, or go on with it. `note` is that of this attempt; its number is found here. With
    /// `overwrite`, which removed a run before, what attempts at that run have stored since is no obstacle.
    pub fn claim(&self, wanted: &RunRecord, note: &AttemptNote, overwrite: bool) -> Result<Claim, SinkError> {
        match self.claim_once(wanted, note, overwrite) {
            // who finishes a run removes the folders of notes, on a disk also while something is put there
            Err(SinkError::Storage(error)) if self.is_local() => {
                tracing::debug!(%error, "claiming the output once more");
                self.claim_once(wanted, note, overwrite)
            }
            done => done,
        }
    }

    fn claim_once(
        &self,
        wanted: &RunRecord,
        note: &AttemptNote,
        overwrite: bool,
    ) -> Result<Claim, SinkError> {
        let listing = self.list()?;
        let record = match self.run_in(&listing, wanted, overwrite)? {
            Some(record) => record,
            None if self.create(RUN, json(wanted))? => wanted.clone(),
            None => self.recorded(&self.read(RUN)?, wanted)?,
        };
        // an attempt whose note was removed may have left batches
        let batches = listing.batches.iter().filter_map(|held| batches_attempt(&held.name));
        let taken = listing.attempts.iter().copied().chain(batches).max();
        let first = taken.map_or(0, |last| last + 1);
        let note = AttemptNote { run_id: record.run_id.clone(), ..note.clone() };
        let note = self.claim_number(note, first)?;
        let notes = self.notes(&listing, &record.run_id)?;
        let is_finished = self.is_finished(&record.run_id)?;
        let listing = if is_finished { listing } else { self.vacated(listing, &record, &note, &notes)? };
        let checkpoints = Checkpoints::of(&listing.segments, &record.run_id);
        let crashes = Crashes::of(&listing.crashes, &record.run_id);
        Ok(Claim { record, note, listing, notes, checkpoints, crashes })
    }

    /// Create `note` under the first free number from `first` on: others may have taken some since the output was
    /// listed, or the listing may be behind.
    fn claim_number(&self, mut note: AttemptNote, first: u32) -> Result<AttemptNote, SinkError> {
        for number in first..=first.saturating_add(MOST_UNLISTED).min(MAX_ATTEMPT) {
            note.attempt = number;
            if self.create(&attempt_name(number), note.to_json())? {
                return Ok(note);
            }
        }
        let message = format!(
            "the store refuses to create the note of an attempt under any of {MOST_UNLISTED} numbers from {first} on, \
             as if each were there already"
        );
        Err(SinkError::Uri { uri: self.uri_of(ATTEMPTS), message })
    }

    /// `listing` without what another run has left in the share that `note` is of: other workers see to theirs.
    fn vacated(
        &self,
        listing: OutputListing,
        record: &RunRecord,
        note: &AttemptNote,
        notes: &Notes,
    ) -> Result<OutputListing, SinkError> {
        self.remove_foreign_manifest(&record.run_id)?;
        let is_own = |index: u64| index % u64::from(note.num_shards) == u64::from(note.shard_index);
        let own =
            listing.predictions.iter().filter(|(index, _)| is_own(**index)).map(|(_, held)| held.clone());
        let own = own.chain(listing.duplicate_parts()).collect();
        let listing = self.without_others(listing, own, notes, &record.run_id)?;
        match listing.duplicates.first() {
            None => Ok(listing),
            Some(part) => {
                let difference = format!("{part} is of another version of its shard than the part beside it");
                Err(SinkError::OtherRun { uri: self.uri().to_owned(), difference })
            }
        }
    }

    /// Remove a run and all its parts: `_SUCCESS` first and its record last, so that what is left of
    /// it at any time is no finished run, and nobody else's.
    ///
    /// # Errors
    /// [`SinkError::Occupied`] where something lies that is nothing of ours.
    pub fn clear(&self, listing: OutputListing) -> Result<(), SinkError> {
        self.refuse_foreign(&listing)?;
        let passing: Vec<_> = listing.passing().collect();
        let parts = listing.predictions.into_values().chain(listing.batches).map(|held| held.name);
        self.remove(&[super::SUCCESS, super::MANIFEST].map(str::to_owned))?;
        self.remove(&parts.chain(listing.duplicates).collect::<Vec<_>>())?;
        self.tidy(&passing)?;
        self.remove(&[RUN.to_owned()])
    }

    /// That there is nothing but what is ours.
    ///
    /// # Errors
    /// [`SinkError::Occupied`].
    pub(super) fn refuse_foreign(&self, listing: &OutputListing) -> Result<(), SinkError> {
        match listing.foreign.clone() {
            None => Ok(()),
            Some(what) => Err(SinkError::Occupied { uri: self.uri().to_owned(), what }),
        }
    }

    /// That the run `run_id` is still the one that lies here: somebody may have removed it and begun
    /// another while an attempt was still at it.
    ///
    /// # Errors
    /// [`SinkError::OtherRun`].
    pub fn refuse_another(&self, run_id: &str) -> Result<(), SinkError> {
        let there = self.runtime().block_on(self.read_if_there(RUN))?;
        let there: Option<RunRecord> = there.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if there.as_ref().is_some_and(|there| there.run_id == run_id) {
            return Ok(());
        }
        let now = there.map_or("nothing".to_owned(), |there| there.run_id);
        let difference = format!("{run_id} was removed, there is {now} in its place");
        Err(SinkError::OtherRun { uri: self.uri().to_owned(), difference })
    }

    /// What `record` says, if `wanted` is the same run.
    fn recorded(&self, record: &[u8], wanted: &RunRecord) -> Result<RunRecord, SinkError> {
        let other = |difference| SinkError::OtherRun { uri: self.uri().to_owned(), difference };
        let record: RunRecord = serde_json::from_slice(record)
            .map_err(|error| other(format!("{RUN} cannot be read: {error}")))?;
        record.difference(wanted).map_or(Ok(record), |difference| Err(other(difference)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use serde_json::json;

    use super::*;

    fn output(runtime: &tokio::runtime::Runtime) -> Output {
        let store = Arc::new(InMemory::new());
        Output::new(store, Path::from("a/b"), "gs://bucket/a/b".to_owned(), None, runtime.handle().clone())
    }

    fn record(run_id: &str, width: u32) -> RunRecord {
        RunRecord {
            schema_version: "1".to_owned(),
            sluice_version: "0.1.0".to_owned(),
            run_id: run_id.to_owned(),
            started_at: "2026-11-23T00:00:00Z".to_owned(),
            plan_sha256: width.to_string(),
            limit: None,
            determinants: json!({ "width": width }),
        }
    }

    #[test]
    fn the_first_attempt_begins_a_run_and_the_next_ones_go_on_with_it() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = output(&runtime);
        let claim = |record: &RunRecord| output.claim(record, &AttemptNote::begun(0, 1), false);
        let first = claim(&record("first", 8)).expect("an empty output");
        assert_eq!((first.record.run_id.as_str(), first.note.attempt), ("first", 0));
        let second = claim(&record("second", 8)).expect("the same run");
        assert_eq!((second.record.run_id.as_str(), second.note.attempt), ("first", 1));
        let refused = claim(&record("third", 9)).expect_err("another plan");
        assert!(refused.to_string().contains("width was 8, is 9"), "{refused}");

        output.clear(output.list().expect("a list")).expect("all of it is ours");
        assert_eq!(output.list().expect("a list"), OutputListing::default());
        assert_eq!(claim(&record("third", 9)).expect("empty again").note.attempt, 0);
    }

    #[test]
    fn what_is_nothing_of_ours_is_left_alone() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = output(&runtime);
        assert!(output.create("predictions/theirs.csv", b"x".to_vec()).expect("put"));
        let note = AttemptNote::begun(0, 1);
        let refused = output.claim(&record("first", 8), &note, false).expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        let refused = output.claim(&record("first", 8), &note, true).expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        let refused = output.clear(output.list().expect("a list")).expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        assert!(!output.create("predictions/theirs.csv", b"y".to_vec()).expect("it is still there"));
    }
}
