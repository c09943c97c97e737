//! "Score these shards" as one library call: what the command line runs, and what a worker of a
//! distributed runner calls for each of its bundles.
//!
//! - [`Checked::new`] and [`Job::prepare`] do whatever can fail before the first byte of input is
//!   read: the output is vacant or holds this very run, the model loads and fits, every engine has run.
//! - [`Job::run`] leaves a whole output, with `_manifest.json` and `_SUCCESS`, or what the same job can
//!   go on from: the record of the run, the parts of shards that had ended, and checkpoints of others.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::commit::{
    AttemptNote, Checkpoints, Crashes, DamagedPart, Done, Ending, Output, OutputListing, Remaining,
    RunRecord, RunReport, SCHEMA_VERSION, Share, TakenOver,
};
use crate::decode::Decoder;
use crate::engine::{self, Engine};
use crate::error::{Error, SinkError, SourceError};
use crate::flow::StopSignal;
use crate::items::{self, BatchBuffer, ShardRef, Status};
use crate::limits::check_memory;
use crate::pipeline::{Bounds, MemoryBound, Meters, Stages, warm_up};
use crate::plan::{Plan, threads_or_cores};
use crate::report::{OutputReport, rfc3339};
use crate::shown::without_secrets;
use crate::sink::{ParquetSink, RunIdentity, Sink};
use crate::source::{ReadOptions, ShardList, check_fit, input_around, open_shard_in_turn};
use crate::store::Stores;

/// How a run is done, as opposed to what it computes.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Records to score at most.
    pub limit: Option<u64>,
    /// Ask this to drain the run.
    pub stop: StopSignal,
    /// The shards to score, where several workers share the output.
    pub share: Share,
    /// Whether to remove a run that is there, and start anew.
    pub overwrite: bool,
}

/// A pipeline whose every part has been tried, short of running it.
pub struct Checked {
    pub plan: Plan,
    pub stores: Stores,
    pub model_sha256: String,
    pub plan_sha256: String,
    /// Scores of one row.
    pub classes: usize,
    pub bounds: Bounds,
    pub memory: MemoryBound,
    output: Output,
    /// What the output held before.
    listing: OutputListing,
    /// Whether that is this run, finished.
    is_finished: bool,
    engines: Vec<Box<dyn Engine>>,
    decode_threads: usize,
}

/// A run that is ready to start.
pub struct Job {
    checked: Checked,
    options: JobOptions,
    buffers: Vec<Box<dyn BatchBuffer>>,
    warm_ups: Vec<items::Outcome>,
    meters: Meters,
    startup: Duration,
    run_id: Arc<OnceLock<String>>,
}

impl Checked {
    /// Load the model, see that it fits the pipeline, and that the output is vacant or holds this run.
    pub fn new(plan: Plan, runtime: &Handle, options: &JobOptions) -> Result<Self, Error> {
        let stores = Stores::with(runtime.clone(), plan.storage.clone());
        let output = Output::open(&stores, &plan.output.uri)?;
        refuse_output_inside_input(&stores, &plan)?;
        let model_sha256 = engine::hash_model(&plan.model.path)?;
        let listing = output.list()?;
        let mut is_finished = false;
        if !options.overwrite
            && let Some(record) =
                output.run_in(&listing, &run_record(&plan, &model_sha256, options.limit), false)?
        {
            is_finished = output.is_finished(&record.run_id)?;
        }
        check_memory(&plan)?;
        let engines = engine::load(&plan, &model_sha256)
            .map_err(|error| engine::explain_memory(&plan, &model_sha256, error))?;
        let decode_threads = threads_or_cores(plan.preprocess.threads);
        let bounds = Bounds::new(&plan, decode_threads, engines.len());
        let shape = engines[0].batch_shape();
        Ok(Self {
            plan_sha256: plan.hash(&model_sha256),
            classes: engines[0].classes(),
            memory: MemoryBound::new(
                &plan,
                &bounds,
                shape,
                engines[0].classes(),
                decode_threads,
                engines.len(),
            ),
            plan,
            stores,
            model_sha256,
            bounds,
            output,
            listing,
            is_finished,
            engines,
            decode_threads,
        })
    }
}

/// The record of a run that begins now.
fn run_record(plan: &Plan, model_sha256: &str, limit: Option<u64>) -> RunRecord {
    let now = SystemTime::now();
    RunRecord {
        schema_version: SCHEMA_VERSION.to_owned(),
        sluice_version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: new_run_id(&plan.name, now),
        started_at: rfc3339(now),
        plan_sha256: plan.hash(model_sha256),
        limit,
        determinants: plan.determinants(model_sha256),
    }
}

