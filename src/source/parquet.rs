//! Parquet: one column of encoded images.
//!
//! Comes in: a file that can be read by ranges. Goes out: one record for each row.
//!
//! - The image is a binary column, or Hugging Face's struct with a binary child `bytes` and a
//!   string child `path`. Only the leaf columns needed are read.
//! - Rows are decoded [`BATCH_ROWS`] at a time, row group after row group. The Parquet format
//!   makes a page the smallest unit that can be unpacked, so a shard holds one page of images and one
//!   dictionary at a time, of at most `max_page_bytes` each.
//! - Rows may be copies of one value of a dictionary: what they come to is held against the file's size,
//!   as what unpacks is.
//! - As many rows are read as the footer counts: pages that lack some would end a row group early, or pair
//!   images with the ids of other rows. Where pages carry checksums, they are checked.
//! - A footer is walked before the library parses it, so that it names no more than it has bytes for.
//! - Types follow the Parquet schema alone; the Arrow schema that some writers embed would only
//!   bring more names for the same bytes.

use std::ops::Range;
use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use ::parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::file::reader::ChunkReader;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;

use crate::error::ReadError;
use crate::items::{RawRecord, Rejected, Status};

use super::compression::{FREE_BYTES, MAX_RATIO};
use super::format::{ReadOptions, image_content, too_large};
use super::parquet_pages::{CheckedPages, Chunk};
use super::thrift::{Compact, STRUCT};

/// Rows decoded at once. They are copied out of their page, and where a dictionary holds one long value any
/// number of rows may be copies of it: more than one would multiply what a page may take. A batch costs
/// some microseconds, an image is decoded for a thousand.
const BATCH_ROWS: usize = 1;

/// Longest footer. A column takes some 200 bytes of it in each row group, so this is a hundred columns in three
/// thousand row groups; what the library makes of it is several times as large.
const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// Bytes after the footer: its length and the magic word.
const FOOTER_TAIL_BYTES: u64 = 8;

/// What a row counts beside its bytes when what comes out of a file is compared with the file: a file of
/// nothing but nulls, which take no bytes in it, still makes rows.
const ROW_BYTES: u64 = 64;

/// The image column where no `image_key` is given and there are several.
const DEFAULT_IMAGE_COLUMN: &str = "image";

/// Children of Hugging Face's image struct.
const STRUCT_BYTES: &str = "bytes";
const STRUCT_PATH: &str = "path";

/// The rows of one file.
pub(super) struct ParquetRecords {
    batches: ParquetRecordBatchReader,
    columns: Columns,
    batch: Option<Batch>,
    chunks: Vec<Range<u64>>,
    max_image_bytes: u64,
    next_index: u64,
    /// As the footer counts them.
    rows: u64,
    file_bytes: u64,
    /// What the rows so far come to.
    produced_bytes: u64,
}

/// Which columns to read, by name.
struct Columns {
    image: String,
    /// Whether the image is a struct, and whether that has a path.
    nested: Option<Nested>,
    id: Option<String>,
}

struct Nested {
    has_path: bool,
}

/// Some rows, their columns found and ids turned into text.
struct Batch {
    /// Binary; null where there is no image.
    images: ArrayRef,
    /// Validity of the struct around the images.
    outer: Option<ArrayRef>,
    /// Strings.
    ids: Option<ArrayRef>,
    rows: usize,
    next_row: usize,
}

