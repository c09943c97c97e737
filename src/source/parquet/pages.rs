//! Checks Parquet pages before the Parquet library decompresses them.
//!
//! Input: any reader of a file. Output: the same reader, except that a page that would take too much memory is an
//! error.
//!
//! - A page is refused if its header states too many bytes, compressed or not, or a dictionary with too many values.
//! - The library decompresses gzip, Brotli and framed LZ4 to their end, whatever the header says. Such a page is
//!   decompressed here first, up to the limit and without keeping the output. The other codecs fill a buffer of the
//!   length in the header.
//! - The library allocates as many delta-encoded lengths as a page claims. They are counted first, see `deltas`.
//! - While a page is decompressed, its predecessor and its dictionary are still held, so a column takes [`PAGES_HELD`]
//!   times the longest page. Pages longer than [`AHEAD_PAGE_BYTES`] wait for their shard's turn, so only one of the
//!   shards that are read ahead holds such pages.
//! - The decompressed size of a file's pages is limited in proportion to the file's size.
//! - A header is accepted only if the library and this file read it alike: its end and its compressed length must
//!   agree. See `page_header`. Columns that overlap are refused, because their pages could be checked as those of
//!   another column.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use ::parquet::basic::Compression;
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

use super::deltas;
use super::page_header::{DELTA_BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY, PageHeader, PageKind};
use super::thrift::Compact;
use super::unpack::{unpacked, unpacks_beyond};
use crate::flow::lock;
use crate::source::compression::{FREE_BYTES, MAX_RATIO};
use crate::source::read_ahead::Turn;
use crate::store::PIECE_BYTES;

/// Pages that a column holds: its dictionary, the previous page, and the next one compressed and decompressed.
const PAGES_HELD: u64 = 4;

/// Columns that are read beside the images: their ids and their paths.
const TEXT_COLUMNS: u64 = 2;

/// Longest page that is read before it is the shard's turn. Writers aim at pages of a megabyte, but put at least a
/// hundred or a thousand rows into each.
const AHEAD_PAGE_BYTES: u64 = 8 << 20;

/// Longest page of ids or paths: a thousand ids of 32 kB.
const MAX_TEXT_PAGE_BYTES: u64 = 32 << 20;

/// The most bytes of pages that each reader holds before its shard's turn.
pub(in crate::source) const AHEAD_PAGES_BYTES: u64 = PAGES_HELD * (1 + TEXT_COLUMNS) * AHEAD_PAGE_BYTES;

/// The most bytes of pages that the reader whose turn it is holds.
pub fn parquet_pages_bytes(max_page_bytes: u64) -> u64 {
    PAGES_HELD * (max_page_bytes + TEXT_COLUMNS * MAX_TEXT_PAGE_BYTES.min(max_page_bytes)) + PIECE_BYTES
}

/// The fewest bytes that an image takes in a dictionary: those of its length. An id of a fixed length may take one
/// byte.
const DICTIONARY_IMAGE_BYTES: u64 = 4;

/// A reader whose pages are checked once its column chunks are known.
pub(super) struct CheckedPages<R> {
    reader: R,
    max_page_bytes: u64,
    turn: Option<Turn>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Sorted by their start; none overlaps another.
    chunks: Vec<Chunk>,
    /// Headers of pages that are not fetched yet, by the offset of the page.
    headers: HashMap<u64, PageHeader>,
    /// Total unpacked bytes of the pages so far.
    unpacked_bytes: u64,
}

/// The pages of one column in one row group.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// Leaf column and row group, by number.
    pub place: (usize, usize),
    pub range: Range<u64>,
    pub codec: Compression,
    /// Which levels come before the values of a page of version 1: repetition levels, definition levels.
    pub has_levels: [bool; 2],
    /// Rows of the row group. No column that is read repeats, so it has one value for each row, nulls included.
    pub rows: u64,
    /// Values of the pages fetched so far.
    pub values: u64,
    /// Whether it holds images, not ids or paths.
    pub holds_images: bool,
}

