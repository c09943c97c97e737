//! A listing of an output.
//!
//! - A listing is not atomic and may lag. An object that it lacks may exist: to be sure, look it up by name, see
//!   [`super::lookup`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt};

use super::names::{AttemptName, MANIFEST, MarkName, ObjectName, RUN, SUCCESS, is_folder, shard_index};
use super::output::Output;
use crate::error::{SinkError, StorageError};
use crate::report::PartReport;
use crate::store::Ascending;
use crate::store::retry::again;

/// An object of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Path below the output.
    pub name: String,
    /// Size. Bytes.
    pub bytes: u64,
}

/// The objects of an output, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputListing {
    /// Whether `_run.json` exists.
    pub has_record: bool,
    /// Whether `_manifest.json` exists.
    pub has_manifest: bool,
    /// Whether `_SUCCESS` exists.
    pub has_success: bool,
    /// Predictions parts by the place of their shard in the input.
    pub predictions: BTreeMap<u64, ObjectEntry>,
    /// Names of further predictions parts of a shard.
    pub duplicates: Vec<String>,
    /// Files of the batches table.
    pub batches: Vec<ObjectEntry>,
    /// Notes of attempts.
    pub attempts: BTreeSet<AttemptName>,
    /// Marks of workers that have finished their share.
    pub marks: BTreeSet<MarkName>,
    /// Names of segments.
    pub segments: Vec<String>,
    /// Names of crash notes.
    pub crashes: Vec<String>,
    /// Names of objects that wait to be published, or were left there.
    pub staged: Vec<String>,
    /// Unknown names in folders of the output.
    pub unknown: Vec<String>,
    /// The first object that no run writes.
    pub foreign: Option<String>,
}

