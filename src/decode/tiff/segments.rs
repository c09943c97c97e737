//! Strips and tiles: decompresses them to rows of samples.
//!
//! - Bytes that follow the last visible pixel may be missing. In Deflate and zstd data they may not be
//!   wrong, since the checksum at the end covers the pixels before it.
//! - A strip or tile that holds fewer bytes than its visible pixels need is damage.
//! - Strips and tiles may share bytes of the file; the number of repeated reads is limited.

use std::borrow::Cow;

use flate2::Decompress;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder};

use super::super::lzw::{Dialect, Lzw};
use super::compression::{decode_lzw, decompress_zstd, inflate, unpack_bits};
use super::directory::{Directory, Values};
use super::fax::{self, Scheme};
use super::jpeg;
use super::layout::{self, Color, Layout, Part};
use super::tag;

/// Limit of the compressed bytes that are read, as a multiple of the file's length.
const READS_OF_THE_FILE: u64 = 2;

/// Decompressed bytes for which one more compressed byte may be read: blank tiles that share one stream compress far
/// better than that.
const DECOMPRESSED_FOR_ONE: u64 = 8;

/// Largest window of zstd data, as an exponent of 2: 8 MiB, the window of compression level 19.
const MAX_WINDOW_LOG: u32 = 23;

/// Decompresses the strips or tiles of one image.
pub(super) struct Segments<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
    offsets: Values<'a>,
    byte_counts: Option<Values<'a>>,
    /// Fill order 2: the least significant bit of each byte comes first.
    reversed: bool,
    /// Predictor 2: each sample is stored as its difference from the one to its left.
    differenced: bool,
    codec: Codec<'a>,
    /// Compressed bytes that may still be read.
    budget: u64,
}

enum Codec<'a> {
    Uncompressed,
    PackBits,
    Lzw(Lzw),
    Deflate(Box<Decompress>),
    Zstd(Box<ZstdDecoder<'static>>),
    Fax(Scheme),
    Jpeg { tables: &'a [u8] },
}

impl<'a> Segments<'a> {
    /// Fails if the compression, or the way it is used, is not supported.
    pub(super) fn new(
        bytes: &'a [u8],
        directory: &Directory<'a>,
        layout: &'a Layout,
    ) -> Result<Self, String> {
        let (offsets, counts) = match layout.tiled {
            true => (tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS),
            false => (tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS),
        };
        let offsets = directory.values(offsets)?.ok_or("it has neither strips nor tiles")?;
        let reversed = match directory.number(tag::FILL_ORDER)?.unwrap_or(1) {
            1 => false,
            2 => true,
            order => return Err(format!("fill order {order} is not supported")),
        };
        let codec = codec(directory, layout)?;
        if let Codec::Uncompressed = codec
            && offsets.len() > layout.segments()
            && !layout.one_covers_the_image()
        {
            // Pillow writes the excess ones over pixels that it has already decoded
            return Err(format!("{} strips or tiles are listed, not {}", offsets.len(), layout.segments()));
        }
        let differenced = match (&codec, directory.number(tag::PREDICTOR)?.unwrap_or(1)) {
            (Codec::Lzw(_) | Codec::Deflate(_) | Codec::Zstd(_), 2) => match layout.bits {
                8 | 16 => true,
                bits => return Err(format!("differences of {bits} bits are not supported")),
            },
            (Codec::Lzw(_) | Codec::Deflate(_) | Codec::Zstd(_), predictor @ (0 | 3..)) => {
                return Err(format!("predictor {predictor} is not supported"));
            }
            _ => false,
        };
        let segments = layout.across as u64 * layout.down as u64;
        let decoded = segments.saturating_mul(layout.buffer_bytes() as u64);
        let budget = (bytes.len() as u64 * READS_OF_THE_FILE).saturating_add(decoded / DECOMPRESSED_FOR_ONE);
        let byte_counts = match codec {
            Codec::Uncompressed => None,
            _ => directory.values(counts)?,
        };
        Ok(Self { bytes, layout, offsets, byte_counts, reversed, differenced, codec, budget })
    }

    /// Decode the strip or tile `index` into `output`, which holds one plane of it; only the pixels of
    /// `part`, the visible ones, are guaranteed to be written.
    pub(super) fn decode(&mut self, index: usize, part: Part, output: &mut [u8]) -> Result<(), String> {
        let row_bytes = self.layout.segment_row_bytes();
        let wanted = row_bytes * (part.height - 1) + self.layout.row_bytes(part.width);
        let name = if self.layout.tiled { "tile" } else { "strip" };
        let stored = self.stored(index).ok_or_else(|| format!("{name} {index} is missing"))?;
        if let Codec::Uncompressed = self.codec {
            let output = &mut output[..wanted];
            let stored = stored.get(..wanted).ok_or_else(|| format!("{name} {index} is cut short"))?;
            output.copy_from_slice(stored);
            if self.reversed {
                output.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
            }
            return Ok(());
        }

        let (stream, mut read) = match (&self.codec, self.reversed) {
            (Codec::Jpeg { .. }, _) | (_, false) => (Cow::Borrowed(stored), 0),
            (_, true) => (stored.iter().map(|byte| byte.reverse_bits()).collect(), stored.len()),
        };
        let stream: &[u8] = &stream;
        let result = match &mut self.codec {
            Codec::Uncompressed => unreachable!("copied above"),
            Codec::PackBits => unpack_bits(stream, &mut output[..wanted]),
            Codec::Lzw(lzw) => decode_lzw(lzw, stream, &mut output[..wanted]),
            Codec::Deflate(inflater) => inflate(inflater, stream, wanted, output),
            Codec::Zstd(decoder) => decompress_zstd(decoder, stream, wanted, output),
            Codec::Fax(scheme) => {
                let width = self.layout.segment_width;
                fax::decode(*scheme, stream, width, row_bytes, &mut output[..wanted])
            }
            Codec::Jpeg { tables } => {
                let shape = jpeg::Shape {
                    width: self.layout.segment_width,
                    rows: part.height..=self.layout.segment_height,
                    components: self.layout.interleaved_samples,
                    is_ycbcr: self.layout.color == Color::YCbCr,
                };
                jpeg::decode(tables, stream, &shape, output)
            }
        };
        read = read.max(result.map_err(|error| format!("{name} {index}: {error}"))?);
        self.budget = self
            .budget
            .checked_sub(read as u64)
            .ok_or_else(|| format!("{name}s name the same parts of the file too often"))?;
        if self.differenced {
            let samples = self.layout.interleaved_samples;
            for row in output[..wanted].chunks_mut(row_bytes) {
                match (self.layout.bits, self.layout.big_endian) {
                    (8, _) => sum_bytes(row, samples),
                    (_, true) => sum_words(row, samples, u16::from_be_bytes, u16::to_be_bytes),
                    (_, false) => sum_words(row, samples, u16::from_le_bytes, u16::to_le_bytes),
                }
            }
        }
        Ok(())
    }

    /// The bytes of a strip or tile, as far as the file holds them. The byte count of uncompressed data
    /// is ignored: the layout determines it.
    fn stored(&self, index: usize) -> Option<&'a [u8]> {
        let uncompressed = matches!(self.codec, Codec::Uncompressed);
        // if several cover the whole image, Pillow takes the last one
        let index =
            if uncompressed && self.layout.one_covers_the_image() { self.offsets.len() - 1 } else { index };
        let offset = usize::try_from(self.offsets.get(index)?).ok().filter(|offset| *offset > 0)?;
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let stated = self.byte_counts.and_then(|counts| counts.get(index)).filter(|count| *count > 0);
        match stated {
            Some(count) if !uncompressed => {
                Some(&rest[..usize::try_from(count).unwrap_or(usize::MAX).min(rest.len())])
            }
            _ => Some(rest),
        }
    }
}

