//! `sluice diff A B`: what two outputs say differently about the same records.

use std::collections::BTreeMap;
use std::process::ExitCode;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int32Type};
use clap::Args;
use sluice::bench::largest_difference;
use sluice::error::Error;
use sluice::items::ObjectRef;
use sluice::source::Stores;

use super::parts::{parts, read};
use super::print::print;
use super::{exit, storage_runtime};

/// Arguments of `sluice diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Output folder of a run.
    a: String,
    /// Output folder of another run over the same input.
    b: String,
    /// Difference of a score that is none.
    #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
    tolerance: f32,
    /// Let records be missing in one of them, as after runs with --limit.
    #[arg(long)]
    common: bool,
}

/// What was found.
#[derive(Debug, Default, PartialEq)]
struct Differences {
    /// Records in both.
    rows: u64,
    /// Records in one only.
    missing: u64,
    /// Records of which one has scores and the other has none, or another status.
    statuses: u64,
    other_top_class: u64,
    max_difference: f32,
}

/// What is compared of one record.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    key: String,
    status: String,
    top_class: Option<i32>,
    /// As kept; the best one alone where the output has no others.
    scores: Vec<f32>,
}

/// Compare, and print what differs; exits with 5 when something does.
pub fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let runtime = storage_runtime()?;
    let stores = Stores::new(runtime.handle().clone());
    let (a, b) = (named_parts(&stores, &args.a)?, named_parts(&stores, &args.b)?);
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let mut found = Differences::default();
    for name in names {
        let rows = |parts: &BTreeMap<String, ObjectRef>| match parts.get(name) {
            Some(part) => read_rows(&stores, part),
            None => Ok(Vec::new()),
        };
        found.add(&rows(&a)?, &rows(&b)?);
    }
    print(&found.lines().join("\n"))?;
    let same = found.are_none(args.tolerance, args.common);
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(exit::TOO_MANY_ERRORS) })
}

/// Predictions parts by file name, which a shard has in every run.
fn named_parts(stores: &Stores, out: &str) -> Result<BTreeMap<String, ObjectRef>, Error> {
    let out = out.trim_end_matches('/');
    let named = |part: ObjectRef| (part.uri.rsplit('/').next().unwrap_or_default().to_owned(), part);
    Ok(parts(stores, &format!("{out}/predictions"), false)?.into_iter().map(named).collect())
}

fn read_rows(stores: &Stores, part: &ObjectRef) -> Result<Vec<Row>, Error> {
    let columns = ["key", "status", "top1_index", "top1_score", "scores"];
    let mut rows = Vec::new();
    read(stores, part, &columns, |batch| rows.extend((0..batch.num_rows()).map(|row| Row::of(batch, row))))?;
    Ok(rows)
}

impl Row {
    fn of(batch: &RecordBatch, row: usize) -> Self {
        let text = |column: &str| batch[column].as_string::<i32>().value(row).to_owned();
        let (index, best) = (
            batch["top1_index"].as_primitive::<Int32Type>(),
            batch["top1_score"].as_primitive::<Float32Type>(),
        );
        let all = batch["scores"].as_list::<i32>();
        let scores = if all.is_valid(row) {
            all.value(row).as_primitive::<Float32Type>().values().to_vec()
        } else {
            best.is_valid(row).then(|| best.value(row)).into_iter().collect()
        };
        let top_class = index.is_valid(row).then(|| index.value(row));
        Self { key: text("key"), status: text("status"), top_class, scores }
    }
}

impl Differences {
    /// Add the rows of one part of each output, in record order.
    fn add(&mut self, a: &[Row], b: &[Row]) {
        self.missing += a.len().abs_diff(b.len()) as u64;
        for (a, b) in a.iter().zip(b) {
            if a.key != b.key {
                self.missing += 2;
                continue;
            }
            self.rows += 1;
            self.statuses += u64::from(a.status != b.status);
            self.other_top_class += u64::from(a.top_class != b.top_class);
            self.max_difference = self.max_difference.max(largest_difference(&a.scores, &b.scores));
        }
    }

    /// Whether the outputs say the same of the records in both; there must be some.
    fn are_none(&self, tolerance: f32, common: bool) -> bool {
        self.rows > 0
            && self.statuses == 0
            && self.other_top_class == 0
            && self.max_difference <= tolerance
            && (self.missing == 0 || common)
    }

    fn lines(&self) -> Vec<String> {
        vec![
            format!("records in both       {}", self.rows),
            format!("records in one only   {}", self.missing),
            format!("other status          {}", self.statuses),
            format!("other top class       {}", self.other_top_class),
            format!("largest difference    {:e}", self.max_difference),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, status: &str, top_class: Option<i32>, scores: &[f32]) -> Row {
        Row { key: key.to_owned(), status: status.to_owned(), top_class, scores: scores.to_vec() }
    }

    #[test]
    fn every_kind_of_difference_is_counted() {
        let mut found = Differences::default();
        let a = [
            row("s#0", "ok", Some(1), &[0.25, 0.75]),
            row("s#1", "ok", Some(1), &[0.25, 0.75]),
            row("s#2", "empty", None, &[]),
            row("s#3", "ok", Some(0), &[1.0, 0.0]),
        ];
        let b = [
            row("s#0", "ok", Some(1), &[0.25, 0.75]),
            row("s#1", "ok", Some(0), &[0.75, 0.25]),
            row("s#2", "decode_error", None, &[]),
        ];
        found.add(&a, &b);
        let expected =
            Differences { rows: 3, missing: 1, statuses: 1, other_top_class: 1, max_difference: 0.5 };
        assert_eq!(found, expected);
        assert!(!found.are_none(1.0, true));
    }

    #[test]
    fn a_score_that_is_no_number_is_never_the_same() {
        let mut found = Differences::default();
        found.add(&[row("s#0", "ok", Some(0), &[0.9, f32::NAN])], &[row("s#0", "ok", Some(0), &[0.9, 0.1])]);
        assert_eq!(found.max_difference, f32::INFINITY);
        assert!(!found.are_none(1e30, false));
    }

    #[test]
    fn outputs_without_a_record_in_common_are_not_the_same() {
        let mut found = Differences::default();
        found.add(&[row("a#0", "ok", Some(0), &[1.0])], &[]);
        assert!(!found.are_none(0.0, true));
        found.add(&[row("b#0", "ok", Some(0), &[1.0])], &[row("b#0", "ok", Some(0), &[1.0])]);
        assert!(found.are_none(0.0, true) && !found.are_none(0.0, false));
    }
}
