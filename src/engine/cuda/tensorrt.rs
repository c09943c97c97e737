//! TensorRT on a device: loaded engines, and runners that execute them.
//!
//! - An engine is shared by the runners on its device; each has an execution context and memory of
//!   its own.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use trtx::{CudaEngine, DataType, ExecutionContext, Runtime, TensorIOMode};

use super::flavour::{CompiledKernels, check_plan};
use super::lane::{DeviceMemory, Runner, zeros};
use super::{CudaResult, Device};

/// An engine on a device, ready for execution contexts.
pub struct Loaded {
    // dropped in this order: an engine must go before the runtime that made it
    engine: Mutex<CudaEngine<'static>>,
    _runtime: Runtime<'static>,
    kernels: CompiledKernels,
    pub device: Device,
    pub input: Binding,
    pub output: Binding,
}

// SAFETY: TensorRT's engines may be used from any thread. Ours is only reached through the mutex,
// and only to make contexts; the runtime is not used any more after loading, and lives as long.
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
    pub name: String,
    /// Batch first; below zero where dynamic.
    pub dims: Vec<i64>,
    /// 16-bit floats; 32-bit ones otherwise.
    pub half: bool,
}

impl Binding {
    fn element_bytes(&self) -> usize {
        if self.half { 2 } else { 4 }
    }
}

/// TensorRT's messages, into ours. One for the process: TensorRT keeps the first it is given.
pub(in crate::engine) fn logger() -> CudaResult<&'static trtx::Logger> {
    static LOGGER: OnceLock<Result<trtx::Logger, String>> = OnceLock::new();
    let made = LOGGER.get_or_init(|| trtx::Logger::new(Messages).map_err(|error| error.to_string()));
    made.as_ref().map_err(Clone::clone)
}

/// Errors that TensorRT has reported since they were last taken; its calls only say that they failed.
pub(in crate::engine) fn take_errors() -> String {
    let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *errors).join("; ")
}

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Errors kept for [`take_errors`]; the first ones say what is wrong.
const ERRORS_KEPT: usize = 4;

struct Messages;

impl trtx::LogHandler for Messages {
    fn log(&self, severity: trtx::Severity, message: &str) {
        match severity {
            trtx::Severity::InternalError | trtx::Severity::Error => {
                tracing::debug!(target: "tensorrt", "{message}");
                let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
                if errors.len() < ERRORS_KEPT {
                    errors.push(message.to_owned());
                }
            }
            trtx::Severity::Warning => tracing::debug!(target: "tensorrt", "{message}"),
            trtx::Severity::Info | trtx::Severity::Verbose => {
                tracing::trace!(target: "tensorrt", "{message}")
            }
        }
    }
}

/// What TensorRT reported, or its wrapper's own words if it reported nothing.
pub(in crate::engine) fn tensorrt(what: &str, error: &trtx::Error) -> String {
    let reported = take_errors();
    if reported.is_empty() { format!("{what}: {error}") } else { format!("{what}: {reported}") }
}

impl Loaded {
    /// Put the serialized engine `plan` on `device`; `kernels` are what [`Loaded::kernels`] gave for it
    /// before.
    pub fn new(device: &Device, plan: &[u8], kernels: Option<&[u8]>) -> CudaResult<Self> {
        device.make_current()?;
        take_errors();
        let fail = |what: &str| {
            let what = what.to_owned();
            move |error: trtx::Error| tensorrt(&what, &error)
        };
        let mut runtime = start_runtime()?;
        check_plan(&runtime, plan)?;
        let mut engine = runtime.deserialize_cuda_engine(plan).map_err(fail("cannot load the engine"))?;
        let kernels = CompiledKernels::new(&mut engine, kernels).map_err(fail("cannot keep kernels"))?;
        let names: Vec<String> = engine.io_tensor_names().map_err(fail("cannot read the engine"))?.collect();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for name in names {
            let mode = engine.tensor_io_mode(&name).map_err(fail("cannot read the engine"))?;
            let dims = engine.tensor_shape(&name).map_err(fail("cannot read the engine"))?;
            let kind = engine.tensor_data_type(&name).map_err(fail("cannot read the engine"))?;
            let half = match kind {
                DataType::kFLOAT => false,
                DataType::kHALF => true,
                other => return Err(format!("tensor {name} is {other:?}, expected 16- or 32-bit floats")),
            };
            let binding = Binding { name, dims, half };
            if mode == TensorIOMode::kINPUT { inputs.push(binding) } else { outputs.push(binding) }
        }
        let [input] = <[Binding; 1]>::try_from(inputs)
            .map_err(|inputs| format!("it must have one input, it has {}", inputs.len()))?;
        let output = outputs.into_iter().next().ok_or("it has no output")?;
        Ok(Self {
            engine: Mutex::new(engine),
            _runtime: runtime,
            kernels,
            device: device.clone(),
            input,
            output,
        })
    }
}

