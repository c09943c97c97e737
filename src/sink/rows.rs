//! Rows to Arrow: pure, no files.
//!
//! - One row per record, in the order given; a rejected record has a reason and no scores.
//! - A record with a score that is NaN or infinite has a reason and no scores either: its other scores would mislead.
//!   It keeps its `batch_id`, since an engine has run on it.
//! - `top1_*` is the largest score, the lowest index among equals.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder, ListBuilder,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::items::{Outcome, RecordMeta, Rejected, Status};
use crate::plan::ScoresKept;

use super::schema::{BATCHES, PREDICTIONS};

/// Rows collected before they are encoded, so that the encoder works on columns, not on cells.
const ROWS_PER_ENCODE: usize = 1024;

/// Bytes of scores and texts collected before they are encoded, however few rows that are: a model may have a hundred
/// thousand classes.
pub const BYTES_PER_ENCODE: usize = 8 << 20;

/// What all rows of a run have in common.
#[derive(Debug, Clone)]
pub struct RunColumns {
    pub run_id: String,
    pub model_sha256: String,
    /// Class names in output order, if they are known.
    pub labels: Vec<String>,
    pub scores: ScoresKept,
}

/// Collects prediction rows.
#[derive(Debug)]
pub struct PredictionRows {
    run: Arc<RunColumns>,
    /// Bytes of the rows' scores and texts.
    bytes: usize,
    columns: PredictionColumns,
}

#[derive(Debug, Default)]
struct PredictionColumns {
    key: StringBuilder,
    shard: StringBuilder,
    record_index: Int64Builder,
    image_id: StringBuilder,
    member: StringBuilder,
    status: StringBuilder,
    error: StringBuilder,
    top1_index: Int32Builder,
    top1_label: StringBuilder,
    top1_score: Float32Builder,
    scores: ListBuilder<Float32Builder>,
    scores_index: ListBuilder<Int32Builder>,
    width: Int32Builder,
    height: Int32Builder,
    format: StringBuilder,
    image_bytes: Int64Builder,
    batch_id: Int64Builder,
}

impl PredictionRows {
    pub fn new(run: Arc<RunColumns>) -> Self {
        let element = |item| Arc::new(Field::new("element", item, false));
        let columns = PredictionColumns {
            scores: ListBuilder::default().with_field(element(DataType::Float32)),
            scores_index: ListBuilder::default().with_field(element(DataType::Int32)),
            ..PredictionColumns::default()
        };
        Self { run, bytes: 0, columns }
    }

    /// Drop the rows collected so far.
    pub fn clear(&mut self) {
        *self = Self::new(Arc::clone(&self.run));
    }

