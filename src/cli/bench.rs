//! `sluice bench`: latency and rate of every engine on this host, as a table.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sluice::bench::{BenchOptions, BenchOutcome, Setup, markdown, run as measure};

use super::print::print;

/// Arguments of `sluice bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model: ONNX with one image input.
    #[arg(long, value_name = "FILE")]
    onnx: PathBuf,
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

/// Measure, and print the table.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let options = BenchOptions {
        onnx: args.onnx.clone(),
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
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
