//! Objects looked up by name, where a listing may be behind.
//!
//! - A store shows an object under its name as soon as its creation is acknowledged. A listing may be older: some
//!   stores index late, and some caches answer for them.
//! - So nothing about the end of a run follows from what a listing lacks: marks, parts and notes have names that are
//!   known, and those that the listing lacks are looked up. Where it is complete, that takes no request.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;

use super::attempts::{Notes, attempt_name};
use super::listing::{ObjectEntry, OutputListing};
use super::names::{done_name, shard_index};
use super::output::Output;
use super::stored_part::READS;
use crate::error::{SinkError, StorageError};
use crate::report::PartReport;
use crate::store::retry::again;

impl Output {
    /// Size of each of the objects `names`, in their order; `None` where there is none.
    fn sizes_of(&self, names: &[String]) -> Result<Vec<Option<u64>>, SinkError> {
        let size = |name: &String| {
            let (path, uri) = (self.path_of(name), self.uri_of(name));
            async move {
                match again(|| self.store().head(&path)).await {
                    Ok(meta) => Ok(Some(meta.size)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(source) => Err(SinkError::from(StorageError { uri, source })),
                }
            }
        };
        let sizes: Vec<_> = names.iter().map(size).collect();
        self.runtime().block_on(futures_util::stream::iter(sizes).buffered(READS).try_collect())
    }

    /// Size of one object; `None` where there is none.
    pub(super) fn size_of(&self, name: &str) -> Result<Option<u64>, SinkError> {
        Ok(self.sizes_of(&[name.to_owned()])?[0])
    }

    /// Take back that a worker has done its share: something of it must be scored again.
    pub fn unmark_done(&self, shard_index: u32, num_shards: u32) -> Result<(), SinkError> {
        self.remove(&[done_name(shard_index, num_shards)])
    }

    /// Say that a worker has done its share.
    pub fn mark_done(&self, shard_index: u32, num_shards: u32) -> Result<(), SinkError> {
        self.create(&done_name(shard_index, num_shards), b"done\n".to_vec()).map(drop)
    }

    /// The first of `num_shards` workers that has not done its share. Marks that are found by name are added to
    /// `listing`.
    pub(crate) fn first_unmarked(
        &self,
        listing: &mut OutputListing,
        num_shards: u32,
    ) -> Result<Option<u32>, SinkError> {
        let mut next = 0;
        loop {
            // while others are still at work, one of the first is missing: no need to ask for all
            let is_missing = |index: &u32| !listing.done.contains(&(*index, num_shards));
            let some: Vec<_> = (next..num_shards).filter(is_missing).take(READS).collect();
            let Some(&last) = some.last() else { return Ok(None) };
            let names: Vec<_> = some.iter().map(|&index| done_name(index, num_shards)).collect();
            for (index, size) in some.into_iter().zip(self.sizes_of(&names)?) {
                if size.is_none() {
                    return Ok(Some(index));
                }
                listing.done.insert((index, num_shards));
            }
            next = last + 1;
        }
    }

    /// Add to `listing` those of the parts `names` that it has nothing of in their places, and that are there.
    pub(crate) fn add_unlisted_parts(
        &self,
        listing: &mut OutputListing,
        names: impl Iterator<Item = String>,
    ) -> Result<(), SinkError> {
        let is_unlisted =
            |name: &String| shard_index(name).is_some_and(|index| !listing.predictions.contains_key(&index));
        let unlisted: Vec<_> = names.filter(is_unlisted).collect();
        for (name, size) in unlisted.iter().zip(self.sizes_of(&unlisted)?) {
            if let (Some(index), Some(bytes)) = (shard_index(name), size) {
                listing.predictions.insert(index, ObjectEntry { name: name.clone(), bytes });
            }
        }
        Ok(())
    }

    /// Add to `listing` the numbers of attempts that it may lack: all up to `own`, and those behind the last one
    /// whose notes are there.
    pub(crate) fn add_unlisted_attempts(
        &self,
        listing: &mut OutputListing,
        own: u32,
    ) -> Result<(), SinkError> {
        listing.attempts.extend(0..=own);
        let mut next = listing.attempts.last().map_or(0, |&last| last + 1);
        while self.sizes_of(&[attempt_name(next)])?[0].is_some() {
            listing.attempts.insert(next);
            next += 1;
        }
        Ok(())
    }

    /// Add to `listing` the batches parts that `notes` tell of, that it lacks, and that are there.
    pub(crate) fn add_unlisted_batches(
        &self,
        listing: &mut OutputListing,
        notes: &Notes,
    ) -> Result<(), SinkError> {
        let listed: HashSet<_> = listing.batches.iter().map(|held| &held.name).collect();
        let noted = notes.attempts.iter().flat_map(|note| &note.batches).map(|part| &part.path);
        let unlisted: Vec<_> = noted.filter(|path| !listed.contains(path)).cloned().collect();
        for (name, size) in unlisted.iter().zip(self.sizes_of(&unlisted)?) {
            listing.batches.extend(size.map(|bytes| ObjectEntry { name: name.clone(), bytes }));
        }
        Ok(())
    }

    /// What is wrong with those of the objects `listed` that are missing or have another size than they had; what
    /// `listing` shows in the right size is taken for right. At most as many as a person reads.
    pub(crate) fn not_as_listed<'a>(
        &self,
        listing: &OutputListing,
        listed: impl Iterator<Item = &'a PartReport>,
    ) -> Result<Vec<String>, SinkError> {
        let shown = listing.predictions.values().chain(&listing.batches);
        let shown: HashSet<_> = shown.map(|held| (held.name.as_str(), held.bytes)).collect();
        let doubtful: Vec<_> = listed.filter(|part| !shown.contains(&(&part.path, part.bytes))).collect();
        let mut wrong = Vec::new();
        for some in doubtful.chunks(READS) {
            let names: Vec<_> = some.iter().map(|part| part.path.clone()).collect();
            for (part, size) in some.iter().zip(self.sizes_of(&names)?) {
                match size {
                    None => wrong.push(format!("{} is missing", part.path)),
                    Some(bytes) if bytes == part.bytes => {}
                    Some(bytes) => {
                        wrong.push(format!("{} has {bytes} bytes, it had {}", part.path, part.bytes));
                    }
                }
            }
            if wrong.len() >= TOLD {
                break;
            }
        }
        wrong.truncate(TOLD);
        Ok(wrong)
    }
}

/// Objects that are named when they are not as they were.
const TOLD: usize = 5;