fn codec<'a>(directory: &Directory<'a>, layout: &Layout) -> Result<Codec<'a>, String> {
    let codec = match layout.compression {
        layout::UNCOMPRESSED => Codec::Uncompressed,
        2 => Codec::Fax(Scheme::Runs { row_multiple_bytes: 1 }),
        3 => {
            let options = directory.number(tag::T4_OPTIONS)?.unwrap_or(0);
            Codec::Fax(Scheme::Group3 { two_dimensional: options & 1 != 0 })
        }
        4 => Codec::Fax(Scheme::Group4),
        5 => Codec::Lzw(Lzw::new(Dialect::Tiff)),
        layout::OLD_JPEG => {
            return Err("JPEG as it was before TIFF 6.0 (compression 6) is not supported".to_owned());
        }
        layout::JPEG => Codec::Jpeg { tables: directory.bytes(tag::JPEG_TABLES)?.unwrap_or(&[]) },
        8 | 32946 => Codec::Deflate(Box::new(Decompress::new(true))),
        32771 => Codec::Fax(Scheme::Runs { row_multiple_bytes: 2 }),
        32773 => Codec::PackBits,
        50000 => {
            let mut decoder = ZstdDecoder::new().map_err(|error| error.to_string())?;
            decoder
                .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
                .map_err(|error| error.to_string())?;
            Codec::Zstd(Box::new(decoder))
        }
        34925 => return Err("LZMA compression is not supported".to_owned()),
        34892 => return Err("lossy JPEG of a raw camera file is not supported".to_owned()),
        33003 | 33005 | 34712 => return Err("JPEG 2000 compression is not supported".to_owned()),
        50001 => return Err("WebP compression is not supported".to_owned()),
        50002 => return Err("JPEG XL compression is not supported".to_owned()),
        34887 => return Err("LERC compression is not supported".to_owned()),
        other => return Err(format!("compression {other} is not supported")),
    };
    match &codec {
        Codec::Fax(_) if (layout.bits, layout.interleaved_samples) != (1, 1) => Err(format!(
            "fax data of {} samples of {} bits is not supported",
            layout.interleaved_samples, layout.bits
        )),
        Codec::Jpeg { .. } if layout.bits != 8 => {
            Err(format!("JPEG data of {} bits is not supported", layout.bits))
        }
        _ => Ok(codec),
    }
}

/// Undo horizontal differencing of 8-bit samples.
fn sum_bytes(row: &mut [u8], samples: usize) {
    for at in samples..row.len() {
        row[at] = row[at].wrapping_add(row[at - samples]);
    }
}

/// Undo horizontal differencing of 16-bit samples.
fn sum_words(row: &mut [u8], samples: usize, read: fn([u8; 2]) -> u16, write: fn(u16) -> [u8; 2]) {
    for at in (2 * samples..row.len().saturating_sub(1)).step_by(2) {
        let before = [row[at - 2 * samples], row[at - 2 * samples + 1]];
        let sum = read([row[at], row[at + 1]]).wrapping_add(read(before));
        row[at..at + 2].copy_from_slice(&write(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoing_differences_wraps_around() {
        let mut bytes = [1, 2, 255, 255];
        sum_bytes(&mut bytes, 2);
        assert_eq!(bytes, [1, 2, 0, 1]);
        let mut words = [0x01, 0xff, 0x00, 0x01];
        sum_words(&mut words, 1, u16::from_be_bytes, u16::to_be_bytes);
        assert_eq!(words, [0x01, 0xff, 0x02, 0x00]);
    }
}
