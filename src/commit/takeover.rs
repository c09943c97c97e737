//! Parts that other attempts have stored, read before a manifest lists them.
//!
//! - A part may rot on its disk. One whose bytes are not those that its attempt has noted is not taken over: whoever
//!   begins an attempt removes it from its share and scores its shard again.
//! - A part of an attempt that was killed before it could note it is taken for what its footer says, which has a checksum
//!   of the rows, for nothing else is known of it. So is one that a later attempt has stored in the place of a damaged one.
//! - Nothing is called damaged that was read once only: a store's answer may have been wrong.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::{Error, ObjectMeta};

use super::attempts::{AttemptNote, Notes, attempt_name};
use super::listing::{ObjectEntry, OutputListing};
use super::names::batches_attempt;
use super::output::Output;
use super::stored_part::{NO_PART, READS, no_part, read_object};
use crate::error::{SinkError, StorageError};
use crate::report::PartReport;
use crate::store::retry::again;

/// Parts of other attempts.
#[derive(Debug, Default)]
pub struct TakenOver {
    pub sound: Vec<PartReport>,
    pub damaged: Vec<DamagedPart>,
}

/// A part that is not what its attempt has stored.
#[derive(Debug)]
pub struct DamagedPart {
    /// Path below the output.
    pub name: String,
    /// The version that was read; `None` where there is nothing any more.
    meta: Option<ObjectMeta>,
}

impl DamagedPart {
    /// Whether it was still there when it was read.
    pub fn is_there(&self) -> bool {
        self.meta.is_some()
    }
}

/// What one look at a part has found.
enum Found {
    Sound(PartReport),
    Damaged(DamagedPart),
}

