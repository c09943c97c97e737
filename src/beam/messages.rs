//! Messages between our functions, as JSON.

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::report::PartReport;
use crate::skipped::Skipped;

/// Summary of the listing that [`super::graph::Function::List`] makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The URIs that were listed.
    pub inputs: Vec<String>,
    /// Number of shards.
    pub shards: u64,
    /// Objects that are in no shard.
    pub skipped: Skipped,
}

/// An element on its way to [`super::graph::Function::Score`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToScore {
    /// A shard, as [`crate::items::ShardRef::to_json`] writes it.
    Shard(String),
    /// Passed on: one for each job, so that a job without shards is finished, too.
    Listing(Listing),
}

/// An element on its way to [`super::graph::Function::Finish`] and [`super::graph::Function::Report`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToFinish {
    /// The part of a shard, and the run that it belongs to.
    Part {
        /// Id of the run.
        run_id: String,
        /// The part.
        part: Box<PartReport>,
        /// How long the worker took until the part was stored. The time is short if it was stored before.
        seconds: f64,
    },
    /// See [`ToScore::Listing`].
    Listing(Listing),
}

/// What a pipeline of another SDK gets for each shard: the entry of the manifest, the run, and the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    /// The part, as the manifest describes it.
    #[serde(flatten)]
    pub part: PartReport,
    /// Id of the run.
    pub run_id: String,
    /// See [`ToFinish::Part`].
    pub seconds: f64,
}

impl ShardReport {
    /// The report as JSON, if the message to [`super::graph::Function::Finish`] is that of a shard.
    ///
    /// # Errors
    /// If it is no such message.
    pub fn json_of(message: &[u8]) -> Result<Option<String>, Failure> {
        let ToFinish::Part { run_id, part, seconds } = decode(message)? else { return Ok(None) };
        let report = Self { part: *part, run_id, seconds };
        Ok(Some(serde_json::to_string(&report).expect("a report is plain data")))
    }
}

/// The message in `bytes`.
///
/// # Errors
/// If it is not one, for example of another version of sluice.
pub fn decode<'a, M: Deserialize<'a>>(bytes: &'a [u8]) -> Result<M, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::unsupported(format!("an element is not a message of this version of sluice: {error}"))
    })
}

/// `message` as JSON.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message is plain data")
}
