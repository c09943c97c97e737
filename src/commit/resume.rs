//! The shards that remain to be scored when a run is resumed, or shared by several workers.
//!
//! - A shard whose part exists is not read again. The name of a part has the shard's place in the input and its
//!   identity. If the identity in that place has changed, so has the input, which is an error.
//! - A shard whose first records are in segments is resumed after them. The records on which decoders or its reader
//!   crashed are passed on with it.
//! - Of N workers, worker I scores the shards whose place in the input, modulo N, is I.

use std::collections::{BTreeMap, HashMap};

use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::listing::{ObjectEntry, OutputListing};
use super::names::{MarkName, PartName, part_name, run_tag, shard_index};
use super::output::Output;
use super::stored_part::read_part;
use crate::error::{ConfigError, SinkError, SourceError};
use crate::items::{Resume, ShardRef};
use crate::report::PartReport;
use crate::skipped::Skipped;

/// The part of a run's shards that one worker scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of the worker, from 0.
    pub shard_index: u32,
    /// Workers that share the run.
    pub num_shards: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self { shard_index: 0, num_shards: 1 }
    }
}

impl Share {
    /// Check that the worker is one of those that share the run.
    ///
    /// # Errors
    /// [`ConfigError::Argument`] if it is not, or if there are no workers.
    pub fn check(self) -> Result<(), ConfigError> {
        let Self { shard_index, num_shards } = self;
        if shard_index < num_shards {
            return Ok(());
        }
        let message = format!("worker {shard_index} of {num_shards} does not exist: workers count from 0");
        Err(ConfigError::Argument { argument: "--shard-index", message })
    }

    /// The mark that the worker leaves in the run `run_id` when it has finished its share.
    pub(super) fn mark(self, run_id: &str) -> MarkName {
        MarkName { worker: self.shard_index, workers: self.num_shards, run: run_tag(run_id) }
    }

    /// Whether this worker scores the shard at that place of the input.
    pub fn takes(self, index: u64) -> bool {
        index % u64::from(self.num_shards) == u64::from(self.shard_index)
    }
}

/// The parts that exist when an attempt begins.
#[derive(Debug, Default)]
pub struct Done {
    parts: BTreeMap<u64, ObjectEntry>,
    /// Known names of shards, by the paths of their parts.
    shards: HashMap<String, String>,
}

impl Done {
    /// The parts of `listing`. The reports of the `known` ones have the names of their shards.
    pub fn new(listing: &OutputListing, known: &[PartReport]) -> Self {
        let shards = known.iter().map(|part| (part.path.clone(), part.shard.clone())).collect();
        Self { parts: listing.predictions.clone(), shards }
    }

    /// The `parts` that a manifest lists.
    pub fn listed(parts: &[PartReport]) -> Self {
        let entry = |part: &PartReport| ObjectEntry { name: part.path.clone(), bytes: part.bytes };
        let placed = parts.iter().filter_map(|part| Some((shard_index(&part.path)?, entry(part))));
        let shards = parts.iter().map(|part| (part.path.clone(), part.shard.clone())).collect();
        Self { parts: placed.collect(), shards }
    }

    /// The name of a part's shard, or the path of the part if the name is not known.
    fn shard_of(&self, part: &ObjectEntry) -> String {
        self.shards.get(&part.name).unwrap_or(&part.name).clone()
    }
}

/// The shards that an attempt has listed: 8 bytes for each, the identity in the name of its part.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    identities: Vec<u64>,
    /// Whether the whole input was listed.
    ended: bool,
    skipped: Skipped,
}