impl Job {
    /// Check everything that can be checked before input is read, and warm the engines up.
    pub fn prepare(plan: Plan, runtime: &Handle, options: JobOptions) -> Result<Self, Error> {
        let start = Instant::now();
        let mut checked = Checked::new(plan, runtime, &options)?;
        let warm_ups = match warm_up(&mut checked.engines) {
            Ok(warm_ups) => warm_ups,
            Err(error) => {
                // what was too large must be gone before something smaller is tried
                checked.engines.clear();
                return Err(engine::explain_memory(&checked.plan, &checked.model_sha256, error).into());
            }
        };
        check_memory(&checked.plan)?;
        let meters =
            Meters::new(checked.plan.input.look_ahead + 1, checked.decode_threads, checked.engines.len());
        let buffers = checked.bounds.batch_buffers(checked.engines.len());
        let buffers = checked.engines[0].buffers(buffers)?;
        Ok(Self {
            checked,
            options,
            buffers,
            warm_ups,
            meters,
            startup: start.elapsed(),
            run_id: Arc::default(),
        })
    }

    /// The pipeline this job runs, with its queues and the memory they take.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// Where the run writes.
    pub fn output(&self) -> &Output {
        &self.checked.output
    }

    /// The run that it turns out to be an attempt at, once that is known.
    pub fn run_id(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.run_id)
    }

    /// Live counters, for a progress display.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Whether the output holds this run, finished.
    pub fn is_finished(&self) -> bool {
        self.checked.is_finished
    }

    /// See that a finished run is whole, as far as names and sizes tell, and of `shards` and no others. Nothing is
    /// written; what an attempt has left that was killed behind the end of the run is removed.
    ///
    /// # Errors
    /// [`SinkError::Incomplete`] when something that the manifest lists is missing or has another size, and
    /// [`SourceError::Changed`].
    pub fn check_finished(
        self,
        shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    ) -> Result<(), Error> {
        let Checked { output, listing, .. } = self.checked;
        let manifest = output.manifest()?;
        let wrong = output.not_as_listed(&listing, manifest.parts.iter().chain(&manifest.batches))?;
        if !wrong.is_empty() {
            return Err(SinkError::Incomplete { uri: output.uri().to_owned(), wrong }.into());
        }
        let strays = listing.beside(&manifest.parts);
        if let Some(first) = strays.first() {
            tracing::warn!(parts = strays.len(), first, "removing parts that the manifest lacks");
            output.remove(&strays)?;
        }
        if self.options.limit == Some(manifest.summary.rows) {
            return Ok(());
        }
        let done = Done::listed(&manifest.parts);
        let (checkpoints, crashes) = (Checkpoints::default(), Crashes::default());
        let mut new = Remaining::new(shards, done, checkpoints, crashes, Share::default());
        match new.next().transpose()? {
            None => {
                // listing the input may have taken long
                output.refuse_another(&manifest.run_id)?;
                Ok(output.tidy(&listing.passing().collect::<Vec<_>>())?)
            }
            Some(shard) => {
                let message = "it has come since the run was finished".to_owned();
                Err(SourceError::Changed { shard: shard.name, message }.into())
            }
        }
    }

    /// Score those of `shards` that are this worker's and have no part yet; finish the run if nothing
    /// else is missing.
    pub fn run(self, shards: ShardList) -> Result<RunReport, Error> {
        let Self { checked, options, mut buffers, warm_ups, meters, startup, run_id } = self;
        let Checked { plan, stores, bounds, output, mut engines, decode_threads, .. } = checked;
        let start = Instant::now();
        // an input that cannot be listed, or does not fit the pipeline file, leaves nothing behind
        let skips = shards.skips();
        let mut shards = shards;
        let first = shards.next().transpose()?;
        let read_options = ReadOptions::from(&plan.input);
        first.as_ref().map_or(Ok(()), |shard| check_fit(&stores, shard, &read_options))?;
        if options.overwrite {
            // what has come since the plan was checked goes, too
            output.overwrite(output.list()?)?;
        }
        let share = options.share;
        let record = run_record(&plan, &checked.model_sha256, options.limit);
        let mut note = AttemptNote::begun(share.shard_index, share.num_shards);
        note.runs_on = runs_on(&engines);
        let claim = output.claim(&record, &note, options.overwrite)?;
        run_id.get_or_init(|| claim.record.run_id.clone());
        let others = claim.notes.attempts.iter().find(|other| other.runs_on != claim.note.runs_on);
        if let Some(AttemptNote { attempt, runs_on, .. }) = others {
            let here = &claim.note.runs_on;
            tracing::warn!(
                attempt,
                ?runs_on,
                ?here,
                "an attempt at this run scores on something else: last bits may differ"
            );
        }
        if claim.record.sluice_version != env!("CARGO_PKG_VERSION") {
            let (begun_by, here) = (&claim.record.sluice_version, env!("CARGO_PKG_VERSION"));
            tracing::info!(begun_by, here, "resuming a run of another version of sluice, which scores alike");
        }
        let own = claim.listing.predictions.iter().filter(|(index, _)| share.takes(**index));
        let own = own.map(|(_, part)| part);
        let TakenOver { sound: reused, damaged } =
            output.take_over(own, &claim.notes, &claim.record.run_id)?;
        if damaged.iter().any(DamagedPart::is_there) && !output.is_finished(&claim.record.run_id)? {
            output.unmark_done(share.shard_index, share.num_shards)?;
        }
        let listing = output.without_damaged(claim.listing, &damaged, &claim.record.run_id)?;
        meters.advance.reuse(&reused);
        let reused_rows: u64 = reused.iter().filter_map(|part| part.rows).sum();
        tracing::info!(
            run_id = claim.record.run_id,
            attempt = claim.note.attempt,
            finished_shards = reused.len(),
            "run begun or gone on with"
        );
        let identity = RunIdentity {
            run_id: claim.record.run_id.clone(),
            shard_index: share.shard_index,
            attempt: claim.note.attempt,
            model_sha256: checked.model_sha256.clone(),
            plan_sha256: checked.plan_sha256,
            labels: plan.model.labels.as_ref().map(|labels| serde_json::json!(labels).to_string()),
        };
        // a limit may end a shard anywhere, also inside what a checkpoint holds
        let checkpoints = match options.limit {
            None => output.sound(claim.checkpoints, |shard| share.takes(shard))?,
            Some(_) => Checkpoints::default(),
        };
        let gone_on_from = checkpoints.clone();
        let done = Done::new(&listing, &reused);
        let shards = first.map(Ok).into_iter().chain(shards);
        let mut remaining = Remaining::new(shards, done, checkpoints.clone(), claim.crashes, share);
        let note = claim.note.clone();
        let mut sink = Box::new(ParquetSink::new(
            output.clone(),
            &plan,
            identity,
            checked.classes,
            checkpoints,
            note,
            Arc::clone(&meters.advance),
        ));
        warm_ups.into_iter().try_for_each(|outcome| sink.accept_warm_up(outcome))?;
        let element = engines[0].batch_shape().element;
        let stages = Stages {
            decoder: Decoder::new(&plan.preprocess, plan.input.max_image_bytes, element),
            decode_threads,
            engines: &mut engines,
            buffers: &mut buffers,
            sink,
            bounds,
            meters: &meters,
            stop: &options.stop,
            limit: options.limit.map(|limit| limit.saturating_sub(reused_rows)),
        };
        let written =
            stages.run(&mut remaining, |shard, turn| open_shard_in_turn(&stores, shard, &read_options, turn));
        if let Err(Error::Source(SourceError::Garbled { shards, .. })) = &written {
            let (attempt, run_id) = (claim.note.attempt, &claim.record.run_id);
            if let Err(error) = output.discard_checkpoints(shards, attempt, run_id, &gone_on_from) {
                tracing::error!(
                    %error,
                    "what may be wrong could not be removed from _checkpoints: remove it before the next attempt"
                );
            }
        }
        let written = match written {
            // who finishes a run tidies up behind whoever still wrote
            Err(Error::Sink(error)) if output.was_finished(&claim.record.run_id) => {
                tracing::info!(%error, "another attempt has finished the run meanwhile");
                OutputReport::default()
            }
            written => written?,
        };
        let wall = start.elapsed();
        let ending = Ending {
            output: &output,
            plan: &plan,
            record: &claim.record,
            model_sha256: checked.model_sha256,
            engines: engines.iter().map(|engine| engine.describe()).collect(),
            share,
            note: claim.note,
            written,
            reused,
            listed: remaining.into_listed(),
            skipped_by_listing: skips.counts(),
            wall,
            startup,
            stages: meters.shares(wall),
        };
        let report = ending.finish()?;
        let finish_ms = (start.elapsed() - wall).as_millis();
        let summary = &report.summary;
        tracing::info!(
            outcome = ?summary.outcome,
            rows = summary.rows,
            rejected = summary.rows - summary.rows_by_status.of(Status::Ok),
            reused = summary.reused_rows,
            shards = summary.shards,
            seconds = summary.seconds,
            images_per_second = summary.images_per_second,
            finish_ms,
            "all rows are stored, the attempt has ended"
        );
        Ok(report)
    }
}