impl Loaded {
    /// The kernels compiled so far, to be kept. They fit this engine on this kind of device only.
    pub fn kernels(&self) -> CudaResult<Vec<u8>> {
        take_errors();
        self.kernels.serialize().map_err(|error| tensorrt("cannot keep kernels", &error))
    }

    fn execution_context(&self) -> trtx::Result<ExecutionContext<'static>> {
        self.kernels.context(&mut self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// For tests that talk to TensorRT: its messages are one list for the process.
#[cfg(test)]
pub(in crate::engine) fn test_alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TensorRT's runtime. It does not start where the CUDA driver cannot be used.
fn start_runtime() -> CudaResult<Runtime<'static>> {
    take_errors();
    let runtime = Runtime::new(logger()?).map_err(|error| tensorrt("cannot start TensorRT", &error))?;
    // datacenter TensorRT reports why and returns a null pointer, which the binding passes on
    let reported = take_errors();
    if reported.is_empty() {
        return Ok(runtime);
    }
    // there is nothing to free
    std::mem::forget(runtime);
    Err(format!("cannot start TensorRT: {reported}"))
}

/// An execution context of a loaded engine, with the memory it is bound to.
pub struct TensorRtRunner {
    // dropped first: it uses all that follows
    context: ExecutionContext<'static>,
    tensor: CudaSlice<u8>,
    tensor_memory: DeviceMemory,
    scores: CudaSlice<u8>,
    scores_memory: DeviceMemory,
    half_scores: bool,
    // dropped last: the context belongs to it
    _loaded: Arc<Loaded>,
}

// SAFETY: an execution context may be used from any thread, one at a time, which `&mut self` in
// `run` grants. The `Rc` it holds is the only one of its configuration, and the kernels that contexts
// share have a lock of their own.
unsafe impl Send for TensorRtRunner {}

impl TensorRtRunner {
    /// A runner for batches of `input_dims`, with `scores` scores in all.
    pub fn new(
        loaded: &Arc<Loaded>,
        stream: &Arc<CudaStream>,
        input_dims: [i64; 4],
        scores: usize,
    ) -> CudaResult<Self> {
        take_errors();
        let mut context = loaded
            .execution_context()
            .map_err(|error| tensorrt("cannot make an execution context", &error))?;
        let dims = trtx::trtx_sys::Dims64::from_slice(&input_dims);
        context
            .set_input_shape(&loaded.input.name, &dims)
            .map_err(|error| tensorrt("the engine's profile does not hold this batch", &error))?;
        let elements: i64 = input_dims.iter().product();
        let tensor = zeros(stream, elements as usize * loaded.input.element_bytes())?;
        let scores = zeros(stream, scores * loaded.output.element_bytes())?;
        let (tensor_memory, scores_memory) = (memory(&tensor, stream), memory(&scores, stream));
        // SAFETY: the address is that of a batch in the context's input shape, and this runner owns
        // the memory and drops it after the context.
        unsafe { context.set_tensor_address(&loaded.input.name, tensor_memory.address as *mut c_void) }
            .map_err(|error| tensorrt("cannot bind the input", &error))?;
        // SAFETY: the same for the scores of the batch, as many as the engine declares.
        unsafe { context.set_tensor_address(&loaded.output.name, scores_memory.address as *mut c_void) }
            .map_err(|error| tensorrt("cannot bind the output", &error))?;
        let half_scores = loaded.output.half;
        let _loaded = Arc::clone(loaded);
        Ok(Self { context, tensor, tensor_memory, scores, scores_memory, half_scores, _loaded })
    }
}

impl Runner for TensorRtRunner {
    fn tensor(&self) -> DeviceMemory {
        debug_assert_eq!(self.tensor.len(), self.tensor_memory.bytes);
        self.tensor_memory
    }

    fn scores(&self) -> DeviceMemory {
        debug_assert_eq!(self.scores.len(), self.scores_memory.bytes);
        self.scores_memory
    }

    fn half_scores(&self) -> bool {
        self.half_scores
    }

    fn run(&mut self, stream: &CudaStream) -> CudaResult<()> {
        take_errors();
        // SAFETY: the stream is alive, and the bound addresses are this runner's own memory.
        unsafe { self.context.enqueue_v3(stream.cu_stream().cast()) }
            .map_err(|error| tensorrt("inference failed", &error))
    }
}

/// Where `slice` lies. It stays there until it is dropped.
fn memory(slice: &CudaSlice<u8>, stream: &CudaStream) -> DeviceMemory {
    let (address, _in_use) = slice.device_ptr(stream);
    DeviceMemory { address, bytes: slice.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensorrt as flavour;

    /// On a host without a driver datacenter TensorRT does not start; TensorRT-RTX does.
    #[test]
    fn a_plan_that_is_none_is_refused_by_the_real_library() {
        let _alone = test_alone();
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
    fn a_plan_of_this_tensorrt_is_let_through() {
        let _alone = test_alone();
        let plan = flavour::tests::tiny_engine();
        let runtime = start_runtime().expect("it needs no driver");
        assert_eq!(check_plan(&runtime, &plan), Ok(()));
    }
}
