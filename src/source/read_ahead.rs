//! The source stage: shards are read ahead by a few threads, each into a stream of its own.
//!
//! Comes in: shards in input order. Goes out: one [`ShardStream`] a shard, in the same order.
//!
//! - At most `readers` shards are being read; the decode stage takes the streams one after
//!   another, so records keep the input order whatever the readers' speed.
//! - Each stream is bounded in records, and all of them in bytes by one [`Budget`]: shards read
//!   ahead never use up what the shard being decoded needs.
//! - A shard that turns out damaged ends with one `corrupt_record` row; a store that fails ends
//!   the run. A shard whose reader has crashed in an earlier attempt is damaged from that record on.

use std::sync::Arc;

use crate::crash::{AtWork, Reading, Work, signal_name};
use crate::error::{ReadError, SourceError, StorageError};
use crate::flow::{Account, Budget, BudgetLimits, Disconnected, Sender, StageMeter, channel, spawn_named};
use crate::items::{
    EncodedImage, RawRecord, Rejected, ShardEnd, ShardFormat, ShardItem, ShardRef, ShardStream, Status,
};

use super::OpenedShard;
use super::skips::{SkipWarnings, Skips};

/// Bounds of the stage.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead {
    /// Shards being read at once.
    pub readers: usize,
    /// Records waiting in one stream.
    pub records_per_shard: usize,
    /// Encoded bytes of all streams, from reading to decoded.
    pub budget: BudgetLimits,
}

/// One shard for one reader thread.
struct Assignment {
    shard: Arc<ShardRef>,
    items: Sender<ShardItem>,
    account: Account,
}

/// Read all `shards` through `open` until they end, the receiver of `out` hangs up, or the store
/// fails.
pub fn run(
    shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    open: impl Fn(&ShardRef) -> Result<OpenedShard, ReadError> + Send + Sync,
    out: Sender<ShardStream>,
    bounds: ReadAhead,
    meter: &Arc<StageMeter>,
    decode_meter: &Arc<StageMeter>,
) -> Result<(), SourceError> {
    let budget = Budget::new(bounds.budget);
    let warnings = SkipWarnings::default();
    // a rendezvous: a shard is handed over only when a reader is free to start on it
    let (jobs, next_job) = crossbeam_channel::bounded::<Assignment>(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..bounds.readers)
            .map(|number| {
                let (next_job, open, warnings) = (next_job.clone(), &open, &warnings);
                let read =
                    move || next_job.iter().try_for_each(|job| read_shard(&job, open, warnings, meter));
                spawn_named(scope, format!("source-{number}"), read)
            })
            .collect();
        drop(next_job);

        let mut listed = Ok(());
        for shard in shards {
            let shard = match shard {
                Ok(shard) => Arc::new(shard),
                Err(error) => {
                    listed = Err(error);
                    break;
                }
            };
            // the wait for room in a stream is its reader's; many readers are one stage
            let (items, stream) = channel(bounds.records_per_shard, meter, decode_meter);
            let account = budget.account();
            let job = Assignment { shard: Arc::clone(&shard), items, account: account.clone() };
            if out.send(ShardStream { shard, items: stream, account }).is_err() || jobs.send(job).is_err() {
                break;
            }
        }
        drop((jobs, out));
        let read = readers.into_iter().filter_map(|reader| match reader.join() {
            Ok(result) => result.err(),
            Err(panic) => std::panic::resume_unwind(panic),
        });
        read.chain(listed.err()).reduce(graver).map_or(Ok(()), Err)
    })
}

/// Of two errors the first, but that of garbled shards none is forgotten.
fn graver(first: SourceError, second: SourceError) -> SourceError {
    match (first, second) {
        (SourceError::Garbled { mut shards, error }, SourceError::Garbled { shards: more, .. }) => {
            shards.extend(more);
            SourceError::Garbled { shards, error }
        }
        (_, garbled @ SourceError::Garbled { .. }) => garbled,
        (first, _) => first,
    }
}

/// Read one shard to its end. Nobody listening any more is not an error: the run is ending.
fn read_shard(
    job: &Assignment,
    open: &impl Fn(&ShardRef) -> Result<OpenedShard, ReadError>,
    warnings: &SkipWarnings,
    meter: &StageMeter,
) -> Result<(), SourceError> {
    let mut record_index = 0;
    let mut skips = Skips::default();
    let damage = match read_records(job, open, meter, &mut record_index, &mut skips) {
        Ok(()) => None,
        Err(Stopped::Damaged(reason)) => Some(reason),
        Err(Stopped::Disconnected) => return Ok(()),
        Err(Stopped::Failed(error)) => return Err(error),
    };
    if let Some(reason) = &damage {
        // a checkpoint may hold records that cannot be read any more
        record_index = record_index.max(job.shard.resume_at);
        tracing::error!(shard = job.shard.name, records = record_index, reason, "a shard ended early");
        let rejected = Rejected::new(Status::CorruptRecord, reason.clone());
        let record = RawRecord::new(record_index.to_string(), Err(rejected));
        if admit(job, record, record_index, meter).is_err() {
            return Ok(());
        }
        record_index += 1;
    }
    tracing::debug!(shard = job.shard.name, records = record_index, "shard read");
    if record_index == 0 && job.shard.format != ShardFormat::Files {
        tracing::warn!(shard = job.shard.name, "shard holds no record");
    }
    warnings.warn(&job.shard.name, &skips);
    let end = ShardEnd { records: record_index, damage, skipped: skips.counts() };
    // a hung-up receiver means that the run is ending
    let _ = job.items.send(ShardItem::End(end));
    Ok(())
}