    fn len(&self) -> usize {
        self.columns.record_index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the rows should be taken and encoded.
    pub fn is_full(&self) -> bool {
        self.len() >= ROWS_PER_ENCODE || self.bytes >= BYTES_PER_ENCODE
    }

    /// Append a record that an engine has run on; `scores` is in class order. Returns the status of its row:
    /// [`Status::Ok`], or [`Status::InvalidScore`] if a score is not finite.
    pub fn push_scored(&mut self, meta: &RecordMeta, batch_id: i64, scores: &[f32]) -> Status {
        if let Some(error) = invalid_scores(scores, &self.run.labels) {
            self.push_without_scores(meta, Status::InvalidScore, &error, Some(batch_id));
            return Status::InvalidScore;
        }
        self.push_meta(meta, Status::Ok);
        let columns = &mut self.columns;
        columns.error.append_null();
        columns.batch_id.append_value(batch_id);
        let top1 = top1(scores);
        columns.top1_index.append_option(top1.map(|index| index as i32));
        columns.top1_score.append_option(top1.map(|index| scores[index]));
        columns.top1_label.append_option(top1.and_then(|index| self.run.labels.get(index)));
        match self.run.scores {
            ScoresKept::All => {
                columns.scores.values().append_slice(scores);
                self.bytes += size_of_val(scores);
                columns.scores.append(true);
                columns.scores_index.append_null();
            }
            ScoresKept::Top(n) => {
                for index in best(scores, n) {
                    columns.scores.values().append_value(scores[index]);
                    columns.scores_index.values().append_value(index as i32);
                    self.bytes += size_of::<f32>() + size_of::<i32>();
                }
                columns.scores.append(true);
                columns.scores_index.append(true);
            }
            ScoresKept::None => {
                columns.scores.append_null();
                columns.scores_index.append_null();
            }
        }
        Status::Ok
    }

    /// Append a record that no engine has run on.
    pub fn push_rejected(&mut self, meta: &RecordMeta, rejected: &Rejected) {
        self.push_without_scores(meta, rejected.status, &rejected.error, None);
    }

    fn push_without_scores(&mut self, meta: &RecordMeta, status: Status, error: &str, batch_id: Option<i64>) {
        self.push_meta(meta, status);
        self.bytes += error.len();
        let columns = &mut self.columns;
        columns.error.append_value(error);
        columns.batch_id.append_option(batch_id);
        columns.top1_index.append_null();
        columns.top1_score.append_null();
        columns.top1_label.append_null();
        columns.scores.append_null();
        columns.scores_index.append_null();
    }

    fn push_meta(&mut self, meta: &RecordMeta, status: Status) {
        // the key contains the shard's name, too
        self.bytes +=
            2 * meta.shard.name.len() + meta.image_id.len() + meta.member.as_ref().map_or(0, String::len);
        let columns = &mut self.columns;
        columns.key.append_value(format!("{}#{}", meta.shard.name, meta.record_index));
        columns.shard.append_value(&meta.shard.name);
        columns.record_index.append_value(meta.record_index as i64);
        columns.image_id.append_value(&meta.image_id);
        columns.member.append_option(meta.member.as_deref());
        columns.status.append_value(status.as_str());
        columns.width.append_option(meta.header.map(|header| header.width as i32));
        columns.height.append_option(meta.header.map(|header| header.height as i32));
        columns.format.append_option(meta.header.map(|header| header.format.as_str()));
        columns.image_bytes.append_value(meta.image_bytes as i64);
    }

    /// Take the rows collected so far.
    pub fn take(&mut self) -> RecordBatch {
        let rows = self.len();
        self.bytes = 0;
        let columns = &mut self.columns;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(columns.key.finish()),
            Arc::new(columns.shard.finish()),
            Arc::new(columns.record_index.finish()),
            Arc::new(columns.image_id.finish()),
            Arc::new(columns.member.finish()),
            Arc::new(columns.status.finish()),
            Arc::new(columns.error.finish()),
            Arc::new(columns.top1_index.finish()),
            Arc::new(columns.top1_label.finish()),
            Arc::new(columns.top1_score.finish()),
            Arc::new(columns.scores.finish()),
            Arc::new(columns.scores_index.finish()),
            Arc::new(columns.width.finish()),
            Arc::new(columns.height.finish()),
            Arc::new(columns.format.finish()),
            Arc::new(columns.image_bytes.finish()),
            Arc::new(columns.batch_id.finish()),
            constant(&self.run.model_sha256, rows),
            constant(&self.run.run_id, rows),
        ];
        record_batch(&PREDICTIONS, columns)
    }
}

fn record_batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(Arc::clone(schema), columns).expect("the columns are built from the schema")
}

/// A column with the same text in all rows.
fn constant(text: &str, rows: usize) -> ArrayRef {
    let mut column = StringBuilder::with_capacity(rows, rows * text.len());
    (0..rows).for_each(|_| column.append_value(text));
    Arc::new(column.finish())
}

/// The reason to reject scores if some are NaN or infinite; `None` if all are finite.
fn invalid_scores(scores: &[f32], labels: &[String]) -> Option<String> {
    let mut invalid = scores.iter().enumerate().filter(|(_, score)| !score.is_finite());
    let (class, score) = invalid.next()?;
    let name = labels.get(class).map_or(String::new(), |label| {
        let short: String = label.chars().take(LABEL_CHARS).collect();
        format!(" ({short})")
    });
    let (count, classes) = (1 + invalid.count(), scores.len());
    let said = if score.is_nan() { "NaN".to_owned() } else { score.to_string() };
    Some(format!(
        "the score of class {class}{name} is {said}; {count} of {classes} scores are NaN or infinite"
    ))
}

