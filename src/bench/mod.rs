//! `sluice bench`: measures how long a batch takes on this host, by setup and batch size.
//!
//! Input: a model, setups and batch sizes. Output: one row for each setup and batch size, measured in
//! two ways, or with the reason why the setup cannot run on this host.
//!
//! - *Original protocol*: random float32 values in pageable memory are copied to the device memory that
//!   the engine is bound to, run and copied out, each batch synchronously.
//! - *Own path*: random pixels as bytes in the engine's own batch buffer, through [`Engine::infer`], one
//!   batch after another; and on all lanes at once, if a setup has several.
//! - The first run of each engine is reported separately. What an engine prepares before it, such as
//!   TensorRT compiling kernels that are not cached, counts as loading.

mod table;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::table::markdown;
use crate::config::{
    Color, Devices, EngineKind, EngineSection, Filter, Fit, InputSection, Layout, OneOrMany, Orientation,
    PreprocessSection, Provider, Resize, StorageSection,
};
use crate::engine::cuda::ordinary_memory;
use crate::engine::{self, Engine, onnx};
use crate::error::{EngineError, Error};
use crate::items::{BatchBuffer, PixelsMut};
use crate::plan::{ModelPlan, OutputPlan, Plan, ScoresKept};

/// An engine, and the device that it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setup {
    /// TensorRT, by itself.
    Tensorrt,
    /// ONNX Runtime with the TensorRT-RTX plugin if it is found, else with classic TensorRT.
    OnnxruntimeTensorrt,
    /// ONNX Runtime with its CUDA provider.
    OnnxruntimeCuda,
    /// ONNX Runtime on the CPU.
    OnnxruntimeCpu,
}

impl Setup {
    /// Every setup, in the order of the table.
    pub const ALL: [Self; 4] =
        [Self::Tensorrt, Self::OnnxruntimeTensorrt, Self::OnnxruntimeCuda, Self::OnnxruntimeCpu];

    /// Its name on the command line and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tensorrt => "tensorrt",
            Self::OnnxruntimeTensorrt => "onnxruntime-tensorrt",
            Self::OnnxruntimeCuda => "onnxruntime-cuda",
            Self::OnnxruntimeCpu => "onnxruntime-cpu",
        }
    }

    /// Engine kind and provider of its plan.
    fn engine(self) -> (EngineKind, Provider) {
        match self {
            Self::Tensorrt => (EngineKind::Tensorrt, Provider::Cpu),
            Self::OnnxruntimeTensorrt if engine::find_tensorrt_plugin().is_ok() => {
                (EngineKind::Onnxruntime, Provider::TensorrtRtx)
            }
            Self::OnnxruntimeTensorrt => (EngineKind::Onnxruntime, Provider::Tensorrt),
            Self::OnnxruntimeCuda => (EngineKind::Onnxruntime, Provider::Cuda),
            Self::OnnxruntimeCpu => (EngineKind::Onnxruntime, Provider::Cpu),
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Setup {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|setup| setup.as_str() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("{name} is not a setup, expected one of {names}")
        })
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The model's ONNX file.
    pub onnx: PathBuf,
    /// What to measure, in this order.
    pub setups: Vec<Setup>,
    /// Rows of a batch, each measured by itself.
    pub batch_sizes: Vec<usize>,
    /// Timed runs of each measurement, unless they take longer than `patience`.
    pub iterations: usize,
    /// After this time a measurement ends with fewer runs, but at least three.
    pub patience: Duration,
    /// Ordinal of the GPU.
    pub device: usize,
    /// Lanes of the overlapped measurement.
    pub lanes: usize,
    /// Whether to compare all scores with those of ONNX Runtime on the CPU.
    pub check: bool,
}

/// One setup at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchRow {
    /// What ran the model.
    pub setup: Setup,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Its figures, or why there are none.
    #[serde(flatten)]
    pub outcome: BenchOutcome,
}

/// The outcome of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum BenchOutcome {
    /// It ran, with these figures.
    Measured(Box<Measured>),
    /// The setup cannot run on this host.
    Failed {
        /// Why it cannot run here.
        reason: String,
    },
}

