//! The summary of a run, as text or as one line of JSON.

use serde_json::{Value, json};
use sluice::report::{Outcome, Summary};
use sluice::skipped::Skipped;

use super::logging::LogFormat;
use super::print::{StandardOutput, print, print_json_line};

/// The summary of a run that wrote to `output`.
pub fn text(summary: &Summary, output: &str) -> String {
    let mut lines = lines(summary);
    let output = output.trim_end_matches('/');
    lines.push(format!("output     {output}/predictions/*.parquet, {output}/batches/*.parquet"));
    lines.join("\n")
}

/// The same as one object with the field names of the log: the outcome in `message`, and every figure as a number.
pub fn object(summary: &Summary, run_id: &str, finished_at: &str, output: &str) -> Value {
    let mut object = json!(summary);
    object["time"] = finished_at.into();
    object["severity"] = match summary.outcome {
        Outcome::Succeeded | Outcome::ShareDone => "INFO",
        Outcome::Interrupted => "WARNING",
        Outcome::TooManyErrors => "ERROR",
    }
    .into();
    object["message"] =
        format!("{}: {} rows in {} shards", outcome_text(summary.outcome), summary.rows, summary.shards)
            .into();
    object["run_id"] = run_id.into();
    object["output"] = output.into();
    object
}

/// Print that `output` held the finished run already.
pub fn print_done_before(output: &str, log_format: LogFormat) -> Result<(), StandardOutput> {
    let done = format!("done before: {output} holds this finished run, and the input has not changed");
    match log_format {
        LogFormat::Text => print(&done),
        LogFormat::Json => print_json_line(&json!({
            "severity": "INFO", "message": done, "outcome": Outcome::Succeeded, "done_before": true, "output": output,
        })),
    }
}

/// An outcome as text.
pub fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "done",
        Outcome::ShareDone => "this worker's share is done; the last worker finishes the run",
        Outcome::TooManyErrors => "too many errors: the output is complete, _SUCCESS is not written",
        Outcome::Interrupted => "interrupted: the same command resumes from here",
    }
}

/// What an input contains besides records, on one line.
pub fn skipped(skipped: &Skipped) -> Option<String> {
    (!skipped.is_empty()).then(|| format!("{} that are not images: {skipped}", skipped.total()))
}

fn lines(summary: &Summary) -> Vec<String> {
    let statuses: Vec<_> =
        summary.rows_by_status.iter().map(|(status, rows)| format!("{rows} {status}")).collect();
    let mut lines = vec![
        outcome_text(summary.outcome).to_owned(),
        format!("rows       {} in {} shards: {}", summary.rows, summary.shards, statuses.join(", ")),
        speed(summary),
    ];
    if summary.reused_rows > 0 {
        lines.push(format!("resumed    {} rows are from earlier attempts", summary.reused_rows));
    }
    if let Some(latency) = summary.latency_ms {
        lines.push(format!(
            "latency    ms per batch: min {:.1}, med {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}, of {} batches",
            latency.min, latency.med, latency.p95, latency.p99, latency.max, summary.batches
        ));
    }
    if let Some(idle) = summary.gpu_idle_share {
        lines.push(format!("gpu idle   {:.1}% of the run", idle * 100.0));
    }
    if !summary.stages.is_empty() {
        lines.push(
            "stages     busy: share of its threads' time; blocked by the next stage, waiting for the previous one"
                .into(),
        );
        for stage in &summary.stages {
            lines.push(format!(
                "  {:<8} busy {:>3.0}%  blocked {:>3.0}%  waiting {:>3.0}%  threads {}",
                stage.stage,
                stage.busy * 100.0,
                stage.blocked * 100.0,
                stage.starved * 100.0,
                stage.workers
            ));
        }
        lines.push(format!("bottleneck {}", summary.bottleneck));
    }
    if summary.damaged_shards > 0 {
        lines.push(format!(
            "damaged    {} shards ended early; their last rows say why",
            summary.damaged_shards
        ));
    }
    if summary.empty_shards > 0 {
        lines.push(format!("empty      {} shards have no record", summary.empty_shards));
    }
    lines.extend(skipped(&summary.skipped).map(|skipped| format!("skipped    {skipped}")));
    if let Some(shard) = &summary.unfinished_shard {
        lines.push(format!(
            "unfinished {shard}: {} of its rows are kept in checkpoints",
            summary.checkpointed_rows
        ));
    }
    lines
}

/// The workers of a Beam job load their models during the job, each on its own.
fn speed(summary: &Summary) -> String {
    let rate = format!("speed      {:.1} images/s for {:.1} s", summary.images_per_second, summary.seconds);
    match summary.startup_seconds {
        0.0 => rate,
        seconds => format!("{rate}, after loading for {seconds:.1} s"),
    }
}