impl Listed {
    /// All shards of an input, in order, and the objects that its listing skipped.
    pub fn all<'a>(shards: impl IntoIterator<Item = &'a ShardRef>, skipped: Skipped) -> Self {
        let identities = shards.into_iter().map(|shard| PartName::of(shard).identity).collect();
        Self { identities, ended: true, skipped }
    }

    /// The whole input, reconstructed from the paths of all its parts, in any order, and the objects that its listing
    /// skipped.
    ///
    /// # Errors
    /// The first place of the input that has no part, or two.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>, skipped: Skipped) -> Result<Self, u64> {
        let mut parts: Vec<_> = parts.into_iter().filter_map(PartName::parse).collect();
        parts.sort_unstable_by_key(|part| part.index);
        if let Some((place, _)) = (0..).zip(&parts).find(|(place, part)| part.index != *place) {
            return Err(place);
        }
        Ok(Self { identities: parts.iter().map(|part| part.identity).collect(), ended: true, skipped })
    }

    /// Whether the whole input was listed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The objects that the listing skipped, if known.
    pub(super) fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Names of the parts of the shards listed.
    pub(super) fn parts(&self) -> impl Iterator<Item = String> {
        (0..).zip(&self.identities).map(|(index, &identity)| PartName { index, identity }.to_string())
    }

    /// Check that `listing` has exactly one part for each listed shard, or for each of the first ones if the run is
    /// `limited`. Other workers, and earlier attempts, may have listed another input.
    ///
    /// # Errors
    /// [`SourceError::Changed`] and [`SourceError::Late`].
    pub fn compare(&self, listing: &OutputListing, limited: bool, workers: u32) -> Result<(), SourceError> {
        let changed =
            |shard: String, message: &str| Err(SourceError::Changed { shard, message: message.to_owned() });
        if let Some(part) = listing.duplicates.first() {
            return changed(part.clone(), "there is another part, of another version of the same shard");
        }
        for (place, entry) in (0..).zip(listing.predictions.values()) {
            let part = PartName::parse(&entry.name);
            let missing = part.is_none_or(|part| part.index != place);
            let Some(&identity) = self.identities.get(place as usize) else {
                if !self.ended {
                    return Ok(());
                }
                return changed(entry.name.clone(), "that part is of a shard that no longer exists");
            };
            if missing {
                return self.refuse_gap(place, workers);
            }
            if part != Some(PartName { index: place, identity }) {
                return changed(
                    entry.name.clone(),
                    "that part is of another shard than the one now at its place",
                );
            }
        }
        let parts = listing.predictions.len();
        if limited || parts == self.identities.len() {
            Ok(())
        } else {
            self.refuse_gap(parts as u64, workers)
        }
    }

    /// Check that a run with a `limit` is complete: its `rows` reach the limit, or the whole input was listed and each
    /// shard has one of the `parts`.
    ///
    /// # Errors
    /// [`SourceError::Late`].
    pub(super) fn check_limit(
        &self,
        limit: u64,
        rows: u64,
        parts: usize,
        workers: u32,
    ) -> Result<(), SourceError> {
        if rows >= limit || self.ended && parts == self.identities.len() {
            Ok(())
        } else {
            self.refuse_gap(parts as u64, workers)
        }
    }

    fn refuse_gap(&self, place: u64, workers: u32) -> Result<(), SourceError> {
        Err(SourceError::Late { place, worker: (place % u64::from(workers)) as u32 })
    }
}

/// The shards of a listing that remain for one worker.
#[derive(Debug)]
pub struct Remaining<I> {
    shards: I,
    done: Done,
    checkpoints: Checkpoints,
    crashes: Crashes,
    share: Share,
    /// Short identities of the shards so far.
    listed: Vec<u64>,
    ended: bool,
}

impl<I: Iterator<Item = Result<ShardRef, SourceError>>> Remaining<I> {
    /// Those of `shards` that are in `share` and not `done`.
    pub fn new(shards: I, done: Done, checkpoints: Checkpoints, crashes: Crashes, share: Share) -> Self {
        Self { shards, done, checkpoints, crashes, share, listed: Vec::new(), ended: false }
    }

    /// The shards listed so far.
    pub fn into_listed(self) -> Listed {
        Listed { identities: self.listed, ended: self.ended, skipped: Skipped::default() }
    }

    /// Check that the part `done`, which is at the place of `shard`, is the part of this shard.
    fn compare(&self, shard: &ShardRef, done: &ObjectEntry) -> Result<(), SourceError> {
        if done.name == part_name(shard) {
            return Ok(());
        }
        Err(changed(shard, &self.done.shard_of(done)))
    }
}

/// The error when the part at the place of `shard` is of the shard `was`.
fn changed(shard: &ShardRef, was: &str) -> SourceError {
    let message = if was == shard.name {
        "it has another version now".to_owned()
    } else {
        format!("its place in the input was taken by {was}")
    };
    SourceError::Changed { shard: shard.name.clone(), message }
}

/// The error when `shard` has a part, and is not in the input.
fn gone(shard: String) -> SourceError {
    SourceError::Changed { shard, message: "it has a part, but no longer exists".to_owned() }
}

