//! How far a run has come, for whoever shows it.
//!
//! - A row counts when the sink has taken it, whatever its status.
//! - Rows that are in finished parts or checkpoints when an attempt begins count from its beginning, as reused.
//! - Bytes are of the shards' objects, as far as the listing knows them: all of them once a shard has ended, and
//!   until then the bytes of its images, which may be packed, up to that.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::items::{ShardRef, Status};
use crate::report::{PartReport, Tally};

/// Counters of one worker's share, written by the sink and read by a display.
#[derive(Debug, Default)]
pub struct Advance {
    scored_rows: AtomicU64,
    reused_rows: AtomicU64,
    /// Of both.
    rejected: AtomicU64,
    /// Of shards that have ended since the attempt began, and before.
    ended_bytes: AtomicU64,
    reused_bytes: AtomicU64,
    /// Of the shard whose rows are arriving.
    open_bytes: AtomicU64,
    /// All bytes of that shard.
    open_size: AtomicU64,
}

/// One look at an [`Advance`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub rows: u64,
    /// Of these, rows without scores.
    pub rejected: u64,
    /// Of `rows`, those that earlier attempts have scored.
    pub reused_rows: u64,
    pub bytes: u64,
    /// Of `bytes`, those of shards that earlier attempts have finished.
    pub reused_bytes: u64,
}

impl Advance {
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

    /// Parts of this worker's share that earlier attempts have stored.
    pub fn reuse(&self, parts: &[PartReport]) {
        for part in parts {
            let rows = part.rows_by_status.as_ref().map_or(0, Tally::rows);
            let rejected = part.rows_by_status.as_ref().map_or(0, |tally| rows - tally.of(Status::Ok));
            self.rejected.fetch_add(rejected, Relaxed);
            self.reused_rows.fetch_add(rows, Relaxed);
            self.reused_bytes.fetch_add(part.shard_bytes.unwrap_or_default(), Relaxed);
        }
    }

    /// The rows of `shard` begin to arrive, behind those that a checkpoint holds.
    pub fn begin(&self, shard: &ShardRef) {
        self.reused_rows.fetch_add(shard.resume_at, Relaxed);
        self.open_bytes.store(0, Relaxed);
        self.open_size.store(shard.size_bytes(), Relaxed);
    }

    /// A row of that shard has arrived, of an image of `image_bytes`.
    pub fn row(&self, image_bytes: u64, status: Status) {
        self.scored_rows.fetch_add(1, Relaxed);
        self.rejected.fetch_add(u64::from(status != Status::Ok), Relaxed);
        // the sink alone writes it
        let open = self.open_bytes.load(Relaxed).saturating_add(image_bytes);
        self.open_bytes.store(open.min(self.open_size.load(Relaxed)), Relaxed);
    }

    /// All rows of that shard have arrived.
    pub fn end(&self) {
        self.open_bytes.store(0, Relaxed);
        self.ended_bytes.fetch_add(self.open_size.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ManifestEntry, ObjectRef, ShardContent, ShardFormat};

    fn shard(size_bytes: u64, resume_at: u64) -> ShardRef {
        let object = ObjectRef { uri: "a.tar".to_owned(), size_bytes: Some(size_bytes), version: None };
        let content = ShardContent::Container(object);
        ShardRef { resume_at, ..ShardRef::new(0, "a.tar", ShardFormat::Webdataset, content) }
    }

    #[test]
    fn what_earlier_attempts_have_done_counts_from_the_beginning() {
        let advance = Advance::default();
        let mut rows = Tally::default();
        [Status::Ok, Status::Ok, Status::Empty].into_iter().for_each(|status| rows.count(status));
        let part = PartReport { rows_by_status: Some(rows), shard_bytes: Some(700), ..PartReport::default() };
        advance.reuse(&[part]);
        advance.begin(&shard(1000, 5));
        advance.row(300, Status::InvalidScore);
        let counts = Counts { rows: 9, rejected: 2, reused_rows: 8, bytes: 1000, reused_bytes: 700 };
        assert_eq!(advance.counts(), counts);
    }

    #[test]
    fn sizes_that_no_store_can_hold_are_counted_as_the_most_there_is() {
        let entry = |bytes| {
            let object = ObjectRef { uri: "a.jpg".to_owned(), size_bytes: Some(bytes), version: None };
            ManifestEntry::new(object, "a".to_owned())
        };
        let content = ShardContent::Objects(vec![entry(u64::MAX), entry(1)]);
        let advance = Advance::default();
        advance.begin(&ShardRef { content, ..shard(0, 0) });
        advance.row(u64::MAX, Status::Ok);
        advance.reuse(&[PartReport { shard_bytes: Some(1), ..PartReport::default() }]);
        assert_eq!(advance.counts().bytes, u64::MAX);
    }

    #[test]
    fn a_shard_never_counts_for_more_bytes_than_it_has() {
        let advance = Advance::default();
        advance.begin(&shard(1000, 0));
        // unpacked, its images are longer than the shard
        advance.row(900, Status::Ok);
        advance.row(900, Status::Ok);
        assert_eq!(advance.counts().bytes, 1000);
        advance.end();
        assert_eq!(advance.counts().bytes, 1000);
    }
}
