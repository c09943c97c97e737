//! What a run leaves behind: the report of its end, which the manifest holds together with the plan.

use serde::Serialize;

use super::attempts::AttemptNote;
use crate::plan::Plan;
use crate::report::{PartReport, Summary};

/// The end of a run, as its manifest says it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    pub schema_version: String,
    pub sluice_version: String,
    pub name: String,
    pub run_id: String,
    /// When the first attempt began. RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    pub plan_sha256: String,
    pub model_sha256: String,
    /// Records the run was limited to, if it was.
    pub limit: Option<u64>,
    /// What scored the input: one for each engine of the last attempt.
    pub engines: Vec<String>,
    /// Rows are those of the whole run; times are those of the last attempt.
    pub summary: Summary,
    /// Predictions parts in input order.
    pub parts: Vec<PartReport>,
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