impl State {
    fn chunk_at(&self, offset: u64) -> Option<&Chunk> {
        self.place_of(offset).map(|at| &self.chunks[at])
    }

    /// The index in `chunks` of the chunk that contains `offset`.
    fn place_of(&self, offset: u64) -> Option<usize> {
        let at = self.chunks.partition_point(|chunk| chunk.range.start <= offset).checked_sub(1)?;
        self.chunks[at].range.contains(&offset).then_some(at)
    }

    /// Count the values of the page at `start`.
    ///
    /// # Errors
    /// A row group with more or fewer values than rows: values of different rows would be combined.
    fn count(&mut self, start: u64, values: u64) -> Result<()> {
        let Some(at) = self.place_of(start) else { return Ok(()) };
        let (leaf, row_group) = self.chunks[at].place;
        if self.chunks[at].values == 0 {
            // the library continues with the next row group as soon as the pages end
            let short =
                |chunk: &&Chunk| chunk.place.0 == leaf && chunk.place.1 < row_group && !chunk.is_whole();
            if let Some(chunk) = self.chunks.iter().find(short) {
                return Err(chunk.miscounted());
            }
        }
        let chunk = &mut self.chunks[at];
        chunk.values = chunk.values.saturating_add(values);
        // the library would take a page without values for the last one
        if chunk.values > chunk.rows || values == 0 && chunk.rows > 0 {
            return Err(chunk.miscounted());
        }
        Ok(())
    }
}

impl Chunk {
    fn is_whole(&self) -> bool {
        self.values == self.rows
    }

    fn miscounted(&self) -> ParquetError {
        let (Self { rows, values, .. }, (_, row_group)) = (self, self.place);
        ParquetError::General(format!(
            "row group {row_group} has {rows} rows, the pages of a column of it have {values} values"
        ))
    }
}

impl<R: Clone> Clone for CheckedPages<R> {
    fn clone(&self) -> Self {
        let Self { reader, max_page_bytes, turn, state } = self;
        Self {
            reader: reader.clone(),
            max_page_bytes: *max_page_bytes,
            turn: turn.clone(),
            state: state.clone(),
        }
    }
}

impl<R: ChunkReader> CheckedPages<R> {
    pub fn new(reader: R, max_page_bytes: u64, turn: Option<Turn>) -> Self {
        Self { reader, max_page_bytes, turn, state: Arc::default() }
    }

    /// From this call on, reads inside these column chunks are checked as pages.
    ///
    /// # Errors
    /// Chunks that overlap or reach beyond the file.
    pub fn check_inside(&self, mut chunks: Vec<Chunk>) -> Result<()> {
        if let Some(empty) = chunks.iter().find(|chunk| chunk.range.is_empty() && chunk.rows > 0) {
            return Err(empty.miscounted());
        }
        chunks.retain(|chunk| !chunk.range.is_empty());
        chunks.sort_unstable_by_key(|chunk| chunk.range.start);
        let mut end = 0;
        for Chunk { range, .. } in &chunks {
            if range.start < end {
                return Err(ParquetError::General(format!("columns overlap at byte {}", range.start)));
            }
            end = range.end;
        }
        if end > self.reader.len() {
            let message = format!("a column ends at byte {end}, the file at {}", self.reader.len());
            return Err(ParquetError::General(message));
        }
        lock(&self.state).chunks = chunks;
        Ok(())
    }

    fn too_long(&self, what: &str) -> ParquetError {
        let limit = self.max_page_bytes;
        ParquetError::General(format!("{what}, limit is {limit} bytes (input.max_page_bytes)"))
    }

