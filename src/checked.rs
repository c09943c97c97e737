//! A plan after every check that can be made before the first byte of input is read.
//!
//! - [`Checked::new`]: the model loads and fits the pipeline, and the output is vacant or holds this run.
//! - [`Checked::prepare`]: every engine is warm, and the batch buffers are allocated.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::commit::{Output, OutputState, RunRecord, SCHEMA_VERSION, Share, admit};
use crate::engine::{self, Engine};
use crate::error::{ConfigError, Error, SinkError};
use crate::flow::StopSignal;
use crate::items::{BatchBuffer, Outcome};
use crate::limits::check_memory;
use crate::pipeline::{Bounds, MemoryBound, warm_up};
use crate::plan::{Plan, threads_or_cores};
use crate::report::rfc3339;
use crate::shown::without_secrets;
use crate::source::input_around;
use crate::store::Stores;

/// Options of a run that are not in its plan.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Most records to score.
    pub limit: Option<u64>,
    /// The signal that drains the run.
    pub stop: StopSignal,
    /// The shards to score, where several workers share the output.
    pub share: Share,
    /// Whether to remove the run that the output holds, and start over.
    pub overwrite: bool,
}

impl JobOptions {
    /// Check that these options can be combined.
    ///
    /// # Errors
    /// [`ConfigError::Argument`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |argument, message: &str| Err(ConfigError::Argument { argument, message: message.to_owned() });
        self.share.check()?;
        if self.share.num_shards > 1 && self.limit.is_some() {
            return refuse("--limit", "is for a single worker: it counts records in input order");
        }
        if self.share.num_shards > 1 && self.overwrite {
            let message = "is for a single worker; with several, remove the output before they start";
            return refuse("--overwrite", message);
        }
        Ok(())
    }
}

/// A checked plan with its stores, its output and its loaded engines.
pub struct Checked {
    /// The plan.
    pub plan: Plan,
    /// The stores of its inputs and its output.
    pub stores: Stores,
    /// SHA-256 of the model, in hexadecimal.
    pub model_sha256: String,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// Scores of one row.
    pub classes: usize,
    /// Limits on what is in flight.
    pub bounds: Bounds,
    /// The most memory that scoring takes.
    pub memory: MemoryBound,
    pub(crate) output: Output,
    /// Whether the output holds this run, finished.
    pub(crate) is_finished: bool,
    pub(crate) engines: Vec<Box<dyn Engine>>,
    pub(crate) decode_threads: usize,
}

/// A checked plan with warm engines and their batch buffers.
pub struct Prepared {
    pub(crate) checked: Checked,
    pub(crate) buffers: Vec<Box<dyn BatchBuffer>>,
    /// The outcome of each engine's warm-up.
    pub(crate) warm_ups: Vec<Outcome>,
    /// Time from the start of loading to the last warm-up.
    pub(crate) startup: Duration,
}

impl Checked {
    /// Load the model, and check that it fits the pipeline and that the output is vacant or holds this run.
    pub fn new(plan: Plan, runtime: &Handle, options: &JobOptions) -> Result<Self, Error> {
        options.check()?;
        let stores = Stores::with(runtime.clone(), plan.storage.clone());
        let output = Output::open(&stores, &plan.output.uri)?;
        refuse_output_inside_input(&stores, &plan)?;
        let model_sha256 = engine::hash_model(&plan.model.path)?;
        let is_finished = !options.overwrite && {
            let wanted = run_record(&plan, &model_sha256, options.limit);
            matches!(admit(&output, &wanted)?, OutputState::Succeeded(..))
        };
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
            is_finished,
            engines,
            decode_threads,
        })
    }

    /// Warm every engine up, and allocate the batch buffers. `started` is when loading began.
    ///
    /// # Errors
    /// [`crate::error::EngineError::WarmUp`] and [`crate::error::EngineError::Memory`].
    pub fn prepare(mut self, started: Instant) -> Result<Prepared, Error> {
        let warm_ups = match warm_up(&mut self.engines) {
            Ok(warm_ups) => warm_ups,
            Err(error) => {
                // free the engines before a smaller batch is tried
                self.engines.clear();
                return Err(engine::explain_memory(&self.plan, &self.model_sha256, error).into());
            }
        };
        check_memory(&self.plan)?;
        let count = self.bounds.batch_buffers(self.engines.len());
        let buffers = self.engines[0].buffers(count)?;
        Ok(Prepared { checked: self, buffers, warm_ups, startup: started.elapsed() })
    }

    /// What decides the last bits of scores besides the plan: the engines and the CPU.
    pub(crate) fn runs_on(&self) -> Vec<String> {
        let mut found: Vec<_> = self.engines.iter().map(|engine| engine.describe()).collect();
        #[cfg(target_arch = "x86_64")]
        let set = if is_x86_feature_detected!("avx512f") { "AVX-512" } else { "AVX2 or less" };
        #[cfg(not(target_arch = "x86_64"))]
        let set = "the base set";
        found.push(format!("{} with {set}", std::env::consts::ARCH));
        found
    }
}

/// The record of a run that begins now.
pub(crate) fn run_record(plan: &Plan, model_sha256: &str, limit: Option<u64>) -> RunRecord {
    let now = SystemTime::now();
    RunRecord {
        schema_version: SCHEMA_VERSION.to_owned(),
        sluice_version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: new_run_id(&plan.name, now),
        started_at: rfc3339(now),
        plan_sha256: plan.hash(model_sha256),
        limit,
        determinants: plan.determinants(model_sha256),
        removing: None,
    }
}

/// Refuse an output inside an input: listing that input would find the parts of this run or an earlier one.
pub(crate) fn refuse_output_inside_input(stores: &Stores, plan: &Plan) -> Result<(), Error> {
    let uri = &plan.output.uri;
    let Ok(location) = stores.resolve(uri) else { return Ok(()) };
    match input_around(stores, &plan.inputs, &location)? {
        None => Ok(()),
        Some(input) => {
            let message = format!("is inside the input {}, which would read it back", without_secrets(input));
            Err(SinkError::Uri { uri: uri.clone(), message }.into())
        }
    }
}

/// `name-20261123T101500Z-1a2b3c4d`: ids sort by time, and their random ends keep runs of the same second apart.
fn new_run_id(name: &str, now: SystemTime) -> String {
    // the hasher's keys are random for each process and differ for each hasher
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{name}-{}-{random:08x}", DateTime::<Utc>::from(now).format("%Y%m%dT%H%M%SZ"))
}
