//! Turns entries into parts: opens a part when its shard starts, closes it when the shard ends, and takes checkpoints
//! in between.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::commit::{AttemptNote, Output, READ_BYTES, UPLOAD_BYTES, check_current, part_name, read_part};
use crate::error::{Error, SinkError};
use crate::flow::StopSignal;
use crate::items::{
    BatchFailure, Call, Cut, Entry, Inferred, Kept, Outcome, RecordMeta, Scored, ShardEnd, Status,
};
use crate::plan::Plan;
use crate::report::{BusyTime, OutputReport};

use super::Sink;
use super::batches::BatchesWriter;
use super::identity::RunIdentity;
use super::open_part::OpenPart;
use super::rows::{BYTES_PER_ENCODE, PredictionRows, RunColumns};
use super::schema::ROW_GROUP_BYTES;
use super::storing::{PENDING_PARTS, Storing, panicked};

/// Bytes of a shard's rows after which a checkpoint is taken before its time: a segment is held in memory when its part
/// is assembled.
const SEGMENT_BYTES: usize = 64 << 20;

/// The most that parts hold in memory: the one being written and its last segment, the batches part, those being
/// stored, the row groups that the first and the batches part are encoding, and a segment being read back, which ends
/// with a row group. Rows that wait to be encoded are in columns that grow by doubling, and are held at the same time
/// as the arrays made of them.
pub const PARTS_BYTES: u64 = (PENDING_PARTS as u64 + 3) * UPLOAD_BYTES
    + 3 * ROW_GROUP_BYTES as u64
    + SEGMENT_BYTES as u64
    + 3 * BYTES_PER_ENCODE as u64
    + READ_BYTES as u64;

/// Writes the Parquet parts of an attempt.
pub struct ParquetSink {
    output: Output,
    identity: RunIdentity,
    checkpoint_interval: Duration,
    checkpoint_due: Instant,
    open: Option<OpenShard>,
    columns: Arc<RunColumns>,
    /// Rows of the open shard that are not encoded yet.
    rows: PredictionRows,
    classes: usize,
    batches: BatchesWriter,
    storing: Storing,
    times: BatchTimes,
    /// The last shard that was cut short, and its segments.
    cut_short: Option<(Arc<Call>, Vec<String>)>,
    /// The first error between two shards, which no call returns.
    fault: Option<SinkError>,
    /// Whether this attempt has warned of scores that are not finite.
    has_warned: bool,
}

/// The shard whose rows are arriving.
struct OpenShard {
    call: Arc<Call>,
    part: OpenPart,
    /// Whether its call asked to stop, and the rows that had arrived by then were handed to the store.
    is_stopped: bool,
}

/// Times of this attempt's batches.
#[derive(Default)]
struct BatchTimes {
    latency_ms: Vec<f32>,
    warm_up_ms: Vec<f64>,
    gpus: BTreeMap<usize, BusyTime>,
}

impl ParquetSink {
    /// A sink for the attempt of `note` and for rows of `classes` scores. `warm_ups` are the outcomes of the engines'
    /// warm-ups.
    ///
    /// # Errors
    /// Those of the store, and [`Error::Threads`].
    pub fn new(
        output: Output,
        plan: &Plan,
        identity: RunIdentity,
        classes: usize,
        note: AttemptNote,
        warm_ups: Vec<Outcome>,
    ) -> Result<Self, Error> {
        let columns = Arc::new(RunColumns {
            run_id: identity.run_id.clone(),
            model_sha256: identity.model_sha256.clone(),
            labels: plan.model.labels.clone(),
            scores: plan.output.scores,
        });
        let checkpoint_interval = Duration::from_secs_f64(plan.output.checkpoint_seconds);
        let mut sink = Self {
            batches: BatchesWriter::new(&identity, plan.engine.batch_size),
            storing: Storing::start(output.clone(), identity.run_id.clone(), note, checkpoint_interval)?,
            output,
            identity,
            checkpoint_interval,
            checkpoint_due: Instant::now() + checkpoint_interval,
            open: None,
            rows: PredictionRows::new(Arc::clone(&columns)),
            columns,
            classes,
            times: BatchTimes::default(),
            cut_short: None,
            fault: None,
            has_warned: false,
        };
        for outcome in warm_ups {
            let outcome = sink.numbered(outcome);
            sink.times.warm_up_ms.push(outcome.timing.latency_ms());
            sink.batches.push(&outcome, &sink.identity, &sink.output)?;
        }
        Ok(sink)
    }

