//! How far the run of an output has come: the one place that says which objects mean what.
//!
//! | `_manifest.json` | `_SUCCESS` | state |
//! | --- | --- | --- |
//! | any | its hash | succeeded |
//! | says "too many errors" | none | failed |
//! | anything else | | unfinished |
//!
//! - A manifest that says "succeeded" is only ever created, so `_SUCCESS`, which comes after it, stays true. One that
//!   says "too many errors" gives way to it when the same run is begun again with higher limits: it is removed, as
//!   that very version, before the other one is created.
//! - `_SUCCESS` is read first. Whoever reads the manifest first may see one that has given way since.

use super::fence::success_of;
use super::finish::{StoredManifest, sha256_of};
use super::{MANIFEST, Output, SUCCESS};
use crate::error::SinkError;
use crate::report::Outcome;

/// See the table above.
#[derive(Debug)]
pub enum RunState {
    Succeeded(StoredManifest),
    /// The output is whole, with more errors than were allowed.
    Failed(StoredManifest),
    Unfinished,
}

impl Output {
    /// The state of the run that lies here. Objects are asked for by name, as a listing may be behind.
    ///
    /// # Errors
    /// Those of the store. What cannot be understood is no error, but means an unfinished run.
    pub fn state(&self) -> Result<RunState, SinkError> {
        let success = self.read_if_any(SUCCESS)?;
        let Some(manifest) = self.read_if_any(MANIFEST)? else { return Ok(RunState::Unfinished) };
        let Ok(said) = serde_json::from_slice::<StoredManifest>(&manifest) else {
            return Ok(RunState::Unfinished);
        };
        Ok(match success {
            Some(success) if success[..] == success_of(&sha256_of(&manifest))[..] => {
                RunState::Succeeded(said)
            }
            None if said.summary.outcome == Outcome::TooManyErrors => RunState::Failed(said),
            _ => RunState::Unfinished,
        })
    }

    /// Whether the run `run_id` has succeeded here.
    pub(crate) fn is_finished(&self, run_id: &str) -> Result<bool, SinkError> {
        Ok(matches!(self.state()?, RunState::Succeeded(said) if said.run_id == run_id))
    }

    /// The same, as far as that can be seen.
    pub(crate) fn was_finished(&self, run_id: &str) -> bool {
        self.is_finished(run_id).unwrap_or(false)
    }
}