impl ParquetRecords {
    /// Read the footer of `reader` and find the columns.
    pub fn open<R: ChunkReader + 'static>(reader: R, options: &ReadOptions) -> Result<Self, ReadError> {
        let file_bytes = reader.len();
        let reader = CheckedPages::new(reader, options.max_page_bytes);
        let metadata = footer(&reader)?;
        let skip_arrow = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), skip_arrow)
            .map_err(|error| corrupt("footer", &error))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let rows = u64::try_from(rows)
            .map_err(|_| ReadError::Corrupt(format!("footer: the file has {rows} rows")))?;
        let columns = Columns::find(metadata.schema(), options).map_err(ReadError::Corrupt)?;
        let leaves = columns.leaves(metadata.metadata());
        let chunks = column_chunks(metadata.metadata(), &leaves);
        reader.check_inside(chunks.clone()).map_err(|error| corrupt("footer", &error))?;
        let chunks = chunks.into_iter().map(|chunk| chunk.range).collect();
        let mask = ProjectionMask::leaves(metadata.parquet_schema(), leaves);
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata)
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| corrupt("footer", &error))?;
        let max_image_bytes = options.max_image_bytes;
        Ok(Self {
            batches,
            columns,
            batch: None,
            chunks,
            max_image_bytes,
            next_index: 0,
            rows,
            file_bytes,
            produced_bytes: 0,
        })
    }

    /// Where the columns that will be read lie in the file.
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
            let (batches, columns) = (&mut self.batches, &self.columns);
            let place = format!("row {}", self.next_index);
            self.batch = match batches.next() {
                Some(Ok(batch)) => Some(columns.batch(&batch)?),
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

/// Read the footer of a file.
fn footer(reader: &impl ChunkReader) -> Result<ParquetMetaData, ReadError> {
    let file_bytes = reader.len();
    let bytes = |start: u64, length: u64| {
        let bytes = reader.get_bytes(start, length as usize);
        bytes.map_err(|error| corrupt("footer", &error))
    };
    let wrong = |what: &str| ReadError::Corrupt(format!("footer: {what}"));
    let end = file_bytes.checked_sub(FOOTER_TAIL_BYTES);
    let end = end.ok_or_else(|| wrong(&format!("a file of {file_bytes} bytes has none")))?;
    let tail = FooterTail::try_from(&bytes(end, FOOTER_TAIL_BYTES)?[..]);
    let tail = tail.map_err(|error| corrupt("footer", &error))?;
    if tail.is_encrypted_footer() {
        return Err(wrong("it is encrypted, which is not supported"));
    }
    let length = tail.metadata_length() as u64;
    if length > MAX_FOOTER_BYTES {
        return Err(wrong(&format!("it is {length} bytes, limit is {MAX_FOOTER_BYTES} bytes")));
    }
    let start = end.checked_sub(length);
    let start = start.ok_or_else(|| wrong(&format!("it is {length} bytes, the file {file_bytes}")))?;
    let bytes = bytes(start, length)?;
    Compact::new(&bytes[..]).skip(STRUCT, 0).map_err(|error| corrupt("footer", &error))?;
    ParquetMetaDataReader::decode_metadata(&bytes).map_err(|error| corrupt("footer", &error))
}

impl Columns {
    fn find(schema: &Schema, options: &ReadOptions) -> Result<Self, String> {
        let names = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        let image = match &options.image_key {
            Some(key) => {
                let field = schema.field_with_name(key);
                let field = field.map_err(|_| format!("no column {key}; the file has: {}", names()))?;
                if !is_image(field.data_type()) {
                    return Err(format!(
                        "column {key} is {}, expected binary or a struct with binary {STRUCT_BYTES}",
                        field.data_type()
                    ));
                }
                field
            }
            None => {
                let candidates: Vec<_> =
                    schema.fields().iter().filter(|field| is_image(field.data_type())).collect();
                let named = candidates.iter().copied().find(|field| field.name() == DEFAULT_IMAGE_COLUMN);
                match (named, &candidates[..]) {
                    (Some(field), _) => field,
                    (None, &[field]) => field,
                    (None, []) => return Err(format!("no column of images; the file has: {}", names())),
                    (None, _) => {
                        let names: Vec<_> = candidates.iter().map(|field| field.name().as_str()).collect();
                        let names = names.join(", ");
                        return Err(format!("several columns may hold the images ({names}); set image_key"));
                    }
                }
            }
        };
        if let Some(key) = &options.id_key {
            let field = schema.field_with_name(key);
            let field = field.map_err(|_| format!("no column {key}; the file has: {}", names()))?;
            if !is_id(field.data_type()) {
                let kind = field.data_type();
                return Err(format!("column {key} is {kind}, expected a string or an integer"));
            }
        }
        let nested = match image.data_type() {
            DataType::Struct(children) => {
                let path = children.iter().find(|child| child.name() == STRUCT_PATH);
                Some(Nested { has_path: path.is_some_and(|path| path.data_type() == &DataType::Utf8) })
            }
            _ => None,
        };
        Ok(Self { image: image.name().clone(), nested, id: options.id_key.clone() })
    }

    /// Leaf columns of the file, by number.
    fn leaves(&self, metadata: &ParquetMetaData) -> Vec<usize> {
        let mut wanted: Vec<Vec<&str>> = Vec::new();
        match &self.nested {
            Some(nested) => {
                wanted.push(vec![&self.image, STRUCT_BYTES]);
                if nested.has_path && self.id.is_none() {
                    wanted.push(vec![&self.image, STRUCT_PATH]);
                }
            }
            None => wanted.push(vec![&self.image]),
        }
        wanted.extend(self.id.as_deref().map(|id| vec![id]));
        let columns = metadata.file_metadata().schema_descr().columns();
        let is_wanted = |parts: &[String]| wanted.iter().any(|path| path.iter().eq(parts.iter()));
        (0..columns.len()).filter(|&leaf| is_wanted(columns[leaf].path().parts())).collect()
    }

    fn batch(&self, batch: &RecordBatch) -> Result<Batch, ReadError> {
        let column = |name: &str| {
            let found = batch.column_by_name(name).cloned();
            found.ok_or_else(|| ReadError::Corrupt(format!("column {name} is not where the footer says")))
        };
        let image = column(&self.image)?;
        let mut path = None;
        let (images, outer) = match image.as_struct_opt() {
            Some(parts) => {
                path = parts.column_by_name(STRUCT_PATH).cloned();
                let bytes = parts.column_by_name(STRUCT_BYTES).cloned();
                let missing = || ReadError::Corrupt(format!("{}.{STRUCT_BYTES} is missing", self.image));
                (bytes.ok_or_else(missing)?, Some(image))
            }
            None => (image, None),
        };
        let ids = match &self.id {
            Some(name) => Some(column(name)?),
            None => path,
        };
        let ids = ids.map(|ids| arrow::compute::cast(&ids, &DataType::Utf8)).transpose();
        let ids = ids.map_err(|error| corrupt("id column", &error))?;
        if images.as_binary_opt::<i32>().is_none() {
            return Err(ReadError::Corrupt(format!("column {} is not binary", self.image)));
        }
        Ok(Batch { images, outer, ids, rows: batch.num_rows(), next_row: 0 })
    }
}

impl Batch {
    /// What it counts against the file's size.
    fn bytes(&self) -> u64 {
        let value_bytes =
            |array: &ArrayRef| array.to_data().buffers().iter().map(|b| b.len() as u64).sum::<u64>();
        let ids = self.ids.as_ref().map_or(0, value_bytes);
        value_bytes(&self.images) + ids + ROW_BYTES * self.rows as u64
    }

    fn record(&self, row: usize, index: u64, max_image_bytes: u64) -> RawRecord {
        let id = self.ids.as_ref().filter(|ids| ids.is_valid(row));
        let id = id.map(|ids| ids.as_string::<i32>().value(row)).filter(|id| !id.is_empty());
        let image_id = id.map_or_else(|| index.to_string(), str::to_owned);
        let outer_is_null = self.outer.as_ref().is_some_and(|outer| outer.is_null(row));
        let content = if outer_is_null || self.images.is_null(row) {
            Err(Rejected::new(Status::MissingImage, "the image is null"))
        } else {
            let value = self.images.as_binary::<i32>().value(row);
            if value.len() as u64 > max_image_bytes {
                Err(too_large(value.len() as u64, max_image_bytes))
            } else {
                // a slice would keep all images of the batch alive for as long as this one
                image_content(Bytes::copy_from_slice(value), max_image_bytes)
            }
        };
        RawRecord::new(image_id, content)
    }
}

fn is_image(kind: &DataType) -> bool {
    match kind {
        DataType::Binary => true,
        DataType::Struct(children) => children
            .iter()
            .any(|child| child.name() == STRUCT_BYTES && child.data_type() == &DataType::Binary),
        _ => false,
    }
}

fn is_id(kind: &DataType) -> bool {
    kind.is_integer() || matches!(kind, DataType::Utf8)
}

/// Where the pages of these columns lie, and what they are like.
fn column_chunks(metadata: &ParquetMetaData, leaves: &[usize]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (row_group, group) in metadata.row_groups().iter().enumerate() {
        for &leaf in leaves {
            if let Some(column) = group.columns().get(leaf) {
                let (start, length) = column.byte_range();
                let levels = [column.column_descr().max_rep_level(), column.column_descr().max_def_level()];
                chunks.push(Chunk {
                    place: (leaf, row_group),
                    range: start..start.saturating_add(length),
                    codec: column.compression(),
                    has_levels: levels.map(|max| max > 0),
                    rows: u64::try_from(group.num_rows()).unwrap_or_default(),
                    values: 0,
                });
            }
        }
    }
    chunks
}

fn corrupt(place: &str, error: &dyn std::error::Error) -> ReadError {
    ReadError::Corrupt(format!("{place}: {error}"))
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
pub(super) mod tests;