/// Why a shard is read no further.
enum Stopped {
    Damaged(String),
    /// Nobody waits for its records any more.
    Disconnected,
    Failed(SourceError),
}

/// Hand on the records of a shard. `record_index` is the position of the record that is read next; `all_skips` becomes what
/// is passed over between them.
fn read_records(
    job: &Assignment,
    open: &impl Fn(&ShardRef) -> Result<OpenedShard, ReadError>,
    meter: &StageMeter,
    record_index: &mut u64,
    all_skips: &mut Skips,
) -> Result<(), Stopped> {
    let stopped = |error| match error {
        ReadError::Corrupt(reason) => Stopped::Damaged(reason),
        // if nothing fits the pipeline file, that shows in the first shard; a stray among others costs its own rows
        ReadError::Config(message) if job.shard.index == 0 => {
            Stopped::Failed(SourceError::Uri { uri: job.shard.name.clone(), message })
        }
        ReadError::Config(reason) => Stopped::Damaged(reason),
        ReadError::Storage(error) => Stopped::Failed(failed(&job.shard, error)),
    };
    let refuse_crashed = |index| match job.shard.crashed.reader {
        Some((at, signal)) if at == index => {
            let signal = signal_name(signal);
            Err(Stopped::Damaged(format!(
                "the reader crashed on record {at} in an earlier attempt ({signal})"
            )))
        }
        _ => Ok(()),
    };
    let reading = Reading::of(&job.shard);
    let work = Work::Reading(&reading);
    refuse_crashed(0)?;
    let opened = meter.busy(|| {
        let _at_work = AtWork::on(&work);
        open(&job.shard)
    });
    let OpenedShard { first_record, mut records, skips } = opened.map_err(stopped)?;
    *record_index = first_record;
    *all_skips = skips;
    loop {
        refuse_crashed(*record_index)?;
        reading.reaches(*record_index);
        let next = meter.busy(|| {
            let _at_work = AtWork::on(&work);
            records.next()
        });
        let Some(record) = next else { return Ok(()) };
        let record = record.map_err(stopped)?;
        admit(job, record, *record_index, meter).map_err(|Disconnected| Stopped::Disconnected)?;
        *record_index += 1;
    }
}

/// The store has failed while `shard` was read.
fn failed(shard: &ShardRef, error: StorageError) -> SourceError {
    if error.is_wrong_checksum() {
        SourceError::Garbled { shards: vec![shard.index], error }
    } else {
        error.into()
    }
}

/// Longest `image_id` and `error`, bytes: the longest name an object can have in any bucket. What
/// data claims to be a name must not fill the queues.
const MAX_TEXT_BYTES: usize = 1024;

/// `text` as far as it may go, with an ellipsis where it was cut.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES - '…'.len_utf8()));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// Hand a record on, unless a checkpoint holds it already.
fn admit(
    job: &Assignment,
    record: RawRecord,
    record_index: u64,
    meter: &StageMeter,
) -> Result<(), Disconnected> {
    if record_index < job.shard.resume_at {
        return Ok(());
    }
    let RawRecord { image_id, member, content } = record;
    let content = content.map_err(|rejected| Rejected { error: cut(rejected.error), ..rejected });
    let bytes = content.as_ref().map_or(0, |content| content.len() as u64);
    let permit = job.account.acquire(bytes).ok_or(Disconnected)?;
    job.items.send(ShardItem::Record(EncodedImage {
        shard: Arc::clone(&job.shard),
        record_index,
        image_id: cut(image_id),
        member: member.map(cut),
        content,
        permit,
    }))?;
    meter.add_items(1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_garbled_shard_is_forgotten_over_another_error() {
        let storage = || StorageError {
            uri: "gs://b/a".to_owned(),
            source: object_store::Error::Generic { store: "test", source: "gone".into() },
        };
        let garbled = |shard| SourceError::Garbled { shards: vec![shard], error: storage() };
        let plain = || SourceError::Storage(storage());
        for errors in [
            vec![plain(), garbled(3), garbled(5)],
            vec![garbled(3), plain(), garbled(5)],
            vec![garbled(3), garbled(5), plain()],
        ] {
            match errors.into_iter().reduce(graver) {
                Some(SourceError::Garbled { shards, .. }) => assert_eq!(shards, [3, 5]),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("x".repeat(MAX_TEXT_BYTES)), "x".repeat(MAX_TEXT_BYTES));
        let long = cut("ä".repeat(MAX_TEXT_BYTES));
        assert_eq!(long.len(), MAX_TEXT_BYTES - 1, "{long}");
        assert!(long.ends_with("ä…"));
    }
}
