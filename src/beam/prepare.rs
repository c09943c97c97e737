//! From the text of a pipeline file to the payload of its workers.

use std::path::PathBuf;

use super::absolute::absolute_overrides;
use super::payload::{Payload, VERSION};
use super::staged::staged_files;
use crate::config::{Overrides, PipelineFile};
use crate::engine::hash_model;
use crate::error::{ConfigError, Error};
use crate::plan::Plan;

/// The payload of the pipeline file `path` with this text, for workers in any folder, and the plan that `check` makes.
/// Relative paths are made absolute: those of the model against the folder of `path`, others against the current
/// folder. Blocks, because the model is hashed.
///
/// # Errors
/// If the file or the overrides are invalid, or the model or the labels cannot be read.
pub fn prepare(
    path: PathBuf,
    text: String,
    overrides: &Overrides,
    check: impl FnOnce(PipelineFile) -> Result<Plan, ConfigError>,
) -> Result<(Payload, Plan), Error> {
    let file = PipelineFile::parse(&text, &path, overrides)?;
    let overrides = absolute_overrides(&file, overrides)?;
    let file = PipelineFile::parse(&text, &path, &overrides)?;
    let plan = check(file.clone())?;
    let model_sha256 = hash_model(&plan.model.path)?;
    let staged = staged_files(&file)?;
    Ok((Payload { version: VERSION, path, text, overrides, model_sha256, staged }, plan))
}
