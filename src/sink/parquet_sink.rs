//! Entries into parts: opens a part with its shard, closes it with the shard's end, and takes
//! checkpoints in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::commit::{
    AttemptNote, Checkpoints, Output, READ_BYTES, Segment, Stored, UPLOAD_BYTES, part_name, shard_index,
};
use crate::error::SinkError;
use crate::items::{Entry, Inferred, Outcome, RecordMeta, ShardEnd, ShardRef, Status};
use crate::plan::Plan;
use crate::report::{OutputReport, PartReport, rfc3339};

use super::Sink;
use super::advance::Advance;
use super::batches::BatchesWriter;
use super::open_part::{ClosedPart, OpenPart};
use super::part::PendingPart;
use super::rows::{BYTES_PER_ENCODE, PredictionRows, RunColumns};
use super::schema::ROW_GROUP_BYTES;

/// Finished parts that may wait for the store's acknowledgement. A bucket takes some 100 ms for
/// it; eight in flight keep shards of 20 images flowing at 1,500 images/s.
pub const PENDING_PARTS: usize = 8;

/// Bytes of a shard's rows after which a checkpoint is taken whatever the time: a segment is held in
/// memory when its part is put together.
const SEGMENT_BYTES: usize = 64 << 20;

/// The most that parts hold in memory: the one being written, the run's batches part, those being
/// stored, the row groups that the first two are encoding, and a segment being read back, which ends
/// with a row group. Rows that wait to be encoded have columns that grow by doubling, and are held beside what is made
/// of them.
pub const PARTS_BYTES: u64 = (PENDING_PARTS as u64 + 3) * UPLOAD_BYTES
    + 3 * ROW_GROUP_BYTES as u64
    + SEGMENT_BYTES as u64
    + 3 * BYTES_PER_ENCODE as u64
    + READ_BYTES as u64;

/// Times as long as a note takes to be written that its attempt does other things before it writes the next one. Parts
/// that are in no note are read by who needs to know of them.
const NOTE_SHARE: u32 = 200;

/// The longest such time: a store may have been slow once.
const NOTE_AT_LEAST_EVERY: Duration = Duration::from_secs(600);

/// What the rows and footers of a run are marked with.
#[derive(Debug, Clone)]
pub struct RunIdentity {
    pub run_id: String,
    /// Number of this worker among those that share the output.
    pub shard_index: u32,
    /// Number of this attempt at the run, from 0, over all workers.
    pub attempt: u32,
    pub model_sha256: String,
    pub plan_sha256: String,
    /// Class names in output order, as a JSON array.
    pub labels: Option<String>,
}

impl RunIdentity {
    /// The `worker` column.
    pub(super) fn worker(&self) -> String {
        format!("{:06}", self.shard_index)
    }
}

/// Writes a run's Parquet.
#[derive(Debug)]
pub struct ParquetSink {
    output: Output,
    identity: RunIdentity,
    /// What other attempts have left of shards that had not ended.
    checkpoints: Checkpoints,
    checkpoint_interval: Duration,
    checkpoint_due: Instant,
    open: Option<OpenPart>,
    rows: PredictionRows,
    classes: usize,
    pending: VecDeque<Pending>,
    batches: BatchesWriter,
    note: AttemptNote,
    note_due: Instant,
    report: OutputReport,
    /// The place in the input of the last shard that has begun.
    last_begun: Option<u64>,
    /// Places of shards whose parts another attempt has stored.
    theirs: Vec<u64>,
    /// Whether this attempt has warned of scores that are not finite.
    has_warned: bool,
    /// How far this worker's share has come.
    advance: Arc<Advance>,
}

/// A file on its way to the store.
#[derive(Debug)]
struct Pending {
    file: PendingPart,
    /// The part it is; `None` for a segment of one.
    part: Option<ClosedPart>,
}

