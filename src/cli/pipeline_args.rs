//! Arguments that name a pipeline: its file, and what the command line overrides in it.

#[cfg(feature = "beam")]
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use sluice::config::{Overrides, PipelineFile};
use sluice::error::ConfigError;
use sluice::plan::Plan;

/// A pipeline file, and what the command line overrides in it.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// Pipeline file (TOML).
    file: PathBuf,
    /// Score this instead of input.uri: an object, a folder or a glob; may be repeated.
    #[arg(long, value_name = "URI")]
    input: Vec<String>,
    /// Write here instead of output.uri.
    #[arg(long, value_name = "URI")]
    output: Option<String>,
    /// Override one key of the file; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl PipelineArgs {
    /// Read the file, apply the overrides and check the plan.
    pub fn load(&self) -> Result<Plan, ConfigError> {
        Plan::check(PipelineFile::load(&self.file, &self.overrides())?)
    }

    /// The pipeline file.
    #[cfg(feature = "beam")]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is overridden in it.
    pub fn overrides(&self) -> Overrides {
        Overrides { inputs: self.input.clone(), output: self.output.clone(), set: self.set.clone() }
    }
}
