//! The report of a finished run. The manifest is this report and the plan.

use serde::Serialize;

use super::attempts::AttemptNote;
use crate::plan::Plan;
use crate::report::{PartReport, Summary};

/// How a run ended. The manifest has the same fields.
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
    /// The engines of the last attempt.
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

/// The manifest: the report, and the plan of the run.
#[derive(Serialize)]
pub(super) struct Manifest<'a> {
    #[serde(flatten)]
    pub report: &'a RunReport,
    pub plan: &'a Plan,
}
