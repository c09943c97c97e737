//! The part of the shard whose rows are arriving.
//!
//! - Rows go to one file. Unless a checkpoint is taken before the shard ends, that file becomes the
//!   part; otherwise it becomes a segment, and another file is begun.
//! - At the end of a shard with segments, its part is assembled from their rows and the last ones.
//! - Rows arrive in the order of their records, after those in segments. If the shard can no longer be read as far as
//!   the segments reach, rows arrive from the first record on, and the segments are not used.

use std::sync::Arc;

use crate::commit::{
    ATTEMPT, DAMAGE, LABELS, PendingUpload, ROWS_BY_STATUS, SHARD, SHARD_BYTES, SHARD_FORMAT, SHARD_IDENTITY,
    SHARD_VERSION, SKIPPED, Segment, part_name, read_segment,
};
use crate::error::SinkError;
use crate::items::{Call, Kept, ShardEnd, ShardRef, Status};
use crate::report::{PartReport, Tally};

use super::attempt::Attempt;
use super::part::PartWriter;
use super::schema::PREDICTIONS;

/// A part that is not complete yet.
#[derive(Debug)]
pub(super) struct OpenPart {
    pub call: Arc<Call>,
    /// Whether its call asked to stop, and the rows that had arrived by then were handed to the store.
    pub is_stopped: bool,
    /// The file of the rows since the last checkpoint.
    pub writer: PartWriter,
    attempt: Arc<Attempt>,
    /// Rows since the part was opened, by status.
    tally: Tally,
    /// The rows in checkpoints, from the first record on.
    segments: Vec<Segment>,
    /// Segments that are not used, because the shard is read from its first record again.
    discarded: Vec<Segment>,
    /// Position of the record whose row comes next.
    next_record: u64,
    /// The last segment, while it is being stored.
    pending: Option<PendingUpload>,
}

/// A part whose last row has been written.
#[derive(Debug)]
pub(super) struct ClosedPart {
    pub call: Arc<Call>,
    pub file: PendingUpload,
    /// Its report. Size and hash are not known yet.
    pub report: PartReport,
    /// Names of all segments of the shard, used or not.
    pub segments: Vec<String>,
    /// Rows that other attempts scored, by status.
    pub reused: Tally,
}

impl OpenPart {
    /// Begin the part of a shard, or resume it after its segments.
    pub fn begin(call: Arc<Call>, attempt: &Arc<Attempt>) -> Result<Self, SinkError> {
        Ok(Self {
            is_stopped: false,
            attempt: Arc::clone(attempt),
            tally: Tally::default(),
            segments: call.resume.segments.clone(),
            discarded: Vec::new(),
            next_record: call.resume.rows(),
            writer: begin_file(&call.shard, attempt)?,
            pending: None,
            call,
        })
    }

    /// Count the row of the record `record_index`, which is about to be written.
    ///
    /// # Errors
    /// If it is neither the next record nor the first one of a shard that is read from its beginning again.
    pub fn count(&mut self, record_index: u64, status: Status) -> Result<(), SinkError> {
        if record_index == 0 {
            self.start_over();
        }
        if record_index != self.next_record {
            return Err(
                self.refused(format!("record {record_index} arrived, expected record {}", self.next_record))
            );
        }
        self.next_record += 1;
        self.tally.count(status);
        Ok(())
    }

    /// An error about the rows of this part.
    fn refused(&self, message: String) -> SinkError {
        SinkError::Uri { uri: self.attempt.output.uri_of(&self.writer.name), message }
    }

    /// Discard the segments: the shard is read from its first record again.
    fn start_over(&mut self) {
        if self.tally.rows() == 0 {
            self.discarded.append(&mut self.segments);
            self.next_record = 0;
        }
    }

    /// Rows of the shard in segments.
    pub fn kept(&self) -> Kept {
        let others = self.segments.iter().filter(|segment| segment.attempt != self.attempt.number);
        Kept {
            rows: self.segments.last().map_or(0, |segment| segment.to),
            rows_of_others: others.map(|segment| segment.to - segment.from).sum(),
        }
    }

