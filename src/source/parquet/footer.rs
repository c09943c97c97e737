//! Reduces the footer of a Parquet file to the columns that are read, before the Parquet library parses it.
//!
//! Input: any reader of a file. Output: the library's metadata of a few columns.
//!
//! - The library allocates some hundred bytes for each field of the schema and for each column of each row group. A
//!   file may have a hundred thousand columns, of which at most three are read, so the library gets a footer with only
//!   those.
//! - The reduced footer keeps the positions of pages and leaves out statistics, indexes, filters and the metadata of
//!   writers.
//! - The numbers of fields, nested groups and row groups are limited, and every number is read with the type that the
//!   format defines.
//!
//! The layout is that of `FileMetaData` in Apache Parquet's `parquet.thrift`.

use std::io;
use std::ops::Range;

use ::parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::file::reader::ChunkReader;
use bytes::Bytes;

use crate::error::{ReadError, parquet_words};

use super::columns::Columns;
use super::schema::{FIELD_BYTES, Field, MAX_FIELDS};
use super::thrift::{BINARY, Compact, CompactWriter, I32, I64, LIST, STRUCT, malformed};
use crate::source::records::ReadOptions;
use crate::store::PIECE_BYTES;

/// Longest footer. A column takes some 200 bytes of it in each row group, so this is a hundred columns in three
/// thousand row groups. It is held while it is reduced.
pub(super) const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// The most row groups: the format numbers them in 16 bits.
const MAX_ROW_GROUPS: u64 = 32_767;

/// The most bytes of a reduced footer: some 200 for each row group, and some 500 for each of three columns.
pub(in crate::source) const METADATA_BYTES: u64 = MAX_ROW_GROUPS * 1900;

/// The most bytes that are held while a footer is reduced: the last fetched piece, the footer, its schema as a tree,
/// the reduced footer, and the library's copy of that.
pub(in crate::source) const READING_BYTES: u64 =
    PIECE_BYTES + MAX_FOOTER_BYTES + MAX_FIELDS * FIELD_BYTES + MAX_ROW_GROUPS * 300 + METADATA_BYTES;

/// Bytes after the footer: its length and the magic word.
const FOOTER_TAIL_BYTES: u64 = 8;

/// The metadata of a file.
pub(super) struct Footer {
    /// Metadata of the columns that are read, in the order of [`Columns::leaves`].
    pub metadata: ParquetMetaData,
    pub columns: Columns,
}

/// Read the footer of a file.
///
/// # Errors
/// [`ReadError::Corrupt`], and [`ReadError::Config`] if the file lacks the requested columns.
pub(super) fn read(reader: &impl ChunkReader, options: &ReadOptions) -> Result<Footer, ReadError> {
    let bytes = bytes_of(reader)?;
    let parts = Parts::find(&bytes).map_err(|error| corrupt(&error))?;
    let columns = Columns::find(&parts.schema, options)?;
    let reduced = parts.keep(&bytes, &columns).map_err(|error| corrupt(&error))?;
    let metadata = ParquetMetaDataReader::decode_metadata(&reduced).map_err(|error| corrupt(&error))?;
    Ok(Footer { metadata, columns })
}

/// Check that a file has the requested columns, whatever else may be wrong with it.
///
/// # Errors
/// Those of [`read`].
pub(in crate::source) fn check_columns(
    reader: &impl ChunkReader,
    options: &ReadOptions,
) -> Result<(), ReadError> {
    let parts = Parts::find(&bytes_of(reader)?).map_err(|error| corrupt(&error))?;
    Columns::find(&parts.schema, options).map(drop)
}

fn corrupt(error: &dyn std::error::Error) -> ReadError {
    ReadError::Corrupt(format!("footer: {}", parquet_words(error)))
}

