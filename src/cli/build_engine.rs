//! `sluice build-engine`: ONNX to a TensorRT engine, in trtexec's words.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sluice::engine::tensorrt::{ShapeArguments, build_file, workspace_bytes};
use sluice::error::{ConfigError, Error};

use super::print::print;

/// Arguments of `sluice build-engine`.
#[derive(Debug, Args)]
pub struct BuildEngineArgs {
    /// Model: ONNX with one input.
    #[arg(long, value_name = "FILE")]
    onnx: PathBuf,
    /// Where the engine goes; its passport lies beside it, with .json behind the name.
    #[arg(long = "saveEngine", value_name = "FILE")]
    save_engine: PathBuf,
    /// Smallest shape the engine takes, such as input_1:1x384x384x3.
    #[arg(long = "minShapes", value_name = "NAME:DIMS")]
    min_shapes: Option<String>,
    /// Shape the engine is fastest at.
    #[arg(long = "optShapes", value_name = "NAME:DIMS")]
    opt_shapes: Option<String>,
    /// Largest shape the engine takes.
    #[arg(long = "maxShapes", value_name = "NAME:DIMS")]
    max_shapes: Option<String>,
    /// All three at once. `run` wants an engine whose shapes hold its batch_size.
    #[arg(long, value_name = "NAME:DIMS")]
    shapes: Option<String>,
    /// Memory for tactics, such as workspace:512M; MiB without a unit.
    #[arg(long = "memPoolSize", value_name = "POOL:SIZE")]
    mem_pool_size: Option<String>,
    /// Keep float32 at full precision: no rounding to TF32 on the way into tensor cores.
    #[arg(long = "noTF32")]
    no_tf32: bool,
    /// GPU to build on.
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    device: usize,
    /// Log what the builder says.
    #[arg(long)]
    pub verbose: bool,
}

/// Build, and print the passport.
pub fn run(args: &BuildEngineArgs) -> anyhow::Result<ExitCode> {
    let workspace_bytes = args
        .mem_pool_size
        .as_deref()
        .map(workspace_bytes)
        .transpose()
        .map_err(|message| Error::from(ConfigError::Argument { argument: "--memPoolSize", message }))?;
    let shapes = ShapeArguments {
        all: args.shapes.clone(),
        min: args.min_shapes.clone(),
        opt: args.opt_shapes.clone(),
        max: args.max_shapes.clone(),
    };
    let (onnx, engine) = (&args.onnx, &args.save_engine);
    let passport = build_file(onnx, engine, args.device, &shapes, !args.no_tf32, workspace_bytes)?;
    print(&serde_json::to_string_pretty(&passport)?)?;
    Ok(ExitCode::SUCCESS)
}
