//! "Score these shards" as one library call: what the command line runs, and what a worker of a
//! distributed runner calls for each of its bundles.
//!
//! - [`Checked::new`] and [`Job::prepare`] do whatever can fail before the first byte of input is
//!   read: the output is vacant, the model loads and fits, every engine has run once.
//! - [`Job::run`] leaves a whole output: `_manifest.json`, and `_SUCCESS` after it if the run
//!   succeeded. A run that fails leaves neither, only the parts of shards that had ended.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::decode::Decoder;
use crate::engine::{self, Engine};
use crate::error::{Error, SinkError, SourceError};
use crate::flow::StopSignal;
use crate::items::{BatchBuffer, ShardRef};
use crate::pipeline::{Bounds, MemoryBound, Meters, Stages, warm_up};
use crate::plan::{Plan, threads_or_cores};
use crate::report::{Outcome, PartReport, Summary};
use crate::sink::{Output, ParquetSink, RunIdentity, SCHEMA_VERSION, Sink};
use crate::source::{ReadOptions, Stores, input_around, open_shard};

/// How a run is done, as opposed to what it computes.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Records to score at most.
    pub limit: Option<u64>,
    /// Ask this to drain the run.
    pub stop: StopSignal,
    /// Number of this worker among those that share an output: names its batches part.
    pub worker: u32,
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
    engines: Vec<Box<dyn Engine>>,
    decode_threads: usize,
}

/// A run that is ready to start.
pub struct Job {
    checked: Checked,
    options: JobOptions,
    buffers: Vec<Box<dyn BatchBuffer>>,
    sink: Box<dyn Sink>,
    identity: RunIdentity,
    meters: Meters,
    startup: Duration,
}

/// What a run leaves behind, as its manifest says it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    pub schema_version: &'static str,
    pub sluice_version: &'static str,
    pub name: String,
    pub run_id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    pub plan_sha256: String,
    pub model_sha256: String,
    /// Records the run was limited to, if it was.
    pub limit: Option<u64>,
    /// What scored the input: one for each engine.
    pub engines: Vec<String>,
    pub summary: Summary,
    /// Predictions parts in input order.
    pub parts: Vec<PartReport>,
    pub batches: Option<PartReport>,
}

/// The manifest: the report and the plan that led to it.
#[derive(Serialize)]
struct Manifest<'a> {
    #[serde(flatten)]
    report: &'a RunReport,
    plan: &'a Plan,
}

impl Checked {
    /// Load the model, see that it fits the pipeline, and that the output is vacant.
    pub fn new(plan: Plan, runtime: &Handle) -> Result<Self, Error> {
        let stores = Stores::new(runtime.clone());
        let output = resolve_output(&stores, &plan, runtime)?;
        output.check_vacant()?;
        refuse_output_inside_input(&stores, &plan)?;
        let model_sha256 = engine::hash_model(&plan.model.path)?;
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
            engines,
            decode_threads,
        })
    }
}

impl Job {
    /// Check everything that can be checked before input is read, and warm the engines up.
    pub fn prepare(plan: Plan, runtime: &Handle, options: JobOptions) -> Result<Self, Error> {
        let start = Instant::now();
        let mut checked = Checked::new(plan, runtime)?;
        let plan = &checked.plan;
        let identity = RunIdentity {
            run_id: new_run_id(&plan.name, SystemTime::now()),
            worker: format!("{:06}", options.worker),
            model_sha256: checked.model_sha256.clone(),
            plan_sha256: checked.plan_sha256.clone(),
        };
        let mut sink =
            Box::new(ParquetSink::new(checked.output.clone(), plan, identity.clone(), checked.classes)?);
        if let Err(error) = warm_up(&mut checked.engines, sink.as_mut()) {
            return Err(match error {
                Error::Engine(error) => {
                    // what was too large must be gone before something smaller is tried
                    checked.engines.clear();
                    engine::explain_memory(&checked.plan, &checked.model_sha256, error).into()
                }
                other => other,
            });
        }
        let meters =
            Meters::new(checked.plan.input.look_ahead + 1, checked.decode_threads, checked.engines.len());
        let buffers = checked.bounds.batch_buffers(checked.engines.len());
        let buffers = checked.engines[0].buffers(buffers)?;
        Ok(Self { checked, options, buffers, sink, identity, meters, startup: start.elapsed() })
    }

    /// The pipeline this job runs, with its queues and the memory they take.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    pub fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    /// Live counters, for a progress display.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Score `shards`, write the manifest and, if all went well, `_SUCCESS`.
    pub fn run(
        self,
        shards: impl Iterator<Item = Result<ShardRef, SourceError>> + Send,
    ) -> Result<RunReport, Error> {
        let Self { checked, options, mut buffers, sink, identity, meters, startup } = self;
        let Checked { plan, stores, bounds, output, mut engines, decode_threads, .. } = checked;
        let read_options = ReadOptions::from(&plan.input);
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
            limit: options.limit,
        };
        let (started_at, start) = (SystemTime::now(), Instant::now());
        let written = stages.run(shards, |shard| open_shard(&stores, shard, &read_options))?;
        let wall = start.elapsed();
        let summary = Summary::new(&written, &plan.output, meters.shares(wall), wall, startup);
        let report = RunReport {
            schema_version: SCHEMA_VERSION,
            sluice_version: env!("CARGO_PKG_VERSION"),
            name: plan.name.clone(),
            run_id: identity.run_id,
            started_at: rfc3339(started_at),
            finished_at: rfc3339(SystemTime::now()),
            plan_sha256: identity.plan_sha256,
            model_sha256: identity.model_sha256,
            limit: options.limit,
            engines: engines.iter().map(|engine| engine.describe()).collect(),
            summary,
            parts: written.parts,
            batches: written.batches,
        };
        output.write_manifest(&Manifest { report: &report, plan: &plan })?;
        if report.summary.outcome == Outcome::Succeeded {
            output.write_success()?;
        }
        Ok(report)
    }
}

fn resolve_output(stores: &Stores, plan: &Plan, runtime: &Handle) -> Result<Output, SinkError> {
    let uri = &plan.output.uri;
    let location = stores
        .resolve(uri)
        .map_err(|error| SinkError::Uri { uri: uri.clone(), message: error.to_string() })?;
    if let Some(path) = location.local_path().filter(|path| path.exists() && !path.is_dir()) {
        let message = format!("{} is a file, not a folder", path.display());
        return Err(SinkError::Uri { uri: uri.clone(), message });
    }
    Ok(Output::new(location.store, location.path, location.uri, runtime.clone()))
}

/// Listing would find what this run or an earlier one has written.
fn refuse_output_inside_input(stores: &Stores, plan: &Plan) -> Result<(), Error> {
    let uri = &plan.output.uri;
    let Ok(location) = stores.resolve(uri) else { return Ok(()) };
    match input_around(stores, &plan.inputs, &location)? {
        None => Ok(()),
        Some(input) => {
            let message = format!("lies inside the input {input}, which would read it back");
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

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}
