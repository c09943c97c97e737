//! Unpacking the pages of a column, within a limit.
//!
//! Input: a codec and the packed bytes of a page. Output: the unpacked bytes, or whether there are more than the
//! header states.

use std::borrow::Cow;
use std::io::{self, Read};

use ::parquet::basic::Compression;
use ::parquet::errors::{ParquetError, Result};

use crate::error::parquet_words;

/// Whether `packed` unpacks to more than `limit` bytes, for the codecs that the library does not limit.
pub(super) fn unpacks_beyond(codec: Compression, packed: &[u8], limit: u64) -> bool {
    let count = |reader: &mut dyn Read| {
        // the library reports damage: it stops at the same byte
        let mut unpacked = Counted(0);
        let _ = io::copy(&mut reader.take(limit + 1), &mut unpacked);
        unpacked.0
    };
    let unpacked = match codec {
        Compression::GZIP(_) => count(&mut flate2::read::MultiGzDecoder::new(packed)),
        Compression::BROTLI(_) => count(&mut brotli::Decompressor::new(packed, BROTLI_BUFFER_BYTES)),
        // the library tries frames if the page is not in Hadoop's blocks
        Compression::LZ4 => count(&mut lz4_flex::frame::FrameDecoder::new(packed)),
        _ => 0,
    };
    unpacked > limit
}

/// Packed bytes given to the Brotli decoder at once.
const BROTLI_BUFFER_BYTES: usize = 64 << 10;

/// Unpack `packed`, which must give exactly `length` bytes.
pub(super) fn unpacked(codec: Compression, packed: &[u8], length: usize) -> Result<Cow<'_, [u8]>> {
    let failed = |error: &dyn std::error::Error| {
        ParquetError::General(format!("unpacking a page: {}", parquet_words(error)))
    };
    let read = |reader: &mut dyn Read| -> Result<Vec<u8>> {
        let mut unpacked = Vec::with_capacity(length);
        // one byte more, to notice a page that is too long
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
        // three formats share this codec; they are tried in turn, as by the library
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

/// Unpack LZ4 in the form that Hadoop writes; `None` if `packed` has another form. Each block comes after its unpacked
/// length and its packed length, of four bytes each in big-endian order.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::compression::tests::gzip;

    #[test]
    fn a_page_is_counted_no_further_than_the_limit() {
        let codec = Compression::GZIP(Default::default());
        let packed = gzip(&[0; 100_000]);
        assert!(!unpacks_beyond(codec, &packed, 100_000));
        assert!(unpacks_beyond(codec, &packed, 99_999));
        assert!(unpacks_beyond(codec, &[packed.clone(), packed.clone()].concat(), 100_000), "two members");
        assert!(!unpacks_beyond(codec, b"damaged", 1));
        assert!(
            !unpacks_beyond(Compression::SNAPPY, &packed, 1),
            "the library enforces the length in the header"
        );
    }
}
