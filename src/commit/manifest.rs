//! Reading `_manifest.json` back, and the content of `_SUCCESS`, which is its hash.

use serde::Deserialize;

use super::names::MANIFEST;
use super::output::Output;
use crate::error::SinkError;
use crate::report::{Outcome, PartReport, Tally};
use crate::skipped::Skipped;

/// A manifest that was read back. Fields that nothing reads are left out.
#[derive(Debug, Deserialize)]
pub struct StoredManifest {
    /// Id of the run.
    pub run_id: String,
    /// When the run was finished, in UTC (RFC 3339).
    pub finished_at: String,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// SHA-256 of the model, in hexadecimal.
    pub model_sha256: String,
    /// Records that the run was limited to; `None` without a limit.
    pub limit: Option<u64>,
    /// Totals of the run.
    pub summary: StoredSummary,
    /// The parts, in the order of their shards.
    pub parts: Vec<PartReport>,
    /// Files of the batches table.
    pub batches: Vec<PartReport>,
    /// Size and hash of `_run.json`.
    pub record: PartReport,
}

/// The summary in a manifest that was read back.
#[derive(Debug, Deserialize)]
pub struct StoredSummary {
    /// Whether the run succeeded.
    pub outcome: Outcome,
    /// Rows of all parts.
    pub rows: u64,
    /// Rows of all parts by status.
    pub rows_by_status: Tally,
    /// Shards of the run.
    #[serde(default)]
    pub shards: u64,
    /// Shards that ended early.
    #[serde(default)]
    pub damaged_shards: u64,
    /// Shards without a record.
    #[serde(default)]
    pub empty_shards: u64,
    /// Entries that are not records, by kind.
    #[serde(default)]
    pub skipped: Skipped,
    /// Objects that the listing skipped. Some manifests of version 0.1.0 lack it.
    #[serde(default)]
    pub skipped_by_listing: Option<Skipped>,
}

impl StoredManifest {
    /// Whether it lists the part or batches part `name`.
    pub(super) fn lists(&self, name: &str) -> bool {
        self.parts.iter().chain(&self.batches).any(|part| part.path == name)
    }

    /// Read the manifest of an output.
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
