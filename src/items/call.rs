//! One call of the scorer: a shard, and what its caller wants.
//!
//! - Every stage that works for the call holds it. The first answer counts; if the last stage lets go of the call
//!   without one, the caller gets [`Ticket::wait`]'s `None` rather than waiting for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Select, Sender, bounded};

use crate::error::Error;
use crate::flow::StopSignal;
use crate::progress::ProgressCounters;
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

/// What a caller may set for one call.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Ask this to stop the call: rows scored so far are kept in a checkpoint.
    pub stop: StopSignal,
    /// Counts the call's records and bytes.
    pub progress: Arc<ProgressCounters>,
    /// Records to take at most, shared by all calls that hold it.
    pub allowance: Option<Arc<Allowance>>,
    /// Whether an error of this call also stops the calls that share its stop signal.
    pub stop_all_on_error: bool,
}

/// Records that calls may still take, together.
#[derive(Debug)]
pub struct Allowance(AtomicU64);

impl Allowance {
    /// An allowance of so many records.
    pub fn new(records: u64) -> Self {
        Self(AtomicU64::new(records))
    }

    /// Records that are left.
    pub fn left(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Take one record; whether one was left. Only the dispatcher of records takes any.
    pub(crate) fn take(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// Where a shard is resumed, and what earlier attempts met in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// Rows that checkpoints hold, without a gap from the first record on. Their records are not handed on.
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

/// Rows of some consecutive records of a shard, in an object of their own.
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

/// Where in a shard earlier attempts crashed, each record with the signal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrashNotes {
    /// Records on which a native decoder crashed: they are rejected without being decoded.
    pub decoder: BTreeMap<u64, i32>,
    /// The first record on which the reader crashed: the shard counts as damaged from there on.
    pub reader: Option<(u64, i32)>,
}

/// What became of a shard.
#[derive(Debug)]
pub enum Scored {
    /// Its part is stored, by this attempt or another.
    Part(Box<PartReport>),
    /// It was stopped before its end.
    Stopped(Kept),
    /// The allowance was used up before its first record.
    Unwanted,
}

/// Rows of an unfinished shard that checkpoints hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Rows in all.
    pub rows: u64,
    /// Of these, rows that other attempts have scored.
    pub rows_of_others: u64,
}

/// A call on its way through the stages.
#[derive(Debug)]
pub struct Call {
    /// The shard it belongs to.
    pub shard: Arc<ShardRef>,
    /// Where the shard is resumed.
    pub resume: Resume,
    /// What the caller has set.
    pub options: CallOptions,
    answer: Sender<Result<Scored, Error>>,
}

/// The caller's end of a call.
#[derive(Debug)]
pub struct Ticket {
    shard: Arc<ShardRef>,
    answer: Receiver<Result<Scored, Error>>,
}

impl Call {
    /// A call, and the ticket that its caller waits with.
    pub fn new(shard: ShardRef, resume: Resume, options: CallOptions) -> (Arc<Self>, Ticket) {
        let (tx, rx) = bounded(1);
        let shard = Arc::new(shard);
        let ticket = Ticket { shard: Arc::clone(&shard), answer: rx };
        (Arc::new(Self { shard, resume, options, answer: tx }), ticket)
    }

    /// The shard stops short: an error stops the other calls, if the caller wants that.
    pub(crate) fn failed(&self, cut: &Cut) {
        if matches!(cut, Cut::Failed(_)) && self.options.stop_all_on_error {
            self.options.stop.drain();
        }
    }

    /// Tell the caller what became of the shard. Only the first answer counts.
    pub fn answer(&self, scored: Result<Scored, Error>) {
        if scored.is_err() && self.options.stop_all_on_error {
            self.options.stop.drain();
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

    /// Wait for the answer; `None` if the stages ended without one.
    pub fn wait(self) -> Option<Result<Scored, Error>> {
        self.answer.recv().ok()
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
        call.answer(Ok(Scored::Unwanted));
        call.answer(Err(failure()));
        assert!(ticket.is_answered());
        assert!(matches!(ticket.wait(), Some(Ok(Scored::Unwanted))));
        assert!(!call.options.stop.is_draining());
    }

    #[test]
    fn a_call_that_every_stage_let_go_of_leaves_no_caller_waiting() {
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
    fn an_allowance_is_never_overdrawn() {
        let allowance = Allowance::new(2);
        assert_eq!([(); 3].map(|()| allowance.take()), [true, true, false]);
        assert_eq!(allowance.left(), 0);
    }
}
