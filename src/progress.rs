//! Counters of the scorer's progress, for a display.
//!
//! - A row counts when the sink has taken it, whatever its status.
//! - Rows of finished parts and of checkpoints count when an attempt or a shard begins, as reused.
//! - Bytes are those of the shards' objects, as far as the listing knows them. A shard that has ended counts with its
//!   whole size. Until then it counts with the bytes of its images, up to that size, because the shard may be
//!   compressed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::flow::lock;
use crate::items::{ShardRef, Status};
use crate::report::{PartReport, Tally};

/// Counters of one or more calls of the scorer, written by the sink and read by a display.
#[derive(Debug, Default)]
pub struct ProgressCounters {
    scored_rows: AtomicU64,
    reused_rows: AtomicU64,
    /// Rejected rows among both.
    rejected: AtomicU64,
    /// Bytes of shards that ended in this attempt.
    ended_bytes: AtomicU64,
    /// Bytes of shards that ended in earlier attempts.
    reused_bytes: AtomicU64,
    /// Bytes of the shard whose rows are arriving.
    open_bytes: AtomicU64,
    /// All bytes of that shard.
    open_size: AtomicU64,
}

/// A snapshot of [`ProgressCounters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows, scored or rejected.
    pub rows: u64,
    /// Of these, rows without scores.
    pub rejected: u64,
    /// Of `rows`, those that earlier attempts have scored.
    pub reused_rows: u64,
    /// Bytes of input.
    pub bytes: u64,
    /// Of `bytes`, those of shards that earlier attempts have finished.
    pub reused_bytes: u64,
}

impl ProgressCounters {
    /// The counts at this moment.
    pub fn counts(&self) -> Counts {
        let (reused_rows, reused_bytes) = (self.reused_rows.load(Relaxed), self.reused_bytes.load(Relaxed));
        let bytes = self.ended_bytes.load(Relaxed).saturating_add(self.open_bytes.load(Relaxed));
        Counts {
            rows: reused_rows + self.scored_rows.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            reused_rows,
            bytes: reused_bytes.saturating_add(bytes),
            reused_bytes,
        }
    }

    /// Count parts that earlier attempts have stored.
    pub fn reuse(&self, parts: &[PartReport]) {
        for part in parts {
            let rows = part.rows_by_status.as_ref().map_or(0, Tally::rows);
            let rejected = part.rows_by_status.as_ref().map_or(0, |tally| rows - tally.of(Status::Ok));
            self.rejected.fetch_add(rejected, Relaxed);
            self.reused_rows.fetch_add(rows, Relaxed);
            self.reused_bytes.fetch_add(part.shard_bytes.unwrap_or_default(), Relaxed);
        }
    }

    /// Set the totals of all workers of a job, as its runner reports them.
    pub fn set(&self, rows: u64, rejected: u64) {
        self.scored_rows.store(rows, Relaxed);
        self.rejected.store(rejected, Relaxed);
    }

    /// Begin `shard`. Its first `resumed_rows` rows are in checkpoints.
    pub fn begin(&self, shard: &ShardRef, resumed_rows: u64) {
        self.reused_rows.fetch_add(resumed_rows, Relaxed);
        self.open_bytes.store(0, Relaxed);
        self.open_size.store(shard.size_bytes(), Relaxed);
    }

    /// Count a row of that shard, of an image of `image_bytes`.
    pub fn row(&self, image_bytes: u64, status: Status) {
        self.scored_rows.fetch_add(1, Relaxed);
        self.rejected.fetch_add(u64::from(status != Status::Ok), Relaxed);
        // only the sink writes it
        let open = self.open_bytes.load(Relaxed).saturating_add(image_bytes);
        self.open_bytes.store(open.min(self.open_size.load(Relaxed)), Relaxed);
    }

    /// End that shard.
    pub fn end(&self) {
        self.open_bytes.store(0, Relaxed);
        self.ended_bytes.fetch_add(self.open_size.load(Relaxed), Relaxed);
    }
}

/// Number, sum and extremes of a quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Number of values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The least of them; 0 without values.
    pub min: u64,
    /// The greatest of them; 0 without values.
    pub max: u64,
}

impl Distribution {
    /// Add a value.
    pub fn add(&mut self, value: u64) {
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }
}

/// Counters of the batches of one or more calls of the scorer, written by the sink. A batch with rows of several calls
/// counts for the first of them, so that the sum over all calls is that of all batches.
#[derive(Debug, Default)]
pub struct BatchCounters(Mutex<BatchCounts>);

/// A snapshot of [`BatchCounters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchCounts {
    /// Images of each batch, without padding.
    pub rows: Distribution,
    /// Latency of each batch: copy in, compute, copy out. Microseconds.
    pub latency_us: Distribution,
}

impl BatchCounters {
    /// The counts at this moment.
    pub fn counts(&self) -> BatchCounts {
        *lock(&self.0)
    }

    /// Count a batch of `rows` images.
    pub fn count(&self, rows: usize, latency: Duration) {
        let mut counts = lock(&self.0);
        counts.rows.add(rows as u64);
        counts.latency_us.add(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ManifestEntry, ObjectRef, ShardContent, ShardFormat};

    fn shard(size_bytes: u64) -> ShardRef {
        let object = ObjectRef { uri: "a.tar".to_owned(), size_bytes: Some(size_bytes), version: None };
        ShardRef::new(0, "a.tar", ShardFormat::Webdataset, ShardContent::Container(object))
    }

    #[test]
    fn rows_of_earlier_attempts_count_as_reused() {
        let counters = ProgressCounters::default();
        let mut rows = Tally::default();
        [Status::Ok, Status::Ok, Status::Empty].into_iter().for_each(|status| rows.count(status));
        let part = PartReport { rows_by_status: Some(rows), shard_bytes: Some(700), ..PartReport::default() };
        counters.reuse(&[part]);
        counters.begin(&shard(1000), 5);
        counters.row(300, Status::InvalidScore);
        let counts = Counts { rows: 9, rejected: 2, reused_rows: 8, bytes: 1000, reused_bytes: 700 };
        assert_eq!(counters.counts(), counts);
    }

    #[test]
    fn a_distribution_has_the_extremes_of_its_values() {
        let mut distribution = Distribution::default();
        [7, 3, u64::MAX].into_iter().for_each(|value| distribution.add(value));
        assert_eq!(distribution, Distribution { count: 3, sum: u64::MAX, min: 3, max: u64::MAX });
    }

    #[test]
    fn sizes_that_no_store_can_hold_do_not_overflow() {
        let entry = |bytes| {
            let object = ObjectRef { uri: "a.jpg".to_owned(), size_bytes: Some(bytes), version: None };
            ManifestEntry::new(object, "a".to_owned())
        };
        let content = ShardContent::Objects(vec![entry(u64::MAX), entry(1)]);
        let counters = ProgressCounters::default();
        counters.begin(&ShardRef { content, ..shard(0) }, 0);
        counters.row(u64::MAX, Status::Ok);
        counters.reuse(&[PartReport { shard_bytes: Some(1), ..PartReport::default() }]);
        assert_eq!(counters.counts().bytes, u64::MAX);
    }

    #[test]
    fn a_shard_never_counts_more_bytes_than_its_size() {
        let counters = ProgressCounters::default();
        counters.begin(&shard(1000), 0);
        // decompressed, its images are longer than the shard
        counters.row(900, Status::Ok);
        counters.row(900, Status::Ok);
        assert_eq!(counters.counts().bytes, 1000);
        counters.end();
        assert_eq!(counters.counts().bytes, 1000);
    }
}