    /// Make the rows since the last checkpoint a segment, and begin to store it. Does nothing without rows.
    ///
    /// # Errors
    /// Also those of storing the segment before.
    pub fn checkpoint(&mut self) -> Result<(), SinkError> {
        if self.writer.rows == 0 {
            return Ok(());
        }
        self.await_segment()?;
        let mut written = std::mem::replace(&mut self.writer, begin_file(&self.call.shard, &self.attempt)?);
        let (from, Attempt { number, run_id, .. }) = (self.kept().rows, &*self.attempt);
        let segment = Segment::new(&written.name, from, from + written.rows, *number, run_id);
        written.name.clone_from(&segment.name);
        self.pending = Some(written.finish(&[])?);
        self.segments.push(segment);
        Ok(())
    }

    /// Wait until all segments are stored.
    pub fn await_segment(&mut self) -> Result<(), SinkError> {
        self.pending.take().map_or(Ok(()), |pending| pending.wait().map(drop))
    }

    /// Names of all segments of the shard, used or not.
    fn segment_names(&self) -> Vec<String> {
        self.segments.iter().chain(&self.discarded).map(|segment| segment.name.clone()).collect()
    }

    /// Remove all segments of the shard, because wrong bytes were read of it: any row may be wrong.
    pub fn discard(mut self) {
        if let Err(error) = self.await_segment() {
            tracing::debug!(%error, "a segment that is not needed could not be stored");
        }
        let segments = self.segment_names();
        if let Err(error) = self.attempt.output.remove(&segments) {
            tracing::error!(
                %error,
                ?segments,
                "segments of wrong bytes could not be removed: remove them before the next attempt"
            );
        }
    }

    /// Complete the part of a shard that has ended, and hand it to the store.
    pub fn close(mut self, end: ShardEnd) -> Result<ClosedPart, SinkError> {
        if end.records == 0 {
            self.start_over();
        }
        let reused = if self.segments.is_empty() { Tally::default() } else { self.assemble()? };
        let shard = &self.call.shard;
        if self.tally.rows() != end.records {
            let rows = self.tally.rows();
            return Err(self.refused(format!("{} has {} records, and {rows} rows", shard.name, end.records)));
        }
        let mut footer = vec![(ROWS_BY_STATUS, self.tally.to_json())];
        footer.extend(end.damage.clone().map(|damage| (DAMAGE, damage)));
        footer.extend(self.attempt.labels.clone().map(|labels| (LABELS, labels)));
        if !end.skipped.is_empty() {
            footer.push((SKIPPED, end.skipped.to_json()));
        }
        let segments = self.segment_names();
        let report = PartReport {
            path: self.writer.name.clone(),
            attempt: Some(self.attempt.number),
            shard: shard.name.clone(),
            shard_version: shard.version().map(str::to_owned),
            shard_bytes: known_bytes(shard),
            format: Some(shard.format),
            rows: Some(end.records),
            rows_by_status: Some(self.tally),
            damage: end.damage,
            skipped: end.skipped,
            ..PartReport::default()
        };
        Ok(ClosedPart { file: self.writer.finish(&footer)?, call: self.call, report, segments, reused })
    }

    /// Copy the segments' rows, and the last ones, into one new file. Returns the rows of other attempts, by status.
    fn assemble(&mut self) -> Result<Tally, SinkError> {
        self.checkpoint()?;
        self.await_segment()?;
        let output = &self.attempt.output;
        let (mut tally, mut reused) = (Tally::default(), Tally::default());
        for segment in &self.segments {
            let file = output.read(&segment.name)?;
            let damaged = |message| SinkError::Uri { uri: output.uri_of(&segment.name), message };
            let here = read_segment(file, segment, damaged, |rows| self.writer.write(rows))?;
            tally.add(&here);
            if segment.attempt != self.attempt.number {
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

fn begin_file(shard: &ShardRef, attempt: &Arc<Attempt>) -> Result<PartWriter, SinkError> {
    let (number, identity) = (attempt.number.to_string(), shard.identity());
    let bytes = known_bytes(shard).map(|bytes| bytes.to_string());
    let mut footer = vec![
        (ATTEMPT, &number[..]),
        (SHARD, &shard.name),
        (SHARD_IDENTITY, &identity),
        (SHARD_FORMAT, shard.format.as_str()),
    ];
    footer.extend(shard.version().map(|version| (SHARD_VERSION, version)));
    footer.extend(bytes.as_deref().map(|bytes| (SHARD_BYTES, bytes)));
    PartWriter::create(attempt, part_name(shard), &PREDICTIONS, &footer)
}
