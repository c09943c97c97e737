//! Our functions: list, score and finish. They block.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::artifacts::{Artifacts, Needs};
use super::failure::Failure;
use super::messages::{Listing, ToFinish, ToScore, decode, encode};
use super::payload::Payload;
use super::scorers::{Key, ReadyScorer, ScorersOfWorker, SharedScorer};
use super::uris::{check_uris, uris_of};
use crate::checked::{refuse_output_inside_input, run_record};
use crate::commit::{
    self, AttemptNote, Listed, Output, OutputState, PartName, Run, RunRecord, StoredParts, admit,
    check_current, claim, shard_history,
};
use crate::error::{Error, SinkError, SourceError};
use crate::flow::{StopSignal, lock};
use crate::items::{CallOptions, ShardRef};
use crate::plan::{Plan, check_inputs};
use crate::report::{PartReport, Tally};
use crate::source::{ReadOptions, check_fit, list_shards};
use crate::store::Stores;

#[cfg(test)]
mod tests;

/// The key of all URIs, and of all reports, so that one group has them all.
pub const ALL: &[u8] = b"all";

/// What the functions of one worker share.
pub struct Context {
    runtime: Handle,
    scorers: ScorersOfWorker,
    artifacts: Artifacts,
    /// Runs that were finished before the worker had a scorer for them.
    finished: Mutex<HashMap<Key, Arc<FinishedRun>>>,
}

/// A run whose parts are decided.
struct FinishedRun {
    run_id: String,
    parts: HashMap<String, PartReport>,
}

/// What [`Context::score`] has done.
pub struct ScoredShard {
    /// The message to [`Context::finish`].
    pub message: Vec<u8>,
    /// Rows of the shard's part, by status.
    pub rows: Tally,
    /// The scorer, if it was needed.
    pub scorer: Option<Arc<SharedScorer>>,
    /// How long it took to make the scorer, if this call did.
    pub load_time: Option<Duration>,
}

/// A shard that was not scored.
struct Unscored {
    failure: Failure,
    /// Whether the scorer was made for it.
    with_new_scorer: bool,
    /// Whether the run of the scorer was removed.
    is_of_another_run: bool,
}

impl From<Failure> for Unscored {
    fn from(failure: Failure) -> Self {
        Self { failure, with_new_scorer: true, is_of_another_run: false }
    }
}

/// A plan with its stores, its output, and the hash of its model.
struct Opened {
    plan: Plan,
    stores: Stores,
    output: Output,
    model_sha256: String,
}

impl Context {
    pub fn new(runtime: Handle, scorers: ScorersOfWorker, artifacts: Artifacts) -> Self {
        Self { runtime, scorers, artifacts, finished: Mutex::default() }
    }

    /// The runtime that drives requests.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The plan of a payload, with paths of those files that are needed here.
    fn plan(&self, payload: &Payload, needs: Needs) -> Result<Plan, Failure> {
        Ok(self.artifacts.localize(payload, needs)?.plan().map_err(Error::from)?)
    }

    /// The plan and its output. The model need not exist here.
    fn open(&self, payload: &Payload) -> Result<Opened, Failure> {
        let plan = self.plan(payload, Needs::Labels)?;
        let stores = Stores::with(self.runtime.clone(), plan.storage.clone());
        let output = Output::open(&stores, &plan.output.uri)?;
        Ok(Opened { plan, stores, output, model_sha256: payload.model_sha256.clone() })
    }

    /// List the input that a pipeline of another SDK names in `messages`, as [`Context::list`] does.
    pub fn list_given(
        &self,
        payload: &Payload,
        messages: impl IntoIterator<Item = Result<Bytes, Failure>>,
        emit: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let uris = uris_of(messages)?;
        check_uris(&uris, payload.file().map_err(Error::from)?.input.allow_empty)?;
        self.list_uris(payload, uris, emit)
    }

    /// List the input of the pipeline file, and emit one pair of key and value for each shard, then one with the
    /// summary of the listing. Those are the same if a runner repeats the bundle, even after the run has finished: it
    /// may need the elements again for other bundles that it has lost.
    pub fn list(
        &self,
        payload: &Payload,
        emit: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let uris = payload.file().map_err(Error::from)?.input.uri.into_vec();
        check_inputs(&uris).map_err(Error::from)?;
        self.list_uris(payload, uris, emit)
    }

