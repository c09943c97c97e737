//! Runs batches through an execution context of a loaded engine.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use trtx::ExecutionContext;

use super::log::{take_errors, tensorrt};
use super::{Binding, Loaded};
use crate::engine::cuda::CudaResult;
use crate::engine::cuda::lane::zeros;
use crate::engine::cuda::runner::{DeviceMemory, Runner};

/// An execution context of a loaded engine, with the memory it is bound to.
pub struct TensorRtRunner {
    // dropped first: it uses the fields below
    context: ExecutionContext<'static>,
    tensor: CudaSlice<u8>,
    tensor_memory: DeviceMemory,
    scores: CudaSlice<u8>,
    scores_memory: DeviceMemory,
    /// Memory of unused outputs.
    _others: Vec<CudaSlice<u8>>,
    half_scores: bool,
    // dropped last: the context belongs to it
    _loaded: Arc<Loaded>,
}

// SAFETY: an execution context may be used from any thread, by one at a time, which `&mut self` in `run`
// ensures. The context holds the only `Rc` of its configuration, and the kernels that contexts share have
// a lock of their own.
unsafe impl Send for TensorRtRunner {}

impl TensorRtRunner {
    /// A runner for batches of `input_dims`, with a row of `classes` scores for each of their rows.
    pub fn new(
        loaded: &Arc<Loaded>,
        stream: &Arc<CudaStream>,
        input_dims: [i64; 4],
        classes: usize,
    ) -> CudaResult<Self> {
        take_errors();
        let mut context = loaded
            .execution_context()
            .map_err(|error| tensorrt("cannot make an execution context", &error))?;
        let dims = trtx::trtx_sys::Dims64::from_slice(&input_dims);
        context
            .set_input_shape(&loaded.input.name, &dims)
            .map_err(|error| tensorrt("the engine's optimization profile excludes this batch", &error))?;
        let elements = elements_of(&context, &loaded.input)?;
        let wanted: i64 = input_dims.iter().product();
        if elements as i64 != wanted {
            return Err(format!("its input has {elements} elements, a batch has {wanted}"));
        }
        let tensor = zeros(stream, elements * loaded.input.element_bytes)?;
        let elements = elements_of(&context, &loaded.output)?;
        if elements != input_dims[0] as usize * classes {
            let (name, rows) = (&loaded.output.name, input_dims[0]);
            return Err(format!("output {name} has {elements} elements, expected {rows} rows of {classes}"));
        }
        let scores = zeros(stream, elements * loaded.output.element_bytes)?;
        let (tensor_memory, scores_memory) = (memory(&tensor, stream), memory(&scores, stream));
        // SAFETY: the memory is as long as the input is according to the context, in the linear format
        // that `bindings` has checked, and this runner owns it and drops it after the context.
        unsafe { context.set_tensor_address(&loaded.input.name, tensor_memory.address as *mut c_void) }
            .map_err(|error| tensorrt("cannot bind the input", &error))?;
        // SAFETY: the same for the output.
        unsafe { context.set_tensor_address(&loaded.output.name, scores_memory.address as *mut c_void) }
            .map_err(|error| tensorrt("cannot bind the output", &error))?;
        let mut others = Vec::new();
        for other in &loaded.others {
            let unused = zeros(stream, elements_of(&context, other)? * other.element_bytes)?;
            let address = memory(&unused, stream).address;
            // SAFETY: the same for an unused output.
            unsafe { context.set_tensor_address(&other.name, address as *mut c_void) }
                .map_err(|error| tensorrt("cannot bind an output", &error))?;
            others.push(unused);
        }
        Ok(Self {
            context,
            tensor,
            tensor_memory,
            scores,
            scores_memory,
            _others: others,
            half_scores: loaded.output.half,
            _loaded: Arc::clone(loaded),
        })
    }
}

/// Number of elements of an input or output in the context's current shape.
fn elements_of(context: &ExecutionContext<'_>, binding: &Binding) -> CudaResult<usize> {
    let dims = context
        .tensor_shape(&binding.name)
        .map_err(|error| tensorrt("cannot read the engine's shapes", &error))?;
    let dims = &dims.d[..usize::try_from(dims.nbDims).unwrap_or(0).min(dims.d.len())];
    let elements =
        dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?));
    elements.ok_or_else(|| format!("tensor {} has the dynamic shape {dims:?}", binding.name))
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

/// Address and length of `slice`, which does not move until it is dropped.
fn memory(slice: &CudaSlice<u8>, stream: &CudaStream) -> DeviceMemory {
    let (address, _in_use) = slice.device_ptr(stream);
    DeviceMemory { address, bytes: slice.len() }
}
