//! Parquet pages, judged before the Parquet library unpacks them.
//!
//! Comes in: any reader of a file. Goes out: the same, but that a page which would take more memory than
//! it may is an error.
//!
//! - A page is refused by its header where that says how long the page is, packed or not.
//! - The library unpacks gzip, Brotli and framed LZ4 to their end, whatever the header says. Such a page is
//!   unpacked here first, into nothing, and no further than the limit. The other codecs fill a buffer of
//!   the length that the header says.
//! - A page whose values are encoded as DELTA_LENGTH_BYTE_ARRAY or DELTA_BYTE_ARRAY is refused: how many
//!   lengths it has stands inside the packed page, and the library makes room for that many unseen.
//! - Only what a page header's reader and this file understand alike gets through: a header whose end or
//!   whose packed length the library sees elsewhere is an error.
//!
//! The header's layout is that of `PageHeader` in Apache Parquet's `parquet.thrift`, written in Thrift's
//! compact protocol.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ::parquet::basic::Compression;
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

/// Structs, lists and maps inside each other; a page header and its statistics have three.
const MAX_DEPTH: u32 = 16;

/// A reader whose pages are checked once its column chunks are known.
pub(super) struct CheckedPages<R> {
    reader: R,
    max_page_bytes: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Column chunks by their start, and how their pages are packed.
    chunks: Vec<(Range<u64>, Compression)>,
    /// Headers that were read, by where their page begins, until it is fetched.
    headers: HashMap<u64, PageHeader>,
}

impl State {
    /// How the pages at `offset` are packed; `None` outside of all chunks, which do not overlap.
    fn codec_at(&self, offset: u64) -> Option<Compression> {
        let at = self.chunks.partition_point(|(chunk, _)| chunk.start <= offset).checked_sub(1)?;
        let (chunk, codec) = &self.chunks[at];
        chunk.contains(&offset).then_some(*codec)
    }
}

impl<R: Clone> Clone for CheckedPages<R> {
    fn clone(&self) -> Self {
        let state = self.state.clone();
        Self { reader: self.reader.clone(), max_page_bytes: self.max_page_bytes, state }
    }
}

impl<R: ChunkReader> CheckedPages<R> {
    pub fn new(reader: R, max_page_bytes: u64) -> Self {
        Self { reader, max_page_bytes, state: Arc::default() }
    }

    /// From now on what is read inside these column chunks are pages.
    ///
    /// # Errors
    /// When two of them overlap, so that it is not clear how a page is packed.
    pub fn check_inside(&self, mut chunks: Vec<(Range<u64>, Compression)>) -> Result<()> {
        chunks.retain(|(chunk, _)| !chunk.is_empty());
        chunks.sort_unstable_by_key(|(chunk, _)| chunk.start);
        if chunks.windows(2).any(|pair| pair[0].0.end > pair[1].0.start) {
            return Err(ParquetError::General("two column chunks overlap".to_owned()));
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).chunks = chunks;
        Ok(())
    }

    fn too_long(&self, what: &str) -> ParquetError {
        let limit = self.max_page_bytes;
        ParquetError::General(format!("{what}, limit is {limit} bytes (input.max_page_bytes)"))
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
        let codec = self.state.lock().unwrap_or_else(PoisonError::into_inner).codec_at(start);
        if codec.is_some() {
            let mut reader = Compact { inner: self.reader.get_read(start)?, consumed: 0 };
            let header = reader.page_header().map_err(|error| ParquetError::External(Box::new(error)))?;
            let longest = header.page_bytes.max(header.unpacked_bytes);
            if longest > self.max_page_bytes {
                return Err(self.too_long(&format!("a page is {longest} bytes")));
            }
            if let Some(name) = unbounded_encoding(header.encoding) {
                return Err(ParquetError::General(format!(
                    "a page is encoded as {name}, whose memory cannot be limited; write PLAIN or dictionary pages"
                )));
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.headers.insert(start + reader.consumed, header);
        }
        self.reader.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(codec) = state.codec_at(start) else {
            drop(state);
            return self.reader.get_bytes(start, length);
        };
        let header = state.headers.remove(&start).filter(|header| header.page_bytes == length as u64);
        drop(state);
        let Some(header) = header else {
            return Err(ParquetError::General("a page is not where its header says".to_owned()));
        };
        let page = self.reader.get_bytes(start, length)?;
        let levels = usize::try_from(header.levels_bytes).unwrap_or(usize::MAX).min(page.len());
        if unpacks_beyond(codec, &page[levels..], self.max_page_bytes) {
            return Err(self.too_long("a page unpacks to more than its header says and more than it may"));
        }
        Ok(page)
    }
}

/// Read a struct of Thrift's compact protocol through: everything that it announces is there.
pub(super) fn skip_struct(bytes: &[u8]) -> io::Result<()> {
    Compact { inner: bytes, consumed: 0 }.skip(STRUCT, 0)
}

/// The name of an encoding whose decoder makes room for as many values as the page itself says.
fn unbounded_encoding(encoding: u64) -> Option<&'static str> {
    match encoding {
        6 => Some("DELTA_LENGTH_BYTE_ARRAY"),
        7 => Some("DELTA_BYTE_ARRAY"),
        _ => None,
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
        Compression::BROTLI(_) => count(&mut brotli::Decompressor::new(packed, 64 << 10)),
        // what is not in Hadoop's blocks is tried as frames
        Compression::LZ4 => count(&mut lz4_flex::frame::FrameDecoder::new(packed)),
        _ => 0,
    };
    unpacked > limit
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

/// What a page header tells that matters here: lengths in bytes, and the encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PageHeader {
    /// As stored.
    page_bytes: u64,
    unpacked_bytes: u64,
    /// Levels before the values of a page of version 2, which are never packed.
    levels_bytes: u64,
    /// Of the values of a data page, by the number that `parquet.thrift` gives it; 0, PLAIN, in others.
    encoding: u64,
}

