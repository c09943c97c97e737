//! What a listing or a reader passes over: how much of each kind, and the first names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::skipped::Skipped;

/// Names kept, and told, of each kind: enough to see what they are.
const NAMES_TOLD: usize = 3;

/// Characters told of each name.
const CHARACTERS_TOLD: usize = 200;

/// Counts and first names. Clones share them, so that whoever reads a shard's records can ask what else was there.
#[derive(Debug, Clone, Default)]
pub struct Skips(Arc<Mutex<Passed>>);

#[derive(Debug, Default)]
struct Passed {
    counts: Skipped,
    first: BTreeMap<String, Vec<String>>,
}

impl Skips {
    /// `name` is skipped, as one of `kind`.
    pub fn add(&self, kind: &str, name: &str) {
        let mut passed = self.passed();
        passed.counts.count(kind);
        let name = || name.chars().take(CHARACTERS_TOLD).collect();
        match passed.first.get_mut(kind) {
            Some(first) if first.len() >= NAMES_TOLD => {}
            Some(first) => first.push(name()),
            None => drop(passed.first.insert(kind.to_owned(), vec![name()])),
        }
    }

    /// What has been skipped so far.
    pub fn counts(&self) -> Skipped {
        self.passed().counts.clone()
    }

    fn passed(&self) -> MutexGuard<'_, Passed> {
        // a poisoned lock only means that another thread panicked between two whole counts
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Warns of the first names of each kind, so many in a whole run.
#[derive(Debug, Default)]
pub struct SkipWarnings(Mutex<BTreeMap<String, usize>>);

impl SkipWarnings {
    /// Name what was skipped in `place`, a shard or an input.
    pub fn warn(&self, place: &str, skips: &Skips) {
        let passed = skips.passed();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, names) in &passed.first {
            let told = told.entry(kind.clone()).or_default();
            for name in names.iter().take(NAMES_TOLD.saturating_sub(*told)) {
                tracing::warn!(place, name, kind, "skipped: it is not a record");
                *told += 1;
            }
        }
    }
}
