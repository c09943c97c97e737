//! The states of an output, and what may follow each.
//!
//! | state | next state | by |
//! | --- | --- | --- |
//! | vacant | unfinished | any attempt, which creates `_run.json` |
//! | foreign | | nobody |
//! | unfinished | sealed, failed | an attempt at the run, or [`super::finish()`] |
//! | failed | sealed, failed | the same run with other limits: its manifest replaces the failed one |
//! | sealed | succeeded | the same |
//! | any but vacant and foreign | removing | `--overwrite` |
//! | removing | unfinished | the attempt that is removing, when it is done |
//! | removing | removing | `--overwrite`, or an attempt at the same run, after a removal that was interrupted |
//! | unfinished | vacant | an attempt that finds no record in the whole input, through removing |
//!
//! Three objects decide. They are read by name, because a listing may lag:
//!
//! | `_run.json` | `_manifest.json` of that run | `_SUCCESS` | state |
//! | --- | --- | --- | --- |
//! | none | | | vacant, or foreign if anything else is there |
//! | names a run to be removed | | | removing |
//! | names a run | any | its hash | succeeded |
//! | names a run | says "succeeded" | none, or another hash | sealed |
//! | names a run | says "too many errors" | none | failed |
//! | names a run | | | unfinished |
//!
//! - A manifest that says "succeeded" is never replaced: it decides which parts the run has. No attempt publishes
//!   another part afterwards, and none removes a part that it lists. `_SUCCESS` is published when no other part is
//!   left.
//! - `_SUCCESS` is read before the manifest. In the other order, a failed manifest might be paired with the `_SUCCESS`
//!   of the manifest that has replaced it.

use super::listing::OutputListing;
use super::manifest::{StoredManifest, success_content};
use super::names::{MANIFEST, RUN, SUCCESS};
use super::output::{Output, sha256_of};
use super::record::{RunRecord, check_current_async};
use crate::error::SinkError;
use crate::report::Outcome;

/// See the tables above.
#[derive(Debug)]
pub enum OutputState {
    /// The output is empty, or has only objects of an unfinished run that has no record.
    Vacant,
    /// The output has no record of a run, but has this object.
    Foreign(String),
    /// Another run is being removed. This run begins afterwards.
    Removing(RunRecord),
    /// A run that has begun and has not finished.
    Unfinished(RunRecord),
    /// A run whose manifest says that it succeeded, and whose `_SUCCESS` is missing.
    Sealed(RunRecord, Box<StoredManifest>),
    /// All parts exist, with more errors than the plan allows.
    Failed(RunRecord, Box<StoredManifest>),
    /// A run that has succeeded.
    Succeeded(RunRecord, Box<StoredManifest>),
}

impl OutputState {
    /// The run that the output holds, unless it is being removed.
    pub fn record(&self) -> Option<&RunRecord> {
        match self {
            Self::Vacant | Self::Foreign(_) | Self::Removing(_) => None,
            Self::Unfinished(record)
            | Self::Failed(record, _)
            | Self::Sealed(record, _)
            | Self::Succeeded(record, _) => Some(record),
        }
    }

    /// Whether the run `run_id` has succeeded.
    pub fn is_success_of(&self, run_id: &str) -> bool {
        matches!(self, Self::Succeeded(record, _) if record.run_id == run_id)
    }

    /// The run whose parts are decided, and the manifest that lists them.
    pub(super) fn decided(&self) -> Option<(&RunRecord, &StoredManifest)> {
        match self {
            Self::Sealed(record, manifest) | Self::Succeeded(record, manifest) => Some((record, manifest)),
            _ => None,
        }
    }

    /// The manifest, if the parts of the run `run_id` are decided.
    pub fn manifest_of(&self, run_id: &str) -> Option<&StoredManifest> {
        self.decided().filter(|(record, _)| record.run_id == run_id).map(|(_, manifest)| manifest)
    }
}

/// Read the state of an output.
///
/// # Errors
/// Those of the store, and [`SinkError::OtherRun`] if the record cannot be parsed.
pub fn observe(output: &Output) -> Result<OutputState, SinkError> {
    let run = || output.runtime().block_on(observe_run(output));
    if let Some(state) = run()? {
        return Ok(state);
    }
    let Some(found) = OutputListing::read(output)?.anything() else { return Ok(OutputState::Vacant) };
    // an attempt that has begun since creates the record before anything else
    Ok(run()?.unwrap_or(OutputState::Foreign(found)))
}

/// Whether the parts of the run `run_id` are decided: nothing that is stored later belongs to it.
///
/// # Errors
/// Those of the store, and [`SinkError::OtherRun`] if the output does not belong to the run.
pub fn is_decided(output: &Output, run_id: &str) -> Result<bool, SinkError> {
    output.runtime().block_on(async { Ok(final_manifest(output, run_id).await?.is_some()) })
}

/// The manifest of the run `run_id`, if its parts are decided.
///
/// # Errors
/// See [`is_decided`].
pub(super) async fn final_manifest(
    output: &Output,
    run_id: &str,
) -> Result<Option<Box<StoredManifest>>, SinkError> {
    check_current_async(output, run_id).await?;
    // a short answer while the run goes on
    if output.version(MANIFEST).await?.is_none() {
        return Ok(None);
    }
    Ok(match observe_run(output).await? {
        Some(OutputState::Sealed(record, manifest) | OutputState::Succeeded(record, manifest))
            if record.run_id == run_id =>
        {
            Some(manifest)
        }
        _ => None,
    })
}

/// Read the state of the run in an output. `None` if the output has no record of a run.
pub(super) async fn observe_run(output: &Output) -> Result<Option<OutputState>, SinkError> {
    let Some(record) = output.get(RUN).await? else { return Ok(None) };
    let record: RunRecord = serde_json::from_slice(&record).map_err(|error| SinkError::OtherRun {
        uri: output.uri().to_owned(),
        difference: format!("{RUN} cannot be read: {error}"),
    })?;
    if record.removing.is_some() {
        return Ok(Some(OutputState::Removing(record)));
    }
    let success = output.get(SUCCESS).await?;
    let manifest = output.get(MANIFEST).await?.unwrap_or_default();
    let said = serde_json::from_slice::<StoredManifest>(&manifest).ok();
    let said = said.filter(|said| said.run_id == record.run_id).map(Box::new);
    Ok(Some(match (said, success) {
        (Some(said), Some(success)) if success[..] == success_content(&sha256_of(&manifest))[..] => {
            OutputState::Succeeded(record, said)
        }
        (Some(said), _) if said.summary.outcome == Outcome::Succeeded => OutputState::Sealed(record, said),
        (Some(said), None) if said.summary.outcome == Outcome::TooManyErrors => {
            OutputState::Failed(record, said)
        }
        _ => OutputState::Unfinished(record),
    }))
}
