//! Parquet: one column of encoded images.
//!
//! Input: a file that can be read by ranges. Output: one record for each row.
//!
//! - The image is a binary column, or Hugging Face's struct with a binary child `bytes` and a
//!   string child `path`. Only the leaf columns needed are read.
//! - Rows are decoded [`BATCH_ROWS`] at a time, row group after row group. A page is the smallest unit of Parquet that
//!   can be decompressed, so a shard holds a few pages of at most `max_page_bytes` each, see `pages`.
//! - Rows may repeat one value of a dictionary, or be nulls without any bytes. Their number and total size are limited
//!   in proportion to the file's size, as for decompression.
//! - Exactly as many rows are read as the footer states: pages with fewer would end a row group early, or pair images
//!   with the ids of other rows. Checksums of pages are verified where they exist.
//! - The library gets a footer with only the columns that are read, see `footer`.
//! - Types follow the Parquet schema only; the Arrow schema that some writers embed would only add names for the same
//!   bytes.

use std::ops::Range;
use std::sync::Arc;

use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::ChunkReader;
use arrow_array::Array;
use bytes::Bytes;

mod columns;
mod deltas;
mod footer;
mod page_header;
mod pages;
mod schema;
mod thrift;
mod unpack;

pub(super) use footer::{METADATA_BYTES, READING_BYTES, check_columns};
pub(super) use pages::AHEAD_PAGES_BYTES;
pub use pages::parquet_pages_bytes;

use crate::error::{ReadError, parquet_words};
use crate::items::{RawRecord, Rejected, Status};

use super::read_ahead::Turn;
use super::records::{ReadOptions, image_content, too_large};
use crate::source::compression::{FREE_BYTES, MAX_RATIO};
use columns::{Columns, Values};
use footer::Footer;
use pages::{CheckedPages, Chunk};

/// Rows decoded at once. They are copied out of their page, and any number of them may be copies of one long dictionary
/// value, so a batch of several rows could take several times the memory of a page. A batch costs some microseconds;
/// decoding an image takes about a thousand.
const BATCH_ROWS: usize = 1;

/// Rows that any file may have: a few seconds of work.
const FREE_ROWS: u64 = 1_000_000;

/// The fewest bytes per row of a file with more than [`FREE_ROWS`] rows. Nulls take no bytes, so a small file can claim
/// any number of rows. A row with an id and other columns takes more, even if its image is null.
const MIN_ROW_BYTES: u64 = 16;

/// The rows of one file.
pub(super) struct ParquetRecords {
    batches: ParquetRecordBatchReader,
    columns: Columns,
    batch: Option<Batch>,
    chunks: Vec<Range<u64>>,
    max_image_bytes: u64,
    next_index: u64,
    /// The number of rows that the footer states.
    rows: u64,
    /// The most rows that are read.
    max_rows: u64,
    file_bytes: u64,
    /// Total bytes of the rows so far.
    produced_bytes: u64,
}

/// A decoded batch of rows.
struct Batch {
    values: Values,
    rows: usize,
    next_row: usize,
}