    fn list_uris(
        &self,
        payload: &Payload,
        uris: Vec<String>,
        mut emit: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut opened = self.open(payload)?;
        opened.plan.set_inputs(uris);
        let Opened { plan, stores, output, .. } = &opened;
        refuse_output_inside_input(stores, plan)?;
        let state = admit(output, &opened.record())?;
        let stored = StoredParts::read(output, state.record().map(|record| &record.run_id[..]))?;
        let mut shards = list_shards(stores, &plan.inputs, &plan.input).map_err(Error::from)?;
        let skips = shards.skips();
        // an input that does not fit the pipeline file must leave nothing in the output
        let first = shards.next().transpose().map_err(Error::from)?;
        let options = ReadOptions::from(&plan.input);
        first.as_ref().map_or(Ok(()), |shard| check_fit(stores, shard, &options)).map_err(Error::from)?;
        let mut count = 0;
        for shard in first.map(Ok).into_iter().chain(shards) {
            let shard = shard.map_err(Error::from)?;
            stored.compare(&shard).map_err(Error::from)?;
            let key = PartName::of(&shard).to_string();
            emit(key.as_bytes(), &encode(&ToScore::Shard(shard.to_json())))?;
            count += 1;
        }
        stored.compare_end(count).map_err(Error::from)?;
        let inputs = plan.inputs.clone();
        let listing = Listing { inputs, shards: count, skipped: skips.counts() };
        emit(b"", &encode(&ToScore::Listing(listing)))
    }

    /// Score a shard. May be called from many threads at once.
    pub fn score(
        &self,
        payload: &Payload,
        message: &[u8],
        options: CallOptions,
    ) -> Result<ScoredShard, Failure> {
        let shard = match decode(message)? {
            ToScore::Listing(listing) => {
                let message = encode(&ToFinish::Listing(listing));
                return Ok(ScoredShard { message, rows: Tally::default(), scorer: None, load_time: None });
            }
            ToScore::Shard(json) => ShardRef::from_json(&json)?,
        };
        let key = payload.encode();
        match self.score_once(&key, payload, &shard, options.clone()) {
            // a worker may outlive its job, and the scorer's run may have been removed since then
            Err(Unscored { with_new_scorer: false, is_of_another_run: true, .. }) => {
                self.score_once(&key, payload, &shard, options)
            }
            scored => scored,
        }
        .map_err(|unscored| unscored.failure)
    }

    fn score_once(
        &self,
        key: &[u8],
        payload: &Payload,
        shard: &ShardRef,
        options: CallOptions,
    ) -> Result<ScoredShard, Unscored> {
        let mut stored = None;
        let scorer = self.scorers.get(key, &options.stop, || {
            stored = self.stored(key, payload, shard)?;
            if stored.is_some() { Ok(None) } else { self.plan(payload, Needs::All).map(Some) }
        })?;
        let Some(ReadyScorer { scorer, load_time }) = scorer else {
            return Ok(stored.expect("only a shard whose part is stored needs no scorer"));
        };
        let begun = Instant::now();
        match scorer.scorer.score(shard, options) {
            Ok(part) => {
                let scored = scored(scorer.scorer.run_id().to_owned(), part, begun.elapsed());
                Ok(ScoredShard { scorer: Some(scorer), load_time, ..scored })
            }
            Err(error) => {
                self.discard_if_ended(&scorer, &error);
                let is_of_another_run = is_of_another_run(&error);
                let with_new_scorer = load_time.is_some();
                Err(Unscored { failure: error.into(), with_new_scorer, is_of_another_run })
            }
        }
    }

    /// See [`SharedScorer::store_batches`]. Blocks.
    ///
    /// # Errors
    /// See there. If the scorer cannot go on, the next bundle loads another one.
    pub fn store_batches(&self, scorer: &Arc<SharedScorer>, stop: &StopSignal) -> Result<bool, Failure> {
        let stored = scorer.store_batches(stop);
        Ok(stored.inspect_err(|error| self.discard_if_ended(scorer, error))?)
    }

    /// Make the next bundle load another scorer, if after `error` this one cannot go on: its stages are gone, its
    /// engine is broken, or its run was removed.
    fn discard_if_ended(&self, scorer: &Arc<SharedScorer>, error: &Error) {
        if is_of_another_run(error) || matches!(error, Error::StagePanicked { .. } | Error::Engine(_)) {
            self.scorers.discard(scorer);
        }
    }

    /// The result for a shard, if its part is stored or the parts of the run are decided. A scorer would load the model
    /// for nothing.
    fn stored(
        &self,
        key: &[u8],
        payload: &Payload,
        shard: &ShardRef,
    ) -> Result<Option<ScoredShard>, Failure> {
        let opened = self.open(payload)?;
        // not locked during requests: other payloads must not wait for this output
        let finished = lock(&self.finished).get(key).cloned();
        if let Some(run) = finished {
            match check_current(&opened.output, &run.run_id) {
                Ok(()) => return run.part_of(shard).map(Some),
                Err(SinkError::OtherRun { .. }) => drop(lock(&self.finished).remove(key)),
                Err(error) => return Err(error.into()),
            }
        }
        match admit(&opened.output, &opened.record())? {
            OutputState::Sealed(record, manifest) | OutputState::Succeeded(record, manifest) => {
                let parts = manifest.parts.into_iter().map(|part| (part.path.clone(), part)).collect();
                let run = Arc::new(FinishedRun { run_id: record.run_id, parts });
                lock(&self.finished).insert(key.to_owned(), Arc::clone(&run));
                run.part_of(shard).map(Some)
            }
            OutputState::Unfinished(record) | OutputState::Failed(record, _) => {
                let history = shard_history(&opened.output, &record.run_id, shard, &Mutex::default())?;
                Ok(history.part.map(|part| scored(record.run_id, part, Duration::ZERO)))
            }
            OutputState::Vacant | OutputState::Foreign(_) | OutputState::Removing(_) => Ok(None),
        }
    }

