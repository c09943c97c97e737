//! The part of the shard whose rows are arriving.
//!
//! - Rows go to one file. Unless a checkpoint is taken before the shard ends, that file becomes the
//!   part; otherwise it becomes a segment, and another file is begun.
//! - At the end of a shard with segments, its part is assembled from their rows and the last ones.
//! - Rows arrive in the order of their records, after those in segments. If the shard can no longer be read as far as
//!   the segments reach, rows arrive from the first record on, and the segments are not used.

use std::sync::Arc;

use arrow_array::RecordBatch;

use crate::commit::{
    ATTEMPT, DAMAGE, LABELS, Output, PLAN, ROWS_BY_STATUS, SCHEMA, SCHEMA_VERSION, SHARD, SHARD_BYTES,
    SHARD_FORMAT, SHARD_IDENTITY, SHARD_VERSION, SKIPPED, Segment, part_name, read_segment,
};
use crate::error::SinkError;
use crate::items::{ShardEnd, ShardRef, Status};
use crate::report::{PartReport, Tally};

use super::identity::RunIdentity;
use super::part::{PartWriter, PendingPart};
use super::schema::PREDICTIONS;

/// A part that is not complete yet.
#[derive(Debug)]
pub(super) struct OpenPart {
    pub shard: Arc<ShardRef>,
    /// Rows since the part was opened, by status.
    pub tally: Tally,
    name: String,
    /// The rows in checkpoints, from the first record on.
    segments: Vec<Segment>,
    /// Segments that are not used, because the shard is read from its first record again.
    discarded: Vec<Segment>,
    /// Position of the record whose row comes next.
    next_record: u64,
    /// Rows since the last checkpoint.
    writer: PartWriter,
    /// The last segment, while it is being stored.
    pending: Option<PendingPart>,
}

/// A part whose last row has been written.
#[derive(Debug)]
pub(super) struct ClosedPart {
    /// Its report. Path, size and hash are not known yet.
    pub report: PartReport,
    /// All segments of the shard, used or not.
    pub segments: Vec<Segment>,
    /// Rows that other attempts scored, by status.
    pub reused: Tally,
}

impl OpenPart {
    /// Begin the part of `shard`, or resume it after `segments`.
    pub fn begin(
        shard: Arc<ShardRef>,
        segments: Vec<Segment>,
        identity: &RunIdentity,
        output: &Output,
    ) -> Result<Self, SinkError> {
        let name = part_name(&shard);
        let writer = begin_file(&name, &shard, identity, output)?;
        let next_record = segments.last().map_or(0, |segment| segment.to);
        Ok(Self {
            shard,
            tally: Tally::default(),
            name,
            segments,
            discarded: Vec::new(),
            next_record,
            writer,
            pending: None,
        })
    }

    /// Count the row of the record `record_index`, which is about to be written.
    ///
    /// # Errors
    /// If it is neither the next record nor the first one of a shard that is read from its beginning again.
    pub fn count(&mut self, record_index: u64, status: Status, output: &Output) -> Result<(), SinkError> {
        if record_index == 0 {
            self.start_over();
        }
        if record_index != self.next_record {
            let message = format!("record {record_index} arrived, expected record {}", self.next_record);
            return Err(SinkError::Uri { uri: output.uri_of(&self.name), message });
        }
        self.next_record += 1;
        self.tally.count(status);
        Ok(())
    }

    /// Discard the segments: the shard is read from its first record again.
    fn start_over(&mut self) {
        if self.tally.rows() == 0 {
            self.discarded.append(&mut self.segments);
            self.next_record = 0;
        }
    }

    pub fn write(&mut self, rows: &RecordBatch, output: &Output) -> Result<(), SinkError> {
        self.writer.write(rows, output)
    }

    /// Bytes since the last checkpoint.
    pub fn bytes(&self) -> usize {
        self.writer.bytes()
    }

