//! Parquet pages, judged before the Parquet library unpacks them.
//!
//! Comes in: any reader of a file. Goes out: the same, but that a page which would take more memory than
//! it may is an error.
//!
//! - A page is refused by its header where that says how long the page is, packed or not, or how many values
//!   a dictionary has.
//! - The library unpacks gzip, Brotli and framed LZ4 to their end, whatever the header says. Such a page is
//!   unpacked here first, into nothing, and no further than the limit. The other codecs fill a buffer of
//!   the length that the header says.
//! - The library makes room for as many delta-encoded lengths as a page claims to have. They are counted
//!   first, see `deltas`.
//! - While one page is unpacked its predecessor and its dictionary are still held, so a column takes [`PAGES_HELD`]
//!   times the longest page. Pages beyond [`AHEAD_PAGE_BYTES`] wait for their shard's turn, so that of all shards
//!   read ahead one alone holds such pages.
//! - What the pages of a file unpack to is held against the file's size.
//! - Only what a page header's reader and this file understand alike gets through: a header whose end or
//!   whose packed length the library sees elsewhere is an error, and so is one of odd types, with a field
//!   twice, or with another kind of page than it says. Columns that overlap, whose pages could be judged
//!   as another column's, are refused.
//!
//! The header's layout is that of `PageHeader` in Apache Parquet's `parquet.thrift`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ::parquet::basic::Compression;
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

use crate::error::parquet_words;

use super::deltas;
use super::thrift::{Compact, FALSE, I32, STRUCT, malformed};
use crate::source::compression::{FREE_BYTES, MAX_RATIO};
use crate::source::read_ahead::Turn;
use crate::store::PIECE_BYTES;

/// Times the longest page that a column takes: its dictionary, the page before, and the next one packed and unpacked.
const PAGES_HELD: u64 = 4;

/// Columns that are read beside the images: their ids and their paths.
const TEXT_COLUMNS: u64 = 2;

/// Longest page that is read before it is the shard's turn. Writers make pages of a megabyte, but of no fewer than a
/// hundred or a thousand rows.
const AHEAD_PAGE_BYTES: u64 = 8 << 20;

/// Longest page of ids or paths: a thousand ids of 32 kB.
const MAX_TEXT_PAGE_BYTES: u64 = 32 << 20;

/// What each reader holds of pages before it is its shard's turn.
pub(in crate::source) const AHEAD_PAGES_BYTES: u64 = PAGES_HELD * (1 + TEXT_COLUMNS) * AHEAD_PAGE_BYTES;

/// What the one reader whose turn it is may hold of pages.
pub fn parquet_pages_bytes(max_page_bytes: u64) -> u64 {
    PAGES_HELD * (max_page_bytes + TEXT_COLUMNS * MAX_TEXT_PAGE_BYTES.min(max_page_bytes)) + PIECE_BYTES
}

/// The fewest bytes that an image of a dictionary takes: its length. Ids of a fixed length may be of one byte.
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
    /// By their start; none overlaps another.
    chunks: Vec<Chunk>,
    /// Headers that were read, by where their page begins, until it is fetched.
    headers: HashMap<u64, PageHeader>,
    /// What the pages so far unpack to.
    unpacked_bytes: u64,
}

/// Where the pages of a column lie in a row group, and what they are like.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// Leaf column and row group, by number.
    pub place: (usize, usize),
    pub range: Range<u64>,
    pub codec: Compression,
    /// Which levels stand before the values of a page of version 1, in bytes of their own: whether values
    /// repeat, whether they may be null.
    pub has_levels: [bool; 2],
    /// Rows of the row group. No column that is read repeats, so that it has one value for each, nulls counted.
    pub rows: u64,
    /// Values of the pages that were fetched so far.
    pub values: u64,
    /// Not ids or paths.
    pub holds_images: bool,
}

impl State {
    fn chunk_at(&self, offset: u64) -> Option<&Chunk> {
        self.place_of(offset).map(|at| &self.chunks[at])
    }

