//! Our functions: list, score and finish. They block.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::artifacts::Artifacts;
use super::failure::Failure;
use super::messages::{Listing, ToFinish, ToScore, decode, encode};
use super::payload::Payload;
use super::scorers::ScorersOfWorker;
use crate::checked::{refuse_output_inside_input, run_record};
use crate::commit::{
    self, AttemptNote, Listed, Output, OutputState, PartName, Run, RunRecord, admit, check_finished, claim,
};
use crate::error::{Error, SinkError};
use crate::flow::StopSignal;
use crate::items::{CallOptions, ShardRef};
use crate::plan::Plan;
use crate::report::{PartReport, Tally};
use crate::scorer::Scorer;
use crate::source::{ReadOptions, check_fit, list_shards};
use crate::store::Stores;

/// The key of all reports, so that one group has them all.
pub const ALL: &[u8] = b"all";

/// What the functions of one worker share.
pub struct Context {
    pub runtime: Handle,
    pub scorers: ScorersOfWorker,
    pub artifacts: Artifacts,
}

/// What [`Context::score`] has done.
pub struct ScoredShard {
    /// The message to [`Context::finish`].
    pub message: Vec<u8>,
    /// Rows of the shard's part, by status.
    pub rows: Tally,
    /// The scorer, unless the message was only passed on.
    pub scorer: Option<Arc<Scorer>>,
}

/// A plan with its stores, its output, and the hash of its model.
struct Opened {
    plan: Plan,
    stores: Stores,
    output: Output,
    model_sha256: String,
}

impl Context {
    /// The plan of a payload, with paths of files that exist here.
    fn plan(&self, payload: &Payload) -> Result<Plan, Failure> {
        Ok(self.artifacts.localize(payload)?.plan().map_err(Error::from)?)
    }

    fn open(&self, payload: &Payload) -> Result<Opened, Failure> {
        let plan = self.plan(payload)?;
        let stores = Stores::with(self.runtime.clone(), plan.storage.clone());
        let output = Output::open(&stores, &plan.output.uri)?;
        Ok(Opened { plan, stores, output, model_sha256: payload.model_sha256.clone() })
    }

    /// List the input, and emit one pair of key and value for each shard, then one with the summary of the listing.
    pub fn list(
        &self,
        payload: &Payload,
        mut emit: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let opened = self.open(payload)?;
        let Opened { plan, stores, output, .. } = &opened;
        refuse_output_inside_input(stores, plan)?;
        let state = admit(output, &opened.record())?;
        let mut shards = list_shards(stores, &plan.inputs, &plan.input).map_err(Error::from)?;
        let skips = shards.skips();
        let is_finished = matches!(state, OutputState::Succeeded(..));
        let mut count = 0;
        if is_finished {
            check_finished(output, shards, None)?;
        } else {
            // an input that does not fit the pipeline file must leave nothing in the output
            let first = shards.next().transpose().map_err(Error::from)?;
            let options = ReadOptions::from(&plan.input);
            first.as_ref().map_or(Ok(()), |shard| check_fit(stores, shard, &options)).map_err(Error::from)?;
            for shard in first.map(Ok).into_iter().chain(shards) {
                let shard = shard.map_err(Error::from)?;
                let key = PartName::of(&shard).to_string();
                emit(key.as_bytes(), &encode(&ToScore::Shard(shard.to_json())))?;
                count += 1;
            }
        }
        let listing = Listing { shards: count, skipped: skips.counts(), is_finished };
        emit(b"", &encode(&ToScore::Listing(listing)))
    }

    /// Score a shard. May be called from many threads at once.
    pub fn score(
        &self,
        payload: &Payload,
        message: &[u8],
        stop: &StopSignal,
    ) -> Result<ScoredShard, Failure> {
        let shard = match decode(message)? {
            ToScore::Listing(listing) => {
                let message = encode(&ToFinish::Listing(listing));
                return Ok(ScoredShard { message, rows: Tally::default(), scorer: None });
            }
            ToScore::Shard(json) => ShardRef::from_json(&json)?,
        };
        let key = payload.encode();
        let scorer = self.scorers.get(&key, || self.plan(payload))?;
        let options = CallOptions { stop: stop.clone(), ..CallOptions::default() };
        match scorer.score(&shard, options) {
            Ok(part) => {
                let rows = part.rows_by_status.clone().unwrap_or_default();
                let run_id = scorer.run_id().to_owned();
                let message = encode(&ToFinish::Part { run_id, part: Box::new(part) });
                Ok(ScoredShard { message, rows, scorer: Some(scorer) })
            }
            Err(error) => {
                // its stages are gone, its engine is broken, or its run was removed
                if matches!(
                    error,
                    Error::StagePanicked { .. } | Error::Engine(_) | Error::Sink(SinkError::OtherRun { .. })
                ) {
                    self.scorers.discard(&key, &scorer);
                }
                Err(error.into())
            }
        }
    }

    /// Finish the run, given the messages of all shards.
    pub fn finish<'a>(
        &self,
        payload: &Payload,
        messages: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Failure> {
        let (mut parts, mut runs, mut listing) = (Vec::new(), BTreeSet::new(), None);
        for message in messages {
            match decode(message)? {
                ToFinish::Part { run_id, part } => {
                    runs.insert(run_id);
                    parts.push(*part);
                }
                ToFinish::Listing(of_all) => listing = Some(of_all),
            }
        }
        let opened = self.open(payload)?;
        let wanted = opened.record();
        let Opened { plan, output, .. } = &opened;
        let state = admit(output, &wanted)?;
        if matches!(state, OutputState::Succeeded(..)) {
            tracing::info!("the output holds this finished run");
            return Ok(());
        }
        let listing =
            listing.ok_or_else(|| "the runner did not deliver the summary of the listing".to_owned())?;
        let record = match state.record() {
            Some(record) => record.clone(),
            None if listing.shards == 0 => claim(output, &wanted, &AttemptNote::begun(0, 1))?.record,
            None => return Err(other_run(output, "it was removed, or is on the disk of another host")),
        };
        if runs.iter().any(|run| *run != record.run_id) {
            return Err(other_run(output, "another run with the same plan has taken the place of this one"));
        }
        let listed = listed(&parts, listing)?;
        let report = commit::finish(output, Run { plan, record: &record }, listed, parts)?;
        let summary = &report.summary;
        tracing::info!(outcome = ?summary.outcome, rows = summary.rows, shards = summary.shards, "the run has ended");
        Ok(())
    }
}

impl Opened {
    /// The record of the run that would begin now.
    fn record(&self) -> RunRecord {
        run_record(&self.plan, &self.model_sha256, None)
    }
}

fn other_run(output: &Output, difference: &str) -> Failure {
    SinkError::OtherRun { uri: output.uri().to_owned(), difference: difference.to_owned() }.into()
}

/// The whole input, from the parts of all of its shards.
fn listed(parts: &[PartReport], listing: Listing) -> Result<Listed, String> {
    let Listing { shards, skipped, .. } = listing;
    if parts.len() as u64 != shards {
        return Err(format!("the runner delivered reports for {} of {shards} shards", parts.len()));
    }
    Listed::of_parts(parts.iter().map(|part| part.path.as_str()), skipped)
        .map_err(|place| format!("shard {place} has no report, or more than one"))
}
