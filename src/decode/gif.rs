//! GIF: the first frame on its canvas.
//!
//! - As Pillow: the canvas grows to hold the frame; what the frame leaves free has the transparent
//!   colour, else colour 0; a colour index past the palette is a gray.

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::{Decoded, MAX_METADATA_BYTES, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// Decode the first frame of `bytes` into `rgb`, by way of colour indices in `raw`.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let broken = |error: gif::DecodingError| damaged(format!("gif: {error}"));
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // pixels go to our own buffer, whatever else is stored here is metadata
    options.set_memory_limit(MemoryLimit::Bytes(MAX_METADATA_BYTES));
    let mut decoder = options.read_info(bytes).map_err(broken)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(broken)?.ok_or_else(|| damaged("gif: holds no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let size = (screen.0.max((left + frame_width) as u32), screen.1.max((top + frame_height) as u32));
    request.admit(ImageHeader { format: ImageFormat::Gif, width: size.0, height: size.1 })?;

    // gray until the palette says otherwise
    let mut colors: [[u8; 3]; 256] = std::array::from_fn(|index| [index as u8; 3]);
    let palette = decoder.palette().map_err(broken)?;
    for (color, entry) in colors.iter_mut().zip(palette.chunks_exact(3)) {
        color.copy_from_slice(entry);
    }
    if let (Some(index), Some(background)) = (transparent, request.background) {
        colors[usize::from(index)] = background;
    }

    let indices = raw.take(frame_width * frame_height);
    if !indices.is_empty() {
        decoder.read_into_buffer(indices).map_err(broken)?;
    }
    let (width, height) = (size.0 as usize, size.1 as usize);
    let rgb = rgb.take(width * height * 3);
    if (frame_width, frame_height) != (width, height) {
        let free = colors[usize::from(transparent.unwrap_or(0))];
        rgb.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&free));
    }
    let rows = rgb.chunks_exact_mut(width * 3).skip(top);
    for (row, indices) in rows.zip(indices.chunks_exact(frame_width.max(1))) {
        let inside = row[left * 3..].chunks_exact_mut(3);
        for (pixel, &index) in inside.zip(indices) {
            pixel.copy_from_slice(&colors[usize::from(index)]);
        }
    }
    Ok(Decoded::whole(size, Orientation::UPRIGHT))
}