    /// Place in `chunks` of the one around `offset`.
    fn place_of(&self, offset: u64) -> Option<usize> {
        let at = self.chunks.partition_point(|chunk| chunk.range.start <= offset).checked_sub(1)?;
        self.chunks[at].range.contains(&offset).then_some(at)
    }

    /// Count the values of a page that lies at `start`.
    ///
    /// # Errors
    /// More or fewer than the row group has rows: the rows of one column would stand beside others' of another.
    fn count(&mut self, start: u64, values: u64) -> Result<()> {
        let Some(at) = self.place_of(start) else { return Ok(()) };
        let (leaf, row_group) = self.chunks[at].place;
        if self.chunks[at].values == 0 {
            // the library goes on with the next row group as soon as there are no more pages
            let short =
                |chunk: &&Chunk| chunk.place.0 == leaf && chunk.place.1 < row_group && !chunk.is_whole();
            if let Some(chunk) = self.chunks.iter().find(short) {
                return Err(chunk.miscounted());
            }
        }
        let chunk = &mut self.chunks[at];
        chunk.values = chunk.values.saturating_add(values);
        // a page without any would be taken for the last one
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

    /// From now on what is read inside these column chunks are pages.
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).chunks = chunks;
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

    /// Before a page is fetched: wait for the shard's turn if the page is a long one.
    fn wait_to_hold(&self, header: &PageHeader) -> Result<()> {
        let Some(turn) = self.turn.as_ref().filter(|_| header.longest() > AHEAD_PAGE_BYTES) else {
            return Ok(());
        };
        if turn.wait() { Ok(()) } else { Err(ParquetError::General("the run is ending".to_owned())) }
    }

    /// Count the lengths of a page whose values are strings of bytes, delta-encoded.
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
        // lengths and the page are held together
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
        let chunk = self.state.lock().unwrap_or_else(PoisonError::into_inner).chunk_at(start).cloned();
        if let Some(chunk) = chunk {
            let mut compact = Compact::new(self.reader.get_read(start)?);
            let header =
                PageHeader::read(&mut compact).map_err(|error| ParquetError::External(Box::new(error)))?;
            self.check_header(&header, &chunk)?;
            // the library passes over an index
            if header.kind != PageKind::Index {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.headers.insert(start + compact.consumed, header);
            }
        }
        self.reader.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.wait_to_hold(&header)?;
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

/// Whether `packed` unpacks to more than `limit` bytes, for the codecs that the library does not stop.
fn unpacks_beyond(codec: Compression, packed: &[u8], limit: u64) -> bool {
    let count = |reader: &mut dyn Read| {
        // damage is the library's to report: it stops at the same byte
        let mut unpacked = Counted(0);
        let _ = io::copy(&mut reader.take(limit + 1), &mut unpacked);
        unpacked.0
    };
    let unpacked = match codec {
        Compression::GZIP(_) => count(&mut flate2::read::MultiGzDecoder::new(packed)),
        Compression::BROTLI(_) => count(&mut brotli::Decompressor::new(packed, BROTLI_BUFFER_BYTES)),
        // what is not in Hadoop's blocks is tried as frames
        Compression::LZ4 => count(&mut lz4_flex::frame::FrameDecoder::new(packed)),
        _ => 0,
    };
    unpacked > limit
}

/// Packed bytes that the Brotli decoder is given at once.
const BROTLI_BUFFER_BYTES: usize = 64 << 10;

/// `packed`, which must unpack to exactly `length` bytes.
fn unpacked(codec: Compression, packed: &[u8], length: usize) -> Result<Cow<'_, [u8]>> {
    let failed = |error: &dyn std::error::Error| {
        ParquetError::General(format!("unpacking a page: {}", parquet_words(error)))
    };
    let read = |reader: &mut dyn Read| -> Result<Vec<u8>> {
        let mut unpacked = Vec::with_capacity(length);
        // one byte more, to see that there is none
        reader.take(length as u64 + 1).read_to_end(&mut unpacked).map_err(|error| failed(&error))?;
        Ok(unpacked)
    };
    let unpacked = match codec {
        Compression::UNCOMPRESSED => Cow::Borrowed(packed),
        Compression::SNAPPY => {
            let mut unpacked = vec![0; length];
            let written = snap::raw::Decoder::new().decompress(packed, &mut unpacked);
            unpacked.truncate(written.map_err(|error| failed(&error))?);
            unpacked.into()
        }
        Compression::GZIP(_) => read(&mut flate2::read::MultiGzDecoder::new(packed))?.into(),
        Compression::BROTLI(_) => read(&mut brotli::Decompressor::new(packed, BROTLI_BUFFER_BYTES))?.into(),
        Compression::ZSTD(_) => {
            zstd::bulk::decompress(packed, length).map_err(|error| failed(&error))?.into()
        }
        Compression::LZ4_RAW => {
            let mut unpacked = vec![0; length];
            let written = lz4_flex::block::decompress_into(packed, &mut unpacked);
            unpacked.truncate(written.map_err(|error| failed(&error))?);
            unpacked.into()
        }
        // which of three formats is meant is found by trying, as the library does
        Compression::LZ4 => match unpacked_hadoop(packed, length) {
            Some(unpacked) => unpacked.into(),
            None => match read(&mut lz4_flex::frame::FrameDecoder::new(packed)) {
                Ok(unpacked) => unpacked.into(),
                Err(_) => return self::unpacked(Compression::LZ4_RAW, packed, length),
            },
        },
        Compression::LZO => {
            return Err(ParquetError::General("pages packed by LZO are not supported".to_owned()));
        }
    };
    if unpacked.len() != length {
        let message = format!("a page unpacks to {} bytes, its header says {length}", unpacked.len());
        return Err(ParquetError::General(message));
    }
    Ok(unpacked)
}

