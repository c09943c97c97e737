//! A listing of an output: which objects it has.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt};

use super::attempts::{attempt_name, attempt_number};
use super::checkpoints::CHECKPOINTS;
use super::crashes::CRASHES;
use super::fence::DISPLACED;
use super::names::{batches_attempt, done_name, done_worker, is_folder, lies_in, shard_index};
use super::output::{MANIFEST, Output, SUCCESS};
use super::record::RUN;
use super::upload::STAGING;
use crate::error::{SinkError, StorageError};
use crate::report::PartReport;
use crate::store::Ascending;
use crate::store::retry::again;

/// An object of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Path below the output.
    pub name: String,
    pub bytes: u64,
}

/// What lies in an output folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputListing {
    /// Whether `_run.json` is there.
    pub begun: bool,
    /// Whether `_SUCCESS` is there. What that means, [`super::state::RunState`] says.
    pub finished: bool,
    /// Whether `_manifest.json` is there.
    pub listed: bool,
    /// Predictions parts by the place of their shard in the input.
    pub predictions: BTreeMap<u64, ObjectEntry>,
    /// Names of predictions parts of a shard that has another one.
    pub duplicates: Vec<String>,
    pub batches: Vec<ObjectEntry>,
    /// Numbers of the attempts so far, from 0.
    pub attempts: BTreeSet<u32>,
    /// Workers that have done their share, each as its number and of how many.
    pub done: BTreeSet<(u32, u32)>,
    /// Names of checkpoints' segments.
    pub segments: Vec<String>,
    /// Names of notes of crashes.
    pub crashes: Vec<String>,
    /// Names of tokens of those who remove what another run has left.
    pub displaced: Vec<String>,
    /// Names of objects that were never published: somebody is about to, or has died before.
    pub staged: Vec<String>,
    /// The first object that is nothing of ours.
    pub foreign: Option<String>,
}

impl OutputListing {
    /// The name of one object that is there, something foreign first; `None` if the output is empty. What was
    /// never published does not count: whoever begins a run may be killed before there is anything else.
    pub fn anything(&self) -> Option<String> {
        let parts = self.predictions.values().chain(&self.batches).map(|held| held.name.clone());
        let marks = [(self.begun, RUN), (self.finished, SUCCESS), (self.listed, MANIFEST)];
        let marks = marks.iter().filter(|(there, _)| *there).map(|(_, name)| (*name).to_owned());
        let published = self.passing().filter(|name| !self.staged.contains(name));
        self.foreign.clone().into_iter().chain(parts).chain(marks).chain(published).next()
    }

    /// Names of what a finished run has no use for: notes, checkpoints, and what was never published.
    pub fn passing(&self) -> impl Iterator<Item = String> {
        let attempts = self.attempts.iter().map(|&number| attempt_name(number));
        let done = self.done.iter().map(|&(index, of)| done_name(index, of));
        let others = [&self.segments, &self.crashes, &self.displaced, &self.staged];
        attempts.chain(done).chain(others.into_iter().flatten().cloned())
    }

    /// The same without the parts that have these `names`.
    pub fn without(mut self, names: &HashSet<String>) -> Self {
        self.batches.retain(|held| !names.contains(&held.name));
        let parts = self.duplicate_parts();
        self.predictions.retain(|_, held| !names.contains(&held.name));
        self.duplicates.clear();
        for ObjectEntry { name, bytes } in parts.into_iter().filter(|held| !names.contains(&held.name)) {
            if self.predictions.values().all(|held| held.name != name) {
                self.add(&name, bytes);
            }
        }
        self
    }

    /// Names of predictions parts that are not among the `listed`.
    pub fn beside(&self, listed: &[PartReport]) -> Vec<String> {
        let listed: HashSet<_> = listed.iter().map(|part| &part.path).collect();
        let parts = self.predictions.values().map(|held| &held.name).chain(&self.duplicates);
        parts.filter(|part| !listed.contains(part)).cloned().collect()
    }

    /// Predictions parts of shards that have two: of each the one that was not taken for the shard's, and that one.
    pub fn duplicate_parts(&self) -> Vec<ObjectEntry> {
        let others = self.duplicates.iter().map(|name| ObjectEntry { name: name.clone(), bytes: 0 });
        let places = self.duplicates.iter().filter_map(|name| self.predictions.get(&shard_index(name)?));
        others.chain(places.cloned()).collect()
    }

    /// An object of that name alone.
    pub(super) fn of(name: &str) -> Self {
        let mut listing = Self::default();
        listing.add(name, 0);
        listing
    }

