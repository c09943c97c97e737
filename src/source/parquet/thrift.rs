//! The part of Thrift's compact protocol that is needed to check footers and page headers before the Parquet library
//! parses them.
//!
//! Input: any reader. Output: fields and numbers, or an error if they are malformed.
//!
//! - The Parquet library reads everything that this reader accepts in the same way. Data that the library would read
//!   differently is an error here: a field number that it cuts to 16 bits, or booleans that it skips without reading a
//!   byte.
//! - Every element of a list takes at least one byte, so [`Compact::skip`] never reads more elements than there are
//!   bytes.

use std::io::{self, Read};

/// Deepest nesting of structs, lists and maps. A page header with its statistics has three levels, a footer eight.
const MAX_DEPTH: u32 = 16;

// Types of the compact protocol.
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const BYTE: u8 = 3;
const I16: u8 = 4;
pub(super) const I32: u8 = 5;
pub(super) const I64: u8 = 6;
const DOUBLE: u8 = 7;
pub(super) const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
pub(super) const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Reads Thrift's compact protocol.
pub(super) struct Compact<R> {
    inner: R,
    pub consumed: u64,
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed Thrift: {what}"))
}

impl<R: Read> Compact<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, consumed: 0 }
    }

    /// The type of the next field of a struct; `None` at the end of the struct. Stores the number of the field in `id`.
    pub fn field(&mut self, id: &mut i16) -> io::Result<Option<u8>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *id = match head >> 4 {
            0 => i16::try_from(self.integer()?).ok(),
            step => id.checked_add(i16::from(step)),
        }
        .ok_or_else(|| malformed("the number of a field is beyond 16 bits"))?;
        Ok(Some(head & 0xf))
    }

    /// Skip a value of type `kind`.
    pub fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
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

    /// Skip an element of a collection. Booleans are refused, because each takes a byte that the library does not skip.
    /// Neither a page header nor a footer has collections of booleans.
    fn skip_element(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        match kind {
            TRUE | FALSE => Err(malformed("a list of truth values")),
            kind => self.skip(kind, depth + 1),
        }
    }

    /// Read the head of a list whose elements must be of type `kind`. Returns the number of elements, which follow.
    pub fn list(&mut self, kind: u8) -> io::Result<u64> {
        let head = self.byte()?;
        let count = if head >> 4 == 0xf { self.varint()? } else { u64::from(head >> 4) };
        if head & 0xf == kind { Ok(count) } else { Err(malformed("a list of another type")) }
    }

    /// Skip `bytes` bytes.
    pub fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.inner.by_ref().take(bytes), &mut io::sink())?;
        self.consumed += passed;
        if passed < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    pub fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.inner.read_exact(&mut byte)?;
        self.consumed += 1;
        Ok(byte[0])
    }

    /// An unsigned number: seven bits in each byte, the lowest first.
    pub fn varint(&mut self) -> io::Result<u64> {
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

    /// A signed number in zigzag coding: the sign is the lowest bit.
    pub fn integer(&mut self) -> io::Result<i64> {
        let coded = self.varint()?;
        Ok((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    /// A length or a count, which is an `i32` and never negative.
    pub fn length(&mut self) -> io::Result<u64> {
        let value = self.integer()?;
        i32::try_from(value)
            .ok()
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| malformed("a length is negative or beyond 32 bits"))
    }
}

/// Writes Thrift's compact protocol.
#[derive(Debug, Default)]
pub(super) struct CompactWriter(pub Vec<u8>);

impl CompactWriter {
    /// Begin a field, with its number in full.
    pub fn field(&mut self, id: i16, kind: u8) {
        self.0.push(kind);
        self.integer(i64::from(id));
    }

    /// A field that is a number.
    pub fn number(&mut self, id: i16, kind: u8, value: i64) {
        self.field(id, kind);
        self.integer(value);
    }

    /// A field that is a string.
    pub fn bytes(&mut self, id: i16, bytes: &[u8]) {
        self.field(id, BINARY);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Begin a field that is a list.
    pub fn list(&mut self, id: i16, kind: u8, count: u64) {
        self.field(id, LIST);
        self.0.push(0xf0 | kind);
        self.varint(count);
    }

    /// End a struct.
    pub fn end(&mut self) {
        self.0.push(0);
    }

    fn integer(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(bytes: &[u8]) -> io::Result<u64> {
        let mut compact = Compact::new(bytes);
        compact.skip(STRUCT, 0)?;
        Ok(compact.consumed)
    }

    #[test]
    fn data_that_the_library_would_read_differently_is_an_error() {
        assert_eq!(skipped(&[0x05, 0x04, 0x07, 0x00]).expect("field 2 by its number"), 4);
        // 65536 + 3, which cut to 16 bits is 3
        skipped(&[0x05, 0x86, 0x80, 0x08, 0x07, 0x00]).expect_err("a number beyond 16 bits");
        skipped(&[0x05, 0xfe, 0xff, 0x03, 0x00, 0x15, 0x00, 0x00]).expect_err("32767 and one");
        skipped(&[0x19, 0x21, 0x01, 0x01, 0x00]).expect_err("a list of booleans");
        skipped(&[0x1b, 0x01, 0x51, 0x00, 0x01, 0x00]).expect_err("a map to booleans");
    }

    #[test]
    fn the_elements_of_a_list_are_limited_by_its_bytes() {
        for element in [BYTE, I32, DOUBLE, BINARY, LIST, MAP, STRUCT, UUID, 0, 14] {
            let list = [0x19, 0xf0 | element, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
            skipped(&[&list[..], &[0; 100]].concat()).expect_err("2^63 elements in 100 bytes");
        }
        skipped(&[[0x1c_u8; 40].as_slice(), &[0; 41]].concat()).expect_err("too deep");
    }
}
