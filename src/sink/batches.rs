//! The batches that an attempt has run, as Parquet.
//!
//! - A part is stored every ten minutes rather than once at the end, so that a killed attempt leaves most of its times.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::{ObjectName, PendingUpload, Stored};
use crate::error::SinkError;
use crate::items::Outcome;
use crate::report::PartReport;

use super::attempt::Attempt;
use super::part::PartWriter;
use super::rows::BatchRows;
use super::schema::BATCHES;

/// Time between two parts. A killed attempt loses the batches since the last one. A night makes few files.
const PART_INTERVAL: Duration = Duration::from_secs(600);

/// Writes the batches of one attempt.
#[derive(Debug)]
pub(super) struct BatchesWriter {
    attempt: Arc<Attempt>,
    rows: BatchRows,
    /// The part being written, once there is a row for it.
    writer: Option<PartWriter>,
    /// Number of that part.
    number: u64,
    /// When the last part was stored.
    begun: Instant,
}

impl BatchesWriter {
    pub fn new(attempt: &Arc<Attempt>, batch_size: usize) -> Self {
        Self {
            attempt: Arc::clone(attempt),
            rows: BatchRows::new(attempt.run_id.clone(), attempt.worker, batch_size),
            writer: None,
            number: 0,
            begun: Instant::now(),
        }
    }

    /// Add a batch. If the last part is [`PART_INTERVAL`] old, store the next one, and return it.
    pub fn push(&mut self, outcome: &Outcome) -> Result<Option<PartReport>, SinkError> {
        self.rows.push(outcome);
        if self.begun.elapsed() >= PART_INTERVAL {
            return self.store();
        }
        if self.rows.is_full() {
            self.encode()?;
        }
        Ok(None)
    }

    /// Store the rows so far, and return the part that they make. They are dropped if the run has been finished without
    /// them: its predictions are of other attempts' batches.
    pub fn store(&mut self) -> Result<Option<PartReport>, SinkError> {
        self.begun = Instant::now();
        self.encode()?;
        let Some(writer) = self.writer.take() else { return Ok(None) };
        // the name is never used again, even if this upload fails: a part that exists already is this one
        self.number += 1;
        let path = writer.name.clone();
        // an attempt that has finished the run removes what others were still staging
        match writer.finish(&[]).and_then(PendingUpload::wait) {
            Ok(Stored { bytes, sha256, .. }) => {
                Ok(Some(PartReport { path, bytes, sha256, ..PartReport::default() }))
            }
            Err(error) if self.attempt.is_decided()? => {
                tracing::debug!(%error, "the run was finished without these batches");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn encode(&mut self) -> Result<(), SinkError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        // a writer that fails is dropped
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let Attempt { worker, number: attempt, .. } = *self.attempt;
                let name = ObjectName::Batches { worker: worker.into(), attempt, number: self.number };
                PartWriter::create(&self.attempt, name.to_string(), &BATCHES, &[])?
            }
        };
        writer.write(&self.rows.take())?;
        self.writer = Some(writer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::runtime::Runtime;

    use super::*;
    use crate::commit::RUN;
    use crate::items::BatchTiming;

    fn outcome() -> Outcome {
        let (started_at, warmup) = (SystemTime::now(), false);
        let timing =
            BatchTiming { queue_ms: 0.0, h2d_ms: 0.0, compute_ms: 1.0, d2h_ms: 0.0, started_at, warmup };
        Outcome { batch_id: 0, rows: 1, scores: vec![1.0], timing, device: None }
    }

    fn path(part: Option<PartReport>) -> Option<String> {
        part.map(|part| part.path)
    }

    const FIRST: &str = "batches/part-000000-000000-000000.parquet";
    const SECOND: &str = "batches/part-000000-000000-000001.parquet";

    #[test]
    fn a_part_is_stored_when_the_last_one_is_ten_minutes_old() {
        let runtime = Runtime::new().expect("runtime");
        let mut batches = BatchesWriter::new(&Arc::new(Attempt::in_memory(&runtime)), 1);
        for expected in [FIRST, SECOND] {
            assert_eq!(batches.push(&outcome()).expect("kept"), None);
            batches.begun = batches.begun.checked_sub(PART_INTERVAL).expect("a time");
            assert_eq!(path(batches.push(&outcome()).expect("stored")).as_deref(), Some(expected));
        }
        assert_eq!(batches.store().expect("nothing to store"), None);
    }

    #[test]
    fn a_part_that_fails_although_it_exists_does_not_fail_the_next_one() {
        let runtime = Runtime::new().expect("runtime");
        let attempt = Arc::new(Attempt::in_memory(&runtime));
        let mut batches = BatchesWriter::new(&attempt, 1);
        let record = attempt.output.read(RUN).expect("it is there");
        attempt.output.remove(&[RUN.to_owned()]).expect("removed");
        batches.push(&outcome()).expect("kept");
        batches.store().expect_err("the output has no run");
        attempt.output.create(FIRST, b"a part".to_vec()).expect("created");
        attempt.output.create(RUN, record.to_vec()).expect("created");
        batches.push(&outcome()).expect("kept");
        assert_eq!(path(batches.store().expect("stored")).as_deref(), Some(SECOND));
    }

    #[test]
    fn a_run_that_was_finished_elsewhere_gets_no_further_part() {
        let runtime = Runtime::new().expect("runtime");
        let attempt = Arc::new(Attempt::in_memory(&runtime));
        let mut batches = BatchesWriter::new(&attempt, 1);
        batches.push(&outcome()).expect("kept");
        attempt.finish_elsewhere();
        assert_eq!(batches.store().expect("nothing is wrong"), None);
        assert_eq!(attempt.output.read_if_any(FIRST).expect("readable"), None);
    }

    #[test]
    fn a_part_whose_upload_has_failed_does_not_fail_the_next_one() {
        let runtime = Runtime::new().expect("runtime");
        let mut batches = BatchesWriter::new(&Arc::new(Attempt::in_memory(&runtime)), 1);
        // the task of an upload ends with its runtime
        let short_lived = Runtime::new().expect("runtime");
        let attempt = Arc::new(Attempt::in_memory(&short_lived));
        let failing = PartWriter::create(&attempt, FIRST.to_owned(), &BATCHES, &[]);
        batches.writer = Some(failing.expect("a writer"));
        drop(short_lived);
        batches.push(&outcome()).expect("kept");
        batches.store().expect_err("its upload has failed");
        batches.push(&outcome()).expect("kept");
        assert!(batches.store().expect("stored").is_some());
    }
}