    /// Records of the shard in segments.
    pub fn kept(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.to)
    }

    /// Of these, records that other attempts have scored.
    pub fn kept_by_others(&self, attempt: u32) -> u64 {
        let others = self.segments.iter().filter(|segment| segment.attempt != attempt);
        others.map(|segment| segment.to - segment.from).sum()
    }

    /// Make the rows since the last checkpoint a segment, and begin to store it. Does nothing without rows.
    ///
    /// # Errors
    /// Also those of storing the segment before.
    pub fn checkpoint(&mut self, identity: &RunIdentity, output: &Output) -> Result<(), SinkError> {
        if self.writer.rows() == 0 {
            return Ok(());
        }
        self.await_segment()?;
        let (from, rows) = (self.kept(), self.writer.rows());
        let segment = Segment::new(&self.name, from, from + rows, identity.attempt, &identity.run_id);
        let next = begin_file(&self.name, &self.shard, identity, output)?;
        let written = std::mem::replace(&mut self.writer, next);
        self.pending = Some(written.finish_segment(segment.name.clone(), output)?);
        self.segments.push(segment);
        Ok(())
    }

    /// Wait until all segments are stored.
    pub fn await_segment(&mut self) -> Result<(), SinkError> {
        self.pending.take().map_or(Ok(()), |pending| pending.wait().map(drop))
    }

    /// Names of all segments of the shard, in use or not.
    pub fn segment_names(&self) -> Vec<String> {
        self.segments.iter().chain(&self.discarded).map(|segment| segment.name.clone()).collect()
    }

    /// Wait until all segments are stored, and return their names, to be removed.
    pub fn into_segments(mut self) -> Vec<String> {
        if let Err(error) = self.await_segment() {
            tracing::debug!(%error, "a segment that is not needed could not be stored");
        }
        self.segment_names()
    }

    /// Complete the part of a shard that has ended, and hand it to the store.
    pub fn close(
        mut self,
        end: ShardEnd,
        identity: &RunIdentity,
        output: &Output,
    ) -> Result<(PendingPart, ClosedPart), SinkError> {
        if end.records == 0 {
            self.start_over();
        }
        let reused = match self.segments.is_empty() {
            true => Tally::default(),
            false => self.assemble(identity, output)?,
        };
        if self.tally.rows() != end.records {
            let rows = self.tally.rows();
            let message = format!("{} has {} records, and {rows} rows", self.shard.name, end.records);
            return Err(SinkError::Uri { uri: output.uri_of(&self.name), message });
        }
        let mut footer = vec![(ROWS_BY_STATUS, self.tally.to_json())];
        footer.extend(end.damage.clone().map(|damage| (DAMAGE, damage)));
        footer.extend(identity.labels.clone().map(|labels| (LABELS, labels)));
        if !end.skipped.is_empty() {
            footer.push((SKIPPED, end.skipped.to_json()));
        }
        let report = PartReport {
            attempt: Some(identity.attempt),
            shard: self.shard.name.clone(),
            shard_version: self.shard.version().map(str::to_owned),
            shard_bytes: known_bytes(&self.shard),
            format: Some(self.shard.format),
            rows: Some(end.records),
            rows_by_status: Some(self.tally),
            damage: end.damage,
            skipped: end.skipped,
            ..PartReport::default()
        };
        let file = self.writer.finish(&footer, output)?;
        let segments = [self.segments, self.discarded].concat();
        Ok((file, ClosedPart { report, segments, reused }))
    }

    /// Copy the segments' rows, and the last ones, into one new file. Returns the rows of other attempts, by status.
    fn assemble(&mut self, identity: &RunIdentity, output: &Output) -> Result<Tally, SinkError> {
        self.checkpoint(identity, output)?;
        self.await_segment()?;
        let (mut tally, mut reused) = (Tally::default(), Tally::default());
        for segment in &self.segments {
            let file = output.read(&segment.name)?;
            let damaged = |message| SinkError::Uri { uri: output.uri_of(&segment.name), message };
            let writer = &mut self.writer;
            let here = read_segment(file, segment, damaged, |rows| writer.write(rows, output))?;
            tally.add(&here);
            if segment.attempt != identity.attempt {
                reused.add(&here);
            }
        }
        self.tally = tally;
        Ok(reused)
    }
}

/// Bytes of a shard's objects; `None` if unknown.
fn known_bytes(shard: &ShardRef) -> Option<u64> {
    Some(shard.size_bytes()).filter(|&bytes| bytes > 0)
}

fn begin_file(
    name: &str,
    shard: &ShardRef,
    identity: &RunIdentity,
    output: &Output,
) -> Result<PartWriter, SinkError> {
    let attempt = identity.attempt.to_string();
    let (shard_identity, shard_bytes) = (shard.identity(), known_bytes(shard).map(|bytes| bytes.to_string()));
    let mut footer = vec![
        (SCHEMA, SCHEMA_VERSION),
        (PLAN, &identity.plan_sha256),
        (ATTEMPT, &attempt),
        (SHARD, &shard.name),
        (SHARD_IDENTITY, &shard_identity),
        (SHARD_FORMAT, shard.format.as_str()),
    ];
    footer.extend(shard.version().map(|version| (SHARD_VERSION, version)));
    footer.extend(shard_bytes.as_deref().map(|bytes| (SHARD_BYTES, bytes)));
    PartWriter::create(output, &identity.run_id, name.to_owned(), &PREDICTIONS, &footer)
}
