//! Builds serialized engines from ONNX files.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use trtx::trtx_sys::Dims64;
use trtx::{Builder, OnnxParser, OptProfileSelector};

use super::library;
use crate::engine::cuda::{logger, tensorrt};
use crate::engine::onnx::Precision;
use crate::flow::lock;

/// An optimization profile: the input shapes that an engine is built for. It is fastest at `opt`, and
/// rejects shapes outside `min` and `max`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Profile {
    /// The smallest dimensions that the engine takes.
    pub min: Vec<i64>,
    /// The dimensions that it is tuned for.
    pub opt: Vec<i64>,
    /// The largest dimensions that it takes.
    pub max: Vec<i64>,
}

/// The model and the options that an engine is built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The ONNX file.
    pub onnx: PathBuf,
    /// Of the ONNX file.
    pub model_sha256: String,
    /// Name of the model's input.
    pub input: String,
    /// Precision of the model's weights, in which the engine computes.
    pub precision: Precision,
    /// Dimensions of the input.
    pub profile: Profile,
    /// Whether tensor cores may round float32 operands to TF32: ten bits of mantissa.
    pub tf32: bool,
    /// Workspace memory that tactics may use, in bytes; `None` is TensorRT's own limit.
    pub workspace_bytes: Option<usize>,
}

/// Build an engine for the current device; TensorRT-RTX needs no device.
pub fn build(recipe: &Recipe) -> Result<Vec<u8>, String> {
    library::open_runtime()?;
    library::open_parser()?;
    let fail = |what: &'static str| move |error: trtx::Error| tensorrt(what, &error);
    let logger = logger()?;
    let mut builder = Builder::new(logger).map_err(fail("cannot start TensorRT's builder"))?;
    let network = builder.create_network(0).map_err(fail("cannot make a network"))?;
    let mut config = builder.create_config().map_err(fail("cannot configure the builder"))?;
    if let Some(bytes) = recipe.workspace_bytes {
        config.set_memory_pool_limit(trtx::MemoryPoolType::kWORKSPACE, bytes);
    }
    if !recipe.tf32 {
        config.clear_flag(trtx::BuilderFlag::kTF32);
    }
    config.set_progress_monitor(Box::new(Progress::new())).map_err(fail("cannot watch the builder"))?;
    let mut shapes = builder.creata_optimization_profile().map_err(fail("cannot make a profile"))?;
    let mut parser = OnnxParser::new(network, logger).map_err(fail("cannot start the ONNX parser"))?;
    let path = recipe.onnx.to_str().ok_or("its path is not UTF-8")?;
    parser.parse_from_file(path, 1).map_err(fail("cannot read the model"))?;
    let network = parser.network_mut();
    let input = network.input(0).map_err(fail("the model has no input"))?;
    let name = input.name(network).map_err(fail("cannot read the model's input"))?;
    for (select, dims) in [
        (OptProfileSelector::kMIN, &recipe.profile.min),
        (OptProfileSelector::kOPT, &recipe.profile.opt),
        (OptProfileSelector::kMAX, &recipe.profile.max),
    ] {
        shapes
            .set_dimensions(&name, select, &Dims64::from_slice(dims))
            .map_err(fail("the model does not take these shapes"))?;
    }
    config.add_optimization_profile(&mut shapes).map_err(fail("the model does not take these shapes"))?;
    let plan =
        builder.build_serialized_network(network, &mut config).map_err(fail("cannot build the engine"))?;
    Ok(plan.to_vec())
}

/// Logs the progress of the builder.
struct Progress(Mutex<Phases>);

/// The time of the last log line, and the number of steps of each phase that has started.
struct Phases {
    logged_at: Instant,
    steps: HashMap<String, i32>,
}

/// Time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

impl Progress {
    fn new() -> Self {
        Self(Mutex::new(Phases { logged_at: Instant::now(), steps: HashMap::new() }))
    }
}

impl trtx::interfaces::MonitorProgress for Progress {
    fn phase_start(&self, phase_name: &str, _: Option<&str>, num_steps: i32) {
        tracing::debug!(phase = phase_name, steps = num_steps, "building the engine");
        let mut phases = lock(&self.0);
        phases.steps.insert(phase_name.to_owned(), num_steps);
    }

    fn step_complete(&self, phase_name: &str, step: i32) -> ControlFlow<()> {
        let mut phases = lock(&self.0);
        if phases.logged_at.elapsed() >= LOG_INTERVAL {
            phases.logged_at = Instant::now();
            let steps = phases.steps.get(phase_name).copied().unwrap_or_default();
            tracing::info!(phase = phase_name, step = step + 1, steps, "building the engine");
        }
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, _: &str) {}
}
