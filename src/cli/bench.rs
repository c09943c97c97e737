//! `sluice bench`: latency and rate of every engine on this host, or of decoding, as a table.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use serde::Serialize;
use sluice::bench::{
    BenchOptions, BenchOutcome, DecodeOptions, Setup, decode_markdown, markdown, measure_decoding,
    run as measure,
};
use sluice::config::{Overrides, PipelineFile};
use sluice::error::Error;

use super::print::print;

/// Arguments of `sluice bench`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("measured").required(true).args(["onnx", "decode"])))]
pub struct BenchArgs {
    /// Model: ONNX with one image input.
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,
    /// Measure how fast this host decodes the images of a folder, instead of engines.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["setups", "batch", "iterations", "device", "lanes", "check"])]
    decode: Option<PathBuf>,
    /// With --decode: preprocess as this pipeline file says, instead of resizing to 384×384.
    #[arg(long, value_name = "FILE", conflicts_with = "onnx")]
    pipeline: Option<PathBuf>,
    /// With --decode: threads that decode; by default one for each core.
    #[arg(long, value_name = "N", conflicts_with = "onnx", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// What to measure: tensorrt, onnxruntime-tensorrt, onnxruntime-cuda, onnxruntime-cpu.
    #[arg(long, value_name = "SETUP", value_delimiter = ',', default_values_t = Setup::ALL)]
    setups: Vec<Setup>,
    /// Batch sizes.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 32], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Vec<u32>,
    /// Timed runs for each setup, batch size and method; by default 100, or as many as fit in 20 s.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,
    /// GPU to run on.
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    device: usize,
    /// Batches on the GPU at once, for the overlapped column.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    lanes: u32,
    /// Compare all scores with those of ONNX Runtime on the CPU.
    #[arg(long)]
    check: bool,
    /// Also write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Preprocessing without a pipeline file.
const PREPROCESS: &str = "resize = { width = 384, height = 384 }";

/// How long each way to decode has its turn.
const TURN: Duration = Duration::from_secs(2);

/// Measure, and print the table.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match (&args.decode, &args.onnx) {
        (Some(folder), _) => run_decoding(args, folder),
        (None, Some(onnx)) => run_engines(args, onnx),
        (None, None) => unreachable!("one of them is required"),
    }
}

fn run_decoding(args: &BenchArgs, folder: &Path) -> anyhow::Result<ExitCode> {
    let preprocess = match &args.pipeline {
        Some(file) => PipelineFile::load(file, &Overrides::default()).map_err(Error::from)?.preprocess,
        None => toml::from_str(PREPROCESS)?,
    };
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.map_or_else(cores, |threads| threads as usize);
    let options = DecodeOptions { folder: folder.to_owned(), preprocess, threads, turn: TURN };
    let report = measure_decoding(&options)?;
    print(&decode_markdown(&report, folder))?;
    write_json(args, &report)
}

fn write_json(args: &BenchArgs, figures: &impl Serialize) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(figures)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_engines(args: &BenchArgs, onnx: &Path) -> anyhow::Result<ExitCode> {
    let options = BenchOptions {
        onnx: onnx.to_owned(),
        setups: args.setups.clone(),
        batch_sizes: args.batch.iter().map(|&rows| rows as usize).collect(),
        iterations: args.iterations.unwrap_or(100) as usize,
        patience: if args.iterations.is_some() { Duration::MAX } else { Duration::from_secs(20) },
        device: args.device,
        lanes: args.lanes as usize,
        check: args.check,
    };
    let rows = measure(&options, |row| match &row.outcome {
        BenchOutcome::Measured(measured) => tracing::info!(
            setup = row.setup.as_str(),
            batch_size = row.batch_size,
            engine = measured.engine,
            "measured"
        ),
        BenchOutcome::Failed { reason } => {
            tracing::warn!(
                setup = row.setup.as_str(),
                batch_size = row.batch_size,
                reason,
                "cannot run here"
            );
        }
    })?;
    print(&markdown(&rows, &options.onnx))?;
    write_json(args, &rows)
}
