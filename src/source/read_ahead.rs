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

/// A reader's place in the order of shards. What takes much memory waits for the shard's turn: it is held once, however
/// many shards are read ahead.
#[derive(Debug, Clone)]
pub struct Turn {
    account: Account,
    meter: Arc<StageMeter>,
}

impl Turn {
    /// Wait until all shards before this one have been read; not for long once the run is ending: then it is not its
    /// turn.
    pub(super) fn wait(&self) -> bool {
        self.meter.blocked(|| self.account.wait_for_turn())
    }

    /// Whether the run is ending, so that nobody waits for the shard's records any more.
    pub(super) fn is_over(&self) -> bool {
        self.account.is_closed()
    }
}

/// One shard for one reader thread.
struct Assignment {
    shard: Arc<ShardRef>,
    items: Sender<ShardItem>,
    turn: Turn,
}

/// Read all `shards` through `open` until they end, the receiver of `out` hangs up, or the store
/// fails.
pub fn run(
    shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    open: impl Fn(&ShardRef, &Turn) -> Result<OpenedShard, ReadError> + Send + Sync,
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
            let job = Assignment {
                shard: Arc::clone(&shard),
                items,
                turn: Turn { account: account.clone(), meter: Arc::clone(meter) },
            };
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
///
/// A shard that is resumed may have fewer sound records by now than a checkpoint holds of it, as a file that rots on
/// its disk. Nothing of it has been handed on then, and it is read once more from its first record: its rows are
/// those of what can be read now, as in a run in one go.
fn read_shard(
    job: &Assignment,
    open: &impl Fn(&ShardRef, &Turn) -> Result<OpenedShard, ReadError>,
    warnings: &SkipWarnings,
    meter: &StageMeter,
) -> Result<(), SourceError> {
    let resume_at = job.shard.resume_at;
    let mut ended = read_records(job, resume_at, open, meter);
    if let Ok(Contents { sound, .. }) = ended
        && sound < resume_at
    {
        tracing::warn!(
            shard = job.shard.name,
            sound_records = sound,
            checkpoint_records = resume_at,
            "the shard has fewer sound records than a checkpoint holds of it: all of it is scored again"
        );
        ended = read_records(job, 0, open, meter);
    }
    let Contents { sound, damage, skips } = match ended {
        Ok(contents) => contents,
        Err(Stopped::Disconnected) => return Ok(()),
        Err(Stopped::Failed(error)) => return Err(error),
    };
    let mut records = sound;
    if let Some(reason) = &damage {
        tracing::error!(shard = job.shard.name, records, reason, "a shard ended early");
        let rejected = Rejected::new(Status::CorruptRecord, reason.clone());
        let record = RawRecord::new(records.to_string(), Err(rejected));
        if admit(job, record, records, meter).is_err() {
            return Ok(());
        }
        records += 1;
    }
    tracing::debug!(shard = job.shard.name, records, "shard read");
    if records == 0 && job.shard.format != ShardFormat::Files {
        tracing::warn!(shard = job.shard.name, "shard holds no record");
    }
    warnings.warn(&job.shard.name, &skips);
    // a hung-up receiver means that the run is ending
    let _ = job.items.send(ShardItem::End(ShardEnd { records, damage, skipped: skips.counts() }));
    Ok(())
}

/// Why nothing more is to be had of a shard, whatever is in it.
enum Stopped {
    /// Nobody waits for its records any more.
    Disconnected,
    Failed(SourceError),
}

/// What a shard was found to hold.
struct Contents {
    /// Records before its end, or before what is damaged.
    sound: u64,
    /// Why it ends early, if it does.
    damage: Option<String>,
    /// What was passed over between records.
    skips: Skips,
}

/// Read the records of a shard, and hand on those from number `first` on.
fn read_records(
    job: &Assignment,
    first: u64,
    open: &impl Fn(&ShardRef, &Turn) -> Result<OpenedShard, ReadError>,
    meter: &StageMeter,
) -> Result<Contents, Stopped> {
    // why the shard ends here, or why the run does
    let damage = |error| match error {
        // it may have waited for its turn, which then did not come
        ReadError::Corrupt(_) if job.turn.is_over() => Err(Stopped::Disconnected),
        ReadError::Corrupt(reason) => Ok(reason),
        // if nothing fits the pipeline file, that shows in the first shard; a stray among others costs its own rows
        ReadError::Config(message) if job.shard.index == 0 => {
            Err(Stopped::Failed(SourceError::Uri { uri: job.shard.name.clone(), message }))
        }
        ReadError::Config(reason) => Ok(reason),
        ReadError::Storage(error) => Err(Stopped::Failed(failed(&job.shard, error))),
    };
    let from_start;
    let shard = if first == job.shard.resume_at {
        &*job.shard
    } else {
        from_start = ShardRef { resume_at: first, ..(*job.shard).clone() };
        &from_start
    };
    let refused = |index| match shard.crashed.reader {
        Some((at, signal)) if at == index => {
            let signal = signal_name(signal);
            Some(format!("the reader crashed on record {at} in an earlier attempt ({signal})"))
        }
        _ => None,
    };
    let damaged = |sound, skips, reason| Ok(Contents { sound, damage: Some(reason), skips });
    let reading = Reading::of(&job.shard);
    let work = Work::Reading(&reading);
    if let Some(reason) = refused(0) {
        return damaged(0, Skips::default(), reason);
    }
    let opened = meter.busy(|| {
        let _at_work = AtWork::on(&work);
        open(shard, &job.turn)
    });
    let OpenedShard { first_record, mut records, skips } = match opened {
        Ok(opened) => opened,
        Err(error) => return damaged(0, Skips::default(), damage(error)?),
    };
    let mut record_index = first_record;
    loop {
        if let Some(reason) = refused(record_index) {
            return damaged(record_index, skips, reason);
        }
        reading.reaches(record_index);
        let next = meter.busy(|| {
            let _at_work = AtWork::on(&work);
            records.next()
        });
        let record = match next {
            None => return Ok(Contents { sound: record_index, damage: None, skips }),
            Some(Ok(record)) => record,
            Some(Err(error)) => return damaged(record_index, skips, damage(error)?),
        };
        // a checkpoint holds what comes before
        if record_index >= first {
            admit(job, record, record_index, meter).map_err(|Disconnected| Stopped::Disconnected)?;
        }
        record_index += 1;
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

/// Hand a record on.
fn admit(
    job: &Assignment,
    record: RawRecord,
    record_index: u64,
    meter: &StageMeter,
) -> Result<(), Disconnected> {
    let RawRecord { image_id, member, content } = record;
    let content = content.map_err(|rejected| Rejected { error: cut(rejected.error), ..rejected });
    let bytes = content.as_ref().map_or(0, |content| content.len() as u64);
    let permit = job.turn.account.acquire(bytes).ok_or(Disconnected)?;
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