/// The figures of one row. Times are of a whole batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The engine's description of itself.
    pub engine: String,
    /// Timed runs of the own path.
    pub iterations: usize,
    /// Time until the engine was ready, including its build.
    pub load_s: f64,
    /// Time of the first run after that.
    pub first_run_s: f64,
    /// `None` if the model's input is not float32.
    pub original: Option<Times>,
    /// Times of the engine as production calls it.
    pub own: Times,
    /// Steps of the median run of the own path, by the device's clock.
    pub h2d_ms: f64,
    /// Median time in the model. Milliseconds.
    pub compute_ms: f64,
    /// Median device to host copy. Milliseconds.
    pub d2h_ms: f64,
    /// Images/s with all lanes at once.
    pub overlapped_images_per_second: f64,
    /// Largest difference between a score and that of ONNX Runtime on the CPU, for the same pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_difference: Option<f32>,
    /// Rows whose best class differs from that of ONNX Runtime on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_top_class: Option<usize>,
}

/// Times of one batch, in one kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// The fastest batch. Seconds.
    pub min_s: f64,
    /// The median batch. Seconds.
    pub med_s: f64,
    /// The slowest batch. Seconds.
    pub max_s: f64,
    /// At the median time.
    pub images_per_second: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>, batch_size: usize) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |index: usize| seconds.get(index).copied().unwrap_or_default();
        let med_s = at(seconds.len() / 2);
        Self {
            min_s: at(0),
            med_s,
            max_s: at(seconds.len().saturating_sub(1)),
            images_per_second: batch_size as f64 / med_s.max(1e-9),
        }
    }
}

