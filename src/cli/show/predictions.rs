//! Totals over the rows of an output: statuses, reasons, labels, scores.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, RecordBatch};
use serde::Serialize;
use sluice::items::Status;

/// Columns that are read.
pub const COLUMNS: [&str; 7] =
    ["key", "image_id", "status", "error", "top1_index", "top1_label", "top1_score"];

/// Labels and reasons listed in text; JSON has all that were kept.
const LISTED: usize = 10;
/// Distinct reasons that are counted separately; all others are counted together.
const REASONS_KEPT: usize = 10_000;
/// Bars of the histogram, and the width of the longest one in characters.
const BARS: usize = 10;
const BAR_WIDTH: u64 = 40;

/// Totals over all rows.
#[derive(Debug, Default)]
pub struct Predictions {
    pub parts: u64,
    rows: u64,
    statuses: HashMap<String, u64>,
    /// Rows by status and error text.
    reasons: HashMap<(String, String), u64>,
    /// Rows and sum of scores by label, or by class index without labels.
    labels: HashMap<String, (u64, f64)>,
    /// The best score of each row, if it is a number.
    scores: Vec<f32>,
    /// The first rows.
    first: Wanted,
    /// The first rows without scores.
    failed: Wanted,
    /// Shards that ended early, with the reason.
    damaged: Vec<Damaged>,
}

/// Rows collected up to a maximum.
#[derive(Debug, Default)]
struct Wanted {
    max: usize,
    rows: Vec<Row>,
}

