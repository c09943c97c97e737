//! What an input contains besides records: counts by kind.
//!
//! - A kind is an extension in lower case (`json`) or a word (`hidden`). `source` has a fixed list of kinds, so their
//!   number is bounded.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of skipped objects, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Skipped(BTreeMap<String, u64>);

impl Skipped {
    /// Count one more of `kind`.
    pub fn count(&mut self, kind: &str) {
        match self.0.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(kind.to_owned(), 1)),
        }
    }

    /// Add the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            let sum = self.0.entry(kind.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// The sum of all counts. It saturates: a damaged footer may have any numbers.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Objects or members of one kind.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or_default()
    }

    /// Whether nothing was skipped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As JSON: an object with a number for each kind.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a map of numbers always serialises to JSON")
    }
}

/// `7 json, 5 hidden`: the largest counts first, equal ones by name.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<_> = self.0.iter().collect();
        kinds.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        for (at, (kind, count)) in kinds.into_iter().enumerate() {
            write!(f, "{}{count} {kind}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_the_largest_is_named_first() {
        let mut skipped = Skipped::default();
        ["json", "hidden", "json"].iter().for_each(|kind| skipped.count(kind));
        let mut both = skipped.clone();
        both.add(&skipped);
        assert_eq!((both.total(), both.of("json"), both.of("txt")), (6, 4, 0));
        assert_eq!(both.to_string(), "4 json, 2 hidden");
        assert_eq!(both.to_json(), r#"{"hidden":2,"json":4}"#);
        assert_eq!(serde_json::from_str::<Skipped>(&both.to_json()).expect("JSON"), both);
    }
}
