//! Proof that an output is what its run has written: nothing missing, nothing added, no byte changed.
//!
//! - `_SUCCESS` holds the manifest's hash, the manifest those of all other files; so each byte counts.
//! - Each part is read: its rows are those of one shard, one for each record from 0 on, and as many of
//!   each status as its footer and the manifest say.
//! - The parts are those of the shards 0, 1, 2, …, and add up to the summary.
//!
//! What an attempt stored that lost the race to finish the run is no fault: its batches and notes are
//! told, and that is all.

use std::collections::{BTreeMap, HashSet};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::error::Error;
use crate::finish::StoredManifest;
use crate::items::{ObjectRef, Status};
use crate::plan::hex;
use crate::report::{PartReport, Tally};
use crate::sink::{Holdings, MANIFEST, Output, RUN, RunRecord, SUCCESS, shard_index};
use crate::source::{ColumnWindows, Stores};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verification {
    pub parts: u64,
    pub rows: u64,
    pub bytes: u64,
    /// What is wrong; nothing, if the output holds.
    pub problems: Vec<String>,
    /// What is odd and does no harm.
    pub remarks: Vec<String>,
}

/// Verify the output at `uri`.
///
/// # Errors
/// When it cannot be looked at. What is wrong with it is no error but a problem.
pub fn verify(uri: &str, runtime: &Handle) -> Result<Verification, Error> {
    let stores = Stores::new(runtime.clone());
    let output = Output::open(&stores, uri)?;
    let holdings = output.holdings()?;
    let mut found = Verification::default();
    match found.manifest(&output, &holdings) {
        Ok(manifest) => found.check(&stores, &output, holdings, manifest),
        Err(problem) => found.problems.push(problem),
    }
    Ok(found)
}

impl Verification {
    fn problem(&mut self, name: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    /// The manifest that `_SUCCESS` vouches for.
    fn manifest(&mut self, output: &Output, holdings: &Holdings) -> Result<StoredManifest, String> {
        if !holdings.finished {
            return Err(format!("{SUCCESS} is missing: the run is not finished"));
        }
        let read = |name| output.read(name).map_err(|error| format!("{name}: {error}"));
        let (success, manifest) = (read(SUCCESS)?, read(MANIFEST)?);
        if success[..] != *format!("{}\n", hex(&Sha256::digest(&manifest))).as_bytes() {
            self.problem(MANIFEST, format_args!("it is not the one that {SUCCESS} names"));
        }
        serde_json::from_slice(&manifest).map_err(|error| format!("{MANIFEST}: {error}"))
    }

    fn check(&mut self, stores: &Stores, output: &Output, holdings: Holdings, manifest: StoredManifest) {
        self.record(output, &manifest);
        self.digest(output, &manifest.record);
        let mut tally = Tally::default();
        for (index, part) in (0..).zip(&manifest.parts) {
            if shard_index(&part.path) != Some(index) {
                self.problem(&part.path, format_args!("the part of shard {index} should stand here"));
            }
            self.part(output, part, &manifest.run_id);
            if let Err(problem) = self.rows(stores, output, part, &manifest.run_id, &mut tally) {
                self.problem(&part.path, problem);
            }
        }
        for part in &manifest.batches {
            self.part(output, part, &manifest.run_id);
        }
        if tally != manifest.summary.rows_by_status || tally.rows() != manifest.summary.rows {
            self.problem(MANIFEST, "its summary counts other rows than its parts hold");
        }
        self.strays(holdings, &manifest);
    }

    /// `_run.json` is of this run, and its hash is that of what it says.
    fn record(&mut self, output: &Output, manifest: &StoredManifest) {
        let record = output
            .read(RUN)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<RunRecord>(&bytes).map_err(|error| error.to_string()));
        match record {
            Err(error) => self.problem(RUN, error),
            Ok(record) => {
                let determined = hex(&Sha256::digest(record.determinants.to_string()));
                if (&record.run_id, &record.plan_sha256) != (&manifest.run_id, &manifest.plan_sha256)
                    || determined != record.plan_sha256
                {
                    self.problem(RUN, "it is of another run than the manifest");
                }
            }
        }
    }

