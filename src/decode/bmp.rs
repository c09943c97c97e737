//! BMP: bitmaps of Windows and OS/2.
//!
//! - As in Pillow, pixels without a stated offset follow the palette; a colour index past the palette is black, or a
//!   gray if the palette is the grays from 0 up; 5- and 6-bit channels are scaled to 8 bits by multiplication and
//!   rounding down; run-length data is read as Pillow's decoder reads it.
//! - The padding of the last row may be missing.
//! - Unlike in Pillow, a palette of black and white, or of grays, applies at any bit depth (Pillow reads
//!   the pixels as if they had 1 or 8 bits), and channel masks that Pillow does not know are supported.
//! - Embedded JPEG, PNG and Huffman data is not supported.

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples;
use super::{Decoded, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

const FILE_HEADER_BYTES: usize = 14;

const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

/// Decode a BMP into `rgb`; `raw` holds the colour indices of run-length data.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let header = Header::read(bytes)?;
    let (width, height) = header.size;
    request.admit(ImageHeader { format: ImageFormat::Bmp, width, height })?;
    let (width, height) = (width as usize, height as usize);
    let layout = header.layout(bytes)?;
    let pixels = bytes.get(header.pixels_at..).unwrap_or(&[]);

    let rgb = rgb.take(width * height * 3);
    // `row` counts rows in the order in which they are stored
    let mut write_row = |row: usize, write: &dyn Fn(&mut [u8])| {
        let row = if header.top_down { row } else { height - 1 - row };
        let start = row * width * 3;
        write(&mut rgb[start..start + width * 3]);
    };
    if let RLE8 | RLE4 = header.compression {
        let Layout::Indexed(colors) = layout else {
            return Err(damaged(format!("bmp: run lengths of {} bits are not supported", header.bits)));
        };
        let indices = raw.take(width * height);
        let is_odd = header.pixels_at % 2 != 0;
        unpack_runs(pixels, is_odd, header.compression == RLE4, width, indices)
            .ok_or_else(|| damaged("bmp: image is cut short"))?;
        for (row, indices) in indices.chunks_exact(width).enumerate() {
            write_row(row, &|rgb| samples::look_up(indices, &colors, rgb));
        }
        return Ok(Decoded::whole(header.size, Orientation::UPRIGHT));
    }

    let row_bits = width * usize::from(header.bits);
    let stride = row_bits.div_ceil(32) * 4;
    for row in 0..height {
        let start = row * stride;
        let stored = pixels
            .get(start..start + row_bits.div_ceil(8))
            .ok_or_else(|| damaged(format!("bmp: image is cut short, {row} of {height} rows are there")))?;
        match &layout {
            Layout::Indexed(colors) => {
                write_row(row, &|rgb| expand(stored, usize::from(header.bits), colors, rgb));
            }
            Layout::Masks(masks) => write_row(row, &|rgb| {
                let bytes = usize::from(header.bits / 8);
                for (pixel, out) in stored.chunks_exact(bytes).zip(rgb.chunks_exact_mut(3)) {
                    out.copy_from_slice(&masks.color(pixel, request.background));
                }
            }),
        }
    }
    Ok(Decoded::whole(header.size, Orientation::UPRIGHT))
}

/// The checked header of the file.
struct Header {
    size: (u32, u32),
    top_down: bool,
    bits: u16,
    compression: u32,
    /// Red, green, blue and alpha; all zero if the header has no masks.
    masks: [u32; 4],
    /// Offset of the palette, and the bytes of each of its colours.
    palette_at: usize,
    color_bytes: usize,
    colors: usize,
    pixels_at: usize,
}

