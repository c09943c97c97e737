//! The commit protocol: attempts may be killed, repeated, suspended and run side by side; the output is whole.
//!
//! Guarantees:
//! - An output with `_SUCCESS` has exactly one part for each shard in `predictions/`, and each part is as its attempt
//!   wrote it.
//! - An attempt may be killed at any moment. The next attempt resumes from the parts and checkpoints that exist.
//! - Any number of attempts at one run may be alive at once: workers that share the run, or an attempt that was thought
//!   to be dead.
//! - A run that `--overwrite` removed leaves nothing in the output, whatever its attempts do when they wake.
//!
//! Requirements on the store: an object can be read under its name as soon as its creation is acknowledged, and of
//! several requests that create one name, one succeeds. Listings may lag, except where they are used to remove objects:
//! after the manifest is published, and during `--overwrite`. No decision depends on a clock. [`crate::docs::protocol`]
//! describes each step. Azure may accept a copy and carry it out later; until then the object is empty, and the attempt
//! that publishes it waits.
//!
//! # One part for each shard
//! The name of a part is derived from the shard's place and version, so two attempts never make two parts of one shard:
//! both create the same name, and one succeeds. Attempts join one run if everything that determines the predictions is
//! the same ([`claim()`]). Each attempt has a number and a note that lists the parts it stored, with their hashes. To
//! finish the run ([`finish()`]), an attempt compares the parts with the listed input, publishes a manifest with the
//! hash of each part, removes all other parts, and publishes `_SUCCESS` with the manifest's hash. A manifest that
//! says "succeeded" is never replaced. [`OutputState`] has the states in between.
//!
//! # The fence
//! Every object that counts as a result (parts, the manifest, `_SUCCESS`, the marks of workers that finished their
//! share) is published in four steps:
//!
//! 1. The bytes are stored under `_staging/`, under a unique name.
//! 2. `_run.json` is read, and must name the run. If the object is a predictions part and there is a manifest that says
//!    "succeeded", it must list the part.
//! 3. The staged object is copied to its final name, unless that name exists.
//! 4. The staged object is removed.
//!
//! `--overwrite` replaces `_run.json` first, on condition that it has not changed since it was read. Then it removes
//! `_SUCCESS`, the manifest, the staged objects, and everything else, in this order ([`overwrite()`]). After that,
//! nothing of the old run appears:
//!
//! - An attempt that reads `_run.json` after it was replaced stops at step 2.
//! - An attempt that read it before that had staged its object earlier still. Either the object was copied before the
//!   staged objects were removed, and the copy is removed with everything else; or the copy finds no source.
//!
//! The manifest is a fence of the same kind, because two attempts at one run may have listed different inputs. The
//! attempt that published it removes the staged objects, lists the output again, removes the parts that the manifest
//! does not list, and checks that all others exist. Only then it publishes `_SUCCESS`. So nobody sees `_SUCCESS` beside
//! another part.
//!
//! On S3 a copy that must not replace anything is three requests: the second reads the source, the third makes the
//! object appear. An attempt that is suspended between them may publish late. Therefore step 2 is repeated after each
//! copy, even a failed one. If a final manifest of the current run does not list the part, or the output has no run,
//! the attempt removes its part. Nothing else is published under that name, so nothing else can be removed by mistake.
//! If the current run has no final manifest yet, the attempt leaves the part: a run removes the parts of other runs,
//! which it recognises by their footers, when an attempt begins, when an attempt publishes the same name, and before
//! `_SUCCESS`.
//!
//! # Limits
//! - To remove one version of an object (a damaged part, a part of another run, a failed manifest) takes a HEAD and a
//!   DELETE. An attempt that is suspended exactly between them may remove a part that another attempt, or the next run
//!   after an `--overwrite`, has published since. `run` and `verify` then report the object as missing.
//! - On S3, an attempt that is suspended between the second and the third request of a copy, until the current run has
//!   finished, publishes its part beside `_SUCCESS` when it wakes, and removes it at once. If it is killed in between,
//!   the part stays until the next attempt. On every store, the same is true of a request that the store executes late.
//!   `verify` reports such a part.
//! - Of two `--overwrite` commands at the same time one stops, but up to 32 of its deletes may come late. The same is
//!   true of an interrupted removal that was taken over while the first command was still alive.
//! - On a disk, the cleanup after a finished run removes whole folders, and reads `_run.json` before each. An attempt
//!   that is suspended exactly between the two removes notes, checkpoints and staged objects of the next run.
//! - An attempt that finds no record in the whole input checks that no other attempt found any, and then removes the
//!   run. If another attempt finishes the run between the check and the removal, the finished run is removed.
//! - On a disk, `_run.json` is compared and replaced in two calls. A command that is suspended exactly between them
//!   replaces a newer record.

mod attempts;
mod body;
mod checkpoints;
mod claim;
mod crashes;
mod fence;
mod finish;
mod finished;
mod footer;
mod history;
mod listing;
mod lookup;
mod manifest;
mod names;
mod obstacles;
mod output;
mod overwrite;
mod record;
mod resume;
mod run_report;
mod segments;
mod state;
mod stored_part;
mod takeover;
#[cfg(test)]
pub(crate) mod testing;
mod upload;
mod verify;

pub(crate) use attempts::part_reports;
pub use attempts::{AttemptNote, Notes};
pub use checkpoints::{Checkpoints, Segment};
pub use claim::{Claim, admit, claim};
pub use crashes::{Crashes, note_crash};
pub(crate) use finish::Ending;
pub use finish::{Run, finish, tidy_if_decided};
pub use finished::check_finished;
pub use footer::SCHEMA_VERSION;
pub(crate) use footer::{
    ATTEMPT, BODY, DAMAGE, LABELS, PLAN, ROWS_BY_STATUS, RUN_ID, SCHEMA, SHARD, SHARD_BYTES, SHARD_FORMAT,
    SHARD_IDENTITY, SHARD_VERSION, SKIPPED,
};
pub use history::{ShardHistory, shard_history};
pub use listing::{ObjectEntry, OutputListing};
pub use manifest::{StoredManifest, StoredSummary};
pub use names::{MANIFEST, ObjectName, PartName, RUN, SUCCESS, part_name, shard_index};
pub use output::{Output, json};
pub use overwrite::overwrite;
pub use record::{RunRecord, check_current};
pub use resume::{Done, Listed, Remaining, Share, StoredParts};
pub use run_report::RunReport;
pub(crate) use segments::{READ_BYTES, read_segment, sound_checkpoints};
pub use state::{OutputState, is_decided, observe};
pub(crate) use stored_part::read_part_twice;
pub(crate) use takeover::{TakenOver, take_over, without_damaged};
pub(crate) use upload::{PendingUpload, Stored, UPLOAD_BYTES, Upload};
pub use verify::{Verification, verify};
