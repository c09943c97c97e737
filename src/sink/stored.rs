//! Parts that are stored already: what an output holds, and what its parts say of themselves.
//!
//! - A part appears whole, so one that is there is finished. Its name says which shard it is of, in
//!   which version; its footer says how many rows of which status it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use sha2::{Digest, Sha256};

use super::output::{MANIFEST, Output, SUCCESS};
use super::part::{DAMAGE, PLAN, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY};
use super::run_record::RUN;
use crate::error::{SinkError, StorageError};
use crate::items::{ShardFormat, ShardRef};
use crate::plan::hex;
use crate::report::{PartReport, Tally};

/// What lies in an output folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Whether `_run.json` is there.
    pub begun: bool,
    /// Whether `_SUCCESS` is there.
    pub finished: bool,
    /// Whether `_manifest.json` is there.
    pub listed: bool,
    /// Names of predictions parts by the place of their shard in the input.
    pub predictions: BTreeMap<u64, String>,
    /// Names of batches parts.
    pub batches: Vec<String>,
    /// Names of objects that were never published: somebody is about to, or has died before.
    pub staged: Vec<String>,
    /// Attempts so far, the first being 0: one more than the highest number.
    pub attempts: u32,
    /// The first object that is nothing of ours.
    pub stranger: Option<String>,
}

impl Holdings {
    /// The name of one object that is there, something foreign first; `None` if the output is empty.
    pub fn anything(&self) -> Option<String> {
        let first = || self.predictions.first_key_value().map(|(_, name)| name.clone());
        let mut named = self.stranger.clone().or_else(first).or_else(|| self.batches.first().cloned());
        for (there, name) in [(self.begun, RUN), (self.finished, SUCCESS), (self.listed, MANIFEST)] {
            named = named.or_else(|| there.then(|| name.to_owned()));
        }
        named.or_else(|| (self.attempts > 0).then(|| attempt_name(self.attempts - 1)))
    }

    fn add(&mut self, name: &str) {
        if name == RUN {
            self.begun = true;
        } else if name == SUCCESS {
            self.finished = true;
        } else if let Some(index) = shard_index(name) {
            self.predictions.insert(index, name.to_owned());
        } else if let Some(attempt) = attempt_number(name) {
            self.attempts = self.attempts.max(attempt.saturating_add(1));
        } else if name.starts_with("batches/part-") {
            self.batches.push(name.to_owned());
        } else if name.starts_with(STAGED) {
            self.staged.push(name.to_owned());
        } else if name == MANIFEST {
            self.listed = true;
        } else {
            self.stranger.get_or_insert(name.to_owned());
        }
    }
}

/// Name of a shard's part, the same in every run over the same input: the shard's place keeps the
/// parts in order, its identity tells versions of it apart.
pub fn part_name(shard: &ShardRef) -> String {
    format!("predictions/part-{:06}-{}.parquet", shard.index, &shard.identity()[..12])
}

/// The place in the input of the shard whose part has that name.
pub fn shard_index(name: &str) -> Option<u64> {
    let (index, _identity) =
        name.strip_prefix("predictions/part-")?.strip_suffix(".parquet")?.split_once('-')?;
    index.parse().ok()
}

/// Name of the note that an attempt leaves first of all.
pub fn attempt_name(number: u32) -> String {
    format!("_attempts/{number:06}.json")
}

fn attempt_number(name: &str) -> Option<u32> {
    name.strip_prefix("_attempts/")?.strip_suffix(".json")?.parse().ok()
}

/// What names of objects that are not published yet begin with.
const STAGED: &str = "_staging/";

/// Parts asked for at once.
const READS: usize = 32;

