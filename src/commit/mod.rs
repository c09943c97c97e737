//! The commit protocol: how attempts that are killed, repeated, suspended and shared leave one whole output.
//!
//! What is promised:
//! - Whoever reads `predictions/` of an output that has `_SUCCESS` finds exactly one part for each shard, and each part
//!   is as its attempt has written it.
//! - An attempt may be killed at any moment. The next one resumes with the parts and checkpoints it has left.
//! - Any number of attempts at one run may be alive at once, as workers that share it, or because one was taken for dead.
//! - A run that was removed by `--overwrite` leaves nothing in the output, whatever its attempts do when they wake.
//!
//! What a store must offer: an object is readable under its name as soon as its creation is acknowledged, and of
//! several requests that create one name, one succeeds. Listings may lag, except after `_SUCCESS` is published and for
//! `--overwrite`, which remove what they list. Clocks decide nothing. [`crate::docs::protocol`] tells the steps one
//! by one.
//!
//! # One part for each shard
//! The name of a part follows from the shard's place and version, so two attempts never make two parts of one shard:
//! both create the same name, and the store lets one of them. [`claim()`] joins attempts into a run by what determines the
//! predictions; each gets a number, and notes the parts that it has stored with their hashes. Whoever finishes the run
//! ([`finish()`]) compares the parts with the listed input, publishes a manifest with the hash of each, and then
//! `_SUCCESS` with the manifest's hash. Neither is ever replaced. [`OutputState`] has the states in between.
//!
//! # The fence
//! Every object that somebody may take for a result (parts, the manifest, `_SUCCESS`, marks of workers that have done
//! their share) is published in four steps:
//!
//! 1. its bytes are stored under `_staging/`, with a name of its own;
//! 2. `_run.json` is read, and must name the run; for a predictions part, `_SUCCESS` is looked for, and if the run has
//!    finished, its manifest must list the part;
//! 3. the staged object is copied to its name, if there is none;
//! 4. the staged object is removed.
//!
//! `--overwrite` replaces `_run.json` first, on condition that it is as it was read. Then it removes `_SUCCESS`, the
//! manifest, the staged objects, and last everything else ([`overwrite()`]). So nothing of the old run appears after
//! that:
//!
//! - An attempt that reads `_run.json` after it was replaced stops at step 2.
//! - An attempt that read it before had staged its object before. Either it has copied the object by the time that staged
//!   objects are removed, and the copy is removed with everything else; or its copy finds no source.
//!
//! The end of a run is a fence of the same kind, for an attempt at the run may have listed another input than the one
//! that has finished it. Whoever has published `_SUCCESS` removes the staged objects, lists the output again, and removes
//! the parts that the manifest does not list.
//!
//! On S3 a copy that creates is three requests: the second reads the source, the third makes the object appear. An attempt
//! that is suspended between them may publish late. Therefore step 2 is repeated after each copy, also after one that
//! failed. If another run has finished by then, or no run is left, the attempt removes its part, unless the manifest
//! lists that name. Nobody else publishes under that name, so the removal hits nothing else. If the other run has not
//! finished, the attempt leaves the part to it. A run removes the parts of other runs, which it knows by their footers,
//! when an attempt begins, when an attempt publishes the same name, and after it has published `_SUCCESS`.
//!
//! # Limits
//! - One version of an object (a damaged part, a part of another run) is removed by a HEAD and a DELETE. An attempt that
//!   is suspended exactly between them may remove a part that another attempt, or the next run after an `--overwrite`,
//!   has published since. `run` and `verify` then report that the part is missing.
//! - If the store itself carries out a request of a removed run after the next run has ended, nobody removes its part.
//!   `verify` reports it.
//! - Of two `--overwrite` at the same time one stops, but up to 32 of its deletes may come late. The same is true of an
//!   interrupted removal that was taken over, if the first command is still alive.
//! - Notes and marks have the same names in every run. Whoever tidies up after a finished run reads `_run.json` before
//!   each group of 32; a group that the store carries out after an `--overwrite` removes notes of the next run.
//! - An attempt that finds no record in the whole input checks that no other attempt has found any, and then removes the
//!   run. A run that another attempt finishes between the check and the removal is removed, too.
//! - On a disk, `_run.json` is compared and replaced in two calls. A command that is suspended exactly between them
//!   replaces a newer record.

mod attempts;
mod body;
mod checkpoints;
mod claim;
mod crashes;
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
mod testing;
mod upload;
mod verify;

pub(crate) use attempts::part_reports;
pub use attempts::{AttemptNote, Notes};
pub use checkpoints::{Checkpoints, Segment};
pub use claim::{Claim, admit, claim};
pub use crashes::{Crashes, note_crash};
pub(crate) use finish::{Ending, unmark_done};
pub use finish::{Run, finish};
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
pub use resume::{Done, Listed, Remaining, Share};
pub use run_report::RunReport;
pub(crate) use segments::{READ_BYTES, read_segment, sound_checkpoints};
pub(crate) use state::has_succeeded;
pub use state::{OutputState, observe};
pub(crate) use stored_part::read_part;
pub(crate) use takeover::{DamagedPart, TakenOver, take_over, without_damaged};
pub(crate) use upload::{PendingUpload, Stored, UPLOAD_BYTES, Upload};
pub use verify::{Verification, verify};