    fn check_header(&self, header: &PageHeader, chunk: &Chunk) -> Result<()> {
        let longest = header.longest();
        if longest > self.max_page_bytes {
            return Err(self.too_long(&format!("a page is {longest} bytes")));
        }
        if longest > MAX_TEXT_PAGE_BYTES && !chunk.holds_images {
            let message =
                format!("a page of ids or paths is {longest} bytes, limit is {MAX_TEXT_PAGE_BYTES} bytes");
            return Err(ParquetError::General(message));
        }
        let (values, bytes) = (header.values, header.unpacked_bytes);
        let value_bytes = if chunk.holds_images { DICTIONARY_IMAGE_BYTES } else { 1 };
        if header.kind == PageKind::Dictionary && values > bytes / value_bytes {
            let message = format!("a dictionary of {bytes} bytes cannot have {values} values");
            return Err(ParquetError::General(message));
        }
        Ok(())
    }

    /// Wait for the shard's turn before a long page is fetched.
    fn wait_for_turn(&self, header: &PageHeader) -> Result<()> {
        let Some(turn) = self.turn.as_ref().filter(|_| header.longest() > AHEAD_PAGE_BYTES) else {
            return Ok(());
        };
        if turn.wait() { Ok(()) } else { Err(ParquetError::General("the run is ending".to_owned())) }
    }

    /// Check the number of lengths in a page of delta-encoded byte strings.
    fn check_deltas(&self, page: &[u8], header: &PageHeader, chunk: &Chunk) -> Result<()> {
        let lists = match header.encoding {
            _ if header.kind == PageKind::Dictionary => return Ok(()),
            DELTA_LENGTH_BYTE_ARRAY => 1,
            DELTA_BYTE_ARRAY => 2,
            _ => return Ok(()),
        };
        let unpacked_bytes = header.unpacked_bytes.checked_sub(header.levels_bytes);
        let unpacked_bytes = unpacked_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let codec = if header.is_packed { chunk.codec } else { Compression::UNCOMPRESSED };
        let packed = usize::try_from(header.levels_bytes).ok().and_then(|levels| page.get(levels..));
        let (Some(packed), Some(unpacked_bytes)) = (packed, unpacked_bytes) else {
            return Err(ParquetError::General("a page is shorter than its levels".to_owned()));
        };
        let values = unpacked(codec, packed, unpacked_bytes)?;
        let levels = if header.kind == PageKind::Data { chunk.has_levels } else { [false; 2] };
        let values = after_levels(&values, levels, header).map_err(ParquetError::General)?;
        // the lengths and the page are held at the same time
        let room = self.max_page_bytes - header.unpacked_bytes.min(self.max_page_bytes);
        deltas::check(values, lists, header.values, room).map_err(|what| self.too_long(&what))
    }
}

impl<R: ChunkReader> Length for CheckedPages<R> {
    fn len(&self) -> u64 {
        self.reader.len()
    }
}

impl<R: ChunkReader> ChunkReader for CheckedPages<R> {
    type T = R::T;

    fn get_read(&self, start: u64) -> Result<R::T> {
        let chunk = lock(&self.state).chunk_at(start).cloned();
        if let Some(chunk) = chunk {
            let mut compact = Compact::new(self.reader.get_read(start)?);
            let header =
                PageHeader::read(&mut compact).map_err(|error| ParquetError::External(Box::new(error)))?;
            self.check_header(&header, &chunk)?;
            // the library skips an index page
            if header.kind != PageKind::Index {
                let mut state = lock(&self.state);
                state.headers.insert(start + compact.consumed, header);
            }
        }
        self.reader.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut state = lock(&self.state);
        let Some(chunk) = state.chunk_at(start).cloned() else {
            drop(state);
            return self.reader.get_bytes(start, length);
        };
        let header = state.headers.remove(&start).filter(|header| header.page_bytes == length as u64);
        let Some(header) = header else {
            return Err(ParquetError::General("a page is not where its header says".to_owned()));
        };
        if header.kind != PageKind::Dictionary {
            state.count(start, header.values)?;
        }
        state.unpacked_bytes += header.unpacked_bytes;
        let (unpacked_bytes, file_bytes) = (state.unpacked_bytes, self.reader.len());
        drop(state);
        if unpacked_bytes > FREE_BYTES && unpacked_bytes / MAX_RATIO > file_bytes {
            return Err(ParquetError::General(format!(
                "the pages of a file of {file_bytes} bytes unpack to {unpacked_bytes} bytes and more, limit is \
                 {MAX_RATIO} times as much"
            )));
        }
        self.wait_for_turn(&header)?;
        let page = self.reader.get_bytes(start, length)?;
        let levels = usize::try_from(header.levels_bytes).unwrap_or(usize::MAX).min(page.len());
        let unpacked_bytes = header.unpacked_bytes.saturating_sub(header.levels_bytes);
        if header.is_packed && unpacks_beyond(chunk.codec, &page[levels..], unpacked_bytes) {
            let message =
                format!("a page unpacks to more than the {unpacked_bytes} bytes that its header says");
            return Err(ParquetError::General(message));
        }
        self.check_deltas(&page, &header, &chunk)?;
        Ok(page)
    }
}

