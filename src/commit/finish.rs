//! The end of a run: `_manifest.json` decides which parts it has, all others are removed, and `_SUCCESS` is published.
//!
//! - A worker that has finished its share publishes its mark before it looks for the marks of the others. So of workers
//!   that end at the same time, at least one sees all marks. An object that a listing lacks is looked up by name: a
//!   listing that lags never leaves a run unfinished.
//! - Of several attempts that see all marks, one creates the manifest. An attempt that finds a manifest that says
//!   "succeeded" without `_SUCCESS` does the rest in its place.
//! - With too many errors the manifest says so, and there is no `_SUCCESS`. Notes and marks stay, so that the same run
//!   can be started again with higher limits. It then removes that version of the manifest and creates another.
//! - Objects that a finished run does not need are removed last.
//! - Every step may be repeated, late, and by several processes at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::attempts::{AttemptNote, Notes};
use super::fence::LEFT_BEHIND;
use super::footer::SCHEMA_VERSION;
use super::listing::{ObjectEntry, OutputListing, names_in};
use super::manifest::{StoredManifest, success_content};
use super::names::{MANIFEST, ObjectName, RUN, STAGING, SUCCESS, TRANSIENT, part_name, shard_index};
use super::output::{Output, json, sha256_of};
use super::overwrite::clear;
use super::record::{RunRecord, check_current};
use super::resume::{Listed, Share};
use super::run_report::{Manifest, RunReport};
use super::state::{OutputState, is_decided, observe};
use super::takeover::{TakenOver, remove_damaged, remove_parts_of_other_runs, take_over};
use super::upload::publish;
use crate::error::{Error, SinkError, SourceError};
use crate::flow::StageShare;
use crate::items::ShardRef;
use crate::plan::Plan;
use crate::report::{Outcome, OutputReport, PartReport, Summary, Tally, rfc3339};
use crate::skipped::Skipped;

/// How many times to try to publish the manifest, or `_SUCCESS`: another attempt may publish one each time.
const PUBLISHING_TRIES: u32 = 3;

/// A run to be finished.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The plan of the run.
    pub plan: &'a Plan,
    /// The record of the run, as it is stored in the output.
    pub record: &'a RunRecord,
}

/// Finish a run whose shards have all been scored, by this process or others. Idempotent: several processes may call
/// it, at the same time or after the run has finished.
///
/// `listed` are the shards of the whole input. `reports` are of parts that the caller has seen published; all other
/// parts are read.
///
/// # Errors
/// Those of the store; [`SinkError::OtherRun`] if the output belongs to another run; [`SourceError::Late`] if a part is
/// missing, and [`SourceError::Changed`] if the parts are those of another input.
pub fn finish(
    output: &Output,
    run: Run<'_>,
    listed: Listed,
    reports: Vec<PartReport>,
) -> Result<RunReport, Error> {
    let Run { plan, record } = run;
    let model_sha256 = record.determinants["model_sha256"].as_str().unwrap_or_default().to_owned();
    if plan.hash(&model_sha256) != record.plan_sha256 {
        let difference = "its plan is another one".to_owned();
        return Err(SinkError::OtherRun { uri: output.uri().to_owned(), difference }.into());
    }
    Ending {
        output,
        plan,
        record,
        model_sha256,
        engines: Vec::new(),
        share: Share::default(),
        note: None,
        written: OutputReport::default(),
        reused: reports,
        failed: None,
        skipped_by_listing: listed.skipped().clone(),
        listed,
        wall: Duration::ZERO,
        startup: Duration::ZERO,
        stages: Vec::new(),
    }
    .finish()
}

/// The end of an attempt, or of a run that is finished without an attempt.
pub(crate) struct Ending<'a> {
    pub output: &'a Output,
    pub plan: &'a Plan,
    pub record: &'a RunRecord,
    pub model_sha256: String,
    pub engines: Vec<String>,
    pub share: Share,
    /// The attempt's note as it was created. `None` without an attempt: then the whole input is known to be scored.
    pub note: Option<AttemptNote>,
    /// Parts and rows that this attempt has written.
    pub written: OutputReport,
    /// Parts of this worker's share that other attempts have stored, as they were read.
    pub reused: Vec<PartReport>,
    /// The input, as far as it was listed.
    pub listed: Listed,
    /// The first shard that failed.
    pub failed: Option<Arc<ShardRef>>,
    /// Objects that the listing has skipped.
    pub skipped_by_listing: Skipped,
    pub wall: Duration,
    pub startup: Duration,
    pub stages: Vec<StageShare>,
}

