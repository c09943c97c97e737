//! TensorRT as an engine: TensorRT-RTX, or datacenter TensorRT with the feature `datacenter`.
//!
//! - The model is a serialized engine (`.engine`, `.plan`), or an ONNX file. An engine built from an
//!   ONNX file is cached for the next run.
//! - Batches are always full; the engine's optimization profile must include their shape.

mod build;
mod cache;
mod library;
mod passport;
mod shapes;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use self::build::{Profile, Recipe, build};
pub(super) use self::cache::folder as cache_folder;
pub use self::library::{FLAVOUR, check_capability, probe_parser, probe_runtime, release};
pub use self::passport::{Passport, Target, Wanted};
pub use self::shapes::{ShapeArguments, workspace_bytes};
use super::cuda::{Device, LoadError, Loaded, TensorRtRunner, Version, devices};
use super::gpu::{GpuEngine, Software, check_model, failed};
use super::model_file::is_serialized;
use super::shape::{check_input, input_dims};
use super::{hash_model, onnx, warm_up};
use crate::error::{ConfigError, EngineError, Error};
use crate::plan::Plan;

/// The lanes of all the plan's devices.
pub(super) fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<GpuEngine<TensorRtRunner>>, EngineError> {
    let version = library::open_runtime().map_err(EngineError::RuntimeMissing)?;
    let mut lanes = Vec::new();
    for device in devices(&plan.engine.devices).map_err(EngineError::RuntimeMissing)? {
        check_capability(device.compute_capability).map_err(|message| failed(&device, message))?;
        let target = Target::new(&device, version);
        let load = |serialized: &[u8]| {
            let kernels = cache::Kernels::of(serialized, &target, &input_dims(plan));
            Ok((Loaded::new(&device, serialized, kernels.read().as_deref())?, kernels))
        };
        let (loaded, kernels) = if is_serialized(&plan.model.path) {
            let serialized = checked_file(plan, &target)?;
            load(&serialized)
        } else {
            let recipe = recipe(plan, model_sha256)?;
            let folder = cache_folder().map_err(|message| EngineError::Cache { message })?;
            cache::load_or_build(&folder, &recipe, &target, |recipe| build_on(&device, recipe), load)?
        }
        .map_err(|error| load_error(plan, &device, error))?;
        let loaded = Arc::new(loaded);
        let first = lanes.len();
        for _ in 0..plan.engine.lanes {
            lanes.push(lane(plan, &device, &loaded, version)?);
        }
        if kernels.read().is_none() {
            // An engine with dynamic shapes compiles its kernels for this shape on the first run. An
            // error here occurs again at the real warm-up, which reports it.
            let _ = warm_up(&mut lanes[first], 0);
        }
        kernels.write(loaded.kernels());
    }
    Ok(lanes)
}

fn load_error(plan: &Plan, device: &Device, error: LoadError) -> EngineError {
    let path = plan.model.path.clone();
    match error {
        LoadError::Refused(message) if is_serialized(&path) => {
            let rebuild = passport::rebuild(&path, "INPUT", &input_dims(plan), plan.engine.tf32);
            EngineError::Passport { path, message, rebuild }
        }
        LoadError::Refused(message) => EngineError::Load { path, message },
        LoadError::Unsuitable(message) => EngineError::Mismatch { path, message },
        LoadError::Device(message) => failed(device, message),
    }
}

fn lane(
    plan: &Plan,
    device: &Device,
    loaded: &Arc<Loaded>,
    version: Version,
) -> Result<GpuEngine<TensorRtRunner>, EngineError> {
    let (input, output) = (&loaded.input, &loaded.output);
    let classes = check_model(plan, (&input.name, &input.dims), (&output.name, &output.dims))?;
    let software = Software { name: format!("{FLAVOUR} {version}"), partly_on_cpu: false };
    GpuEngine::new(plan, device, input.half, classes, software, |stream| {
        TensorRtRunner::new(loaded, stream, input_dims(plan), classes)
    })
}

/// The engine file that the plan names, checked against its passport if it has one.
fn checked_file(plan: &Plan, target: &Target) -> Result<Vec<u8>, EngineError> {
    let path = &plan.model.path;
    let serialized =
        std::fs::read(path).map_err(|source| EngineError::ModelFile { path: path.clone(), source })?;
    match Passport::read(path)? {
        Some(passport) => {
            let wanted = Wanted { dims: input_dims(plan).to_vec(), tf32: plan.engine.tf32 };
            passport.check(path, &serialized, target, &wanted)?;
        }
        None => tracing::warn!(
            engine = %path.display(),
            "the engine has no passport: only TensorRT itself checks whether it fits"
        ),
    }
    Ok(serialized)
}

