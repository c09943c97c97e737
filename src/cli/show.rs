//! `sluice show OUT`: what an analyst asks first.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type};
use clap::Args;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sluice::config::{InputFormat, InputSection};
use sluice::error::Error;
use sluice::items::{ObjectRef, ShardContent, Status};
use sluice::report::Latency;
use sluice::sink::MANIFEST;
use sluice::source::{ColumnWindows, Stores, list_shards};

use super::storage_runtime;

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
    for part in parts(&stores, &format!("{out}/predictions"))? {
        predictions.parts += 1;
        let columns = ["image_id", "status", "error", "top1_index", "top1_label", "top1_score"];
        read(&stores, &part, &columns, |rows| {
            let wanted = (args.rows - first_rows.len()).min(rows.num_rows());
            first_rows.extend((0..wanted).map(|row| line(rows, row)));
            predictions.add(rows);
        })?;
    }
    for part in parts(&stores, &format!("{out}/batches"))? {
        read(&stores, &part, &["latency_ms", "warmup"], |rows| {
            let (latency, warmup) =
                (rows["latency_ms"].as_primitive::<Float64Type>(), rows["warmup"].as_boolean());
            latency_ms.extend(
                (0..rows.num_rows()).filter(|&row| !warmup.value(row)).map(|row| latency.value(row) as f32),
            );
        })?;
    }
    println!("{}", outcome(&stores, out));
    predictions.print();
    if !first_rows.is_empty() {
        println!("\nfirst rows");
        first_rows.iter().for_each(|row| println!("  {row}"));
    }
    if let Some(latency) = Latency::of(&latency_ms) {
        println!("\nlatency of {} batches, ms", latency_ms.len());
        println!(
            "  min {:.2}  med {:.2}  p95 {:.2}  p99 {:.2}  max {:.2}",
            latency.min, latency.med, latency.p95, latency.p99, latency.max
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The Parquet files of one folder, in order.
fn parts(stores: &Stores, folder: &str) -> anyhow::Result<Vec<ObjectRef>> {
    let input = InputSection { format: InputFormat::Parquet, ..InputSection::default() };
    let files = format!("{folder}/*.parquet");
    let shards = list_shards(stores, std::slice::from_ref(&files), &input).map_err(Error::from)?;
    let mut parts = Vec::new();
    for shard in shards {
        if let ShardContent::Container(object) = shard.map_err(Error::from)?.content {
            parts.push(object);
        }
    }
    Ok(parts)
}

/// How the run ended, as far as its manifest tells.
fn outcome(stores: &Stores, out: &str) -> String {
    let uri = format!("{out}/{MANIFEST}");
    let manifest = || -> Option<serde_json::Value> {
        let object = ObjectRef { uri: uri.clone(), size_bytes: None, version: None };
        let object = stores.open(&object).ok()?;
        serde_json::from_slice(&object.read_range(0..object.size_bytes()).ok()?).ok()
    };
    match manifest() {
        Some(manifest) => {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or("unknown").to_owned();
            let outcome = text(&manifest["summary"]["outcome"]);
            format!(
                "{outcome}: run {}, finished {}",
                text(&manifest["run_id"]),
                text(&manifest["finished_at"])
            )
        }
        None => format!("unfinished: there is no readable {MANIFEST}"),
    }
}

/// Hand the named columns of one part to `take`, some rows at a time.
fn read(
    stores: &Stores,
    part: &ObjectRef,
    columns: &[&str],
    mut take: impl FnMut(&RecordBatch),
) -> anyhow::Result<()> {
    let object = stores.open(part).map_err(Error::from)?;
    let damaged = || format!("{} is not a readable Parquet file of this tool", part.uri);
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(object)).with_context(damaged)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    for rows in builder.with_projection(mask).build().with_context(damaged)? {
        let rows = rows.with_context(damaged)?;
        anyhow::ensure!(columns.iter().all(|column| rows.column_by_name(column).is_some()), damaged());
        take(&rows);
    }
    Ok(())
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

    fn print(&self) {
        let share = |count: u64| count as f64 * 100.0 / self.rows.max(1) as f64;
        println!("{} rows in {} parts", self.rows, self.parts);
        println!("\nstatus");
        for (status, count) in by_count(&self.statuses) {
            println!("  {status:<16} {count:>10}  {:>5.1}%", share(*count));
        }
        if !self.reasons.is_empty() {
            println!("\nreasons");
            for ((status, reason), count) in by_count(&self.reasons).into_iter().take(LISTED) {
                println!("  {count:>10}  {status}: {reason}");
            }
        }
        if !self.labels.is_empty() {
            println!("\ntop labels {:>36} {:>14}", "rows", "mean score");
            let mut labels: Vec<_> = self.labels.iter().collect();
            labels.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(b.0)));
            for (label, (count, sum)) in labels.into_iter().take(LISTED) {
                println!("  {label:<32} {count:>12}  {:>12.3}", sum / *count as f64);
            }
            println!("\ntop-1 scores");
            for bar in histogram(&self.scores) {
                let width = bar.rows * BAR_WIDTH / self.scores.len().max(1) as u64;
                println!(
                    "  {:>8.3} to {:<8.3} {:>10}  {}",
                    bar.from,
                    bar.to,
                    bar.rows,
                    "#".repeat(width as usize)
                );
            }
        }
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
