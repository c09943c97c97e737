//! Input: from URIs to records.
//!
//! ```text
//! Plan ─ list_shards ─→ ShardRef ─ open_shard ─→ RawRecord
//! ```
//!
//! Comes in: the input section of a plan. Goes out: [`list_shards`] streams the shards of a run in
//! input order, and [`open_shard`] streams the records of one.
//!
//! - Callers are plain blocking threads. tokio carries the object store and nothing else, and no
//!   function here may be called from an async task.
//! - Format parsing (`tfrecord`, `webdataset`, `parquet`) is pure: bytes in, records out, generic
//!   over the reader. What it cannot understand it calls [`crate::error::ReadError::Corrupt`];
//!   whether the store was to blame is settled once, in [`open_shard`].
//! - Neither a shard nor a listing is ever held whole in memory, and no length found in the data
//!   is allocated before as many bytes have arrived.
//! - Records come in the order in which they are stored, each one either bytes or a reason.
//!
//! Knows nothing of pixels: an image is a run of bytes no longer than `max_image_bytes`.

mod classify;
mod companions;
mod compression;
pub mod detect;
mod example;
mod fetch;
mod files;
mod found;
mod input;
mod listing;
mod manifest;
mod members;
mod names;
mod naming;
mod open;
mod parquet;
mod read_ahead;
mod records;
mod skips;
mod stream;
mod tfrecord;
mod walk;
mod webdataset;

use crate::store::{BYTES_IN_FLIGHT, WINDOWS_BYTES};

pub use detect::SNIFF_BYTES;
pub(crate) use files::REQUESTS_IN_FLIGHT;
pub use input::input_around;
pub use listing::{ShardList, list_shards};
pub use open::{check_fit, open_shard, open_shard_in_turn};
pub use parquet::parquet_pages_bytes;
pub use read_ahead::{ReadAhead, Turn, run};
pub use records::{OpenedShard, ReadOptions, Records};
pub use skips::Skips;

/// What one shard reader holds at the most, beside the record it is putting together: loose images
/// under way, what has arrived of a container and a zstd window, or of a Parquet file its metadata, windows and pages. Not
/// counted are the long pages of the one Parquet file whose turn it is: [`parquet_pages_bytes`].
pub const READER_BYTES: u64 = {
    let container = BYTES_IN_FLIGHT + compression::WINDOW_BYTES + webdataset::IDS_BYTES;
    let pages = parquet::METADATA_BYTES + WINDOWS_BYTES + parquet::AHEAD_PAGES_BYTES;
    let parquet = if parquet::READING_BYTES > pages { parquet::READING_BYTES } else { pages };
    let most = if parquet > container { parquet } else { container };
    if files::BYTES_IN_FLIGHT > most { files::BYTES_IN_FLIGHT } else { most }
};

#[cfg(test)]
mod conformance_tests;
