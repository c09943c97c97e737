//! Decodes objects that have an HTTP Content-Encoding.
//!
//! - Stores keep the header with the bytes and send both unchanged. `gsutil -z` and others create objects whose bytes
//!   are gzip but whose name and type are those of the image inside; a browser shows the image.
//! - A header that does not fit the bytes is an uploader's mistake and is ignored.
//! - Nothing is decompressed beyond the longest allowed image.

use std::io::{self, Read};

use bytes::Bytes;
use object_store::{Attribute, Attributes};

use crate::items::{Rejected, Status};
use crate::sniff::{self, image_format, is_gzip, is_zlib, is_zstd_frame};

/// Largest zstd window, as a power of two: what `zstd --long` uses and its command line accepts by default. A frame
/// header may demand up to 2 TiB, far more than an image needs.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The encodings of an object, outermost last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Encoding(Vec<Coding>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    /// A zlib stream (RFC 9110, 8.4.1.2).
    Deflate,
    Brotli,
    Zstd,
}

/// The most encodings of one object: one is usual, and each may decompress to the longest image.
const CODINGS_MAX: usize = 4;

impl Encoding {
    /// The encoding of an answer. Unknown ones, and those of the transport (`aws-chunked`), are ignored.
    pub fn of(attributes: &Attributes) -> Self {
        let header = attributes.get(&Attribute::ContentEncoding).map(|value| value.to_string());
        Self::parse(&header.unwrap_or_default())
    }

    fn parse(header: &str) -> Self {
        let codings =
            header.split(',').filter_map(|coding| match coding.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => Some(Coding::Gzip),
                "deflate" => Some(Coding::Deflate),
                "br" => Some(Coding::Brotli),
                "zstd" => Some(Coding::Zstd),
                _ => None,
            });
        Self(codings.take(CODINGS_MAX).collect())
    }

    /// The decoded bytes.
    ///
    /// # Errors
    /// [`Status::TooLarge`] for more than `max_bytes`, [`Status::ReadError`] for bytes that cannot be decoded.
    pub fn unpacked(&self, mut bytes: Bytes, max_bytes: u64) -> Result<Bytes, Rejected> {
        for coding in self.0.iter().rev() {
            bytes = coding.unpacked(bytes, max_bytes)?;
        }
        Ok(bytes)
    }
}

impl Encoding {
    /// The first bytes of an object, decoded from those that have arrived; `None` if these are too few to decode any.
    pub fn head_unpacked(&self, mut head: Vec<u8>) -> Option<Vec<u8>> {
        for coding in self.0.iter().rev() {
            head = coding.head_unpacked(head)?;
        }
        Some(head)
    }
}

