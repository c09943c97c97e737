//! Reading a stored part back: its bytes and its footer.
//!
//! - A part appears whole, so a part that exists is complete. Its name identifies the shard and its version. Its footer
//!   has the number of rows by status and a checksum of the rows.

use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use sha2::{Digest, Sha256};

use super::body::Body;
use super::footer::{
    ATTEMPT, BODY, DAMAGE, ROWS_BY_STATUS, RUN_ID, SHARD, SHARD_BYTES, SHARD_FORMAT, SHARD_IDENTITY,
    SHARD_VERSION, SKIPPED,
};
use super::output::Output;
use crate::error::{SinkError, parquet_words};
use crate::items::ShardFormat;
use crate::plan::hex;
use crate::report::{PartReport, Tally};
use crate::store::retry::again;

/// How many times a part is read at most until two reads agree.
pub(super) const READS: usize = 5;

/// Read the stored part `name` of the run `run_id`, and report what its footer says.
///
/// # Errors
/// When it cannot be read, is not a part, belongs to another run, or when its name or its number of rows does not match
/// its footer.
pub(crate) fn read_part(output: &Output, name: &str, run_id: &str) -> Result<PartReport, SinkError> {
    output.runtime().block_on(read_part_async(output, name, run_id))
}

/// [`read_part`] for a part that no note lists: two reads must agree, because no checksum covers its footer.
pub(crate) fn read_part_twice(output: &Output, name: &str, run_id: &str) -> Result<PartReport, SinkError> {
    let mut last = None;
    for _ in 0..READS {
        let part = read_part(output, name, run_id)?;
        if last.as_ref() == Some(&part) {
            return Ok(part);
        }
        last = Some(part);
    }
    Err(no_part(output.uri_of(name), "each read returns other bytes"))
}

/// [`read_part`], inside the runtime.
pub(super) async fn read_part_async(
    output: &Output,
    name: &str,
    run_id: &str,
) -> Result<PartReport, SinkError> {
    let (store, path) = (output.store(), output.path_of(name));
    let report = match again(|| async { read_object(store, &path).await?.part(store).await }).await {
        Ok(stored) if stored.is_damaged => Err("its rows do not match the checksum in its footer".to_owned()),
        Ok(stored) => stored.report(name.to_owned(), run_id),
        Err(Error::Generic { store: NO_PART, source }) => Err(source.to_string()),
        Err(source) => return Err(output.failed(name, source)),
    };
    report.map_err(|message| no_part(output.uri_of(name), &message))
}

/// The run that a part's footer names. `None` if it names none, or if the object is not a part.
pub(super) async fn run_of_part(output: &Output, meta: &ObjectMeta) -> Result<Option<String>, SinkError> {
    match again(|| read_footer(output.store(), &meta.location, meta.size)).await {
        Ok(footer) => Ok(value(&footer, RUN_ID)),
        Err(Error::Generic { store: NO_PART, .. } | Error::NotFound { .. }) => Ok(None),
        Err(source) => Err(output.failed(&output.name_of(&meta.location), source)),
    }
}

/// The shard that the footer of the part at `path` names, if it can be read.
pub(super) async fn shard_of_part(output: &Output, path: &Path) -> Option<String> {
    let meta = output.store().head(path).await.ok()?;
    value(&read_footer(output.store(), path, meta.size).await.ok()?, SHARD)
}

/// A stored object of which every byte has been read.
pub(super) struct ReadObject {
    pub meta: ObjectMeta,
    pub bytes: u64,
    pub sha256: String,
    whole: Body,
    /// Its last bytes.
    end: Bytes,
}

/// A part that was read, and its footer.
pub(super) struct StoredPart {
    bytes: u64,
    sha256: String,
    metadata: ParquetMetaData,
    /// Whether its rows do not match the checksum in its footer.
    pub is_damaged: bool,
}

/// Bytes at the end of a file that are searched for the footer first: enough for some thousand columns and row groups.
const FOOTER_BYTES: usize = 256 << 10;

/// Bytes per request. Time limits apply to a request, and several objects share the line.
const WINDOW_BYTES: u64 = 1 << 20;

/// Read every byte of an object. Start again if it is replaced meanwhile.
pub(super) async fn read_object(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
) -> object_store::Result<ReadObject> {
    const REPLACED: usize = 3;
    for _ in 0..REPLACED {
        match read_version(store, path).await {
            Err(Error::Precondition { .. }) => {}
            read => return read,
        }
    }
    read_version(store, path).await
}

async fn read_version(store: &Arc<dyn ObjectStore>, path: &Path) -> object_store::Result<ReadObject> {
    let (mut whole, mut sha256) = (Body::default(), Sha256::new());
    let mut end = Vec::new();
    let meta = again(|| store.head(path)).await?;
    while whole.bytes() < meta.size {
        let range = whole.bytes()..meta.size.min(whole.bytes() + WINDOW_BYTES);
        let window = again(|| read_window(store, &meta, range.clone())).await?;
        whole.add(&window);
        sha256.update(&window);
        end.extend_from_slice(&window);
        // trimmed now and then, not for each window
        if end.len() > 2 * FOOTER_BYTES + WINDOW_BYTES as usize {
            end.drain(..end.len() - FOOTER_BYTES);
        }
    }
    Ok(ReadObject { bytes: whole.bytes(), meta, sha256: hex(&sha256.finalize()), whole, end: end.into() })
}