impl ParquetSink {
    /// A sink for rows of `classes` scores, of the attempt that `note` is of; `advance` counts what it takes.
    pub fn new(
        output: Output,
        plan: &Plan,
        identity: RunIdentity,
        classes: usize,
        checkpoints: Checkpoints,
        note: AttemptNote,
        advance: Arc<Advance>,
    ) -> Self {
        let run = RunColumns {
            run_id: identity.run_id.clone(),
            model_sha256: identity.model_sha256.clone(),
            labels: plan.model.labels.clone(),
            scores: plan.output.scores,
        };
        let checkpoint_interval = Duration::from_secs_f64(plan.output.checkpoint_seconds);
        Self {
            batches: BatchesWriter::new(&identity, plan.engine.batch_size),
            output,
            identity,
            checkpoints,
            checkpoint_interval,
            checkpoint_due: Instant::now() + checkpoint_interval,
            open: None,
            rows: PredictionRows::new(Arc::new(run)),
            classes,
            pending: VecDeque::new(),
            note,
            note_due: Instant::now(),
            report: OutputReport::default(),
            last_begun: None,
            theirs: Vec::new(),
            has_warned: false,
            advance,
        }
    }

    fn open_part(&mut self, shard: Arc<ShardRef>) -> Result<(), SinkError> {
        self.last_begun = Some(shard.index);
        self.advance.begin(&shard);
        // as many segments as the source was told to pass over
        let mut segments = self.checkpoints.chain(&part_name(&shard));
        segments.retain(|segment| segment.to <= shard.resume_at);
        self.open = Some(OpenPart::begin(shard, segments, &self.identity, &self.output)?);
        Ok(())
    }

    fn close_part(&mut self, end: ShardEnd) -> Result<(), SinkError> {
        self.encode_rows()?;
        let part = self.open.take().expect("a shard ends only after it has started");
        if part.has_segments() {
            self.await_pending(0)?;
        }
        let shard = Arc::clone(&part.shard);
        self.advance.end();
        match part.close(end, &self.identity, &self.output) {
            Ok((file, part)) => self.pending.push_back(Pending { file, part: Some(part) }),
            // whoever has stored the part may have tidied up behind it
            Err(error) => match self.output.read_back_one(&part_name(&shard), &self.identity.run_id) {
                Ok(theirs) => self.count_theirs(theirs),
                Err(_) => return Err(error),
            },
        }
        self.await_pending(PENDING_PARTS)
    }

    /// Take note of what is stored, and wait until no more than `most` files are on their way.
    fn await_pending(&mut self, most: usize) -> Result<(), SinkError> {
        while self.pending.len() > most || self.pending.front().is_some_and(|oldest| oldest.file.is_done()) {
            let Some(Pending { file, part }) = self.pending.pop_front() else { break };
            let (path, stored) = file.wait(&self.output)?;
            if let Some(part) = part {
                self.take_stored(path, stored, part)?;
            }
        }
        Ok(())
    }

    /// A part is there, by this attempt or another.
    fn take_stored(&mut self, path: String, stored: Stored, part: ClosedPart) -> Result<(), SinkError> {
        let ClosedPart { report, segments, reused } = part;
        if stored.was_there {
            // of another run, if this one was removed
            self.output.refuse_another(&self.identity.run_id)?;
            let theirs = self.output.read_back_one(&path, &self.identity.run_id)?;
            if theirs.sha256 == stored.sha256 {
                // the answer to its creation was lost
                self.report.reused.add(&reused);
                self.count(theirs);
                self.remove_segments(&segments);
                return Ok(());
            }
            if theirs.rows != report.rows {
                return Err(SinkError::Uri {
                    uri: self.output.uri_of(&path),
                    message: "another attempt has stored it with another number of rows".to_owned(),
                });
            }
            if theirs.rows_by_status == report.rows_by_status {
                tracing::info!(part = path, "another attempt was first");
            } else {
                // a web server that answered only one of them, a record on which an attempt had crashed
                tracing::warn!(part = path, "another attempt was first, and rejected other records");
            }
            self.count_theirs(theirs);
        } else {
            self.report.reused.add(&reused);
            self.count(PartReport { path, bytes: stored.bytes, sha256: stored.sha256, ..report });
        }
        self.remove_segments(&segments);
        Ok(())
    }