/// Measure every setup at every batch size; `done` is called with each row.
///
/// # Errors
/// If the model cannot be read. A setup that cannot run is a row with the reason.
pub fn run(options: &BenchOptions, mut done: impl FnMut(&BenchRow)) -> Result<Vec<BenchRow>, Error> {
    let model_sha256 = engine::hash_model(&options.onnx)?;
    let path = || options.onnx.clone();
    let input =
        onnx::read_input(&options.onnx).map_err(|message| EngineError::Load { path: path(), message })?;
    let preprocess =
        preprocess(&input.dims).map_err(|message| EngineError::Load { path: path(), message })?;
    let mut rows = Vec::new();
    for &batch_size in &options.batch_sizes {
        let mut expected = None;
        for &setup in &options.setups {
            let plan = plan(options, &preprocess, setup, batch_size);
            if options.check && expected.is_none() {
                expected = Some(reference(&plan));
            }
            let outcome = match measure(&plan, &model_sha256, options, expected.as_ref()) {
                Ok(measured) => BenchOutcome::Measured(Box::new(measured)),
                Err(reason) => BenchOutcome::Failed { reason },
            };
            let row = BenchRow { setup, batch_size, outcome };
            done(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The scores of ONNX Runtime on the CPU for the benchmark's pixels.
fn reference(plan: &Plan) -> Result<Vec<f32>, String> {
    let cpu = EngineSection { kind: EngineKind::Onnxruntime, provider: Provider::Cpu, ..plan.engine.clone() };
    let plan = Plan { engine: cpu, ..plan.clone() };
    let mut engines = engine::load(&plan, "").map_err(|error| error.to_string())?;
    engines[0].infer_floats(&tensor(&plan))
}

fn measure(
    plan: &Plan,
    model_sha256: &str,
    options: &BenchOptions,
    expected: Option<&Result<Vec<f32>, String>>,
) -> Result<Measured, String> {
    let start = Instant::now();
    let mut engines = engine::load(plan, model_sha256).map_err(|error| error.to_string())?;
    let load_s = start.elapsed().as_secs_f64();
    let batch_size = plan.engine.batch_size;
    let tensor = tensor(plan);
    let mut buffers = buffers(engines.as_mut_slice(), plan)?;

    let start = Instant::now();
    engines[0].infer(buffers[0].pixels(), batch_size)?;
    let first_run_s = start.elapsed().as_secs_f64();

    // the other lanes also compile and capture what they need before anything is timed
    for (worker, engine) in engines.iter_mut().enumerate() {
        engine::warm_up(engine.as_mut(), worker).map_err(|error| error.to_string())?;
    }
    let original = engines[0]
        .takes_floats()
        .then(|| timed(options, || engines[0].infer_floats(&tensor).map(drop)))
        .transpose()?;
    let mut steps = Vec::new();
    let mut scores = Vec::new();
    let own = timed(options, || {
        let inference = engines[0].infer(buffers[0].pixels(), batch_size)?;
        steps.push((inference.h2d, inference.compute, inference.d2h));
        scores = inference.scores;
        Ok(())
    })?;
    let mut steps = steps.split_off(steps.len() - own.len());
    steps.sort_by_key(|&(h2d, compute, d2h)| h2d + compute + d2h);
    let (h2d, compute, d2h) = steps.get(steps.len() / 2).copied().unwrap_or_default();
    let overlapped_images_per_second = overlapped(&mut engines, &mut buffers, own.len(), batch_size)?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (max_difference, other_top_class) = match expected {
        None => (None, None),
        Some(Ok(expected)) => {
            let (difference, other) = compare(&scores, expected, batch_size);
            (Some(difference), Some(other))
        }
        Some(Err(error)) => {
            tracing::warn!(error, "no scores to compare with: ONNX Runtime on the CPU failed");
            (None, None)
        }
    };
    Ok(Measured {
        engine: engines[0].describe(),
        iterations: own.len(),
        load_s,
        first_run_s,
        original: original.map(|seconds| Times::of(seconds, batch_size)),
        own: Times::of(own, batch_size),
        h2d_ms: ms(h2d),
        compute_ms: ms(compute),
        d2h_ms: ms(d2h),
        overlapped_images_per_second,
        max_difference,
        other_top_class,
    })
}

/// A buffer with the benchmark's pixels for each engine.
fn buffers(engines: &mut [Box<dyn Engine>], plan: &Plan) -> Result<Vec<Box<dyn BatchBuffer>>, String> {
    let mut buffers = Vec::new();
    for engine in engines {
        let mut buffer = engine.buffers(1).map_err(|error| error.to_string())?;
        for buffer in &mut buffer {
            match buffer.pixels_mut() {
                PixelsMut::U8(bytes) => bytes.iter_mut().zip(pixels()).for_each(|(to, from)| *to = from),
                PixelsMut::F32(values) => values.copy_from_slice(&tensor(plan)),
            }
        }
        buffers.append(&mut buffer);
    }
    Ok(buffers)
}

/// Minimum number of timed runs, for a meaningful median.
const FEWEST_RUNS: usize = 3;

/// Seconds of each timed run, after a tenth as many untimed runs.
fn timed(options: &BenchOptions, mut run: impl FnMut() -> Result<(), String>) -> Result<Vec<f64>, String> {
    let start = Instant::now();
    for _ in 0..options.iterations / 10 {
        run()?;
        if start.elapsed() > options.patience / 10 {
            break;
        }
    }
    let mut seconds = Vec::with_capacity(options.iterations);
    let begun = Instant::now();
    while seconds.len() < options.iterations
        && (seconds.len() < FEWEST_RUNS || begun.elapsed() < options.patience)
    {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Images/s of all engines at once, each on its own thread.
fn overlapped(
    engines: &mut [Box<dyn Engine>],
    buffers: &mut [Box<dyn BatchBuffer>],
    iterations: usize,
    batch_size: usize,
) -> Result<f64, String> {
    let runs = iterations * engines.len();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = engines
            .iter_mut()
            .zip(buffers)
            .map(|(engine, buffer)| {
                scope.spawn(move || {
                    (0..iterations).try_for_each(|_| engine.infer(buffer.pixels(), batch_size).map(drop))
                })
            })
            .collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().unwrap_or_else(|_| Err("a lane panicked".to_owned())))
    })?;
    Ok((runs * batch_size) as f64 / start.elapsed().as_secs_f64())
}

/// Largest difference between scores at the same index; infinite if one of them is NaN, or if the
/// lengths differ.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differ =
        |(a, b): (&f32, &f32)| Some((a - b).abs()).filter(|by| !by.is_nan()).unwrap_or(f32::INFINITY);
    if a.len() == b.len() { a.iter().zip(b).map(differ).fold(0.0, f32::max) } else { f32::INFINITY }
}

/// Largest difference, and the number of rows whose best classes differ.
fn compare(scores: &[f32], expected: &[f32], rows: usize) -> (f32, usize) {
    if scores.len() != expected.len() || rows == 0 {
        return (f32::INFINITY, rows);
    }
    let difference = largest_difference(scores, expected);
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let classes = scores.len() / rows;
    let pairs = scores.chunks(classes).zip(expected.chunks(classes));
    (difference, pairs.filter(|(a, b)| best(a) != best(b)).count())
}

/// Scales pixels to 0..=1, the usual range of a model's input.
const SCALE: f32 = 1.0 / 255.0;

fn preprocess(dims: &[i64]) -> Result<PreprocessSection, String> {
    let (layout, height, width) = match dims[..] {
        [_, height, width, 3] => (Layout::Nhwc, height, width),
        [_, 3, height, width] => (Layout::Nchw, height, width),
        _ => return Err(format!("its input has dimensions {dims:?}, expected batches of images")),
    };
    let side = |length: i64| {
        u32::try_from(length).ok().filter(|&side| side > 0).ok_or("the image size of its input is dynamic")
    };
    let (width, height) = (side(width)?, side(height)?);
    let resize = Resize { width, height, fit: Fit::Stretch, filter: Filter::Bilinear };
    Ok(PreprocessSection {
        resize,
        layout,
        color: Color::Rgb,
        scale: SCALE,
        orientation: Orientation::Ignore,
        ..PreprocessSection::smallest()
    })
}

fn plan(options: &BenchOptions, preprocess: &PreprocessSection, setup: Setup, batch_size: usize) -> Plan {
    let (kind, provider) = setup.engine();
    Plan {
        name: "bench".to_owned(),
        inputs: Vec::new(),
        input: InputSection { uri: OneOrMany::Many(Vec::new()), ..InputSection::default() },
        preprocess: preprocess.clone(),
        model: ModelPlan { path: options.onnx.clone(), labels: None },
        engine: EngineSection {
            kind,
            provider,
            batch_size,
            devices: Devices::List(vec![options.device]),
            lanes: options.lanes,
            ..EngineSection::default()
        },
        output: OutputPlan {
            uri: String::new(),
            scores: ScoresKept::All,
            max_error_rate: 1.0,
            max_damaged_shards: 0,
            checkpoint_seconds: 30.0,
        },
        storage: StorageSection::default(),
    }
}

/// Pseudo-random pixels, the same in every run: Marsaglia's 32-bit xorshift.
fn pixels() -> impl Iterator<Item = u8> {
    let mut state = 2_463_534_242_u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    })
}

