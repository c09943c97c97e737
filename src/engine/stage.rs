//! The engine stage: each engine has a thread, and all of them take batches from one queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use super::{Engine, Inference};
use crate::error::{EngineError, panic_message};
use crate::flow::{Receiver, StageMeter};
use crate::items::{Batch, BatchBuffer, BatchFailure, BatchJob, BatchTiming, Inferred, Outcome};

/// Run two batches of zeros, so that the first real batch is as fast as the others: the first run loads and
/// compiles kernels, and the second is captured if batches run as CUDA graphs.
///
/// The outcome is that of the first run, with no rows and the batch id −1 − `worker`, which no real batch has.
pub fn warm_up(engine: &mut dyn Engine, worker: usize) -> Result<Outcome, EngineError> {
    let shape = engine.batch_shape();
    let zeros = shape.zeros();
    let mut run = || {
        engine.infer(zeros.pixels(), shape.batch_size).map_err(|message| EngineError::WarmUp {
            batch_size: shape.batch_size,
            ordinal: engine.device(),
            message,
        })
    };
    let started_at = SystemTime::now();
    let inference = run()?;
    run()?;
    Ok(Outcome {
        batch_id: -1 - worker as i64,
        rows: 0,
        scores: Vec::new(),
        timing: timing(&inference, Duration::ZERO, started_at, true),
        device: engine.device(),
    })
}

/// The loop of one engine's thread: take batches from the queue, and fill their slots with the outcomes.
///
/// - A batch that the engine cannot score fills its slot with the reason, and the next one is tried.
/// - An engine that panics is not called again, because its state is unknown. Its thread ends, and the other engines
///   take the remaining batches.
/// - The buffer of a batch always returns to the pool.
///
/// # Errors
/// The message of the engine's panic.
pub fn run(
    engine: &mut dyn Engine,
    batches: &Receiver<BatchJob>,
    used_buffers: &crossbeam_channel::Sender<Box<dyn BatchBuffer>>,
    meter: &StageMeter,
) -> Result<(), String> {
    while let Some((batch, filler)) = batches.recv() {
        let Batch { id, pixels, rows, entries, sealed_at } = batch;
        let (Some(batch_id), Some(pixels)) = (id, pixels) else {
            unreachable!("the batch stage sends only batches with rows to score")
        };
        let (taken_at, started_at) = (Instant::now(), SystemTime::now());
        let infer = || meter.busy(|| engine.infer(pixels.pixels(), rows));
        let inferred = catch_unwind(AssertUnwindSafe(infer));
        // sending fails only if the batch stage has ended, which then needs no buffers
        let _ = used_buffers.send(pixels);
        meter.add_items(1);
        let inference = match inferred {
            Ok(Ok(inference)) => inference,
            Ok(Err(message)) => {
                let failure = BatchFailure { batch_id, message, panicked: false };
                filler.fill(Inferred { entries, outcome: Err(failure) });
                continue;
            }
            Err(panic) => {
                let message = panic_message(panic.as_ref()).to_owned();
                let failure = BatchFailure { batch_id, message: message.clone(), panicked: true };
                filler.fill(Inferred { entries, outcome: Err(failure) });
                return Err(message);
            }
        };
        tracing::trace!(batch_id, rows, compute_ms = inference.compute.as_secs_f64() * 1e3, "batch scored");
        let timing = timing(&inference, taken_at - sealed_at, started_at, false);
        let device = engine.device();
        let outcome = Outcome { batch_id: batch_id as i64, rows, scores: inference.scores, timing, device };
        filler.fill(Inferred { entries, outcome: Ok(Some(outcome)) });
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
