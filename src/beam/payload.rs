//! What a worker must know to list, score and finish: the payload of each of our functions, the same in all of a job.
//!
//! The pipeline file travels as text, so that a worker needs no file but the model and its labels. Those are used from
//! their paths if they exist there with the right content, and are otherwise fetched from the job's artifacts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Overrides, PipelineFile};
use crate::error::ConfigError;
use crate::plan::Plan;

/// The version of the payload's format.
pub const VERSION: u32 = 1;

/// The payload of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// [`VERSION`].
    pub version: u32,
    /// The path of the pipeline file where the job was submitted, for messages. The paths of its files are absolute, in
    /// the file or in the overrides.
    pub path: PathBuf,
    /// The text of the pipeline file.
    pub text: String,
    /// What the submitter overrides in it.
    pub overrides: Overrides,
    /// SHA-256 of the model, with its external weights, in hexadecimal.
    pub model_sha256: String,
    /// Files that the job's artifacts contain.
    pub staged: Vec<StagedFile>,
}

/// A file of the plan that the job's artifacts contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedFile {
    /// The path in the plan, on the machine that submitted the job.
    pub path: PathBuf,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// The name under which the artifact is staged.
    pub name: String,
}

impl Payload {
    /// Decode what [`Payload::encode`] has made.
    ///
    /// # Errors
    /// If it is not a payload, or of another version of sluice.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let is_no_payload =
            |error: serde_json::Error| format!("its payload is not a payload of sluice: {error}");
        let Version { version } = serde_json::from_slice(bytes).map_err(is_no_payload)?;
        if version != VERSION {
            return Err(format!(
                "its payload has version {version}, and this worker knows version {VERSION}: submit the job with the \
                 same sluice as the workers"
            ));
        }
        serde_json::from_slice(bytes).map_err(is_no_payload)
    }

    /// JSON, the same for equal payloads.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a payload is plain data")
    }

    /// The pipeline file, with the paths of the machine that submitted the job.
    ///
    /// # Errors
    /// If the file or the overrides are invalid.
    pub fn file(&self) -> Result<PipelineFile, ConfigError> {
        PipelineFile::parse(&self.text, &self.path, &self.overrides)
    }

    /// The plan without inputs, with the paths of the machine that submitted the job. The labels are read, so they must
    /// exist.
    ///
    /// # Errors
    /// If the file or the overrides are invalid, or the labels cannot be read.
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        Plan::without_inputs(self.file()?)
    }
}