/// How the bits of a pixel are interpreted.
enum Layout {
    Indexed(Box<[[u8; 3]; 256]>),
    Masks(Masks),
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Rejected> {
        let cut_short = || damaged("bmp: the header is cut short");
        let u16_at = |at: usize| -> Result<u16, Rejected> {
            let bytes = bytes.get(at..at + 2).ok_or_else(cut_short)?;
            Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        let u32_at = |at: usize| Ok(u32::from(u16_at(at)?) | u32::from(u16_at(at + 2)?) << 16);
        let header_bytes = u32_at(FILE_HEADER_BYTES)? as usize;
        let mut palette_at = FILE_HEADER_BYTES + header_bytes;
        if bytes.len() < palette_at {
            return Err(cut_short());
        }
        let stated_pixels_at = u32_at(10)? as usize;

        let mut masks = [0; 4];
        let (size, top_down, bits, compression, stated_colors, color_bytes);
        if header_bytes == 12 {
            size = (u32::from(u16_at(18)?), u32::from(u16_at(20)?));
            (top_down, bits, compression, stated_colors, color_bytes) = (false, u16_at(24)?, RAW, 0, 3);
        } else {
            let height = u32_at(22)?;
            // a negative height down to -2^24, as in Pillow
            top_down = height >> 24 == 0xff;
            size = (u32_at(18)?, if top_down { height.wrapping_neg() } else { height });
            (bits, compression, stated_colors, color_bytes) =
                (u16_at(28)?, u32_at(30)?, u32_at(46)? as usize, 4);
            if let BIT_FIELDS | ALPHA_BIT_FIELDS = compression {
                let stored = match (header_bytes, compression) {
                    (40, BIT_FIELDS) | (52, _) => 3,
                    _ => 4,
                };
                for (index, mask) in masks[..stored].iter_mut().enumerate() {
                    *mask = u32_at(FILE_HEADER_BYTES + 40 + 4 * index)?;
                }
                if header_bytes == 40 {
                    palette_at += 4 * stored;
                }
            }
        }
        if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return Err(damaged(format!("bmp: {bits} bits a pixel are not supported")));
        }
        if !matches!(compression, RAW | RLE8 | RLE4 | BIT_FIELDS | ALPHA_BIT_FIELDS) {
            return Err(damaged(format!("bmp: compression {compression} is not supported")));
        }

        let colors = match (bits, stated_colors) {
            (16.., _) => 0,
            (_, 0) => 1 << bits,
            (_, stated) => stated,
        };
        let palette_end = palette_at.saturating_add(colors.saturating_mul(color_bytes));
        let pixels_at = match stated_pixels_at {
            0 => palette_end,
            at if at == FILE_HEADER_BYTES + header_bytes && bits <= 8 => palette_end,
            at => at,
        };
        Ok(Self { size, top_down, bits, compression, masks, palette_at, color_bytes, colors, pixels_at })
    }

    fn layout(&self, bytes: &[u8]) -> Result<Layout, Rejected> {
        let bit_fields = matches!(self.compression, BIT_FIELDS | ALPHA_BIT_FIELDS);
        if self.bits <= 8 {
            if bit_fields {
                return Err(damaged(format!("bmp: bit fields of {} bits are not supported", self.bits)));
            }
            return Ok(Layout::Indexed(Box::new(self.palette(bytes))));
        }
        let masks = match (self.bits, bit_fields, self.masks) {
            (16, false, _) => [0x7c00, 0x3e0, 0x1f, 0],
            (32, true, [0, 0, 0, 0]) => [0xff_0000, 0xff00, 0xff, 0xff00_0000],
            (_, false, _) => [0xff_0000, 0xff00, 0xff, 0],
            (32, true, masks) => masks,
            // alpha of 16-bit pixels is ignored
            (_, true, [red, green, blue, _]) => [red, green, blue, 0],
        };
        let masks = Masks::new(masks).ok_or_else(|| {
            let [red, green, blue, alpha] = masks;
            damaged(format!("bmp: bit fields {red:#x}, {green:#x}, {blue:#x}, {alpha:#x} are not supported"))
        })?;
        Ok(Layout::Masks(masks))
    }

    /// The palette, which may be truncated. Indices past its end are black, or grays if the palette is
    /// the grays from 0 up.
    fn palette(&self, bytes: &[u8]) -> [[u8; 3]; 256] {
        let stored = bytes.get(self.palette_at..).unwrap_or(&[]).chunks_exact(self.color_bytes);
        let grays: [[u8; 3]; 256] = std::array::from_fn(|index| [index as u8; 3]);
        let mut colors = [[0; 3]; 256];
        let mut found = 0;
        for (color, entry) in colors.iter_mut().zip(stored.take(self.colors)) {
            *color = [entry[2], entry[1], entry[0]];
            found += 1;
        }
        let all_gray = found == self.colors.min(256) && colors[..found] == grays[..found];
        if all_gray { grays } else { colors }
    }
}

/// Bit positions of the channels of a pixel of 16, 24 or 32 bits.
struct Masks {
    channels: [Channel; 3],
    alpha: Option<Channel>,
}

/// The contiguous bits of a channel.
#[derive(Clone, Copy)]
struct Channel {
    shift: u32,
    bits: u32,
}

impl Channel {
    fn new(mask: u32) -> Option<Self> {
        let shift = mask.trailing_zeros();
        let bits = mask.count_ones();
        let contiguous = mask != 0 && 32 - mask.leading_zeros() - shift == bits;
        contiguous.then_some(Self { shift, bits })
    }

    /// The channel's value in `pixel`, scaled to the range of a byte.
    fn value(self, pixel: u32) -> u8 {
        let largest = ((1_u64 << self.bits) - 1) as u32;
        let value = pixel >> self.shift & largest;
        match self.bits {
            1..=7 => (value * 255 / largest) as u8,
            bits => (value >> (bits - 8)) as u8,
        }
    }
}

impl Masks {
    fn new([red, green, blue, alpha]: [u32; 4]) -> Option<Self> {
        let channels = [Channel::new(red)?, Channel::new(green)?, Channel::new(blue)?];
        let alpha = if alpha == 0 { None } else { Some(Channel::new(alpha)?) };
        Some(Self { channels, alpha })
    }