impl ParquetRecords {
    /// Read the footer of `reader` and find the columns.
    /// Pages that take much memory wait for the shard's `turn`.
    pub fn open<R: ChunkReader + 'static>(
        reader: R,
        options: &ReadOptions,
        turn: Option<&Turn>,
    ) -> Result<Self, ReadError> {
        let file_bytes = reader.len();
        let reader = CheckedPages::new(reader, options.max_page_bytes, turn.cloned());
        let Footer { metadata, columns } = footer::read(&reader, options)?;
        let skip_arrow = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), skip_arrow)
            .map_err(|error| corrupt("footer", &error))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let rows = u64::try_from(rows)
            .map_err(|_| ReadError::Corrupt(format!("footer: the file has {rows} rows")))?;
        let chunks = column_chunks(metadata.metadata(), &columns);
        reader.check_inside(chunks.clone()).map_err(|error| corrupt("footer", &error))?;
        let chunks = chunks.into_iter().map(|chunk| chunk.range).collect();
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| corrupt("footer", &error))?;
        Ok(Self {
            batches,
            columns,
            batch: None,
            chunks,
            max_image_bytes: options.max_image_bytes,
            next_index: 0,
            rows,
            max_rows: FREE_ROWS.max(file_bytes / MIN_ROW_BYTES),
            file_bytes,
            produced_bytes: 0,
        })
    }

    /// The byte ranges of the column chunks that are read.
    pub fn column_chunks(&self) -> Vec<Range<u64>> {
        self.chunks.clone()
    }

    /// The next row; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        loop {
            if let Some(batch) = &mut self.batch
                && batch.next_row < batch.rows
            {
                let row = batch.next_row;
                batch.next_row += 1;
                let index = self.next_index;
                self.next_index += 1;
                return Ok(Some(batch.record(row, index, self.max_image_bytes)));
            }
            let place = format!("row {}", self.next_index);
            self.batch = match self.batches.next() {
                Some(Ok(batch)) => {
                    let values = self.columns.values(&batch)?;
                    Some(Batch { values, rows: batch.num_rows(), next_row: 0 })
                }
                Some(Err(error)) => return Err(corrupt(&place, &error)),
                None => None,
            };
            let Some(batch) = &self.batch else {
                let (found, rows) = (self.next_index, self.rows);
                if found == rows {
                    return Ok(None);
                }
                return Err(ReadError::Corrupt(format!("{found} rows are there, the footer counts {rows}")));
            };
            if self.next_index == self.rows {
                return Err(ReadError::Corrupt(format!("{place}: the footer counts no more rows")));
            }
            if self.next_index == self.max_rows {
                let (rows, bytes, limit) = (self.rows, self.file_bytes, self.max_rows);
                return Err(ReadError::Corrupt(format!(
                    "a file of {bytes} bytes holds {rows} rows, limit is {limit}: a million, or one for each \
                     {MIN_ROW_BYTES} bytes"
                )));
            }
            self.produced_bytes += batch.bytes();
            if self.produced_bytes > FREE_BYTES && self.produced_bytes / MAX_RATIO > self.file_bytes {
                return Err(ReadError::Corrupt(format!(
                    "{place}: a file of {} bytes holds rows of {} bytes and more, limit is {MAX_RATIO} times as \
                     much; store it without a dictionary if it is meant to",
                    self.file_bytes, self.produced_bytes
                )));
            }
        }
    }
}

impl Batch {
    /// The bytes of the batch that count against the file's size.
    fn bytes(&self) -> u64 {
        let value_bytes =
            |array: &dyn Array| array.to_data().buffers().iter().map(|b| b.len() as u64).sum::<u64>();
        let Values { images, paths, ids, .. } = &self.values;
        let texts = [paths, ids].into_iter().flatten().map(|texts| value_bytes(texts)).sum::<u64>();
        value_bytes(images) + texts
    }

    fn record(&self, row: usize, index: u64, max_image_bytes: u64) -> RawRecord {
        let path = Values::text(self.values.paths.as_ref(), row);
        let id = Values::text(self.values.ids.as_ref(), row).or(path);
        let image_id = id.map_or_else(|| index.to_string(), str::to_owned);
        let content = match (self.values.image(row), path) {
            (None, None) => Err(Rejected::new(Status::MissingImage, "the image is null")),
            (None, Some(path)) => {
                let error = format!(
                    "the record holds the path {path} alone, not the image: store the images in the file, or score \
                     them by a manifest of their paths"
                );
                Err(Rejected::new(Status::MissingImage, error))
            }
            (Some(value), _) if value.len() as u64 > max_image_bytes => {
                Err(too_large(value.len() as u64, max_image_bytes))
            }
            // a slice would keep all images of the batch in memory as long as this one
            (Some(value), _) => image_content(Bytes::copy_from_slice(value), max_image_bytes),
        };
        RawRecord::new(image_id, content)
    }
}

/// The column chunks that are read, with what is needed to check their pages.
fn column_chunks(metadata: &ParquetMetaData, columns: &Columns) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (row_group, group) in metadata.row_groups().iter().enumerate() {
        for (leaf, column) in group.columns().iter().enumerate() {
            let (start, length) = column.byte_range();
            let levels = [column.column_descr().max_rep_level(), column.column_descr().max_def_level()];
            chunks.push(Chunk {
                place: (leaf, row_group),
                range: start..start.saturating_add(length),
                codec: column.compression(),
                has_levels: levels.map(|max| max > 0),
                rows: u64::try_from(group.num_rows()).unwrap_or_default(),
                values: 0,
                holds_images: columns.leaves.get(leaf) == Some(&columns.image_leaf),
            });
        }
    }
    chunks
}

fn corrupt(place: &str, error: &dyn std::error::Error) -> ReadError {
    ReadError::Corrupt(format!("{place}: {}", parquet_words(error)))
}

#[cfg(test)]
pub(super) mod tests;
