//! The run and the attempt that made an output's files.

/// What identifies a run and an attempt in rows and footers.
#[derive(Debug, Clone)]
pub struct RunIdentity {
    /// Id of the run.
    pub run_id: String,
    /// Number of this worker among those that share the output.
    pub shard_index: u32,
    /// Number of this attempt at the run, from 0, over all workers.
    pub attempt: u32,
    /// SHA-256 of the model, in hexadecimal.
    pub model_sha256: String,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// Class names in output order, as a JSON array.
    pub labels: Option<String>,
}

impl RunIdentity {
    /// The `worker` column.
    pub(super) fn worker(&self) -> String {
        format!("{:06}", self.shard_index)
    }
}