    /// Do `work`. An error or a panic fails only the shard whose rows are arriving.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<(), SinkError>) {
        let call = self.open.as_ref().map(|open| Arc::clone(&open.call));
        // the state that a panic leaves half done is dropped: the open part and the rows that are not encoded yet
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        if matches!(done, Ok(Ok(()))) {
            return;
        }
        self.drop_open();
        match (done, call) {
            (Ok(Ok(())), _) => unreachable!("returned above"),
            (Ok(Err(error)), Some(call)) => call.answer(Err(error.into())),
            (Err(panic), Some(call)) => call.answer(Err(panicked(panic.as_ref()))),
            (Ok(Err(error)), None) => drop(self.fault.get_or_insert(error)),
            (Err(panic), None) => std::panic::resume_unwind(panic),
        }
    }

    fn drop_open(&mut self) {
        self.open = None;
        self.rows = PredictionRows::new(Arc::clone(&self.columns));
    }

    /// Take one entry. `scores` are those of its row, if it is scored. Entries of a shard that has failed are dropped.
    fn take(
        &mut self,
        entry: Entry,
        batch_id: i64,
        scores: Result<&[f32], &BatchFailure>,
    ) -> Result<(), SinkError> {
        if let Entry::ShardStart(call) = entry {
            // if the shard before is still open, its end was lost with a batch
            self.lose_batch();
            self.open(call);
            return Ok(());
        }
        if self.open.is_none() {
            if let Entry::ShardCut(Cut::Failed(error)) = entry
                && error.is_wrong_checksum()
            {
                self.discard_cut_short();
            }
            return Ok(());
        }
        match (entry, scores) {
            (Entry::ShardStart(_), _) => unreachable!("taken above"),
            (Entry::Scored(meta), Ok(scores)) => {
                let status = self.rows.push_scored(&meta, batch_id, scores);
                if status == Status::InvalidScore {
                    self.warn_of_invalid_scores(&meta);
                }
                self.count(&meta, status)?;
            }
            (Entry::Scored(_), Err(failure)) => self.cut(Some(failure.into()))?,
            (Entry::Rejected(meta, rejected), _) => {
                self.rows.push_rejected(&meta, &rejected);
                self.count(&meta, rejected.status)?;
            }
            (Entry::Panicked(error), _) => self.cut(Some(error))?,
            (Entry::ShardEnd(end), _) => self.close(end)?,
            (Entry::ShardCut(Cut::Stopped), _) => self.cut(None)?,
            (Entry::ShardCut(Cut::Failed(error)), _) if error.is_wrong_checksum() => self.discard(error),
            (Entry::ShardCut(Cut::Failed(error)), _) => self.cut(Some(error))?,
        }
        if self.rows.is_full() { self.encode_rows() } else { Ok(()) }
    }

    fn open(&mut self, call: Arc<Call>) {
        self.settle_cut_short();
        call.options.progress.begin(&call.shard, call.resume.rows());
        let segments = call.resume.segments.clone();
        match OpenPart::begin(Arc::clone(&call.shard), segments, &self.identity, &self.output) {
            Ok(part) => self.open = Some(OpenShard { call, part, is_stopped: false }),
            Err(error) => call.answer(Err(error.into())),
        }
    }

    /// Hand the part of a shard that has ended to the store.
    fn close(&mut self, end: ShardEnd) -> Result<(), SinkError> {
        self.encode_rows()?;
        let OpenShard { call, part, .. } = self.open.take().expect("a shard ends only after it has started");
        call.options.progress.end();
        match part.close(end, &self.identity, &self.output) {
            Ok((file, part)) => self.storing.part(call, file, part),
            // another attempt that stored the part may have removed the segments of this one
            Err(error) => match read_part(&self.output, &part_name(&call.shard), &self.identity.run_id) {
                Ok(theirs) => self.storing.part_of_another(call, theirs),
                Err(_) => return Err(error),
            },
        }
        Ok(())
    }

    /// Cut the shard short, after an error or because its call asked to stop. Its rows so far are kept in checkpoints.
    fn cut(&mut self, error: Option<Error>) -> Result<(), SinkError> {
        let kept = self.store_segment();
        let OpenShard { call, mut part, .. } =
            self.open.take().expect("a shard is cut only after it has started");
        let kept = kept.and_then(|()| part.await_segment());
        self.cut_short = Some((Arc::clone(&call), part.segment_names()));
        let (rows, rows_of_others) = (part.kept(), part.kept_by_others(self.identity.attempt));
        match (error, kept) {
            (Some(error), kept) => {
                if let Err(lost) = kept {
                    tracing::warn!(shard = call.shard.name, error = %lost, "rows of a shard that failed are lost");
                }
                self.drop_open();
                call.answer(Err(error));
            }
            (None, Ok(())) => call.answer(Ok(Scored::Stopped(Kept { rows, rows_of_others }))),
            (None, Err(error)) => {
                self.drop_open();
                call.answer(Err(error.into()));
            }
        }
        Ok(())
    }

    /// Keep nothing of a shard of which wrong bytes were read, since any row may be wrong.
    fn discard(&mut self, error: Error) {
        let Some(OpenShard { call, part, .. }) = self.open.take() else { return };
        self.drop_open();
        self.remove_wrong(&part.into_segments());
        call.answer(Err(error));
    }

    /// Remove the segments of the shard that was cut short, since wrong bytes were read of it.
    fn discard_cut_short(&mut self) {
        if let Some((_, segments)) = self.cut_short.take() {
            self.remove_wrong(&segments);
        }
    }

    /// Keep the segments of the shard that was cut short, unless its reader found that it read wrong bytes.
    fn settle_cut_short(&mut self) {
        if self.cut_short.as_ref().is_some_and(|(call, _)| call.has_wrong_bytes()) {
            self.discard_cut_short();
        }
        self.cut_short = None;
    }

    fn remove_wrong(&self, segments: &[String]) {
        if let Err(error) = self.output.remove(segments) {
            tracing::error!(
                %error,
                ?segments,
                "segments of wrong bytes could not be removed: remove them before the next attempt"
            );
        }
    }

    /// Make the rows of the open shard since the last checkpoint a segment, and begin to store it.
    fn store_segment(&mut self) -> Result<(), SinkError> {
        self.encode_rows()?;
        match &mut self.open {
            Some(open) => open.part.checkpoint(&self.identity, &self.output),
            None => Ok(()),
        }
    }

    fn checkpoint(&mut self) -> Result<(), SinkError> {
        self.checkpoint_due = Instant::now() + self.checkpoint_interval;
        check_current(&self.output, &self.identity.run_id)?;
        self.store_segment()?;
        if let Some(part) = self.batches.checkpoint(&self.identity, &self.output)? {
            self.storing.batches(part);
        }
        Ok(())
    }

    fn encode_rows(&mut self) -> Result<(), SinkError> {
        let Some(open) = self.open.as_mut().filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        let rows = self.rows.take().expect("the columns are built from the schema");
        open.part.write(&rows, &self.output)
    }

    /// `outcome` with the attempt's number in the upper half of the batch's id, so that no two attempts at a run use
    /// the same id. Ids of warm-ups are negative.
    fn numbered(&self, outcome: Outcome) -> Outcome {
        let base = i64::from(self.identity.attempt) << 32;
        let batch_id = if outcome.batch_id < 0 { outcome.batch_id - base } else { outcome.batch_id + base };
        Outcome { batch_id, ..outcome }
    }

    fn note_batch(&mut self, outcome: &Outcome) -> Result<(), SinkError> {
        let (latency_ms, started_at) = (outcome.timing.latency_ms(), outcome.timing.started_at);
        self.times.latency_ms.push(latency_ms as f32);
        if let (Some(gpu), Ok(start)) = (outcome.device, started_at.duration_since(UNIX_EPOCH)) {
            self.times.gpus.entry(gpu).or_default().add(start.as_secs_f64(), latency_ms / 1e3);
        }
        self.batches.push(outcome, &self.identity, &self.output)
    }

    fn count(&mut self, meta: &RecordMeta, status: Status) -> Result<(), SinkError> {
        let open = self.open.as_mut().expect("a record arrives only after its shard has started");
        open.call.options.progress.row(meta.image_bytes, status);
        open.part.count(meta.record_index, status, &self.output)
    }

    /// Warn once in an attempt. The rows have the details.
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
            || self.open.as_ref().is_some_and(|open| open.part.bytes() >= SEGMENT_BYTES)
    }
}

