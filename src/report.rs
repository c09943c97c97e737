//! What a run did: counts, times and its bottleneck.
//!
//! - Counts are of rows in finished parts.
//! - Shares are of the time from the first shard to the last row, without loading the model.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::flow::StageShare;
use crate::items::{ShardFormat, Status};
use crate::skipped::Skipped;

/// A time in the format of reports: RFC 3339, UTC, milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Rows by status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tally(BTreeMap<Status, u64>);

impl Tally {
    /// Count one row.
    pub fn count(&mut self, status: Status) {
        *self.0.entry(status).or_default() += 1;
    }

    /// Add the rows of another tally.
    pub fn add(&mut self, other: &Self) {
        for (&status, rows) in &other.0 {
            let sum = self.0.entry(status).or_default();
            *sum = sum.saturating_add(*rows);
        }
    }

    /// The sum of all counts. It saturates: a damaged footer may have any numbers.
    pub fn rows(&self) -> u64 {
        self.0.values().fold(0, |sum, rows| sum.saturating_add(*rows))
    }

    /// As JSON: an object with a number for each status that occurs.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a map of numbers always serialises to JSON")
    }

    /// Rows of one status.
    pub fn of(&self, status: Status) -> u64 {
        self.0.get(&status).copied().unwrap_or_default()
    }

    /// Share of rows that were rejected; 0 without rows.
    pub fn error_rate(&self) -> f64 {
        let rows = self.rows();
        if rows == 0 { 0.0 } else { (rows - self.of(Status::Ok)) as f64 / rows as f64 }
    }

    /// Statuses that occurred, `ok` first.
    pub fn iter(&self) -> impl Iterator<Item = (Status, u64)> {
        self.0.iter().map(|(&status, &rows)| (status, rows))
    }
}

/// One file of the output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// Path below the output.
    pub path: String,
    /// Number of the attempt that stored it, from the footer of a predictions part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Shard whose records these are; empty for all but predictions parts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shard: String,
    /// Version of the shard that was read, as its store reports it: an ETag. `None` for loose images, each of which has
    /// its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_version: Option<String>,
    /// Length of the shard's objects, as far as the listing knew them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_bytes: Option<u64>,
    /// Format of the shard; `None` for files of the batches table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ShardFormat>,
    /// Rows; `None` for files of the batches table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows by status; `None` for files of the batches table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_by_status: Option<Tally>,
    /// Size of the file. Bytes.
    pub bytes: u64,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Why the shard ended early, with an unknown number of records lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// What the shard contains besides records.
    #[serde(default, skip_serializing_if = "Skipped::is_empty")]
    pub skipped: Skipped,
}

/// What the sink wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OutputReport {
    /// Rows by status.
    pub tally: Tally,
    /// The parts that were written.
    pub parts: Vec<PartReport>,
    /// Batches parts of this attempt.
    pub batches: Vec<PartReport>,
    /// Rows that other attempts scored: in parts that they stored, and in segments from which this attempt resumed.
    pub reused: Tally,
    /// Rows of the unfinished shard that are in segments.
    pub checkpointed_rows: u64,
    /// Of these, rows that other attempts scored.
    pub reused_checkpointed_rows: u64,
    /// Latency of each batch, in order; warm-up excluded. Milliseconds.
    pub latency_ms: Vec<f32>,
    /// How long each GPU had a batch, by ordinal.
    pub gpus: BTreeMap<usize, BusyTime>,
    /// Latency of each engine's warm-up. Milliseconds.
    pub warm_up_ms: Vec<f64>,
    /// The shard that an interruption left unfinished, without a part.
    pub unfinished_shard: Option<String>,
    /// Whether a drain stopped the run before its input's end.
    pub drained: bool,
    /// What the listing of the input found that belongs to no shard.
    pub skipped_by_listing: Skipped,
}

impl OutputReport {
    /// The same with other parts.
    pub fn with_parts(&self, parts: Vec<PartReport>) -> Self {
        Self {
            tally: self.tally.clone(),
            parts,
            batches: self.batches.clone(),
            reused: self.reused.clone(),
            latency_ms: self.latency_ms.clone(),
            gpus: self.gpus.clone(),
            warm_up_ms: self.warm_up_ms.clone(),
            unfinished_shard: self.unfinished_shard.clone(),
            skipped_by_listing: self.skipped_by_listing.clone(),
            ..*self
        }
    }

    /// Add predictions parts that other attempts stored, after its own.
    pub fn with(mut self, predictions: Vec<PartReport>) -> Self {
        for rows in predictions.iter().filter_map(|part| part.rows_by_status.as_ref()) {
            self.reused.add(rows);
            self.tally.add(rows);
        }
        self.parts.extend(predictions);
        self
    }

