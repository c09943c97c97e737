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

pub use self::build::{Profile, Recipe, build};
pub(super) use self::cache::folder as cache_folder;
pub use self::library::{FLAVOUR, probe_parser, probe_runtime, release};
pub use self::passport::{Passport, Target};
pub use self::shapes::{ShapeArguments, workspace_bytes};
use super::cuda::{Device, Lane, Loaded, Normalise, TensorRtRunner, Version, devices};
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
    version: Version,
    shape: BatchShape,
    classes: usize,
}

impl TensorRt {
    /// The lanes of all the plan's devices.
    pub fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<Self>, EngineError> {
        let version = library::open_runtime().map_err(EngineError::RuntimeMissing)?;
        let mut lanes = Vec::new();
        for device in devices(&plan.engine.devices).map_err(EngineError::RuntimeMissing)? {
            let target = Target::new(&device, version);
            let serialized = serialized_engine(plan, model_sha256, &device, &target)?;
            let kept = cache::Kernels::of(&serialized, &target);
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
                lanes.push(Self::new(plan, &loaded, version)?);
            }
            kept.write(loaded.kernels());
        }
        Ok(lanes)
    }

    fn new(plan: &Plan, loaded: &Arc<Loaded>, version: Version) -> Result<Self, EngineError> {
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
        Ok(Self { lane, device, version, shape, classes })
    }
}

impl Engine for TensorRt {
    fn describe(&self) -> String {
        format!("{FLAVOUR} {} on {}", self.version, self.device)
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

fn serialized_engine(
    plan: &Plan,
    model_sha256: &str,
    device: &Device,
    target: &Target,
) -> Result<Vec<u8>, EngineError> {
    let path = &plan.model.path;
    if is_serialized(path) {
        let fail = |source| EngineError::ModelFile { path: path.clone(), source };
        let serialized = std::fs::read(path).map_err(fail)?;
        match Passport::beside(path)? {
            Some(passport) => passport.check(path, &serialized, target)?,
            None => tracing::warn!(engine = %path.display(), "the engine has no passport beside it"),
        }
        return Ok(serialized);
    }
    let dims = input_dims(plan).to_vec();
    let model =
        onnx::read_input(path).map_err(|message| EngineError::Load { path: path.clone(), message })?;
    let recipe = Recipe {
        onnx: path.clone(),
        model_sha256: model_sha256.to_owned(),
        precision: model.precision,
        profile: Profile { min: dims.clone(), opt: dims.clone(), max: dims },
        tf32: plan.engine.tf32,
        workspace_bytes: None,
    };
    let folder = cache_folder().map_err(|message| EngineError::Cache { message })?;
    cache::load_or_build(&folder, &recipe, target, |recipe| build_on(device, recipe))
}

/// Build an engine of the ONNX file `onnx` for GPU `ordinal`, and write it and its passport.
pub fn build_file(
    onnx: &Path,
    engine: &Path,
    ordinal: usize,
    shapes: &ShapeArguments,
    tf32: bool,
    workspace_bytes: Option<usize>,
) -> Result<Passport, EngineError> {
    let load = |message| EngineError::Load { path: onnx.to_owned(), message };
    let model_sha256 = hash_file(onnx)?;
    let input = onnx::read_input(onnx).map_err(load)?;
    let profile = shapes.profile(&input).map_err(load)?;
    let precision = input.precision;
    let recipe = Recipe { onnx: onnx.to_owned(), model_sha256, precision, profile, tf32, workspace_bytes };
    let version = library::open_runtime().map_err(EngineError::RuntimeMissing)?;
    let device = Device::open(ordinal).map_err(EngineError::RuntimeMissing)?;
    let target = Target::new(&device, version);
    let start = Instant::now();
    let serialized = build_on(&device, &recipe).map_err(load)?;
    let passport = Passport::issue(&recipe, &target, &serialized);
    cache::write_whole(engine, &serialized, &passport)
        .map_err(|error| EngineError::Cache { message: format!("{}: {error}", engine.display()) })?;
    tracing::info!(engine = %engine.display(), bytes = serialized.len(), took = seconds(start.elapsed()), "engine built");
    Ok(passport)
}

fn build_on(device: &Device, recipe: &Recipe) -> Result<Vec<u8>, String> {
    device.make_current()?;
    build(recipe)
}

/// Whether a model file is an engine, as opposed to ONNX.
fn is_serialized(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "engine" || extension == "plan")
}

/// For messages.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(all(test, not(feature = "datacenter")))]
pub(super) mod tests {
    use super::*;
    use crate::engine::cuda::test_alone;
    use crate::engine::onnx::Precision;

    /// `fixtures/tiny.onnx` for batches of `rows`.
    pub fn tiny_recipe(rows: i64) -> Recipe {
        let dims = vec![rows, 8, 8, 3];
        Recipe {
            onnx: Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny.onnx"),
            model_sha256: "tiny".to_owned(),
            precision: Precision::Fp32,
            profile: Profile { min: dims.clone(), opt: dims.clone(), max: dims },
            tf32: true,
            workspace_bytes: Some(64 << 20),
        }
    }

    /// Built by TensorRT-RTX itself, which needs no GPU for that.
    pub fn tiny_engine() -> Vec<u8> {
        build(&tiny_recipe(4)).expect("scripts/setup.sh --with tensorrt puts TensorRT-RTX in place")
    }

    #[test]
    fn an_engine_is_built_from_onnx_without_a_gpu() {
        let _alone = test_alone();
        assert!(tiny_engine().len() > 1000);
        let full = Recipe { tf32: false, ..tiny_recipe(4) };
        assert!(build(&full).is_ok());
    }

    #[test]
    fn what_cannot_be_built_is_told_in_tensorrts_words() {
        let _alone = test_alone();
        let narrow = vec![4, 8, 7, 3];
        let profile = Profile { min: narrow.clone(), opt: narrow.clone(), max: narrow };
        let message = build(&Recipe { profile, ..tiny_recipe(4) }).expect_err("the model has other sides");
        assert!(message.contains("imension"), "{message}");
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let message = build(&Recipe { onnx, ..tiny_recipe(4) }).expect_err("no model");
        assert!(message.contains("cannot read the model"), "{message}");
    }
}
