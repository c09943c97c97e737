//! The names of an output's objects.

use super::attempts::{ATTEMPTS, MAX_ATTEMPT};
use super::checkpoints::CHECKPOINTS;
use super::crashes::CRASHES;
use super::fence::DISPLACED;
use super::upload::STAGING;
use crate::items::ShardRef;

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

pub(super) fn done_worker(name: &str) -> Option<(u32, u32)> {
    let (index, of) = name.strip_prefix(WORKERS)?.strip_prefix('/')?.split_once("-of-")?;
    Some((index.parse().ok()?, of.parse().ok()?))
}
