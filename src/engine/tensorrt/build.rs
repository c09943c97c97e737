//! ONNX to a serialized engine.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use trtx::trtx_sys::Dims64;
use trtx::{Builder, OnnxParser, OptProfileSelector};

use super::library;
use crate::engine::cuda::{logger, tensorrt};
use crate::engine::onnx::Precision;

/// Shapes of the input that an engine is made for: it is fastest at `opt`, and refuses what lies
/// outside `min` and `max`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Profile {
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

/// What an engine is built from, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub onnx: PathBuf,
    /// Of the ONNX file.
    pub model_sha256: String,
    /// Name of the model's input.
    pub input: String,
    /// Of the model's weights; the engine computes with the same.
    pub precision: Precision,
    pub profile: Profile,
    /// Whether tensor cores may round float32 operands to TF32: ten bits of mantissa.
    pub tf32: bool,
    /// Memory that tactics may use, bytes; TensorRT's own limit if left out.
    pub workspace_bytes: Option<usize>,
}

/// Build an engine for the current device; TensorRT-RTX needs none.
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

/// A line now and then while the builder works.
struct Progress(Mutex<Told>);

/// When the last line was, and the steps of the phases that have begun.
struct Told {
    last: Instant,
    steps: HashMap<String, i32>,
}

/// Between two lines.
const QUIET: Duration = Duration::from_secs(5);

impl Progress {
    fn new() -> Self {
        Self(Mutex::new(Told { last: Instant::now(), steps: HashMap::new() }))
    }
}

impl trtx::interfaces::MonitorProgress for Progress {
    fn phase_start(&self, phase_name: &str, _: Option<&str>, num_steps: i32) {
        tracing::debug!(phase = phase_name, steps = num_steps, "building the engine");
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.steps.insert(phase_name.to_owned(), num_steps);
    }

    fn step_complete(&self, phase_name: &str, step: i32) -> ControlFlow<()> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.elapsed() >= QUIET {
            told.last = Instant::now();
            let steps = told.steps.get(phase_name).copied().unwrap_or_default();
            tracing::info!(phase = phase_name, step = step + 1, steps, "building the engine");
        }
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, _: &str) {}
}
