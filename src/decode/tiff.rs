//! TIFF: the first image of the file.
//!
//! - Uncompressed, LZW, Deflate, PackBits and Group 4 fax; gray of 1 to 16 bits, RGB, RGBA and
//!   CMYK of 8 or 16 bits, in strips or tiles, chunky or planar.
//! - Not supported: palettes, JPEG in TIFF, floating point, CIE L*a*b*.

use std::io::Cursor;

use tiff::decoder::{Decoder, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, MAX_METADATA_BYTES, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// XMP packet; the crate has no name for it.
const XMP_TAG: Tag = Tag::Unknown(700);

/// Decode the first image of `bytes` into `rgb`, by way of its samples in `raw`.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let broken = |error: TiffError| damaged(format!("tiff: {error}"));
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(broken)?;
    let size = decoder.dimensions().map_err(broken)?;
    request.admit(ImageHeader { format: ImageFormat::Tiff, width: size.0, height: size.1 })?;
    let orientation = request.orientation(|| {
        let tag = decoder.find_tag_unsigned(Tag::Orientation).ok().flatten();
        tag.map(Orientation::from_tag).unwrap_or_else(|| {
            Orientation::from_metadata(None, decoder.get_tag_u8_vec(XMP_TAG).ok().as_deref())
        })
    });

    let color = decoder.colortype().map_err(broken)?;
    let unsupported = || damaged(format!("tiff: colour type {color:?} is not supported"));
    let (model, bits) = match color {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8 | 16)) => (Model::Gray, bits),
        ColorType::Multiband { bit_depth: bits @ (8 | 16), num_samples: 2 } => (Model::GrayAlpha, bits),
        ColorType::RGB(bits @ (8 | 16)) => (Model::Rgb, bits),
        ColorType::RGBA(bits @ (8 | 16)) => (Model::Rgba, bits),
        ColorType::CMYK(bits @ (8 | 16)) => (Model::Cmyk, bits),
        _ => return Err(unsupported()),
    };
    let layout = decoder.image_buffer_layout().map_err(broken)?;
    let (width, height) = (size.0 as usize, size.1 as usize);
    let pixels = width * height;
    let row_bytes = (width * model.samples() * usize::from(bits)).div_ceil(8);
    let planes = layout.planes.max(1);
    // chunky, or one plane for each sample: nothing else is arranged as the code below takes it
    let expected =
        if planes == 1 { row_bytes * height } else { pixels * model.samples() * usize::from(bits / 8) };
    if layout.complete_len != expected || (planes != 1 && planes != model.samples()) {
        return Err(unsupported());
    }
    let mut limits = Limits::default();
    limits.decoding_buffer_size = expected;
    limits.intermediate_buffer_size = expected + MAX_METADATA_BYTES.get() as usize;
    let mut decoder = decoder.with_limits(limits);
    let stored = raw.take(expected);
    decoder.read_image_bytes(stored).map_err(broken)?;

    let rgb = rgb.take(pixels * 3);
    if bits == 16 {
        samples::narrow(stored);
    }
    if bits < 8 {
        expand_gray(stored, row_bytes, bits, width, rgb);
    } else if planes == 1 {
        samples::to_rgb(&stored[..pixels * model.samples()], model, request.background, rgb);
    } else {
        let chunky = interleave(&stored[..pixels * planes], planes);
        samples::to_rgb(&chunky, model, request.background, rgb);
    }
    Ok(Decoded::whole(size, orientation))
}

/// Samples of `bits` < 8 bits, rows padded to whole bytes, to RGB over the full range.
fn expand_gray(packed: &[u8], row_bytes: usize, bits: u8, width: usize, rgb: &mut [u8]) {
    let bits = usize::from(bits);
    let largest = (1_u8 << bits) - 1;
    for (row, out) in packed.chunks_exact(row_bytes).zip(rgb.chunks_exact_mut(width * 3)) {
        for (index, pixel) in out.chunks_exact_mut(3).enumerate() {
            let at = index * bits;
            let sample = row[at / 8] >> (8 - bits - at % 8) & largest;
            pixel.fill(sample * (255 / largest));
        }
    }
}

/// One plane after the other to one pixel after the other.
fn interleave(planar: &[u8], planes: usize) -> Vec<u8> {
    let pixels = planar.len() / planes;
    (0..pixels).flat_map(|pixel| (0..planes).map(move |plane| planar[plane * pixels + pixel])).collect()
}