impl Output {
    /// What lies in the folder.
    pub fn holdings(&self) -> Result<Holdings, SinkError> {
        let listing = async {
            let mut holdings = Holdings::default();
            let mut objects = self.store().list(Some(self.root()));
            while let Some(object) = objects.next().await {
                match object {
                    Ok(object) => holdings.add(&self.name_of(&object.location)),
                    Err(object_store::Error::NotFound { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(holdings)
        };
        let listed = self.runtime().block_on(listing);
        listed.map_err(|source| StorageError { uri: self.uri().to_owned(), source }.into())
    }

    /// What the stored part `name` of the plan `plan_sha256` says of itself.
    ///
    /// # Errors
    /// When it cannot be read, is no part, is one of another plan or shard than its name says, or counts
    /// its own rows wrongly.
    pub fn read_back_one(&self, name: &str, plan_sha256: &str) -> Result<PartReport, SinkError> {
        self.runtime().block_on(self.read_part(name.to_owned(), plan_sha256))
    }

    /// The same for the parts `names`, in that order.
    pub fn read_back(&self, names: Vec<String>, plan_sha256: &str) -> Result<Vec<PartReport>, SinkError> {
        let read = |name| self.read_part(name, plan_sha256);
        self.runtime().block_on(futures_util::stream::iter(names).map(read).buffered(READS).try_collect())
    }

    async fn read_part(&self, name: String, plan_sha256: &str) -> Result<PartReport, SinkError> {
        let uri = self.uri_of(&name);
        let stored = read_part(self.store(), &self.path_of(&name)).await;
        let report = stored.and_then(|stored| stored.report(name, plan_sha256));
        report
            .map_err(|message| SinkError::Uri { uri, message: format!("is no part of this run: {message}") })
    }

    /// Size and SHA-256 (hex) of a small object.
    pub fn digest(&self, name: &str) -> Result<(u64, String), SinkError> {
        let bytes = self.read(name)?;
        Ok((bytes.len() as u64, hex(&Sha256::digest(&bytes))))
    }
}

struct StoredPart {
    bytes: u64,
    sha256: String,
    metadata: ParquetMetaData,
}

async fn read_part(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<StoredPart, String> {
    let text = |error: object_store::Error| error.to_string();
    let whole = store.get(path).await.map_err(text)?;
    let (mut bytes, mut sha256) = (0, Sha256::new());
    let mut stream = whole.into_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(text)?;
        bytes += piece.len() as u64;
        sha256.update(piece);
    }
    let suffix = |length| {
        let options = GetOptions { range: Some(GetRange::Suffix(length)), ..GetOptions::default() };
        async move { store.get_opts(path, options).await?.bytes().await }
    };
    const TAIL: u64 = 8;
    let tail = suffix(TAIL).await.map_err(text)?;
    let tail = tail.first_chunk::<{ TAIL as usize }>().ok_or("it is too short")?;
    let tail = FooterTail::try_new(tail).map_err(|error| error.to_string())?;
    let length = tail.metadata_length() as u64;
    let footer = suffix(length + TAIL).await.map_err(text)?;
    let footer = footer.get(..length as usize).ok_or("it is cut short")?;
    let metadata = ParquetMetaDataReader::decode_metadata(footer).map_err(|error| error.to_string())?;
    Ok(StoredPart { bytes, sha256: hex(&sha256.finalize()), metadata })
}

impl StoredPart {
    fn report(self, path: String, plan_sha256: &str) -> Result<PartReport, String> {
        let file = self.metadata.file_metadata();
        let footer = file.key_value_metadata().map_or(&[][..], Vec::as_slice);
        let value =
            |key: &str| footer.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        let mut report = PartReport { path, bytes: self.bytes, sha256: self.sha256, ..PartReport::default() };
        let parsed = |key: &str| value(key).ok_or_else(|| format!("its footer has no {key}"));
        if parsed(PLAN)? != plan_sha256 {
            return Err("its footer names another plan".to_owned());
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
        report.shard = shard;
        report.format = Some(format);
        report.rows = Some(tally.rows());
        report.rows_by_status = Some(tally);
        report.damage = value(DAMAGE);
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_an_object_of_an_output_is() {
        let mut holdings = Holdings::default();
        for name in [
            "_attempts/000000.json",
            "_attempts/000002.json",
            "_manifest.json",
            "_staging/0123456789abcdef",
            "batches/part-000000-000000.parquet",
            "predictions/part-000007-0123456789ab.parquet",
        ] {
            holdings.add(name);
        }
        let predictions = [(7, "predictions/part-000007-0123456789ab.parquet".to_owned())].into();
        let staged = vec!["_staging/0123456789abcdef".to_owned()];
        let batches = vec!["batches/part-000000-000000.parquet".to_owned()];
        assert_eq!(
            holdings,
            Holdings { staged, listed: true, predictions, batches, attempts: 3, ..Holdings::default() }
        );
        holdings.add(RUN);
        holdings.add(SUCCESS);
        assert!(holdings.begun && holdings.finished && holdings.stranger.is_none());
        holdings.add("predictions/other.parquet");
        holdings.add("notes.txt");
        assert_eq!(holdings.stranger.as_deref(), Some("predictions/other.parquet"));
    }
}
