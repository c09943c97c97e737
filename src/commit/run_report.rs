//! What a run leaves behind: the report of its end, which the manifest holds together with the plan.

use serde::Serialize;

use super::attempts::AttemptNote;
use crate::plan::Plan;
use crate::report::{PartReport, Summary};

/// The end of a run, as its manifest says it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Version of the columns of the output.
    pub schema_version: String,
    /// Version of sluice that wrote it.
    pub sluice_version: String,
    /// Name of the pipeline.
    pub name: String,
    /// Id of the run.
    pub run_id: String,
    /// When the first attempt began. RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// SHA-256 of the model, in hexadecimal.
    pub model_sha256: String,
    /// Records the run was limited to, if it was.
    pub limit: Option<u64>,
    /// What scored the input: one for each engine of the last attempt.
    pub engines: Vec<String>,
    /// Rows are those of the whole run; times are those of the last attempt.
    pub summary: Summary,
    /// Predictions parts in input order.
    pub parts: Vec<PartReport>,
    /// Files of the batches table.
    pub batches: Vec<PartReport>,
    /// The record of the run.
    pub record: PartReport,
    /// Attempts at the run by all workers, killed ones included.
    pub attempts: Vec<AttemptNote>,
}

/// The manifest: the report and the plan that led to it.
#[derive(Serialize)]
pub(super) struct Manifest<'a> {
    #[serde(flatten)]
    pub report: &'a RunReport,
    pub plan: &'a Plan,
}