impl Coding {
    fn head_unpacked(self, head: Vec<u8>) -> Option<Vec<u8>> {
        if !self.is_of(&head) {
            return Some(head);
        }
        let mut unpacked = vec![0; sniff::HEAD_BYTES];
        let mut reader: Box<dyn Read + '_> = match self {
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(&head[..])),
            Self::Deflate => Box::new(flate2::read::ZlibDecoder::new(&head[..])),
            Self::Brotli => Box::new(brotli::Decompressor::new(&head[..], BUFFER_BYTES)),
            Self::Zstd => Box::new(::zstd::stream::read::Decoder::with_buffer(&head[..]).ok()?),
        };
        let mut filled = 0;
        // decoding ends with the head, with or without an error
        while let Ok(bytes @ 1..) = reader.read(&mut unpacked[filled..]) {
            filled += bytes;
        }
        unpacked.truncate(filled);
        Some(unpacked).filter(|unpacked| !unpacked.is_empty())
    }

    fn unpacked(self, bytes: Bytes, max_bytes: u64) -> Result<Bytes, Rejected> {
        let packed = &bytes[..];
        if !self.is_of(packed) {
            return Ok(bytes);
        }
        let (mut unpacked, most) = (Vec::new(), max_bytes + 1);
        let read = match self {
            Self::Gzip => flate2::read::MultiGzDecoder::new(packed).take(most).read_to_end(&mut unpacked),
            Self::Deflate => flate2::read::ZlibDecoder::new(packed).take(most).read_to_end(&mut unpacked),
            Self::Brotli => {
                brotli::Decompressor::new(packed, BUFFER_BYTES).take(most).read_to_end(&mut unpacked)
            }
            Self::Zstd => zstd(packed, most, &mut unpacked),
        };
        match read {
            Err(error) => {
                let message = format!("it is stored as {} and cannot be unpacked: {error}", self.name());
                Err(Rejected::new(Status::ReadError, message))
            }
            Ok(_) if unpacked.len() as u64 > max_bytes => Err(longer_than(max_bytes)),
            Ok(_) => Ok(unpacked.into()),
        }
    }

    /// Whether the bytes have the encoding that the header states.
    fn is_of(self, packed: &[u8]) -> bool {
        match self {
            Self::Gzip => is_gzip(packed),
            Self::Deflate => is_zlib(packed),
            Self::Zstd => is_zstd_frame(packed),
            // Brotli has no magic bytes: bytes that are an image are not compressed
            Self::Brotli => image_format(packed).is_none(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }
}

const BUFFER_BYTES: usize = 8 << 10;

fn zstd(packed: &[u8], most: u64, unpacked: &mut Vec<u8>) -> io::Result<usize> {
    let mut decoder = zstd::stream::read::Decoder::new(packed)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    decoder.take(most).read_to_end(unpacked)
}

/// The rejection of an image of unknown length that is too long.
pub(crate) fn longer_than(max_image_bytes: u64) -> Rejected {
    Rejected::new(Status::TooLarge, format!("image is longer than the limit of {max_image_bytes} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const IMAGE: &[u8] = b"\xff\xd8\xff\xe0 an image, as far as its first bytes say";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn unpacked(header: &str, bytes: Vec<u8>, max_bytes: u64) -> Result<Bytes, Status> {
        Encoding::parse(header).unpacked(bytes.into(), max_bytes).map_err(|rejected| rejected.status)
    }

    #[test]
    fn an_encoded_image_is_decoded() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(IMAGE).expect("to memory");
        let mut brotli = Vec::new();
        brotli::CompressorWriter::new(&mut brotli, 4096, 5, 22).write_all(IMAGE).expect("to memory");
        for (header, packed) in [
            ("", IMAGE.to_vec()),
            ("gzip", gzip(IMAGE)),
            (" X-GZip ", gzip(IMAGE)),
            ("aws-chunked,gzip", gzip(IMAGE)),
            ("gzip, gzip", gzip(&gzip(IMAGE))),
            ("deflate", zlib.finish().expect("to memory")),
            ("br", brotli),
            ("zstd", zstd::encode_all(IMAGE, 1).expect("to memory")),
            // the header does not fit the bytes
            ("gzip", IMAGE.to_vec()),
            ("deflate", IMAGE.to_vec()),
            ("br", IMAGE.to_vec()),
            ("zstd", IMAGE.to_vec()),
            ("unheard-of", IMAGE.to_vec()),
        ] {
            assert_eq!(unpacked(header, packed, 1000).as_deref(), Ok(IMAGE), "{header}");
        }
    }

    #[test]
    fn zstd_data_that_begins_with_a_skippable_frame_is_left_as_it_is() {
        let mut packed = vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        packed.extend(zstd::stream::encode_all(IMAGE, 1).expect("to memory"));
        assert_eq!(unpacked("zstd", packed.clone(), 1000).expect("not decoded")[..], packed[..]);
    }

    #[test]
    fn nothing_is_decompressed_beyond_the_longest_image() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert_eq!(unpacked("gzip", bomb.clone(), 1000), Err(Status::TooLarge));
        assert_eq!(unpacked("gzip", bomb, 1 << 20).map(|bytes| bytes.len()), Ok(1 << 20));
        let mut cut = gzip(IMAGE);
        cut.truncate(20);
        assert_eq!(unpacked("gzip", cut, 1000), Err(Status::ReadError));
    }
}