    /// Rows that this attempt scored.
    fn scored_rows(&self) -> u64 {
        (self.tally.rows() + self.checkpointed_rows) - (self.reused.rows() + self.reused_checkpointed_rows)
    }

    /// Shards that ended early.
    pub fn damaged_shards(&self) -> u64 {
        self.parts.iter().filter(|part| part.damage.is_some()).count() as u64
    }

    /// Containers without a record.
    pub fn empty_shards(&self) -> u64 {
        let is_container = |part: &&PartReport| part.format != Some(ShardFormat::Files);
        self.parts.iter().filter(is_container).filter(|part| part.rows == Some(0)).count() as u64
    }

    /// What the input contains besides records.
    pub fn skipped(&self) -> Skipped {
        let mut all = self.skipped_by_listing.clone();
        self.parts.iter().for_each(|part| all.add(&part.skipped));
        all
    }
}

/// Time during which at least one batch was on a GPU, from the batches' times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BusyTime {
    seconds: f64,
    /// End of the latest batch, seconds since the epoch.
    until: f64,
}

impl BusyTime {
    /// Count a batch that was on the GPU from `start`, seconds since the epoch, for `seconds`. Batches must come nearly
    /// in the order of their starts; overlaps are counted once.
    pub fn add(&mut self, start: f64, seconds: f64) {
        let end = start + seconds;
        self.seconds += (end - start.max(self.until)).max(0.0);
        self.until = self.until.max(end);
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every shard has its part, and the limits on errors hold.
    Succeeded,
    /// This worker's share is done; other shares are not.
    ShareDone,
    /// More rejected rows or damaged shards than the plan allows. All parts are complete.
    TooManyErrors,
    /// Drained before the input's end. The existing parts are complete; others are missing.
    Interrupted,
}

/// Quantiles of batch latency, by the nearest-rank method. Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// The fastest batch.
    pub min: f64,
    /// The median.
    pub med: f64,
    /// 95 of 100 batches took no longer.
    pub p95: f64,
    /// 99 of 100 batches took no longer.
    pub p99: f64,
    /// The slowest batch.
    pub max: f64,
}

