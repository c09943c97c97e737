//! The interface between the pipeline and an engine.

use std::time::Duration;

use crate::error::EngineError;
use crate::items::{BatchBuffer, BatchShape, PixelsRef};

/// Runs the model on one batch at a time.
pub trait Engine: Send {
    /// The runtime and its device, for the manifest.
    fn describe(&self) -> String;

    /// Ordinal of the GPU that the model runs on; `None` on the CPU.
    fn device(&self) -> Option<usize> {
        None
    }

    /// The shape of every batch.
    fn batch_shape(&self) -> BatchShape;

    /// Number of scores in a row of the model's output.
    fn classes(&self) -> usize;

    /// Whether inference competes with decoding for CPU cores.
    fn computes_on_cpu(&self) -> bool;

    /// Memory for `count` batches of the engine's shape, with unspecified content, of the kind that the
    /// engine reads fastest.
    fn buffers(&mut self, count: usize) -> Result<Vec<Box<dyn BatchBuffer>>, EngineError> {
        let shape = self.batch_shape();
        Ok((0..count).map(|_| Box::new(shape.zeros()) as Box<dyn BatchBuffer>).collect())
    }

    /// Score the first `rows` rows of `pixels`, which has the engine's batch shape.
    ///
    /// # Errors
    /// The engine's message; the caller adds the batch.
    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String>;

    /// Whether the model's input is float32, which [`Engine::infer_floats`] needs.
    fn takes_floats(&self) -> bool {
        true
    }

    /// Scores of a full batch of normalised pixels in pageable memory, copied in and out as a
    /// straightforward program would. Benchmarks compare [`Engine::infer`] with it.
    ///
    /// # Errors
    /// The engine's message.
    fn infer_floats(&mut self, tensor: &[f32]) -> Result<Vec<f32>, String>;
}

/// Scores of the real rows of a batch, and the time they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// `rows × classes` in row order.
    pub scores: Vec<f32>,
    /// Host to device copy; zero if the model runs on the CPU.
    pub h2d: Duration,
    /// Time in the model.
    pub compute: Duration,
    /// Device to host copy; zero if the model runs on the CPU.
    pub d2h: Duration,
}