/// `packed` as Hadoop writes LZ4, if that is what it is: blocks, each behind the length that it unpacks to and its
/// own, in four bytes with the highest first.
fn unpacked_hadoop(mut packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; length];
    let mut at = 0;
    while !packed.is_empty() {
        let (unpacked_bytes, rest) = packed.split_first_chunk()?;
        let (packed_bytes, rest) = rest.split_first_chunk()?;
        let (block, rest) = rest.split_at_checked(u32::from_be_bytes(*packed_bytes) as usize)?;
        let room = unpacked.get_mut(at..)?.get_mut(..u32::from_be_bytes(*unpacked_bytes) as usize)?;
        if lz4_flex::block::decompress_into(block, room).ok()? != room.len() {
            return None;
        }
        (at, packed) = (at + room.len(), rest);
    }
    (at == length).then_some(unpacked)
}

/// What follows the levels of a page of version 1: each kind is its length in four bytes, and as many bytes.
fn after_levels<'a>(
    mut page: &'a [u8],
    has_levels: [bool; 2],
    header: &PageHeader,
) -> std::result::Result<&'a [u8], String> {
    // how levels are encoded that there are none of means nothing
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

/// Counts what is written to it.
struct Counted(u64);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `PageType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageKind {
    Data,
    Index,
    Dictionary,
    DataV2,
}

// Of `Encoding`.
const RLE: u64 = 3;
const DELTA_LENGTH_BYTE_ARRAY: u64 = 6;
const DELTA_BYTE_ARRAY: u64 = 7;

/// What a page header tells of its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageHeader {
    kind: PageKind,
    /// As stored.
    page_bytes: u64,
    unpacked_bytes: u64,
    /// With those that are null.
    values: u64,
    encoding: u64,
    /// Levels before the values of a page of version 2, which are never packed.
    levels_bytes: u64,
    /// Of a page of version 1, as [`Chunk::has_levels`]: whether they are.
    levels_are_rle: [bool; 2],
    /// Whether the values are packed as the column is.
    is_packed: bool,
}

impl PageHeader {
    fn longest(&self) -> u64 {
        self.page_bytes.max(self.unpacked_bytes)
    }

    fn read<R: Read>(compact: &mut Compact<R>) -> io::Result<Self> {
        let (mut kind, mut page_bytes, mut unpacked_bytes) = (None, None, None);
        let (mut data, mut index, mut dictionary, mut data_v2) = (None, None, None, None);
        let mut id = 0;
        while let Some(field) = compact.field(&mut id)? {
            match (id, field) {
                (1, I32) => once(&mut kind, compact.length()?)?,
                (2, I32) => once(&mut unpacked_bytes, compact.length()?)?,
                (3, I32) => once(&mut page_bytes, compact.length()?)?,
                (4, I32) => compact.skip(I32, 0)?, // a checksum
                (5, STRUCT) => once(&mut data, numbers::<4, R>(compact)?)?,
                (6, STRUCT) => once(&mut index, compact.skip(STRUCT, 0)?)?,
                (7, STRUCT) => once(&mut dictionary, numbers::<2, R>(compact)?)?,
                (8, STRUCT) => once(&mut data_v2, numbers::<6, R>(compact)?)?,
                (1..=8, _) => return Err(malformed("a field of a page header is of another type")),
                _ => compact.skip(field, 0)?,
            }
        }
        let (Some(kind), Some(page_bytes), Some(unpacked_bytes)) = (kind, page_bytes, unpacked_bytes) else {
            return Err(malformed("a page header is incomplete"));
        };
        let mut header = Self {
            kind: PageKind::Index,
            page_bytes,
            unpacked_bytes,
            values: 0,
            encoding: 0,
            levels_bytes: 0,
            levels_are_rle: [true; 2],
            is_packed: true,
        };
        match (kind, data, index, dictionary, data_v2) {
            (0, Some(([values, encoding, definition, repetition], _)), None, None, None) => {
                header.kind = PageKind::Data;
                (header.values, header.encoding) = (values, encoding);
                header.levels_are_rle = [repetition, definition].map(|encoding| encoding == RLE);
            }
            (1, None, _, None, None) => {}
            (2, None, None, Some(([values, encoding], _)), None) => {
                header.kind = PageKind::Dictionary;
                (header.values, header.encoding) = (values, encoding);
            }
            (3, None, None, None, Some(([values, _, _, encoding, definition, repetition], is_packed))) => {
                header.kind = PageKind::DataV2;
                (header.values, header.encoding) = (values, encoding);
                header.levels_bytes = definition + repetition;
                header.is_packed = is_packed;
            }
            _ => return Err(malformed("a page header tells of another kind of page than it says")),
        }
        Ok(header)
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> io::Result<()> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("a page header has a field twice")),
    }
}

/// The first `N` fields of a struct, which are required numbers, and whether its field 7 is other than false.
fn numbers<const N: usize, R: Read>(compact: &mut Compact<R>) -> io::Result<([u64; N], bool)> {
    let mut found = [None; N];
    let (mut flag, mut id) = (true, 0);
    while let Some(field) = compact.field(&mut id)? {
        let at = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)).filter(|&at| at < N);
        match (at, field) {
            (Some(at), I32) => once(&mut found[at], compact.length()?)?,
            (Some(_), _) => return Err(malformed("a field of a page header is of another type")),
            (None, field) => {
                flag &= (id, field) != (7, FALSE);
                compact.skip(field, 1)?;
            }
        }
    }
    if found.contains(&None) {
        return Err(malformed("a page header is incomplete"));
    }
    Ok((found.map(Option::unwrap_or_default), flag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::compression::tests::gzip;

    fn number(value: i32) -> Vec<u8> {
        let mut coded = ((value << 1) ^ (value >> 31)) as u32;
        let mut bytes = Vec::new();
        while coded >= 0x80 {
            bytes.push(coded as u8 | 0x80);
            coded >>= 7;
        }
        bytes.push(coded as u8);
        bytes
    }

    fn numbers_of(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|&value| [vec![0x15], number(value)].concat()).collect()
    }

    /// A page of version 2 with statistics.
    fn header(unpacked: i32, stored: i32) -> Vec<u8> {
        let mut bytes = numbers_of(&[3, unpacked, stored]);
        bytes.push(0x5c); // field 8, a struct
        bytes.extend(numbers_of(&[1, 0, 1, 0, 3, 4]));
        bytes.push(0x11); // is_compressed
        bytes.extend([0x1c, 0x18, 2, 7, 7, 0x00]); // statistics: max, two bytes
        bytes.extend([0x00, 0x00]);
        bytes
    }

    fn parsed(bytes: &[u8]) -> io::Result<(PageHeader, u64)> {
        let mut compact = Compact::new(bytes);
        Ok((PageHeader::read(&mut compact)?, compact.consumed))
    }

    #[test]
    fn a_page_header_is_read_to_its_end() {
        let mut bytes = header(300_000, 70_000);
        let length = bytes.len() as u64;
        bytes.extend(b"the page");
        let (header, consumed) = parsed(&bytes).expect("well formed");
        assert_eq!(consumed, length);
        assert_eq!((header.kind, header.values, header.is_packed), (PageKind::DataV2, 1, true));
        assert_eq!((header.page_bytes, header.unpacked_bytes, header.levels_bytes), (70_000, 300_000, 7));
    }

    #[test]
    fn a_header_that_is_cut_or_senseless_is_an_error() {
        let bytes = header(300_000, 70_000);
        for length in 0..bytes.len() {
            parsed(&bytes[..length]).expect_err("cut");
        }
        parsed(&header(-1, 5)).expect_err("a negative length");
        parsed(&[0x25, 0x01, 0x08, 0x04, 0x01]).expect_err("a length that is binary");
    }

    #[test]
    fn a_header_that_the_library_might_read_otherwise_is_an_error() {
        let data = [numbers_of(&[0, 300, 70]), vec![0x2c], numbers_of(&[1, 0, 3, 3]), vec![0]].concat();
        let (read, _) = parsed(&[data.clone(), vec![0]].concat()).expect("of version 1");
        assert_eq!((read.kind, read.encoding, read.levels_are_rle), (PageKind::Data, 0, [true; 2]));
        // field 3 once more, by its number; 65536 + 3, which the library takes for 3
        let again = [&[0x05, 0x06][..], &number(7)].concat();
        parsed(&[data.clone(), again, vec![0]].concat()).expect_err("a length twice");
        let odd = [&[0x05, 0x86, 0x80, 0x08][..], &number(7)].concat();
        parsed(&[data.clone(), odd, vec![0]].concat()).expect_err("a number beyond 16 bits");
        let list = [0x59, 0xf1, 2, 0x15, 0x02];
        parsed(&[&data[..], &list, &[0]].concat()).expect_err("truth values");
        let both = [vec![0x3c], numbers_of(&[1, 0, 1, 0, 3, 4]), vec![0]].concat();
        parsed(&[data.clone(), both, vec![0]].concat()).expect_err("versions 1 and 2");
        let other = [numbers_of(&[2]), data[2..].to_vec(), vec![0]].concat();
        parsed(&other).expect_err("a dictionary with the header of a data page");
    }

    #[test]
    fn a_page_is_counted_no_further_than_the_limit() {
        let codec = Compression::GZIP(Default::default());
        let packed = gzip(&[0; 100_000]);
        assert!(!unpacks_beyond(codec, &packed, 100_000));
        assert!(unpacks_beyond(codec, &packed, 99_999));
        assert!(unpacks_beyond(codec, &[packed.clone(), packed.clone()].concat(), 100_000), "two members");
        assert!(!unpacks_beyond(codec, b"damaged", 1));
        assert!(!unpacks_beyond(Compression::SNAPPY, &packed, 1), "held to the header by the library");
    }

    #[test]
    fn what_pages_unpack_to_is_held_against_the_files_size() {
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
        fetched(FREE_BYTES / 2).expect("what any file may unpack to");
        let message = fetched(FREE_BYTES).expect_err("too much for so short a file");
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
