//! The end of a run: whoever completes it writes `_manifest.json`, then `_SUCCESS`.
//!
//! - A worker that has done its share leaves a mark, and looks for those of the others only then: of
//!   workers that end together at least one sees all marks, and of those that do, one creates the
//!   manifest.
//! - The manifest is created, never replaced, and `_SUCCESS` holds its hash. Whoever finds a manifest
//!   without `_SUCCESS` sees that it lists what is there, and goes on from it.
//! - What only a run under way has a use for is removed last of all.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, SinkError, SourceError};
use crate::flow::StageShare;
use crate::plan::{Plan, hex};
use crate::report::{Outcome, OutputReport, PartReport, Summary, Tally, rfc3339};
use crate::resume::Share;
use crate::sink::{AttemptNote, Holdings, MANIFEST, Output, RUN, RunRecord, SCHEMA_VERSION, SUCCESS, json};

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
    pub summary: StoredSummary,
    pub parts: Vec<PartReport>,
    pub batches: Vec<PartReport>,
    pub record: PartReport,
}

/// What of a manifest's summary is looked at again.
#[derive(Debug, Deserialize)]
pub struct StoredSummary {
    pub rows: u64,
    pub rows_by_status: Tally,
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
    /// Parts of this worker's share that were there before.
    pub reused: Vec<PartReport>,
    /// Shards of the whole input; `None` if it was not listed to its end.
    pub listed: Option<u64>,
    pub wall: Duration,
    pub startup: Duration,
    pub stages: Vec<StageShare>,
}

impl Ending<'_> {
    /// Finish the run, if nothing else is missing, and say what it came to.
    pub fn finish(mut self) -> Result<RunReport, Error> {
        self.note.parts.clone_from(&self.written.parts);
        self.note.batches.clone_from(&self.written.batches);
        self.note.rows = self.written.tally.rows();
        let share = self.written.clone().with(std::mem::take(&mut self.reused));
        if self.written.drained {
            return Ok(self.end(&share, Outcome::Interrupted)?);
        }
        self.output.mark_done(self.share.shard_index, self.share.num_shards)?;
        let Share { num_shards, .. } = self.share;
        let missing = |holdings: &Holdings| {
            (0..num_shards).find(|&index| !holdings.done.contains(&(index, num_shards)))
        };
        let mut holdings = self.output.holdings()?;
        if missing(&holdings).is_some() {
            // a list is not of one moment: whoever has finished the run may have removed marks meanwhile
            holdings = self.output.holdings()?;
        }
        if holdings.finished {
            return Ok(self.end_behind_another(&holdings)?);
        }
        if let Some(index) = missing(&holdings) {
            tracing::info!("worker {index} of {num_shards} has not done its share yet");
            return Ok(self.end(&share, Outcome::ShareDone)?);
        }
        self.refuse_gaps(&holdings)?;
        self.complete(&holdings)
    }

    /// The run is finished already: remove what this attempt has left since.
    fn end_behind_another(&self, holdings: &Holdings) -> Result<RunReport, SinkError> {
        let manifest = self.output.manifest()?;
        if manifest.run_id != self.record.run_id {
            let difference = format!("the run {} has taken its place meanwhile", manifest.run_id);
            return Err(SinkError::OtherRun { uri: self.output.uri().to_owned(), difference });
        }
        tracing::info!("another attempt has finished the run");
        self.output.tidy(&holdings.passing().collect::<Vec<_>>())?;
        Ok(self.report(&self.whole(manifest.parts), Outcome::Succeeded))
    }

    /// Every shard has a part.
    fn refuse_gaps(&self, holdings: &Holdings) -> Result<(), SourceError> {
        let missing = (0..self.listed.unwrap_or_default()).find(|at| !holdings.predictions.contains_key(at));
        let Some(missing) = missing else { return Ok(()) };
        let worker = missing % u64::from(self.share.num_shards);
        let message = format!("it has no part: it has come since worker {worker} has done its share");
        Err(SourceError::Changed { shard: format!("shard {missing}"), message })
    }

    /// All parts are there: write the manifest, and if there are few enough errors `_SUCCESS`.
    fn complete(mut self, holdings: &Holdings) -> Result<RunReport, Error> {
        let (output, run_id) = (self.output, &self.record.run_id);
        let notes = output.notes(holdings)?;
        let whole = self.whole(output.reports(holdings.predictions.values(), &notes, run_id)?);
        let mut report = self.report(&whole, self.outcome(&whole));
        if report.summary.outcome != Outcome::Succeeded {
            return Ok(self.end(&whole, report.summary.outcome)?);
        }
        report.batches = output.reports(holdings.batches.iter(), &notes, run_id)?;
        let others = notes.attempts.into_iter().filter(|note| note.attempt != self.note.attempt);
        report.attempts.extend(others.map(|note| note.in_short()));
        report.attempts.sort_by_key(|note| note.attempt);
        report.record = output.digest(RUN)?;
        let manifest = json(&Manifest { report: &report, plan: self.plan });
        let manifest_sha256 = if output.create(MANIFEST, manifest.clone())? {
            hex(&Sha256::digest(&manifest))
        } else {
            adopt(output, &report.parts)?
        };
        // whoever was first has written the same
        output.create(SUCCESS, format!("{manifest_sha256}\n").into_bytes())?;
        output.tidy(&output.holdings()?.passing().collect::<Vec<_>>())?;
        Ok(report)
    }

    /// What this attempt has written, with those of the run's `parts` that are others'.
    fn whole(&self, mut parts: Vec<PartReport>) -> OutputReport {
        let own: HashSet<_> = self.written.parts.iter().map(|part| &part.path).collect();
        parts.retain(|part| !own.contains(&part.path));
        self.written.clone().with(parts)
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

impl Output {
    /// Whether the run `record` is finished here.
    pub(crate) fn is_finished(&self, record: &RunRecord) -> Result<bool, SinkError> {
        Ok(self.holdings()?.finished && self.manifest()?.run_id == record.run_id)
    }

    /// The manifest that is there.
    pub(crate) fn manifest(&self) -> Result<StoredManifest, SinkError> {
        serde_json::from_slice(&self.read(MANIFEST)?).map_err(|error| SinkError::Uri {
            uri: self.uri_of(MANIFEST),
            message: format!("cannot be read: {error}"),
        })
    }
}

/// The hash of a manifest that is there, if it lists `parts`.
fn adopt(output: &Output, parts: &[PartReport]) -> Result<String, SinkError> {
    let stored = output.read(MANIFEST)?;
    let said: Result<StoredManifest, _> = serde_json::from_slice(&stored);
    if said.is_ok_and(|said| said.parts == parts) {
        return Ok(hex(&Sha256::digest(&stored)));
    }
    let message = "lists other parts than are there; remove it and run again".to_owned();
    Err(SinkError::Uri { uri: output.uri_of(MANIFEST), message })
}
