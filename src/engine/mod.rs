//! Engines: a full batch of pixels in, scores out.
//!
//! - An engine always gets exactly `batch_size` rows, padded with zeros, and returns the scores of the
//!   real rows only.
//! - An engine is owned by one thread; several engines share one queue of batches.
//! - A model is checked when its engine is created, before any data is read.

use crate::config::{EngineKind, Provider};
use crate::error::EngineError;
use crate::plan::Plan;

mod contract;
pub mod cuda;
mod deps;
mod gpu;
mod memory;
mod model_file;
pub mod onnx;
mod onnxruntime;
mod shape;
mod stage;
pub mod tensorrt;

pub use contract::{Engine, Inference};
pub use gpu::GpuEngine;
pub use memory::explain as explain_memory;
pub use model_file::hash_model;
#[cfg(feature = "beam")]
pub(crate) use model_file::{HashedFile, hash_file, hash_files, hash_of_files};
pub(crate) use onnxruntime::find_plugin as find_tensorrt_plugin;
pub use onnxruntime::{OnnxRuntime, load_on_gpus, probe_onnxruntime, probe_provider};
pub use stage::{run, warm_up};
use tensorrt::cache_folder;

/// The engines of a plan, all with the same batch shape: one on the CPU, or one for each lane of each GPU.
pub fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<Box<dyn Engine>>, EngineError> {
    fn boxed<E: Engine + 'static>(engines: Vec<E>) -> Vec<Box<dyn Engine>> {
        engines.into_iter().map(|engine| Box::new(engine) as Box<dyn Engine>).collect()
    }
    match (plan.engine.kind, plan.engine.provider) {
        (EngineKind::Tensorrt, _) => tensorrt::load(plan, model_sha256).map(boxed),
        (EngineKind::Onnxruntime, Provider::Cpu) => Ok(boxed(vec![OnnxRuntime::load(plan)?])),
        (EngineKind::Onnxruntime, _) => match load_on_gpus(plan, model_sha256) {
            Err(error) if plan.engine.allow_fallback && error.is_for_want_of_a_gpu() => {
                tracing::warn!(%error, "falling back to the CPU, as engine.allow_fallback permits");
                Ok(boxed(vec![OnnxRuntime::fallback(plan, error.to_string())?]))
            }
            loaded => loaded.map(boxed),
        },
    }
}
