//! Parts that are stored already: what an output holds, and what its parts say of themselves.
//!
//! - A part appears whole, so one that is there is finished. Its name says which shard it is of, in
//!   which version; its footer says how many rows of which status it has.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use sha2::{Digest, Sha256};

use super::attempt::{ATTEMPTS, MAX_ATTEMPT, attempt_name, attempt_number};
use super::checkpoint::{CHECKPOINTS, Checkpoints, Segment};
use super::crashes::CRASHES;
use super::fence::DISPLACED;
use super::output::{MANIFEST, Output, SUCCESS};
use super::part::{
    ATTEMPT, BODY, DAMAGE, ROWS_BY_STATUS, RUN_ID, SHARD, SHARD_BYTES, SHARD_FORMAT, SHARD_IDENTITY,
    SHARD_VERSION, SKIPPED,
};
use super::run_record::RUN;
use super::upload::{Body, STAGING};
use crate::error::{SinkError, StorageError, parquet_words};
use crate::items::{ShardFormat, ShardRef};
use crate::plan::hex;
use crate::report::{PartReport, Tally};
use crate::retry::again;
use crate::source::Ascending;

/// An object of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Path below the output.
    pub name: String,
    pub bytes: u64,
}

/// What lies in an output folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Whether `_run.json` is there.
    pub begun: bool,
    /// Whether `_SUCCESS` is there. What that means, [`crate::state::RunState`] says.
    pub finished: bool,
    /// Whether `_manifest.json` is there.
    pub listed: bool,
    /// Predictions parts by the place of their shard in the input.
    pub predictions: BTreeMap<u64, Held>,
    /// Names of predictions parts of a shard that has another one.
    pub doubled: Vec<String>,
    pub batches: Vec<Held>,
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
    pub stranger: Option<String>,
}

impl Holdings {
    /// The name of one object that is there, something foreign first; `None` if the output is empty. What was
    /// never published does not count: whoever begins a run may be killed before there is anything else.
    pub fn anything(&self) -> Option<String> {
        let parts = self.predictions.values().chain(&self.batches).map(|held| held.name.clone());
        let marks = [(self.begun, RUN), (self.finished, SUCCESS), (self.listed, MANIFEST)];
        let marks = marks.iter().filter(|(there, _)| *there).map(|(_, name)| (*name).to_owned());
        let published = self.passing().filter(|name| !self.staged.contains(name));
        self.stranger.clone().into_iter().chain(parts).chain(marks).chain(published).next()
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
        let parts = self.doubled_parts();
        self.predictions.retain(|_, held| !names.contains(&held.name));
        self.doubled.clear();
        for Held { name, bytes } in parts.into_iter().filter(|held| !names.contains(&held.name)) {
            if self.predictions.values().all(|held| held.name != name) {
                self.add(&name, bytes);
            }
        }
        self
    }

    /// Names of predictions parts that are not among the `listed`.
    pub fn beside(&self, listed: &[PartReport]) -> Vec<String> {
        let listed: HashSet<_> = listed.iter().map(|part| &part.path).collect();
        let parts = self.predictions.values().map(|held| &held.name).chain(&self.doubled);
        parts.filter(|part| !listed.contains(part)).cloned().collect()
    }

    /// Predictions parts of shards that have two: of each the one that was not taken for the shard's, and that one.
    pub fn doubled_parts(&self) -> Vec<Held> {
        let others = self.doubled.iter().map(|name| Held { name: name.clone(), bytes: 0 });
        let places = self.doubled.iter().filter_map(|name| self.predictions.get(&shard_index(name)?));
        others.chain(places.cloned()).collect()
    }

    /// An object of that name alone.
    pub(super) fn of(name: &str) -> Self {
        let mut holdings = Self::default();
        holdings.add(name, 0);
        holdings
    }