// Types of the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Reads Thrift's compact protocol.
struct Compact<R> {
    inner: R,
    consumed: u64,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("page header: {what}"))
}

impl<R: Read> Compact<R> {
    fn page_header(&mut self) -> io::Result<PageHeader> {
        let (mut header, mut id) = (PageHeader::default(), 0);
        let mut seen = [false; 9];
        while let Some(kind) = self.field(&mut id)? {
            // of two fields with one number the library may take the other
            if let Ok(at @ (2 | 3 | 5 | 8)) = usize::try_from(id)
                && std::mem::replace(&mut seen[at], true)
            {
                return Err(malformed("a field is there twice"));
            }
            match (id, kind) {
                (2, I32) => header.unpacked_bytes = self.length()?,
                (3, I32) => header.page_bytes = self.length()?,
                (5, STRUCT) => header.encoding = self.data_page()?,
                (8, STRUCT) => (header.levels_bytes, header.encoding) = self.data_page_v2()?,
                (2 | 3 | 5 | 8, _) => return Err(malformed("a field is of another type")),
                _ => self.skip(kind, 0)?,
            }
        }
        if seen[5] && seen[8] {
            return Err(malformed("a page is of two kinds"));
        }
        Ok(header)
    }

    /// Of a `DataPageHeader`: the encoding.
    fn data_page(&mut self) -> io::Result<u64> {
        let (mut encoding, mut id) = (None, 0);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (2, I32) if encoding.is_none() => encoding = Some(self.length()?),
                (2, _) => return Err(malformed("an encoding")),
                _ => self.skip(kind, 1)?,
            }
        }
        Ok(encoding.unwrap_or_default())
    }

    /// Of a `DataPageHeaderV2`: the lengths of both kinds of levels together, and the encoding.
    fn data_page_v2(&mut self) -> io::Result<(u64, u64)> {
        let (mut definition, mut repetition, mut encoding, mut id) = (None, None, None, 0);
        while let Some(kind) = self.field(&mut id)? {
            let field = match id {
                4 => &mut encoding,
                5 => &mut definition,
                6 => &mut repetition,
                _ => {
                    self.skip(kind, 1)?;
                    continue;
                }
            };
            if kind != I32 || field.is_some() {
                return Err(malformed("a field of a data page"));
            }
            *field = Some(self.length()?);
        }
        let levels = definition.unwrap_or_default() + repetition.unwrap_or_default();
        Ok((levels, encoding.unwrap_or_default()))
    }

    /// Type of the next field of a struct, and into `id` its number; none at the end.
    fn field(&mut self, id: &mut i16) -> io::Result<Option<u8>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        // a number out of range is another one to the library
        let number = match head >> 4 {
            0 => i16::try_from(self.integer()?).ok(),
            step => id.checked_add(i16::from(step)),
        };
        *id = number.ok_or_else(|| malformed("a field's number"))?;
        Ok(Some(head & 0xf))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if depth == MAX_DEPTH {
            return Err(malformed("too deep"));
        }
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.pass(1),
            I16 | I32 | I64 => self.integer().map(drop),
            DOUBLE => self.pass(8),
            UUID => self.pass(16),
            BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 0xf { self.varint()? } else { u64::from(head >> 4) };
                (0..count).try_for_each(|_| self.skip_element(head & 0xf, depth))
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0xf, depth)
                })
            }
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(malformed("a type that Thrift does not have")),
        }
    }

    /// An element of a collection: unlike a field's, a truth value takes a byte.
    fn skip_element(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        match kind {
            TRUE | FALSE => self.pass(1),
            kind => self.skip(kind, depth + 1),
        }
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.inner.by_ref().take(bytes), &mut io::sink())?;
        self.consumed += passed;
        if passed < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.inner.read_exact(&mut byte)?;
        self.consumed += 1;
        Ok(byte[0])
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number is too long"))
    }

    /// Zigzag: the sign is the lowest bit.
    fn integer(&mut self) -> io::Result<i64> {
        let coded = self.varint()?;
        Ok((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    /// A length, which is an `i32`.
    fn length(&mut self) -> io::Result<u64> {
        let value = self.integer()?;
        i32::try_from(value)
            .ok()
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| malformed("a length"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::tests::gzip;
    use super::*;

    /// Fields 1 to 3 of a page header, and a page of version 2 with statistics.
    fn header(unpacked: i32, stored: i32) -> Vec<u8> {
        let number = |value: i32| {
            let mut coded = ((value << 1) ^ (value >> 31)) as u32;
            let mut bytes = Vec::new();
            while coded >= 0x80 {
                bytes.push(coded as u8 | 0x80);
                coded >>= 7;
            }
            bytes.push(coded as u8);
            bytes
        };
        let mut bytes = vec![0x15, 0x06];
        for value in [unpacked, stored] {
            bytes.push(0x15);
            bytes.extend(number(value));
        }
        bytes.push(0x5c); // field 8, a struct
        for value in [1, 0, 1, 0, 3, 4] {
            bytes.push(0x15);
            bytes.extend(number(value));
        }
        bytes.push(0x11); // is_compressed
        bytes.extend([0x1c, 0x18, 2, 7, 7, 0x00]); // statistics: max, two bytes
        bytes.extend([0x00, 0x00]);
        bytes
    }

    fn parsed(bytes: &[u8]) -> io::Result<(PageHeader, u64)> {
        let mut compact = Compact { inner: bytes, consumed: 0 };
        Ok((compact.page_header()?, compact.consumed))
    }

    #[test]
    fn lengths_are_read_from_a_page_header() {
        let mut bytes = header(300_000, 70_000);
        let length = bytes.len() as u64;
        bytes.extend(b"the page");
        let expected =
            PageHeader { page_bytes: 70_000, unpacked_bytes: 300_000, levels_bytes: 7, encoding: 0 };
        assert_eq!(parsed(&bytes).expect("well formed"), (expected, length));
    }

    #[test]
    fn a_header_that_is_cut_or_senseless_is_an_error() {
        let bytes = header(300_000, 70_000);
        for length in 0..bytes.len() {
            parsed(&bytes[..length]).expect_err("cut");
        }
        parsed(&header(-1, 5)).expect_err("a negative length");
        parsed(&[0x25, 0x01, 0x08, 0x04, 0x01]).expect_err("a length that is binary");
        parsed(&[[0x1c_u8; 40].as_slice(), &[0; 41]].concat()).expect_err("too deep");
        parsed(&[0x05, 0x84, 0x80, 0x08, 0x02, 0x00]).expect_err("field 65538, which is 2 in 16 bits");
        parsed(&[0x25, 0x02, 0x05, 0x04, 0x02, 0x00]).expect_err("field 2 twice");
        parsed(&[0x19, 0xf5, 0xff, 0xff, 0xff, 0xff, 0x0f]).expect_err("a list without its elements");
    }

    #[test]
    fn encodings_that_say_inside_how_many_values_they_have_are_known() {
        // fields 2 and 3, then field 5, a data page: its number of values and its encoding
        let version_1 = [0x25, 0x02, 0x15, 0x02, 0x2c, 0x15, 0x02, 0x15, 0x0c, 0x00, 0x00];
        assert_eq!(parsed(&version_1).expect("well formed").0.encoding, 6);
        // field 8: numbers of values, nulls and rows, then the encoding
        let version_2 = [
            0x25, 0x02, 0x15, 0x02, 0x5c, 0x15, 2, 0x15, 0, 0x15, 2, 0x15, 0x0e, 0x15, 0, 0x15, 0, 0x00, 0x00,
        ];
        assert_eq!(parsed(&version_2).expect("well formed").0.encoding, 7);
        assert!((6..8).all(|encoding| unbounded_encoding(encoding).is_some()));
        assert!([0, 2, 3, 5, 8].iter().all(|&encoding| unbounded_encoding(encoding).is_none()));
    }

    #[test]
    fn chunks_that_overlap_are_refused() {
        let pages = CheckedPages::new(Bytes::from_static(b"0123456789"), 100);
        let gzip = Compression::GZIP(Default::default());
        pages.check_inside(vec![(4..8, gzip), (0..4, gzip), (4..4, gzip)]).expect("side by side");
        pages.check_inside(vec![(0..5, gzip), (4..8, Compression::UNCOMPRESSED)]).expect_err("overlap");
        pages.check_inside(vec![(0..9, gzip), (4..5, Compression::UNCOMPRESSED)]).expect_err("inside");
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
}