impl Output {
    /// Read the parts `held`, and compare them with what `notes` say of them.
    ///
    /// # Errors
    /// Those of the store, and when something of which no note tells is no part of the run `run_id`.
    pub(crate) fn take_over<'a>(
        &self,
        held: impl Iterator<Item = &'a ObjectEntry>,
        notes: &Notes,
        run_id: &str,
    ) -> Result<TakenOver, SinkError> {
        let look = |part: &'a ObjectEntry| async {
            match self.look_at(part, notes, run_id).await? {
                Found::Damaged(DamagedPart { meta: Some(_), .. }) => self.look_at(part, notes, run_id).await,
                found => Ok(found),
            }
        };
        let looking = futures_util::stream::iter(held.map(look)).buffered(READS).try_collect();
        let found: Vec<_> = self.runtime().block_on(looking)?;
        let mut taken = TakenOver::default();
        for found in found {
            match found {
                Found::Sound(part) => taken.sound.push(part),
                Found::Damaged(part) => taken.damaged.push(part),
            }
        }
        Ok(taken)
    }

    async fn look_at(&self, part: &ObjectEntry, notes: &Notes, run_id: &str) -> Result<Found, SinkError> {
        let said = notes.said_of(&part.name);
        let (store, path) = (Arc::clone(self.store()), self.path_of(&part.name));
        // in a task of its own, for hashing keeps a core busy
        let reading = self.runtime().spawn(async move { again(|| read_object(&store, &path)).await });
        let read = reading.await.unwrap_or_else(|source| Err(Error::JoinError { source }));
        let storage = |source| StorageError { uri: self.uri_of(&part.name), source };
        let damaged = |meta| Ok(Found::Damaged(DamagedPart { name: part.name.clone(), meta }));
        let object = match read {
            Ok(object) => object,
            Err(Error::NotFound { .. }) => return damaged(None),
            Err(error) => return Err(storage(error).into()),
        };
        let is_this = |said: &&PartReport| said.bytes == object.bytes && said.sha256 == object.sha256;
        if let Some(said) = said.iter().find(is_this) {
            return Ok(Found::Sound(said.clone()));
        }
        let meta = object.meta.clone();
        let (report, is_damaged) = match object.part(self.store()).await {
            Ok(stored) => {
                let is_damaged = stored.is_damaged;
                (stored.report(part.name.clone(), run_id), is_damaged)
            }
            Err(Error::Generic { store: NO_PART, source }) => (Err(source.to_string()), false),
            Err(error) => return Err(storage(error).into()),
        };
        match report {
            Ok(_) if is_damaged => damaged(Some(meta)),
            Ok(report) if said.is_empty() || self.is_stored_anew(&report, said, run_id).await? => {
                Ok(Found::Sound(report))
            }
            // An unreadable batches part is given up. An unreadable predictions part may be somebody's own file.
            Err(what) if said.is_empty() && batches_attempt(&part.name).is_none() => {
                Err(no_part(self.uri_of(&part.name), &what))
            }
            _ => damaged(Some(meta)),
        }
    }

    /// Whether a part that differs from its notes was stored by an attempt that none of them names. That attempt may
    /// have begun after the notes were read, so its own note is looked up by name. If the number in the footer is
    /// itself damaged, no such note exists.
    async fn is_stored_anew(
        &self,
        report: &PartReport,
        said: &[PartReport],
        run_id: &str,
    ) -> Result<bool, SinkError> {
        let Some(attempt) = report.attempt.filter(|_| said.iter().all(|said| said.attempt != report.attempt))
        else {
            return Ok(false);
        };
        let note = self.read_if_there(&attempt_name(attempt)).await?;
        Ok(note.and_then(|bytes| AttemptNote::parse(&bytes).ok()).is_some_and(|note| note.run_id == run_id))
    }

    /// `listing` without the `damaged` parts, which are removed: whoever scores their shards again stores them under
    /// the same names. If another attempt has finished the run meanwhile, all of them stay.
    pub(crate) fn without_damaged(
        &self,
        listing: OutputListing,
        damaged: &[DamagedPart],
        run_id: &str,
    ) -> Result<OutputListing, SinkError> {
        if damaged.is_empty() || self.is_finished(run_id)? {
            return Ok(listing);
        }
        self.remove_damaged(damaged, run_id, "removing a damaged part: its shard is scored again")?;
        Ok(listing.without(&damaged.iter().map(|part| part.name.clone()).collect()))
    }

    /// Remove `damaged` parts, and warn `why`.
    pub(crate) fn remove_damaged(
        &self,
        damaged: &[DamagedPart],
        run_id: &str,
        why: &str,
    ) -> Result<(), SinkError> {
        let fence = self.fence(run_id);
        for DamagedPart { name, meta } in damaged {
            let Some(meta) = meta else { continue };
            // a finished run keeps all that its manifest lists
            if self.is_finished(run_id)? {
                break;
            }
            let uri = self.uri_of(name);
            match self.runtime().block_on(fence.remove_damaged(self.store(), meta, why)) {
                Ok(true) => {}
                Ok(false) => {
                    self.refuse_another(run_id)?;
                    let message =
                        "is damaged, and another attempt is about to remove it; run again, after 15 minutes if that one was killed".to_owned();
                    return Err(SinkError::Uri { uri, message });
                }
                Err(source) => return Err(StorageError { uri, source }.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::super::RunRecord;
    use super::super::footer::{ATTEMPT, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY};
    use super::super::testing::store_part;
    use super::*;

    const PART: &str = "predictions/part-000000-0123456789ab.parquet";

    /// Store a part of `attempt`, and return what is to be noted of it.
    fn store(output: &Output, run_id: &str, attempt: &str) -> PartReport {
        let footer = [
            (ATTEMPT, attempt),
            (SHARD, "a.tar"),
            (SHARD_IDENTITY, "0123456789abcdef"),
            (SHARD_FORMAT, "webdataset"),
            (ROWS_BY_STATUS, "{}"),
        ];
        assert!(!store_part(output, run_id, PART, &footer).was_there);
        output.read_back_one(PART, run_id).expect("sound")
    }

    fn replace(output: &Output, bytes: Vec<u8>) {
        output.replace(PART, bytes).expect("stored");
    }

    #[test]
    fn a_part_is_taken_over_if_it_is_what_was_noted_or_what_a_later_attempt_has_stored() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let memory = Arc::new(InMemory::new());
        let output = Output::new(memory, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let record = RunRecord {
            schema_version: "1".to_owned(),
            sluice_version: "0.1.0".to_owned(),
            run_id: "mine".to_owned(),
            started_at: String::new(),
            plan_sha256: String::new(),
            limit: None,
            determinants: serde_json::Value::Null,
        };
        let claim = || output.claim(&record, &AttemptNote::begun(0, 1), false).expect("this run's").note;
        let note = claim();
        let first = store(&output, "mine", "0");
        let bytes = output.read(PART).expect("stored").to_vec();
        let taken = || {
            let listing = output.list().expect("a list");
            let notes = output.notes(&listing, "mine").expect("readable");
            let taken = output.take_over(listing.predictions.values(), &notes, "mine").expect("ours");
            assert_eq!(taken.sound.len() + taken.damaged.len(), 1);
            (taken.sound.into_iter().next(), taken.damaged)
        };
        // nothing is known of it but what it says itself
        assert_eq!(taken().0.as_ref(), Some(&first));
        let mut rotten = bytes.clone();
        // without rows, all before the footer is the format's four letters
        rotten[2] ^= 1;
        replace(&output, rotten);
        assert_eq!(taken().0, None);
        replace(&output, bytes.clone());
        output.replace_note(&AttemptNote { parts: vec![first.clone()], ..note }).expect("stored");
        assert_eq!(taken().0.as_ref(), Some(&first));

        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 1;
            replace(&output, rotten);
            assert_eq!(taken().0, None, "byte {at}");
        }
        replace(&output, bytes[..bytes.len() / 2].to_vec());
        let (sound, damaged) = taken();
        assert_eq!(sound, None);

        let listing = output.list().expect("a list");
        let left = output.without_damaged(listing, &damaged, "mine").expect("removed");
        assert_eq!(left.predictions.len(), 0);
        let before = output.notes(&output.list().expect("a list"), "mine").expect("readable");
        assert_eq!(claim().attempt, 1);
        let second = store(&output, "mine", "1");
        assert!(second != first);
        assert_eq!(taken().0.as_ref(), Some(&second));
        // the part is sound also to an attempt that read the notes before this one began
        let listing = output.list().expect("a list");
        let seen = output.take_over(listing.predictions.values(), &before, "mine").expect("ours");
        assert_eq!((seen.sound, seen.damaged.len()), (vec![second], 0));
        // an unreadable batches part without a note does not block the run
        let name = "batches/part-000000-000000-000000.parquet";
        output.create(name, b"PAR1 rotten PAR1".to_vec()).expect("stored");
        let listing = output.list().expect("a list");
        let seen = output.take_over(listing.batches.iter(), &before, "mine").expect("readable");
        assert_eq!((seen.sound.len(), seen.damaged.len()), (0, 1));
        output.remove_damaged(&seen.damaged, "mine", "removing a damaged part").expect("removed");
        assert_eq!(output.list().expect("a list").batches.len(), 0);
    }
}
