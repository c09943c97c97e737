//! Entries into parts: opens a part with its shard, closes it with the shard's end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::error::SinkError;
use crate::items::{Entry, Inferred, Outcome, ShardEnd, ShardRef, Status};
use crate::plan::Plan;
use crate::report::{OutputReport, PartReport, Tally};

use super::Sink;
use super::output::Output;
use super::part::{
    DAMAGE, PLAN, PartWriter, PendingPart, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY,
};
use super::rows::{BatchRows, PredictionRows, RunColumns};
use super::schema::{BATCHES, PREDICTIONS, ROW_GROUP_BYTES, SCHEMA_VERSION};
use super::stored::part_name;
use super::upload::UPLOAD_BYTES;

/// Finished parts that may wait for the store's acknowledgement. A bucket takes some 100 ms for
/// it; eight in flight keep shards of 20 images flowing at 1,500 images/s.
pub const PENDING_PARTS: usize = 8;

/// The most that parts hold in memory: the one being written, the run's batches part, those being
/// stored, and the row groups that the first two are encoding.
pub const PARTS_BYTES: u64 = (PENDING_PARTS as u64 + 3) * UPLOAD_BYTES + 2 * ROW_GROUP_BYTES as u64;

/// Rows collected before they are encoded, so that the encoder works on columns, not on cells.
const ROWS_PER_ENCODE: usize = 1024;

/// What the rows and footers of a run are marked with.
#[derive(Debug, Clone)]
pub struct RunIdentity {
    pub run_id: String,
    /// Name of this worker in the `worker` column.
    pub worker: String,
    /// Number of this attempt at the run, from 0, over all workers.
    pub attempt: u32,
    pub model_sha256: String,
    pub plan_sha256: String,
}

/// Writes a run's Parquet.
#[derive(Debug)]
pub struct ParquetSink {
    output: Output,
    identity: RunIdentity,
    open: Option<OpenPart>,
    rows: PredictionRows,
    classes: usize,
    pending: VecDeque<(PendingPart, PartReport)>,
    batches: PartWriter,
    batch_rows: BatchRows,
    report: OutputReport,
}

/// The part of the shard whose rows are arriving.
#[derive(Debug)]
struct OpenPart {
    shard: Arc<ShardRef>,
    writer: PartWriter,
    tally: Tally,
}

impl ParquetSink {
    /// A sink for rows of `classes` scores.
    pub fn new(
        output: Output,
        plan: &Plan,
        identity: RunIdentity,
        classes: usize,
    ) -> Result<Self, SinkError> {
        let run = RunColumns {
            run_id: identity.run_id.clone(),
            model_sha256: identity.model_sha256.clone(),
            labels: plan.model.labels.clone(),
            scores: plan.output.scores,
        };
        let footer = [
            ("sluice.schema_version", SCHEMA_VERSION),
            (PLAN, &identity.plan_sha256),
            ("sluice.run_id", &identity.run_id),
        ];
        let name = format!("batches/part-{}-{:06}.parquet", identity.worker, identity.attempt);
        let batches = PartWriter::create(&output, name, &BATCHES, &footer)?;
        let batch_rows =
            BatchRows::new(identity.run_id.clone(), identity.worker.clone(), plan.engine.batch_size);
        Ok(Self {
            output,
            identity,
            open: None,
            rows: PredictionRows::new(Arc::new(run)),
            classes,
            pending: VecDeque::new(),
            batches,
            batch_rows,
            report: OutputReport::default(),
        })
    }

    fn open_part(&mut self, shard: Arc<ShardRef>) -> Result<(), SinkError> {
        let footer = [
            ("sluice.schema_version", SCHEMA_VERSION),
            (PLAN, &self.identity.plan_sha256),
            ("sluice.run_id", &self.identity.run_id),
            (SHARD, &shard.name),
            (SHARD_IDENTITY, &shard.identity()),
            (SHARD_FORMAT, shard.format.as_str()),
        ];
        let writer = PartWriter::create(&self.output, part_name(&shard), &PREDICTIONS, &footer)?;
        self.open = Some(OpenPart { shard, writer, tally: Tally::default() });
        Ok(())
    }

