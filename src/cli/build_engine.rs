//! `sluice build-engine`: a TensorRT engine from ONNX, with trtexec's options.

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
    /// File of the engine; its passport is written beside it, with .json appended to the name.
    #[arg(long = "saveEngine", value_name = "FILE")]
    save_engine: PathBuf,
    /// Smallest shape that the engine accepts, such as input_1:1x384x384x3.
    #[arg(long = "minShapes", value_name = "NAME:DIMS")]
    min_shapes: Option<String>,
    /// Shape that the engine is optimised for.
    #[arg(long = "optShapes", value_name = "NAME:DIMS")]
    opt_shapes: Option<String>,
    /// Largest shape that the engine accepts.
    #[arg(long = "maxShapes", value_name = "NAME:DIMS")]
    max_shapes: Option<String>,
    /// All three at once. `run` needs an engine whose shapes include its batch_size.
    #[arg(long, value_name = "NAME:DIMS")]
    shapes: Option<String>,
    /// Workspace of the builder, such as workspace:512M; MiB without a unit.
    #[arg(long = "memPoolSize", value_name = "POOL:SIZE")]
    mem_pool_size: Option<String>,
    /// Compute float32 at full precision, without rounding to TF32.
    #[arg(long = "noTF32")]
    no_tf32: bool,
    /// GPU to build on.
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    device: usize,
    /// Log the builder's messages.
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