impl Ending<'_> {
    /// Finish the run if all parts exist, and report how the attempt ended.
    pub fn finish(mut self) -> Result<RunReport, Error> {
        // a listing that ended early, as with a limit, counts an unknown part of the input
        if self.listed.has_ended() {
            self.written.skipped_by_listing = self.skipped_by_listing.clone();
        }
        match self.finish_or_leave() {
            // the attempt that finished the run may have removed objects of this one
            Err(Error::Sink(error)) => match self.decided()? {
                Some(state) => {
                    tracing::debug!(%error, "an object of this attempt was removed");
                    self.end_behind_another(&state)
                }
                None => Err(error.into()),
            },
            done => done,
        }
    }

    /// The state of the output, if the parts of this run are decided.
    fn decided(&self) -> Result<Option<OutputState>, SinkError> {
        let state = observe(self.output)?;
        Ok(state.manifest_of(&self.record.run_id).is_some().then_some(state))
    }

    fn finish_or_leave(&mut self) -> Result<RunReport, Error> {
        let (output, run_id) = (self.output, &self.record.run_id);
        check_current(output, run_id)?;
        let num_shards = self.share.num_shards;
        let mut listing = OutputListing::default();
        if self.note.is_some() {
            if !self.written.drained {
                publish(output, run_id, &ObjectName::Mark(self.share.mark(run_id)).to_string(), b"done\n")?;
            }
            listing = OutputListing::read(output)?;
        }
        // marks are removed after `_SUCCESS` is published, so the state is read after them
        let mut unmarked = None;
        if self.note.is_some() && !self.written.drained {
            // this attempt's own mark exists, whatever the listing says
            listing.marks.insert(self.share.mark(run_id));
            unmarked = listing.first_unmarked(output, num_shards, run_id)?;
        }
        let state = observe(output)?;
        if state.manifest_of(run_id).is_some() {
            return self.end_behind_another(&state);
        }
        let failed = match state {
            OutputState::Failed(record, manifest) if record.run_id == *run_id => Some(*manifest),
            _ => None,
        };
        if self.written.drained {
            return Ok(self.end_of_share(Outcome::Interrupted)?);
        }
        if let Some(index) = unmarked {
            tracing::info!("worker {index} of {num_shards} has not finished its share yet");
            return Ok(self.end_of_share(Outcome::ShareDone)?);
        }
        // A listing is not atomic: it may have passed the place of a part before the part was stored, and yet show the
        // mark of its worker.
        if num_shards > 1 || self.note.is_none() {
            listing = OutputListing::read(output)?;
        }
        listing.add_unlisted_attempts(output, run_id, self.note.as_ref().map(|note| note.attempt))?;
        let notes = Notes::read(output, &listing, run_id, failed)?;
        listing.add_unlisted_batches(output, &notes)?;
        listing.add_unlisted_parts(output, self.listed.parts())?;
        let parts = listing.predictions.values().chain(&listing.batches).cloned();
        let parts = parts.chain(listing.duplicate_parts()).collect();
        let listing = remove_parts_of_other_runs(output, listing, parts, &notes, run_id)?;
        self.listed.compare(&listing, self.record.limit.is_some(), num_shards)?;
        self.complete(&listing, notes)
    }

    /// Another attempt has decided which parts the run has: publish `_SUCCESS`, if it is missing, and remove the
    /// objects that this attempt has left.
    ///
    /// # Errors
    /// When this attempt's share has a shard that the finished run lacks. The part of that shard is removed, because no
    /// manifest will ever list it.
    fn end_behind_another(&self, state: &OutputState) -> Result<RunReport, Error> {
        let (output, run_id) = (self.output, &self.record.run_id);
        tracing::info!("another attempt has finished the run");
        let manifest = state.manifest_of(run_id).expect("the callers have seen that the parts are decided");
        let decided = Decided::of(manifest);
        let listing = match state {
            OutputState::Sealed(..) => complete_sealed(output, run_id, decided)?,
            _ => remove_strays(output, run_id, decided)?,
        };
        tidy_or_warn(output, run_id, &listing);
        let parts = manifest.parts.clone();
        let finished: HashSet<_> = parts.iter().map(|part| &part.path).collect();
        let known = self.written.parts.iter().chain(&self.reused);
        let known = known.filter(|part| !finished.contains(&part.path)).map(|part| part.shard.clone());
        let failed = self.failed.iter().filter(|shard| !finished.contains(&part_name(shard)));
        let is_own = |name: &String| shard_index(name).is_some_and(|index| self.share.takes(index));
        let listed = self.listed.parts().filter(|name| is_own(name) && !finished.contains(name));
        let unscored = failed.map(|shard| shard.name.clone()).chain(listed);
        // shards past a limit have no part
        if let Some(shard) = known.chain(unscored.filter(|_| self.record.limit.is_none())).next() {
            let message = "it was added after the run finished".to_owned();
            return Err(SourceError::Changed { shard, message }.into());
        }
        Ok(self.report(self.whole(parts), Outcome::Succeeded))
    }

    /// All parts exist: publish the manifest, and with few enough errors `_SUCCESS`.
    fn complete(&mut self, listing: &OutputListing, notes: Notes) -> Result<RunReport, Error> {
        let (output, run_id) = (self.output, &self.record.run_id);
        let whole = self.whole(self.predictions(listing, &notes)?);
        if let Some(limit) = self.record.limit {
            self.listed.check_limit(limit, whole.tally.rows(), whole.parts.len(), self.share.num_shards)?;
        }
        self.refuse_empty(&whole)?;
        let outcome = self.outcome(&whole);
        let mut report = self.report(whole, outcome);
        report.batches = self.batches(listing, &notes)?;
        let own = self.note.as_ref().map(|note| note.attempt);
        let others = notes.attempts.into_iter().filter(|note| Some(note.attempt) != own);
        report.attempts.extend(others.map(|note| note.in_short()));
        report.attempts.sort_by_key(|note| note.attempt);
        report.record = output.digest(RUN)?;
        let manifest = json(&Manifest { report: &report, plan: self.plan });
        let (created, manifest_sha256) = publish_manifest(output, manifest, &report)?;
        if !created && let Some(state) = self.decided()? {
            return self.end_behind_another(&state);
        }
        if outcome != Outcome::Succeeded {
            // keep what the same run needs to be started again with higher limits
            self.store_note(outcome)?;
            return Ok(report);
        }
        let decided = Decided { predictions: &report.parts, batches: &report.batches };
        let listing = remove_strays(output, run_id, decided)?;
        publish_success(output, run_id, &manifest_sha256, created)?;
        tidy_or_warn(output, run_id, &listing);
        Ok(report)
    }

    /// The predictions parts of the run. Parts that this attempt has stored, or read when it began, are not read again.
    ///
    /// # Errors
    /// [`SinkError::Damaged`]: the shard of such a part belongs to another worker, or this attempt's engines have stopped.
    fn predictions(&self, listing: &OutputListing, notes: &Notes) -> Result<Vec<PartReport>, SinkError> {
        let known = self.written.parts.iter().chain(&self.reused);
        let (mut parts, others) = split(listing.predictions.values(), known, notes);
        let TakenOver { sound, damaged } =
            take_over(self.output, others.into_iter(), notes, &self.record.run_id)?;
        if let Some(part) = damaged.into_iter().next() {
            let workers = u64::from(self.share.num_shards);
            let worker = shard_index(&part.name).unwrap_or_default() % workers;
            return Err(SinkError::Damaged { uri: self.output.uri_of(&part.name), worker });
        }
        parts.extend(sound);
        parts.sort_by_key(|part| shard_index(&part.path));
        Ok(parts)
    }

    /// The batches parts of the run. A damaged one is removed: only latencies are lost.
    fn batches(&self, listing: &OutputListing, notes: &Notes) -> Result<Vec<PartReport>, SinkError> {
        let (output, run_id) = (self.output, &self.record.run_id);
        let (mut parts, others) = split(listing.batches.iter(), self.written.batches.iter(), notes);
        let TakenOver { sound, damaged } = take_over(output, others.into_iter(), notes, run_id)?;
        remove_damaged(output, &damaged, run_id, "removing a damaged part: its batches are lost")?;
        parts.extend(sound);
        parts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(parts)
    }

    /// A run without a row is an error, unless the plan allows it. If the whole input is known to be scored, and no
    /// other worker shares the run, the run is removed, so that the same command can be run again once the input has
    /// records.
    fn refuse_empty(&self, whole: &OutputReport) -> Result<(), Error> {
        if whole.tally.rows() > 0 || self.plan.input.allow_empty || self.record.limit == Some(0) {
            return Ok(());
        }
        if (self.note.is_some() || self.listed.has_ended()) && self.share.num_shards == 1 {
            // another attempt may have listed another input
            let is_alone =
                OutputListing::read(self.output)?.predictions_beside(&whole.parts).next().is_none();
            if is_alone
                && matches!(observe(self.output)?, OutputState::Unfinished(_) | OutputState::Failed(..))
            {
                clear(self.output, self.record)?;
            }
        }
        let (shards, skipped) = (whole.parts.len(), whole.skipped());
        let skipped = match skipped.total() {
            0 => String::new(),
            total => format!("; skipped {total} that are not images: {skipped}"),
        };
        Err(SourceError::NoInput {
            uri: self.plan.inputs.join(", "),
            message: format!("none of its {shards} shards has a record{skipped}"),
        }
        .into())
    }

    /// The report of the whole run, from its `parts`. Those of this attempt come with what it knows of them.
    fn whole(&self, parts: Vec<PartReport>) -> OutputReport {
        let own: HashSet<_> = self.written.parts.iter().map(|part| &part.path).collect();
        let (own, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| own.contains(&part.path));
        let mut tally = Tally::default();
        own.iter().filter_map(|part| part.rows_by_status.as_ref()).for_each(|rows| tally.add(rows));
        in_input_order(OutputReport { tally, ..self.written.with_parts(own) }.with(others))
    }

    fn outcome(&self, whole: &OutputReport) -> Outcome {
        let limits = &self.plan.output;
        if whole.tally.error_rate() > limits.max_error_rate
            || whole.damaged_shards() > limits.max_damaged_shards
        {
            Outcome::TooManyErrors
        } else {
            Outcome::Succeeded
        }
    }

    /// The run is not finished: store in the note how this attempt ended.
    fn end_of_share(&mut self, outcome: Outcome) -> Result<RunReport, SinkError> {
        self.store_note(outcome)?;
        let share = in_input_order(self.written.clone().with(self.reused.clone()));
        Ok(self.report(share, outcome))
    }

    /// Store in the note how this attempt ended.
    fn store_note(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        let Some(note) = &mut self.note else { return Ok(()) };
        note.parts.clone_from(&self.written.parts);
        note.batches.clone_from(&self.written.batches);
        note.rows = self.written.tally.rows();
        note.outcome = Some(outcome);
        note.updated_at = rfc3339(SystemTime::now());
        note.store(self.output)
    }

    fn report(&self, written: OutputReport, outcome: Outcome) -> RunReport {
        let finished_at = rfc3339(SystemTime::now());
        let note = self.note.as_ref().map(|note| AttemptNote {
            rows: self.written.tally.rows(),
            outcome: Some(outcome),
            updated_at: finished_at.clone(),
            ..note.in_short()
        });
        RunReport {
            schema_version: SCHEMA_VERSION.to_owned(),
            sluice_version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.plan.name.clone(),
            run_id: self.record.run_id.clone(),
            started_at: self.record.started_at.clone(),
            finished_at,
            plan_sha256: self.record.plan_sha256.clone(),
            model_sha256: self.model_sha256.clone(),
            limit: self.record.limit,
            engines: self.engines.clone(),
            summary: Summary::new(&written, outcome, self.stages.clone(), self.wall, self.startup),
            parts: written.parts,
            batches: written.batches,
            record: PartReport { path: RUN.to_owned(), ..PartReport::default() },
            attempts: note.into_iter().collect(),
        }
    }
}

