//! The names of an output's objects. They are formatted and parsed in this file only.
//!
//! ```text
//! _run.json  _manifest.json  _SUCCESS
//! predictions/part-000007-0123456789ab.parquet       place and identity of the shard
//! batches/part-000001-000003-000000.parquet          worker, attempt, number
//! _attempts/000003-2c26b46b.json                     attempt, run
//! _workers/000001-of-000004-2c26b46b                 a worker that has finished its share, workers, run
//! _checkpoints/part-000007-0123456789ab/0000000000-0000000010-000003-2c26b46b.parquet
//!                                                    first record, end, attempt, run
//! _crashes/part-000007-0123456789ab/0000000012-11-2c26b46b.json
//!                                                    record, signal, run
//! _staging/2c26b46b68ffc68f                          not published yet
//! ```

use std::fmt;

use sha2::{Digest, Sha256};

use crate::items::ShardRef;
use crate::plan::hex;

/// The record of the run.
pub const RUN: &str = "_run.json";

/// The list of parts.
pub const MANIFEST: &str = "_manifest.json";

/// Its presence means that the run is complete. Its content is the hash of the manifest.
pub const SUCCESS: &str = "_SUCCESS";

/// The folders of parts.
pub const PREDICTIONS: &str = "predictions";
pub const BATCHES: &str = "batches";

/// The folders that a finished run does not need.
pub const ATTEMPTS: &str = "_attempts";
pub const WORKERS: &str = "_workers";
pub const CHECKPOINTS: &str = "_checkpoints";
pub const CRASHES: &str = "_crashes";
pub const STAGING: &str = "_staging";
pub const TRANSIENT: [&str; 5] = [ATTEMPTS, WORKERS, CHECKPOINTS, CRASHES, STAGING];

/// The highest number of an attempt: shifted by 32 bits, it begins the ids of the attempt's batches.
pub const MAX_ATTEMPT: u32 = 1 << 30;

/// Digits of a shard's identity in the name of its part: enough to distinguish versions of one shard.
const IDENTITY_DIGITS: usize = 12;

/// Prefix of a crash note's name if the shard's reader crashed, not a decoder.
const OF_READER: &str = "reader-";

/// The name of an object, relative to its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectName {
    /// The record of the run, `_run.json`.
    Run,
    /// The manifest, `_manifest.json`.
    Manifest,
    /// The mark of success, `_SUCCESS`.
    Success,
    /// The predictions part of a shard.
    Part(PartName),
    /// A file of the batches table.
    Batches {
        /// Number of the worker that wrote it.
        worker: u64,
        /// Number of the attempt that wrote it.
        attempt: u32,
        /// Position among the attempt's files, from 0.
        number: u64,
    },
    /// The note of an attempt.
    Attempt(AttemptName),
    /// The mark of a worker that has finished its share.
    Mark(MarkName),
    /// Rows of an unfinished shard.
    Segment(SegmentName),
    /// A note of a crash.
    Crash(CrashName),
    /// An object that is not published yet.
    Staged(String),
    /// An unknown name in a folder of the output, such as one that an earlier version used.
    Unknown,
}

/// The part of a shard. It is the same in every run over the same input: the place keeps the parts in order, the
/// identity distinguishes versions of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartName {
    /// The shard's place in the input.
    pub index: u64,
    /// The first digits of the shard's identity.
    pub identity: u64,
}

/// The note of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptName {
    /// Number of the attempt.
    pub number: u32,
    /// See [`run_tag`].
    pub run: String,
}

/// The mark of a worker that has finished its share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkName {
    /// Number of the worker.
    pub worker: u32,
    /// Workers that share the run.
    pub workers: u32,
    /// See [`run_tag`].
    pub run: String,
}

impl AttemptName {
    /// The note of the attempt `number` at the run `run_id`.
    pub fn new(number: u32, run_id: &str) -> Self {
        Self { number, run: run_tag(run_id) }
    }
}

/// A segment: rows of an unfinished shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentName {
    pub part: PartName,
    /// Positions in the shard of the first record and of the one after the last.
    pub from: u64,
    pub to: u64,
    pub attempt: u32,
    /// See [`run_tag`].
    pub run: String,
}

/// A note of a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashName {
    pub part: PartName,
    pub of_reader: bool,
    pub record_index: u64,
    pub signal: i32,
    /// See [`run_tag`].
    pub run: String,
}

