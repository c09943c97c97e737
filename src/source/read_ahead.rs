//! The source stage: a few threads read shards ahead, each into a stream of its own.
//!
//! Input: calls of the scorer. Output: one [`ShardStream`] for each, in the same order.
//!
//! - At most `readers` shards are read at once. The decode stage takes the streams one after another, so records keep
//!   the order of the calls whatever the readers' speed.
//! - Each stream is bounded in records. One [`Budget`] bounds the bytes of all streams, and shards that are read ahead
//!   cannot use the share of the shard that is being decoded.
//! - A damaged shard ends with one `corrupt_record` row. A panic of a parser counts as damage. A store error or any
//!   other panic fails that shard only. If the reader crashed on a record in an earlier attempt, the shard counts as
//!   damaged from that record on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::crash::{AtWork, Reading, Work, signal_name};
use crate::error::{Error, ReadError, SourceError, panic_message};
use crate::flow::{
    Account, Budget, BudgetLimits, Disconnected, Sender, StageMeter, channel, hand_over, spawn_named,
};
use crate::items::{
    Call, EncodedImage, Feed, RawRecord, Rejected, ShardEnd, ShardFormat, ShardItem, ShardRef, ShardStream,
    Status,
};

use super::OpenedShard;
use super::skips::{SkipWarnings, Skips};

/// Bounds of the stage.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead {
    /// Shards read at once.
    pub readers: usize,
    /// Records that may wait in one stream.
    pub records_per_shard: usize,
    /// Encoded bytes of all streams, from being read to being decoded.
    pub budget: BudgetLimits,
}

/// A reader's place in the order of shards. A reader that needs much memory waits for its shard's turn, so only one
/// reader holds that much at a time.
#[derive(Debug, Clone)]
pub struct Turn {
    account: Account,
    meter: Arc<StageMeter>,
}

impl Turn {
    /// Wait until the decode stage starts on this shard. Returns `false` if the receiver of its records hangs up first.
    pub(super) fn wait(&self) -> bool {
        self.meter.blocked(|| self.account.wait_for_turn())
    }

    /// Whether the receiver of the shard's records has hung up.
    pub(super) fn is_over(&self) -> bool {
        self.account.is_closed()
    }
}

/// One shard for one reader thread.
struct Assignment {
    call: Arc<Call>,
    items: Sender<ShardItem>,
    turn: Turn,
}

/// Read the shards of `calls` through `open` until the callers hang up. Calls that arrive after the receiver of `out`
/// has hung up are dropped.
pub fn run(
    calls: &crossbeam_channel::Receiver<Feed<Arc<Call>>>,
    open: impl Fn(&ShardRef, u64, &Turn) -> Result<OpenedShard, ReadError> + Send + Sync,
    out: Sender<Feed<ShardStream>>,
    bounds: ReadAhead,
    meter: &Arc<StageMeter>,
    decode_meter: &Arc<StageMeter>,
) {
    let budget = Budget::new(bounds.budget);
    let warnings = SkipWarnings::default();
    // a rendezvous: a shard is handed over only when a reader is free
    let (jobs, next_job) = crossbeam_channel::bounded::<Assignment>(0);
    std::thread::scope(|scope| {
        for number in 0..bounds.readers {
            let (next_job, open, warnings) = (next_job.clone(), &open, &warnings);
            let read = move || next_job.iter().for_each(|job| read_or_fail(&job, open, warnings, meter));
            spawn_named(scope, format!("source-{number}"), read);
        }
        drop(next_job);
        for call in calls {
            let call = match call {
                Feed::Shard(call) => call,
                // a decode stage that is lost needs neither
                Feed::Flush => {
                    let _ = out.send(Feed::Flush);
                    continue;
                }
                Feed::StoreBatches(stored) => {
                    let _ = out.send(Feed::StoreBatches(stored));
                    continue;
                }
            };
            // all readers share the meter of their stage, which counts their waits for room in a stream
            let (items, stream) = channel(bounds.records_per_shard, meter, decode_meter);
            let account = budget.account();
            let turn = Turn { account: account.clone(), meter: Arc::clone(meter) };
            let job = Assignment { call: Arc::clone(&call), items, turn };
            let stop = call.options.stop.clone();
            let stream = ShardStream { call, items: stream, account };
            if out.send(Feed::Shard(stream)).is_ok() {
                // a call that asks to stop may get no reader: its stream then ends at once, and the decode stage sees
                // the request
                let _ = hand_over(&jobs, job, &stop);
            }
        }
        drop((jobs, out));
    });
}

/// Read one shard to its end, or send the error that failed it.
fn read_or_fail(
    job: &Assignment,
    open: &impl Fn(&ShardRef, u64, &Turn) -> Result<OpenedShard, ReadError>,
    warnings: &SkipWarnings,
    meter: &StageMeter,
) {
    // the state that a panicking reader leaves behind is dropped with it
    let read = catch_unwind(AssertUnwindSafe(|| read_shard(job, open, warnings, meter)));
    let error = match read {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.into(),
        Err(panic) => {
            Error::StagePanicked { stage: "source", message: panic_message(panic.as_ref()).to_owned() }
        }
    };
    if error.is_wrong_checksum() {
        job.call.mark_wrong_bytes();
    }
    // a receiver that hung up does not need the error
    let _ = job.items.send(ShardItem::Failed(error));
}

