//! The end of a run: whoever completes it writes `_manifest.json`, then `_SUCCESS`.
//!
//! - A worker that has done its share leaves a mark, and looks for those of the others only then: of
//!   workers that end together at least one sees all marks, and of those that do, one creates the
//!   manifest. What a listing lacks is looked up by name, so that an old one leaves no run without an end.
//! - A manifest that says "succeeded" is created, never replaced, and `_SUCCESS` holds its hash. Whoever finds
//!   one without `_SUCCESS` sees that it lists what is there, and takes it over.
//! - With too many errors the manifest says so, and there is no `_SUCCESS`. Notes and marks stay, so that the
//!   same run can be begun again with higher limits: then this manifest is removed and another one created.
//! - What only a run under way has a use for is removed last of all.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::resume::{Listed, Share};
use super::{
    AttemptNote, MANIFEST, Notes, ObjectEntry, Output, OutputListing, RUN, RunRecord, SCHEMA_VERSION,
    TakenOver, json, shard_index,
};
use crate::error::{Error, SinkError, SourceError};
use crate::flow::StageShare;
use crate::plan::{Plan, hex};
use crate::report::{Outcome, OutputReport, PartReport, Summary, Tally, rfc3339};
use crate::skipped::Skipped;

/// What a run leaves behind, as its manifest says it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    pub schema_version: String,
    pub sluice_version: String,
    pub name: String,
    pub run_id: String,
    /// When the first attempt began. RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    pub plan_sha256: String,
    pub model_sha256: String,
    /// Records the run was limited to, if it was.
    pub limit: Option<u64>,
    /// What scored the input: one for each engine of the last attempt.
    pub engines: Vec<String>,
    /// Rows are those of the whole run; times are those of the last attempt.
    pub summary: Summary,
    /// Predictions parts in input order.
    pub parts: Vec<PartReport>,
    pub batches: Vec<PartReport>,
    /// The record of the run.
    pub record: PartReport,
    /// Attempts at the run: those of all workers, killed ones included.
    pub attempts: Vec<AttemptNote>,
}

/// The manifest: the report and the plan that led to it.
#[derive(Serialize)]
struct Manifest<'a> {
    #[serde(flatten)]
    report: &'a RunReport,
    plan: &'a Plan,
}

/// What of a manifest is looked at again.
#[derive(Debug, Deserialize)]
pub struct StoredManifest {
    pub run_id: String,
    pub finished_at: String,
    pub plan_sha256: String,
    pub model_sha256: String,
    pub limit: Option<u64>,
    pub summary: StoredSummary,
    pub parts: Vec<PartReport>,
    pub batches: Vec<PartReport>,
    pub record: PartReport,
}

/// What of a manifest's summary is looked at again.
#[derive(Debug, Deserialize)]
pub struct StoredSummary {
    pub outcome: Outcome,
    pub rows: u64,
    pub rows_by_status: Tally,
    #[serde(default)]
    pub shards: u64,
    #[serde(default)]
    pub damaged_shards: u64,
    #[serde(default)]
    pub empty_shards: u64,
    #[serde(default)]
    pub skipped: Skipped,
    /// Builds of 27 November 2026 and before do not tell it apart.
    #[serde(default)]
    pub skipped_by_listing: Option<Skipped>,
}

/// The attempt that has come to its end.
pub(crate) struct Ending<'a> {
    pub output: &'a Output,
    pub plan: &'a Plan,
    pub record: &'a RunRecord,
    pub model_sha256: String,
    pub engines: Vec<String>,
    pub share: Share,
    /// As it was created.
    pub note: AttemptNote,
    /// What this attempt has written.
    pub written: OutputReport,
    /// Parts of this worker's share that were there before, as they were read.
    pub reused: Vec<PartReport>,
    /// The whole input, as far as it was listed.
    pub listed: Listed,
    /// What the listing has found that is in no shard.
    pub skipped_by_listing: Skipped,
    pub wall: Duration,
    pub startup: Duration,
    pub stages: Vec<StageShare>,
}

