//! Input: from URIs to records.
//!
//! ```text
//! Plan ─ list_shards ─→ ShardRef ─ open_shard ─→ RawRecord
//! ```
//!
//! Input: the input section of a plan. Output: [`list_shards`] streams the shards of a run in
//! input order, and [`open_shard`] streams the records of one.
//!
//! - Callers are plain blocking threads. tokio runs only the requests to stores, and no function here may be called
//!   from an async task.
//! - Parsers of formats (`tfrecord`, `webdataset`, `parquet`) are pure: bytes in, records out, generic over the reader.
//!   They report what they cannot parse as [`crate::error::ReadError::Corrupt`]; [`open_shard`] decides in one place
//!   whether the store is to blame instead.
//! - Neither a shard nor a listing is held in memory as a whole, and a length in the data is allocated only as its
//!   bytes arrive.
//! - Records come in the order in which they are stored. Each one has either bytes or a reason.
//!
//! Images are not decoded here: an image is a sequence of at most `max_image_bytes` bytes.

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

/// The most bytes that one shard reader holds besides the record that it assembles: loose images in flight; or the
/// fetched bytes of a container, its zstd window and its ids; or the metadata, windows and pages of a Parquet file.
/// Long pages are not counted: only the Parquet file whose turn it is has them, see [`parquet_pages_bytes`].
pub const READER_BYTES: u64 = {
    let container = BYTES_IN_FLIGHT + compression::WINDOW_BYTES + webdataset::IDS_BYTES;
    let pages = parquet::METADATA_BYTES + WINDOWS_BYTES + parquet::AHEAD_PAGES_BYTES;
    let parquet = if parquet::READING_BYTES > pages { parquet::READING_BYTES } else { pages };
    let most = if parquet > container { parquet } else { container };
    if files::BYTES_IN_FLIGHT > most { files::BYTES_IN_FLIGHT } else { most }
};

#[cfg(test)]
mod conformance_tests;