/// Read one shard to its end. A receiver that hung up is not an error.
///
/// A resumed shard may have fewer sound records than its checkpoints hold, for example if its file was damaged on disk
/// between two attempts. No record has been sent by then, so the shard is read again from its first record and gets the
/// rows of a run without a resume.
fn read_shard(
    job: &Assignment,
    open: &impl Fn(&ShardRef, u64, &Turn) -> Result<OpenedShard, ReadError>,
    warnings: &SkipWarnings,
    meter: &StageMeter,
) -> Result<(), SourceError> {
    let shard = &job.call.shard;
    let resumed = job.call.resume.rows();
    let mut ended = read_records(job, resumed, open, meter);
    if let Ok(Contents { sound, .. }) = ended
        && sound < resumed
    {
        tracing::warn!(
            shard = shard.name,
            sound_records = sound,
            checkpoint_records = resumed,
            "the shard has fewer sound records than a checkpoint holds: scoring it from its first record"
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
        tracing::error!(shard = shard.name, records, reason, "a shard ended early");
        let rejected = Rejected::new(Status::CorruptRecord, reason.clone());
        let record = RawRecord::new(records.to_string(), Err(rejected));
        if admit(job, record, records, meter).is_err() {
            return Ok(());
        }
        records += 1;
    }
    tracing::debug!(shard = shard.name, records, "shard read");
    if records == 0 && shard.format != ShardFormat::Files {
        tracing::warn!(shard = shard.name, "shard holds no record");
    }
    warnings.warn(&shard.name, &skips);
    // a receiver that hung up does not need the end
    let _ = job.items.send(ShardItem::End(ShardEnd { records, damage, skipped: skips.counts() }));
    Ok(())
}

/// Why a shard was read neither to its end nor to its damage.
enum Stopped {
    /// The receiver of its records hung up.
    Disconnected,
    Failed(SourceError),
}

/// The contents of a shard.
struct Contents {
    /// Records before its end, or before the damage.
    sound: u64,
    /// The reason, if the shard ends early.
    damage: Option<String>,
    /// Members and files that are not records.
    skips: Skips,
}

/// Read the records of a shard and send those from index `first` on.
fn read_records(
    job: &Assignment,
    first: u64,
    open: &impl Fn(&ShardRef, u64, &Turn) -> Result<OpenedShard, ReadError>,
    meter: &StageMeter,
) -> Result<Contents, Stopped> {
    let shard = &job.call.shard;
    // the reason why the shard ends here, or the error that fails it
    let damage = |error| match error {
        // the reader may have given up waiting for its turn
        ReadError::Corrupt(_) if job.turn.is_over() => Err(Stopped::Disconnected),
        ReadError::Corrupt(reason) => Ok(reason),
        // if the keys fit no shard, the first one shows it; a later shard that they do not fit loses only its own rows
        ReadError::Config(message) if shard.index == 0 => {
            Err(Stopped::Failed(SourceError::Uri { uri: shard.name.clone(), message }))
        }
        ReadError::Config(reason) => Ok(reason),
        ReadError::Storage(error) => Err(Stopped::Failed(error.into())),
    };
    let refused = |index| match job.call.resume.crashed.reader {
        Some((at, signal)) if at == index => {
            let signal = signal_name(signal);
            Some(format!("the reader crashed on record {at} in an earlier attempt ({signal})"))
        }
        _ => None,
    };
    let damaged = |sound, skips, reason| Ok(Contents { sound, damage: Some(reason), skips });
    let reading = Reading::of(shard);
    let work = Work::Reading(&reading);
    if let Some(reason) = refused(0) {
        return damaged(0, Skips::default(), reason);
    }
    let opened = meter.busy(|| {
        let _at_work = AtWork::on(&work);
        open(shard, first, &job.turn)
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
        // a checkpoint holds the records before `first`
        if record_index >= first {
            admit(job, record, record_index, meter).map_err(|Disconnected| Stopped::Disconnected)?;
        }
        record_index += 1;
    }
}

/// Longest `image_id`, `member` and `error` in bytes. No bucket allows longer object names. Without a limit, long names
/// in damaged or hostile data could fill the queues.
const MAX_TEXT_BYTES: usize = 1024;

/// Shorten `text` to [`MAX_TEXT_BYTES`], with an ellipsis at the cut.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES - '…'.len_utf8()));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// Send a record to the decode stage once the budget has room for it.
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
        crashed: job.call.resume.crashed.decoder.get(&record_index).copied(),
        shard: Arc::clone(&job.call.shard),
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
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("x".repeat(MAX_TEXT_BYTES)), "x".repeat(MAX_TEXT_BYTES));
        let long = cut("ä".repeat(MAX_TEXT_BYTES));
        assert_eq!(long.len(), MAX_TEXT_BYTES - 1, "{long}");
        assert!(long.ends_with("ä…"));
    }
}
