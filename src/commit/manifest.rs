//! `_manifest.json`, read back, and `_SUCCESS`, which vouches for it.

use serde::Deserialize;

use super::names::MANIFEST;
use super::output::Output;
use crate::error::SinkError;
use crate::report::{Outcome, PartReport, Tally};
use crate::skipped::Skipped;

/// What is read of a manifest.
#[derive(Debug, Deserialize)]
pub struct StoredManifest {
    pub run_id: String,
    pub finished_at: String,
    pub plan_sha256: String,
    pub model_sha256: String,
    pub limit: Option<u64>,
    pub summary: StoredSummary,
    pub parts: Vec<PartReport>,
    pub batches: Vec<PartReport>,
    pub record: PartReport,
}

/// What is read of a manifest's summary.
#[derive(Debug, Deserialize)]
pub struct StoredSummary {
    pub outcome: Outcome,
    pub rows: u64,
    pub rows_by_status: Tally,
    #[serde(default)]
    pub shards: u64,
    #[serde(default)]
    pub damaged_shards: u64,
    #[serde(default)]
    pub empty_shards: u64,
    #[serde(default)]
    pub skipped: Skipped,
    /// Absent in manifests of 27 November 2026 and before.
    #[serde(default)]
    pub skipped_by_listing: Option<Skipped>,
}

impl StoredManifest {
    /// The manifest of an output that has one.
    ///
    /// # Errors
    /// Those of the store, and [`SinkError::Uri`] if it cannot be parsed.
    pub fn read(output: &Output) -> Result<Self, SinkError> {
        serde_json::from_slice(&output.read(MANIFEST)?).map_err(|error| SinkError::Uri {
            uri: output.uri_of(MANIFEST),
            message: format!("cannot be read: {error}"),
        })
    }
}

/// The content of `_SUCCESS`.
pub(super) fn success_content(manifest_sha256: &str) -> Vec<u8> {
    format!("{manifest_sha256}\n").into_bytes()
}