/// A row as it is listed.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    key: String,
    image_id: String,
    status: String,
    error: Option<String>,
    /// The best class: its label, or its index without one.
    top1: Option<String>,
    score: Option<f32>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Damaged {
    shard: String,
    reason: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Bar {
    from: f32,
    to: f32,
    rows: u64,
}

impl Predictions {
    /// Totals that also list the first `first` rows and the first `failed` rows without scores.
    pub fn listing(first: usize, failed: usize) -> Self {
        let wanted = |max| Wanted { max, rows: Vec::new() };
        Self { first: wanted(first), failed: wanted(failed), ..Self::default() }
    }

    /// Add a batch of [`COLUMNS`].
    pub fn add(&mut self, rows: &RecordBatch) {
        let (status, error) = (rows["status"].as_string::<i32>(), rows["error"].as_string::<i32>());
        for row in 0..rows.num_rows() {
            self.rows += 1;
            *self.statuses.entry(status.value(row).to_owned()).or_default() += 1;
            self.first.add(rows, row);
            if status.value(row) != Status::Ok.as_str() {
                self.failed.add(rows, row);
            }
            if error.is_valid(row) {
                let full = self.reasons.len() >= REASONS_KEPT;
                let reason = (status.value(row).to_owned(), error.value(row).to_owned());
                let other = (status.value(row).to_owned(), "(other reasons)".to_owned());
                let key = if full && !self.reasons.contains_key(&reason) { other } else { reason };
                *self.reasons.entry(key).or_default() += 1;
            }
            if let (Some(name), Some(score)) = (label(rows, row), score(rows, row)) {
                let (count, sum) = self.labels.entry(name).or_default();
                *count += 1;
                *sum += f64::from(score);
                self.scores.push(score);
            }
        }
    }

    /// Add a shard that ended early.
    pub fn add_damaged(&mut self, shard: &str, reason: &str) {
        self.damaged.push(Damaged { shard: shard.to_owned(), reason: reason.to_owned() });
    }

    pub fn to_json(&self) -> serde_json::Value {
        let reasons = by_count(&self.reasons).into_iter().map(
            |((status, error), rows)| serde_json::json!({ "status": status, "error": error, "rows": rows }),
        );
        let labels = self.labels().into_iter().map(
            |(label, rows, mean)| serde_json::json!({ "label": label, "rows": rows, "mean_score": mean }),
        );
        let bars = if self.scores.is_empty() { Vec::new() } else { histogram(&self.scores) };
        serde_json::json!({
            "parts": self.parts,
            "rows": self.rows,
            "rows_by_status": self.statuses,
            "reasons": reasons.collect::<Vec<_>>(),
            "top_labels": labels.collect::<Vec<_>>(),
            "top1_scores": bars,
            "damaged_shards": self.damaged,
            "first_rows": self.first.rows,
            "failed_rows": self.failed.rows,
        })
    }

    pub fn lines(&self) -> Vec<String> {
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
        if !self.damaged.is_empty() {
            lines.push("\nshards that ended early".to_owned());
            let damaged = self.damaged.iter().take(LISTED);
            lines.extend(damaged.map(|Damaged { shard, reason }| format!("  {shard}: {reason}")));
            lines.extend(more(self.damaged.len() as u64, LISTED));
        }
        if !self.labels.is_empty() {
            lines.push(format!("\ntop labels {:>36} {:>14}", "rows", "mean score"));
            for (label, count, mean) in self.labels().into_iter().take(LISTED) {
                lines.push(format!("  {label:<32} {count:>12}  {mean:>12.3}"));
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
        if !self.first.rows.is_empty() {
            lines.push("\nfirst rows".to_owned());
            lines.extend(self.first.rows.iter().map(|row| format!("  {}", row.line())));
        }
        if !self.failed.rows.is_empty() {
            lines.push("\nfailed records".to_owned());
            lines.extend(self.failed.rows.iter().map(|row| format!("  {}", row.failed_line())));
            let failed = self.rows - self.statuses.get(Status::Ok.as_str()).unwrap_or(&0);
            lines.extend(more(failed, self.failed.rows.len()));
        }
        lines
    }

    /// Label, rows and mean score, the most frequent first.
    fn labels(&self) -> Vec<(&str, u64, f64)> {
        let mut labels: Vec<_> =
            self.labels.iter().map(|(name, &(rows, sum))| (name.as_str(), rows, sum / rows as f64)).collect();
        labels.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        labels
    }
}

/// `and N more`, if not all are listed.
fn more(all: u64, listed: usize) -> Option<String> {
    let hidden = all.saturating_sub(listed as u64);
    (hidden > 0).then(|| format!("  and {hidden} more"))
}

impl Wanted {
    fn add(&mut self, rows: &RecordBatch, row: usize) {
        if self.rows.len() < self.max {
            let text = |column: &str| {
                let column = rows[column].as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_owned())
            };
            self.rows.push(Row {
                key: text("key").unwrap_or_default(),
                image_id: text("image_id").unwrap_or_default(),
                status: text("status").unwrap_or_default(),
                error: text("error"),
                top1: label(rows, row),
                score: score(rows, row),
            });
        }
    }
}

impl Row {
    /// The image's name, then label and score, or the reason why there are none.
    fn line(&self) -> String {
        let image = self.image_id.rsplit('/').next().unwrap_or_default();
        match (&self.error, self.score) {
            (None, Some(score)) => {
                format!("{image:<28} {:<28} {score:.3}", self.top1.as_deref().unwrap_or_default())
            }
            (error, _) => format!("{image:<28} {}: {}", self.status, error.as_deref().unwrap_or_default()),
        }
    }

    /// The key, which `extract` takes, the id unless the key contains it, and the reason.
    fn failed_line(&self) -> String {
        let Self { key, image_id, status, error, .. } = self;
        let id = if key.contains(image_id.as_str()) { String::new() } else { format!("{image_id}  ") };
        format!("{key}  {id}{status}: {}", error.as_deref().unwrap_or_default())
    }
}

/// The top label, or the class index without labels.
fn label(rows: &RecordBatch, row: usize) -> Option<String> {
    let label = rows["top1_label"].as_string::<i32>();
    if label.is_valid(row) {
        return Some(label.value(row).to_owned());
    }
    let index = rows["top1_index"].as_primitive::<Int32Type>();
    index.is_valid(row).then(|| format!("class {}", index.value(row)))
}

/// The best score, if it is a number.
fn score(rows: &RecordBatch, row: usize) -> Option<f32> {
    let score = rows["top1_score"].as_primitive::<Float32Type>();
    score.is_valid(row).then(|| score.value(row)).filter(|score| score.is_finite())
}

/// Entries with the largest counts first, equal ones by name.
fn by_count<K: Ord>(counts: &HashMap<K, u64>) -> Vec<(&K, &u64)> {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    sorted
}

/// Ten bars of equal width: from 0 to 1 for probabilities, else over the range of the scores.
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
