//! An engine on a GPU: one lane of a device, with any [`Runner`].
//!
//! - Pixels arrive as RGB bytes in pinned memory; everything after the resize, such as normalisation
//!   and layout, happens on the GPU.
//! - Each device has several lanes, and the pipeline sees each as an engine of its own: while one lane
//!   copies, another computes.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::cuda::{CudaResult, Device, Lane, Normalise, Runner};
use super::shape::{check_input, check_labels, row_length};
use super::{Engine, Inference};
use crate::error::EngineError;
use crate::items::{BatchBuffer, BatchShape, PixelElement, PixelsRef};
use crate::plan::Plan;

/// One lane of a device.
#[derive(Debug)]
pub struct GpuEngine<R> {
    lane: Lane<R>,
    device: Device,
    software: Software,
    shape: BatchShape,
    classes: usize,
}

/// The runtime that runs a model.
#[derive(Debug)]
pub struct Software {
    /// Name for the manifest, which is followed by the device.
    pub name: String,
    /// Whether parts of the model run on the CPU.
    pub partly_on_cpu: bool,
}

/// Name and dimensions of a model's input or output: batch first, negative if dynamic.
pub type Tensor<'a> = (&'a str, &'a [i64]);

/// Check that the model fits the plan. Returns the number of scores in a row.
///
/// # Errors
/// If the model does not fit, or the length of a row is dynamic: the memory for scores is allocated beforehand.
pub fn check_model(plan: &Plan, input: Tensor<'_>, output: Tensor<'_>) -> Result<usize, EngineError> {
    let mismatch = |message| EngineError::Mismatch { path: plan.model.path.clone(), message };
    check_input(input.0, input.1, plan).map_err(mismatch)?;
    let classes = row_length(output.0, output.1).map_err(mismatch)?.ok_or_else(|| {
        mismatch(format!("output {} has rows of dynamic length; on a GPU the length must be fixed", output.0))
    })?;
    check_labels(classes, plan).map_err(mismatch)?;
    Ok(classes)
}

impl<R: Runner> GpuEngine<R> {
    /// A lane on `device` for a model with `classes` scores in a row, whose input is 16-bit floats if
    /// `half`. `make` creates the runner on the lane's stream.
    pub fn new(
        plan: &Plan,
        device: &Device,
        half: bool,
        classes: usize,
        software: Software,
        make: impl FnOnce(&Arc<CudaStream>) -> CudaResult<R>,
    ) -> Result<Self, EngineError> {
        let batch_size = plan.engine.batch_size;
        let lane = Normalise::new(device, &plan.preprocess, batch_size, half)
            .and_then(|kernel| Lane::new(device, kernel, make))
            .map_err(|message| failed(device, message))?;
        let row_elements = plan.preprocess.row_elements();
        let shape = BatchShape { batch_size, row_elements, element: PixelElement::Rgb8 };
        Ok(Self { lane, device: device.clone(), software, shape, classes })
    }
}

/// The error for a device that failed, or has too little memory.
pub fn failed(device: &Device, message: String) -> EngineError {
    EngineError::Device { ordinal: device.ordinal, device: device.to_string(), message }
}

impl<R: Runner> Engine for GpuEngine<R> {
    fn describe(&self) -> String {
        format!("{} on {}", self.software.name, self.device)
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
        self.software.partly_on_cpu
    }

    /// Pinned memory, which every device of the host copies from at full speed.
    fn buffers(&mut self, count: usize) -> Result<Vec<Box<dyn BatchBuffer>>, EngineError> {
        let pinned = |_| {
            let buffer = self.device.pinned(self.shape.batch_size * self.shape.row_elements)?;
            Ok::<_, String>(Box::new(buffer) as Box<dyn BatchBuffer>)
        };
        (0..count).map(pinned).collect::<Result<_, _>>().map_err(|message| failed(&self.device, message))
    }

    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String> {
        let (mut scores, times) =
            self.lane.run(pixels.rgb()?).map_err(|error| format!("{}: {error}", self.device))?;
        scores.truncate(rows * self.classes);
        Ok(Inference { scores, h2d: times.h2d, compute: times.compute, d2h: times.d2h })
    }

    fn takes_floats(&self) -> bool {
        self.lane.takes_floats()
    }

    fn infer_floats(&mut self, tensor: &[f32]) -> Result<Vec<f32>, String> {
        self.lane.run_floats(tensor).map_err(|error| format!("{}: {error}", self.device))
    }
}
