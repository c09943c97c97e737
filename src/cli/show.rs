//! `sluice show OUT`: what an analyst asks first.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type};
use clap::Args;
use sluice::error::{Error, SourceError};
use sluice::finish::StoredManifest;
use sluice::items::Status;
use sluice::report::Latency;
use sluice::sink::{
    AttemptNote, BATCHES, Checkpoints, Holdings, MANIFEST, Output, PREDICTIONS, RUN, RunRecord,
};
use sluice::source::Stores;

use super::parts::{parts, read};
use super::print::print;
use super::storage_runtime;
use super::summary::{said, skipped};

/// Labels and reasons listed.
const LISTED: usize = 10;
/// Distinct reasons told apart; a flood of different ones is counted as one more.
const REASONS_HELD: usize = 10_000;
/// Bars of the histogram, and the width of the longest one in characters.
const BARS: usize = 10;
const BAR_WIDTH: u64 = 40;

/// What the predictions hold.
#[derive(Debug, Default)]
struct Predictions {
    parts: u64,
    rows: u64,
    statuses: HashMap<String, u64>,
    /// By status and error text.
    reasons: HashMap<(String, String), u64>,
    /// Rows and sum of scores by label, or by class index where there are no labels.
    labels: HashMap<String, (u64, f64)>,
    scores: Vec<f32>,
}

/// Arguments of `sluice show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Output folder of a run.
    out: String,
    /// Print the first N rows, too.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rows: usize,
}