/// The bytes `range` of the version `meta` of an object.
async fn read_window(
    store: &Arc<dyn ObjectStore>,
    meta: &ObjectMeta,
    range: Range<u64>,
) -> object_store::Result<Bytes> {
    let options = GetOptions {
        range: Some(range.clone().into()),
        if_match: meta.e_tag.clone(),
        ..GetOptions::default()
    };
    let window = store.get_opts(&meta.location, options).await?.bytes().await?;
    if window.len() as u64 == range.end - range.start {
        return Ok(window);
    }
    let message = format!("{} bytes came, not {}", window.len(), range.end - range.start);
    Err(Error::Generic { store: "read", source: message.into() })
}

impl ReadObject {
    /// Take it for a part.
    pub async fn part(self, store: &Arc<dyn ObjectStore>) -> object_store::Result<StoredPart> {
        let Self { meta, bytes, sha256, whole, end } = self;
        let metadata = footer(store, &meta.location, bytes, end.clone()).await?;
        // builds of 27 November 2026 and before say it of segments only
        let is_damaged = match value(&metadata, BODY) {
            None => false,
            Some(said) => match Body::parse(&said).filter(|body| body.bytes() <= bytes) {
                None => true,
                Some(body) => {
                    let at_hand = (end.len() as u64).checked_sub(bytes - body.bytes());
                    let rest = match at_hand {
                        Some(start) => end.slice(start as usize..),
                        None => store.get_range(&meta.location, body.bytes()..bytes).await?,
                    };
                    !body.is_without(whole, &rest)
                }
            },
        };
        Ok(StoredPart { bytes, sha256, metadata, is_damaged })
    }
}

/// Read only the footer of a part of `bytes`.
async fn read_footer(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
) -> object_store::Result<ParquetMetaData> {
    if bytes == 0 {
        return Err(damaged("it is empty".to_owned()));
    }
    let end = store.get_range(path, bytes.saturating_sub(FOOTER_BYTES as u64)..bytes).await?;
    footer(store, path, bytes, end).await
}

/// Read the footer of a part of `bytes`, whose last bytes are `end`.
async fn footer(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
    mut end: Bytes,
) -> object_store::Result<ParquetMetaData> {
    const TAIL: usize = 8;
    let tail = end.last_chunk::<TAIL>().ok_or_else(|| damaged("it is too short".to_owned()))?;
    let tail = FooterTail::try_new(tail).map_err(|error| damaged(parquet_words(&error)))?;
    let length = tail.metadata_length() + TAIL;
    let start = bytes.checked_sub(length as u64).ok_or_else(|| damaged("it is cut short".to_owned()))?;
    if length > end.len() {
        end = store.get_range(path, start..bytes).await?;
    }
    let footer = end.len().checked_sub(length).map(|start| &end[start..end.len() - TAIL]);
    let footer = footer.ok_or_else(|| damaged("it is cut short".to_owned()))?;
    // the Parquet library meets some damaged footers with a panic
    match catch_unwind(|| ParquetMetaDataReader::decode_metadata(footer)) {
        Ok(decoded) => decoded.map_err(|error| damaged(parquet_words(&error))),
        Err(_) => Err(damaged("its footer cannot be understood".to_owned())),
    }
}

/// The error for an object that has the name of a part but is not one.
pub(super) fn no_part(uri: String, what: &str) -> SinkError {
    let message =
        format!("is not a part of this run: {what}; if it is damaged, remove it: its shard is scored again");
    SinkError::Uri { uri, message }
}

/// Where errors come from that say why an object is not a part.
pub(super) const NO_PART: &str = "part";

fn damaged(message: String) -> Error {
    Error::Generic { store: NO_PART, source: message.into() }
}

/// What a footer says under `key`.
fn value(metadata: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone())
}

impl StoredPart {
    /// What it says of itself.
    pub fn report(self, path: String, run_id: &str) -> Result<PartReport, String> {
        let file = self.metadata.file_metadata();
        let value = |key: &str| value(&self.metadata, key);
        let mut report = PartReport { path, bytes: self.bytes, sha256: self.sha256, ..PartReport::default() };
        let parsed = |key: &str| value(key).ok_or_else(|| format!("its footer has no {key}"));
        let written_by = parsed(RUN_ID)?;
        if written_by != run_id {
            return Err(format!("its footer names the run {written_by}"));
        }
        // a batches part has no shard
        let Some(shard) = value(SHARD) else { return Ok(report) };
        let named = report.path.rsplit_once('-').and_then(|(_, end)| end.strip_suffix(".parquet"));
        if !named.is_some_and(|named| parsed(SHARD_IDENTITY).is_ok_and(|of| of.starts_with(named))) {
            return Err("its name and its footer are of different shards".to_owned());
        }
        let tally: Tally =
            serde_json::from_str(&parsed(ROWS_BY_STATUS)?).map_err(|error| error.to_string())?;
        if i64::try_from(tally.rows()) != Ok(file.num_rows()) {
            return Err(format!("it has {} rows, its footer counts {}", file.num_rows(), tally.rows()));
        }
        let format: ShardFormat =
            serde_json::from_value(parsed(SHARD_FORMAT)?.into()).map_err(|error| error.to_string())?;
        report.attempt = value(ATTEMPT).and_then(|number| number.parse().ok());
        report.shard = shard;
        report.shard_version = value(SHARD_VERSION);
        report.shard_bytes = value(SHARD_BYTES).and_then(|bytes| bytes.parse().ok());
        report.format = Some(format);
        report.rows = Some(tally.rows());
        report.rows_by_status = Some(tally);
        report.damage = value(DAMAGE);
        if let Some(skipped) = value(SKIPPED) {
            report.skipped = serde_json::from_str(&skipped).map_err(|error| error.to_string())?;
        }
        Ok(report)
    }
}
