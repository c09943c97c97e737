//! The attempt that writes an output's files.

use crate::commit::{Output, check_current, is_decided};
use crate::error::SinkError;

/// Where an attempt writes, and what identifies it in rows and footers.
#[derive(Debug)]
pub struct Attempt {
    pub output: Output,
    pub run_id: String,
    /// Number of this worker among those that share the output.
    pub worker: u32,
    /// Number of this attempt at the run, from 0, over all workers.
    pub number: u32,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// Class names in output order, as a JSON array.
    pub labels: Option<String>,
}

impl Attempt {
    /// Whether the parts of the run are decided: nothing that is stored later belongs to it.
    pub fn is_decided(&self) -> Result<bool, SinkError> {
        is_decided(&self.output, &self.run_id)
    }

    /// Check that the output still belongs to the run.
    pub fn check_current(&self) -> Result<(), SinkError> {
        check_current(&self.output, &self.run_id)
    }
}

#[cfg(test)]
impl Attempt {
    /// The first attempt at a run that has begun, with an output in memory.
    pub fn in_memory(runtime: &tokio::runtime::Runtime) -> Self {
        let (store, root) = (std::sync::Arc::new(object_store::memory::InMemory::new()), "out".into());
        let output = Output::new(store, root, "out".to_owned(), None, runtime.handle().clone());
        let (run_id, plan_sha256) = ("run".to_owned(), String::new());
        let record = serde_json::json!({
            "schema_version": "", "sluice_version": "", "run_id": run_id, "started_at": "",
            "plan_sha256": plan_sha256, "limit": null, "determinants": {},
        });
        output.create(crate::commit::RUN, crate::commit::json(&record)).expect("created");
        Self { output, run_id, worker: 0, number: 0, plan_sha256, labels: None }
    }

    /// Publish a manifest, as another attempt does that finishes the run.
    pub fn finish_elsewhere(&self) {
        crate::commit::testing::seal(&self.output, &self.run_id);
        assert!(self.is_decided().expect("readable"));
    }
}
