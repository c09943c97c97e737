//! Turns entries into parts: opens a part when its shard starts, closes it when the shard ends, and takes checkpoints
//! in between.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::commit::{AttemptNote, Output, READ_BYTES, UPLOAD_BYTES, part_name, read_part_twice};
use crate::error::{Error, SinkError};
use crate::flow::StopSignal;
use crate::items::{BatchFailure, Call, Cut, Entry, Inferred, Outcome, RecordMeta, Scored, ShardEnd, Status};
use crate::plan::Plan;
use crate::report::{BusyTime, OutputReport, PartReport};

use super::Sink;
use super::attempt::Attempt;
use super::batches::BatchesWriter;
use super::open_part::OpenPart;
use super::rows::{BYTES_PER_ENCODE, PredictionRows, RunColumns};
use super::schema::ROW_GROUP_BYTES;
use super::storing::{PENDING_PARTS, Storing, ToStore, panicked};

/// Bytes of a shard's rows after which a checkpoint is taken before its time: a segment is held in memory when its part
/// is assembled.
const SEGMENT_BYTES: usize = 64 << 20;

/// The most that parts hold in memory: the one being written and its last segment, the batches part, those being
/// stored, the row groups that the first and the batches part are encoding, and two segments being read back, each of
/// which ends with a row group: one by the sink, and one by a caller that resumes a shard. Rows that wait to be encoded
/// are in columns that grow by doubling, and are held at the same time as the arrays made of them.
pub const PARTS_BYTES: u64 = (PENDING_PARTS as u64 + 3) * UPLOAD_BYTES
    + 3 * ROW_GROUP_BYTES as u64
    + 3 * BYTES_PER_ENCODE as u64
    + 2 * (SEGMENT_BYTES + READ_BYTES) as u64;