/// Compares an input with the parts of an unfinished run by their names, while the input is being listed.
#[derive(Debug)]
pub struct StoredParts<'a> {
    output: &'a Output,
    /// The run, if the output has one.
    run_id: Option<&'a str>,
    listing: OutputListing,
}

impl<'a> StoredParts<'a> {
    /// The parts of the run `run_id`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read(output: &'a Output, run_id: Option<&'a str>) -> Result<Self, SinkError> {
        let listing = run_id.map(|_| OutputListing::read(output)).transpose()?.unwrap_or_default();
        Ok(Self { output, run_id, listing })
    }

    /// Check that no part of another shard is at the place of `shard`.
    ///
    /// # Errors
    /// [`SourceError::Changed`].
    pub fn compare(&self, shard: &ShardRef) -> Result<(), SourceError> {
        match self.listing.predictions.get(&shard.index) {
            Some(part) if part.name != part_name(shard) => {
                self.shard_of(part).map_or(Ok(()), |was| Err(changed(shard, &was)))
            }
            _ => Ok(()),
        }
    }

    /// Check that there is no part of a shard behind the last of `shards`.
    ///
    /// # Errors
    /// [`SourceError::Changed`].
    pub fn compare_end(&self, shards: u64) -> Result<(), SourceError> {
        let behind = self.listing.predictions.range(shards..).next();
        behind.and_then(|(_, part)| self.shard_of(part)).map_or(Ok(()), |shard| Err(gone(shard)))
    }

    /// The shard of a part, if the part can be read and is of this run. Others do not count: they are removed before
    /// the run finishes.
    fn shard_of(&self, part: &ObjectEntry) -> Option<String> {
        let part = self.run_id.map(|run_id| read_part(self.output, &part.name, run_id));
        part?.ok().map(|part| part.shard)
    }
}

