//! Verifying that an output is what its run wrote: nothing missing, nothing added, no byte changed.
//!
//! - `_SUCCESS` has the manifest's hash, and the manifest has the hashes of all other files, so every byte is covered.
//!   A run that ended with too many errors has no `_SUCCESS`: no hash covers its manifest, and the rest is compared
//!   with it.
//! - Each part is read. Its rows must be those of one shard, one for each record from 0 on, and as many of each status
//!   as its footer and the manifest say.
//! - The parts must be those of the shards 0, 1, 2, …, one for each shard, and must add up to the summary: rows by
//!   status, shards that ended early or have no record, and skipped objects. No batch may appear twice.
//! - Batches parts and notes of an attempt that did not finish the run are remarks, not problems.
//! - These are checksums, not signatures. They do not show whether somebody edited a part, the manifest and `_SUCCESS`
//!   consistently.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use object_store::Error::{Generic, NotFound};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use tokio::runtime::Handle;

use super::listing::OutputListing;
use super::manifest::{StoredManifest, StoredSummary, success_content};
use super::names::{MANIFEST, RUN, SUCCESS, shard_index};
use super::output::{Output, sha256_of};
use super::record::RunRecord;
use super::segments::{RowCount, text};
use super::stored_part::read_part;
use crate::error::{Error, SinkError, SourceError, StorageError, parquet_words};
use crate::items::{ObjectRef, Status};
use crate::report::{Outcome, OutputReport, PartReport, Tally};
use crate::store::retry::may_get_better;
use crate::store::{ColumnWindows, Object, Stores};

/// The result of a verification.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Parts that were read.
    pub parts: u64,
    /// Rows of all parts.
    pub rows: u64,
    /// Size. Bytes.
    pub bytes: u64,
    /// The numbers of errors, in words, if the run ended with too many.
    pub failed: Option<String>,
    /// What is wrong with the output. Empty if it is intact.
    pub problems: Vec<String>,
    /// Harmless leftovers.
    pub remarks: Vec<String>,
}

/// Verify the output at `uri`.
///
/// # Errors
/// If the output cannot be read: there is none, or its store denies access or does not answer. A fault of the output
/// itself is a problem in the result, not an error.
pub fn verify(uri: &str, runtime: &Handle) -> Result<Verification, Error> {
    let stores = Stores::new(runtime.clone());
    let output = Output::open(&stores, uri).map_err(SinkError::of_reading)?;
    let listing = OutputListing::read(&output).map_err(SinkError::of_reading)?;
    let record = looked_at(output.read_if_any(RUN))?.ok().flatten();
    // a listing may lag
    if listing.anything().is_none() && record.is_none() {
        let message = "there is no output of a run".to_owned();
        return Err(SourceError::NoInput { uri: uri.to_owned(), message }.into());
    }
    let mut found = Verification::default();
    let said = record.as_ref().and_then(|record| serde_json::from_slice::<RunRecord>(record).ok());
    if let Some(removed) = said.and_then(|said| said.removing) {
        let what = format!(
            "the run {removed} is being removed, or its removal was interrupted; run the command of the new run \
             again, or start over with --overwrite"
        );
        found.problem(RUN, what);
        return Ok(found);
    }
    if let Some(manifest) = found.manifest(&output, &listing, record.is_some())? {
        found.check(&stores, &output, listing, manifest)?;
    }
    Ok(found)
}

/// The result of a read, with faults of the output in words.
///
/// # Errors
/// Those of a store that denies access or does not answer: they say nothing about the output.
fn looked_at<T>(read: Result<T, SinkError>) -> Result<Result<T, String>, Error> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(SinkError::Storage(StorageError { source: NotFound { .. }, .. })) => {
            Ok(Err("it is missing".to_owned()))
        }
        // answers that stay wrong after several tries, and files that are not Parquet
        Err(SinkError::Storage(error))
            if matches!(error.source, Generic { .. })
                && may_get_better(&error.source)
                && !error.is_of_a_connection() =>
        {
            Ok(Err(error.to_string()))
        }
        Err(SinkError::Storage(error)) => Err(SourceError::Storage(error).into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}

