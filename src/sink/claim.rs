//! Beginning a run in an output, or going on with the one that is there.
//!
//! - An empty output is claimed by creating `_run.json`; whoever comes second goes on with what the
//!   first has created.
//! - An output of another run is refused with the first difference, one with anything else in it, too.
//! - Each attempt creates a note with its number, which sets its batches apart from those of others.

use serde::Serialize;

use super::output::Output;
use super::run_record::{RUN, RunRecord};
use super::stored::{Holdings, attempt_name};
use crate::error::SinkError;
use crate::report::{PartReport, Tally};

/// What an attempt may go on from.
#[derive(Debug)]
pub struct Claim {
    /// The run, as its first attempt has recorded it.
    pub record: RunRecord,
    /// Number of this attempt, from 0.
    pub attempt: u32,
    /// Predictions parts that are there, in input order.
    pub predictions: Vec<PartReport>,
}

/// What an attempt notes of itself.
#[derive(Serialize)]
struct Attempt<'a> {
    worker: &'a str,
    sluice_version: &'a str,
    started_at: &'a str,
}

impl Claim {
    /// Rows of the parts that are there.
    pub fn reused(&self) -> Tally {
        let mut reused = Tally::default();
        self.predictions
            .iter()
            .filter_map(|part| part.rows_by_status.as_ref())
            .for_each(|rows| reused.add(rows));
        reused
    }
}

impl Output {
    /// Whether `wanted` may be written where `holdings` lie: the run that is there, if it is the same.
    ///
    /// # Errors
    /// [`SinkError::OtherRun`] and [`SinkError::Occupied`].
    pub fn run_in(&self, holdings: &Holdings, wanted: &RunRecord) -> Result<Option<RunRecord>, SinkError> {
        if holdings.begun {
            return self.recorded(wanted).map(Some);
        }
        match holdings.anything() {
            None => Ok(None),
            Some(what) => Err(SinkError::Occupied { uri: self.uri().to_owned(), what }),
        }
    }

    /// Begin `wanted` here, or go on with it.
    pub fn claim(&self, wanted: &RunRecord, worker: &str) -> Result<Claim, SinkError> {
        let holdings = self.holdings()?;
        let record = match self.run_in(&holdings, wanted)? {
            Some(record) => record,
            None if self.create(RUN, wanted)? => wanted.clone(),
            None => self.recorded(wanted)?,
        };
        let note = Attempt { worker, sluice_version: &wanted.sluice_version, started_at: &wanted.started_at };
        let mut attempt = holdings.attempts;
        while !self.create(&attempt_name(attempt), &note)? {
            attempt += 1;
        }
        let predictions =
            self.read_back(holdings.predictions.into_values().collect(), &record.plan_sha256)?;
        Ok(Claim { record, attempt, predictions })
    }

    /// Remove a run and all its parts: `_SUCCESS` first and its record last, so that what is left of
    /// it at any time is no finished run, and nobody else's.
    ///
    /// # Errors
    /// [`SinkError::Occupied`] where something lies that is nothing of ours.
    pub fn clear(&self, holdings: Holdings) -> Result<(), SinkError> {
        if let Some(what) = holdings.stranger {
            return Err(SinkError::Occupied { uri: self.uri().to_owned(), what });
        }
        let ends = [super::SUCCESS, super::MANIFEST].map(str::to_owned);
        let attempts = (0..holdings.attempts).map(attempt_name);
        let parts =
            holdings.predictions.into_values().chain(holdings.batches).chain(holdings.staged).chain(attempts);
        self.remove(&ends)?;
        self.remove(&parts.collect::<Vec<_>>())?;
        self.remove(&[RUN.to_owned()])
    }

    fn recorded(&self, wanted: &RunRecord) -> Result<RunRecord, SinkError> {
        let other = |difference| SinkError::OtherRun { uri: self.uri().to_owned(), difference };
        let record: RunRecord = serde_json::from_slice(&self.read(RUN)?)
            .map_err(|error| other(format!("{RUN} cannot be read: {error}")))?;
        record.difference(wanted).map_or(Ok(record), |difference| Err(other(difference)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use serde_json::json;

    use super::*;

    fn output(runtime: &tokio::runtime::Runtime) -> Output {
        let store = Arc::new(InMemory::new());
        Output::new(store, Path::from("a/b"), "gs://bucket/a/b".to_owned(), runtime.handle().clone())
    }

    fn record(run_id: &str, width: u32) -> RunRecord {
        RunRecord {
            schema_version: "1".to_owned(),
            sluice_version: "0.1.0".to_owned(),
            run_id: run_id.to_owned(),
            started_at: "2026-11-23T00:00:00Z".to_owned(),
            plan_sha256: width.to_string(),
            limit: None,
            determinants: json!({ "width": width }),
        }
    }

    #[test]
    fn the_first_attempt_begins_a_run_and_the_next_ones_go_on_with_it() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = output(&runtime);
        let first = output.claim(&record("first", 8), "000000").expect("an empty output");
        assert_eq!((first.record.run_id.as_str(), first.attempt), ("first", 0));
        let second = output.claim(&record("second", 8), "000000").expect("the same run");
        assert_eq!((second.record.run_id.as_str(), second.attempt), ("first", 1));
        let refused = output.claim(&record("third", 9), "000000").expect_err("another plan");
        assert!(refused.to_string().contains("width was 8, is 9"), "{refused}");

        output.clear(output.holdings().expect("a list")).expect("all of it is ours");
        assert_eq!(output.holdings().expect("a list"), Holdings::default());
        assert_eq!(output.claim(&record("third", 9), "000000").expect("empty again").attempt, 0);
    }

    #[test]
    fn what_is_nothing_of_ours_is_left_alone() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = output(&runtime);
        assert!(output.create("predictions/theirs.csv", &"x").expect("put"));
        let refused = output.claim(&record("first", 8), "000000").expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        let refused = output.clear(output.holdings().expect("a list")).expect_err("occupied");
        assert!(refused.to_string().contains("predictions/theirs.csv"), "{refused}");
        assert!(!output.create("predictions/theirs.csv", &"y").expect("it is still there"));
    }
}