impl OutputListing {
    /// List the output.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read(output: &Output) -> Result<Self, SinkError> {
        let listed = output.runtime().block_on(Self::read_async(output));
        listed.map_err(|source| StorageError { uri: output.uri().to_owned(), source }.into())
    }

    async fn read_async(output: &Output) -> object_store::Result<Self> {
        let list = || async {
            let mut listing = Self::default();
            let mut objects = output.store().list(Some(output.root()));
            // the names in a local folder are not ordered
            let mut order = output.local().is_none().then(Ascending::default);
            while let Some(object) = objects.next().await {
                if let (Ok(object), Some(order)) = (&object, &mut order) {
                    let key = object.location.as_ref();
                    let is_marker = order.accept(key, object.size);
                    let is_marker = is_marker.map_err(|what| object_store::Error::Generic {
                        store: "listing",
                        source: what.into(),
                    })?;
                    if is_marker || object.size == 0 && is_folder(&output.name_of(&object.location)) {
                        continue;
                    }
                }
                match object {
                    Ok(object) => listing.add(&output.name_of(&object.location), object.size),
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(listing)
        };
        again(list).await
    }

    /// The name of one object, a foreign one first. `None` if the output is empty. Objects that only an unfinished run
    /// needs do not count: their names say of which run they are, and a new run ignores them.
    pub fn anything(&self) -> Option<String> {
        let others = self.results().chain(self.unknown.iter().cloned());
        self.foreign.clone().into_iter().chain(others).next()
    }

    /// Names of the parts, the record of the run, the manifest and `_SUCCESS`.
    pub fn results(&self) -> impl Iterator<Item = String> {
        let parts = self.predictions.values().chain(&self.batches).map(|entry| entry.name.clone());
        let parts = parts.chain(self.duplicates.iter().cloned());
        let ends = [(self.has_record, RUN), (self.has_success, SUCCESS), (self.has_manifest, MANIFEST)];
        parts.chain(ends.into_iter().filter(|(exists, _)| *exists).map(|(_, name)| name.to_owned()))
    }

    /// Names of the objects that a finished run does not need, except staged ones: notes, marks and segments.
    pub fn transient(&self) -> impl Iterator<Item = String> {
        let attempts = self.attempts.iter().cloned().map(ObjectName::Attempt);
        let marks = self.marks.iter().cloned().map(ObjectName::Mark);
        let others = [&self.segments, &self.crashes, &self.unknown].into_iter().flatten();
        attempts.chain(marks).map(|name| name.to_string()).chain(others.cloned())
    }

    /// The listing without the parts `names`.
    #[must_use]
    pub fn without(mut self, names: &HashSet<String>) -> Self {
        self.batches.retain(|entry| !names.contains(&entry.name));
        let duplicates = self.duplicate_parts();
        self.predictions.retain(|_, entry| !names.contains(&entry.name));
        self.duplicates.clear();
        for ObjectEntry { name, bytes } in duplicates.into_iter().filter(|entry| !names.contains(&entry.name))
        {
            if self.predictions.values().all(|entry| entry.name != name) {
                self.add(&name, bytes);
            }
        }
        self
    }

    /// Names of parts that are not among the listed `predictions` and `batches`.
    pub fn parts_beside(&self, predictions: &[PartReport], batches: &[PartReport]) -> Vec<String> {
        let batches: HashSet<_> = batches.iter().map(|part| &part.path).collect();
        let others = self.batches.iter().map(|entry| &entry.name).filter(|name| !batches.contains(name));
        self.predictions_beside(predictions).chain(others).cloned().collect()
    }

    /// Names of predictions parts that are not among the `listed`.
    pub fn predictions_beside<'a>(&'a self, listed: &'a [PartReport]) -> impl Iterator<Item = &'a String> {
        let listed: HashSet<_> = listed.iter().map(|part| &part.path).collect();
        let parts = self.predictions.values().map(|entry| &entry.name).chain(&self.duplicates);
        parts.filter(move |part| !listed.contains(part))
    }

    /// All parts of shards that have more than one.
    pub fn duplicate_parts(&self) -> Vec<ObjectEntry> {
        let others = self.duplicates.iter().map(|name| ObjectEntry { name: name.clone(), bytes: 0 });
        let places = self.duplicates.iter().filter_map(|name| self.predictions.get(&shard_index(name)?));
        others.chain(places.cloned()).collect()
    }

    pub(super) fn add(&mut self, name: &str, bytes: u64) {
        let owned = name.to_owned();
        match ObjectName::parse(name) {
            Some(ObjectName::Run) => self.has_record = true,
            Some(ObjectName::Manifest) => self.has_manifest = true,
            Some(ObjectName::Success) => self.has_success = true,
            Some(ObjectName::Part(part)) => {
                let entry = ObjectEntry { name: owned, bytes };
                self.duplicates.extend(self.predictions.insert(part.index, entry).map(|other| other.name));
            }
            Some(ObjectName::Batches { .. }) => self.batches.push(ObjectEntry { name: owned, bytes }),
            Some(ObjectName::Attempt(attempt)) => drop(self.attempts.insert(attempt)),
            Some(ObjectName::Mark(mark)) => drop(self.marks.insert(mark)),
            Some(ObjectName::Segment(_)) => self.segments.push(owned),
            Some(ObjectName::Crash(_)) => self.crashes.push(owned),
            Some(ObjectName::Staged(_)) => self.staged.push(owned),
            Some(ObjectName::Unknown) => self.unknown.push(owned),
            None => drop(self.foreign.get_or_insert(owned)),
        }
    }
}

/// Names of the objects in one folder of the output.
pub(super) fn names_in(output: &Output, folder: &str) -> Result<Vec<String>, SinkError> {
    let path = output.path_of(folder);
    let list = || async {
        let objects = output.store().list(Some(&path));
        objects.map_ok(|object| output.name_of(&object.location)).try_collect().await
    };
    output.runtime().block_on(again(list)).map_err(|source| output.failed(folder, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_an_object_of_an_output_is() {
        let mut listing = OutputListing::default();
        let part = "predictions/part-000007-0123456789ab.parquet";
        let segment = "_checkpoints/part-000008-0123456789ab/0000000000-0000000010-000000-01234567.parquet";
        let crash = "_crashes/part-000008-0123456789ab/0000000012-11-01234567.json";
        for name in [
            "_attempts/000000-2c26b46b.json",
            "_attempts/000002-2c26b46b.json",
            segment,
            crash,
            "_manifest.json",
            "_staging/0123456789abcdef",
            "_workers/000001-of-000004-2c26b46b",
            "_checkpoints/of-another-version",
            "batches/part-000000-000003-000000.parquet",
            part,
        ] {
            listing.add(name, 5);
        }
        let entry = |name: &str| ObjectEntry { name: name.to_owned(), bytes: 5 };
        let run = "2c26b46b".to_owned();
        let expected = OutputListing {
            has_manifest: true,
            predictions: [(7, entry(part))].into(),
            batches: vec![entry("batches/part-000000-000003-000000.parquet")],
            attempts: [0, 2].map(|number| AttemptName { number, run: run.clone() }).into(),
            marks: [MarkName { worker: 1, workers: 4, run: run.clone() }].into(),
            segments: vec![segment.to_owned()],
            crashes: vec![crash.to_owned()],
            staged: vec!["_staging/0123456789abcdef".to_owned()],
            unknown: vec!["_checkpoints/of-another-version".to_owned()],
            ..OutputListing::default()
        };
        assert_eq!(listing, expected);
        assert_eq!(listing.transient().count(), 6);
        assert_eq!(listing.anything(), Some(part.to_owned()));
        let unfinished = OutputListing {
            predictions: BTreeMap::new(),
            batches: Vec::new(),
            has_manifest: false,
            unknown: Vec::new(),
            ..listing.clone()
        };
        assert_eq!(unfinished.anything(), None);
        let unknown = OutputListing { unknown: listing.unknown.clone(), ..OutputListing::default() };
        assert_eq!(unknown.anything(), Some("_checkpoints/of-another-version".to_owned()));
        listing.add(RUN, 5);
        listing.add(SUCCESS, 5);
        assert!(listing.has_record && listing.has_success && listing.foreign.is_none());
        listing.add("predictions/part-000007-ba9876543210.parquet", 5);
        assert_eq!(listing.duplicates, [part]);
        listing.add("predictions/other.parquet", 5);
        assert_eq!(listing.foreign.as_deref(), Some("predictions/other.parquet"));
        assert_eq!(listing.anything(), listing.foreign);
    }
}