fn bytes_of(reader: &impl ChunkReader) -> Result<Bytes, ReadError> {
    let file_bytes = reader.len();
    let bytes = |start: u64, length: u64| {
        let bytes = reader.get_bytes(start, length as usize);
        bytes.map_err(|error| corrupt(&error))
    };
    let wrong = |what: &str| ReadError::Corrupt(format!("footer: {what}"));
    let end = file_bytes.checked_sub(FOOTER_TAIL_BYTES);
    let end = end.ok_or_else(|| wrong(&format!("a file of {file_bytes} bytes has none")))?;
    let tail = FooterTail::try_from(&bytes(end, FOOTER_TAIL_BYTES)?[..]);
    let tail = tail.map_err(|error| corrupt(&error))?;
    if tail.is_encrypted_footer() {
        return Err(wrong("it is encrypted, which is not supported"));
    }
    let length = tail.metadata_length() as u64;
    if length > MAX_FOOTER_BYTES {
        return Err(wrong(&format!("it is {length} bytes, limit is {MAX_FOOTER_BYTES} bytes")));
    }
    let start = end.checked_sub(length);
    let start = start.ok_or_else(|| wrong(&format!("it is {length} bytes, the file {file_bytes}")))?;
    bytes(start, length)
}

/// The parts of a footer that are used.
struct Parts {
    version: i64,
    schema: Field,
    rows: i64,
    /// The bytes of the list of row groups.
    row_groups: Range<usize>,
}

impl Parts {
    fn find(footer: &Bytes) -> io::Result<Self> {
        let (mut version, mut schema, mut rows, mut row_groups) = (None, None, None, None);
        let mut compact = Compact::new(&footer[..]);
        let mut id = 0;
        while let Some(field) = compact.field(&mut id)? {
            match (id, field) {
                (1, I32) => once(&mut version, compact.integer()?)?,
                (2, LIST) => once(&mut schema, Field::read(&mut compact, footer)?)?,
                (3, I64) => once(&mut rows, compact.integer()?)?,
                (4, LIST) => {
                    let start = compact.consumed as usize;
                    compact.skip(LIST, 1)?;
                    once(&mut row_groups, start..compact.consumed as usize)?;
                }
                (1..=4, _) => return Err(malformed("a field of the footer is of another type")),
                _ => compact.skip(field, 1)?,
            }
        }
        let missing = || malformed("the footer is incomplete");
        Ok(Self {
            version: version.ok_or_else(missing)?,
            schema: schema.ok_or_else(missing)?,
            rows: rows.ok_or_else(missing)?,
            row_groups: row_groups.ok_or_else(missing)?,
        })
    }

