//! A finished run that is started again: nothing is scored, the output is checked.

use super::checkpoints::Checkpoints;
use super::crashes::Crashes;
use super::finish::{Decided, remove_strays, tidy};
use super::listing::OutputListing;
use super::manifest::StoredManifest;
use super::output::Output;
use super::resume::{Done, Remaining, Share};
use crate::error::{Error, SourceError};
use crate::items::ShardRef;

/// Check by names and sizes that a finished run is complete, and that it has the parts of `shards` and no others. A run
/// with a `limit` may have parts of the first shards only. Nothing is written; objects that an attempt left when it was
/// killed after the end of the run are removed.
///
/// # Errors
/// [`crate::error::SinkError::Incomplete`] when something that the manifest lists is missing or has another size, and
/// [`SourceError::Changed`].
pub fn check_finished(
    output: &Output,
    shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    limit: Option<u64>,
) -> Result<(), Error> {
    let listing = OutputListing::read(output)?;
    let manifest = StoredManifest::read(output)?;
    listing.check_reported(output, manifest.parts.iter().chain(&manifest.batches))?;
    if !listing.parts_beside(&manifest.parts, &manifest.batches).is_empty() {
        remove_strays(output, &manifest.run_id, Decided::of(&manifest))?;
    }
    if limit == Some(manifest.summary.rows) {
        return Ok(());
    }
    let done = Done::listed(&manifest.parts);
    let (checkpoints, crashes) = (Checkpoints::default(), Crashes::default());
    match Remaining::new(shards, done, checkpoints, crashes, Share::default()).next().transpose()? {
        None => Ok(tidy(output, &manifest.run_id, &listing)?),
        Some((shard, _)) => {
            let message = "it was added after the run finished".to_owned();
            Err(SourceError::Changed { shard: shard.name, message }.into())
        }
    }
}
