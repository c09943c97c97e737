//! Object stores: buckets, web servers and this machine's disk.
//!
//! ```text
//! URI ─ Stores::resolve ─→ Location      ObjectRef ─ Stores::open ─→ Object ─→ bytes
//! ```
//!
//! Input: URIs as an operator writes them, and objects that a listing found. Output: [`Location`]s, [`Object`]s
//! whose bytes are read by ranges, pages of a listing, and new objects, created only if absent.
//!
//! - Callers are plain blocking threads. tokio carries the requests and nothing else.
//! - Every read is conditional on the version that was seen before, if the store supports conditions.
//! - Every request is repeated only as long as a repetition may help ([`retry`]).
//!
//! This module does not depend on shards, batches or rows.

mod address;
mod answer_length;
mod ascending;
mod column_windows;
mod connect;
mod content_encoding;
mod disk;
mod environment;
mod error_bodies;
mod escape;
mod health;
mod http_checks;
mod key_pages;
mod listing_answers;
mod listing_entries;
mod location;
mod object;
mod object_errors;
mod odd_file;
mod outage;
mod ranges_seen;
pub mod retry;
mod standard_input;
mod stores;
mod version;
mod web;

pub use address::is_staged_name;
pub(crate) use answer_length::{ObjectRead, SentUnpacked, stated_size};
pub(crate) use ascending::Ascending;
pub use column_windows::ColumnWindows;
pub(crate) use column_windows::{PIECE_BYTES, WINDOWS_BYTES};
pub(crate) use content_encoding::{Encoding, ZSTD_WINDOW_LOG_MAX, longer_than};
pub(crate) use escape::escaped;
pub(crate) use http_checks::ObjectCrc32c;
pub(crate) use key_pages::{KeyPages, ListedKey};
pub(crate) use location::Copying;
pub use location::{Location, StoreKind};
pub(crate) use object::BYTES_IN_FLIGHT;
pub use object::{Object, ObjectReader};
pub(crate) use object_errors::{ambiguous_fault, is_immediate_refusal, object_fault, unusable_object};
pub(crate) use odd_file::OddFile;
pub(crate) use standard_input::STANDARD_INPUT;
pub use stores::Stores;
#[cfg(test)]
pub(crate) use stores::tests::local_stores;
pub(crate) use version::{check_unchanged, condition, local_version, version_of};