fn in_input_order(mut report: OutputReport) -> OutputReport {
    report.parts.sort_by_key(|part| shard_index(&part.path));
    report
}

/// Split the listed `entries` into reports of those that are `known` and that no note contradicts, and all others.
fn split<'a>(
    entries: impl Iterator<Item = &'a ObjectEntry>,
    known: impl Iterator<Item = &'a PartReport>,
    notes: &Notes,
) -> (Vec<PartReport>, Vec<&'a ObjectEntry>) {
    let known: HashMap<_, _> = known.map(|part| (&part.path, part)).collect();
    let (mut parts, mut others) = (Vec::new(), Vec::new());
    for entry in entries {
        let part = known.get(&entry.name).filter(|part| part.bytes == entry.bytes);
        match part.filter(|part| notes.said_of(&entry.name).iter().all(|said| said == **part)) {
            Some(&part) => parts.push(part.clone()),
            None => others.push(entry),
        }
    }
    (parts, others)
}

/// The parts of a run, as its final manifest lists them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decided<'a> {
    pub predictions: &'a [PartReport],
    pub batches: &'a [PartReport],
}

impl<'a> Decided<'a> {
    pub fn of(manifest: &'a StoredManifest) -> Self {
        Self { predictions: &manifest.parts, batches: &manifest.batches }
    }
}

