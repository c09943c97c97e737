//! `--overwrite`: a run is removed, and another one begins in its place.
//!
//! 1. `_run.json` is replaced by the record of the new run, which says that the old one is being removed. From now on no
//!    attempt at the old run publishes anything. The record is read back: of two commands that begin at the same time,
//!    the one whose record was replaced stops.
//! 2. `_SUCCESS` is removed, then the manifest: what is left is no finished run.
//! 3. The staged objects are removed: an attempt that read the old record cannot publish them any more.
//! 4. Everything else is removed, and listed again until nothing is left. Before each removal of these steps, 32 objects at
//!    most, `_run.json` is read again.
//! 5. The record is replaced by the same without that word, and read back.
//!
//! Both replacements are conditional on the record that was read ([`Output::swap`]), so a command that wakes up late
//! replaces no other one's record. On a disk the gap between a look and the replacement stays.
//!
//! A removal that was interrupted is taken over from step 1 under a new run id, by `--overwrite` or by an attempt at the
//! same run; see [`super::state`].

use super::listing::OutputListing;
use super::names::{MANIFEST, RUN, STAGING, SUCCESS, TRANSIENT};
use super::obstacles::remove_obstacles;
use super::output::{Output, json, random_name};
use super::record::{RunRecord, check_current};
use crate::error::SinkError;

/// Objects that are removed between two looks at the record.
pub(super) const GROUP: usize = 32;

/// How often the output is listed at most: requests of the old run that the store carries out late may still create
/// objects. The new run removes an object that comes later, or that a listing still shows, when it meets it.
const LISTINGS: usize = 8;

/// Remove the run in the output and all its parts, so that the run of `record` can begin.
///
/// # Errors
/// [`SinkError::Occupied`], and then nothing is removed, if there is an object that is not of an output;
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

/// Remove the run in the output, and leave `record`. A removal that is taken over is the one that was `observed`.
///
/// # Errors
/// [`SinkError::OtherRun`] if somebody else has replaced the record of the run meanwhile.
pub(super) fn replace_run(
    output: &Output,
    record: &RunRecord,
    observed: Option<&RunRecord>,
) -> Result<(), SinkError> {
    let removing = remove_run(output, record, observed)?;
    // if somebody else has replaced the record, the next look says so
    output.swap(RUN, &removing, json(record))?;
    check_current(output, &record.run_id)
}

/// Remove the run of `record`, and leave the output vacant.
pub(super) fn clear(output: &Output, record: &RunRecord) -> Result<(), SinkError> {
    // of two attempts that do this at the same time, one stops
    let after = RunRecord { run_id: format!("cleared-{}", random_name()), ..record.clone() };
    remove_run(output, &after, Some(record))?;
    let version = output.runtime().block_on(output.version(RUN))?;
    check_removing(output, &after)?;
    let Some(version) = version else { return Ok(()) };
    output.runtime().block_on(output.remove_version(&version, "removing a run that has no rows"))
}

/// Steps 1 to 4; the content of the record in between.
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
        let mut published: Vec<_> = OutputListing::read(output)?.published().collect();
        published.retain(|name| name != RUN);
        if published.is_empty() {
            break;
        }
        remove_all(output, record, &published)?;
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

/// That the output is still being emptied for the run of `record`.
fn check_removing(output: &Output, record: &RunRecord) -> Result<(), SinkError> {
    let now = output.read_if_any(RUN)?.and_then(|bytes| serde_json::from_slice::<RunRecord>(&bytes).ok());
    match now {
        Some(now) if now.run_id == record.run_id && now.removing.is_some() => Ok(()),
        now => Err(replaced(output, now)),
    }
}

/// The record of the run is `now` another one than it was.
fn replaced(output: &Output, now: Option<RunRecord>) -> SinkError {
    let by = now.map_or("another command".to_owned(), |now| format!("the run {}", now.run_id));
    let difference = format!("{by} has replaced it at the same time");
    SinkError::OtherRun { uri: output.uri().to_owned(), difference }
}

#[cfg(test)]
mod tests;
