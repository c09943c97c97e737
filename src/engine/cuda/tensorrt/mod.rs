//! TensorRT on a device: loaded engines, and runners that execute them.
//!
//! - The runners on a device share its engine; each has an execution context and memory of its own.

mod log;
mod runner;

use std::sync::Mutex;

use trtx::{CudaEngine, DataType, ExecutionContext, Runtime, TensorFormat, TensorIOMode, TensorLocation};

use self::log::take_errors;
pub(in crate::engine) use self::log::{logger, tensorrt};
pub use self::runner::TensorRtRunner;
use super::flavour::{CompiledKernels, check_plan};
use super::{CudaResult, Device};
use crate::error::is_out_of_memory;
use crate::flow::lock;

/// An engine on a device, ready for execution contexts.
pub struct Loaded {
    // fields are dropped in this order: kernels before the engine, the engine before its runtime
    kernels: CompiledKernels,
    engine: Mutex<CudaEngine<'static>>,
    _runtime: Runtime<'static>,
    device: Device,
    /// The image input.
    pub input: Binding,
    /// The model's first output.
    pub output: Binding,
    /// Unused outputs, which also need memory.
    others: Vec<Binding>,
}

// SAFETY: TensorRT engines may be used from any thread. This one is accessed only through the mutex, and
// only to create contexts; the runtime is not used after loading, and lives as long as the engine.
unsafe impl Send for Loaded {}
// SAFETY: see above; all other fields are plain data or thread-safe handles.
unsafe impl Sync for Loaded {}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("device", &self.device)
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

/// One input or output of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Name of the tensor in the model.
    pub name: String,
    /// Batch first; negative if dynamic.
    pub dims: Vec<i64>,
    /// 16-bit floats.
    pub half: bool,
    element_bytes: usize,
}

impl Binding {
    /// A binding whose elements are of `data_type`.
    fn new(name: String, dims: Vec<i64>, data_type: &DataType) -> Self {
        let element_bytes = match data_type {
            DataType::kINT64 => 8,
            DataType::kHALF | DataType::kBF16 => 2,
            DataType::kINT8 | DataType::kUINT8 | DataType::kBOOL | DataType::kFP8 => 1,
            // types smaller than a byte get more memory than they need
            _ => 4,
        };
        Self { name, dims, half: *data_type == DataType::kHALF, element_bytes }
    }
}

/// Why an engine cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// TensorRT rejects the engine: it is damaged, or was built for another GPU or version.
    Refused(String),
    /// The engine is sound, but has unsupported inputs or outputs.
    Unsuitable(String),
    /// The device failed, or has too little memory.
    Device(String),
}

impl Loaded {
    /// Load the serialized engine `plan` on `device`; `kernels` are those that [`Loaded::kernels`]
    /// returned for it in an earlier run.
    pub fn new(device: &Device, plan: &[u8], kernels: Option<&[u8]>) -> Result<Self, LoadError> {
        device.make_current().map_err(LoadError::Device)?;
        let mut runtime = start_runtime().map_err(LoadError::Device)?;
        check_plan(&runtime, plan).map_err(LoadError::Refused)?;
        let mut engine = runtime.deserialize_cuda_engine(plan).map_err(|error| {
            let message = tensorrt("cannot load the engine", &error);
            if is_out_of_memory(&message) { LoadError::Device(message) } else { LoadError::Refused(message) }
        })?;
        let kernels = CompiledKernels::new(&mut engine, kernels)
            .map_err(|error| LoadError::Device(tensorrt("cannot cache kernels", &error)))?;
        let (inputs, outputs) = bindings(&engine).map_err(LoadError::Unsuitable)?;
        let [input] = <[Binding; 1]>::try_from(inputs).map_err(|inputs| {
            LoadError::Unsuitable(format!("it must have one input, it has {}", inputs.len()))
        })?;
        let mut outputs = outputs.into_iter();
        let output = outputs.next().ok_or_else(|| LoadError::Unsuitable("it has no output".to_owned()))?;
        Ok(Self {
            kernels,
            engine: Mutex::new(engine),
            _runtime: runtime,
            device: device.clone(),
            input,
            output,
            others: outputs.collect(),
        })
    }

