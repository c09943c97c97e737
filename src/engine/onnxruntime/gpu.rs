//! ONNX Runtime on GPUs: the CUDA provider, TensorRT-RTX as a plugin, and classic TensorRT.
//!
//! - A provider that is not available, or that would leave parts of the model on the CPU, is an error
//!   unless `engine.allow_fallback` is set.

use std::path::Path;
use std::time::Instant;

use ort::environment::Environment;
use ort::ep::{CUDA, ExecutionProvider, TensorRT};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::TensorElementType;

use super::super::cuda::{Device, OnnxRuntimeRunner, TensorSpec, devices};
use super::super::gpu::{GpuEngine, Software, check_model};
use super::super::shape::input_dims;
use super::super::{cache_folder, onnx};
use super::{cpu_options, input_and_output, library, tensor};
use crate::config::{EngineSection, Provider};
use crate::error::{EngineError, is_out_of_memory};
use crate::plan::Plan;

/// The lanes of all the plan's devices. Providers cache their engines and kernels under the hash of the model.
pub fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<GpuEngine<OnnxRuntimeRunner>>, EngineError> {
    let path = &plan.model.path;
    std::fs::File::open(path).map_err(|source| EngineError::ModelFile { path: path.clone(), source })?;
    let environment = library::open()?;
    let mut engines = Vec::new();
    for device in devices(&plan.engine.devices).map_err(EngineError::RuntimeMissing)? {
        for _ in 0..plan.engine.lanes {
            engines.push(lane(&environment, &device, plan, model_sha256)?);
        }
    }
    Ok(engines)
}

fn lane(
    environment: &Environment,
    device: &Device,
    plan: &Plan,
    model_sha256: &str,
) -> Result<GpuEngine<OnnxRuntimeRunner>, EngineError> {
    let (path, provider) = (&plan.model.path, plan.engine.provider);
    let mismatch = |message| EngineError::Mismatch { path: path.clone(), message };

    let (session, memory, on_cpu) = open_session(environment, device, plan, model_sha256)
        .map_err(|message| EngineError::Provider { provider: provider.as_str(), message })?;
    let (input, output) = input_and_output(&session).map_err(mismatch)?;
    let (input_type, input_shape) = tensor(input).map_err(mismatch)?;
    let (output_type, output_shape) = tensor(output).map_err(mismatch)?;
    let classes = check_model(plan, (input.name(), input_shape), (output.name(), output_shape))?;
    let spec = |name: &str, ty: TensorElementType, dims: Vec<i64>| {
        let half = match ty {
            TensorElementType::Float32 => false,
            TensorElementType::Float16 => true,
            other => {
                let message = format!("{name} has element type {other}, expected float32 or float16");
                return Err(mismatch(message));
            }
        };
        Ok(TensorSpec { name: name.to_owned(), dims, half })
    };
    let input = spec(input.name(), input_type, input_dims(plan).to_vec())?;
    let mut output_dims = output_shape.to_vec();
    output_dims[0] = plan.engine.batch_size as i64;
    let output = spec(output.name(), output_type, output_dims)?;
    let partly_on_cpu = on_cpu.is_some();
    let on_cpu =
        on_cpu.map_or_else(String::new, |reason| format!(" and parts of the model on the CPU ({reason})"));
    let name = format!("ONNX Runtime with {}{on_cpu}", provider.as_str());
    GpuEngine::new(plan, device, input.half, classes, Software { name, partly_on_cpu }, |_| {
        OnnxRuntimeRunner::new(session, memory, &input, &output)
    })
}

/// A model of a few kB to probe providers with; its input is N×8×8×3.
const TINY_MODEL: &[u8] = include_bytes!("../../../fixtures/tiny.onnx");

/// Check that a session can be opened with `provider`, on the first GPU or on the CPU.
///
/// # Errors
/// The reason why it cannot.
pub fn probe_provider(provider: Provider) -> Result<(), String> {
    let environment = library::open().map_err(|error| error.to_string())?;
    let text = |error: ort::Error| error.to_string();
    let builder = Session::builder(&environment).map_err(text)?;
    let mut builder = match provider {
        Provider::Cpu => builder,
        _ => {
            let input = onnx::input_of(TINY_MODEL)?;
            let shapes = shapes_text(&input.name, &[1, 8, 8, 3]);
            let builder = builder.with_disable_cpu_fallback().map_err(|error| error.to_string())?;
            let engine = EngineSection { provider, ..EngineSection::default() };
            let cache = cache_folder()?.join("onnxruntime").join("probe");
            on_gpu(&environment, builder, &engine, 0, shapes.as_deref(), &cache)?.0
        }
    };
    builder.commit_from_memory(TINY_MODEL).map(drop).map_err(text)
}

/// A shape in the format of the providers' profile options, such as `input:32x8x8x3`. `None` if the input's name
/// contains a colon, which the providers cannot parse.
fn shapes_text(input: &str, dims: &[i64]) -> Option<String> {
    let dims: Vec<_> = dims.iter().map(ToString::to_string).collect();
    (!input.contains(':')).then(|| format!("{input}:{}", dims.join("x")))
}