impl Verification {
    fn problem(&mut self, name: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    /// The manifest whose hash `_SUCCESS` has, or the one of a run that ended with too many errors.
    fn manifest(
        &mut self,
        output: &Output,
        listing: &OutputListing,
        begun: bool,
    ) -> Result<Option<StoredManifest>, Error> {
        let success = looked_at(output.read_if_any(SUCCESS))?;
        let manifest = looked_at(output.read_if_any(MANIFEST))?;
        let (success, manifest) = match (success, manifest) {
            (Ok(success), Ok(Some(manifest))) => (success, manifest),
            (Ok(None), Ok(None)) => {
                let parts = listing.predictions.len();
                let told =
                    if begun { "the run is under way or was interrupted, run it again" } else { "no run" };
                let what = format!("it is missing: {told}; {parts} shards have a part");
                self.problem(SUCCESS, what);
                return Ok(None);
            }
            (success, manifest) => {
                success.err().into_iter().for_each(|what| self.problem(SUCCESS, what));
                self.problem(MANIFEST, manifest.err().unwrap_or_else(|| "it is missing".to_owned()));
                return Ok(None);
            }
        };
        let said = match serde_json::from_slice::<StoredManifest>(&manifest) {
            Ok(said) => said,
            Err(error) => {
                self.problem(MANIFEST, error);
                return Ok(None);
            }
        };
        let StoredSummary { outcome, rows, rows_by_status, .. } = &said.summary;
        match (success, outcome) {
            (Some(success), Outcome::Succeeded)
                if success[..] == success_content(&sha256_of(&manifest))[..] => {}
            (Some(_), Outcome::Succeeded) => {
                self.problem(MANIFEST, format_args!("it is not the one that {SUCCESS} names"));
            }
            (None, Outcome::TooManyErrors) => {
                let rejected = rows.saturating_sub(rows_by_status.of(Status::Ok));
                let damaged = said.parts.iter().filter(|part| part.damage.is_some()).count();
                self.failed =
                    Some(format!("{rejected} of {rows} rows were rejected, {damaged} shards ended early"));
            }
            (None, Outcome::Succeeded) => {
                self.problem(SUCCESS, "it is missing: the run was stopped just before its end; run it again");
            }
            (Some(_), Outcome::TooManyErrors) => {
                self.problem(SUCCESS, "it is there, but the manifest says that there were too many errors");
            }
            (_, outcome) => self.problem(MANIFEST, format_args!("it is of a run that ended as {outcome:?}")),
        }
        Ok(Some(said))
    }

    fn check(
        &mut self,
        stores: &Stores,
        output: &Output,
        listing: OutputListing,
        manifest: StoredManifest,
    ) -> Result<(), Error> {
        self.record(output, &manifest)?;
        let (mut tally, mut shards) = (Tally::default(), HashSet::new());
        for (index, part) in (0..).zip(&manifest.parts) {
            if shard_index(&part.path) != Some(index) {
                self.problem(&part.path, format_args!("the part of shard {index} should stand here"));
            }
            if !shards.insert(&part.shard) {
                self.problem(&part.path, format_args!("{} has another part", part.shard));
            }
            self.parts += 1;
            // a part with other bytes is not decoded
            if self.part(output, part, &manifest.run_id)? {
                self.bytes += part.bytes;
                let rows = || rows(stores, output, part, &manifest.run_id);
                if let Some(counted) = self.twice(output, part, &manifest.run_id, rows)? {
                    self.rows += counted.rows();
                    tally.add(&counted);
                }
            }
        }
        if tally != manifest.summary.rows_by_status || tally.rows() != manifest.summary.rows {
            self.problem(MANIFEST, "its summary counts other rows than its parts hold");
        }
        self.counts(&manifest);
        let mut batch_ids = HashSet::new();
        for part in &manifest.batches {
            self.parts += 1;
            if self.part(output, part, &manifest.run_id)? {
                self.bytes += part.bytes;
                let ids = || batches(stores, output, &part.path, &batch_ids);
                if let Some(ids) = self.twice(output, part, &manifest.run_id, ids)? {
                    batch_ids.extend(ids);
                }
            }
        }
        self.unlisted(stores, output, listing, &manifest, &mut batch_ids)
    }

    /// Check that the summary counts the same shards and skipped objects as the parts.
    fn counts(&mut self, manifest: &StoredManifest) {
        let said = &manifest.summary;
        let Some(skipped_by_listing) = said.skipped_by_listing.clone() else { return };
        let counted =
            OutputReport { parts: manifest.parts.clone(), skipped_by_listing, ..OutputReport::default() };
        let of_shards = (counted.parts.len() as u64, counted.damaged_shards(), counted.empty_shards());
        if of_shards != (said.shards, said.damaged_shards, said.empty_shards) {
            self.problem(MANIFEST, "its summary counts other shards than it has parts");
        }
        if counted.skipped() != said.skipped {
            self.problem(MANIFEST, "its summary counts other things as skipped than its parts do");
        }
    }

    /// Check that `_run.json` is what the manifest lists, and that its plan hash is that of its determinants.
    fn record(&mut self, output: &Output, manifest: &StoredManifest) -> Result<(), Error> {
        let bytes = match looked_at(output.read(RUN))? {
            Ok(bytes) => bytes,
            Err(what) => {
                self.problem(RUN, what);
                return Ok(());
            }
        };
        let found = PartReport {
            path: RUN.to_owned(),
            bytes: bytes.len() as u64,
            sha256: sha256_of(&bytes),
            ..PartReport::default()
        };
        if found == manifest.record {
            self.bytes += found.bytes;
        } else {
            self.problem(RUN, "it is not what the manifest lists");
        }
        match serde_json::from_slice::<RunRecord>(&bytes) {
            Err(error) => self.problem(RUN, error),
            Ok(record) => {
                let determined = sha256_of(record.determinants.to_string().as_bytes());
                if record.run_id != manifest.run_id
                    || record.limit != manifest.limit
                    || record.plan_sha256 != manifest.plan_sha256
                    || record.plan_sha256 != determined
                    || record.determinants["model_sha256"] != manifest.model_sha256.as_str()
                {
                    self.problem(RUN, "it is of another run than the manifest");
                }
            }
        }
        Ok(())
    }

    /// `look` at a part that is what the manifest lists. If that fails, compare the part with the manifest and `look`
    /// once more: the store may have failed in between.
    fn twice<T>(
        &mut self,
        output: &Output,
        listed: &PartReport,
        run_id: &str,
        look: impl Fn() -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        if let Ok(found) = guarded(&look) {
            return Ok(Some(found));
        }
        if !self.part(output, listed, run_id)? {
            return Ok(None);
        }
        Ok(guarded(look).map_err(|problem| self.problem(&listed.path, problem)).ok())
    }

    /// Whether size, hash and footer of a part are what the manifest lists.
    fn part(&mut self, output: &Output, listed: &PartReport, run_id: &str) -> Result<bool, Error> {
        match looked_at(read_part(output, &listed.path, run_id))? {
            Err(what) => self.problem(&listed.path, what),
            Ok(found) if found != *listed => self.problem(&listed.path, "it is not what the manifest lists"),
            Ok(_) => return Ok(true),
        }
        Ok(false)
    }

    /// Report the objects of the output that the manifest does not list.
    fn unlisted(
        &mut self,
        stores: &Stores,
        output: &Output,
        listing: OutputListing,
        manifest: &StoredManifest,
        batch_ids: &mut HashSet<i64>,
    ) -> Result<(), Error> {
        let all = manifest.parts.iter().chain(&manifest.batches);
        let listed: HashSet<_> = all.map(|part| part.path.as_str()).collect();
        let transient: Vec<_> = listing.transient().chain(listing.staged.iter().cloned()).collect();
        let parts = listing.predictions.into_values().map(|entry| entry.name).chain(listing.duplicates);
        let foreign = parts.chain(listing.foreign).filter(|name| !listed.contains(name.as_str()));
        for name in foreign.chain(output.unlisted()) {
            self.problem(&name, "it is not in the manifest");
        }
        let late = |name: &str| format!("{name}: of an attempt that did not finish the run");
        for name in listing.batches.into_iter().map(|entry| entry.name) {
            if listed.contains(name.as_str()) {
                continue;
            }
            // it may be of an attempt that did not finish the run; a copy of another part is a problem
            let read = looked_at(read_part(output, &name, &manifest.run_id))?;
            match read.and_then(|_| guarded(|| batches(stores, output, &name, batch_ids))) {
                Ok(ids) => {
                    batch_ids.extend(ids);
                    self.remarks.push(late(&name));
                }
                Err(what) => self.problem(&name, format_args!("it is not in the manifest: {what}")),
            }
        }
        // a failed run keeps what it needs to be begun again with higher limits
        if self.failed.is_none() {
            self.remarks.extend(transient.iter().map(|name| late(name)));
        }
        Ok(())
    }
}

/// `look` at a part. The Parquet library panics on some damaged files.
fn guarded<T>(look: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let caught = catch_unwind(AssertUnwindSafe(look));
    caught.unwrap_or_else(|_| Err("the Parquet library cannot read it".to_owned()))
}

/// Check the rows of a part one by one, and count them by status.
fn rows(stores: &Stores, output: &Output, part: &PartReport, run_id: &str) -> Result<Tally, String> {
    const COLUMNS: [&str; 4] = ["key", "record_index", "status", "run_id"];
    let mut count = RowCount::from(0);
    for batch in columns(stores, output, &part.path, &COLUMNS)? {
        let batch = batch.map_err(|error| parquet_words(&error))?;
        let (keys, runs) = (text(&batch, "key")?, text(&batch, "run_id")?);
        for (row, record) in (count.next..).take(batch.num_rows()).enumerate() {
            if keys.value(row) != format!("{}#{record}", part.shard) {
                return Err(format!("row {record} is of record {}", keys.value(row)));
            }
            if runs.value(row) != run_id {
                return Err(format!("row {record} is of run {}", runs.value(row)));
            }
        }
        count.add(&batch)?;
    }
    if part.rows_by_status.as_ref() != Some(&count.tally) {
        return Err("its numbers of rows by status are not those in the manifest".to_owned());
    }
    Ok(count.tally)
}

/// The batch ids of a part. None of them may be among `seen`.
fn batches(
    stores: &Stores,
    output: &Output,
    name: &str,
    seen: &HashSet<i64>,
) -> Result<HashSet<i64>, String> {
    let mut found = HashSet::new();
    for batch in columns(stores, output, name, &["batch_id"])? {
        let batch = batch.map_err(|error| parquet_words(&error))?;
        let ids = batch.column_by_name("batch_id").and_then(|ids| ids.as_primitive_opt::<Int64Type>());
        for &id in ids.ok_or("it has no column batch_id of numbers")?.values() {
            if seen.contains(&id) || !found.insert(id) {
                return Err(format!("batch {id} is there twice"));
            }
        }
    }
    Ok(found)
}

/// Read some columns of a part.
fn columns(
    stores: &Stores,
    output: &Output,
    name: &str,
    columns: &[&str],
) -> Result<ParquetRecordBatchReader, String> {
    let object = ObjectRef { uri: output.uri_of(name), size_bytes: None, version: None };
    let object = Object::open(stores, &object).map_err(|error| error.to_string())?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(object))
        .map_err(|error| parquet_words(&error))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    builder.with_projection(mask).build().map_err(|error| parquet_words(&error))
}

#[cfg(test)]
mod tests {
    use object_store::client::{HttpError, HttpErrorKind};

    use super::*;

    #[test]
    fn a_store_that_denies_access_is_an_error_and_not_a_problem() {
        let found = |source| {
            let error = StorageError { uri: "gs://b/out".to_owned(), source };
            looked_at::<()>(Err(SinkError::Storage(error))).map_err(|error| error.to_string())
        };
        let generic = |source| Generic { store: "test", source };
        let missing = NotFound { path: "a".to_owned(), source: "no such key".into() };
        assert_eq!(found(missing), Ok(Err("it is missing".to_owned())));
        assert!(matches!(found(generic("it is cut short".into())), Ok(Err(_))));
        let gone = HttpError::new(HttpErrorKind::Connect, std::io::Error::other("refused"));
        assert!(found(generic(Box::new(gone))).is_err());
        let cut = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("reset"));
        assert!(found(generic(Box::new(cut))).is_err());
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(found(generic(Box::new(denied))).is_err());
    }
}
