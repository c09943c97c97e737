//! One call of the scorer: a shard, and what its caller wants.
//!
//! - Every stage that works on a call holds it. Only the first answer counts. If all stages drop the call without an
//!   answer, [`Ticket::wait`] returns `None`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use crossbeam_channel::{Receiver, Select, Sender, bounded, select};

use crate::error::Error;
use crate::flow::StopSignal;
use crate::progress::{BatchCounters, ProgressCounters};
use crate::report::PartReport;

use super::ShardRef;

/// Why a shard stopped before its end.
#[derive(Debug)]
pub enum Cut {
    /// Its call asked for it.
    Stopped,
    /// An error, which its call returns.
    Failed(Error),
}

/// Options of one call.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// The signal that stops the call. Rows scored so far are kept in a checkpoint.
    pub stop: StopSignal,
    /// Counts the call's records and bytes.
    pub progress: Arc<ProgressCounters>,
    /// Counts the batches that the model has run for the call.
    pub batches: Arc<BatchCounters>,
    /// A limit on records, shared by all calls that hold it.
    pub allowance: Option<Arc<Allowance>>,
    /// Whether an error of this call also stops the calls that share its stop signal.
    pub stop_all_on_error: bool,
}

/// Records that calls may still take, together.
#[derive(Debug)]
pub struct Allowance(AtomicU64);

impl Allowance {
    /// An allowance of `records` records.
    pub fn new(records: u64) -> Self {
        Self(AtomicU64::new(records))
    }

    /// Records that are left.
    pub fn left(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Take one record. Only the dispatcher of records calls this, and only while some are left.
    pub(crate) fn take(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Where a shard is resumed, and where earlier attempts crashed in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The rows in checkpoints, from the first record on, without a gap. Their records are not scored again.
    pub segments: Vec<Segment>,
    /// Records on which earlier attempts crashed.
    pub crashed: CrashNotes,
}

impl Resume {
    /// Rows that checkpoints hold.
    pub fn rows(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.to)
    }
}

/// The rows of consecutive records of a shard, stored in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Path below the output.
    pub name: String,
    /// Position in the shard of its first record.
    pub from: u64,
    /// Position after its last record.
    pub to: u64,
    /// Number of the attempt that stored it.
    pub attempt: u32,
    /// Tag of its run.
    pub(crate) run: String,
}

/// The records of a shard on which earlier attempts crashed, each with its signal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrashNotes {
    /// Records on which a native decoder crashed: they are rejected without being decoded.
    pub decoder: BTreeMap<u64, i32>,
    /// The first record on which the reader crashed: the shard counts as damaged from there on.
    pub reader: Option<(u64, i32)>,
}

/// The result of a call.
#[derive(Debug)]
pub enum Scored {
    /// Its part is stored, by this attempt or another.
    Part(Box<PartReport>),
    /// It was stopped before its end.
    Stopped(Kept),
    /// It was not begun: its call was stopped before, or the allowance was used up.
    NotBegun,
}

/// Rows of an unfinished shard that checkpoints hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// All rows.
    pub rows: u64,
    /// Of these, rows that other attempts have scored.
    pub rows_of_others: u64,
}

/// A call on its way through the stages.
#[derive(Debug)]
pub struct Call {
    /// The shard to score.
    pub shard: Arc<ShardRef>,
    /// Where the shard is resumed.
    pub resume: Resume,
    /// What the caller has set.
    pub options: CallOptions,
    answer: Sender<Result<Scored, Error>>,
    marks: Arc<Marks>,
}

/// The state of a call that its caller and the stages share.
#[derive(Debug, Default)]
struct Marks {
    /// [`QUEUED`], [`BEGUN`] or [`CANCELLED`].
    turn: AtomicU8,
    /// Whether the call has failed, so that stages may drop its records.
    has_failed: AtomicBool,
    /// Whether the bytes read of the shard differ from those in its store.
    has_wrong_bytes: AtomicBool,
}

const QUEUED: u8 = 0;
const BEGUN: u8 = 1;
const CANCELLED: u8 = 2;

impl Marks {
    /// Change the turn of a queued call. Returns whether the call was queued.
    fn turn_to(&self, turn: u8) -> bool {
        self.turn.compare_exchange(QUEUED, turn, SeqCst, SeqCst).is_ok()
    }
}

/// The caller's end of a call.
#[derive(Debug)]
pub struct Ticket {
    shard: Arc<ShardRef>,
    answer: Receiver<Result<Scored, Error>>,
    stop: StopSignal,
    marks: Arc<Marks>,
}