    fn close_part(&mut self, end: ShardEnd) -> Result<(), SinkError> {
        self.encode_rows()?;
        let part = self.open.take().expect("a shard ends only after it has started");
        assert_eq!(part.tally.rows(), end.records, "every record of {} has one row", part.shard.name);
        self.report.tally.add(&part.tally);
        let mut footer = vec![(ROWS_BY_STATUS, part.tally.to_json())];
        footer.extend(end.damage.clone().map(|damage| (DAMAGE, damage)));
        let report = PartReport {
            shard: part.shard.name.clone(),
            format: Some(part.shard.format),
            rows: Some(end.records),
            rows_by_status: Some(part.tally),
            damage: end.damage,
            ..PartReport::default()
        };
        self.pending.push_back((part.writer.finish(&footer, &self.output)?, report));
        while self.pending.len() > PENDING_PARTS
            || self.pending.front().is_some_and(|(part, _)| part.is_done())
        {
            self.await_oldest_part()?;
        }
        Ok(())
    }

    fn await_oldest_part(&mut self) -> Result<(), SinkError> {
        if let Some((part, mut report)) = self.pending.pop_front() {
            let (path, stored) = part.wait(&self.output)?;
            if stored.was_there {
                let theirs = self.output.read_back_one(&path, &self.identity.plan_sha256)?;
                if theirs.rows_by_status != report.rows_by_status {
                    return Err(SinkError::Uri {
                        uri: self.output.uri_of(&path),
                        message: "another attempt has stored it with other rows".to_owned(),
                    });
                }
                tracing::info!(part = path, "another attempt was first");
                report = theirs;
            } else {
                report.path = path;
                report.bytes = stored.bytes;
                report.sha256 = stored.sha256;
            }
            self.report.parts.push(report);
        }
        Ok(())
    }

    fn encode_rows(&mut self) -> Result<(), SinkError> {
        let Some(part) = self.open.as_mut().filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        let rows = self.rows.take().expect("the columns are built from the schema");
        part.writer.write(&rows, &self.output)
    }

    fn push_batch(&mut self, outcome: &Outcome) -> Result<(), SinkError> {
        self.batch_rows.push(outcome);
        if self.batch_rows.len() >= ROWS_PER_ENCODE {
            let rows = self.batch_rows.take().expect("the columns are built from the schema");
            self.batches.write(&rows, &self.output)?;
        }
        Ok(())
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
            self.push_batch(outcome)?;
        }
        let (batch_id, scores) =
            outcome.map_or((0, Vec::new()), |outcome| (outcome.batch_id, outcome.scores));
        let mut scores = scores.chunks_exact(self.classes);
        for entry in entries {
            match entry {
                Entry::ShardStart(shard) => self.open_part(shard)?,
                Entry::Scored(meta) => {
                    let scores = scores.next().expect("an outcome has scores for each of its rows");
                    self.rows.push_scored(&meta, batch_id, scores);
                    self.tally(Status::Ok);
                }
                Entry::Rejected(meta, rejected) => {
                    self.rows.push_rejected(&meta, &rejected);
                    self.tally(rejected.status);
                }
                Entry::ShardEnd(end) => self.close_part(end)?,
            }
            if self.rows.len() >= ROWS_PER_ENCODE {
                self.encode_rows()?;
            }
        }
        Ok(())
    }

    fn accept_warm_up(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        let outcome = self.numbered(outcome);
        self.report.warm_up_ms.push(outcome.timing.latency_ms());
        self.push_batch(&outcome)
    }

    fn finish(mut self: Box<Self>) -> Result<OutputReport, SinkError> {
        while !self.pending.is_empty() {
            self.await_oldest_part()?;
        }
        let rows = self.batch_rows.take().expect("the columns are built from the schema");
        self.batches.write(&rows, &self.output)?;
        self.batches.finish(&[], &self.output)?.wait(&self.output)?;
        self.report.unfinished_shard = self.open.map(|part| part.shard.name.clone());
        Ok(self.report)
    }

    fn abandon(mut self: Box<Self>) {
        while !self.pending.is_empty() {
            if let Err(error) = self.await_oldest_part() {
                tracing::warn!(%error, "a finished part was not stored");
            }
        }
    }
}

impl ParquetSink {
    /// With the attempt's number in the upper half of the batch's id, so that no two attempts at a run
    /// use the same one. Those of warm-ups are below zero.
    fn numbered(&self, outcome: Outcome) -> Outcome {
        let base = i64::from(self.identity.attempt) << 32;
        let batch_id = if outcome.batch_id < 0 { outcome.batch_id - base } else { outcome.batch_id + base };
        Outcome { batch_id, ..outcome }
    }

    fn tally(&mut self, status: Status) {
        let part = self.open.as_mut().expect("a record comes only after its shard has started");
        part.tally.count(status);
    }
}