    /// A footer with only these columns.
    fn keep(&self, footer: &[u8], columns: &Columns) -> io::Result<Vec<u8>> {
        let mut out = CompactWriter::default();
        out.number(1, I32, self.version);
        let mut elements = CompactWriter::default();
        let count = keep_fields(&self.schema, footer, &columns.leaves, true, &mut elements);
        out.list(2, STRUCT, count);
        out.0.append(&mut elements.0);
        out.number(3, I64, self.rows);

        let mut compact = Compact::new(&footer[self.row_groups.clone()]);
        let row_groups = compact.list(STRUCT)?;
        if row_groups > MAX_ROW_GROUPS {
            let message = format!("the file has {row_groups} row groups, limit is {MAX_ROW_GROUPS}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        out.list(4, STRUCT, row_groups);
        let leaves = count_leaves(&self.schema);
        for _ in 0..row_groups {
            keep_row_group(&mut compact, leaves, &columns.leaves, &mut out)?;
        }
        out.end();
        Ok(out.0)
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> io::Result<()> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("the footer has a field twice")),
    }
}

/// Leaf columns of a field.
fn count_leaves(field: &Field) -> usize {
    usize::from(field.is_leaf) + field.children.iter().map(count_leaves).sum::<usize>()
}

/// Write the elements of the leaves in `field` that are `wanted`, and of the groups around them. Returns the number of
/// elements written.
fn keep_fields(
    field: &Field,
    footer: &[u8],
    wanted: &[usize],
    is_root: bool,
    out: &mut CompactWriter,
) -> u64 {
    if field.is_leaf {
        if !wanted.contains(&field.first_leaf) {
            return 0;
        }
        out.0.extend_from_slice(&footer[field.element.clone()]);
        return 1;
    }
    let mut children = CompactWriter::default();
    let kept: Vec<u64> = field
        .children
        .iter()
        .map(|child| keep_fields(child, footer, wanted, false, &mut children))
        .filter(|&elements| elements > 0)
        .collect();
    if kept.is_empty() && !is_root {
        return 0;
    }
    if let Some(repetition) = field.repetition.filter(|_| !is_root) {
        out.number(3, I32, repetition as i64);
    }
    out.bytes(4, &field.name);
    out.number(5, I32, kept.len() as i64);
    out.end();
    out.0.append(&mut children.0);
    kept.iter().sum::<u64>() + 1
}

fn keep_row_group(
    compact: &mut Compact<&[u8]>,
    leaves: usize,
    wanted: &[usize],
    out: &mut CompactWriter,
) -> io::Result<()> {
    let mut seen = [false; 4];
    let mut id = 0;
    while let Some(field) = compact.field(&mut id)? {
        if (1..=3).contains(&id) && std::mem::replace(&mut seen[id as usize], true) {
            return Err(malformed("a row group has a field twice"));
        }
        match (id, field) {
            (1, LIST) => {
                let columns = compact.list(STRUCT)?;
                if columns != leaves as u64 {
                    let message = format!("a row group has {columns} columns, the schema {leaves}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                out.list(1, STRUCT, wanted.len() as u64);
                for leaf in 0..leaves {
                    if wanted.contains(&leaf) {
                        keep_column(compact, out)?;
                    } else {
                        compact.skip(STRUCT, 3)?;
                    }
                }
            }
            (2 | 3, I64) => out.number(id, I64, compact.integer()?),
            (1..=3, _) => return Err(malformed("a field of a row group is of another type")),
            _ => compact.skip(field, 3)?,
        }
    }
    out.end();
    Ok(())
}

/// A `ColumnChunk`.
fn keep_column(compact: &mut Compact<&[u8]>, out: &mut CompactWriter) -> io::Result<()> {
    let mut has_metadata = false;
    let mut id = 0;
    while let Some(field) = compact.field(&mut id)? {
        match (id, field) {
            (1, BINARY) => {
                let length = compact.varint()?;
                if length > 0 {
                    let message = "a column lies in another file, which is not supported";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
            (2, I64) => out.number(2, I64, compact.integer()?),
            (3, STRUCT) if !has_metadata => {
                has_metadata = true;
                out.field(3, STRUCT);
                keep_column_metadata(compact, out)?;
            }
            (1..=3, _) => return Err(malformed("a field of a column is of another type, or there twice")),
            _ => compact.skip(field, 4)?,
        }
    }
    out.end();
    Ok(())
}

/// A `ColumnMetaData`: the numbers that state where its pages are and how they are compressed.
fn keep_column_metadata(compact: &mut Compact<&[u8]>, out: &mut CompactWriter) -> io::Result<()> {
    let mut id = 0;
    while let Some(field) = compact.field(&mut id)? {
        match (id, field) {
            (1 | 4, I32) | (5..=7 | 9 | 11, I64) => out.number(id, field, compact.integer()?),
            (2, LIST) => {
                // the list of encodings is required, but pages state their own
                compact.skip(LIST, 5)?;
                out.list(2, I32, 0);
            }
            (1 | 2 | 4..=7 | 9 | 11, _) => {
                return Err(malformed("a field of a column is of another type"));
            }
            _ => compact.skip(field, 5)?,
        }
    }
    out.end();
    Ok(())
}

#[cfg(test)]
#[path = "footer_tests.rs"]
mod tests;