impl Latency {
    /// Quantiles of `values`; `None` if there are none.
    pub fn of(values: &[f32]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let rank = |share: f64| (share * sorted.len() as f64).ceil().max(1.0) as usize - 1;
        let at = |share: f64| sorted.get(rank(share)).map(|&value| f64::from(value));
        Some(Self { min: at(0.0)?, med: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

/// The result of a run in figures and words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Whether the run succeeded.
    pub outcome: Outcome,
    /// Rows, scored or rejected.
    pub rows: u64,
    /// Rows by status.
    pub rows_by_status: Tally,
    /// Of `rows`, those that other attempts scored.
    pub reused_rows: u64,
    /// Share of rejected rows, from 0 to 1.
    pub error_rate: f64,
    /// Shards with a part.
    pub shards: u64,
    /// Shards that ended early.
    pub damaged_shards: u64,
    /// Containers without a record.
    pub empty_shards: u64,
    /// What the input contains besides records, by kind.
    pub skipped: Skipped,
    /// Of `skipped`, what the listing of the input found that belongs to no shard.
    pub skipped_by_listing: Skipped,
    /// The shard that an interruption left unfinished.
    pub unfinished_shard: Option<String>,
    /// Rows of that shard that are kept for the next attempt; not among `rows`.
    pub checkpointed_rows: u64,
    /// Batches that engines ran, warm-ups left out.
    pub batches: u64,
    /// From the first shard to the last row, seconds.
    pub seconds: f64,
    /// Rows of any status that this attempt scored, divided by that time.
    pub images_per_second: f64,
    /// Time to load the model and to warm the engines up, seconds; not part of `seconds`.
    pub startup_seconds: f64,
    /// Latency of the batches; `None` if none was run. Milliseconds.
    pub latency_ms: Option<Latency>,
    /// Share of the run in which a GPU had no batch, averaged over the GPUs; `None` without a GPU.
    pub gpu_idle_share: Option<f64>,
    /// Latency of each engine's warm-up. Milliseconds.
    pub warm_up_ms: Vec<f64>,
    /// How each stage spent its time.
    pub stages: Vec<StageShare>,
    /// Which stage limited the run, in one sentence.
    pub bottleneck: String,
}

impl Summary {
    /// Compute the figures of a finished run.
    pub fn new(
        output: &OutputReport,
        outcome: Outcome,
        stages: Vec<StageShare>,
        wall: Duration,
        startup: Duration,
    ) -> Self {
        let gpu_idle_share = idle_share(&output.gpus, wall);
        Self {
            outcome,
            rows: output.tally.rows(),
            rows_by_status: output.tally.clone(),
            reused_rows: output.reused.rows(),
            error_rate: output.tally.error_rate(),
            shards: output.parts.len() as u64,
            damaged_shards: output.damaged_shards(),
            empty_shards: output.empty_shards(),
            skipped: output.skipped(),
            skipped_by_listing: output.skipped_by_listing.clone(),
            unfinished_shard: output.unfinished_shard.clone(),
            checkpointed_rows: output.checkpointed_rows,
            batches: output.latency_ms.len() as u64,
            seconds: wall.as_secs_f64(),
            images_per_second: output.scored_rows() as f64 / wall.as_secs_f64().max(1e-9),
            startup_seconds: startup.as_secs_f64(),
            latency_ms: Latency::of(&output.latency_ms),
            gpu_idle_share,
            warm_up_ms: output.warm_up_ms.clone(),
            bottleneck: bottleneck(&stages, gpu_idle_share),
            stages,
        }
    }
}

fn idle_share(gpus: &BTreeMap<usize, BusyTime>, wall: Duration) -> Option<f64> {
    let busy: f64 = gpus.values().map(|gpu| gpu.seconds).sum();
    let all = gpus.len() as f64 * wall.as_secs_f64();
    (all > 0.0).then(|| (1.0 - busy / all).max(0.0))
}

/// A stage that is busy for less than this share of its time is not a bottleneck.
const BUSY_ENOUGH: f64 = 0.5;

/// The stage that the others waited for, the busiest one, in one sentence.
fn bottleneck(stages: &[StageShare], gpu_idle: Option<f64>) -> String {
    let percent = |share: f64| (share * 100.0).round();
    let Some(busiest) = stages.iter().max_by(|a, b| a.busy.total_cmp(&b.busy)) else {
        return "nothing ran".to_owned();
    };
    let engine_waited =
        stages.iter().find(|stage| stage.stage == "engine").map_or(0.0, |engine| engine.starved);
    if busiest.busy < BUSY_ENOUGH {
        return format!(
            "no stage was busy for half of the run ({} came closest, {}%): the run was too short to have a bottleneck, or \
             waited for storage",
            busiest.stage,
            percent(busiest.busy)
        );
    }
    let workers =
        if busiest.workers == 1 { String::new() } else { format!("'s {} threads", busiest.workers) };
    let who = if busiest.stage == "engine" { "it" } else { "the engine" };
    let engine = match gpu_idle {
        Some(idle) => format!("the GPU was idle {}% of the run", percent(idle)),
        None => format!("{who} waited for input {}% of the run", percent(engine_waited)),
    };
    format!("{}{workers} limited the run, busy {}% of it; {engine}", busiest.stage, percent(busiest.busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values: Vec<f32> = (1..=100).rev().map(|value| value as f32).collect();
        let latency = Latency::of(&values).expect("values");
        assert_eq!(latency, Latency { min: 1.0, med: 50.0, p95: 95.0, p99: 99.0, max: 100.0 });
        assert_eq!(Latency::of(&[]), None);
    }

    #[test]
    fn overlapping_batches_count_once() {
        let mut gpu = BusyTime::default();
        for (start, seconds) in [(100.0, 2.0), (101.0, 2.0), (100.5, 1.0), (105.0, 1.0)] {
            gpu.add(start, seconds);
        }
        let gpus = BTreeMap::from([(0, gpu)]);
        let idle = idle_share(&gpus, Duration::from_secs(10)).expect("a GPU");
        assert!((idle - 0.6).abs() < 1e-9, "{idle}");
        assert_eq!(idle_share(&BTreeMap::new(), Duration::from_secs(10)), None);
    }

    #[test]
    fn the_error_rate_counts_every_status_but_ok() {
        let mut tally = Tally::default();
        (0..98).for_each(|_| tally.count(Status::Ok));
        tally.count(Status::Empty);
        tally.count(Status::DecodeError);
        assert_eq!(tally.rows(), 100);
        assert!((tally.error_rate() - 0.02).abs() < 1e-12);
    }

    #[test]
    fn the_bottleneck_is_the_busiest_stage_and_says_how_long_the_engine_waited() {
        let stage = |stage, workers, busy, starved| StageShare {
            stage,
            workers,
            items: 1,
            busy,
            blocked: 0.0,
            starved,
        };
        let stages = [stage("decode", 16, 0.98, 0.0), stage("engine", 1, 0.4, 0.6)];
        assert_eq!(
            bottleneck(&stages, None),
            "decode's 16 threads limited the run, busy 98% of it; the engine waited for input 60% of the run"
        );
        assert_eq!(
            bottleneck(&stages, Some(0.36)),
            "decode's 16 threads limited the run, busy 98% of it; the GPU was idle 36% of the run"
        );
    }
}