impl Ending<'_> {
    /// Finish the run, if nothing else is missing, and say what it came to.
    pub fn finish(mut self) -> Result<RunReport, Error> {
        // of an input that was listed in part, as with a limit, nobody knows how much of it was
        if self.listed.has_ended() {
            self.written.skipped_by_listing = self.skipped_by_listing.clone();
        }
        match self.finish_or_leave() {
            // who finishes a run tidies up behind whoever still wrote
            Err(Error::Sink(error)) if self.output.was_finished(&self.record.run_id) => {
                tracing::debug!(%error, "something of this attempt was removed");
                self.end_behind_another(&self.output.list()?)
            }
            done => done,
        }
    }

    fn finish_or_leave(&mut self) -> Result<RunReport, Error> {
        self.note.parts.clone_from(&self.written.parts);
        self.note.batches.clone_from(&self.written.batches);
        self.note.rows = self.written.tally.rows();
        let share = in_input_order(self.written.clone().with(self.reused.clone()));
        let (output, run_id) = (self.output, &self.record.run_id);
        output.refuse_another(run_id)?;
        if self.written.drained {
            let listing = output.list()?;
            if output.is_finished(run_id)? {
                return self.end_behind_another(&listing);
            }
            return Ok(self.end(&share, Outcome::Interrupted)?);
        }
        let Share { shard_index, num_shards } = self.share;
        output.mark_done(shard_index, num_shards)?;
        let mut listing = output.list()?;
        // what this attempt has stored is there, whatever the listing says
        listing.done.insert((shard_index, num_shards));
        let unmarked = output.first_unmarked(&mut listing, num_shards)?;
        // whoever finishes a run removes the marks behind `_SUCCESS`
        if output.is_finished(run_id)? {
            return self.end_behind_another(&listing);
        }
        if let Some(index) = unmarked {
            tracing::info!("worker {index} of {num_shards} has not done its share yet");
            return Ok(self.end(&share, Outcome::ShareDone)?);
        }
        if num_shards > 1 {
            // a list is not of one moment: a part may have come to a place that was listed already, and its worker's mark before it was listed
            listing = output.list()?;
        }
        output.remove_foreign_manifest(run_id)?;
        output.add_unlisted_attempts(&mut listing, self.note.attempt)?;
        let notes = output.notes(&listing, run_id)?;
        output.add_unlisted_batches(&mut listing, &notes)?;
        output.add_unlisted_parts(&mut listing, self.listed.parts())?;
        let parts = listing.predictions.values().chain(&listing.batches).cloned();
        let parts = parts.chain(listing.duplicate_parts()).collect();
        let listing = output.without_others(listing, parts, &notes, run_id)?;
        self.listed.compare(&listing, self.record.limit.is_some(), num_shards)?;
        self.complete(&listing, notes)
    }

    /// The run is finished already: remove what this attempt has left since.
    ///
    /// # Errors
    /// When this attempt has scored a shard that the finished run does not know. Its part is removed: no
    /// manifest will ever list it.
    fn end_behind_another(&self, listing: &OutputListing) -> Result<RunReport, Error> {
        let manifest = self.output.manifest()?;
        tracing::info!("another attempt has finished the run");
        self.tidy(listing);
        let strays = listing.beside(&manifest.parts);
        if !strays.is_empty() {
            self.output.refuse_another(&self.record.run_id)?;
            self.output.remove(&strays)?;
        }
        let listed: HashSet<_> = manifest.parts.iter().map(|part| &part.path).collect();
        if let Some(late) = self.written.parts.iter().find(|part| !listed.contains(&part.path)) {
            let message = "it has come since the run was finished".to_owned();
            return Err(SourceError::Changed { shard: late.shard.clone(), message }.into());
        }
        Ok(self.report(&self.whole(manifest.parts), Outcome::Succeeded))
    }

    /// Remove what only a run under way has a use for. The run is finished whether that succeeds or not.
    fn tidy(&self, listing: &OutputListing) {
        if let Err(error) = self.output.tidy(&listing.passing().collect::<Vec<_>>()) {
            tracing::warn!(%error, "the run is finished, but notes and checkpoints of it are left");
        }
    }

    /// All parts are there: write the manifest, and if there are few enough errors `_SUCCESS`.
    fn complete(&mut self, listing: &OutputListing, notes: Notes) -> Result<RunReport, Error> {
        let (output, run_id) = (self.output, &self.record.run_id);
        let whole = self.whole(self.predictions(listing, &notes)?);
        self.refuse_empty(&whole)?;
        let outcome = self.outcome(&whole);
        let mut report = self.report(&whole, outcome);
        report.batches = self.batches(listing, &notes)?;
        let others = notes.attempts.into_iter().filter(|note| note.attempt != self.note.attempt);
        report.attempts.extend(others.map(|note| note.in_short()));
        report.attempts.sort_by_key(|note| note.attempt);
        report.record = output.digest(RUN)?;
        let manifest = json(&Manifest { report: &report, plan: self.plan });
        // reading what is in no note may have taken long
        output.refuse_another(run_id)?;
        let (created, manifest_sha256) = publish(output, manifest, &report)?;
        if outcome == Outcome::Succeeded {
            // whoever was first has written the same
            output.succeed(run_id, &manifest_sha256, created)?;
        }
        if let Err(error @ SinkError::OtherRun { .. }) = output.refuse_another(run_id) {
            output.take_manifest_back(run_id)?;
            return Err(error.into());
        }
        if outcome != Outcome::Succeeded {
            // what the same run needs, begun again with higher limits, stays
            return Ok(self.end(&whole, outcome)?);
        }
        match output.list() {
            Ok(listing) => self.tidy(&listing),
            Err(error) => {
                tracing::warn!(%error, "the run is finished, but what it has left cannot be listed");
            }
        }
        Ok(report)
    }

    /// The predictions parts of the run. Those that this attempt has stored, or read when it began, are not read again.
    ///
    /// # Errors
    /// [`SinkError::Damaged`], for the shard of such a part is another worker's, or the time to score it again is over.
    fn predictions(&self, listing: &OutputListing, notes: &Notes) -> Result<Vec<PartReport>, SinkError> {
        let known = self.written.parts.iter().chain(&self.reused);
        let (mut parts, others) = split(listing.predictions.values(), known, notes);
        let TakenOver { sound, damaged } =
            self.output.take_over(others.into_iter(), notes, &self.record.run_id)?;
        if let Some(part) = damaged.into_iter().next() {
            let workers = u64::from(self.share.num_shards);
            let worker = shard_index(&part.name).unwrap_or_default() % workers;
            return Err(SinkError::Damaged { uri: self.output.uri_of(&part.name), worker });
        }
        parts.extend(sound);
        parts.sort_by_key(|part| shard_index(&part.path));
        Ok(parts)
    }

    /// The batches parts of the run. What is damaged is removed: nothing but latencies is lost.
    fn batches(&self, listing: &OutputListing, notes: &Notes) -> Result<Vec<PartReport>, SinkError> {
        let (output, run_id) = (self.output, &self.record.run_id);
        let (mut parts, others) = split(listing.batches.iter(), self.written.batches.iter(), notes);
        let TakenOver { sound, damaged } = output.take_over(others.into_iter(), notes, run_id)?;
        output.remove_damaged(&damaged, run_id, "removing a damaged part: its batches are lost")?;
        parts.extend(sound);
        parts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(parts)
    }

    /// A run without a row is no success, unless the plan says that it is one. A worker alone leaves the output free,
    /// so that the same command may find more next time.
    fn refuse_empty(&self, whole: &OutputReport) -> Result<(), Error> {
        if whole.tally.rows() > 0 || self.plan.input.allow_empty || self.record.limit == Some(0) {
            return Ok(());
        }
        if self.share.num_shards == 1 {
            self.output.refuse_another(&self.record.run_id)?;
            self.output.clear(self.output.list()?)?;
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

    /// The run's `parts`, this attempt's own among them.
    fn whole(&self, parts: Vec<PartReport>) -> OutputReport {
        let own: HashSet<_> = self.written.parts.iter().map(|part| &part.path).collect();
        let (own, others) = parts.into_iter().partition(|part| own.contains(&part.path));
        let mut whole = OutputReport { tally: Tally::default(), parts: own, ..self.written.clone() };
        whole
            .parts
            .iter()
            .filter_map(|part| part.rows_by_status.as_ref())
            .for_each(|rows| whole.tally.add(rows));
        in_input_order(whole.with(others))
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

    /// The run goes on elsewhere or later, or is not to be used: note how this attempt has ended.
    fn end(&mut self, written: &OutputReport, outcome: Outcome) -> Result<RunReport, SinkError> {
        self.note.outcome = Some(outcome);
        self.note.updated_at = rfc3339(SystemTime::now());
        self.output.replace_note(&self.note)?;
        Ok(self.report(written, outcome))
    }

    fn report(&self, written: &OutputReport, outcome: Outcome) -> RunReport {
        let finished_at = rfc3339(SystemTime::now());
        let note =
            AttemptNote { outcome: Some(outcome), updated_at: finished_at.clone(), ..self.note.in_short() };
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
            summary: Summary::new(written, outcome, self.stages.clone(), self.wall, self.startup),
            parts: written.parts.clone(),
            batches: written.batches.clone(),
            record: PartReport { path: RUN.to_owned(), ..PartReport::default() },
            attempts: vec![note],
        }
    }
}

fn in_input_order(mut report: OutputReport) -> OutputReport {
    report.parts.sort_by_key(|part| shard_index(&part.path));
    report
}

/// Of the parts `held`, what is known of those that are among the `known` ones and of which no note says anything else;
/// and the others.
fn split<'a>(
    held: impl Iterator<Item = &'a ObjectEntry>,
    known: impl Iterator<Item = &'a PartReport>,
    notes: &Notes,
) -> (Vec<PartReport>, Vec<&'a ObjectEntry>) {
    let known: HashMap<_, _> = known.map(|part| (&part.path, part)).collect();
    let (mut parts, mut others) = (Vec::new(), Vec::new());
    for held in held {
        let part = known.get(&held.name).filter(|part| part.bytes == held.bytes);
        match part.filter(|part| notes.said_of(&held.name).iter().all(|said| said == **part)) {
            Some(&part) => parts.push(part.clone()),
            None => others.push(held),
        }
    }
    (parts, others)
}

