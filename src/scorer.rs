//! The scorer of a process: engines, buffers and decode threads that serve many shards.
//!
//! - [`Scorer::score`] may be called from many threads at once. The calls share engines, memory and decode threads, and
//!   their records share batches. Several shards are read at once. They are decoded one after another, in the order of
//!   the calls.
//! - A batch waits for the records of other calls only while some are on their way or all engines are busy, so the last
//!   rows of a shard never wait for calls that may not come.
//! - An error, a panic or a stop ends only the calls that it affects.
//! - A scorer is one attempt at a run: its parts go to the plan's output, its batches have their own ids, and
//!   [`Scorer::close`] notes what it stored. [`crate::commit::finish()`] finishes the run.
//!
//! Calls that block say so. Do not make them inside an async task: the stores run on a tokio runtime, and these calls
//! wait for it.

use std::sync::Mutex;
use std::time::Instant;

use tokio::runtime::Handle;

use crate::checked::{Checked, JobOptions, Prepared, run_record};
use crate::commit::{AttemptNote, Claim, Output, claim, overwrite, shard_history, tidy_if_decided};
use crate::decode::Decoder;
use crate::error::{ConfigError, Error, SourceError};
use crate::flow::StopSignal;
use crate::items::{CallOptions, Resume, Scored, ShardRef, Ticket};
use crate::pipeline::{Meters, MoreExpected, Pipeline, Stages};
use crate::plan::Plan;
use crate::report::{OutputReport, PartReport};
use crate::sink::ParquetSink;
use crate::source::{ReadOptions, open_shard_in_turn};

#[cfg(test)]
pub(crate) mod tests;

/// The scorer of a process, as the module describes.
pub struct Scorer {
    pipeline: Pipeline,
    output: Output,
    run_id: String,
    /// Held by the call that reads segments.
    reading: Mutex<()>,
}

impl Scorer {
    /// Load the model, warm the engines up, and begin the plan's run in its output, or join it. The run has no limit.
    /// Blocks.
    ///
    /// # Errors
    /// If the plan, its model, its output or this machine cannot be used.
    pub fn new(plan: Plan, runtime: &Handle) -> Result<Self, Error> {
        let options = &JobOptions::default();
        let started = Instant::now();
        let prepared = Checked::new(plan, runtime, options)?.prepare(started)?;
        let claim = prepared.claim(options)?;
        let meters = prepared.meters();
        Self::start(prepared, &claim, meters)
    }

    /// Start the stages of the attempt `claim`.
    pub(crate) fn start(prepared: Prepared, claim: &Claim, meters: Meters) -> Result<Self, Error> {
        let Prepared { checked, buffers, warm_ups, .. } = prepared;
        let Checked { plan, stores, bounds, output, engines, decode_threads, .. } = checked;
        let run_id = claim.record.run_id.clone();
        let note = claim.note.clone();
        let sink =
            ParquetSink::new(output.clone(), &plan, checked.model_sha256, checked.classes, note, warm_ups)?;
        let element = engines[0].batch_shape().element;
        let read_options = ReadOptions::from(&plan.input);
        let pipeline = Pipeline::start(Stages {
            open: Box::new(move |shard, first, turn| {
                open_shard_in_turn(&stores, shard, first, &read_options, turn)
            }),
            decoder: Decoder::new(&plan.preprocess, plan.input.max_image_bytes, element),
            decode_threads,
            engines,
            buffers,
            sink: Box::new(sink),
            bounds,
            meters,
        })?;
        Ok(Self { pipeline, output, run_id, reading: Mutex::default() })
    }