/// The values of a page of version 1, which follow its levels. Each kind of levels is a length of four bytes and that
/// many bytes.
fn after_levels<'a>(
    mut page: &'a [u8],
    has_levels: [bool; 2],
    header: &PageHeader,
) -> std::result::Result<&'a [u8], String> {
    // the encoding of levels that a page does not have is meaningless
    for (_, is_rle) in has_levels.into_iter().zip(header.levels_are_rle).filter(|(has, _)| *has) {
        if !is_rle {
            return Err("delta-encoded values behind levels that are not RLE are not supported".to_owned());
        }
        let (length, rest) = page.split_first_chunk().ok_or("a page ends inside its levels")?;
        let length = u32::from_le_bytes(*length) as usize;
        page = rest.get(length..).ok_or("a page ends inside its levels")?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_pages_are_limited_by_the_size_of_the_file() {
        let images: arrow_array::ArrayRef = Arc::new(arrow_array::BinaryArray::from_vec(vec![&[7; 1000]; 3]));
        let file = super::super::tests::file(vec![("image", images)]);
        let fetched = |already: u64| {
            let pages = CheckedPages::new(file.clone(), 1 << 20, None);
            let chunk = Chunk {
                place: (0, 0),
                range: 4..file.len() as u64,
                codec: Compression::SNAPPY,
                has_levels: [false, true],
                rows: 3,
                values: 0,
                holds_images: true,
            };
            pages.check_inside(vec![chunk]).expect("inside");
            pages.get_read(4).expect("the header of the first page");
            let mut state = pages.state.lock().expect("lock");
            state.unpacked_bytes = already;
            let (&start, header) = state.headers.iter().next().expect("a header");
            let length = header.page_bytes as usize;
            drop(state);
            pages.get_bytes(start, length).map_err(|error| error.to_string())
        };
        fetched(FREE_BYTES / 2).expect("within the free limit");
        let message = fetched(FREE_BYTES).expect_err("beyond the limit of the file");
        assert!(message.contains("bytes and more, limit is 200 times as much"), "{message}");
    }

    #[test]
    fn columns_that_overlap_or_leave_the_file_are_refused() {
        let pages = CheckedPages::new(Bytes::from_static(&[0; 100]), 1000, None);
        let check = |ranges: &[Range<u64>]| {
            let chunk = |range: &Range<u64>| Chunk {
                place: (0, 0),
                range: range.clone(),
                codec: Compression::UNCOMPRESSED,
                has_levels: [false; 2],
                rows: 0,
                values: 0,
                holds_images: true,
            };
            pages.check_inside(ranges.iter().map(chunk).collect()).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[50..100, 4..50, 50..50]), Ok(()));
        let message = check(&[4..51, 50..100]).expect_err("overlap");
        assert!(message.contains("columns overlap at byte 50"), "{message}");
        check(&[4..60, 10..20]).expect_err("one inside the other");
        check(&[4..50, 50..101]).expect_err("beyond the file");
    }
}
