//! `_run.json`: which run an output belongs to.
//!
//! - The first attempt creates it. Of two attempts that begin at the same time one creates it, and the other joins the
//!   run that it names. Only `--overwrite` replaces it, see [`super::overwrite`].
//! - An attempt belongs to the run if everything that determines the predictions is the same. That includes the scoring
//!   version, but not the version of sluice.
//! - It is the fence of the protocol: an attempt at a run that it does not name publishes nothing.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::RUN;
use super::output::Output;
use crate::error::SinkError;

/// Key of the scoring version among the determinants.
const SCORING: &str = "scoring_version";

/// The run that an output belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of the columns of the output.
    pub schema_version: String,
    /// Version of sluice that wrote it.
    pub sluice_version: String,
    /// Id of the run.
    pub run_id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// Records the run is limited to, if it is.
    pub limit: Option<u64>,
    /// Everything that determines the predictions of an input. `plan_sha256` is its hash.
    pub determinants: Value,
    /// The id of the run that is being removed, empty if it had none. The run of this record begins afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removing: Option<String>,
}

/// Check that the output still belongs to the run `run_id`.
///
/// # Errors
/// [`SinkError::OtherRun`] if `--overwrite` has removed that run.
pub fn check_current(output: &Output, run_id: &str) -> Result<(), SinkError> {
    output.runtime().block_on(check_current_async(output, run_id))
}

/// The same, inside the runtime.
pub(super) async fn check_current_async(output: &Output, run_id: &str) -> Result<(), SinkError> {
    let record = output.get(RUN).await?.and_then(|bytes| serde_json::from_slice::<RunRecord>(&bytes).ok());
    let now = match record {
        Some(record) if record.run_id == run_id && record.removing.is_none() => return Ok(()),
        Some(record) => record.run_id,
        None => "no run".to_owned(),
    };
    let difference = format!("{run_id} was removed; the output now has {now}");
    Err(SinkError::OtherRun { uri: output.uri().to_owned(), difference })
}

impl RunRecord {
    /// The first difference between this run and `other`, in words: why an attempt at `other` cannot join this run.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (was, is) = (&self.schema_version, &other.schema_version);
        if was != is {
            return Some(format!("its rows have schema version {was}, this sluice writes {is}"));
        }
        if self.limit != other.limit {
            let said = |limit: Option<u64>| limit.map_or("no --limit".to_owned(), |n| format!("--limit {n}"));
            return Some(format!("it was begun with {}, this is {}", said(self.limit), said(other.limit)));
        }
        let scoring = |record: &Self| record.determinants.get(SCORING).and_then(Value::as_u64);
        let (was, is) = (scoring(self), scoring(other));
        if was != is {
            let said =
                |version: Option<u64>| version.map_or("none".to_owned(), |version| version.to_string());
            return Some(format!(
                "it was begun by sluice {} with scoring version {}, this is sluice {} with scoring version {}: \
                 the same image may have other scores",
                self.sluice_version,
                said(was),
                other.sluice_version,
                said(is)
            ));
        }
        let found = first_difference("", &self.determinants, &other.determinants);
        // sluice writes no record without determinants, or with another hash than theirs
        let unknown = || "its plan is another one".to_owned();
        found.or_else(|| (self.plan_sha256 != other.plan_sha256).then(unknown))
    }
}

/// The first difference between two JSON values, in words.
fn first_difference(at: &str, was: &Value, is: &Value) -> Option<String> {
    match (was, is) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                first_difference(&at, &value(a), &value(b))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() && a.len() > SHORT => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(index, (was, is))| first_difference(&format!("{at}[{index}]"), was, is)),
        _ if was == is => None,
        _ => Some(format!("{at} was {}, is {}", short(was), short(is))),
    }
}

/// Longest list that a message shows in full.
const SHORT: usize = 4;

fn short(value: &Value) -> String {
    match value {
        Value::Array(items) if items.len() > SHORT => format!("a list of {}", items.len()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(determinants: Value) -> RunRecord {
        RunRecord {
            schema_version: "1".to_owned(),
            sluice_version: "0.1.0".to_owned(),
            run_id: "photos-1".to_owned(),
            started_at: "2026-11-23T00:00:00Z".to_owned(),
            plan_sha256: determinants.to_string(),
            limit: None,
            determinants,
            removing: None,
        }
    }

    #[test]
    fn the_first_difference_is_named_by_its_key() {
        let labels: Vec<_> = (0..10).map(|n| n.to_string()).collect();
        let was =
            json!({ "preprocess": { "resize": { "width": 384 }, "mean": [0, 0, 0] }, "labels": labels });
        let mut other = labels.clone();
        other[7] = "cat".to_owned();
        for (is, expected) in [
            (
                json!({ "preprocess": { "resize": { "width": 224 }, "mean": [0, 0, 0] }, "labels": labels }),
                "preprocess.resize.width was 384, is 224",
            ),
            (
                json!({ "preprocess": { "resize": { "width": 384 }, "mean": [0, 0, 1] }, "labels": labels }),
                "preprocess.mean was [0,0,0], is [0,0,1]",
            ),
            (
                json!({ "preprocess": { "resize": { "width": 384 }, "mean": [0, 0, 0] }, "labels": other }),
                "labels[7] was \"7\", is \"cat\"",
            ),
            (
                json!({ "preprocess": { "resize": { "width": 384 }, "mean": [0, 0, 0] }, "labels": null }),
                "labels was a list of 10, is null",
            ),
        ] {
            let difference = record(was.clone()).difference(&record(is)).expect(expected);
            assert_eq!(difference, expected);
        }
        assert_eq!(record(was.clone()).difference(&record(was)), None);
    }

    #[test]
    fn a_version_that_may_score_otherwise_is_a_difference_and_any_other_is_none() {
        let record = |scoring: Value, sluice: &str| {
            let record = record(json!({ "scoring_version": scoring, "labels": null }));
            RunRecord { sluice_version: sluice.to_owned(), ..record }
        };
        let first = record(json!(2), "0.2.0");
        assert_eq!(first.difference(&record(json!(2), "0.3.0")), None);
        let said = first.difference(&record(json!(3), "0.3.0")).expect("another scoring version");
        assert!(said.contains("sluice 0.2.0 with scoring version 2"), "{said}");
        assert!(said.contains("sluice 0.3.0 with scoring version 3"), "{said}");
        // records had none at first
        let said = record(Value::Null, "0.1.0").difference(&first).expect("a record without one");
        assert!(said.contains("sluice 0.1.0 with scoring version none"), "{said}");
    }

    #[test]
    fn another_schema_another_limit_and_another_hash_are_differences_too() {
        let first = record(json!({}));
        let second = RunRecord { schema_version: "2".to_owned(), ..first.clone() };
        assert!(first.difference(&second).expect("schema").contains("schema version 1"));
        let second = RunRecord { limit: Some(5), ..first.clone() };
        assert!(first.difference(&second).expect("limit").contains("no --limit, this is --limit 5"));
        let second = RunRecord { plan_sha256: "other".to_owned(), ..first.clone() };
        assert!(first.difference(&second).is_some());
        // the run id and the version of sluice are no difference
        let second =
            RunRecord { run_id: "photos-2".to_owned(), sluice_version: "9".to_owned(), ..first.clone() };
        assert_eq!(first.difference(&second), None);
    }
}
