//! `--overwrite`: removing a run so that another one can begin in its place.
//!
//! 1. `_run.json` is replaced with the record of the new run, marked as removing the old one. From now on no attempt at
//!    the old run publishes anything. The record is read back: of two commands that begin at the same time, the one
//!    whose record was replaced stops.
//! 2. `_SUCCESS` is removed, then the manifest: the output is no longer a finished run.
//! 3. The staged objects are removed, so that an attempt that read the old record cannot publish them.
//! 4. Everything else is removed, and listed again until nothing is left. The removals of steps 2 to 4 come in groups
//!    of at most 32 objects, and `_run.json` is read before each group.
//! 5. The record is replaced with the same record without the mark, and read back.
//!
//! Both replacements are conditional on the record that was read ([`Output::swap`]), so a command that wakes up late
//! never replaces the record of another. On a disk the record is compared and then replaced.
//!
//! An interrupted removal is started again at step 1 under a new run id, by `--overwrite` or by an attempt at the same
//! run; see [`super::state`].

use super::listing::OutputListing;
use super::names::{MANIFEST, RUN, STAGING, SUCCESS, TRANSIENT};
use super::obstacles::remove_obstacles;
use super::output::{Output, json, random_name};
use super::record::{RunRecord, check_current};
use crate::error::SinkError;

/// Objects that are removed between two reads of the record.
const GROUP: usize = 32;

/// How many times to list the output: requests of the old run that the store executes late may still create objects.
/// The new run removes an object that appears later when it finds it.
const LISTINGS: usize = 8;

/// Remove the run in the output and all its parts, so that the run of `record` can begin.
///
/// # Errors
/// [`SinkError::Occupied`], before anything is removed, if there is an object that no run writes;
/// [`SinkError::OtherRun`] if another command does the same at this time.
pub fn overwrite(output: &Output, record: &RunRecord) -> Result<(), SinkError> {
    let listing = OutputListing::read(output)?;
    if let Some(what) = listing.foreign {
        return Err(SinkError::Occupied { uri: output.uri().to_owned(), what });
    }
    remove_obstacles(output)?;
    let is_vacant = listing.anything().is_none() && listing.staged.is_empty();
    if is_vacant && output.read_if_any(RUN)?.is_none() {
        return Ok(());
    }
    replace_run(output, record, None)
}

/// Remove the run in the output, and leave `record`. If an interrupted removal is taken over, it must still be the one
/// that was `observed`.
///
/// # Errors
/// [`SinkError::OtherRun`] if another process has replaced the record since.
pub(super) fn replace_run(
    output: &Output,
    record: &RunRecord,
    observed: Option<&RunRecord>,
) -> Result<(), SinkError> {
    let removing = remove_run(output, record, observed)?;
    // if another process has replaced the record, the check fails
    output.swap(RUN, &removing, json(record))?;
    check_current(output, &record.run_id)
}

/// Remove the run of `record`, and leave the output vacant.
pub(super) fn clear(output: &Output, record: &RunRecord) -> Result<(), SinkError> {
    // a unique id: of two attempts that do this at the same time, one stops
    let after = RunRecord { run_id: format!("cleared-{}", random_name()), ..record.clone() };
    remove_run(output, &after, Some(record))?;
    let version = output.runtime().block_on(output.version(RUN))?;
    check_removing(output, &after)?;
    let Some(version) = version else { return Ok(()) };
    output.runtime().block_on(output.remove_version(&version, "removing a run that has no rows"))
}

/// Steps 1 to 4. Returns the content of the record until step 5.
fn remove_run(
    output: &Output,
    record: &RunRecord,
    observed: Option<&RunRecord>,
) -> Result<Vec<u8>, SinkError> {
    let found = output.read_if_any(RUN)?;
    let old = found.as_deref().and_then(|bytes| serde_json::from_slice::<RunRecord>(bytes).ok());
    if observed.is_some() && observed != old.as_ref() {
        return Err(replaced(output, old));
    }
    let old = old.map_or(String::new(), |old| old.removing.unwrap_or(old.run_id));
    tracing::info!(run_id = old, "removing a run");
    let removing = json(&RunRecord { removing: Some(old), ..record.clone() });
    let is_replaced = match found {
        Some(found) => output.swap(RUN, &found, removing.clone())?,
        None => output.create(RUN, removing.clone())?,
    };
    if !is_replaced {
        return Err(replaced(output, None));
    }
    for end in [SUCCESS, MANIFEST] {
        check_removing(output, record)?;
        output.remove(&[end.to_owned()])?;
    }
    for _ in 0..LISTINGS {
        remove_all(output, record, &OutputListing::read(output)?.staged)?;
        check_removing(output, record)?;
        output.remove_folder(STAGING)?;
        let listing = OutputListing::read(output)?;
        let rest: Vec<_> = listing.results().chain(listing.transient()).filter(|name| name != RUN).collect();
        if rest.is_empty() {
            break;
        }
        remove_all(output, record, &rest)?;
    }
    for folder in TRANSIENT.iter().filter(|_| output.local().is_some()) {
        check_removing(output, record)?;
        output.remove_folder(folder)?;
    }
    Ok(removing)
}

fn remove_all(output: &Output, record: &RunRecord, names: &[String]) -> Result<(), SinkError> {
    for group in names.chunks(GROUP) {
        check_removing(output, record)?;
        output.remove(group)?;
    }
    Ok(())
}

/// Check that the output is still being emptied for the run of `record`.
fn check_removing(output: &Output, record: &RunRecord) -> Result<(), SinkError> {
    let now = output.read_if_any(RUN)?.and_then(|bytes| serde_json::from_slice::<RunRecord>(&bytes).ok());
    match now {
        Some(now) if now.run_id == record.run_id && now.removing.is_some() => Ok(()),
        now => Err(replaced(output, now)),
    }
}

/// The error if the record of the run has been replaced: it is `now` another.
fn replaced(output: &Output, now: Option<RunRecord>) -> SinkError {
    let by = now.map_or("another command".to_owned(), |now| format!("the run {}", now.run_id));
    let difference = format!("{by} has replaced it at the same time");
    SinkError::OtherRun { uri: output.uri().to_owned(), difference }
}

#[cfg(test)]
mod tests;
