//! The header of a Parquet page.
//!
//! Only a header that the Parquet library and this reader understand alike is accepted. A header with unexpected types,
//! a repeated field or the fields of another kind of page is an error.
//!
//! The layout is that of `PageHeader` in Apache Parquet's `parquet.thrift`.

use std::io::{self, Read};

use super::thrift::{Compact, FALSE, I32, STRUCT, malformed};

/// `PageType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageKind {
    Data,
    Index,
    Dictionary,
    DataV2,
}

// Values of `Encoding`.
const RLE: u64 = 3;
pub(super) const DELTA_LENGTH_BYTE_ARRAY: u64 = 6;
pub(super) const DELTA_BYTE_ARRAY: u64 = 7;

/// The parts of a page header that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub kind: PageKind,
    /// Bytes of the page as stored.
    pub page_bytes: u64,
    pub unpacked_bytes: u64,
    /// Nulls included.
    pub values: u64,
    pub encoding: u64,
    /// Bytes of levels before the values of a page of version 2. They are never compressed.
    pub levels_bytes: u64,
    /// Whether the levels of a page of version 1 are RLE-encoded: repetition levels, definition levels.
    pub levels_are_rle: [bool; 2],
    /// Whether the values are compressed with the column's codec.
    pub is_packed: bool,
}

impl PageHeader {
    pub fn longest(&self) -> u64 {
        self.page_bytes.max(self.unpacked_bytes)
    }

    pub fn read<R: Read>(compact: &mut Compact<R>) -> io::Result<Self> {
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

/// The first `N` fields of a struct, which are required numbers, and `false` if its field 7 is false, else `true`.
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
    fn a_header_that_is_cut_or_malformed_is_an_error() {
        let bytes = header(300_000, 70_000);
        for length in 0..bytes.len() {
            parsed(&bytes[..length]).expect_err("cut");
        }
        parsed(&header(-1, 5)).expect_err("a negative length");
        parsed(&[0x25, 0x01, 0x08, 0x04, 0x01]).expect_err("a length that is binary");
    }

    #[test]
    fn a_header_that_the_library_might_read_differently_is_an_error() {
        let data = [numbers_of(&[0, 300, 70]), vec![0x2c], numbers_of(&[1, 0, 3, 3]), vec![0]].concat();
        let (read, _) = parsed(&[data.clone(), vec![0]].concat()).expect("of version 1");
        assert_eq!((read.kind, read.encoding, read.levels_are_rle), (PageKind::Data, 0, [true; 2]));
        // field 3 again with its number in full, and field 65536 + 3, which the library takes for 3
        let again = [&[0x05, 0x06][..], &number(7)].concat();
        parsed(&[data.clone(), again, vec![0]].concat()).expect_err("a length twice");
        let odd = [&[0x05, 0x86, 0x80, 0x08][..], &number(7)].concat();
        parsed(&[data.clone(), odd, vec![0]].concat()).expect_err("a number beyond 16 bits");
        let list = [0x59, 0xf1, 2, 0x15, 0x02];
        parsed(&[&data[..], &list, &[0]].concat()).expect_err("a list of booleans");
        let both = [vec![0x3c], numbers_of(&[1, 0, 1, 0, 3, 4]), vec![0]].concat();
        parsed(&[data.clone(), both, vec![0]].concat()).expect_err("versions 1 and 2");
        let other = [numbers_of(&[2]), data[2..].to_vec(), vec![0]].concat();
        parsed(&other).expect_err("a dictionary with the header of a data page");
    }
}
