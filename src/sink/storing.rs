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

use crate::commit::{AttemptNote, Output, Segment, Stored, check_current, read_part};
use crate::error::{Error, SinkError, panic_message};
use crate::flow::spawn_stage;
use crate::items::{Call, Scored};
use crate::report::{OutputReport, PartReport, rfc3339};

use super::open_part::ClosedPart;
use super::part::PendingPart;

/// Finished parts that may wait for the store's acknowledgement. A bucket takes some 100 ms for it; eight in flight keep
/// shards of 20 images flowing at 1,500 images/s.
pub const PENDING_PARTS: usize = 8;

/// The pause before the next write of the note, as a multiple of the last write's duration. Parts that are in no note
/// are read instead.
const NOTE_PAUSE_FACTOR: u32 = 200;

/// The longest pause between two writes of the note, in case a single write was slow.
const MAX_NOTE_PAUSE: Duration = Duration::from_secs(600);

/// A message to the thread.
enum ToStore {
    Part {
        call: Arc<Call>,
        file: PendingPart,
        part: ClosedPart,
    },
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
    pub fn start(
        output: Output,
        run_id: String,
        note: AttemptNote,
        note_interval: Duration,
    ) -> Result<Self, Error> {
        // the thread holds one more
        let (parts, received) = bounded(PENDING_PARTS - 1);
        let storer = Storer {
            output,
            run_id,
            note,
            note_interval,
            note_due: Instant::now() + note_interval,
            report: OutputReport::default(),
        };
        let thread =
            spawn_stage("store", move || storer.run(&received)).map_err(|error| Error::threads(1, &error))?;
        Ok(Self { parts: Some(parts), thread: Some(thread) })
    }

    /// Hand a part over; waits while too many are on their way.
    pub fn part(&self, call: Arc<Call>, file: PendingPart, part: ClosedPart) {
        self.hand_over(ToStore::Part { call, file, part });
    }

    pub fn part_of_another(&self, call: Arc<Call>, part: PartReport) {
        self.hand_over(ToStore::PartOfAnother(call, part));
    }

    pub fn batches(&self, part: PartReport) {
        self.hand_over(ToStore::Batches(part));
    }

    fn hand_over(&self, what: ToStore) {
        let parts = self.parts.as_ref().expect("open until the end");
        // a thread that has ended has dropped its calls
        let _ = parts.send(what);
    }

    /// Wait until all parts are stored, write the attempt's note, and report what it stored.
    pub fn finish(mut self) -> Result<OutputReport, SinkError> {
        self.parts = None;
        let thread = self.thread.take().expect("running until the end");
        let mut storer = match thread.join() {
            Ok(storer) => storer,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        storer.write_note()?;
        Ok(storer.report)
    }
}

/// The thread's state.
struct Storer {
    output: Output,
    run_id: String,
    note: AttemptNote,
    note_interval: Duration,
    note_due: Instant,
    report: OutputReport,
}

impl Storer {
    fn run(mut self, parts: &Receiver<ToStore>) -> Self {
        for part in parts {
            match part {
                ToStore::Part { call, file, part } => {
                    // a panic loses this part alone: nothing of it is counted before it is stored
                    let stored = catch_unwind(AssertUnwindSafe(|| self.store(file, part)));
                    call.answer(match stored {
                        Ok(stored) => stored.map(|part| Scored::Part(Box::new(part))).map_err(Error::from),
                        Err(panic) => Err(panicked(panic.as_ref())),
                    });
                }
                ToStore::PartOfAnother(call, part) => {
                    self.count(part.clone());
                    call.answer(Ok(Scored::Part(Box::new(part))));
                }
                ToStore::Batches(part) => self.report.batches.push(part),
            }
            if Instant::now() >= self.note_due
                && let Err(error) = self.write_note()
            {
                // parts in no note are read instead
                tracing::warn!(%error, "the attempt's note cannot be written");
            }
        }
        self
    }

    /// Wait until a part is stored, by this attempt or another.
    fn store(&mut self, file: PendingPart, part: ClosedPart) -> Result<PartReport, SinkError> {
        let (path, stored) = file.wait()?;
        let ClosedPart { report, segments, reused } = part;
        let report = if stored.was_there {
            let theirs = self.stored_by_another(&path, &stored, &report)?;
            if theirs.sha256 == stored.sha256 {
                // this attempt stored it, and the store's response was lost
                self.report.reused.add(&reused);
            }
            theirs
        } else {
            self.report.reused.add(&reused);
            PartReport { path, bytes: stored.bytes, sha256: stored.sha256, ..report }
        };
        self.count(report.clone());
        self.remove_segments(&segments);
        Ok(report)
    }

    /// The part that exists already. It must belong to this run and have as many rows as `own`.
    fn stored_by_another(
        &self,
        path: &str,
        stored: &Stored,
        own: &PartReport,
    ) -> Result<PartReport, SinkError> {
        // if this run was removed, the part may belong to another one
        check_current(&self.output, &self.run_id)?;
        let theirs = read_part(&self.output, path, &self.run_id)?;
        if theirs.sha256 == stored.sha256 {
            return Ok(theirs);
        }
        if theirs.rows != own.rows {
            let message = "another attempt stored it with another number of rows".to_owned();
            return Err(SinkError::Uri { uri: self.output.uri_of(path), message });
        }
        if theirs.rows_by_status == own.rows_by_status {
            tracing::info!(part = path, "another attempt stored the part first");
        } else {
            // a web server answered only one of the attempts, or one of them crashed on a record
            tracing::warn!(part = path, "another attempt stored the part first, and rejected other records");
        }
        Ok(theirs)
    }

    fn count(&mut self, part: PartReport) {
        if let Some(rows) = &part.rows_by_status {
            self.report.tally.add(rows);
        }
        self.report.parts.push(part);
    }

    /// Remove the segments that a part was assembled from. The part is stored even if this fails.
    fn remove_segments(&self, segments: &[Segment]) {
        let segments: Vec<_> = segments.iter().map(|segment| segment.name.clone()).collect();
        if let Err(error) = self.output.remove(&segments) {
            tracing::warn!(%error, "segments of a finished shard are left");
        }
    }

    /// Replace the attempt's note with one that lists what is stored. The whole note is written each time, so the pause
    /// before the next write grows with its length.
    fn write_note(&mut self) -> Result<(), SinkError> {
        let start = Instant::now();
        check_current(&self.output, &self.run_id)?;
        self.note.updated_at = rfc3339(SystemTime::now());
        self.note.rows = self.report.tally.rows();
        self.note.parts.clone_from(&self.report.parts);
        self.note.batches.clone_from(&self.report.batches);
        let written = self.note.store(&self.output);
        let pause = MAX_NOTE_PAUSE.min(NOTE_PAUSE_FACTOR * start.elapsed()).max(self.note_interval);
        self.note_due = Instant::now() + pause;
        written
    }
}

/// A panic as an error of the sink stage.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::StagePanicked { stage: "sink", message: panic_message(panic).to_owned() }
}