/// Publish `_SUCCESS` of the sealed run `run_id`, once its parts are the only ones. Returns what [`remove_strays`]
/// does.
///
/// # Errors
/// See there and [`publish_success`].
pub(super) fn complete_sealed(
    output: &Output,
    run_id: &str,
    decided: Decided<'_>,
) -> Result<OutputListing, SinkError> {
    let listing = remove_strays(output, run_id, decided)?;
    publish_success(output, run_id, &sha256_of(&output.read(MANIFEST)?), false)?;
    Ok(listing)
}

/// Remove the staged objects, and then every part that is not among those `decided` for the sealed run `run_id`. Returns
/// the listing that showed these parts.
///
/// An attempt that publishes a part without having seen the manifest has staged it before the manifest was published.
/// So either its part is in the second listing, or its copy finds no source. No attempt at the run publishes under the
/// name of a part that is removed, so no part of the run can be removed by mistake.
///
/// # Errors
/// Those of the store, and [`SinkError::Incomplete`] if one of its predictions parts is missing or has another size.
pub(super) fn remove_strays(
    output: &Output,
    run_id: &str,
    decided: Decided<'_>,
) -> Result<OutputListing, SinkError> {
    // another attempt may be publishing `_SUCCESS` from a staged object
    output.wait_for(SUCCESS)?;
    let staged = OutputListing::read(output)?.staged;
    // read after the listing: no listed object is of a run that has begun since
    check_current(output, run_id)?;
    output.remove(&staged)?;
    let listing = OutputListing::read(output)?;
    let strays = output.versions_of(&listing.parts_beside(decided.predictions, decided.batches))?;
    check_current(output, run_id)?;
    for stray in strays.iter().flatten() {
        let why = "removing a part that the manifest does not list";
        output.runtime().block_on(output.remove_version(stray, why))?;
    }
    listing.check_reported(output, decided.predictions.iter())?;
    Ok(listing)
}

