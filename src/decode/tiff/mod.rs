//! TIFF: the first image of the file.
//!
//! ```text
//! Directory ─ Layout ─→ Segments ─ one strip or tile at a time ─→ Rows ─→ RGB
//! ```
//!
//! - Pixels equal Pillow's. Supported are gray of 1, 2, 4, 8 and 16 bits, palettes of up to 8 bits,
//!   RGB and CMYK of 8 and 16 bits, and YCbCr inside JPEG; associated and unassociated alpha, and
//!   extra samples without a meaning; strips or tiles, chunky or planar; uncompressed, LZW, Deflate,
//!   PackBits, CCITT fax, JPEG and zstd data.
//! - Memory in addition to the RGB image: one strip or tile, which may have no more pixels than an
//!   image.
//! - Work is linear in the pixels and the file size. Pixels of a tile outside the image count as
//!   pixels, and bytes that several strips or tiles share count each time they are read.
//! - The orientation is always applied, even if the pipeline ignores EXIF: the tag is part of TIFF
//!   itself, and Pillow applies it when it loads a TIFF.
//! - Files that Pillow rejects are rejected, and also CIE L*a*b*, uncompressed YCbCr, LZMA,
//!   old-style JPEG, and floating-point, signed and 32-bit samples, which Pillow clips to wrong
//!   values.
//! - A raw camera file is rejected: the image that a TIFF reader finds in it is a thumbnail.

mod compression;
mod directory;
mod fax;
mod jpeg;
mod layout;
mod rows;
mod segments;
mod tag;

#[cfg(test)]
mod bombs;
#[cfg(test)]
mod damage;

use self::directory::Directory;
use self::layout::Layout;
use self::rows::Rows;
use self::segments::Segments;
use super::buffer::Buffer;
use super::orientation::Orientation;
use super::{Decoded, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected, Status};

/// Pixels that a strip or tile may have even if `max_pixels` is lower: common software writes tiles
/// of up to 1,024×1,024 pixels.
const ALLOWED_SEGMENT_PIXELS: u64 = 1 << 20;

/// Limit of the pixels of all tiles, padding included, as a multiple of the pixels an image may have.
const ALLOWED_PADDING: u64 = 2;

/// Limit of the strips or tiles of an image: enough for 100 megapixels in tiles of 32×32 pixels, or
/// for the rows of a long scan. Each strip or tile costs a restart of the decoder.
const MAX_SEGMENTS: u64 = 1 << 18;

/// Decode the first image of `bytes` into `rgb`; `raw` holds one strip or tile at a time.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let broken = |error: String| damaged(format!("tiff: {error}"));
    let directory = Directory::first(bytes).map_err(broken)?;
    let side = |tag, name: &str| {
        let length = directory.number(tag).map_err(broken)?;
        let length = length.ok_or_else(|| damaged(format!("tiff: {name} is missing")))?;
        // a value beyond u32 is rejected as too large
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    };
    let size = (side(tag::IMAGE_WIDTH, "the width")?, side(tag::IMAGE_LENGTH, "the height")?);
    request.admit(ImageHeader { format: ImageFormat::Tiff, width: size.0, height: size.1 })?;
    if let Some(kind) = raw_camera_file(&directory) {
        return Err(damaged(format!("tiff: {kind}; convert it to JPEG, PNG or WebP")));
    }

    let layout = Layout::read(&directory, size).map_err(broken)?;
    admit(&layout, request.max_pixels)?;
    let mut rows = Rows::new(&directory, &layout, request.background).map_err(broken)?;
    let mut segments = Segments::new(bytes, &directory, &layout).map_err(broken)?;
    let rgb = rgb.take(layout.width * layout.height * 3);
    let stored = raw.take(layout.buffer_bytes());
    for part in layout.parts() {
        for plane in 0..layout.planes_read {
            let at = layout.plane_bytes() * plane;
            let output = &mut stored[at..at + layout.plane_bytes()];
            segments.decode(layout.segment_index(part, plane), part, output).map_err(broken)?;
        }
        for row in 0..part.height {
            let start = ((part.top + row) * layout.width + part.left) * 3;
            rows.convert(stored, row, part.width, &mut rgb[start..start + part.width * 3]);
        }
    }
    Ok(Decoded::whole(size, orientation(&directory)))
}

/// Reject strips and tiles that take far more memory or time than the pixels of the image need.
fn admit(layout: &Layout, max_pixels: u64) -> Result<(), Rejected> {
    let limit = max_pixels.max(ALLOWED_SEGMENT_PIXELS);
    let (width, height) = (layout.segment_width as u64, layout.segment_height as u64);
    let name = if layout.tiled { "tile" } else { "strip" };
    let refused = |error| Err(Rejected::new(Status::TooLarge, error));
    if width.saturating_mul(height) > limit {
        return refused(format!("{name} is {width}×{height} pixels, limit is {limit} pixels"));
    }
    let across = layout.across as u64 * width;
    if across.saturating_mul(layout.height as u64) > limit * ALLOWED_PADDING {
        return refused(format!(
            "image is {}×{} pixels in tiles that are {across} pixels wide together",
            layout.width, layout.height
        ));
    }
    let segments = layout.across as u64 * layout.down as u64 * layout.planes_read as u64;
    if segments > MAX_SEGMENTS {
        return refused(format!("image is cut into {segments} {name}s, limit is {MAX_SEGMENTS}"));
    }
    Ok(())
}

fn orientation(directory: &Directory) -> Orientation {
    match directory.metadata_value(tag::ORIENTATION) {
        Some(value) => Orientation::from_tag(value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0)),
        None => Orientation::from_metadata(None, directory.bytes(tag::XMP).ok().flatten()),
    }
}

/// The kind of raw camera file, if the file is one: a TIFF whose first image is a small preview.
fn raw_camera_file(directory: &Directory) -> Option<&'static str> {
    if directory.has(tag::DNG_VERSION) {
        return Some("it is a raw camera file (DNG)");
    }
    let is_reduced = directory.metadata_number(tag::NEW_SUBFILE_TYPE).is_some_and(|kind| kind & 1 != 0);
    (is_reduced && directory.has(tag::SUB_IFDS))
        .then_some("its first image is only the preview of another, as in a raw camera file (NEF, ARW)")
}