/// Read the output and print what it holds.
pub fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let runtime = storage_runtime()?;
    let stores = Stores::new(runtime.handle().clone());
    let out = args.out.trim_end_matches('/');
    let (mut predictions, mut latency_ms) = (Predictions::default(), Vec::new());
    let mut first_rows = Vec::new();
    let output = Output::open(&stores, out)?;
    let holdings = output.holdings()?;
    if holdings.anything().is_none() {
        let message = "there is no output of a run".to_owned();
        return Err(Error::from(SourceError::NoInput { uri: out.to_owned(), message }).into());
    }
    for part in parts(&stores, &format!("{out}/predictions"), holdings.begun)? {
        predictions.parts += 1;
        let columns = ["image_id", "status", "error", "top1_index", "top1_label", "top1_score"];
        read(&stores, &part, &PREDICTIONS, &columns, |rows| {
            let wanted = (args.rows - first_rows.len()).min(rows.num_rows());
            first_rows.extend((0..wanted).map(|row| line(rows, row)));
            predictions.add(rows);
        })?;
    }
    // a run that failed leaves no such part
    for part in parts(&stores, &format!("{out}/batches"), true)? {
        read(&stores, &part, &BATCHES, &["latency_ms", "warmup"], |rows| {
            let (latency, warmup) =
                (rows["latency_ms"].as_primitive::<Float64Type>(), rows["warmup"].as_boolean());
            latency_ms.extend(
                (0..rows.num_rows()).filter(|&row| !warmup.value(row)).map(|row| latency.value(row) as f32),
            );
        })?;
    }
    let mut lines = if holdings.finished { finished(&output)? } else { unfinished(&output, &holdings)? };
    lines.extend(predictions.lines());
    if !first_rows.is_empty() {
        lines.push("\nfirst rows".to_owned());
        lines.extend(first_rows.iter().map(|row| format!("  {row}")));
    }
    if let Some(latency) = Latency::of(&latency_ms) {
        lines.push(format!("\nlatency of {} batches, ms", latency_ms.len()));
        lines.push(format!(
            "  min {:.2}  med {:.2}  p95 {:.2}  p99 {:.2}  max {:.2}",
            latency.min, latency.med, latency.p95, latency.p99, latency.max
        ));
    }
    print(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// How the run ended.
fn finished(output: &Output) -> anyhow::Result<Vec<String>> {
    let manifest: StoredManifest = serde_json::from_slice(&output.read(MANIFEST)?)
        .with_context(|| format!("{} cannot be read", output.uri_of(MANIFEST)))?;
    let mut lines = vec![format!("succeeded: run {}, finished {}", manifest.run_id, manifest.finished_at)];
    if manifest.summary.empty_shards > 0 {
        lines.push(format!("  {} shards hold no record", manifest.summary.empty_shards));
    }
    lines.extend(skipped(&manifest.summary.skipped).map(|skipped| format!("  skipped {skipped}")));
    Ok(lines)
}

/// How far a run has come that is not finished.
fn unfinished(output: &Output, holdings: &Holdings) -> anyhow::Result<Vec<String>> {
    if !holdings.begun {
        return Ok(vec![format!("no run: there is no {RUN}")]);
    }
    let record: RunRecord = serde_json::from_slice(&output.read(RUN)?)
        .with_context(|| format!("{} cannot be read", output.uri_of(RUN)))?;
    let mut lines = vec![format!("unfinished: run {}, begun {}", record.run_id, record.started_at)];
    let notes = output.notes(holdings, &record.run_id)?.attempts;
    let hidden = notes.len().saturating_sub(LISTED);
    if hidden > 0 {
        lines.push(format!("  {hidden} earlier attempts"));
    }
    lines.extend(notes[hidden..].iter().map(attempt));
    let checkpoints = Checkpoints::of(&holdings.segments, &record.run_id);
    let open: Vec<_> = checkpoints.parts().map(|part| checkpoints.records(part)).filter(|&n| n > 0).collect();
    if !open.is_empty() {
        let rows: u64 = open.iter().sum();
        lines.push(format!(
            "  checkpoints hold {rows} more rows, of {} shards that have not ended",
            open.len()
        ));
    }
    if !holdings.crashes.is_empty() {
        lines.push(format!("  decoders or readers have crashed on {} records", holdings.crashes.len()));
    }
    Ok(lines)
}

/// What an attempt has noted of itself, on one line.
fn attempt(note: &AttemptNote) -> String {
    let AttemptNote { attempt, shard_index, num_shards, updated_at, rows, outcome, .. } = note;
    let state = outcome.map_or("under way, failed or killed", said);
    format!(
        "  attempt {attempt}, worker {shard_index} of {num_shards}: {rows} rows in parts at {updated_at}; {state}"
    )
}

/// One prediction on one line: the image, then its label and score, or why it has none.
fn line(rows: &RecordBatch, row: usize) -> String {
    let text = |column: &str| rows[column].as_string::<i32>().value(row);
    let image = text("image_id").rsplit('/').next().unwrap_or_default();
    if text("status") != Status::Ok.as_str() {
        return format!("{image:<28} {}: {}", text("status"), text("error"));
    }
    let score = rows["top1_score"].as_primitive::<Float32Type>().value(row);
    format!("{image:<28} {:<28} {score:.3}", label(rows, row).unwrap_or_default())
}

/// The top label, or the class index where the model has no labels.
fn label(rows: &RecordBatch, row: usize) -> Option<String> {
    let label = rows["top1_label"].as_string::<i32>();
    if label.is_valid(row) {
        return Some(label.value(row).to_owned());
    }
    let index = rows["top1_index"].as_primitive::<Int32Type>();
    index.is_valid(row).then(|| format!("class {}", index.value(row)))
}

impl Predictions {
    fn add(&mut self, rows: &RecordBatch) {
        let (status, error) = (rows["status"].as_string::<i32>(), rows["error"].as_string::<i32>());
        let score = rows["top1_score"].as_primitive::<Float32Type>();
        for row in 0..rows.num_rows() {
            self.rows += 1;
            *self.statuses.entry(status.value(row).to_owned()).or_default() += 1;
            if error.is_valid(row) {
                let full = self.reasons.len() >= REASONS_HELD;
                let reason = (status.value(row).to_owned(), error.value(row).to_owned());
                let other = (status.value(row).to_owned(), "(other reasons)".to_owned());
                let key = if full && !self.reasons.contains_key(&reason) { other } else { reason };
                *self.reasons.entry(key).or_default() += 1;
            }
            if let Some(name) = label(rows, row) {
                let (count, sum) = self.labels.entry(name).or_default();
                *count += 1;
                *sum += f64::from(score.value(row));
                self.scores.push(score.value(row));
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let share = |count: u64| count as f64 * 100.0 / self.rows.max(1) as f64;
        lines.push(format!("{} rows in {} parts", self.rows, self.parts));
        lines.push("\nstatus".to_owned());
        for (status, count) in by_count(&self.statuses) {
            lines.push(format!("  {status:<16} {count:>10}  {:>5.1}%", share(*count)));
        }
        if !self.reasons.is_empty() {
            lines.push("\nreasons".to_owned());
            for ((status, reason), count) in by_count(&self.reasons).into_iter().take(LISTED) {
                lines.push(format!("  {count:>10}  {status}: {reason}"));
            }
        }
        if !self.labels.is_empty() {
            lines.push(format!("\ntop labels {:>36} {:>14}", "rows", "mean score"));
            let mut labels: Vec<_> = self.labels.iter().collect();
            labels.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(b.0)));
            for (label, (count, sum)) in labels.into_iter().take(LISTED) {
                lines.push(format!("  {label:<32} {count:>12}  {:>12.3}", sum / *count as f64));
            }
            lines.push("\ntop-1 scores".to_owned());
            for bar in histogram(&self.scores) {
                let width = bar.rows * BAR_WIDTH / self.scores.len().max(1) as u64;
                lines.push(format!(
                    "  {:>8.3} to {:<8.3} {:>10}  {}",
                    bar.from,
                    bar.to,
                    bar.rows,
                    "#".repeat(width as usize)
                ));
            }
        }
        lines
    }
}

/// Entries with the largest counts first, equal ones by name.
fn by_count<K: Ord>(counts: &HashMap<K, u64>) -> Vec<(&K, &u64)> {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    sorted
}

#[derive(Debug, PartialEq)]
struct Bar {
    from: f32,
    to: f32,
    rows: u64,
}

/// Ten bars of equal width: from 0 to 1 for probabilities, else over the scores' own range.
fn histogram(scores: &[f32]) -> Vec<Bar> {
    let (low, high) =
        scores.iter().fold((0.0_f32, 1.0_f32), |(low, high), &score| (low.min(score), high.max(score)));
    let width = (high - low) / BARS as f32;
    let mut bars: Vec<_> = (0..BARS)
        .map(|bar| Bar { from: low + width * bar as f32, to: low + width * (bar + 1) as f32, rows: 0 })
        .collect();
    for score in scores {
        let bar = ((score - low) / width) as usize;
        bars[bar.min(BARS - 1)].rows += 1;
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_score_is_in_one_bar_and_the_last_bar_holds_the_highest() {
        let bars = histogram(&[0.0, 0.05, 0.5, 0.999, 1.0]);
        assert_eq!(bars.iter().map(|bar| bar.rows).collect::<Vec<_>>(), [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn scores_beyond_probabilities_widen_the_bars() {
        let bars = histogram(&[-10.0, 10.0]);
        assert_eq!((bars[0].from, bars[9].to), (-10.0, 10.0));
        assert_eq!((bars[0].rows, bars[9].rows), (1, 1));
    }
}