/// Writes the Parquet parts of an attempt.
pub struct ParquetSink {
    attempt: Arc<Attempt>,
    checkpoint_interval: Duration,
    checkpoint_due: Instant,
    /// The part of the shard whose rows are arriving.
    open: Option<OpenPart>,
    /// Its rows that are not encoded yet.
    rows: PredictionRows,
    classes: usize,
    batches: BatchesWriter,
    storing: Storing,
    times: BatchTimes,
    /// The part of the last shard that was cut short or failed.
    cut_short: Option<OpenPart>,
    /// The first error between two shards, which no call returns.
    fault: Option<SinkError>,
    /// Whether this attempt has warned of scores that are not finite.
    has_warned: bool,
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
        model_sha256: String,
        classes: usize,
        note: AttemptNote,
        warm_ups: Vec<Outcome>,
    ) -> Result<Self, Error> {
        let (run_id, labels) = (note.run_id.clone(), &plan.model.labels);
        let attempt = Arc::new(Attempt {
            output,
            run_id: run_id.clone(),
            worker: note.shard_index,
            number: note.attempt,
            plan_sha256: plan.hash(&model_sha256),
            labels: labels.as_ref().map(|labels| serde_json::json!(labels).to_string()),
        });
        let (labels, scores) = (labels.clone().unwrap_or_default(), plan.output.scores);
        let checkpoint_interval = Duration::from_secs_f64(plan.output.checkpoint_seconds);
        let mut sink = Self {
            checkpoint_interval,
            checkpoint_due: Instant::now() + checkpoint_interval,
            open: None,
            rows: PredictionRows::new(Arc::new(RunColumns { run_id, model_sha256, labels, scores })),
            classes,
            batches: BatchesWriter::new(&attempt, plan.engine.batch_size),
            storing: Storing::start(Arc::clone(&attempt), note, checkpoint_interval)?,
            times: BatchTimes::default(),
            cut_short: None,
            fault: None,
            has_warned: false,
            attempt,
        };
        for outcome in warm_ups {
            let outcome = sink.numbered(outcome);
            sink.times.warm_up_ms.push(outcome.timing.latency_ms());
            let part = sink.batches.push(&outcome);
            sink.hand_over_batches(part)?;
        }
        Ok(sink)
    }

    /// Do `work`. An error or a panic fails only the shard whose rows are arriving.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<(), SinkError>) {
        let call = self.open.as_ref().map(|open| Arc::clone(&open.call));
        // the state that a panic leaves half done is dropped: the open part and the rows that are not encoded yet
        match (catch_unwind(AssertUnwindSafe(|| work(self))), call) {
            (Ok(Ok(())), _) => {}
            (Ok(Err(error)), Some(call)) => self.fail(&call, error.into()),
            (Err(panic), Some(call)) => self.fail(&call, panicked(panic.as_ref())),
            (Ok(Err(error)), None) => drop(self.fault.get_or_insert(error)),
            (Err(panic), None) => std::panic::resume_unwind(panic),
        }
    }

    /// Fail the shard of `call`, whose rows are arriving.
    fn fail(&mut self, call: &Call, error: Error) {
        self.drop_open();
        call.answer(Err(error));
    }

    /// End the open part. Its segments are kept, unless its reader finds that it read wrong bytes.
    fn drop_open(&mut self) {
        self.rows.clear();
        if let Some(open) = self.open.take() {
            self.cut_short = Some(open);
        }
    }

    /// Take one entry. `scores` are those of its row, if it is scored. Entries of a shard that has failed are dropped.
    fn take(
        &mut self,
        entry: Entry,
        batch_id: i64,
        scores: Result<&[f32], &BatchFailure>,
    ) -> Result<(), SinkError> {
        match (entry, scores) {
            (Entry::ShardStart(call), _) => {
                // if the shard before is still open, its end was lost with a batch
                self.lose_batch();
                self.open(call);
            }
            (Entry::ShardCut(Cut::Failed(error)), _) if error.is_wrong_checksum() => self.discard(error),
            (Entry::StoreBatches(stored), _) => {
                let part = self.batches.store();
                // a caller that has gone needs no answer
                let _ = stored.send(self.hand_over_batches(part));
            }
            _ if self.open.is_none() => {}
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
            (Entry::ShardCut(Cut::Failed(error)), _) => self.cut(Some(error))?,
        }
        if self.rows.is_full() { self.encode_rows() } else { Ok(()) }
    }

    fn open(&mut self, call: Arc<Call>) {
        self.settle_cut_short();
        call.options.progress.begin(&call.shard, call.resume.rows());
        match OpenPart::begin(Arc::clone(&call), &self.attempt) {
            Ok(part) => self.open = Some(part),
            Err(error) => call.answer(Err(error.into())),
        }
    }

    /// Hand the part of a shard that has ended to the store.
    fn close(&mut self, end: ShardEnd) -> Result<(), SinkError> {
        self.encode_rows()?;
        let part = self.open.take().expect("a shard ends only after it has started");
        let call = Arc::clone(&part.call);
        call.options.progress.end();
        let Attempt { output, run_id, .. } = &*self.attempt;
        let part = match part.close(end) {
            Ok(part) => ToStore::Part(part),
            // another attempt that stored the part may have removed the segments of this one
            Err(error) => match read_part_twice(output, &part_name(&call.shard), run_id) {
                Ok(theirs) => ToStore::PartOfAnother(call, theirs),
                Err(_) => return Err(error),
            },
        };
        self.storing.hand_over(part);
        Ok(())
    }

    /// Cut the shard short, after an error or because its call asked to stop. Its rows so far are kept in checkpoints.
    fn cut(&mut self, error: Option<Error>) -> Result<(), SinkError> {
        let kept = self.store_segment();
        let part = self.open.as_mut().expect("a shard is cut only after it has started");
        let kept = kept.and_then(|()| part.await_segment());
        let (call, rows) = (Arc::clone(&part.call), part.kept());
        match error {
            None => {
                kept?;
                self.drop_open();
                call.answer(Ok(Scored::Stopped(rows)));
            }
            Some(error) => {
                if let Err(lost) = kept {
                    tracing::warn!(shard = call.shard.name, error = %lost, "rows of a shard that failed are lost");
                }
                self.fail(&call, error);
            }
        }
        Ok(())
    }

    /// Fail the shard whose rows are arriving or were cut short, and keep nothing of it: wrong bytes were read.
    fn discard(&mut self, error: Error) {
        self.drop_open();
        if let Some(part) = self.cut_short.take() {
            let call = Arc::clone(&part.call);
            part.discard();
            call.answer(Err(error));
        }
    }

    /// Keep the segments of the shard that was cut short, unless its reader found that it read wrong bytes.
    fn settle_cut_short(&mut self) {
        if let Some(part) = self.cut_short.take()
            && part.call.has_wrong_bytes()
        {
            part.discard();
        }
    }

    /// Make the rows of the open shard since the last checkpoint a segment, and begin to store it.
    fn store_segment(&mut self) -> Result<(), SinkError> {
        self.encode_rows()?;
        self.open.as_mut().map_or(Ok(()), OpenPart::checkpoint)
    }

    fn checkpoint(&mut self) -> Result<(), SinkError> {
        self.checkpoint_due = Instant::now() + self.checkpoint_interval;
        self.attempt.check_current()?;
        self.store_segment()
    }

    fn encode_rows(&mut self) -> Result<(), SinkError> {
        let Some(open) = self.open.as_mut().filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        open.writer.write(&self.rows.take())
    }

    /// `outcome` with the attempt's number in the upper half of the batch's id, so that no two attempts at a run use
    /// the same id. Ids of warm-ups are negative.
    fn numbered(&self, outcome: Outcome) -> Outcome {
        let base = i64::from(self.attempt.number) << 32;
        let batch_id = if outcome.batch_id < 0 { outcome.batch_id - base } else { outcome.batch_id + base };
        Outcome { batch_id, ..outcome }
    }

    fn note_batch(&mut self, outcome: &Outcome) -> Result<(), SinkError> {
        let (latency_ms, started_at) = (outcome.timing.latency_ms(), outcome.timing.started_at);
        self.times.latency_ms.push(latency_ms as f32);
        if let (Some(gpu), Ok(start)) = (outcome.device, started_at.duration_since(UNIX_EPOCH)) {
            self.times.gpus.entry(gpu).or_default().add(start.as_secs_f64(), latency_ms / 1e3);
        }
        let part = self.batches.push(outcome);
        self.hand_over_batches(part)
    }

    fn hand_over_batches(&self, part: Result<Option<PartReport>, SinkError>) -> Result<(), SinkError> {
        if let Some(part) = part? {
            self.storing.hand_over(ToStore::Batches(part));
        }
        Ok(())
    }

    fn count(&mut self, meta: &RecordMeta, status: Status) -> Result<(), SinkError> {
        let open = self.open.as_mut().expect("a record arrives only after its shard has started");
        open.call.options.progress.row(meta.image_bytes, status);
        open.count(meta.record_index, status)
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
            || self.open.as_ref().is_some_and(|open| open.writer.bytes() >= SEGMENT_BYTES)
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
        let mut uncounted = outcome.as_ref().ok().and_then(Option::as_ref);
        for entry in entries {
            let is_scored = matches!(entry, Entry::Scored(_));
            let scores = match (&entry, &outcome) {
                (_, Err(failure)) => Err(failure),
                (Entry::Scored(_), Ok(_)) => {
                    Ok(scores.next().expect("an outcome has scores for each of its rows"))
                }
                _ => Ok(&[][..]),
            };
            self.guarded(|sink| sink.take(entry, batch_id, scores));
            if let Some(open) = self.open.as_ref().filter(|_| is_scored)
                && let Some(outcome) = uncounted.take()
            {
                let latency = Duration::from_secs_f64(outcome.timing.latency_ms() / 1e3);
                open.call.options.batches.count(outcome.rows, latency);
            }
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
        let batches = self.attempt.check_current().and_then(|()| self.batches.store());
        let batches = self.hand_over_batches(batches);
        let report = self.storing.finish();
        batches?;
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let BatchTimes { latency_ms, warm_up_ms, gpus } = self.times;
        Ok(OutputReport { latency_ms, warm_up_ms, gpus, ..report? })
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;
    use crate::commit::shard_history;
    use crate::error::{SourceError, StorageError, WrongChecksum};
    use crate::items::{CallOptions, Rejected, Resume, ShardContent, ShardFormat, ShardRef};

    #[test]
    fn no_checkpoint_keeps_rows_of_wrong_bytes_after_the_sink_has_failed_the_shard() {
        let runtime = Runtime::new().expect("runtime");
        let Attempt { output, run_id, .. } = Attempt::in_memory(&runtime);
        let note = AttemptNote { run_id: run_id.clone(), ..AttemptNote::begun(0, 1) };
        let sink = ParquetSink::new(output.clone(), &Plan::for_tests(""), String::new(), 2, note, Vec::new());
        let mut sink = sink.expect("a sink");
        let shard = ShardRef::new(0, "a", ShardFormat::Tfrecord, ShardContent::Objects(Vec::new()));
        let (call, ticket) = Call::new(shard.clone(), Resume::default(), CallOptions::default());
        let row = |record_index| {
            let (shard, image_id) = (Arc::clone(&call.shard), String::new());
            let meta =
                RecordMeta { shard, record_index, image_id, member: None, image_bytes: 0, header: None };
            Entry::Rejected(meta, Rejected::new(Status::Empty, "the image is empty"))
        };
        let accept = |sink: &mut ParquetSink, entries| sink.accept(Inferred { entries, outcome: Ok(None) });
        accept(&mut sink, vec![Entry::ShardStart(Arc::clone(&call)), row(0)]);
        sink.checkpoint().expect("stored");
        sink.open.as_mut().expect("its rows are arriving").await_segment().expect("stored");
        accept(&mut sink, vec![row(7)]);
        let failed = ticket.wait().expect("an answer").expect_err("record 1 is missing");
        assert!(matches!(failed, Error::Sink(_)), "{failed}");
        let reading = std::sync::Mutex::new(());
        let kept = || shard_history(&output, &run_id, &shard, &reading).expect("readable").resume.rows();
        assert_eq!(kept(), 1);

        let source = WrongChecksum { found: 1, expected: 2 }.into();
        let source = object_store::Error::Generic { store: "test", source };
        let wrong = SourceError::Storage(StorageError { uri: "gs://bucket/a".to_owned(), source });
        accept(&mut sink, vec![Entry::ShardCut(Cut::Failed(wrong.into()))]);
        assert_eq!(kept(), 0);
    }
}