/// The same pixels as a tensor in the plan's layout.
fn tensor(plan: &Plan) -> Vec<f32> {
    let row = plan.preprocess.row_elements();
    let elements = plan.engine.batch_size * row;
    let mut tensor = ordinary_memory(elements);
    let rgb: Vec<f32> = pixels().take(elements).map(|pixel| f32::from(pixel) * SCALE).collect();
    match plan.preprocess.layout {
        Layout::Nhwc => tensor.extend(rgb),
        Layout::Nchw => {
            for image in rgb.chunks(row) {
                for channel in 0..3 {
                    tensor.extend(image.iter().skip(channel).step_by(3));
                }
            }
        }
    }
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimum_median_and_maximum_are_those_of_the_sorted_times() {
        let times = Times::of(vec![0.3, 0.1, 0.2], 10);
        assert_eq!((times.min_s, times.med_s, times.max_s), (0.1, 0.2, 0.3));
        assert!((times.images_per_second - 50.0).abs() < 1e-9);
    }

    #[test]
    fn the_layout_is_that_of_the_models_input() {
        let found = preprocess(&[-1, 384, 380, 3]).expect("an image");
        assert_eq!((found.layout, found.resize.height, found.resize.width), (Layout::Nhwc, 384, 380));
        assert_eq!(preprocess(&[1, 3, 8, 9]).expect("an image").layout, Layout::Nchw);
        assert!(preprocess(&[-1, 10]).is_err() && preprocess(&[-1, -1, -1, 3]).is_err());
    }

    #[test]
    fn scores_are_compared_row_by_row() {
        assert_eq!(compare(&[0.1, 0.9, 0.6, 0.4], &[0.1, 0.9, 0.4, 0.6], 2), (0.20000002, 1));
        assert_eq!(compare(&[0.1], &[0.1, 0.2], 1).1, 1, "a different number of scores never agrees");
        assert_eq!(compare(&[f32::NAN, 0.1], &[0.3, 0.1], 1).0, f32::INFINITY);
    }

    #[test]
    fn a_slow_setup_is_run_less_often_but_at_least_three_times() {
        let options = |iterations, patience| BenchOptions {
            onnx: PathBuf::new(),
            setups: Vec::new(),
            batch_sizes: Vec::new(),
            iterations,
            patience,
            device: 0,
            lanes: 1,
            check: false,
        };
        let runs =
            |iterations, patience| timed(&options(iterations, patience), || Ok(())).expect("runs").len();
        assert_eq!(runs(50, Duration::MAX), 50);
        assert_eq!(runs(50, Duration::ZERO), FEWEST_RUNS);
        assert_eq!(runs(2, Duration::ZERO), 2);
    }
}
