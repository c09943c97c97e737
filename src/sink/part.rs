//! One Parquet file of the output, from its first row to its upload.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use crate::commit::{BODY, PLAN, PendingUpload, RUN_ID, SCHEMA, SCHEMA_VERSION, Upload};
use crate::error::SinkError;

use super::attempt::Attempt;
use super::schema::writer_properties;

/// A file being written. If it is dropped unfinished, it never becomes visible.
#[derive(Debug)]
pub struct PartWriter {
    /// Path below the output at which it will appear, such as `predictions/part-000000-….parquet`.
    pub name: String,
    /// Rows written.
    pub rows: u64,
    attempt: Arc<Attempt>,
    writer: ArrowWriter<Upload>,
}

impl PartWriter {
    /// Begin a file of `attempt`, with `more` in its footer.
    pub fn create(
        attempt: &Arc<Attempt>,
        name: String,
        schema: &SchemaRef,
        more: &[(&str, &str)],
    ) -> Result<Self, SinkError> {
        let upload = Upload::start(&attempt.output, &attempt.run_id);
        let footer =
            [(RUN_ID, &attempt.run_id[..]), (SCHEMA, SCHEMA_VERSION), (PLAN, &attempt.plan_sha256[..])];
        let properties = writer_properties(&[&footer, more].concat());
        match ArrowWriter::try_new(upload, SchemaRef::clone(schema), Some(properties)) {
            Ok(writer) => Ok(Self { name, attempt: Arc::clone(attempt), writer, rows: 0 }),
            Err(source) => Err(encode_error(&name, attempt, source)),
        }
    }

    /// Append rows. After an error the file is lost.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), SinkError> {
        self.rows += rows.num_rows() as u64;
        self.writer.write(rows).map_err(|source| encode_error(&self.name, &self.attempt, source))?;
        self.writer.inner_mut().failure().map_or(Ok(()), Err)
    }

    /// Bytes of the rows written, encoded or still to be encoded.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Write the footer, with `more` in it, and hand the file to the store.
    pub fn finish(self, more: &[(&str, String)]) -> Result<PendingUpload, SinkError> {
        let Self { name, attempt, mut writer, .. } = self;
        let failed = |source| encode_error(&name, &attempt, source);
        writer.flush().and_then(|()| Ok(writer.sync()?)).map_err(failed)?;
        let body = (BODY, writer.inner().body().to_string());
        for (key, value) in more.iter().chain([&body]) {
            writer.append_key_value_metadata(KeyValue::new((*key).to_owned(), value.clone()));
        }
        Ok(writer.into_inner().map_err(failed)?.finish(&name))
    }
}

fn encode_error(name: &str, attempt: &Attempt, source: ParquetError) -> SinkError {
    SinkError::Encode { part: attempt.output.uri_of(name), source }
}
