//! The state of a running bundle: how far it has read, where it was split, and what it has counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::flow::{StopSignal, lock};
use crate::progress::{BatchCounters, Distribution};
use crate::report::Tally;

/// What the control stream and the bundle's thread share.
#[derive(Debug, Default)]
pub struct BundleState {
    position: Mutex<Position>,
    /// The source being read, if it is the only one.
    source: Mutex<Option<String>>,
    /// Elements by collection.
    counts: Mutex<HashMap<String, u64>>,
    /// The transforms with our functions.
    functions: Mutex<Vec<String>>,
    /// Progress reports that the runner has asked for.
    reports: AtomicU64,
    /// What transforms have scored.
    scored: Mutex<HashMap<String, Arc<ScoredByTransform>>>,
    /// Asks the bundle's shards to stop.
    pub stop: StopSignal,
}

/// What a transform has scored in one bundle.
#[derive(Debug, Default)]
pub struct ScoredByTransform {
    /// Rows of stored parts.
    rows: Mutex<Tally>,
    /// Batches that the model has run.
    pub batches: Arc<BatchCounters>,
    /// Times to fetch, load and warm up the model. Milliseconds.
    load_ms: Mutex<Distribution>,
}

impl ScoredByTransform {
    /// Count the rows of a stored part.
    pub fn add_rows(&self, rows: &Tally) {
        lock(&self.rows).add(rows);
    }

    /// Count a model that was loaded in this time.
    pub fn add_load(&self, time: Duration) {
        lock(&self.load_ms).add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Rows of stored parts so far.
    pub fn rows(&self) -> Tally {
        lock(&self.rows).clone()
    }

    /// See [`ScoredByTransform::add_load`]. Milliseconds.
    pub fn load_ms(&self) -> Distribution {
        *lock(&self.load_ms)
    }
}

/// How far the bundle has read its source.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Position {
    /// Elements that the bundle has started.
    begun: i64,
    /// The first element that belongs to another bundle.
    end: Option<i64>,
    /// Whether the bundle takes no further element.
    has_ended: bool,
}

impl Position {
    /// Start the next element. Returns whether it belongs to this bundle.
    fn advance(&mut self) -> bool {
        let is_ours = self.end.is_none_or(|end| self.begun < end);
        self.begun += i64::from(is_ours);
        is_ours
    }

    /// Release the end of the input: keep about `fraction` of the elements that have not started. `total` elements are
    /// expected. Returns the first element that is released, if any.
    fn split(&mut self, fraction: f64, total: i64, allowed: &[i64]) -> Option<i64> {
        let total = self.end.unwrap_or(i64::MAX).min(total);
        let rest = total - self.begun;
        if self.has_ended || rest <= 0 || !(0.0..=1.0).contains(&fraction) {
            return None;
        }
        // a bundle keeps at least one element
        let first = (self.begun + (rest as f64 * fraction) as i64).max(1);
        let first = if allowed.is_empty() {
            first
        } else {
            allowed.iter().copied().filter(|&allowed| allowed >= first).min()?
        };
        if first >= total {
            return None;
        }
        self.end = Some(first);
        Some(first)
    }
}

impl BundleState {
    /// The bundle starts, with these transforms of our functions.
    pub fn start(&self, functions: Vec<String>) {
        *lock(&self.functions) = functions;
    }

    /// The bundle reads its only source.
    pub fn read_from(&self, source: &str) {
        lock(&self.source).replace(source.to_owned());
    }

    /// See [`Position::advance`].
    pub fn advance(&self) -> bool {
        lock(&self.position).advance()
    }

    /// The bundle takes no further element.
    pub fn end_input(&self) {
        lock(&self.position).has_ended = true;
    }

    /// The place of the element that was begun last; −1 before the first one.
    pub fn read_index(&self) -> i64 {
        lock(&self.position).begun - 1
    }

    /// The source being read, if it is the only one.
    pub fn source(&self) -> Option<String> {
        lock(&self.source).clone()
    }

    /// See [`Position::split`].
    pub fn split(&self, fraction: f64, total: i64, allowed: &[i64]) -> Option<i64> {
        lock(&self.position).split(fraction, total, allowed)
    }

    /// Count a progress report that the runner asks for.
    pub fn count_report(&self) {
        self.reports.fetch_add(1, Relaxed);
    }

    /// See [`BundleState::count_report`].
    pub fn reports(&self) -> u64 {
        self.reports.load(Relaxed)
    }

    /// The transforms with our functions, once the bundle has started.
    pub fn functions(&self) -> Vec<String> {
        lock(&self.functions).clone()
    }

    /// What transforms have scored so far.
    pub fn scored(&self) -> HashMap<String, Arc<ScoredByTransform>> {
        lock(&self.scored).clone()
    }

    /// What a transform has scored so far.
    pub fn scored_by(&self, transform: &str) -> Arc<ScoredByTransform> {
        Arc::clone(lock(&self.scored).entry(transform.to_owned()).or_default())
    }

    /// Elements so far, by collection.
    pub fn counts(&self) -> HashMap<String, u64> {
        lock(&self.counts).clone()
    }

    /// Count an element of a collection.
    pub fn count(&self, collection: &str) {
        let mut counts = lock(&self.counts);
        match counts.get_mut(collection) {
            Some(count) => *count += 1,
            None => drop(counts.insert(collection.to_owned(), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_gives_away_elements_that_were_not_begun_and_never_takes_one_back() {
        let mut position = Position::default();
        assert!(position.advance() && position.advance());
        assert_eq!(position.split(0.5, 10, &[]), Some(6));
        assert_eq!(position.split(1.0, 10, &[]), None, "nothing more to give away");
        assert_eq!(position.split(0.5, 10, &[]), Some(4));
        assert_eq!(position.split(0.0, 10, &[]), Some(2));
        assert_eq!(position.split(0.0, 10, &[]), None, "only what was begun is left");
        assert!(!position.advance());
        assert_eq!(position.begun, 2);
    }

    #[test]
    fn a_split_before_the_first_element_leaves_one() {
        let mut position = Position::default();
        assert_eq!(position.split(0.0, 3, &[]), Some(1));
        assert!(position.advance() && !position.advance());
    }

    #[test]
    fn a_split_keeps_to_the_points_that_the_runner_allows() {
        let mut position = Position::default();
        assert!(position.advance());
        assert_eq!(position.clone().split(0.5, 10, &[0, 3, 7, 10]), Some(7));
        assert_eq!(position.clone().split(0.9, 10, &[0, 3, 7, 10]), None);
        assert_eq!(position.split(0.5, 10, &[0]), None);
    }

    #[test]
    fn a_bundle_that_has_ended_is_not_split() {
        let mut position = Position { has_ended: true, ..Position::default() };
        assert_eq!(position.split(0.0, 10, &[]), None);
    }
}