/// The run, in the names of the objects that only an unfinished run has.
pub fn run_tag(run_id: &str) -> String {
    hex(&Sha256::digest(run_id))[..8].to_owned()
}

impl PartName {
    /// The name of a shard's part.
    pub fn of(shard: &ShardRef) -> Self {
        let identity = u64::from_str_radix(&shard.identity()[..IDENTITY_DIGITS], 16);
        Self { index: shard.index, identity: identity.expect("a hash is hexadecimal") }
    }

    /// Parse the name of a part, relative to the output.
    pub fn parse(name: &str) -> Option<Self> {
        Self::of_file(name.strip_prefix(PREDICTIONS)?.strip_prefix('/')?)
    }

    fn of_file(file: &str) -> Option<Self> {
        Self::of_stem(file.strip_suffix(".parquet")?)
    }

    fn of_stem(stem: &str) -> Option<Self> {
        let (index, identity) = stem.strip_prefix("part-")?.split_once('-')?;
        if identity.len() != IDENTITY_DIGITS {
            return None;
        }
        Some(Self { index: number(index)?, identity: u64::from_str_radix(identity, 16).ok()? })
    }

    /// The folder of the shard's segments.
    pub(super) fn checkpoints(self) -> String {
        format!("{CHECKPOINTS}/{}", self.stem())
    }

    /// The folder of the shard's crash notes.
    pub(super) fn crashes(self) -> String {
        format!("{CRASHES}/{}", self.stem())
    }

    fn stem(self) -> String {
        format!("part-{:06}-{:0IDENTITY_DIGITS$x}", self.index, self.identity)
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREDICTIONS}/{}.parquet", self.stem())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run => f.write_str(RUN),
            Self::Manifest => f.write_str(MANIFEST),
            Self::Success => f.write_str(SUCCESS),
            Self::Part(part) => part.fmt(f),
            Self::Batches { worker, attempt, number } => {
                write!(f, "{BATCHES}/part-{worker:06}-{attempt:06}-{number:06}.parquet")
            }
            Self::Attempt(AttemptName { number, run }) => write!(f, "{ATTEMPTS}/{number:06}-{run}.json"),
            Self::Mark(MarkName { worker, workers, run }) => {
                write!(f, "{WORKERS}/{worker:06}-of-{workers:06}-{run}")
            }
            Self::Segment(SegmentName { part, from, to, attempt, run }) => {
                write!(f, "{}/{from:010}-{to:010}-{attempt:06}-{run}.parquet", part.checkpoints())
            }
            Self::Crash(CrashName { part, of_reader, record_index, signal, run }) => {
                let of = if *of_reader { OF_READER } else { "" };
                write!(f, "{}/{of}{record_index:010}-{signal}-{run}.json", part.crashes())
            }
            Self::Staged(name) => write!(f, "{STAGING}/{name}"),
            Self::Unknown => f.write_str("an unknown name"),
        }
    }
}

impl ObjectName {
    /// Parse a name. `None` if no run writes an object of that name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            RUN => return Some(Self::Run),
            MANIFEST => return Some(Self::Manifest),
            SUCCESS => return Some(Self::Success),
            _ => {}
        }
        let (folder, file) = name.split_once('/')?;
        match folder {
            PREDICTIONS => PartName::of_file(file).map(Self::Part),
            BATCHES => batches(file),
            ATTEMPTS => attempt(file).map(Self::Attempt),
            WORKERS => mark(file).map(Self::Mark),
            CHECKPOINTS => Some(segment(file).map_or(Self::Unknown, Self::Segment)),
            CRASHES => Some(crash(file).map_or(Self::Unknown, Self::Crash)),
            STAGING => Some(Self::Staged(file.to_owned())),
            _ => None,
        }
    }
}

fn batches(file: &str) -> Option<ObjectName> {
    let mut numbers = file.strip_prefix("part-")?.strip_suffix(".parquet")?.split('-').map(number);
    let (worker, attempt, number) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let attempt = attempt_number(attempt)?;
    numbers.next().is_none().then_some(ObjectName::Batches { worker, attempt, number })
}

fn attempt(file: &str) -> Option<AttemptName> {
    let (number, run) = file.strip_suffix(".json")?.split_once('-')?;
    Some(AttemptName { number: attempt_number(number.parse().ok()?)?, run: run.to_owned() })
}

