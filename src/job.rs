//! A whole run: scores every shard with the scorer, then finishes the run.
//!
//! - [`Job::prepare`] checks everything that can be checked before the first byte of input is read.
//! - [`Job::run`] leaves a complete output, with `_manifest.json` and `_SUCCESS`, or one that the same job can resume,
//!   with the record of the run, the parts of finished shards, and checkpoints of others.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::runtime::Handle;

use crate::checked::Prepared;
pub use crate::checked::{Checked, JobOptions};
use crate::commit::{
    self, Checkpoints, Claim, Crashes, Done, Ending, Output, Remaining, RunReport, TakenOver, observe,
    sound_checkpoints, take_over, without_damaged,
};
use crate::error::{Error, SinkError, SourceError};
use crate::items::{Allowance, CallOptions, Kept, Scored, ShardRef, Status, Ticket};
use crate::pipeline::Meters;
use crate::plan::Plan;
use crate::progress::ProgressCounters;
use crate::report::{OutputReport, PartReport};
use crate::scorer::Scorer;
use crate::source::{ReadOptions, ShardList, check_fit};

/// A run that is ready to start.
pub struct Job {
    prepared: Prepared,
    options: JobOptions,
    meters: Meters,
    progress: Arc<ProgressCounters>,
    run_id: Arc<OnceLock<String>>,
}

impl Job {
    /// Check everything that can be checked before input is read, and warm the engines up. Blocks.
    ///
    /// # Errors
    /// If the plan, its model, its output or this machine cannot be used.
    pub fn prepare(plan: Plan, runtime: &Handle, options: JobOptions) -> Result<Self, Error> {
        let started = Instant::now();
        let prepared = Checked::new(plan, runtime, &options)?.prepare(started)?;
        let meters = prepared.meters();
        Ok(Self { prepared, options, meters, progress: Arc::default(), run_id: Arc::default() })
    }

    /// The checked plan of this job, with the bounds of its queues and its memory.
    pub fn checked(&self) -> &Checked {
        &self.prepared.checked
    }

    /// Where the run writes.
    pub fn output(&self) -> &Output {
        &self.checked().output
    }

    /// The id of the run, once the run has begun or been resumed.
    pub fn run_id(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.run_id)
    }

    /// Live counters of the stages.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Live counters of this worker's share, for a progress display.
    pub fn progress(&self) -> &Arc<ProgressCounters> {
        &self.progress
    }

    /// Whether the output holds this run, finished.
    pub fn is_finished(&self) -> bool {
        self.checked().is_finished
    }

    /// Check that a finished run is complete, by names and sizes, and that its parts are those of `shards` and no
    /// others. Nothing is written; leftovers of an attempt that was killed after the end of the run are removed.
    ///
    /// # Errors
    /// [`SinkError::Incomplete`] when something that the manifest lists is missing or has another size, and
    /// [`SourceError::Changed`].
    pub fn check_finished(
        self,
        shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    ) -> Result<(), Error> {
        commit::check_finished(self.output(), shards, self.options.limit)
    }

    /// Score the shards of this worker that have no part yet, and finish the run if no other part is missing. Blocks.
    ///
    /// # Errors
    /// The first error of a shard. The other shards are stopped then, and can be resumed.
    pub fn run(self, mut shards: ShardList) -> Result<RunReport, Error> {
        let Self { prepared, options, meters, progress, run_id } = self;
        let start = Instant::now();
        let (output, plan) = (prepared.checked.output.clone(), prepared.checked.plan.clone());
        let (model_sha256, startup) = (prepared.checked.model_sha256.clone(), prepared.startup);
        let engines = prepared.checked.engines.iter().map(|engine| engine.describe()).collect();
        // an input that cannot be listed, or does not fit the pipeline file, must leave nothing in the output
        let skips = shards.skips();
        let first = shards.next().transpose()?;
        let (stores, read_options) = (&prepared.checked.stores, ReadOptions::from(&plan.input));
        first.as_ref().map_or(Ok(()), |shard| check_fit(stores, shard, &read_options))?;
        let claim = prepared.claim(&options)?;
        run_id.get_or_init(|| claim.record.run_id.clone());
        let share = options.share;
        let Begun { reused, done, checkpoints, crashes } = begin(&output, &claim, &options)?;
        progress.reuse(&reused);
        let reused_rows: u64 = reused.iter().filter_map(|part| part.rows).sum();
        tracing::info!(
            run_id = claim.record.run_id,
            attempt = claim.note.attempt,
            finished_shards = reused.len(),
            "run begun or resumed"
        );
        let shards = first.map(Ok).into_iter().chain(shards);
        let mut remaining = Remaining::new(shards, done, checkpoints, crashes, share);
        let mut scorer = Scorer::start(prepared, &claim, meters.clone())?;
        let call = CallOptions {
            stop: options.stop.clone(),
            progress,
            batches: Arc::default(),
            allowance: options.limit.map(|limit| Arc::new(Allowance::new(limit.saturating_sub(reused_rows)))),
            stop_all_on_error: true,
        };
        let mut scored = ScoredShards::default();
        let fault = score_all(&scorer, &mut remaining, &call, &mut scored).err();
        let closed = scorer.finish();
        let failed = scored.failed.take();
        let written = match (fault, closed) {
            (None, closed) => closed.map(|report| scored.complete(report)),
            (Some(fault), Ok(_)) => Err(fault),
            (Some(fault), Err(error)) => {
                tracing::warn!(%error, "the attempt's note or its batches could not be stored");
                Err(fault)
            }
        };
        let written = match written {
            // the attempt that finishes a run removes what others were still writing
            Err(Error::Sink(error))
                if observe(&output).is_ok_and(|state| state.manifest_of(&claim.record.run_id).is_some()) =>
            {
                tracing::info!(%error, "another attempt finished the run meanwhile");
                OutputReport::default()
            }
            written => written?,
        };
        let wall = start.elapsed();
        let ending = Ending {
            output: &output,
            plan: &plan,
            record: &claim.record,
            model_sha256,
            engines,
            share,
            note: Some(claim.note),
            written,
            reused,
            listed: remaining.into_listed(),
            failed,
            skipped_by_listing: skips.counts(),
            wall,
            startup,
            stages: meters.shares(wall),
        };
        let report = ending.finish();
        // the engines were being released meanwhile
        drop(scorer);
        let report = report?;
        let finish_ms = (start.elapsed() - wall).as_millis();
        let summary = &report.summary;
        tracing::info!(
            outcome = ?summary.outcome,
            rows = summary.rows,
            rejected = summary.rows - summary.rows_by_status.of(Status::Ok),
            reused = summary.reused_rows,
            shards = summary.shards,
            seconds = summary.seconds,
            images_per_second = summary.images_per_second,
            finish_ms,
            "all rows are stored, the attempt has ended"
        );
        Ok(report)
    }
}

