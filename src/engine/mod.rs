//! Engines: a full batch of pixels in, scores out.
//!
//! - An engine always gets exactly `batch_size` rows, padded with zeros, and returns the scores of the
//!   real rows only.
//! - An engine is owned by one thread; several engines share one queue of batches.
//! - A model is checked when its engine is created, before any data is read.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::config::{EngineKind, Provider};
use crate::error::{EngineError, panic_message};
use crate::flow::{Receiver, StageMeter};
use crate::items::{
    Batch, BatchBuffer, BatchFailure, BatchJob, BatchShape, BatchTiming, Inferred, Outcome, PixelsRef,
};
use crate::plan::{Plan, hex};
use crate::regular_file::refuse_special;

pub mod cuda;
mod deps;
mod gpu;
mod memory;
pub mod onnx;
mod onnxruntime;
mod shape;
pub mod tensorrt;

pub use gpu::GpuEngine;
pub use memory::explain as explain_memory;
pub(crate) use onnxruntime::find_plugin as find_tensorrt_plugin;
pub use onnxruntime::{OnnxRuntime, load_on_gpus, probe_onnxruntime, probe_provider};
use tensorrt::cache_folder;

/// Runs the model on one batch at a time.
pub trait Engine: Send {
    /// What runs where, for the manifest.
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
    /// A message in the engine's own words; the caller knows the batch.
    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String>;

    /// Whether the model's input is float32, which [`Engine::infer_floats`] needs.
    fn takes_floats(&self) -> bool {
        true
    }

    /// Scores of a full batch of normalised pixels in pageable memory, copied in and out as a
    /// straightforward program would. Benchmarks compare [`Engine::infer`] with it.
    ///
    /// # Errors
    /// A message in the engine's own words.
    fn infer_floats(&mut self, tensor: &[f32]) -> Result<Vec<f32>, String>;
}

/// The engines of a plan, all with the same batch shape: one on the CPU, or one for each lane of each GPU.
pub fn load(plan: &Plan, model_sha256: &str) -> Result<Vec<Box<dyn Engine>>, EngineError> {
    fn boxed<E: Engine + 'static>(engines: Vec<E>) -> Vec<Box<dyn Engine>> {
        engines.into_iter().map(|engine| Box::new(engine) as Box<dyn Engine>).collect()
    }
    match (plan.engine.kind, plan.engine.provider) {
        (EngineKind::Tensorrt, _) => tensorrt::load(plan, model_sha256).map(boxed),
        (EngineKind::Onnxruntime, Provider::Cpu) => Ok(boxed(vec![OnnxRuntime::load(plan)?])),
        (EngineKind::Onnxruntime, _) => match load_on_gpus(plan, model_sha256) {
            Err(error) if plan.engine.allow_fallback && error.is_for_want_of_a_gpu() => {
                tracing::warn!(%error, "falling back to the CPU, as engine.allow_fallback says");
                Ok(boxed(vec![OnnxRuntime::fallback(plan, error.to_string())?]))
            }
            loaded => loaded.map(boxed),
        },
    }
}

/// SHA-256 of a model, in lower-case hexadecimal: of its file, or of the hashes of all its files if an
/// ONNX file keeps weights in other files.
///
/// # Errors
/// When a file cannot be read, or a model names weights outside its own folder.
pub fn hash_model(path: &Path) -> Result<String, EngineError> {
    let whole = hash_file(path)?;
    let is_onnx = !tensorrt::is_serialized(path);
    let fail = |source| EngineError::ModelFile { path: path.to_owned(), source };
    let external =
        if is_onnx { onnx::external_files(&std::fs::read(path).map_err(fail)?) } else { Vec::new() };
    if external.is_empty() {
        return Ok(whole);
    }
    let mut sha256 = Sha256::new_with_prefix(&whole);
    for name in external {
        // a path outside the folder could name a device or a pipe, which may never end
        let below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&name).components().all(below) {
            let message = format!("it keeps weights outside its folder, in {name:?}");
            return Err(EngineError::Load { path: path.to_owned(), message });
        }
        sha256.update(hash_file(&path.with_file_name(name))?);
    }
    Ok(hex(&sha256.finalize()))
}

fn hash_file(path: &Path) -> Result<String, EngineError> {
    let fail = |source| EngineError::ModelFile { path: path.to_owned(), source };
    refuse_special(path).map_err(fail)?;
    let mut file = File::open(path).map_err(fail)?;
    let (mut sha256, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hex(&sha256.finalize())),
            read => sha256.update(&buffer[..read]),
        }
    }
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
/// - An engine that panics is not called again: its state is unknown. Every batch that it would get fails.
/// - The buffer of a batch goes back to the pool whatever becomes of the batch.
pub fn run(
    engine: &mut dyn Engine,
    batches: &Receiver<BatchJob>,
    used_buffers: &crossbeam_channel::Sender<Box<dyn BatchBuffer>>,
    meter: &StageMeter,
) {
    let mut panicked: Option<String> = None;
    while let Some((batch, filler)) = batches.recv() {
        let Batch { id, pixels, rows, entries, sealed_at } = batch;
        let (Some(batch_id), Some(pixels)) = (id, pixels) else {
            unreachable!("the batch stage sends batches with something to score")
        };
        let (taken_at, started_at) = (Instant::now(), SystemTime::now());
        let infer = || meter.busy(|| engine.infer(pixels.pixels(), rows));
        let inferred = match &panicked {
            Some(message) => Err(message.clone()),
            None => catch_unwind(AssertUnwindSafe(infer)).unwrap_or_else(|panic| {
                let message = panicked.insert(panic_message(panic.as_ref()).to_owned());
                Err(message.clone())
            }),
        };
        // a batch stage that has ended needs no buffer any more
        let _ = used_buffers.send(pixels);
        meter.add_items(1);
        let inference = match inferred {
            Ok(inference) => inference,
            Err(message) => {
                let failure = BatchFailure { batch_id, message, panicked: panicked.is_some() };
                filler.fill(Inferred { entries, outcome: Err(failure) });
                continue;
            }
        };
        tracing::trace!(batch_id, rows, compute_ms = inference.compute.as_secs_f64() * 1e3, "batch scored");
        let timing = timing(&inference, taken_at - sealed_at, started_at, false);
        let device = engine.device();
        let outcome = Outcome { batch_id: batch_id as i64, rows, scores: inference.scores, timing, device };
        filler.fill(Inferred { entries, outcome: Ok(Some(outcome)) });
    }
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