fn mark(file: &str) -> Option<MarkName> {
    let (worker, rest) = file.split_once("-of-")?;
    let (workers, run) = rest.split_once('-')?;
    Some(MarkName { worker: worker.parse().ok()?, workers: workers.parse().ok()?, run: run.to_owned() })
}

fn segment(path: &str) -> Option<SegmentName> {
    let (stem, file) = path.split_once('/')?;
    let mut fields = file.strip_suffix(".parquet")?.splitn(4, '-');
    let (from, to) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (attempt, run) = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
    (from < to).then_some(SegmentName { part: PartName::of_stem(stem)?, from, to, attempt, run })
}

fn crash(path: &str) -> Option<CrashName> {
    let (stem, file) = path.split_once('/')?;
    let reader = file.strip_prefix(OF_READER);
    let mut fields = reader.unwrap_or(file).strip_suffix(".json")?.splitn(3, '-');
    Some(CrashName {
        part: PartName::of_stem(stem)?,
        of_reader: reader.is_some(),
        record_index: fields.next()?.parse().ok()?,
        signal: fields.next()?.parse().ok()?,
        run: fields.next()?.to_owned(),
    })
}

fn attempt_number(number: u64) -> Option<u32> {
    number.try_into().ok().filter(|&number| number <= MAX_ATTEMPT)
}

/// A number of six digits or more.
fn number(digits: &str) -> Option<u64> {
    (digits.len() >= 6 && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Whether `name` is that of one of an output's folders, or of the output itself. Bucket consoles create an empty
/// object to show a folder; a listing has its name without the slash.
pub fn is_folder(name: &str) -> bool {
    ["", PREDICTIONS, BATCHES].contains(&name) || TRANSIENT.contains(&name)
}

/// Whether the folder `name` has objects of an output.
pub fn holds_objects(name: &str) -> bool {
    let of_a_shard = name.split_once('/');
    is_folder(name)
        || of_a_shard
            .is_some_and(|(folder, shard)| [CHECKPOINTS, CRASHES].contains(&folder) && !shard.contains('/'))
}

/// Name of a shard's part.
pub fn part_name(shard: &ShardRef) -> String {
    PartName::of(shard).to_string()
}

/// The place in the input of the shard whose part is called `name`.
pub fn shard_index(name: &str) -> Option<u64> {
    PartName::parse(name).map(|part| part.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_parsed_and_formatted_is_the_same() {
        for name in [
            RUN,
            MANIFEST,
            SUCCESS,
            "predictions/part-000007-0123456789ab.parquet",
            "predictions/part-1000007-0123456789ab.parquet",
            "batches/part-000001-000003-000000.parquet",
            "_attempts/000003-2c26b46b.json",
            "_workers/000001-of-000004-2c26b46b",
            "_checkpoints/part-000007-0123456789ab/0000000000-0000000010-000003-2c26b46b.parquet",
            "_crashes/part-000007-0123456789ab/0000000012-11-2c26b46b.json",
            "_crashes/part-000007-0123456789ab/reader-0000000012-11-2c26b46b.json",
            "_staging/2c26b46b68ffc68f",
        ] {
            let parsed = ObjectName::parse(name).expect(name);
            assert_eq!(parsed.to_string(), name);
        }
    }

    #[test]
    fn foreign_and_unknown_names_are_told_apart() {
        for name in [
            "notes.txt",
            "_staging-mine/x",
            "_checkpoints_old.csv",
            "_crashes",
            "_attempts/x.json",
            "_attempts/000003.json",
            "_workers/000001-of-000004",
            "predictions/part-00000-0123456789ab.parquet",
            "predictions/part-000007-c000.parquet",
            "batches/part-000000-000000.parquet",
            "batches/part-000000-9999999999-000000.parquet",
            "batches/part-00000-2f1e-c000.snappy.parquet",
        ] {
            assert_eq!(ObjectName::parse(name), None, "{name}");
        }
        for name in [
            "_checkpoints/x",
            "_checkpoints/part-000007-0123456789ab/1-2.txt",
            "_checkpoints/part-000007-0123456789ab/7-7-0-a.parquet",
            "_crashes/part-000007-0123456789ab/a-b-c.json",
        ] {
            assert_eq!(ObjectName::parse(name), Some(ObjectName::Unknown), "{name}");
        }
    }
}
