//! `sluice check`: everything that can be checked without running.

use std::process::ExitCode;

use sluice::error::Error;
use sluice::job::{Checked, JobOptions};
use sluice::source::{ReadOptions, check_fit, list_shards};

use super::pipeline_args::PipelineArgs;
use super::print::print;
use super::storage::storage_runtime;

/// Check the pipeline and print the resolved plan as JSON.
pub fn run(args: &PipelineArgs) -> anyhow::Result<ExitCode> {
    let plan = args.load().map_err(Error::from)?;
    let runtime = storage_runtime()?;
    let checked = Checked::new(plan, runtime.handle(), &JobOptions::default())?;
    let first = list_shards(&checked.stores, &checked.plan.inputs, &checked.plan.input)
        .map_err(Error::from)?
        .next()
        .transpose()
        .map_err(Error::from)?;
    if let Some(shard) = &first {
        let options = ReadOptions::from(&checked.plan.input);
        check_fit(&checked.stores, shard, &options).map_err(Error::from)?;
    }
    let resolved = serde_json::json!({
        "plan": checked.plan,
        "plan_sha256": checked.plan_sha256,
        "model_sha256": checked.model_sha256,
        "classes": checked.classes,
        "first_shard": first.map(|shard| serde_json::json!({ "name": shard.name, "format": shard.format })),
        "queues": checked.bounds,
        "memory_bound_bytes": checked.memory,
    });
    print(&serde_json::to_string_pretty(&resolved)?)?;
    Ok(ExitCode::SUCCESS)
}