    /// Size and hash of a small file.
    fn digest(&mut self, output: &Output, listed: &PartReport) {
        match output.digest(&listed.path) {
            Err(error) => self.problem(&listed.path, error),
            Ok(found) if found != *listed => {
                self.problem(&listed.path, "it is not what the manifest lists");
            }
            Ok(_) => self.bytes += listed.bytes,
        }
    }

    /// Size, hash and footer of a part.
    fn part(&mut self, output: &Output, listed: &PartReport, run_id: &str) {
        self.parts += 1;
        match output.read_back_one(&listed.path, run_id) {
            Err(error) => self.problem(&listed.path, error),
            Ok(found) if found != *listed => self.problem(&listed.path, "it is not what the manifest lists"),
            Ok(_) => self.bytes += listed.bytes,
        }
    }

    /// The rows of a part, one by one; they are added to `tally`.
    fn rows(
        &mut self,
        stores: &Stores,
        output: &Output,
        part: &PartReport,
        run_id: &str,
        tally: &mut Tally,
    ) -> Result<(), String> {
        const COLUMNS: [&str; 4] = ["key", "record_index", "status", "run_id"];
        let object = ObjectRef { uri: output.uri_of(&part.path), size_bytes: None, version: None };
        let object = stores.open(&object).map_err(|error| error.to_string())?;
        let text = |error: parquet::errors::ParquetError| error.to_string();
        let builder = ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(object)).map_err(text)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
        let (mut expected, mut here) = (0, BTreeMap::<String, u64>::new());
        for batch in builder.with_projection(mask).build().map_err(text)? {
            let batch = batch.map_err(|error| error.to_string())?;
            if COLUMNS.iter().any(|column| batch.column_by_name(column).is_none()) {
                return Err(format!("it lacks one of the columns {}", COLUMNS.join(", ")));
            }
            let (keys, indices) =
                (batch["key"].as_string::<i32>(), batch["record_index"].as_primitive::<Int64Type>());
            let (statuses, runs) = (batch["status"].as_string::<i32>(), batch["run_id"].as_string::<i32>());
            for row in 0..batch.num_rows() {
                let index = indices.value(row);
                if index != expected || keys.value(row) != format!("{}#{index}", part.shard) {
                    return Err(format!("row {expected} is of record {}", keys.value(row)));
                }
                if runs.value(row) != run_id {
                    return Err(format!("row {expected} is of run {}", runs.value(row)));
                }
                *here.entry(statuses.value(row).to_owned()).or_default() += 1;
                expected += 1;
            }
        }
        self.rows += expected as u64;
        let mut counted = Tally::default();
        for (status, rows) in here {
            let status: Status = serde_json::from_value(status.into()).map_err(|error| error.to_string())?;
            (0..rows).for_each(|_| counted.count(status));
        }
        tally.add(&counted);
        if part.rows_by_status.as_ref() != Some(&counted) {
            return Err("it holds other rows than the manifest lists".to_owned());
        }
        Ok(())
    }

    /// What lies in the output and is not in the manifest.
    fn strays(&mut self, holdings: Holdings, manifest: &StoredManifest) {
        let all = manifest.parts.iter().chain(&manifest.batches);
        let listed: HashSet<_> = all.map(|part| part.path.as_str()).collect();
        let is_listed = |name: &String| listed.contains(name.as_str());
        let passing: Vec<_> = holdings.passing().collect();
        let parts = holdings.predictions.into_values().map(|held| held.name).chain(holdings.doubled);
        for name in parts.chain(holdings.stranger).filter(|name| !is_listed(name)) {
            self.problem(&name, "it is not in the manifest");
        }
        let batches = holdings.batches.into_iter().map(|held| held.name);
        for name in batches.chain(passing).filter(|name| !is_listed(name)) {
            self.remarks.push(format!("{name}: of an attempt that did not finish the run"));
        }
    }
}
