//! The rows of a benchmark as a Markdown table, followed by a summary in words.

use std::path::Path;

use super::{BenchOutcome, BenchRow, Measured, Setup, Times};

/// A Markdown table of the rows.
pub fn markdown(rows: &[BenchRow], model: &Path) -> String {
    let checked = |measured: &Measured| measured.max_difference.zip(measured.other_top_class);
    let any_checked = rows
        .iter()
        .any(|row| matches!(&row.outcome, BenchOutcome::Measured(measured) if checked(measured).is_some()));
    let mut columns = vec![
        "setup",
        "batch",
        "original protocol: min s",
        "med s",
        "max s",
        "images/s",
        "own path: min s",
        "med s",
        "max s",
        "images/s",
        "overlapped images/s",
        "ready after s",
        "first run s",
    ];
    if any_checked {
        columns.extend(["largest difference from the CPU", "other top class"]);
    }
    let mut lines = vec![
        format!("model {}", model.display()),
        String::new(),
        format!("| {} |", columns.join(" | ")),
        format!("|{}", " --- |".repeat(columns.len())),
    ];
    for BenchRow { setup, batch_size, outcome } in rows {
        let figures = match outcome {
            BenchOutcome::Failed { reason } => reason.replace('|', "/").replace('\n', " "),
            BenchOutcome::Measured(measured) => {
                let times = |times: &Times| {
                    format!(
                        "{:.5} | {:.5} | {:.5} | {:.0}",
                        times.min_s, times.med_s, times.max_s, times.images_per_second
                    )
                };
                let check = checked(measured)
                    .map(|(difference, other)| format!(" | {difference:.1e} | {other}"))
                    .unwrap_or_default();
                format!(
                    "{} | {} | {:.0} | {:.1} | {:.2}{check}",
                    measured.original.as_ref().map_or_else(|| "| | | ".to_owned(), times),
                    times(&measured.own),
                    measured.overlapped_images_per_second,
                    measured.load_s,
                    measured.first_run_s
                )
            }
        };
        lines.push(format!("| {} | {batch_size} | {figures} |", setup.as_str()));
    }
    let comparisons = comparisons(rows);
    if !comparisons.is_empty() {
        lines.push(String::new());
        lines.extend(comparisons);
    }
    lines.join("\n")
}

/// For each batch size at which the TensorRT engine ran, how many times as fast it is as the others.
fn comparisons(rows: &[BenchRow]) -> Vec<String> {
    let measured = |row: &BenchRow| match &row.outcome {
        BenchOutcome::Measured(measured) => Some(measured.clone()),
        BenchOutcome::Failed { .. } => None,
    };
    let against = |engine: &Measured, other: &BenchRow| {
        let other_figures = measured(other)?;
        let original = engine.original.as_ref().zip(other_figures.original.as_ref());
        let original = original.map_or_else(String::new, |(mine, its)| {
            format!(" ({:.2} by the original protocol)", its.med_s / mine.med_s)
        });
        Some(format!(
            "{:.2} times as fast as {}{original}",
            other_figures.own.med_s / engine.own.med_s,
            other.setup
        ))
    };
    let engines = rows.iter().filter(|row| row.setup == Setup::Tensorrt);
    let comparison = |row: &BenchRow| {
        let engine = measured(row)?;
        let others =
            rows.iter().filter(|other| other.setup != row.setup && other.batch_size == row.batch_size);
        let others: Vec<_> = others.filter_map(|other| against(&engine, other)).collect();
        (!others.is_empty())
            .then(|| format!("A batch of {}: a TensorRT engine runs {}.", row.batch_size, others.join(", ")))
    };
    engines.filter_map(comparison).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_that_cannot_run_has_a_row_with_the_reason() {
        let outcome = BenchOutcome::Failed { reason: "no driver".to_owned() };
        let row = BenchRow { setup: Setup::Tensorrt, batch_size: 10, outcome };
        let table = markdown(std::slice::from_ref(&row), Path::new("m.onnx"));
        assert!(table.ends_with("| tensorrt | 10 | no driver |"), "{table}");
        let json = serde_json::to_value(&row).expect("plain");
        assert_eq!(json, serde_json::json!({"setup": "tensorrt", "batch_size": 10, "reason": "no driver"}));
    }

    #[test]
    fn tensorrt_is_compared_with_the_others_at_each_batch_size() {
        let times = |med_s| Times { min_s: med_s, med_s, max_s: med_s, images_per_second: 10.0 / med_s };
        let row = |setup, original: f64, own| BenchRow {
            setup,
            batch_size: 10,
            outcome: BenchOutcome::Measured(Box::new(Measured {
                engine: String::new(),
                iterations: 3,
                load_s: 0.0,
                first_run_s: 0.0,
                original: Some(times(original)),
                own: times(own),
                h2d_ms: 0.0,
                compute_ms: 0.0,
                d2h_ms: 0.0,
                overlapped_images_per_second: 0.0,
                max_difference: None,
                other_top_class: None,
            })),
        };
        let rows = [row(Setup::Tensorrt, 4.0, 2.0), row(Setup::OnnxruntimeCuda, 6.0, 5.0)];
        assert_eq!(
            comparisons(&rows),
            [
                "A batch of 10: a TensorRT engine runs 2.50 times as fast as onnxruntime-cuda (1.50 by the original protocol)."
            ]
        );
        assert!(comparisons(&rows[1..]).is_empty() && comparisons(&rows[..1]).is_empty());
    }
}
