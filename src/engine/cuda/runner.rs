//! The interface between a lane and the runtime that runs the model.

use cudarc::driver::{CudaStream, sys};

use super::CudaResult;

/// Device memory that a runner owns; valid as long as the runner lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub(super) address: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

/// Computes scores from a tensor, both in device memory of its own.
pub trait Runner: Send {
    /// The input: a full batch, normalised.
    fn tensor(&self) -> DeviceMemory;

    /// The output: a row of scores for each row of the batch.
    fn scores(&self) -> DeviceMemory;

    /// Whether the scores are 16-bit floats.
    fn half_scores(&self) -> bool;

    /// Compute the scores after all work already enqueued on `stream`; work enqueued on it afterwards
    /// sees the scores.
    fn run(&mut self, stream: &CudaStream) -> CudaResult<()>;
}
