//! `sluice bench`: measures how long a batch takes on this host, by setup and batch size.
//!
//! Input: a model, setups and batch sizes. Output: one row for each setup and batch size, measured in
//! two ways, or with the reason why the setup cannot run on this host.
//!
//! - *Original protocol*: random float32 values in pageable memory are copied to the device memory that
//!   the engine is bound to, run and copied out, each batch synchronously.
//! - *Own path*: random pixels as bytes in the engine's own batch buffer, through [`engine::Engine::infer`], one
//!   batch after another; and on all lanes at once, if a setup has several.
//! - The first run of each engine is reported separately. What an engine prepares before it, such as
//!   TensorRT compiling kernels that are not cached, counts as loading.

mod decode;
mod input;
mod measure;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

pub use self::decode::{DecodeOptions, DecodeReport, DecodeRow, Way, decode_markdown, measure_decoding};
pub use self::measure::{largest_difference, run};
pub use self::table::markdown;
use crate::config::{EngineKind, Provider};
use crate::engine;

/// An engine, and the device that it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setup {
    /// TensorRT without ONNX Runtime.
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
    /// Setups to measure, in this order.
    pub setups: Vec<Setup>,
    /// Batch sizes, each measured separately.
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
    /// Times by the original protocol; `None` if the model's input is not float32.
    pub original: Option<Times>,
    /// Times of the engine as production calls it.
    pub own: Times,
    /// Host to device copy in the median run of the own path, by the device's clock. Milliseconds.
    pub h2d_ms: f64,
    /// Time in the model in that run. Milliseconds.
    pub compute_ms: f64,
    /// Device to host copy in that run. Milliseconds.
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
    /// Images/s at the median time.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimum_median_and_maximum_are_those_of_the_sorted_times() {
        let times = Times::of(vec![0.3, 0.1, 0.2], 10);
        assert_eq!((times.min_s, times.med_s, times.max_s), (0.1, 0.2, 0.3));
        assert!((times.images_per_second - 50.0).abs() < 1e-9);
    }
}