impl<I: Iterator<Item = Result<ShardRef, SourceError>>> Iterator for Remaining<I> {
    type Item = Result<(ShardRef, Resume), SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(shard) = self.shards.next() else {
                self.ended = true;
                let (_, gone) = self.done.parts.pop_first()?;
                return Some(Err(self::gone(self.done.shard_of(&gone))));
            };
            let shard = match shard {
                Ok(shard) => shard,
                Err(error) => return Some(Err(error)),
            };
            self.listed.push(PartName::of(&shard).identity);
            match self.done.parts.remove(&shard.index) {
                Some(done) => {
                    if let Err(error) = self.compare(&shard, &done) {
                        return Some(Err(error));
                    }
                }
                None if self.share.takes(shard.index) => {
                    let part = part_name(&shard);
                    let segments = self.checkpoints.chain(&part);
                    let resume = Resume { segments, crashed: self.crashes.in_shard(&part) };
                    return Some(Ok((shard, resume)));
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::checkpoints::Segment;
    use crate::items::{ObjectRef, ShardContent, ShardFormat};

    fn shard(index: u64, name: &str, version: &str) -> ShardRef {
        let object =
            ObjectRef { uri: name.to_owned(), size_bytes: Some(7), version: Some(version.to_owned()) };
        ShardRef::new(index, name, ShardFormat::Webdataset, ShardContent::Container(object))
    }

    fn three() -> [ShardRef; 3] {
        [shard(0, "a.tar", "1"), shard(1, "b.tar", "1"), shard(2, "c.tar", "1")]
    }

    fn done(shards: &[ShardRef]) -> Done {
        let held = |shard: &ShardRef| (shard.index, ObjectEntry { name: part_name(shard), bytes: 7 });
        let shard_of = |shard: &ShardRef| (part_name(shard), shard.name.clone());
        Done { parts: shards.iter().map(held).collect(), shards: shards.iter().map(shard_of).collect() }
    }

    fn left(shards: &[ShardRef], done: Done, share: Share) -> Result<Vec<String>, String> {
        let shards = shards.iter().cloned().map(Ok);
        let remaining = Remaining::new(shards, done, Checkpoints::default(), Crashes::default(), share);
        let names = remaining.map(|shard| shard.map(|(shard, _)| shard.name));
        names.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    #[test]
    fn a_shard_with_a_part_is_skipped_and_the_others_remain() {
        let shards = three();
        let left = |done| left(&shards, done, Share::default());
        assert_eq!(left(Done::default()), Ok(vec!["a.tar".into(), "b.tar".into(), "c.tar".into()]));
        assert_eq!(left(done(&shards[1..2])), Ok(vec!["a.tar".into(), "c.tar".into()]));
        assert_eq!(left(done(&shards)), Ok(vec![]));
    }

    #[test]
    fn workers_share_the_shards_without_gap_or_overlap() {
        let shards = three();
        for num_shards in 1..5 {
            let share = |shard_index| Share { shard_index, num_shards };
            let mut all: Vec<_> = (0..num_shards)
                .flat_map(|index| left(&shards, done(&shards[..1]), share(index)).expect("unchanged"))
                .collect();
            all.sort();
            assert_eq!(all, ["b.tar", "c.tar"], "{num_shards} workers");
        }
    }

    #[test]
    fn a_shard_is_resumed_after_its_checkpoint() {
        let shards = three();
        let segment = Segment::new(&part_name(&shards[1]), 0, 40, 3, "run").name;
        let checkpoints = Checkpoints::of(&[segment], "run");
        let listed = shards.iter().cloned().map(Ok);
        let mut remaining =
            Remaining::new(listed, Done::default(), checkpoints, Crashes::default(), Share::default());
        let starts: Vec<_> = remaining.by_ref().map(|shard| shard.expect("unchanged").1.rows()).collect();
        assert_eq!(starts, [0, 40, 0]);
        assert!(remaining.into_listed().ended);
    }

    #[test]
    fn parts_of_workers_that_have_listed_another_input_are_refused() {
        let listed = |shards: &[ShardRef], ended| Listed {
            identities: shards.iter().map(|shard| PartName::of(shard).identity).collect(),
            ended,
            skipped: Skipped::default(),
        };
        let listing = |shards: &[ShardRef]| {
            let held = |shard: &ShardRef| (shard.index, ObjectEntry { name: part_name(shard), bytes: 7 });
            OutputListing { predictions: shards.iter().map(held).collect(), ..OutputListing::default() }
        };
        let compare = |list: &[ShardRef], parts: &[ShardRef]| {
            let compared = listed(list, true).compare(&listing(parts), false, 2);
            compared.map_err(|error| error.to_string())
        };
        let shards = three();
        assert_eq!(compare(&shards, &shards), Ok(()));
        // another worker found aa.tar in the place of b.tar, and b.tar in that of c.tar
        let theirs = [shards[0].clone(), shard(1, "aa.tar", "1"), shard(2, "b.tar", "1")];
        assert!(compare(&shards, &theirs).expect_err("changed").contains("part-000001"));
        let message = compare(&shards[..2], &shards).expect_err("one shard is gone");
        assert!(message.contains("part-000002") && message.contains("no longer exists"), "{message}");
        for (parts, late) in [(&shards[..2], 2), (&shards[1..], 0)] {
            let message = compare(&shards, parts).expect_err("one shard came late");
            let worker = late % 2;
            assert!(message.contains(&format!("shard {late} ")), "{message}");
            assert!(message.contains(&format!("run worker {worker} again")), "{message}");
        }
        let mut doubled = listing(&shards);
        doubled.duplicates.push(part_name(&shard(1, "b.tar", "2")));
        let message =
            listed(&shards, true).compare(&doubled, false, 1).expect_err("two versions").to_string();
        assert!(message.contains("another version"), "{message}");
        // a limit ends somewhere, and the listing with it or later
        assert!(listed(&shards, true).compare(&listing(&shards[..2]), true, 1).is_ok());
        assert!(listed(&shards[..2], false).compare(&listing(&shards), true, 1).is_ok());
        assert!(listed(&shards, false).compare(&listing(&theirs), true, 1).is_err());
    }

    #[test]
    fn an_input_that_has_changed_is_refused_with_what_has_changed() {
        let shards = three();
        let shards = &shards[..2];
        for share in [Share::default(), Share { shard_index: 1, num_shards: 2 }] {
            let refused = |listed: &[ShardRef]| left(listed, done(shards), share).expect_err("changed");
            let message = refused(&[shard(0, "a.tar", "1"), shard(1, "b.tar", "2")]);
            assert!(message.contains("b.tar") && message.contains("another version"), "{message}");
            let message = refused(&[shard(0, "a.tar", "1"), shard(1, "aa.tar", "1"), shard(2, "b.tar", "1")]);
            assert!(message.contains("aa.tar") && message.contains("taken by b.tar"), "{message}");
            let message = refused(&shards[..1]);
            assert!(message.contains("b.tar") && message.contains("no longer exists"), "{message}");
        }
    }
}