/// Characters of a label that a reason quotes.
const LABEL_CHARS: usize = 64;

/// Index of the largest of finite `scores`, the lowest among equals; `None` if there are none.
fn top1(scores: &[f32]) -> Option<usize> {
    scores
        .iter()
        .enumerate()
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
        .map(|(index, _)| index)
}

/// Indices of the `n` largest of finite `scores`, best first, the lower index first among equals.
fn best(scores: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let descending = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
    if n < order.len() {
        order.select_nth_unstable_by(n, descending);
        order.truncate(n);
    }
    order.sort_unstable_by(descending);
    order
}

/// Collects batch rows.
#[derive(Debug)]
pub struct BatchRows {
    run_id: String,
    worker: String,
    batch_size: i32,
    columns: BatchColumns,
}

#[derive(Debug, Default)]
struct BatchColumns {
    batch_id: Int64Builder,
    rows: Int32Builder,
    queue_ms: Float64Builder,
    h2d_ms: Float64Builder,
    compute_ms: Float64Builder,
    d2h_ms: Float64Builder,
    latency_ms: Float64Builder,
    started_at: TimestampMicrosecondBuilder,
    warmup: BooleanBuilder,
}

impl BatchRows {
    pub fn new(run_id: String, worker: u32, batch_size: usize) -> Self {
        let worker = format!("{worker:06}");
        Self { run_id, worker, batch_size: batch_size as i32, columns: BatchColumns::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.columns.batch_id.is_empty()
    }

    /// Whether the rows should be taken and encoded.
    pub fn is_full(&self) -> bool {
        self.columns.batch_id.len() >= ROWS_PER_ENCODE
    }

    pub fn push(&mut self, outcome: &Outcome) {
        let (columns, timing) = (&mut self.columns, &outcome.timing);
        columns.batch_id.append_value(outcome.batch_id);
        columns.rows.append_value(outcome.rows as i32);
        columns.queue_ms.append_value(timing.queue_ms);
        columns.h2d_ms.append_value(timing.h2d_ms);
        columns.compute_ms.append_value(timing.compute_ms);
        columns.d2h_ms.append_value(timing.d2h_ms);
        columns.latency_ms.append_value(timing.latency_ms());
        columns.started_at.append_value(microseconds(timing.started_at));
        columns.warmup.append_value(timing.warmup);
    }

    /// Take the rows collected so far.
    pub fn take(&mut self) -> RecordBatch {
        let columns = &mut self.columns;
        let rows = columns.batch_id.len();
        let columns: Vec<ArrayRef> = vec![
            constant(&self.run_id, rows),
            constant(&self.worker, rows),
            Arc::new(columns.batch_id.finish()),
            Arc::new(columns.rows.finish()),
            Arc::new(Int32Array::from_value(self.batch_size, rows)),
            Arc::new(columns.queue_ms.finish()),
            Arc::new(columns.h2d_ms.finish()),
            Arc::new(columns.compute_ms.finish()),
            Arc::new(columns.d2h_ms.finish()),
            Arc::new(columns.latency_ms.finish()),
            Arc::new(columns.started_at.finish().with_timezone("UTC")),
            Arc::new(columns.warmup.finish()),
        ];
        record_batch(&BATCHES, columns)
    }
}

/// Microseconds since 1970 in UTC; a clock before that reads as 1970.
fn microseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ShardContent, ShardFormat, ShardRef};
    use arrow_array::Array;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float32Type, Int32Type, Int64Type};

    fn rows(scores: ScoresKept) -> PredictionRows {
        PredictionRows::new(Arc::new(RunColumns {
            run_id: "r".into(),
            model_sha256: "m".into(),
            labels: vec!["a".into(), "b".into(), "c".into()],
            scores,
        }))
    }

    fn meta(record_index: u64) -> RecordMeta {
        let content = ShardContent::Objects(Vec::new());
        RecordMeta {
            shard: Arc::new(ShardRef::new(0, "s", ShardFormat::Files, content)),
            record_index,
            image_id: "i".into(),
            member: None,
            image_bytes: 3,
            header: None,
        }
    }

    #[test]
    fn rows_are_full_by_number_or_by_bytes() {
        let pushed = |scores: ScoresKept, classes: usize| {
            let (mut rows, scores) = (rows(scores), vec![0.5; classes]);
            let pushed = (0..).take_while(|&index| {
                rows.push_scored(&meta(index), 0, &scores);
                !rows.is_full()
            });
            let pushed = pushed.count() + 1;
            rows.take();
            assert!(rows.is_empty() && !rows.is_full());
            pushed
        };
        assert_eq!(pushed(ScoresKept::All, 3), ROWS_PER_ENCODE);
        assert_eq!(pushed(ScoresKept::Top(5), 100_000), ROWS_PER_ENCODE);
        // 400 kB a row
        assert_eq!(pushed(ScoresKept::All, 100_000), 21);
        assert_eq!(pushed(ScoresKept::Top(100_000), 100_000), 11);
    }

    #[test]
    fn a_rejected_record_has_a_reason_and_no_scores() {
        let mut rows = rows(ScoresKept::All);
        rows.push_rejected(&meta(0), &Rejected::new(Status::Empty, "the image is empty"));
        rows.push_scored(&meta(1), 7, &[0.1, 0.7, 0.2]);
        let batch = rows.take();
        assert_eq!(batch["status"].as_string::<i32>().value(0), "empty");
        assert!(batch["top1_index"].is_null(0) && batch["scores"].is_null(0) && batch["batch_id"].is_null(0));
        assert_eq!(batch["top1_label"].as_string::<i32>().value(1), "b");
        assert_eq!(batch["key"].as_string::<i32>().value(1), "s#1");
        assert!(rows.is_empty());
    }

    #[test]
    fn top_n_keeps_the_best_first_with_their_classes() {
        let mut rows = rows(ScoresKept::Top(2));
        rows.push_scored(&meta(0), 0, &[0.25, 0.5, 0.25]);
        let batch = rows.take();
        let scores = batch["scores"].as_list::<i32>().value(0);
        let index = batch["scores_index"].as_list::<i32>().value(0);
        assert_eq!(scores.as_primitive::<Float32Type>().values(), &[0.5, 0.25]);
        assert_eq!(index.as_primitive::<Int32Type>().values(), &[1, 0]);
    }

    #[test]
    fn a_score_that_is_not_finite_leaves_a_reason_and_no_scores() {
        for (scores, reason) in [
            ([0.1, f32::NAN, 0.2], "the score of class 1 (b) is NaN; 1 of 3 scores are NaN or infinite"),
            (
                [f32::INFINITY, f32::NAN, 0.2],
                "the score of class 0 (a) is inf; 2 of 3 scores are NaN or infinite",
            ),
            (
                [0.1, 0.2, f32::NEG_INFINITY],
                "the score of class 2 (c) is -inf; 1 of 3 scores are NaN or infinite",
            ),
        ] {
            for kept in [ScoresKept::All, ScoresKept::Top(2), ScoresKept::None] {
                let mut rows = rows(kept);
                assert_eq!(rows.push_scored(&meta(0), 7, &scores), Status::InvalidScore);
                assert_eq!(rows.push_scored(&meta(1), 7, &[f32::MAX, 0.0, f32::MIN]), Status::Ok);
                let batch = rows.take();
                assert_eq!(batch["status"].as_string::<i32>().value(0), "invalid_score");
                assert_eq!(batch["error"].as_string::<i32>().value(0), reason);
                for column in ["top1_index", "top1_label", "top1_score", "scores", "scores_index"] {
                    assert!(batch[column].is_null(0), "{column}");
                }
                assert_eq!(batch["batch_id"].as_primitive::<Int64Type>().values(), &[7, 7]);
                assert_eq!(batch["top1_index"].as_primitive::<Int32Type>().value(1), 0);
            }
        }
    }

    #[test]
    fn the_lower_class_is_first_among_equal_scores() {
        assert_eq!(top1(&[0.1, 0.4, 0.4]), Some(1));
        assert_eq!(top1(&[]), None);
        assert_eq!(best(&[0.4, 0.1, 0.4, 0.2], 3), [0, 2, 3]);
    }
}