impl Output {
    /// The manifest that is there.
    pub fn manifest(&self) -> Result<StoredManifest, SinkError> {
        serde_json::from_slice(&self.read(MANIFEST)?).map_err(|error| SinkError::Uri {
            uri: self.uri_of(MANIFEST),
            message: format!("cannot be read: {error}"),
        })
    }
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// How often a manifest is created before it is given up: another attempt may put one there each time.
const PUBLISHING_TRIES: u32 = 3;

/// Create the `manifest` that says `report`, or find one that another attempt at the run has created and that lists
/// the same parts. Returns whether it was created, and the hash of the one that is there.
///
/// One that says "too many errors" gives way to one that says something else. One that says "succeeded" never does,
/// also where this attempt counts too many errors itself: its author may be about to create `_SUCCESS`.
fn publish(output: &Output, manifest: Vec<u8>, report: &RunReport) -> Result<(bool, String), SinkError> {
    let failed = |message: String| Err(SinkError::Uri { uri: output.uri_of(MANIFEST), message });
    for _ in 0..PUBLISHING_TRIES {
        if output.create(MANIFEST, manifest.clone())? {
            return Ok((true, sha256_of(&manifest)));
        }
        let Some(stored) = output.read_if_any(MANIFEST)? else { continue };
        let said: StoredManifest = match serde_json::from_slice(&stored) {
            Ok(said) => said,
            Err(error) => return failed(format!("cannot be read ({error}); remove it and run again")),
        };
        let is_same = said.run_id == report.run_id && said.parts == report.parts;
        match (said.summary.outcome, report.summary.outcome) {
            (Outcome::Succeeded, _) if is_same => return Ok((false, sha256_of(&stored))),
            (was, is) if is_same && was == is => return Ok((false, sha256_of(&stored))),
            (Outcome::TooManyErrors, _) if said.run_id == report.run_id => {
                if !output.remove_failed_manifest(&report.run_id)? {
                    break;
                }
            }
            _ => return failed("lists other parts than are there; remove it and run again".to_owned()),
        }
    }
    failed(
        "is being replaced by another attempt, or one has died in the middle; run again in 15 minutes"
            .to_owned(),
    )
}
