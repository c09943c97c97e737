//! The last step of a part: wait until it is stored, note it, and answer its call.
//!
//! Input: parts whose last row was written, in order. Output: an answer for each, and the attempt's note, which
//! lists what this attempt stored.
//!
//! - This runs on its own thread, so that a call is answered as soon as its part is stored, while the sink continues
//!   with the next shard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::commit::{AttemptNote, Stored, read_part_twice};
use crate::error::{Error, SinkError, panic_message};
use crate::flow::spawn_stage;
use crate::items::{Call, Scored};
use crate::report::{OutputReport, PartReport, Tally, rfc3339};

use super::attempt::Attempt;
use super::open_part::ClosedPart;

/// Finished parts that may wait for the store's acknowledgement. A bucket takes some 100 ms for it; eight in flight
/// keep shards of 20 images flowing at 1,500 images/s.
pub const PENDING_PARTS: usize = 8;

/// The pause before the next write of the note, as a multiple of the last write's duration. Parts that are in no note
/// are read instead.
const NOTE_PAUSE_FACTOR: u32 = 200;

/// The longest pause between two writes of the note, in case a single write was slow.
const MAX_NOTE_PAUSE: Duration = Duration::from_secs(600);

/// A message to the thread.
pub(super) enum ToStore {
    Part(ClosedPart),
    /// A part that another attempt stored.
    PartOfAnother(Arc<Call>, PartReport),
    /// A batches part that is stored.
    Batches(PartReport),
}

/// The sink's end.
pub(super) struct Storing {
    /// `None` once no more parts are handed over.
    parts: Option<Sender<ToStore>>,
    thread: Option<JoinHandle<Storer>>,
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.parts = None;
        // the thread has reported its own panic
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Storing {
    /// Start the thread for the attempt of `note`. The note is written no more often than `note_interval`.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system has no thread left.
    pub fn start(attempt: Arc<Attempt>, note: AttemptNote, note_interval: Duration) -> Result<Self, Error> {
        // the thread holds one more
        let (parts, received) = bounded(PENDING_PARTS - 1);
        let storer = Storer {
            attempt,
            note,
            note_interval,
            note_due: Instant::now() + note_interval,
            tally: Tally::default(),
            reused: Tally::default(),
        };
        let thread =
            spawn_stage("store", move || storer.run(&received)).map_err(|error| Error::threads(1, &error))?;
        Ok(Self { parts: Some(parts), thread: Some(thread) })
    }

    /// Hand a part over. Waits while too many are on their way.
    pub fn hand_over(&self, part: ToStore) {
        let parts = self.parts.as_ref().expect("open until the end");
        // without the thread, the part is dropped, and its call ends with an error
        let _ = parts.send(part);
    }

    /// Wait until all parts are stored, write the attempt's note, and report what it stored.
    pub fn finish(mut self) -> Result<OutputReport, SinkError> {
        self.parts = None;
        let thread = self.thread.take().expect("running until the end");
        let mut storer = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        storer.write_note()?;
        let Storer { note: AttemptNote { parts, batches, .. }, tally, reused, .. } = storer;
        Ok(OutputReport { tally, parts, batches, reused, ..OutputReport::default() })
    }
}

/// The thread's state.
struct Storer {
    attempt: Arc<Attempt>,
    /// Lists what is stored.
    note: AttemptNote,
    note_interval: Duration,
    note_due: Instant,
    /// Rows of the parts in the note, by status.
    tally: Tally,
    /// Of these, rows that other attempts scored.
    reused: Tally,
}

impl Storer {
    fn run(mut self, parts: &Receiver<ToStore>) -> Self {
        for part in parts {
            match part {
                ToStore::Part(part) => {
                    let call = Arc::clone(&part.call);
                    // a panic loses this part alone: nothing of it is counted before it is stored
                    let stored = catch_unwind(AssertUnwindSafe(|| self.store(part)));
                    call.answer(match stored {
                        Ok(stored) => stored.map(|part| Scored::Part(Box::new(part))).map_err(Error::from),
                        Err(panic) => Err(panicked(panic.as_ref())),
                    });
                }
                ToStore::PartOfAnother(call, part) => {
                    self.count(part.clone());
                    call.answer(Ok(Scored::Part(Box::new(part))));
                }
                ToStore::Batches(part) => self.note.batches.push(part),
            }
            if Instant::now() >= self.note_due {
                let noted = catch_unwind(AssertUnwindSafe(|| self.write_note()));
                let noted = noted.map_err(|panic| panicked(panic.as_ref()));
                if let Err(error) = noted.and_then(|noted| noted.map_err(Error::from)) {
                    // parts in no note are read instead
                    tracing::warn!(%error, "the attempt's note cannot be written");
                }
            }
        }
        self
    }