    fn add(&mut self, name: &str, bytes: u64) {
        let held = ObjectEntry { name: name.to_owned(), bytes };
        if name == RUN {
            self.begun = true;
        } else if name == SUCCESS {
            self.finished = true;
        } else if name == MANIFEST {
            self.listed = true;
        } else if let Some(index) = shard_index(name) {
            if let Some(other) = self.predictions.insert(index, held) {
                self.duplicates.push(other.name);
            }
        } else if let Some(attempt) = attempt_number(name) {
            self.attempts.insert(attempt);
        } else if let Some(worker) = done_worker(name) {
            self.done.insert(worker);
        } else if batches_attempt(name).is_some() {
            self.batches.push(held);
        } else if lies_in(CHECKPOINTS, name) {
            self.segments.push(held.name);
        } else if lies_in(CRASHES, name) {
            self.crashes.push(held.name);
        } else if lies_in(DISPLACED, name) {
            self.displaced.push(held.name);
        } else if lies_in(STAGING, name) {
            self.staged.push(held.name);
        } else {
            self.foreign.get_or_insert(held.name);
        }
    }
}

impl Output {
    /// What lies in the folder.
    pub fn list(&self) -> Result<OutputListing, SinkError> {
        let listing = || async {
            let mut listing = OutputListing::default();
            let mut objects = self.store().list(Some(self.root()));
            // the names in a local folder come in any order
            let mut order = (!self.is_local()).then(Ascending::default);
            while let Some(object) = objects.next().await {
                if let (Ok(object), Some(order)) = (&object, &mut order) {
                    let key = object.location.as_ref();
                    let is_marker = order.accept(key, object.size);
                    let is_marker = is_marker.map_err(|what| object_store::Error::Generic {
                        store: "listing",
                        source: what.into(),
                    })?;
                    if is_marker || object.size == 0 && is_folder(&self.name_of(&object.location)) {
                        continue;
                    }
                }
                match object {
                    Ok(object) => listing.add(&self.name_of(&object.location), object.size),
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(listing)
        };
        let listed = self.runtime().block_on(again(listing));
        listed.map_err(|source| StorageError { uri: self.uri().to_owned(), source }.into())
    }

    /// Names of the objects in one folder of the output.
    pub(super) fn names_in(&self, folder: &str) -> Result<Vec<String>, SinkError> {
        let path = self.path_of(folder);
        let listing = || async {
            let objects = self.store().list(Some(&path));
            objects.map_ok(|object| self.name_of(&object.location)).try_collect().await
        };
        let listed = self.runtime().block_on(again(listing));
        listed.map_err(|source| StorageError { uri: self.uri_of(folder), source }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_an_object_of_an_output_is() {
        let mut listing = OutputListing::default();
        let part = "predictions/part-000007-0123456789ab.parquet";
        let segment = "_checkpoints/part-000008-0123456789ab/0000000000-0000000010-000000.parquet";
        for name in [
            "_attempts/000000.json",
            "_attempts/000002.json",
            segment,
            "_crashes/part-000008-0123456789ab/0000000012-11-01234567.json",
            "_manifest.json",
            "_displaced/0123456789abcdef",
            "_staging/0123456789abcdef",
            "_workers/000001-of-000004",
            "batches/part-000000-000003-000000.parquet",
            part,
        ] {
            listing.add(name, 5);
        }
        let held = |name: &str| ObjectEntry { name: name.to_owned(), bytes: 5 };
        let expected = OutputListing {
            listed: true,
            predictions: [(7, held(part))].into(),
            batches: vec![held("batches/part-000000-000003-000000.parquet")],
            attempts: [0, 2].into(),
            done: [(1, 4)].into(),
            segments: vec![segment.to_owned()],
            crashes: vec!["_crashes/part-000008-0123456789ab/0000000012-11-01234567.json".to_owned()],
            displaced: vec!["_displaced/0123456789abcdef".to_owned()],
            staged: vec!["_staging/0123456789abcdef".to_owned()],
            ..OutputListing::default()
        };
        assert_eq!(listing, expected);
        assert_eq!(listing.passing().count(), 7);
        let staged = OutputListing { staged: listing.staged.clone(), ..OutputListing::default() };
        assert_eq!((staged.anything(), listing.anything()), (None, Some(part.to_owned())));
        listing.add(RUN, 5);
        listing.add(SUCCESS, 5);
        assert!(listing.begun && listing.finished && listing.foreign.is_none());
        listing.add("predictions/part-000007-ba9876543210.parquet", 5);
        assert_eq!(listing.duplicates, [part]);
        listing.add("predictions/other.parquet", 5);
        assert_eq!(listing.foreign.as_deref(), Some("predictions/other.parquet"));
        assert_eq!(batches_attempt("batches/part-000000-000003-000000.parquet"), Some(3));
        for foreign in [
            "notes.txt",
            "_staging-mine/x",
            "_checkpoints_old.csv",
            "_crashes",
            "predictions/part-00000-0123456789ab.parquet",
            "predictions/part-000007-c000.parquet",
            "batches/part-000000-000000.parquet",
            "batches/part-00000-2f1e-c000.snappy.parquet",
        ] {
            let mut listing = OutputListing::default();
            listing.add(foreign, 5);
            assert_eq!(listing.foreign.as_deref(), Some(foreign));
        }
    }
}
