//! One row of an output, and how far two rows differ.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};

/// Columns that are compared, or that identify a row.
pub const COLUMNS: [&str; 9] = [
    "key",
    "record_index",
    "image_id",
    "status",
    "top1_index",
    "top1_label",
    "top1_score",
    "scores",
    "scores_index",
];

/// What identifies a row, and what of it is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub key: String,
    pub record_index: i64,
    pub image_id: String,
    pub status: String,
    pub top_class: Option<i32>,
    pub top_label: Option<String>,
    pub scores: Scores,
}

/// The scores that an output kept of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// Scores of every class, in class order.
    All(Vec<f32>),
    /// The best classes and their scores, best first. No other class has a better score than the last of them.
    Best(Vec<(i32, f32)>),
}

impl Row {
    /// Row `row` of a batch of [`COLUMNS`].
    pub fn of(batch: &RecordBatch, row: usize) -> Self {
        let text = |column: &str| {
            let column = batch[column].as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let top_class = batch["top1_index"].as_primitive::<Int32Type>();
        let top_class = top_class.is_valid(row).then(|| top_class.value(row));
        let best = batch["top1_score"].as_primitive::<Float32Type>();
        let (scores, classes) = (batch["scores"].as_list::<i32>(), batch["scores_index"].as_list::<i32>());
        let scores = match (scores.is_valid(row), classes.is_valid(row)) {
            (true, true) => {
                let (scores, classes) = (scores.value(row), classes.value(row));
                let classes = classes.as_primitive::<Int32Type>().values();
                let scores = scores.as_primitive::<Float32Type>().values();
                Scores::Best(classes.iter().copied().zip(scores.iter().copied()).collect())
            }
            (true, false) => Scores::All(scores.value(row).as_primitive::<Float32Type>().values().to_vec()),
            (false, _) => {
                let best = best.is_valid(row).then(|| best.value(row));
                Scores::Best(top_class.zip(best).into_iter().collect())
            }
        };
        Self {
            key: text("key").unwrap_or_default(),
            record_index: batch["record_index"].as_primitive::<Int64Type>().value(row),
            image_id: text("image_id").unwrap_or_default(),
            status: text("status").unwrap_or_default(),
            top_class,
            top_label: text("top1_label"),
            scores,
        }
    }

    /// Whether the id is a name rather than the record's position in a shard without names.
    pub fn is_named(&self) -> bool {
        self.image_id != self.record_index.to_string()
    }

    /// The best class: its label, or its index without one.
    pub fn top(&self) -> String {
        match (&self.top_label, self.top_class) {
            (Some(label), _) => label.clone(),
            (None, Some(class)) => format!("class {class}"),
            (None, None) => "no class".to_owned(),
        }
    }
}

impl Scores {
    /// The largest difference between two scores of one class, as far as both outputs kept them. Infinite if only one
    /// of the two is a number, or if the other model has no such class.
    pub fn difference(&self, other: &Self) -> f32 {
        match (self, other) {
            (Self::All(a), Self::All(b)) if a.len() != b.len() => f32::INFINITY,
            (Self::All(a), Self::All(b)) => largest(a.iter().zip(b).map(|(&a, &b)| apart(a, b))),
            (Self::All(all), Self::Best(best)) | (Self::Best(best), Self::All(all)) => {
                let score = |class: i32| usize::try_from(class).ok().and_then(|class| all.get(class));
                let same =
                    best.iter().map(|&(class, kept)| score(class).map_or(f32::INFINITY, |&s| apart(s, kept)));
                let others = (0..).zip(all).filter(|(class, _)| !best.iter().any(|kept| kept.0 == *class));
                largest(same).max(largest(others.map(|(_, &score)| above(score, best))))
            }
            (Self::Best(a), Self::Best(b)) => one_sided(a, b).max(one_sided(b, a)),
        }
    }
}

/// The largest difference over the classes of `a`.
fn one_sided(a: &[(i32, f32)], b: &[(i32, f32)]) -> f32 {
    largest(a.iter().map(|&(class, score)| {
        let other = b.iter().find(|other| other.0 == class);
        other.map_or_else(|| above(score, b), |other| apart(score, other.1))
    }))
}

/// The least difference between `score` and one that was not kept, which is at most the last of `best`.
fn above(score: f32, best: &[(i32, f32)]) -> f32 {
    best.last().map_or(0.0, |&(_, last)| if score.is_nan() { f32::INFINITY } else { (score - last).max(0.0) })
}

fn apart(a: f32, b: f32) -> f32 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let by = (a - b).abs();
    if by.is_nan() { f32::INFINITY } else { by }
}

fn largest(differences: impl Iterator<Item = f32>) -> f32 {
    differences.fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_equal_only_themselves() {
        let odd = Scores::All(vec![f32::NAN, f32::INFINITY, 0.5]);
        assert_eq!(odd.difference(&odd), 0.0);
        assert_eq!(odd.difference(&Scores::All(vec![0.1, f32::INFINITY, 0.5])), f32::INFINITY);
        assert_eq!(odd.difference(&Scores::All(vec![f32::NAN, 1.0, 0.5])), f32::INFINITY);
        assert_eq!(odd.difference(&Scores::All(vec![0.5])), f32::INFINITY);
    }

    #[test]
    fn the_best_scores_are_compared_by_class() {
        let best = |scores: &[(i32, f32)]| Scores::Best(scores.to_vec());
        let a = best(&[(3, 0.5), (1, 0.25)]);
        assert_eq!(a.difference(&a), 0.0);
        assert_eq!(a.difference(&best(&[(3, 0.5), (2, 0.25)])), 0.0, "a tie for the last place");
        assert_eq!(a.difference(&best(&[(1, 0.5), (3, 0.25)])), 0.25);
        assert_eq!(a.difference(&best(&[(7, 0.125)])), 0.375, "class 3 has at most 0.125 there");
        assert_eq!(a.difference(&best(&[])), 0.0, "no score was kept that could differ");
        let all = Scores::All(vec![0.0, 0.25, 0.25, 0.5]);
        assert_eq!((a.difference(&all), all.difference(&a)), (0.0, 0.0));
        assert_eq!(
            a.difference(&Scores::All(vec![0.0, 0.25, 0.75, 0.5])),
            0.5,
            "class 2 was not among the best"
        );
        assert_eq!(a.difference(&Scores::All(vec![0.0, 0.25])), f32::INFINITY, "there is no class 3");
    }
}