    /// The kernels compiled so far, to be cached. They fit only this engine on this kind of device.
    pub fn kernels(&self) -> CudaResult<Vec<u8>> {
        take_errors();
        self.kernels.serialize().map_err(|error| tensorrt("cannot cache kernels", &error))
    }

    fn execution_context(&self) -> trtx::Result<ExecutionContext<'static>> {
        self.kernels.context(&mut lock(&self.engine))
    }
}

/// The inputs and outputs of an engine. All must be linear tensors in device memory, and the inputs and
/// the first output must be floats.
fn bindings(engine: &CudaEngine<'_>) -> CudaResult<(Vec<Binding>, Vec<Binding>)> {
    let fail = |error: trtx::Error| tensorrt("cannot read the engine", &error);
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for name in engine.io_tensor_names().map_err(fail)? {
        let data_type = engine.tensor_data_type(&name).map_err(fail)?;
        let format = engine.tensor_format(&name).map_err(fail)?;
        let location = engine.tensor_location(&name).map_err(fail)?;
        if format != TensorFormat::kLINEAR || location != TensorLocation::kDEVICE {
            return Err(format!("tensor {name} is {format:?} in {location:?}, expected kLINEAR in kDEVICE"));
        }
        let dims = engine.tensor_shape(&name).map_err(fail)?;
        let mode = engine.tensor_io_mode(&name).map_err(fail)?;
        let list = if mode == TensorIOMode::kINPUT { &mut inputs } else { &mut outputs };
        // further outputs are unused and may be of any type
        let is_used = mode == TensorIOMode::kINPUT || list.is_empty();
        if is_used && !matches!(data_type, DataType::kFLOAT | DataType::kHALF) {
            return Err(format!("tensor {name} is {data_type:?}, expected 16- or 32-bit floats"));
        }
        list.push(Binding::new(name, dims, &data_type));
    }
    Ok((inputs, outputs))
}

/// Start TensorRT's runtime, which may need a usable CUDA driver.
fn start_runtime() -> CudaResult<Runtime<'static>> {
    take_errors();
    let runtime = Runtime::new(logger()?).map_err(|error| tensorrt("cannot start TensorRT", &error))?;
    // on failure datacenter TensorRT logs errors, but returns a runtime, which can be neither used nor freed
    let reported = take_errors();
    if reported.is_empty() {
        return Ok(runtime);
    }
    std::mem::forget(runtime);
    Err(format!("cannot start TensorRT: {reported}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensorrt as flavour;

    /// On a host without a driver, TensorRT-RTX starts and datacenter TensorRT does not.
    #[test]
    #[ignore = "needs scripts/setup.sh --with tensorrt"]
    fn the_real_library_rejects_an_invalid_plan() {
        flavour::probe_runtime().expect("scripts/setup.sh --with tensorrt puts TensorRT in place");
        let refused = start_runtime().and_then(|mut runtime| {
            let plan = [7; 4096];
            check_plan(&runtime, &plan)?;
            let loaded = runtime.deserialize_cuda_engine(&plan).map(drop);
            loaded.map_err(|error| tensorrt("cannot load the engine", &error))
        });
        let message = refused.expect_err("no plan begins with sevens");
        let words = ["does not fit this host", "cannot load the engine", "cannot start TensorRT"];
        assert!(words.iter().any(|words| message.contains(words)), "{message}");
    }

    #[cfg(not(feature = "datacenter"))]
    #[test]
    #[ignore = "needs scripts/setup.sh --with tensorrt"]
    fn a_plan_of_this_tensorrt_is_accepted() {
        let plan = flavour::tests::tiny_engine();
        let runtime = start_runtime().expect("it needs no driver");
        assert_eq!(check_plan(&runtime, &plan), Ok(()));
    }
}