/// Remove the listed objects that the finished run `run_id` does not need, and on a disk their folders, in which a
/// killed process may have left files that no listing shows. Objects that another attempt has created since the listing
/// may stay: that attempt finds the run finished when it ends, and calls this, too.
pub(super) fn tidy(output: &Output, run_id: &str, listing: &OutputListing) -> Result<(), SinkError> {
    let needless: Vec<_> = listing.transient().chain(listing.staged.iter().cloned()).collect();
    remove_transient(output, run_id, &needless, &TRANSIENT)
}

/// If the run `run_id` is decided, remove its notes, checkpoints and crash notes. An attempt that ends without
/// finishing the run calls this last: another one may have finished it before these were stored.
///
/// # Errors
/// Those of the store, and [`SinkError::OtherRun`] if the output belongs to another run.
pub fn tidy_if_decided(output: &Output, run_id: &str) -> Result<(), SinkError> {
    if !is_decided(output, run_id)? {
        return Ok(());
    }
    // the attempt that finishes the run may be publishing from a staged object
    let folders: Vec<_> = TRANSIENT.into_iter().filter(|folder| *folder != STAGING).collect();
    let mut listing = OutputListing::default();
    for folder in &folders {
        names_in(output, folder)?.iter().for_each(|name| listing.add(name, 0));
    }
    remove_transient(output, run_id, &listing.transient().collect::<Vec<_>>(), &folders)
}

