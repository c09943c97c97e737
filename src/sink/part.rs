//! One Parquet file of the output, from its first row to its acknowledged upload.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use crate::commit::{BODY, Output, PendingUpload, RUN_ID, Stored, Upload};
use crate::error::SinkError;

use super::schema::writer_properties;

/// A file being written. If it is dropped unfinished, it never becomes visible.
#[derive(Debug)]
pub struct PartWriter {
    /// Path below the output, such as `predictions/part-000000-….parquet`.
    name: String,
    writer: ArrowWriter<Upload>,
    rows: u64,
}

/// A complete file that the store has yet to acknowledge.
#[derive(Debug)]
pub struct PendingPart {
    name: String,
    upload: PendingUpload,
}

impl PartWriter {
    /// Begin a part of the run `run_id`, with `footer` in its footer.
    pub fn create(
        output: &Output,
        run_id: &str,
        name: String,
        schema: &SchemaRef,
        footer: &[(&str, &str)],
    ) -> Result<Self, SinkError> {
        let upload = Upload::start(output, run_id);
        let footer = [&[(RUN_ID, run_id)], footer].concat();
        match ArrowWriter::try_new(upload, SchemaRef::clone(schema), Some(writer_properties(&footer))) {
            Ok(writer) => Ok(Self { name, writer, rows: 0 }),
            Err(source) => Err(encode_error(&name, output, source)),
        }
    }

    /// Append rows. After an error the part is lost.
    pub fn write(&mut self, rows: &RecordBatch, output: &Output) -> Result<(), SinkError> {
        self.rows += rows.num_rows() as u64;
        self.writer.write(rows).map_err(|source| encode_error(&self.name, output, source))?;
        self.writer.inner_mut().failure().map_or(Ok(()), Err)
    }

    /// Rows written.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the rows written, encoded or still to be encoded.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Write the footer, with `more` in it, and hand the file to the store.
    pub fn finish(self, more: &[(&str, String)], output: &Output) -> Result<PendingPart, SinkError> {
        let name = self.name.clone();
        self.finish_as(name, more, output)
    }

    /// Like [`Self::finish`], but the file is the segment `name` of the part.
    pub fn finish_segment(self, name: String, output: &Output) -> Result<PendingPart, SinkError> {
        self.finish_as(name, &[], output)
    }

    fn finish_as(
        self,
        name: String,
        more: &[(&str, String)],
        output: &Output,
    ) -> Result<PendingPart, SinkError> {
        let Self { mut writer, .. } = self;
        let flushed = writer.flush().and_then(|()| Ok(writer.sync()?));
        flushed.map_err(|source| encode_error(&name, output, source))?;
        let body = (BODY, writer.inner().body().to_string());
        for (key, value) in more.iter().chain([&body]) {
            writer.append_key_value_metadata(KeyValue::new((*key).to_owned(), value.clone()));
        }
        match writer.into_inner() {
            Ok(upload) => {
                let upload = upload.finish(&name);
                Ok(PendingPart { name, upload })
            }
            Err(source) => Err(encode_error(&name, output, source)),
        }
    }
}

fn encode_error(name: &str, output: &Output, source: ParquetError) -> SinkError {
    SinkError::Encode { part: output.uri_of(name), source }
}

impl PendingPart {
    /// Wait until the file is visible.
    pub fn wait(self) -> Result<(String, Stored), SinkError> {
        Ok((self.name, self.upload.wait()?))
    }
}