    /// Finish the run, given the messages of all shards.
    pub fn finish(
        &self,
        payload: &Payload,
        messages: impl IntoIterator<Item = Result<Bytes, Failure>>,
    ) -> Result<(), Failure> {
        let (mut parts, mut runs, mut listing) = (Vec::new(), BTreeSet::new(), None);
        for message in messages {
            match decode(&message?)? {
                ToFinish::Part { run_id, part, .. } => {
                    runs.insert(run_id);
                    parts.push(*part);
                }
                ToFinish::Listing(of_all) => listing = Some(of_all),
            }
        }
        let mut opened = self.open(payload)?;
        let wanted = opened.record();
        if let Some(listing) = &mut listing {
            opened.plan.set_inputs(std::mem::take(&mut listing.inputs));
        }
        let Opened { plan, output, .. } = &opened;
        let state = admit(output, &wanted)?;
        if matches!(state, OutputState::Succeeded(..)) {
            tracing::info!("the run is finished already");
            return Ok(());
        }
        let listing =
            listing.ok_or_else(|| "the runner did not deliver the summary of the listing".to_owned())?;
        let record = match state.record() {
            Some(record) => record.clone(),
            None if listing.shards == 0 => claim(output, &wanted, &AttemptNote::begun(0, 1))?.record,
            // an earlier try has removed the empty run
            None if !plan.input.allow_empty
                && parts.len() as u64 == listing.shards
                && parts.iter().all(|part| part.rows == Some(0)) =>
            {
                let message = format!("none of its {} shards has a record", listing.shards);
                let uri = plan.inputs.join(", ");
                return Err(Error::from(SourceError::NoInput { uri, message }).into());
            }
            None => return Err(other_run(output, "it was removed, or is on the disk of another host")),
        };
        if runs.iter().any(|run| *run != record.run_id) {
            return Err(other_run(output, "another run with the same plan has taken the place of this one"));
        }
        let listed = listed(&parts, listing, &plan.inputs).map_err(Error::from)?;
        let report = commit::finish(output, Run { plan, record: &record }, listed, parts)?;
        let summary = &report.summary;
        tracing::info!(outcome = ?summary.outcome, rows = summary.rows, shards = summary.shards, "the run has ended");
        Ok(())
    }
}

impl FinishedRun {
    fn part_of(&self, shard: &ShardRef) -> Result<ScoredShard, Failure> {
        match self.parts.get(&PartName::of(shard).to_string()) {
            Some(part) => Ok(scored(self.run_id.clone(), part.clone(), Duration::ZERO)),
            None => {
                let message = "it was added after the run finished".to_owned();
                Err(Error::from(SourceError::Changed { shard: shard.name.clone(), message }).into())
            }
        }
    }
}

/// A shard of the run `run_id` whose part is stored, `after` the worker took it up.
fn scored(run_id: String, part: PartReport, after: Duration) -> ScoredShard {
    let rows = part.rows_by_status.clone().unwrap_or_default();
    let message = encode(&ToFinish::Part { run_id, part: Box::new(part), seconds: after.as_secs_f64() });
    ScoredShard { message, rows, scorer: None, load_time: None }
}

impl Opened {
    /// The record of the run that would begin now.
    fn record(&self) -> RunRecord {
        run_record(&self.plan, &self.model_sha256, None)
    }
}

fn is_of_another_run(error: &Error) -> bool {
    matches!(error, Error::Sink(SinkError::OtherRun { .. }))
}

fn other_run(output: &Output, difference: &str) -> Failure {
    SinkError::OtherRun { uri: output.uri().to_owned(), difference: difference.to_owned() }.into()
}

/// The whole input, from the parts of all of its shards.
fn listed(parts: &[PartReport], listing: Listing, inputs: &[String]) -> Result<Listed, SourceError> {
    let Listing { shards, skipped, .. } = listing;
    // a runner that has lost the list makes it again, of the input as it is then
    let changed = |message| SourceError::Changed { shard: inputs.join(", "), message };
    if parts.len() as u64 != shards {
        return Err(changed(format!("the runner delivered reports for {} of {shards} shards", parts.len())));
    }
    Listed::of_parts(parts.iter().map(|part| part.path.as_str()), skipped)
        .map_err(|place| changed(format!("shard {place} has no report, or more than one")))
}