    /// Wait until a part is stored, by this attempt or another.
    fn store(&mut self, part: ClosedPart) -> Result<PartReport, SinkError> {
        let ClosedPart { file, report, segments, reused, .. } = part;
        let Stored { bytes, sha256, was_there } = file.wait()?;
        let own = PartReport { bytes, sha256, ..report };
        let stored = if was_there { self.stored_by_another(&own)? } else { own.clone() };
        // if the part was there with the same content, this attempt stored it, and the store's response was lost
        if stored.sha256 == own.sha256 {
            self.reused.add(&reused);
        }
        self.count(stored.clone());
        if let Err(error) = self.attempt.output.remove(&segments) {
            tracing::warn!(%error, "segments of a finished shard are left");
        }
        Ok(stored)
    }

    /// The part that exists already. It must belong to this run and have as many rows as `own`.
    fn stored_by_another(&self, own: &PartReport) -> Result<PartReport, SinkError> {
        let Attempt { output, run_id, .. } = &*self.attempt;
        let part = &own.path;
        // if this run was removed, the part may belong to another one
        self.attempt.check_current()?;
        let theirs = read_part_twice(output, part, run_id)?;
        if theirs.sha256 == own.sha256 {
            return Ok(theirs);
        }
        if theirs.rows != own.rows {
            let message = "another attempt stored it with another number of rows".to_owned();
            return Err(SinkError::Uri { uri: output.uri_of(part), message });
        }
        if theirs.rows_by_status == own.rows_by_status {
            tracing::info!(part, "another attempt stored the part first");
        } else {
            // a web server answered only one of the attempts, or one of them crashed on a record
            tracing::warn!(part, "another attempt stored the part first, and rejected other records");
        }
        Ok(theirs)
    }

    fn count(&mut self, part: PartReport) {
        if let Some(rows) = &part.rows_by_status {
            self.tally.add(rows);
        }
        self.note.parts.push(part);
    }

    /// Replace the attempt's note with one that lists what is stored. The whole note is written each time, so the pause
    /// before the next write grows with its length. A run whose parts are decided gets no more notes.
    fn write_note(&mut self) -> Result<(), SinkError> {
        let start = Instant::now();
        if self.attempt.is_decided()? {
            return Ok(());
        }
        self.note.updated_at = rfc3339(SystemTime::now());
        self.note.rows = self.tally.rows();
        let written = self.note.store(&self.attempt.output).and_then(|()| self.withdraw_note());
        let pause = MAX_NOTE_PAUSE.min(NOTE_PAUSE_FACTOR * start.elapsed()).max(self.note_interval);
        self.note_due = Instant::now() + pause;
        written
    }

    /// Remove the note if the run was finished while it was written: no other attempt will.
    fn withdraw_note(&self) -> Result<(), SinkError> {
        if self.attempt.is_decided()? { self.attempt.output.remove(&[self.note.name()]) } else { Ok(()) }
    }
}

/// A panic as an error of the sink stage.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::StagePanicked { stage: "sink", message: panic_message(panic).to_owned() }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;

    #[test]
    fn a_run_that_was_finished_elsewhere_gets_no_note() {
        let runtime = Runtime::new().expect("runtime");
        for is_finished in [false, true] {
            let attempt = Arc::new(Attempt::in_memory(&runtime));
            let note = AttemptNote { run_id: attempt.run_id.clone(), ..AttemptNote::begun(0, 1) };
            let name = note.name();
            let storing =
                Storing::start(Arc::clone(&attempt), note, Duration::from_secs(600)).expect("a thread");
            if is_finished {
                attempt.finish_elsewhere();
            }
            storing.finish().expect("finished");
            assert_eq!(attempt.output.read_if_any(&name).expect("readable").is_none(), is_finished);
        }
    }
}