impl Sink for ParquetSink {
    fn accept(&mut self, inferred: Inferred) {
        let Inferred { entries, outcome } = inferred;
        let outcome = outcome.map(|outcome| outcome.map(|outcome| self.numbered(outcome)));
        if let Ok(Some(outcome)) = &outcome {
            self.guarded(|sink| sink.note_batch(outcome));
        }
        let (batch_id, scores) = match &outcome {
            Ok(Some(outcome)) => (outcome.batch_id, &outcome.scores[..]),
            _ => (0, &[][..]),
        };
        let mut scores = scores.chunks_exact(self.classes);
        for entry in entries {
            let scores = match (&entry, &outcome) {
                (_, Err(failure)) => Err(failure),
                (Entry::Scored(_), Ok(_)) => {
                    Ok(scores.next().expect("an outcome has scores for each of its rows"))
                }
                _ => Ok(&[][..]),
            };
            self.guarded(|sink| sink.take(entry, batch_id, scores));
        }
        if self.is_due() {
            self.guarded(Self::checkpoint);
        }
    }

    fn lose_batch(&mut self) {
        if self.open.is_some() {
            let message = "a batch was lost with the stage that had it".to_owned();
            let error = Error::StagePanicked { stage: "engine", message };
            self.guarded(|sink| sink.cut(Some(error)));
        }
    }

    fn stop_signal(&self) -> Option<StopSignal> {
        let open = self.open.as_ref().filter(|open| !open.is_stopped)?;
        Some(open.call.options.stop.clone())
    }

    fn stop(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_stopped = true;
            self.guarded(Self::checkpoint);
        }
    }

    fn finish(mut self: Box<Self>) -> Result<OutputReport, SinkError> {
        self.settle_cut_short();
        let current = check_current(&self.output, &self.identity.run_id);
        let batches = current.and_then(|()| self.batches.store(&self.identity, &self.output));
        if let Ok(Some(part)) = &batches {
            self.storing.batches(part.clone());
        }
        let report = self.storing.finish();
        batches?;
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let BatchTimes { latency_ms, warm_up_ms, gpus } = self.times;
        Ok(OutputReport { latency_ms, warm_up_ms, gpus, ..report? })
    }
}