    /// Remove what a part was put together from. The part is stored whether that succeeds or not.
    fn remove_segments(&self, segments: &[Segment]) {
        let segments: Vec<_> = segments.iter().map(|segment| segment.name.clone()).collect();
        if let Err(error) = self.output.remove(&segments) {
            tracing::warn!(%error, "segments of a finished shard are left");
        }
    }

    /// A part is stored, by another attempt.
    fn count_theirs(&mut self, part: PartReport) {
        self.theirs.extend(shard_index(&part.path));
        self.count(part);
    }

    /// A part is stored.
    fn count(&mut self, part: PartReport) {
        if let Some(rows) = &part.rows_by_status {
            self.report.tally.add(rows);
        }
        self.report.parts.push(part);
    }

    fn encode_rows(&mut self) -> Result<(), SinkError> {
        let Some(part) = self.open.as_mut().filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        let rows = self.rows.take().expect("the columns are built from the schema");
        part.write(&rows, &self.output)
    }

    /// Replace this attempt's note, so that it lists what is stored. It is written whole, so the more it lists the
    /// longer is the pause before the next time.
    fn write_note(&mut self) -> Result<(), SinkError> {
        let start = Instant::now();
        self.note.updated_at = rfc3339(SystemTime::now());
        self.note.rows = self.report.tally.rows();
        self.note.parts.clone_from(&self.report.parts);
        self.note.batches.clone_from(&self.batches.parts);
        self.output.replace_note(&self.note)?;
        self.note_due = Instant::now() + NOTE_AT_LEAST_EVERY.min(NOTE_SHARE * start.elapsed());
        Ok(())
    }

    /// With the attempt's number in the upper half of the batch's id, so that no two attempts at a run
    /// use the same one. Those of warm-ups are below zero.
    fn numbered(&self, outcome: Outcome) -> Outcome {
        let base = i64::from(self.identity.attempt) << 32;
        let batch_id = if outcome.batch_id < 0 { outcome.batch_id - base } else { outcome.batch_id + base };
        Outcome { batch_id, ..outcome }
    }

    fn tally(&mut self, meta: &RecordMeta, status: Status) -> Result<(), SinkError> {
        self.advance.row(meta.image_bytes, status);
        let part = self.open.as_mut().expect("a record comes only after its shard has started");
        part.count(meta.record_index, status, &self.output)
    }

    /// Once an attempt: the rows say the rest.
    fn warn_of_invalid_scores(&mut self, meta: &RecordMeta) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                shard = meta.shard.name,
                record_index = meta.record_index,
                "the model's scores are NaN or infinite: such an image gets an invalid_score row; if the model is \
                 float16, which overflows above 65504, try it in float32"
            );
        }
    }

    /// Whether it is time for a checkpoint.
    fn is_due(&self) -> bool {
        Instant::now() >= self.checkpoint_due
            || self.open.as_ref().is_some_and(|part| part.bytes() >= SEGMENT_BYTES)
    }
}

impl Sink for ParquetSink {
    fn accept(&mut self, inferred: Inferred) -> Result<(), SinkError> {
        let Inferred { entries, outcome } = inferred;
        let outcome = outcome.map(|outcome| self.numbered(outcome));
        if let Some(outcome) = &outcome {
            let (latency_ms, started_at) = (outcome.timing.latency_ms(), outcome.timing.started_at);
            self.report.latency_ms.push(latency_ms as f32);
            if let (Some(gpu), Ok(start)) = (outcome.device, started_at.duration_since(UNIX_EPOCH)) {
                self.report.gpus.entry(gpu).or_default().add(start.as_secs_f64(), latency_ms / 1e3);
            }
            self.batches.push(outcome, &self.identity, &self.output)?;
        }
        let (batch_id, scores) =
            outcome.map_or((0, Vec::new()), |outcome| (outcome.batch_id, outcome.scores));
        let mut scores = scores.chunks_exact(self.classes);
        for entry in entries {
            match entry {
                Entry::ShardStart(shard) => self.open_part(shard)?,
                Entry::Scored(meta) => {
                    let scores = scores.next().expect("an outcome has scores for each of its rows");
                    let status = self.rows.push_scored(&meta, batch_id, scores);
                    if status == Status::InvalidScore {
                        self.warn_of_invalid_scores(&meta);
                    }
                    self.tally(&meta, status)?;
                }
                Entry::Rejected(meta, rejected) => {
                    self.rows.push_rejected(&meta, &rejected);
                    self.tally(&meta, rejected.status)?;
                }
                Entry::ShardEnd(end) => self.close_part(end)?,
            }
            if self.rows.is_full() {
                self.encode_rows()?;
            }
        }
        if self.is_due() { self.checkpoint() } else { Ok(()) }
    }