/// A session on `device`, and the memory that its tensors are bound to. If parts of the model run on the CPU, which
/// `engine.allow_fallback` must permit, also the reason.
fn open_session(
    environment: &Environment,
    device: &Device,
    plan: &Plan,
    model_sha256: &str,
) -> Result<(Session, MemoryInfo<'static>, Option<String>), String> {
    let open = |entirely_on_gpu: bool| {
        let text = |error: ort::Error| error.to_string();
        let mut builder = if entirely_on_gpu {
            let builder = Session::builder(environment).map_err(text)?;
            builder.with_disable_cpu_fallback().map_err(|error| error.to_string())?
        } else {
            cpu_options(environment, plan).map_err(text)?
        };
        let input = onnx::read_input(&plan.model.path)?;
        let shapes = shapes_text(&input.name, &input_dims(plan));
        if shapes.is_none() {
            let batch = input.batch.ok_or_else(|| {
                format!(
                    "cannot pass the shape of input {} to the provider: the name contains a colon",
                    input.name
                )
            })?;
            builder = builder
                .with_dimension_override(batch, plan.engine.batch_size as i64)
                .map_err(|error| error.to_string())?;
        }
        let cache = cache_folder()?.join("onnxruntime").join(model_sha256);
        let (mut builder, memory) =
            on_gpu(environment, builder, &plan.engine, device.ordinal, shapes.as_deref(), &cache)?;
        let session = builder.commit_from_file(&plan.model.path).map_err(text)?;
        Ok::<_, String>((session, memory))
    };
    let start = Instant::now();
    tracing::info!(
        provider = plan.engine.provider.as_str(),
        gpu = device.ordinal,
        "opening a session; the provider may build or select kernels first"
    );
    let opened = match open(true) {
        Ok((session, memory)) => (session, memory, None),
        Err(reason) if plan.engine.allow_fallback && !is_out_of_memory(&reason) => {
            tracing::warn!(reason, "parts of the model run on the CPU, as engine.allow_fallback permits");
            let (session, memory) = open(false)?;
            (session, memory, Some(reason))
        }
        Err(reason) => return Err(reason),
    };
    tracing::info!(took = format!("{:.1} s", start.elapsed().as_secs_f64()), "session open");
    Ok(opened)
}

/// Register the provider of `engine` for GPU `ordinal`. `shapes` is its only optimization profile, which a model with
/// fixed shapes does not need. The provider stores the engines and kernels that it builds in the folder `cache`. Each
/// model needs its own folder, because providers distinguish models by name only.
fn on_gpu(
    environment: &Environment,
    builder: SessionBuilder,
    engine: &EngineSection,
    ordinal: usize,
    shapes: Option<&str>,
    cache: &Path,
) -> Result<(SessionBuilder, MemoryInfo<'static>), String> {
    let device_id = i32::try_from(ordinal).map_err(|error| error.to_string())?;
    let cuda_memory =
        || MemoryInfo::new(AllocationDevice::CUDA, device_id, AllocatorType::Device, MemoryType::Default);
    let cuda_memory = || cuda_memory().map_err(|error| error.to_string());
    let cache = || {
        std::fs::create_dir_all(cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        Ok::<_, String>(cache.display().to_string())
    };
    match engine.provider {
        Provider::Cpu => Err("the CPU provider does not run on a GPU".to_owned()),
        Provider::Cuda => {
            let provider = CUDA::default().with_device_id(device_id).with_tf32(engine.tf32);
            Ok((register(builder, provider)?, cuda_memory()?))
        }
        Provider::Tensorrt => {
            let mut provider = TensorRT::default()
                .with_device_id(device_id)
                .with_engine_cache(true)
                .with_engine_cache_path(cache()?)
                .with_timing_cache(true);
            if let Some(shapes) = shapes {
                provider = provider
                    .with_profile_min_shapes(shapes)
                    .with_profile_opt_shapes(shapes)
                    .with_profile_max_shapes(shapes);
            }
            Ok((register(builder, provider)?, cuda_memory()?))
        }
        Provider::TensorrtRtx => {
            let plugin = library::find_plugin()?;
            library::register_plugin(environment, &plugin)?;
            let gpu = environment
                .devices()
                .filter(|found| found.ep().is_ok_and(|name| name == library::PLUGIN_PROVIDER))
                .nth(ordinal)
                .ok_or_else(|| format!("{} offers no GPU {ordinal}", plugin.display()))?;
            let mut options = vec![("nv_runtime_cache_path".to_owned(), cache()?)];
            for key in ["nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"] {
                options.extend(shapes.map(|shapes| (key.to_owned(), shapes.to_owned())));
            }
            let builder = builder.with_devices([gpu], Some(&options)).map_err(|error| error.to_string())?;
            Ok((builder, cuda_memory()?))
        }
    }
}

fn register(mut builder: SessionBuilder, provider: impl ExecutionProvider) -> Result<SessionBuilder, String> {
    provider.register(&mut builder).map_err(|error| error.to_string())?;
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_name_with_a_colon_gets_no_profile() {
        assert_eq!(shapes_text("image", &[4, 8, 8, 3]).as_deref(), Some("image:4x8x8x3"));
        assert_eq!(shapes_text("input:0", &[4, 8, 8, 3]), None);
    }
}