/// What decides the last bits of a score beside the plan.
fn runs_on(engines: &[Box<dyn Engine>]) -> Vec<String> {
    let mut found: Vec<_> = engines.iter().map(|engine| engine.describe()).collect();
    #[cfg(target_arch = "x86_64")]
    let set = if is_x86_feature_detected!("avx512f") { "AVX-512" } else { "AVX2 or less" };
    #[cfg(not(target_arch = "x86_64"))]
    let set = "the base set";
    found.push(format!("{} with {set}", std::env::consts::ARCH));
    found
}

/// Listing would find what this run or an earlier one has written.
fn refuse_output_inside_input(stores: &Stores, plan: &Plan) -> Result<(), Error> {
    let uri = &plan.output.uri;
    let Ok(location) = stores.resolve(uri) else { return Ok(()) };
    match input_around(stores, &plan.inputs, &location)? {
        None => Ok(()),
        Some(input) => {
            let message =
                format!("lies inside the input {}, which would read it back", without_secrets(input));
            Err(SinkError::Uri { uri: uri.clone(), message }.into())
        }
    }
}

/// `name-20261123T101500Z-1a2b3c4d`: sorts by time, and two runs never share it.
fn new_run_id(name: &str, now: SystemTime) -> String {
    // the hasher's keys are random for each process and differ for each hasher
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{name}-{}-{random:08x}", DateTime::<Utc>::from(now).format("%Y%m%dT%H%M%SZ"))
}