    /// The run that the scorer's attempt belongs to.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Where the parts go.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Score one shard, and return when its part is stored. Blocks. A shard whose part is stored already is not scored
    /// again. A shard with rows in checkpoints is resumed after them.
    ///
    /// # Errors
    /// - [`Error::Config`] when `options` have an allowance: the part of a shard has all its records.
    /// - [`Error::Stopped`] when `options` asked to stop. Rows scored so far are in a checkpoint.
    /// - [`Error::Source`] when the shard cannot be read, or was added after the run finished.
    /// - [`Error::Engine`] when a batch with one of its rows could not be scored.
    /// - [`Error::Sink`] when the output cannot be written, or when another run has replaced this one in it.
    /// - [`Error::StagePanicked`].
    pub fn score(&self, shard: &ShardRef, options: CallOptions) -> Result<PartReport, Error> {
        if options.allowance.is_some() {
            let message = "a shard is scored as a whole; only a run has a limit".to_owned();
            return Err(ConfigError::Argument { argument: "allowance", message }.into());
        }
        let history = shard_history(&self.output, &self.run_id, shard, &self.reading)?;
        if let Some(part) = history.part {
            return Ok(part);
        }
        if history.is_finished {
            let message = "it was added after the run finished".to_owned();
            return Err(SourceError::Changed { shard: shard.name.clone(), message }.into());
        }
        let ticket = self.submit(shard.clone(), history.resume, options)?;
        match self.wait(ticket)? {
            Scored::Part(part) => Ok(*part),
            Scored::Stopped(_) | Scored::NotBegun => Err(Error::Stopped { shard: shard.name.clone() }),
        }
    }

    /// Begin to score a shard with a known history. Blocks until the source takes it, or `options` ask to stop.
    pub(crate) fn submit(
        &self,
        shard: ShardRef,
        resume: Resume,
        options: CallOptions,
    ) -> Result<Ticket, Error> {
        self.pipeline.submit(shard, resume, options)
    }

    /// Wait until a shard is scored.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<Scored, Error> {
        self.pipeline.wait(ticket)
    }

    /// Store a batches part with all batches so far, so that a manifest made meanwhile lists them. Blocks. Returns
    /// whether they are stored; not if `stop` came first.
    ///
    /// # Errors
    /// Those of the store, and [`Error::StagePanicked`].
    pub fn store_batches(&self, stop: &StopSignal) -> Result<bool, Error> {
        self.pipeline.store_batches(stop)
    }

    /// While the returned guard lives, further calls are expected soon: batches wait for their records rather than
    /// leave padded.
    pub fn expect_more(&self) -> MoreExpected<'_> {
        self.pipeline.expect_more()
    }

    /// End the attempt: wait for the calls that are under way, store the batches part, and note what was stored.
    /// Blocks. Dropping a scorer instead also ends its calls, but notes nothing.
    ///
    /// # Errors
    /// Those of the store, and [`Error::StagePanicked`].
    pub fn close(mut self) -> Result<OutputReport, Error> {
        self.end()
    }

    /// The same, but the engines may still be in use when it returns. Dropping the scorer waits for them. Call this
    /// once.
    pub(crate) fn end(&mut self) -> Result<OutputReport, Error> {
        let report = self.finish();
        if let Err(error) = tidy_if_decided(&self.output, &self.run_id) {
            tracing::debug!(%error, "objects that this attempt left in a finished output may remain");
        }
        report
    }

    /// The same for an attempt that finishes the run afterwards, which removes what it does not need.
    pub(crate) fn finish(&mut self) -> Result<OutputReport, Error> {
        self.pipeline.finish()
    }
}

impl Prepared {
    /// Meters for the stages to start.
    pub(crate) fn meters(&self) -> Meters {
        let checked = &self.checked;
        Meters::new(checked.plan.input.look_ahead + 1, checked.decode_threads, checked.engines.len())
    }

    /// Begin the run in the plan's output, or join the run that the output holds.
    pub(crate) fn claim(&self, options: &JobOptions) -> Result<Claim, Error> {
        let Checked { plan, output, .. } = &self.checked;
        let record = run_record(plan, &self.checked.model_sha256, options.limit);
        let mut note = AttemptNote::begun(options.share.shard_index, options.share.num_shards);
        note.runs_on = self.checked.runs_on();
        if options.overwrite {
            overwrite(output, &record)?;
        }
        let claim = claim(output, &record, &note)?;
        let others = claim.notes.attempts.iter().find(|other| other.runs_on != claim.note.runs_on);
        if let Some(AttemptNote { attempt, runs_on, .. }) = others {
            let here = &claim.note.runs_on;
            tracing::warn!(
                attempt,
                ?runs_on,
                ?here,
                "another attempt at this run scores with other engines or another CPU: the last bits may differ"
            );
        }
        if claim.record.sluice_version != env!("CARGO_PKG_VERSION") {
            let (begun_by, here) = (&claim.record.sluice_version, env!("CARGO_PKG_VERSION"));
            tracing::info!(
                begun_by,
                here,
                "resuming a run that another version of sluice began; both score alike"
            );
        }
        Ok(claim)
    }
}