/// Remove objects of the run `run_id`, and on a disk the `folders` that they are in.
fn remove_transient(
    output: &Output,
    run_id: &str,
    names: &[String],
    folders: &[&str],
) -> Result<(), SinkError> {
    // no listed object is of a run that has begun since, and the names are unique to their runs
    check_current(output, run_id)?;
    output.remove(names)?;
    for folder in folders.iter().filter(|_| output.local().is_some()) {
        check_current(output, run_id)?;
        output.remove_folder(folder)?;
    }
    Ok(())
}

/// [`tidy`], but a failure is only logged: the run is finished.
fn tidy_or_warn(output: &Output, run_id: &str, listing: &OutputListing) {
    if let Err(error) = tidy(output, run_id, listing) {
        tracing::warn!(%error, "the run is finished, but some of its notes and checkpoints remain");
    }
}

/// Publish the `manifest` of `report`, unless another attempt at the run has published one that lists the same parts.
/// Returns whether it was created, and the hash of the manifest that is stored.
///
/// A manifest that says "too many errors" is replaced by one with another outcome. A manifest that says "succeeded" is
/// never replaced, even if this attempt counts too many errors: another attempt may be about to create `_SUCCESS`.
fn publish_manifest(
    output: &Output,
    manifest: Vec<u8>,
    report: &RunReport,
) -> Result<(bool, String), SinkError> {
    let failed = |message: String| Err(SinkError::Uri { uri: output.uri_of(MANIFEST), message });
    for _ in 0..PUBLISHING_TRIES {
        if publish(output, &report.run_id, MANIFEST, &manifest)? {
            return Ok((true, sha256_of(&manifest)));
        }
        let Some((version, stored)) = output.read_version(MANIFEST)? else { continue };
        let said: StoredManifest = match serde_json::from_slice(&stored) {
            Ok(said) => said,
            Err(error) => return failed(format!("cannot be read ({error}); remove it and run again")),
        };
        let is_same = said.run_id == report.run_id && said.parts == report.parts;
        match (said.summary.outcome, report.summary.outcome) {
            (Outcome::Succeeded, _) if is_same => return Ok((false, sha256_of(&stored))),
            (was, is) if is_same && was == is => return Ok((false, sha256_of(&stored))),
            (Outcome::TooManyErrors, _) if said.run_id == report.run_id => {
                let why = "removing the manifest of the attempt that had too many errors";
                output.runtime().block_on(output.remove_version(&version, why))?;
            }
            _ => return failed("lists other parts than are there; remove it and run again".to_owned()),
        }
    }
    failed("is being replaced by another attempt at the same time; run again".to_owned())
}

/// Publish `_SUCCESS`, which holds the hash of the manifest.
///
/// # Errors
/// Those of the store, and [`SinkError::Uri`] if a `_SUCCESS` exists that names another manifest. If this attempt has
/// `created` the manifest, that `_SUCCESS` is of a run that was removed before, and is replaced.
pub(super) fn publish_success(
    output: &Output,
    run_id: &str,
    manifest_sha256: &str,
    created: bool,
) -> Result<(), SinkError> {
    let content = success_content(manifest_sha256);
    for _ in 0..PUBLISHING_TRIES {
        if publish(output, run_id, SUCCESS, &content)? {
            return Ok(());
        }
        let Some((version, stored)) = output.read_version(SUCCESS)? else { continue };
        if stored[..] == content[..] {
            return Ok(());
        }
        // while this attempt was suspended, somebody may have removed the manifest and run again
        if !created || sha256_of(&output.read(MANIFEST)?) != manifest_sha256 {
            break;
        }
        output.runtime().block_on(output.remove_version(&version, LEFT_BEHIND))?;
    }
    let message = format!(
        "names another manifest than {MANIFEST}; remove both and run again: what is scored stays as it is"
    );
    Err(SinkError::Uri { uri: output.uri_of(SUCCESS), message })
}

#[cfg(test)]
mod tests;