    /// RGB of one pixel, composited over the background if it has alpha.
    fn color(&self, pixel: &[u8], background: Option<[u8; 3]>) -> [u8; 3] {
        let mut bytes = [0; 4];
        bytes[..pixel.len()].copy_from_slice(pixel);
        let pixel = u32::from_le_bytes(bytes);
        let color = self.channels.map(|channel| channel.value(pixel));
        match self.alpha {
            Some(alpha) => samples::over(color, alpha.value(pixel), background),
            None => color,
        }
    }
}

/// Convert indices of 1, 4 or 8 bits to RGB; the first index is in the most significant bits of a byte.
fn expand(stored: &[u8], bits: usize, colors: &[[u8; 3]; 256], rgb: &mut [u8]) {
    if bits == 8 {
        return samples::look_up(stored, colors, rgb);
    }
    let mask = (1_u8 << bits) - 1;
    for (index, pixel) in rgb.chunks_exact_mut(3).enumerate() {
        let at = index * bits;
        let value = stored[at / 8] >> (8 - bits - at % 8) & mask;
        pixel.copy_from_slice(&colors[usize::from(value)]);
    }
}

/// Decode run-length data to indices, row by row in stored order. Pixels that a delta skips, or that
/// are missing at the end-of-bitmap code, have index 0.
///
/// Returns `None` if the data ends before the last pixel and the end-of-bitmap code, or if pixels are
/// missing and a run exceeded its row, so that the position of the missing pixels is unknown.
///
/// `starts_odd` is whether the data begins at an odd offset of the file: a literal run is padded to an
/// even offset.
fn unpack_runs(
    data: &[u8],
    starts_odd: bool,
    four_bits: bool,
    width: usize,
    indices: &mut [u8],
) -> Option<()> {
    indices.fill(0);
    let (mut at, mut done, mut column) = (0, 0, 0);
    let mut row_exceeded = false;
    let pair = |at: usize| data.get(at..)?.first_chunk::<2>().copied();
    while done < indices.len() {
        let [count, value] = pair(at)?;
        at += 2;
        match (count, value) {
            (0, 0) => {
                done = done.next_multiple_of(width);
                column = 0;
            }
            (0, 1) => return (!row_exceeded).then_some(()),
            (0, 2) => {
                let [right, up] = pair(at)?;
                at += 2;
                done += usize::from(right) + usize::from(up) * width;
                column = done % width;
            }
            (0, literals) => {
                let literals = usize::from(literals);
                let stored = data.get(at..)?;
                for index in 0..literals.min(indices.len() - done) {
                    indices[done] = if four_bits {
                        stored.get(index / 2)? >> (4 - index % 2 * 4) & 0xf
                    } else {
                        *stored.get(index)?
                    };
                    done += 1;
                }
                column += literals;
                at += if four_bits { literals.div_ceil(2) } else { literals };
                at += (at + usize::from(starts_odd)) % 2;
            }
            (count, value) => {
                let room = width.saturating_sub(column).min(indices.len() - done);
                row_exceeded |= usize::from(count) > room;
                let count = usize::from(count).min(room);
                for (index, pixel) in indices[done..done + count].iter_mut().enumerate() {
                    *pixel = if four_bits { value >> (4 - index % 2 * 4) & 0xf } else { value };
                }
                done += count;
                column += count;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(data: &[u8], four_bits: bool, width: usize, pixels: usize) -> Option<Vec<u8>> {
        let mut indices = vec![9; pixels];
        unpack_runs(data, false, four_bits, width, &mut indices).map(|()| indices)
    }

    #[test]
    fn runs_literals_deltas_and_end_codes_are_decoded() {
        // a run of 2, 3 literals and their padding, end of row, delta 1 right, a run, end of bitmap
        let data = [2, 7, 0, 3, 1, 2, 3, 0, 0, 0, 0, 2, 1, 0, 2, 8, 0, 1];
        let expected = [7, 7, 1, 2, 3, 0, 8, 8, 0, 0];
        assert_eq!(unpacked(&data, false, 5, 10).as_deref(), Some(&expected[..]));
        assert_eq!(unpacked(&data[..14], false, 5, 10), None, "cut before the end");
        assert_eq!(
            unpacked(&[5, 0x12, 0, 3, 0x34, 0x50, 0, 1], true, 8, 8),
            Some(vec![1, 2, 1, 2, 1, 3, 4, 5])
        );
        assert_eq!(
            unpacked(&[9, 1, 0, 1], false, 2, 4),
            None,
            "the position of the missing pixels is unknown"
        );
        assert_eq!(
            unpacked(&[9, 1, 0, 0, 2, 2], false, 2, 4),
            Some(vec![1, 1, 2, 2]),
            "a run ends with its row"
        );
    }

    #[test]
    fn channels_are_scaled_to_a_byte() {
        let five = Channel::new(0x3e0).expect("contiguous");
        assert_eq!((five.value(0x3e0), five.value(0x60), five.value(0)), (255, 24, 0));
        assert_eq!(Channel::new(0xffc0_0000).expect("contiguous").value(0x8000_0000), 0x80);
        assert!(Channel::new(0x5).is_none() && Channel::new(0).is_none());
    }
}
