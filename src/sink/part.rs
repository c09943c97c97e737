//! One Parquet file of the output, from its first row to its acknowledged upload.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use crate::error::{SinkError, StorageError};

use super::output::Output;
use super::schema::writer_properties;
use super::upload::{PendingUpload, Stored, Upload};

/// Key of every part's footer: SHA-256 over what determines the predictions.
pub const PLAN: &str = "sluice.plan_sha256";

/// Keys of a predictions part's footer: the name of its shard, the shard's identity and format, its
/// rows by status as JSON, and why the shard ended early if it did.
pub const SHARD: &str = "sluice.shard";
pub const SHARD_IDENTITY: &str = "sluice.shard_identity";
pub const SHARD_FORMAT: &str = "sluice.shard_format";
pub const ROWS_BY_STATUS: &str = "sluice.rows_by_status";
pub const DAMAGE: &str = "sluice.damage";

/// A file being written. Dropped unfinished, it never becomes visible.
#[derive(Debug)]
pub struct PartWriter {
    /// Path below the output, such as `predictions/part-000000-….parquet`.
    name: String,
    writer: ArrowWriter<Upload>,
}

/// A complete file that the store has yet to acknowledge.
#[derive(Debug)]
pub struct PendingPart {
    name: String,
    upload: PendingUpload,
}

impl PartWriter {
    pub fn create(
        output: &Output,
        name: String,
        schema: &SchemaRef,
        footer: &[(&str, &str)],
    ) -> Result<Self, SinkError> {
        let upload = output.start_upload(&name);
        match ArrowWriter::try_new(upload, SchemaRef::clone(schema), Some(writer_properties(footer))) {
            Ok(writer) => Ok(Self { name, writer }),
            Err(source) => Err(encode_error(&name, output, source)),
        }
    }

    /// Append rows. After an error the part is lost, and with it the run.
    pub fn write(&mut self, rows: &RecordBatch, output: &Output) -> Result<(), SinkError> {
        self.writer.write(rows).map_err(|source| encode_error(&self.name, output, source))?;
        match self.writer.inner_mut().failure(output.runtime()) {
            Some(source) => Err(StorageError { uri: output.uri_of(&self.name), source }.into()),
            None => Ok(()),
        }
    }

    /// Write the footer, with `more` in it, and hand the file to the store.
    pub fn finish(self, more: &[(&str, String)], output: &Output) -> Result<PendingPart, SinkError> {
        let Self { name, mut writer } = self;
        for (key, value) in more {
            writer.append_key_value_metadata(KeyValue::new((*key).to_owned(), value.clone()));
        }
        match writer.into_inner() {
            Ok(upload) => Ok(PendingPart { name, upload: upload.finish() }),
            Err(source) => Err(encode_error(&name, output, source)),
        }
    }
}

fn encode_error(name: &str, output: &Output, source: ParquetError) -> SinkError {
    SinkError::Encode { part: output.uri_of(name), source }
}

impl PendingPart {
    pub fn is_done(&self) -> bool {
        self.upload.is_done()
    }

    /// Wait until the file is visible.
    pub fn wait(self, output: &Output) -> Result<(String, Stored), SinkError> {
        match self.upload.wait(output.runtime()) {
            Ok(stored) => Ok((self.name, stored)),
            Err(source) => Err(StorageError { uri: output.uri_of(&self.name), source }.into()),
        }
    }
}