/// What earlier attempts left for this one.
struct Begun {
    /// Parts of this worker's share that are stored already.
    reused: Vec<PartReport>,
    done: Done,
    checkpoints: Checkpoints,
    crashes: Crashes,
}

/// Read what earlier attempts stored, and remove the damaged parts of this worker's share.
fn begin(output: &Output, claim: &Claim, options: &JobOptions) -> Result<Begun, SinkError> {
    let (share, run_id) = (options.share, &claim.record.run_id);
    let own = claim.listing.predictions.iter().filter(|(index, _)| share.takes(**index));
    let TakenOver { sound: reused, damaged } =
        take_over(output, own.map(|(_, part)| part), &claim.notes, run_id)?;
    let listing = without_damaged(output, claim.listing.clone(), &damaged, share, run_id)?;
    // a limit may end a shard before the end of a checkpoint
    let checkpoints = match options.limit {
        None => sound_checkpoints(output, claim.checkpoints.clone(), |shard| share.takes(shard))?,
        Some(_) => Checkpoints::default(),
    };
    let done = Done::new(&listing, &reused);
    Ok(Begun { reused, done, checkpoints, crashes: claim.crashes.clone() })
}

/// Which shards a run left unfinished.
#[derive(Default)]
struct ScoredShards {
    /// Whether a stop left shards of the input unscored.
    drained: bool,
    /// The shard that was cut short, and its rows in checkpoints.
    unfinished: Option<(String, Kept)>,
    /// The first shard that failed.
    failed: Option<Arc<ShardRef>>,
}

impl ScoredShards {
    fn add(&mut self, shard: &ShardRef, scored: &Scored, is_stopped: bool) {
        match scored {
            Scored::Part(_) => {}
            Scored::Stopped(kept) => {
                self.drained = true;
                // shards are scored one after another: at most one is cut short
                self.unfinished.get_or_insert_with(|| (shard.name.clone(), *kept));
            }
            Scored::NotBegun => self.drained |= is_stopped,
        }
    }

    /// `report`, with the shard that was cut short.
    fn complete(self, report: OutputReport) -> OutputReport {
        let (unfinished_shard, kept) = self.unfinished.unzip();
        let Kept { rows, rows_of_others } = kept.unwrap_or_default();
        OutputReport {
            drained: self.drained,
            unfinished_shard,
            checkpointed_rows: rows,
            reused_checkpointed_rows: rows_of_others,
            ..report
        }
    }
}

/// Score all shards that remain.
fn score_all<I: Iterator<Item = Result<ShardRef, SourceError>>>(
    scorer: &Scorer,
    remaining: &mut Remaining<I>,
    call: &CallOptions,
    scored: &mut ScoredShards,
) -> Result<(), Error> {
    let mut tickets: VecDeque<Ticket> = VecDeque::new();
    let mut fault = None;
    let mut take = |ticket: Ticket| {
        let shard = Arc::clone(ticket.shard());
        match scorer.wait(ticket) {
            Ok(done) => scored.add(&shard, &done, call.stop.is_draining()),
            Err(error) => {
                // stops the other calls even if no stage could
                call.stop.drain();
                tracing::debug!(shard = shard.name, %error, "a shard failed");
                scored.failed.get_or_insert(shard);
                fault.get_or_insert(error);
            }
        }
    };
    let (mut unlisted, mut lost, mut drained) = (None, None, false);
    let more = scorer.expect_more();
    loop {
        while tickets.front().is_some_and(Ticket::is_answered) {
            tickets.pop_front().into_iter().for_each(&mut take);
        }
        if call.stop.is_draining() {
            drained = true;
            break;
        }
        if call.allowance.as_ref().is_some_and(|allowance| allowance.left() == 0) {
            break;
        }
        match remaining.next() {
            None => break,
            Some(Err(error)) => {
                unlisted = Some(error);
                break;
            }
            Some(Ok((shard, resume))) => match scorer.submit(shard, resume, call.clone()) {
                Ok(ticket) => tickets.push_back(ticket),
                // the stages have ended
                Err(error) => {
                    lost = Some(error);
                    break;
                }
            },
        }
    }
    drop(more);
    tickets.into_iter().for_each(take);
    scored.drained |= drained;
    // a listing error does not count if the rest of the input is not wanted
    let is_wanted = !scored.drained && call.allowance.as_ref().is_none_or(|allowance| allowance.left() > 0);
    match (fault.or(lost), unlisted) {
        (Some(fault), _) => Err(fault),
        (None, Some(error)) if is_wanted => Err(error.into()),
        _ => Ok(()),
    }
}