/// The recipe for the plan's ONNX file: an engine for exactly the shape of its batches.
fn recipe(plan: &Plan, model_sha256: &str) -> Result<Recipe, EngineError> {
    let path = &plan.model.path;
    let input =
        onnx::read_input(path).map_err(|message| EngineError::Load { path: path.clone(), message })?;
    check_input(&input.name, &input.dims, plan)
        .map_err(|message| EngineError::Mismatch { path: path.clone(), message })?;
    let dims = input_dims(plan).to_vec();
    Ok(Recipe {
        onnx: path.clone(),
        model_sha256: model_sha256.to_owned(),
        input: input.name,
        precision: input.precision,
        profile: Profile { min: dims.clone(), opt: dims.clone(), max: dims },
        tf32: plan.engine.tf32,
        workspace_bytes: None,
    })
}

/// Build an engine from the ONNX file `onnx` for GPU `ordinal`, and write it and its passport to `engine`.
pub fn build_file(
    onnx: &Path,
    engine: &Path,
    ordinal: usize,
    shapes: &ShapeArguments,
    tf32: bool,
    workspace_bytes: Option<usize>,
) -> Result<Passport, Error> {
    let load = |message| EngineError::Load { path: onnx.to_owned(), message };
    let unwritable = |error| EngineError::Cache { message: format!("{}: {error}", engine.display()) };
    let model_sha256 = hash_model(onnx)?;
    let input = onnx::read_input(onnx).map_err(load)?;
    let profile =
        shapes.profile(&input).map_err(|message| ConfigError::Argument { argument: "--shapes", message })?;
    cache::check_writable(engine).map_err(unwritable)?;
    let recipe = Recipe {
        onnx: onnx.to_owned(),
        model_sha256,
        input: input.name,
        precision: input.precision,
        profile,
        tf32,
        workspace_bytes,
    };
    let version = library::open_runtime().map_err(EngineError::RuntimeMissing)?;
    let device = Device::open(ordinal).map_err(EngineError::RuntimeMissing)?;
    check_capability(device.compute_capability).map_err(|message| failed(&device, message))?;
    let target = Target::new(&device, version);
    let start = Instant::now();
    let serialized = build_on(&device, &recipe).map_err(load)?;
    let passport = Passport::issue(&recipe, &target, &serialized);
    cache::write_whole(engine, &serialized, &passport).map_err(unwritable)?;
    tracing::info!(engine = %engine.display(), bytes = serialized.len(), took = cache::seconds(start.elapsed()), "engine built");
    Ok(passport)
}

fn build_on(device: &Device, recipe: &Recipe) -> Result<Vec<u8>, String> {
    device.make_current()?;
    build(recipe)
}

#[cfg(all(test, not(feature = "datacenter")))]
pub(super) mod tests {
    use super::*;
    use crate::engine::onnx::Precision;

    /// `fixtures/tiny.onnx` for batches of `rows`.
    pub fn tiny_recipe(rows: i64) -> Recipe {
        let dims = vec![rows, 8, 8, 3];
        Recipe {
            onnx: Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny.onnx"),
            model_sha256: "tiny".to_owned(),
            input: "pixels".to_owned(),
            precision: Precision::Fp32,
            profile: Profile { min: dims.clone(), opt: dims.clone(), max: dims },
            tf32: true,
            workspace_bytes: Some(64 << 20),
        }
    }

    /// An engine built by TensorRT-RTX, which needs no GPU for that.
    pub fn tiny_engine() -> Vec<u8> {
        build(&tiny_recipe(4)).expect("scripts/setup.sh --with tensorrt puts TensorRT-RTX in place")
    }

    #[test]
    #[ignore = "needs scripts/setup.sh --with tensorrt"]
    fn an_engine_is_built_from_onnx_without_a_gpu() {
        assert!(tiny_engine().len() > 1000);
        let full = Recipe { tf32: false, ..tiny_recipe(4) };
        assert!(build(&full).is_ok());
    }

    #[test]
    #[ignore = "needs scripts/setup.sh --with tensorrt"]
    fn a_failed_build_reports_tensorrts_own_message() {
        let narrow = vec![4, 8, 7, 3];
        let profile = Profile { min: narrow.clone(), opt: narrow.clone(), max: narrow };
        let message = build(&Recipe { profile, ..tiny_recipe(4) }).expect_err("the model has other sides");
        assert!(message.contains("imension"), "{message}");
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let message = build(&Recipe { onnx, ..tiny_recipe(4) }).expect_err("no model");
        assert!(message.contains("cannot read the model"), "{message}");
    }
}
