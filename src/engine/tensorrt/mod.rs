//! TensorRT as an engine: TensorRT-RTX, or datacenter TensorRT with the feature `datacenter`.
//!
//! - The model is a serialized engine (`.engine`, `.plan`), or an ONNX file that an engine is built
//!   from and kept for the next run.
//! - Pixels arrive as RGB bytes in pinned memory; what the pipeline asks of them beyond the resize
//!   is done on the GPU.
//! - Each device has several lanes, each an engine of its own to the rest of the pipeline: while
//!   one copies, another computes.
//! - The batch is always run full; the engine's profile must hold it.

mod build;
mod cache;
mod library;
mod passport;
mod shapes;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::build::{BuildOptions, Profile, build};
pub(super) use self::cache::folder as cache_folder;
pub use self::library::{FLAVOUR, VERSION};
pub use self::library::{probe_parser, probe_runtime};
pub use self::passport::Passport;
pub use self::shapes::{ShapeArguments, workspace_bytes};
use super::cuda::{Device, Lane, Loaded, Normalise, TensorRtRunner, devices};
use super::shape::{check_input, check_labels, input_dims, row_length};
use super::{Engine, Inference, hash_file, onnx, pinned_buffers};
use crate::error::EngineError;
use crate::items::{BatchBuffer, BatchShape, PixelElement, PixelsRef};
use crate::plan::Plan;

/// One lane of a device.
#[derive(Debug)]
pub struct TensorRt {
    lane: Lane<TensorRtRunner>,
    device: Device,
    shape: BatchShape,
    classes: usize,
}

impl TensorRt {
    /// The lanes of all the plan's devices.
    pub fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<Self>, EngineError> {
        library::open_runtime().map_err(EngineError::RuntimeMissing)?;
        let mut lanes = Vec::new();
        for device in devices(&plan.engine.devices).map_err(EngineError::RuntimeMissing)? {
            let serialized = serialized_engine(plan, model_sha256, &device)?;
            let kept = cache::Kernels::of(&serialized, &device);
            let loaded = Loaded::new(&device, &serialized, kept.read().as_deref()).map_err(|message| {
                let path = plan.model.path.clone();
                if is_serialized(&path) {
                    EngineError::Passport { path, message }
                } else {
                    EngineError::Device { device: device.to_string(), message }
                }
            })?;
            let loaded = Arc::new(loaded);
            for _ in 0..plan.engine.lanes {
                lanes.push(Self::new(plan, &loaded)?);
            }
            kept.write(loaded.kernels());
        }
        Ok(lanes)
    }

    fn new(plan: &Plan, loaded: &Arc<Loaded>) -> Result<Self, EngineError> {
        let path = &plan.model.path;
        let mismatch = |message| EngineError::Mismatch { path: path.clone(), message };
        let (input, output) = (&loaded.input, &loaded.output);
        check_input(&input.name, &input.dims, plan).map_err(mismatch)?;
        let classes = row_length(&output.name, &output.dims)
            .map_err(mismatch)?
            .ok_or_else(|| mismatch(format!("output {} leaves the length of a row open", output.name)))?;
        check_labels(classes, plan).map_err(mismatch)?;
        let device = loaded.device.clone();
        let batch_size = plan.engine.batch_size;
        let lane = Normalise::new(&device, &plan.preprocess, batch_size, input.half)
            .and_then(|kernel| {
                Lane::new(&device, kernel, |stream| {
                    TensorRtRunner::new(loaded, stream, input_dims(plan), batch_size * classes)
                })
            })
            .map_err(|message| EngineError::Device { device: device.to_string(), message })?;
        let shape = BatchShape {
            batch_size,
            row_elements: plan.preprocess.row_elements(),
            element: PixelElement::Rgb8,
        };
        Ok(Self { lane, device, shape, classes })
    }
}

impl Engine for TensorRt {
    fn describe(&self) -> String {
        format!("{FLAVOUR} {VERSION} on {}", self.device)
    }

    fn device(&self) -> Option<usize> {
        Some(self.device.ordinal)
    }

    fn batch_shape(&self) -> BatchShape {
        self.shape
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn computes_on_cpu(&self) -> bool {
        false
    }

    fn buffers(&mut self, count: usize) -> Result<Vec<Box<dyn BatchBuffer>>, EngineError> {
        pinned_buffers(&self.device, self.shape, count)
    }

    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String> {
        let (mut scores, times) =
            self.lane.run(pixels.rgb()?).map_err(|error| format!("{}: {error}", self.device))?;
        scores.truncate(rows * self.classes);
        Ok(Inference { scores, h2d: times.h2d, compute: times.compute, d2h: times.d2h })
    }

    fn infer_floats(&mut self, tensor: &[f32]) -> Result<Vec<f32>, String> {
        self.lane.run_floats(tensor).map_err(|error| format!("{}: {error}", self.device))
    }
}

fn serialized_engine(plan: &Plan, model_sha256: &str, device: &Device) -> Result<Vec<u8>, EngineError> {
    let path = &plan.model.path;
    if is_serialized(path) {
        let fail = |source| EngineError::ModelFile { path: path.clone(), source };
        let serialized = std::fs::read(path).map_err(fail)?;
        match Passport::beside(path)? {
            Some(passport) => passport.check(path, &serialized, device)?,
            None => tracing::warn!(engine = %path.display(), "the engine has no passport beside it"),
        }
        return Ok(serialized);
    }
    let dims = input_dims(plan).to_vec();
    let profile = Profile { min: dims.clone(), opt: dims.clone(), max: dims };
    cache::load_or_build(path, model_sha256, device, &profile)
}

/// Build an engine of the ONNX file `onnx` for GPU `ordinal`, and write it and its passport.
pub fn build_file(
    onnx: &Path,
    engine: &Path,
    ordinal: usize,
    shapes: &ShapeArguments,
    options: &BuildOptions,
) -> Result<Passport, EngineError> {
    let load = |message| EngineError::Load { path: onnx.to_owned(), message };
    let model_sha256 = hash_file(onnx)?;
    let input = onnx::read_input(onnx).map_err(load)?;
    let profile = shapes.profile(&input).map_err(load)?;
    library::open_runtime().map_err(EngineError::RuntimeMissing)?;
    let device = Device::open(ordinal).map_err(EngineError::RuntimeMissing)?;
    let start = Instant::now();
    let serialized = build(&device, onnx, &profile, options).map_err(load)?;
    let passport = Passport::issue(&model_sha256, &serialized, &device, &profile);
    cache::write_whole(engine, &serialized, &passport)
        .map_err(|error| EngineError::Cache { message: format!("{}: {error}", engine.display()) })?;
    tracing::info!(engine = %engine.display(), bytes = serialized.len(), took = seconds(start.elapsed()), "engine built");
    Ok(passport)
}

/// Whether a model file is an engine, as opposed to ONNX.
fn is_serialized(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "engine" || extension == "plan")
}

/// For messages.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
