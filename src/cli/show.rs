//! `sluice show OUT`: a summary of an output.

mod predictions;

use std::process::ExitCode;

use anyhow::Context;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use clap::Args;
use sluice::commit::{
    AttemptNote, Checkpoints, MANIFEST, Notes, Output, OutputListing, OutputState, RUN, RunRecord,
    StoredManifest, observe,
};
use sluice::error::{ConfigError, Error, SinkError, SourceError};
use sluice::report::Latency;
use sluice::sink::{BATCHES, PREDICTIONS};
use sluice::skipped::Skipped;
use sluice::store::Stores;

use super::parts::{open, parts};
use super::print::{print, print_json};
use super::storage::storage_runtime;
use super::summary::{outcome_text, skipped};
use predictions::{COLUMNS, Predictions};

/// Most attempts to list.
const LISTED: usize = 10;

/// Failed records listed by default.
const DEFAULT_FAILED: &str = "100";

/// Arguments of `sluice show`.
#[derive(Debug, Args)]
#[command(override_usage = "sluice show [OPTIONS] <OUT>")]
pub struct ShowArgs {
    /// Output folder of a run.
    #[arg(required_unless_present = "failed")]
    out: Option<String>,
    /// Also list the first N rows.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rows: usize,
    /// Also list the first N records without scores, each with its reason; 100 without N.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = DEFAULT_FAILED)]
    failed: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl ShowArgs {
    /// The output, and how many failed records to list. The argument of `--failed` is the output if no other argument
    /// is.
    fn out_and_failed(&self) -> Result<(&str, usize), ConfigError> {
        let refused = |message: String| ConfigError::Argument { argument: "--failed", message };
        let number = |text: &str| text.parse::<usize>();
        match (&self.out, self.failed.as_deref()) {
            (Some(out), None) => Ok((out, 0)),
            (Some(out), Some(failed)) => number(failed)
                .map(|failed| (out.as_str(), failed))
                .map_err(|_| refused(format!("is {failed:?}, expected a number, and {out:?} is the output"))),
            (None, Some(out)) if number(out).is_err() => {
                Ok((out, number(DEFAULT_FAILED).unwrap_or_default()))
            }
            (None, _) => Err(refused("the output is missing: sluice show OUT --failed N".to_owned())),
        }
    }
}

/// Read the output and print the summary.
pub fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let runtime = storage_runtime()?;
    let stores = Stores::new(runtime.handle().clone());
    let (out, failed) = args.out_and_failed().map_err(Error::from)?;
    let out = out.trim_end_matches('/');
    let (mut predictions, mut latency_ms) = (Predictions::listing(args.rows, failed), Vec::new());
    let mut skips = Skipped::default();
    let output = Output::open(&stores, out).map_err(SinkError::of_reading)?;
    let listing = OutputListing::read(&output).map_err(SinkError::of_reading)?;
    if listing.anything().is_none() {
        let message = "there is no output of a run".to_owned();
        return Err(Error::from(SourceError::NoInput { uri: out.to_owned(), message }).into());
    }
    for part in parts(&stores, &format!("{out}/predictions"), listing.has_record)? {
        predictions.parts += 1;
        let mut batches = open(&stores, &part, &PREDICTIONS, &COLUMNS)?;
        if let Some(reason) = batches.footer("sluice.damage") {
            predictions.add_damaged(batches.footer("sluice.shard").unwrap_or_default(), reason);
        }
        skips.add(&batches.skipped()?);
        batches.try_for_each(|rows| rows.map(|rows| predictions.add(&rows)))?;
    }
    // a run that failed early has no batches
    for part in parts(&stores, &format!("{out}/batches"), true)? {
        for rows in open(&stores, &part, &BATCHES, &["latency_ms", "warmup"])? {
            let rows = rows?;
            let (latency, warmup) =
                (rows["latency_ms"].as_primitive::<Float64Type>(), rows["warmup"].as_boolean());
            latency_ms.extend(
                (0..rows.num_rows()).filter(|&row| !warmup.value(row)).map(|row| latency.value(row) as f32),
            );
        }
    }
    let latency = Latency::of(&latency_ms);
    if args.json {
        let mut object = predictions.to_json();
        object["output"] = out.into();
        object["run"] = run_json(&output, &listing, &skips)?;
        object["batches"] = latency_ms.len().into();
        object["latency_ms"] = serde_json::json!(latency);
        print_json(&object)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = match observe(&output).map_err(SinkError::of_reading)? {
        OutputState::Succeeded(_, manifest) => ended("succeeded", &manifest),
        OutputState::Failed(_, manifest) => ended("too many errors, no _SUCCESS", &manifest),
        OutputState::Unfinished(record) | OutputState::Sealed(record, _) => {
            unfinished(&output, &record, &listing, &skips)?
        }
        OutputState::Removing(record) => vec![being_removed(&record)],
        OutputState::Vacant | OutputState::Foreign(_) => vec![format!("no run: there is no {RUN}")],
    };
    lines.extend(predictions.lines());
    if let Some(latency) = latency {
        lines.push(format!("\nlatency of {} batches, ms", latency_ms.len()));
        lines.push(format!(
            "  min {:.2}  med {:.2}  p95 {:.2}  p99 {:.2}  max {:.2}",
            latency.min, latency.med, latency.p95, latency.p99, latency.max
        ));
    }
    print(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The run as JSON: its manifest without the lists of parts, or its record and its attempts' notes, with `skips`, what
/// the finished shards contain besides records.
fn run_json(output: &Output, listing: &OutputListing, skips: &Skipped) -> anyhow::Result<serde_json::Value> {
    let read = |name: &str| -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&output.read(name)?)
            .with_context(|| format!("{} cannot be read", output.uri_of(name)))
    };
    let state = observe(output).map_err(SinkError::of_reading)?;
    let (word, mut run) = match state {
        OutputState::Succeeded(..) => ("succeeded", read(MANIFEST)?),
        OutputState::Failed(..) => ("too_many_errors", read(MANIFEST)?),
        OutputState::Unfinished(_) | OutputState::Sealed(..) => ("unfinished", read(RUN)?),
        OutputState::Removing(_) => ("removing", read(RUN)?),
        OutputState::Vacant | OutputState::Foreign(_) => return Ok(serde_json::json!({ "state": "none" })),
    };
    if let Some(run) = run.as_object_mut() {
        for list in ["parts", "batches", "record", "plan", "determinants"] {
            run.remove(list);
        }
        run.insert("state".to_owned(), word.into());
        let run_id = run.get("run_id").and_then(|run_id| run_id.as_str()).unwrap_or_default().to_owned();
        if word == "unfinished" {
            let notes = Notes::read(output, listing, &run_id, None)?.attempts;
            let notes: Vec<_> = notes.iter().map(AttemptNote::in_short).collect();
            run.insert("attempts".to_owned(), serde_json::json!(notes));
            run.insert(
                "checkpointed_rows".to_owned(),
                checkpointed(listing, &run_id).iter().sum::<u64>().into(),
            );
            run.insert("crashed_records".to_owned(), listing.crashes.len().into());
            run.insert("skipped".to_owned(), serde_json::json!(skips));
        }
    }
    Ok(run)
}

/// Rows in checkpoints of each unfinished shard.
fn checkpointed(listing: &OutputListing, run_id: &str) -> Vec<u64> {
    let checkpoints = Checkpoints::of(&listing.segments, run_id);
    checkpoints.parts().map(|part| checkpoints.records(part)).filter(|&rows| rows > 0).collect()
}

/// How the run ended.
fn ended(how: &str, manifest: &StoredManifest) -> Vec<String> {
    let mut lines = vec![format!("{how}: run {}, finished {}", manifest.run_id, manifest.finished_at)];
    if manifest.summary.empty_shards > 0 {
        lines.push(format!("  {} shards have no record", manifest.summary.empty_shards));
    }
    lines.extend(skipped(&manifest.summary.skipped).map(|skipped| format!("  skipped {skipped}")));
    lines
}

/// The line for an output whose run is being removed.
fn being_removed(record: &RunRecord) -> String {
    let removed = record.removing.as_deref().unwrap_or_default();
    format!(
        "the run {removed} is being removed, or its removal was interrupted: run the command of the new run again, or \
         start over with --overwrite"
    )
}

/// The progress of an unfinished run.
fn unfinished(
    output: &Output,
    record: &RunRecord,
    listing: &OutputListing,
    skips: &Skipped,
) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![format!("unfinished: run {}, begun {}", record.run_id, record.started_at)];
    let notes = Notes::read(output, listing, &record.run_id, None)?.attempts;
    let hidden = notes.len().saturating_sub(LISTED);
    if hidden > 0 {
        lines.push(format!("  {hidden} earlier attempts"));
    }
    lines.extend(notes[hidden..].iter().map(attempt));
    let open = checkpointed(listing, &record.run_id);
    if !open.is_empty() {
        let rows: u64 = open.iter().sum();
        lines.push(format!("  checkpoints hold {rows} more rows, of {} unfinished shards", open.len()));
    }
    lines.extend(skipped(skips).map(|skipped| format!("  skipped so far {skipped}")));
    if !listing.crashes.is_empty() {
        lines.push(format!("  decoders or readers crashed on {} records", listing.crashes.len()));
    }
    Ok(lines)
}

/// An attempt's note on one line.
fn attempt(note: &AttemptNote) -> String {
    let AttemptNote { attempt, shard_index, num_shards, updated_at, rows, outcome, .. } = note;
    let state = outcome.map_or("under way, failed or killed", outcome_text);
    format!(
        "  attempt {attempt}, worker {shard_index} of {num_shards}: {rows} rows in parts at {updated_at}; {state}"
    )
}
