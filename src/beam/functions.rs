//! Our functions: list, score and finish. They block.

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
use crate::error::Error;
use crate::flow::StopSignal;
use crate::items::{CallOptions, ShardRef};
use crate::plan::Plan;
use crate::report::PartReport;
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

    /// List the input, and emit key and value of one element for each shard, then of one for the whole.
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

    /// Score a shard, and return the message to [`Context::finish`]. May be called from many threads at once.
    pub fn score(&self, payload: &Payload, message: &[u8], stop: &StopSignal) -> Result<Vec<u8>, Failure> {
        let shard = match decode(message)? {
            ToScore::Listing(listing) => return Ok(encode(&ToFinish::Listing(listing))),
            ToScore::Shard(json) => ShardRef::from_json(&json)?,
        };
        let key = payload.encode();
        let scorer = self.scorers.get(&key, || self.plan(payload))?;
        let options = CallOptions { stop: stop.clone(), ..CallOptions::default() };
        match scorer.score(&shard, options) {
            Ok(part) => Ok(encode(&ToFinish::Part(Box::new(part)))),
            Err(error) => {
                // its stages are gone, its engine is broken, or its run was removed
                if matches!(error, Error::StagePanicked { .. } | Error::Engine(_) | Error::Sink(_)) {
                    self.scorers.discard(&key, &scorer);
                }
                Err(error.into())
            }
        }
    }

    /// Store the batches of a scorer that a bundle has used.
    pub fn store_batches(&self, payload: &Payload) -> Result<(), Failure> {
        let scorer = self.scorers.get(&payload.encode(), || self.plan(payload))?;
        Ok(scorer.store_batches()?)
    }

    /// Finish the run, given the messages of all shards.
    pub fn finish<'a>(
        &self,
        payload: &Payload,
        messages: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Failure> {
        let (mut parts, mut listing) = (Vec::new(), None);
        for message in messages {
            match decode(message)? {
                ToFinish::Part(part) => parts.push(*part),
                ToFinish::Listing(of_all) => listing = Some(of_all),
            }
        }
        let listing = listing.ok_or_else(|| "the runner has lost the end of the listing".to_owned())?;
        if listing.is_finished {
            tracing::info!("done before: the output holds this finished run, and the input has not changed");
            return Ok(());
        }
        let listed = listed(&parts, listing)?;
        let opened = self.open(payload)?;
        let wanted = opened.record();
        let Opened { plan, output, .. } = &opened;
        let record = match admit(output, &wanted)? {
            // an input without shards: nobody has begun the run
            OutputState::Vacant => claim(output, &wanted, &AttemptNote::begun(0, 1))?.record,
            state => state.record().cloned().ok_or_else(|| "the output has no run".to_owned())?,
        };
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

/// The whole input, from the parts of all of its shards.
fn listed(parts: &[PartReport], listing: Listing) -> Result<Listed, String> {
    let Listing { shards, skipped, .. } = listing;
    if parts.len() as u64 != shards {
        return Err(format!("the runner has delivered {} parts of {shards} shards", parts.len()));
    }
    Listed::of_parts(parts.iter().map(|part| part.path.as_str()), skipped)
        .map_err(|place| format!("the runner has delivered no part, or two, of shard {place}"))
}
