//! GIF: the first frame on its canvas.
//!
//! - As in Pillow, the canvas grows to hold the frame; the area outside the frame has the transparent
//!   colour, else colour 0. A colour index past the palette is black. Without a palette, or with one
//!   that is the grays from 0 up, an index is a gray.
//! - Nothing after the last pixel is read: the end code and the trailer may be missing.
//! - Work is linear in the bytes of the file and the pixels of the frame.

use super::buffer::Buffer;
use super::lzw::{Dialect, Ending, Lzw};
use super::orientation::Orientation;
use super::{Decoded, Request, damaged, samples};
use crate::items::{ImageFormat, ImageHeader, Rejected};

const EXTENSION: u8 = b'!';
const IMAGE: u8 = b',';
const TRAILER: u8 = b';';
const GRAPHIC_CONTROL: u8 = 0xf9;

/// Largest LZW minimum code size: codes of wider data do not fit the table.
const MAX_DATA_BITS: u8 = 12;

/// Decode the first frame of `bytes` into `rgb`; `raw` holds its colour indices.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let Some(Frame { screen, corner, extent, interlaced, palette, transparent, data_bits, data }) =
        first_frame(bytes)
    else {
        return Err(damaged("gif: holds no frame"));
    };
    let (left, top) = (usize::from(corner.0), usize::from(corner.1));
    let (frame_width, frame_height) = (usize::from(extent.0), usize::from(extent.1));
    let size = (
        u32::from(screen.0).max((left + frame_width) as u32),
        u32::from(screen.1).max((top + frame_height) as u32),
    );
    request.admit(ImageHeader { format: ImageFormat::Gif, width: size.0, height: size.1 })?;
    if frame_width == 0 || frame_height == 0 {
        return Err(damaged("gif: the first frame has no pixels"));
    }
    if data_bits > MAX_DATA_BITS {
        return Err(damaged(format!("gif: data of {data_bits} bits, limit is {MAX_DATA_BITS}")));
    }

    let mut colors = colors_of(palette);
    if let (Some(index), Some(background)) = (transparent, request.background) {
        colors[usize::from(index)] = background;
    }
    let indices = raw.take(frame_width * frame_height);
    let (written, ending) =
        Lzw::new(Dialect::Gif).decode(u32::from(data_bits), &mut SubBlocks::new(data), indices);
    match ending {
        Ending::Full => {}
        Ending::BadCode => return Err(damaged("gif: the pixels are damaged")),
        Ending::EndCode | Ending::OutOfData => {
            let pixels = indices.len();
            return Err(damaged(format!("gif: {written} of {pixels} pixels are there")));
        }
    }

    let (width, height) = (size.0 as usize, size.1 as usize);
    let rgb = rgb.take(width * height * 3);
    if (frame_width, frame_height) != (width, height) {
        let fill = colors[usize::from(transparent.unwrap_or(0))];
        rgb.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&fill));
    }
    let rows = rows_in_order(frame_height, interlaced);
    for (row, indices) in rows.zip(indices.chunks_exact(frame_width)) {
        let start = ((top + row) * width + left) * 3;
        samples::look_up(indices, &colors, &mut rgb[start..start + frame_width * 3]);
    }
    Ok(Decoded::whole(size, Orientation::UPRIGHT))
}

/// The first frame as stored.
struct Frame<'a> {
    screen: (u16, u16),
    /// Position of its top left corner on the screen.
    corner: (u16, u16),
    extent: (u16, u16),
    interlaced: bool,
    /// The local palette, else the global one.
    palette: &'a [u8],
    transparent: Option<u8>,
    /// LZW minimum code size.
    data_bits: u8,
    /// Sub-blocks of LZW codes, and the rest of the file.
    data: &'a [u8],
}

/// Read up to the data of the first frame. A byte that begins no block is skipped, as in Pillow.
fn first_frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let mut rest = Reader(bytes.get(6..)?);
    let screen = (rest.u16()?, rest.u16()?);
    let flags = rest.u8()?;
    // background colour, aspect ratio
    rest.take(2)?;
    let mut palette: &[u8] = &[];
    if flags & 0x80 != 0 {
        palette = rest.take(palette_bytes(flags))?;
    }
    let mut transparent = None;
    loop {
        match rest.u8()? {
            TRAILER => return None,
            EXTENSION => {
                let label = rest.u8()?;
                let mut block = rest.sub_block()?;
                if label == GRAPHIC_CONTROL && block.first().is_some_and(|flags| flags & 1 != 0) {
                    transparent = Some(*block.get(3)?);
                }
                while !block.is_empty() {
                    block = rest.sub_block()?;
                }
            }
            IMAGE => {
                let corner = (rest.u16()?, rest.u16()?);
                let extent = (rest.u16()?, rest.u16()?);
                let flags = rest.u8()?;
                if flags & 0x80 != 0 {
                    palette = rest.take(palette_bytes(flags))?;
                }
                let interlaced = flags & 0x40 != 0;
                let data_bits = rest.u8()?;
                let data = rest.0;
                return Some(Frame {
                    screen,
                    corner,
                    extent,
                    interlaced,
                    palette,
                    transparent,
                    data_bits,
                    data,
                });
            }
            _ => {}
        }
    }
}

/// Three bytes for each of 2 to 256 colours.
fn palette_bytes(flags: u8) -> usize {
    3 << ((flags & 7) + 1)
}

fn colors_of(palette: &[u8]) -> [[u8; 3]; 256] {
    let grays: [[u8; 3]; 256] = std::array::from_fn(|index| [index as u8; 3]);
    if palette.chunks_exact(3).zip(&grays).all(|(color, gray)| color == gray) {
        return grays;
    }
    let mut colors = [[0; 3]; 256];
    for (color, entry) in colors.iter_mut().zip(palette.chunks_exact(3)) {
        color.copy_from_slice(entry);
    }
    colors
}

/// Row numbers in the order in which rows are stored.
fn rows_in_order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..height).step_by(step))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// The next sub-block; an empty one ends the sequence.
    fn sub_block(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }
}

/// Iterates over the bytes of a sequence of sub-blocks, which may be truncated.
struct SubBlocks<'a> {
    block: std::slice::Iter<'a, u8>,
    rest: &'a [u8],
}

impl<'a> SubBlocks<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { block: [].iter(), rest }
    }
}

impl Iterator for SubBlocks<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if let Some(&byte) = self.block.next() {
            return Some(byte);
        }
        let (&length, rest) = self.rest.split_first()?;
        let (block, rest) = rest.split_at(usize::from(length).min(rest.len()));
        self.block = block.iter();
        self.rest = if length == 0 { &[] } else { rest };
        self.block.next().copied()
    }
}