impl Call {
    /// A call, and the ticket with which its caller waits.
    pub fn new(shard: ShardRef, resume: Resume, options: CallOptions) -> (Arc<Self>, Ticket) {
        let (tx, rx) = bounded(1);
        let shard = Arc::new(shard);
        let marks = Arc::<Marks>::default();
        let stop = options.stop.clone();
        let ticket = Ticket { shard: Arc::clone(&shard), answer: rx, stop, marks: Arc::clone(&marks) };
        (Arc::new(Self { shard, resume, options, answer: tx, marks }), ticket)
    }

    /// Begin the shard. Returns whether the caller still wants it.
    pub(crate) fn begin(&self) -> bool {
        self.marks.turn_to(BEGUN)
    }

    /// Whether the call has failed, so that the stages may drop its records.
    pub(crate) fn has_failed(&self) -> bool {
        self.marks.has_failed.load(Relaxed)
    }

    /// Note that the bytes read of the shard differ from those in its store. No row of them may be kept.
    pub(crate) fn mark_wrong_bytes(&self) {
        self.marks.has_wrong_bytes.store(true, SeqCst);
    }

    pub(crate) fn has_wrong_bytes(&self) -> bool {
        self.marks.has_wrong_bytes.load(SeqCst)
    }

    /// Note that the shard was cut short. An error also stops the other calls, if the caller wants that.
    pub(crate) fn failed(&self, cut: &Cut) {
        if matches!(cut, Cut::Failed(_)) && self.options.stop_all_on_error {
            self.options.stop.drain();
        }
    }

    /// Send the result to the caller. Only the first answer counts.
    pub fn answer(&self, scored: Result<Scored, Error>) {
        if scored.is_err() {
            self.marks.has_failed.store(true, Relaxed);
            if self.options.stop_all_on_error {
                self.options.stop.drain();
            }
        }
        if let Err(unsent) = self.answer.try_send(scored)
            && let Err(error) = unsent.into_inner()
        {
            tracing::debug!(shard = self.shard.name, %error, "a second error of one shard");
        }
    }
}

impl Ticket {
    /// The shard of the call.
    pub fn shard(&self) -> &Arc<ShardRef> {
        &self.shard
    }

    /// Whether [`Ticket::wait`] returns at once.
    pub fn is_answered(&self) -> bool {
        let mut select = Select::new();
        select.recv(&self.answer);
        select.try_ready().is_ok()
    }

    /// Wait for the answer; `None` if the stages ended without one. A stop answers at once if the shard has not begun.
    pub fn wait(self) -> Option<Result<Scored, Error>> {
        let stopped = select! {
            recv(self.answer) -> answer => return answer.ok(),
            recv(self.stop.asked()) -> _ => self.marks.turn_to(CANCELLED),
        };
        if stopped { Some(Ok(Scored::NotBegun)) } else { self.answer.recv().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ShardContent, ShardFormat};

    fn call(options: CallOptions) -> (Arc<Call>, Ticket) {
        let shard = ShardRef::new(0, "a", ShardFormat::Files, ShardContent::Objects(Vec::new()));
        Call::new(shard, Resume::default(), options)
    }

    fn failure() -> Error {
        Error::StagePanicked { stage: "decode", message: "a".to_owned() }
    }

    #[test]
    fn the_first_answer_counts() {
        let (call, ticket) = call(CallOptions::default());
        assert!(!ticket.is_answered());
        call.answer(Ok(Scored::NotBegun));
        call.answer(Err(failure()));
        assert!(ticket.is_answered());
        assert!(matches!(ticket.wait(), Some(Ok(Scored::NotBegun))));
        assert!(!call.options.stop.is_draining());
    }

    #[test]
    fn a_dropped_call_leaves_no_caller_waiting() {
        let (call, ticket) = call(CallOptions::default());
        drop(call);
        assert!(ticket.is_answered());
        assert!(ticket.wait().is_none());
    }

    #[test]
    fn an_error_stops_the_other_calls_if_the_caller_wants_it() {
        let options = CallOptions { stop_all_on_error: true, ..CallOptions::default() };
        let stop = options.stop.clone();
        let (call, _ticket) = call(options);
        call.answer(Err(failure()));
        assert!(stop.is_draining());
    }

    #[test]
    fn a_stop_answers_only_a_call_that_has_not_begun() {
        let (queued, ticket) = call(CallOptions::default());
        queued.options.stop.drain();
        assert!(matches!(ticket.wait(), Some(Ok(Scored::NotBegun))));
        assert!(!queued.begin(), "the call was cancelled");
        let (begun, ticket) = call(CallOptions::default());
        assert!(begun.begin());
        begun.options.stop.drain();
        begun.answer(Ok(Scored::Stopped(Kept::default())));
        assert!(matches!(ticket.wait(), Some(Ok(Scored::Stopped(_)))));
    }
}
