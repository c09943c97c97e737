//! Counts what a listing or a reader skips, by kind, and keeps the first names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::flow::lock;
use crate::skipped::Skipped;

/// Names of each kind that are kept and logged: enough to recognise the kind.
const NAMES_KEPT: usize = 3;

/// Characters of each name that are logged.
const NAME_CHARACTERS: usize = 200;

/// Counts and first names. Clones share them, so that the caller of a reader sees what the reader skipped.
#[derive(Debug, Clone, Default)]
pub struct Skips(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    counts: Skipped,
    first: BTreeMap<String, Vec<String>>,
}

impl Skips {
    /// Count `name` as skipped, under `kind`.
    pub fn add(&self, kind: &str, name: &str) {
        let mut state = self.state();
        state.counts.count(kind);
        let name = || name.chars().take(NAME_CHARACTERS).collect();
        match state.first.get_mut(kind) {
            Some(first) if first.len() >= NAMES_KEPT => {}
            Some(first) => first.push(name()),
            None => drop(state.first.insert(kind.to_owned(), vec![name()])),
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Skipped {
        self.state().counts.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // the counts are valid even if another thread panicked while it held the lock
        lock(&self.0)
    }
}

/// Logs the first names of each kind, a few in a whole run.
#[derive(Debug, Default)]
pub struct SkipWarnings(Mutex<BTreeMap<String, usize>>);

impl SkipWarnings {
    /// Log what was skipped in `place`, a shard or an input.
    pub fn warn(&self, place: &str, skips: &Skips) {
        let state = skips.state();
        let mut logged = lock(&self.0);
        for (kind, names) in &state.first {
            let logged = logged.entry(kind.clone()).or_default();
            for name in names.iter().take(NAMES_KEPT.saturating_sub(*logged)) {
                tracing::warn!(place, name, kind, "skipped: it is not a record");
                *logged += 1;
            }
        }
    }
}