    fn add(&mut self, name: &str, bytes: u64) {
        let held = Held { name: name.to_owned(), bytes };
        if name == RUN {
            self.begun = true;
        } else if name == SUCCESS {
            self.finished = true;
        } else if name == MANIFEST {
            self.listed = true;
        } else if let Some(index) = shard_index(name) {
            if let Some(other) = self.predictions.insert(index, held) {
                self.doubled.push(other.name);
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
            self.stranger.get_or_insert(held.name);
        }
    }
}

/// Digits of a shard's identity in the name of its part: enough to tell versions of one shard apart.
const IDENTITY_DIGITS: usize = 12;

/// Name of a shard's part, the same in every run over the same input: the shard's place keeps the
/// parts in order, its identity tells versions of it apart.
pub fn part_name(shard: &ShardRef) -> String {
    part_name_of(shard.index, short_identity(shard))
}

/// The same, of a shard in that place of the input with that short identity.
pub fn part_name_of(index: u64, short_identity: u64) -> String {
    format!("predictions/part-{index:06}-{short_identity:0IDENTITY_DIGITS$x}.parquet")
}

/// What of a shard's identity is in the name of its part, as a number.
pub fn short_identity(shard: &ShardRef) -> u64 {
    u64::from_str_radix(&shard.identity()[..IDENTITY_DIGITS], 16).expect("a hash is hexadecimal")
}

/// Place and short identity of the shard whose part has that name.
pub fn shard_of_part(name: &str) -> Option<(u64, u64)> {
    let (index, identity) =
        name.strip_prefix("predictions/part-")?.strip_suffix(".parquet")?.split_once('-')?;
    if identity.len() != IDENTITY_DIGITS {
        return None;
    }
    Some((number(index)?, u64::from_str_radix(identity, 16).ok()?))
}

/// The place in the input of the shard whose part has that name.
pub fn shard_index(name: &str) -> Option<u64> {
    shard_of_part(name).map(|(index, _)| index)
}

/// The attempt that has written the batches part of that name.
pub(super) fn batches_attempt(name: &str) -> Option<u32> {
    let mut numbers = name.strip_prefix("batches/part-")?.strip_suffix(".parquet")?.split('-').map(number);
    let (_worker, attempt, _number) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let attempt = if numbers.next().is_some() { None } else { attempt.try_into().ok() };
    attempt.filter(|&attempt| attempt <= MAX_ATTEMPT)
}

/// A number as names have it: of six digits, or more where it needs them.
fn number(digits: &str) -> Option<u64> {
    (digits.len() >= 6 && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub(super) fn lies_in(folder: &str, name: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether that is the name of one of an output's folders, or of the output itself. In a bucket consoles make an object
/// of no bytes to show one, `predictions/`, which is listed without its slash.
pub(super) fn is_folder(name: &str) -> bool {
    ["", "predictions", "batches", STAGING, ATTEMPTS, CHECKPOINTS, CRASHES, DISPLACED, WORKERS]
        .contains(&name)
}

/// Folder of workers' marks, below the output.
pub(super) const WORKERS: &str = "_workers";

/// Name of the mark of a worker that has done its share.
pub(super) fn done_name(shard_index: u32, num_shards: u32) -> String {
    format!("{WORKERS}/{shard_index:06}-of-{num_shards:06}")
}

fn done_worker(name: &str) -> Option<(u32, u32)> {
    let (index, of) = name.strip_prefix(WORKERS)?.strip_prefix('/')?.split_once("-of-")?;
    Some((index.parse().ok()?, of.parse().ok()?))
}

/// Small objects asked for at once.
pub(super) const READS: usize = 32;

impl Output {
    /// What lies in the folder.
    pub fn holdings(&self) -> Result<Holdings, SinkError> {
        let listing = || async {
            let mut holdings = Holdings::default();
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
                    Ok(object) => holdings.add(&self.name_of(&object.location), object.size),
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(holdings)
        };
        let listed = self.runtime().block_on(again(listing));
        listed.map_err(|source| StorageError { uri: self.uri().to_owned(), source }.into())
    }

    /// What the stored part `name` of the run `run_id` says of itself.
    ///
    /// # Errors
    /// When it cannot be read, is no part, is one of another run or shard than its name says, or counts
    /// its own rows wrongly.
    pub fn read_back_one(&self, name: &str, run_id: &str) -> Result<PartReport, SinkError> {
        self.runtime().block_on(self.read_part(name.to_owned(), run_id))
    }

    /// The same for the parts `names`, in that order.
    pub fn read_back(&self, names: Vec<String>, run_id: &str) -> Result<Vec<PartReport>, SinkError> {
        let read = |name| self.read_part(name, run_id);
        self.runtime().block_on(futures_util::stream::iter(names).map(read).buffered(READS).try_collect())
    }

    async fn read_part(&self, name: String, run_id: &str) -> Result<PartReport, SinkError> {
        let uri = self.uri_of(&name);
        let path = self.path_of(&name);
        let stored =
            again(|| async { read_object(self.store(), &path).await?.part(self.store()).await }).await;
        let report = match stored {
            Ok(stored) if stored.is_damaged => {
                Err("its rows are not those that its footer was written for".to_owned())
            }
            Ok(stored) => stored.report(name, run_id),
            Err(object_store::Error::Generic { store: NO_PART, source }) => Err(source.to_string()),
            Err(source) => return Err(StorageError { uri, source }.into()),
        };
        report.map_err(|message| no_part(uri, &message))
    }

    /// Size and SHA-256 of a small object.
    pub fn digest(&self, name: &str) -> Result<PartReport, SinkError> {
        let bytes = self.read(name)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Ok(PartReport { path: name.to_owned(), bytes: bytes.len() as u64, sha256, ..PartReport::default() })
    }

    /// Remove what checkpoints hold of the `shards` in those places of the input: what `attempt` at the run `run_id`
    /// has stored, and what it went on from. Those of others at the same shards are theirs.
    pub fn discard_checkpoints(
        &self,
        shards: &[u64],
        attempt: u32,
        run_id: &str,
        gone_on_from: &Checkpoints,
    ) -> Result<(), SinkError> {
        let mut segments = self.holdings()?.segments;
        segments.retain(|name| {
            Segment::parse(name).is_some_and(|(part, segment)| {
                shard_index(&part).is_some_and(|shard| shards.contains(&shard))
                    && (segment.is_of(attempt, run_id) || gone_on_from.chain(&part).contains(&segment))
            })
        });
        self.remove(&segments)
    }

    /// Take back that a worker has done its share: something of it must be scored again.
    pub fn unmark_done(&self, shard_index: u32, num_shards: u32) -> Result<(), SinkError> {
        self.remove(&[done_name(shard_index, num_shards)])
    }

    /// Say that a worker has done its share.
    pub fn mark_done(&self, shard_index: u32, num_shards: u32) -> Result<(), SinkError> {
        self.create(&done_name(shard_index, num_shards), b"done\n".to_vec()).map(drop)
    }
}

/// A stored object of which every byte has been read.
pub(super) struct ReadObject {
    pub meta: ObjectMeta,
    pub bytes: u64,
    pub sha256: String,
    whole: Body,
    /// Its last bytes.
    end: Bytes,
}

/// A part that was read: what is known of the file, and its footer.
pub(super) struct StoredPart {
    bytes: u64,
    sha256: String,
    metadata: ParquetMetaData,
    /// Whether its rows are others than those for which its footer was written.
    pub is_damaged: bool,
}

/// The end of a file in which its footer is looked for first: some thousand columns' and row groups'.
const FOOTER_BYTES: usize = 256 << 10;

/// Bytes per request. Time limits apply to a request, and several objects share the line.
const WINDOW_BYTES: u64 = 1 << 20;

/// Read every byte of an object; anew if it is replaced meanwhile.
pub(super) async fn read_object(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
) -> object_store::Result<ReadObject> {
    const REPLACED: usize = 3;
    for _ in 0..REPLACED {
        match read_version(store, path).await {
            Err(object_store::Error::Precondition { .. }) => {}
            read => return read,
        }
    }
    read_version(store, path).await
}

async fn read_version(store: &Arc<dyn ObjectStore>, path: &Path) -> object_store::Result<ReadObject> {
    let (mut whole, mut sha256) = (Body::default(), Sha256::new());
    let mut end = Vec::new();
    let meta = again(|| store.head(path)).await?;
    while whole.bytes() < meta.size {
        let range = whole.bytes()..meta.size.min(whole.bytes() + WINDOW_BYTES);
        let window = again(|| read_window(store, &meta, range.clone())).await?;
        whole.add(&window);
        sha256.update(&window);
        end.extend_from_slice(&window);
        // it is not moved for each window
        if end.len() > 2 * FOOTER_BYTES + WINDOW_BYTES as usize {
            end.drain(..end.len() - FOOTER_BYTES);
        }
    }
    Ok(ReadObject { bytes: whole.bytes(), meta, sha256: hex(&sha256.finalize()), whole, end: end.into() })
}

/// The bytes `range` of the version `meta` of an object.
async fn read_window(
    store: &Arc<dyn ObjectStore>,
    meta: &ObjectMeta,
    range: Range<u64>,
) -> object_store::Result<Bytes> {
    let options = GetOptions {
        range: Some(range.clone().into()),
        if_match: meta.e_tag.clone(),
        ..GetOptions::default()
    };
    let window = store.get_opts(&meta.location, options).await?.bytes().await?;
    if window.len() as u64 == range.end - range.start {
        return Ok(window);
    }
    let message = format!("{} bytes came, not {}", window.len(), range.end - range.start);
    Err(object_store::Error::Generic { store: "read", source: message.into() })
}

impl ReadObject {
    /// Take it for a part.
    pub async fn part(self, store: &Arc<dyn ObjectStore>) -> object_store::Result<StoredPart> {
        let Self { meta, bytes, sha256, whole, end } = self;
        let metadata = footer(store, &meta.location, bytes, end.clone()).await?;
        // builds of 27 November 2026 and before say it of segments only
        let is_damaged = match value(&metadata, BODY) {
            None => false,
            Some(said) => match Body::parse(&said).filter(|body| body.bytes() <= bytes) {
                None => true,
                Some(body) => {
                    let at_hand = (end.len() as u64).checked_sub(bytes - body.bytes());
                    let rest = match at_hand {
                        Some(start) => end.slice(start as usize..),
                        None => store.get_range(&meta.location, body.bytes()..bytes).await?,
                    };
                    !body.is_without(whole, &rest)
                }
            },
        };
        Ok(StoredPart { bytes, sha256, metadata, is_damaged })
    }
}

/// The footer of a part of `bytes`, and nothing else of it.
pub(super) async fn read_footer(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
) -> object_store::Result<ParquetMetaData> {
    if bytes == 0 {
        return Err(damaged("it is empty".to_owned()));
    }
    let end = store.get_range(path, bytes.saturating_sub(FOOTER_BYTES as u64)..bytes).await?;
    footer(store, path, bytes, end).await
}

/// The footer of a part of `bytes`, of which the last ones, `end`, are at hand.
async fn footer(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
    mut end: Bytes,
) -> object_store::Result<ParquetMetaData> {
    const TAIL: usize = 8;
    let tail = end.last_chunk::<TAIL>().ok_or_else(|| damaged("it is too short".to_owned()))?;
    let tail = FooterTail::try_new(tail).map_err(|error| damaged(parquet_words(&error)))?;
    let length = tail.metadata_length() + TAIL;
    let start = bytes.checked_sub(length as u64).ok_or_else(|| damaged("it is cut short".to_owned()))?;
    if length > end.len() {
        end = store.get_range(path, start..bytes).await?;
    }
    let footer = end.len().checked_sub(length).map(|start| &end[start..end.len() - TAIL]);
    let footer = footer.ok_or_else(|| damaged("it is cut short".to_owned()))?;
    // the Parquet library meets some damaged footers with a panic
    match catch_unwind(|| ParquetMetaDataReader::decode_metadata(footer)) {
        Ok(decoded) => decoded.map_err(|error| damaged(parquet_words(&error))),
        Err(_) => Err(damaged("its footer cannot be understood".to_owned())),
    }
}

/// What is said of an object that is called as a part and is none.
pub(super) fn no_part(uri: String, what: &str) -> SinkError {
    let message =
        format!("is no part of this run: {what}; if it is damaged, remove it: its shard is scored again");
    SinkError::Uri { uri, message }
}

/// Where errors say they are from that are about an object which is no part.
pub(super) const NO_PART: &str = "part";

fn damaged(message: String) -> object_store::Error {
    object_store::Error::Generic { store: NO_PART, source: message.into() }
}

/// What a footer says under `key`.
fn value(metadata: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone())
}

impl StoredPart {
    /// What it says of itself.
    pub fn report(self, path: String, run_id: &str) -> Result<PartReport, String> {
        let file = self.metadata.file_metadata();
        let value = |key: &str| value(&self.metadata, key);
        let mut report = PartReport { path, bytes: self.bytes, sha256: self.sha256, ..PartReport::default() };
        let parsed = |key: &str| value(key).ok_or_else(|| format!("its footer has no {key}"));
        let written_by = parsed(RUN_ID)?;
        if written_by != run_id {
            return Err(format!("its footer names the run {written_by}"));
        }
        // a batches part has no shard
        let Some(shard) = value(SHARD) else { return Ok(report) };
        let named = report.path.rsplit_once('-').and_then(|(_, end)| end.strip_suffix(".parquet"));
        if !named.is_some_and(|named| parsed(SHARD_IDENTITY).is_ok_and(|of| of.starts_with(named))) {
            return Err("its name and its footer are of different shards".to_owned());
        }
        let tally: Tally =
            serde_json::from_str(&parsed(ROWS_BY_STATUS)?).map_err(|error| error.to_string())?;
        if i64::try_from(tally.rows()) != Ok(file.num_rows()) {
            return Err(format!("it has {} rows, its footer counts {}", file.num_rows(), tally.rows()));
        }
        let format: ShardFormat =
            serde_json::from_value(parsed(SHARD_FORMAT)?.into()).map_err(|error| error.to_string())?;
        report.attempt = value(ATTEMPT).and_then(|number| number.parse().ok());
        report.shard = shard;
        report.shard_version = value(SHARD_VERSION);
        report.shard_bytes = value(SHARD_BYTES).and_then(|bytes| bytes.parse().ok());
        report.format = Some(format);
        report.rows = Some(tally.rows());
        report.rows_by_status = Some(tally);
        report.damage = value(DAMAGE);
        if let Some(skipped) = value(SKIPPED) {
            report.skipped = serde_json::from_str(&skipped).map_err(|error| error.to_string())?;
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_an_object_of_an_output_is() {
        let mut holdings = Holdings::default();
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
            holdings.add(name, 5);
        }
        let held = |name: &str| Held { name: name.to_owned(), bytes: 5 };
        let expected = Holdings {
            listed: true,
            predictions: [(7, held(part))].into(),
            batches: vec![held("batches/part-000000-000003-000000.parquet")],
            attempts: [0, 2].into(),
            done: [(1, 4)].into(),
            segments: vec![segment.to_owned()],
            crashes: vec!["_crashes/part-000008-0123456789ab/0000000012-11-01234567.json".to_owned()],
            displaced: vec!["_displaced/0123456789abcdef".to_owned()],
            staged: vec!["_staging/0123456789abcdef".to_owned()],
            ..Holdings::default()
        };
        assert_eq!(holdings, expected);
        assert_eq!(holdings.passing().count(), 7);
        let staged = Holdings { staged: holdings.staged.clone(), ..Holdings::default() };
        assert_eq!((staged.anything(), holdings.anything()), (None, Some(part.to_owned())));
        holdings.add(RUN, 5);
        holdings.add(SUCCESS, 5);
        assert!(holdings.begun && holdings.finished && holdings.stranger.is_none());
        holdings.add("predictions/part-000007-ba9876543210.parquet", 5);
        assert_eq!(holdings.doubled, [part]);
        holdings.add("predictions/other.parquet", 5);
        assert_eq!(holdings.stranger.as_deref(), Some("predictions/other.parquet"));
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
            let mut holdings = Holdings::default();
            holdings.add(foreign, 5);
            assert_eq!(holdings.stranger.as_deref(), Some(foreign));
        }
    }
}