    fn accept_warm_up(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        let outcome = self.numbered(outcome);
        self.report.warm_up_ms.push(outcome.timing.latency_ms());
        self.batches.push(&outcome, &self.identity, &self.output)
    }

    fn checkpoint(&mut self) -> Result<(), SinkError> {
        self.output.refuse_another(&self.identity.run_id)?;
        self.encode_rows()?;
        if let Some(part) = &mut self.open
            && let Some(segment) = part.checkpoint(&self.identity, &self.output)?
        {
            self.pending.push_back(Pending { file: segment, part: None });
        }
        self.await_pending(PENDING_PARTS)?;
        self.batches.checkpoint(&self.identity, &self.output)?;
        if Instant::now() >= self.note_due {
            self.write_note()?;
        }
        self.checkpoint_due = Instant::now() + self.checkpoint_interval;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.checkpoint()?;
        self.await_pending(0)?;
        self.batches.store(&self.identity, &self.output)?;
        self.write_note()
    }

    fn finish(mut self: Box<Self>) -> Result<OutputReport, SinkError> {
        self.flush()?;
        if let Some(part) = &self.open {
            self.report.unfinished_shard = Some(part.shard.name.clone());
            self.report.checkpointed_rows = part.kept();
            self.report.reused_checkpointed_rows = part.kept_by_others(self.identity.attempt);
        }
        self.report.batches = self.batches.parts;
        Ok(self.report)
    }

    fn has_begun(&self, shard: u64) -> bool {
        self.last_begun.is_some_and(|last| shard <= last)
    }

    fn abandon(mut self: Box<Self>, garbled: &[u64]) {
        if self.open.as_ref().is_some_and(|part| garbled.contains(&part.shard.index)) {
            self.open = None;
        }
        let lost = |error: SinkError| tracing::warn!(%error, "something scored could not be kept");
        if let Err(error @ SinkError::OtherRun { .. }) = self.output.refuse_another(&self.identity.run_id) {
            return lost(error);
        }
        self.checkpoint().unwrap_or_else(lost);
        // each for itself: what fails may be one of them
        while !self.pending.is_empty() {
            let most = self.pending.len() - 1;
            self.await_pending(most).unwrap_or_else(lost);
        }
        // a limit may have ended a shard before it was known that its bytes were wrong; what others have read of it
        // was checked by them
        let theirs = std::mem::take(&mut self.theirs);
        let is_wrong = |at: u64| garbled.contains(&at) && !theirs.contains(&at);
        let (wrong, right) = std::mem::take(&mut self.report.parts)
            .into_iter()
            .partition::<Vec<_>, _>(|part| shard_index(&part.path).is_some_and(is_wrong));
        self.report.parts = right;
        let wrong: Vec<_> = wrong.into_iter().map(|part| part.path).collect();
        if let Err(error) = self.output.remove(&wrong) {
            tracing::error!(%error, ?wrong, "parts of wrong bytes could not be removed: remove them before the next attempt");
        }
        let noted = self.batches.store(&self.identity, &self.output).and_then(|()| self.write_note());
        noted.unwrap_or_else(lost);
    }
}
