//! `sluice extract OUT KEY`: the image of a row, read from its shard.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use sluice::error::{ConfigError, Error, SinkError};
use sluice::extract::extract;
use sluice::store::Stores;

use super::print::print_as_is;
use super::storage::storage_runtime;

/// Arguments of `sluice extract`.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// Output folder of a run.
    out: String,
    /// Key of a row, SHARD#RECORD_INDEX, from the column key or `sluice show --failed`.
    #[arg(allow_hyphen_values = true)] // keys of a manifest from standard input begin with a hyphen
    key: String,
    /// Write the image to this file; by default, or with -, to standard output.
    #[arg(short = 'o', long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Find the image and write its bytes unchanged.
pub fn run(args: &ExtractArgs) -> anyhow::Result<ExitCode> {
    let file = args.file.as_deref().filter(|file| *file != Path::new("-"));
    if file.is_none() && args.file.is_none() && std::io::stdout().is_terminal() {
        let message =
            "standard output is a terminal, which cannot show images; name a file with -o".to_owned();
        return Err(Error::from(ConfigError::Argument { argument: "-o", message }).into());
    }
    let runtime = storage_runtime()?;
    let found = extract(&Stores::new(runtime.handle().clone()), args.out.trim_end_matches('/'), &args.key)?;
    if !found.is_same_version {
        tracing::warn!(
            key = args.key,
            image_id = found.image_id,
            "the store reports no version: only the length of the image shows that it is the one that was scored"
        );
    }
    match file {
        Some(file) => std::fs::write(file, &found.bytes).map_err(|error| {
            let uri = file.display().to_string();
            Error::from(SinkError::Uri { uri, message: error.to_string() })
        })?,
        None => print_as_is(&found.bytes)?,
    }
    Ok(ExitCode::SUCCESS)
}
