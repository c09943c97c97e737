//! The batches that an attempt has run, as Parquet.
//!
//! - A part is stored about every ten minutes rather than once at the end, so that a killed attempt leaves most of its
//!   times.

use std::time::{Duration, Instant};

use crate::commit::{ObjectName, Output, PLAN, SCHEMA, SCHEMA_VERSION};
use crate::error::SinkError;
use crate::items::Outcome;
use crate::report::PartReport;

use super::identity::RunIdentity;
use super::part::PartWriter;
use super::rows::BatchRows;
use super::schema::BATCHES;

/// Time between two parts. A killed attempt loses the batches since the last one. A night makes few files.
const PART_INTERVAL: Duration = Duration::from_secs(600);

/// Rows collected before they are encoded.
const ROWS_PER_ENCODE: usize = 1024;

/// Writes the batches of one attempt.
#[derive(Debug)]
pub(super) struct BatchesWriter {
    rows: BatchRows,
    /// The part being written, once there is a row for it.
    writer: Option<PartWriter>,
    number: u32,
    begun: Instant,
}

impl BatchesWriter {
    pub fn new(identity: &RunIdentity, batch_size: usize) -> Self {
        Self {
            rows: BatchRows::new(identity.run_id.clone(), identity.worker(), batch_size),
            writer: None,
            number: 0,
            begun: Instant::now(),
        }
    }

    pub fn push(
        &mut self,
        outcome: &Outcome,
        identity: &RunIdentity,
        output: &Output,
    ) -> Result<(), SinkError> {
        self.rows.push(outcome);
        if self.rows.len() >= ROWS_PER_ENCODE { self.encode(identity, output) } else { Ok(()) }
    }

    /// Store the rows so far, if the last part is [`PART_INTERVAL`] old.
    pub fn checkpoint(
        &mut self,
        identity: &RunIdentity,
        output: &Output,
    ) -> Result<Option<PartReport>, SinkError> {
        if self.begun.elapsed() < PART_INTERVAL { Ok(None) } else { self.store(identity, output) }
    }

    /// Store the rows so far, and return the part that they make.
    pub fn store(
        &mut self,
        identity: &RunIdentity,
        output: &Output,
    ) -> Result<Option<PartReport>, SinkError> {
        self.encode(identity, output)?;
        self.begun = Instant::now();
        let Some(written) = self.writer.take() else { return Ok(None) };
        let (path, stored) = written.finish(&[], output)?.wait()?;
        let report = PartReport { path, bytes: stored.bytes, sha256: stored.sha256, ..PartReport::default() };
        // each attempt has its own number, so a part that exists already must be this one
        if stored.was_there && output.digest(&report.path)? != report {
            let message = "another attempt of the same number stored it".to_owned();
            return Err(SinkError::Uri { uri: output.uri_of(&report.path), message });
        }
        self.number += 1;
        Ok(Some(report))
    }

    fn encode(&mut self, identity: &RunIdentity, output: &Output) -> Result<(), SinkError> {
        if self.rows.len() == 0 {
            return Ok(());
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(begin(identity, self.number, output)?),
        };
        writer.write(&self.rows.take().expect("the columns are built from the schema"), output)
    }
}

fn begin(identity: &RunIdentity, number: u32, output: &Output) -> Result<PartWriter, SinkError> {
    let footer = [(SCHEMA, SCHEMA_VERSION), (PLAN, &identity.plan_sha256[..])];
    let (worker, attempt, number) = (identity.shard_index.into(), identity.attempt, number.into());
    let name = ObjectName::Batches { worker, attempt, number }.to_string();
    PartWriter::create(output, &identity.run_id, name, &BATCHES, &footer)
}
