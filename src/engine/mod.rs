//! Engines: a full batch of pixels in, scores out.
//!
//! - An engine always gets exactly `batch_size` rows, the last ones zero if the batch is padded,
//!   and returns the scores of the real rows only.
//! - It is owned by one thread; several engines share one queue of batches.
//! - Whatever can be wrong with a model is found when the engine is made, before data is read.

use std::time::{Duration, Instant, SystemTime};

use crate::error::EngineError;
use crate::flow::{Receiver, StageMeter};
use crate::items::{Batch, BatchJob, BatchShape, BatchTiming, Inferred, Outcome, Pixels};

mod onnxruntime;
mod runtime_library;

pub use onnxruntime::OnnxRuntime;

/// Runs the model on one batch at a time.
pub trait Engine: Send {
    /// What every batch must look like.
    fn batch_shape(&self) -> BatchShape;

    /// Scores of one row; the length of the model's output.
    fn classes(&self) -> usize;

    /// Whether inference takes the cores that decoding would use.
    fn computes_on_cpu(&self) -> bool;

    /// Score the first `rows` rows of `pixels`, which has the engine's batch shape.
    ///
    /// # Errors
    /// A message in the engine's own words; the caller knows the batch.
    fn infer(&mut self, pixels: &Pixels, rows: usize) -> Result<Inference, String>;
}

/// Scores of the real rows of a batch, and the time they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// `rows × classes` in row order.
    pub scores: Vec<f32>,
    /// Host to device copy; zero where the model runs on the CPU.
    pub h2d: Duration,
    pub compute: Duration,
    /// Device to host copy; zero where the model runs on the CPU.
    pub d2h: Duration,
}

/// Run one batch of zeros, so that the first real batch finds everything loaded.
///
/// Its outcome has no rows and the batch id −1 − `worker`, so that it never meets a real batch.
pub fn warm_up(engine: &mut dyn Engine, worker: usize) -> Result<Outcome, EngineError> {
    let shape = engine.batch_shape();
    let started_at = SystemTime::now();
    let inference = engine
        .infer(&shape.zeros(), shape.batch_size)
        .map_err(|message| EngineError::WarmUp { batch_size: shape.batch_size, message })?;
    Ok(Outcome {
        batch_id: -1 - worker as i64,
        rows: 0,
        scores: Vec::new(),
        timing: timing(&inference, Duration::ZERO, started_at, true),
    })
}

/// One engine's share of the engine stage: take batches, fill their slots.
pub fn run(
    engine: &mut dyn Engine,
    batches: &Receiver<BatchJob>,
    used_buffers: &crossbeam_channel::Sender<Pixels>,
    meter: &StageMeter,
) -> Result<(), EngineError> {
    while let Some((batch, filler)) = batches.recv() {
        let Batch { id, pixels, rows, entries, sealed_at } = batch;
        let batch_id = id.unwrap_or_default();
        let (taken_at, started_at) = (Instant::now(), SystemTime::now());
        let inference = meter
            .busy(|| engine.infer(&pixels, rows))
            .map_err(|message| EngineError::Inference { batch_id, message })?;
        // a full return queue means that enough buffers are in circulation; this one is freed
        let _ = used_buffers.try_send(pixels);
        meter.add_items(1);
        tracing::trace!(batch_id, rows, compute_ms = inference.compute.as_secs_f64() * 1e3, "batch scored");
        let timing = timing(&inference, taken_at - sealed_at, started_at, false);
        let outcome = Outcome { batch_id: batch_id as i64, rows, scores: inference.scores, timing };
        filler.fill(Inferred { entries, outcome: Some(outcome) });
    }
    Ok(())
}

fn timing(inference: &Inference, queued: Duration, started_at: SystemTime, warmup: bool) -> BatchTiming {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    BatchTiming {
        queue_ms: ms(queued),
        h2d_ms: ms(inference.h2d),
        compute_ms: ms(inference.compute),
        d2h_ms: ms(inference.d2h),
        started_at,
        warmup,
    }
}
