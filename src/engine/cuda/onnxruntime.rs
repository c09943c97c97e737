//! ONNX Runtime on a device: a session whose input and output are bound to device memory.
//!
//! - The session allocates both tensors on its device. The lane's kernel writes the input, and the lane
//!   copies the output to the host.
//! - A run first waits for the lane's stream, and at its end for the session's own, so no memory is
//!   used by two streams at once.

use cudarc::driver::CudaStream;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, TensorElementType};

use super::runner::{DeviceMemory, Runner};
use super::{CudaResult, driver};

/// Name, shape and element type of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor in the model.
    pub name: String,
    /// Dimensions, batch first; below zero where dynamic.
    pub dims: Vec<i64>,
    /// 16-bit floats instead of 32-bit ones.
    pub half: bool,
}

/// A session with its binding.
pub struct OnnxRuntimeRunner {
    // fields are dropped in this order; the session must be last
    binding: IoBinding,
    tensor: DeviceMemory,
    scores: DeviceMemory,
    half_scores: bool,
    input: (String, DynTensor),
    _output: DynTensor,
    session: Session,
}

// SAFETY: the session, its binding and its tensors may be used from any thread, by one at a time, which
// `&mut self` in `run` ensures; the addresses belong to the tensors.
unsafe impl Send for OnnxRuntimeRunner {}

impl OnnxRuntimeRunner {
    /// Bind `input` and `output` of `session` to memory of the device that `memory` describes.
    pub fn new(
        session: Session,
        memory: MemoryInfo<'_>,
        input: &TensorSpec,
        output: &TensorSpec,
    ) -> CudaResult<Self> {
        let text = |what: &'static str| move |error: ort::Error| format!("{what}: {error}");
        let allocator = Allocator::new(&session, memory).map_err(text("cannot allocate on the GPU"))?;
        let make = |spec: &TensorSpec| {
            let element = if spec.half { TensorElementType::Float16 } else { TensorElementType::Float32 };
            let mut tensor = DynTensor::new(&allocator, element, spec.dims.clone())
                .map_err(text("cannot take GPU memory"))?;
            let elements: i64 = spec.dims.iter().product();
            let bytes = elements as usize * if spec.half { 2 } else { 4 };
            let memory = DeviceMemory { address: tensor.data_ptr_mut() as u64, bytes };
            Ok::<_, String>((tensor, memory))
        };
        let ((bound_input, tensor), (bound_output, scores)) = (make(input)?, make(output)?);
        let mut binding = session.create_binding().map_err(text("cannot bind device memory"))?;
        binding.bind_input(&*input.name, &bound_input).map_err(text("cannot bind the input"))?;
        let mut bound_output = bound_output;
        binding.bind_output(&*output.name, &mut bound_output).map_err(text("cannot bind the output"))?;
        let half_scores = output.half;
        let input = (input.name.clone(), bound_input);
        Ok(Self { binding, tensor, scores, half_scores, input, _output: bound_output, session })
    }
}

impl Runner for OnnxRuntimeRunner {
    fn tensor(&self) -> DeviceMemory {
        self.tensor
    }

    fn scores(&self) -> DeviceMemory {
        self.scores
    }

    fn half_scores(&self) -> bool {
        self.half_scores
    }

    fn run(&mut self, stream: &CudaStream) -> CudaResult<()> {
        stream.synchronize().map_err(|error| driver("the GPU failed", error))?;
        // if the first node runs on the CPU, binding copies the tensor there
        let (name, tensor) = &self.input;
        self.binding.bind_input(name, tensor).map_err(|error| format!("cannot bind the input: {error}"))?;
        self.session
            .run_binding(&self.binding)
            .map(|_| ())
            .map_err(|error| format!("inference failed: {error}"))
    }
}
