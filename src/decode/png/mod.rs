//! PNG through the `png` crate: the default image.
//!
//! - Only the pixels count: they are decoded from a copy that holds only the chunks they need. A file
//!   that ends right after its last row is complete; one with a wrong Adler-32 in its image data is not.
//! - 16-bit samples are reduced to their high byte.
//! - A transparent colour is compared with 8 bits of each sample, as in Pillow, and only if there is a
//!   background.

mod chunks;
mod metadata;

use std::io::Cursor;

use png::{ColorType, DecodeOptions, Decoder, DecodingError, Transformations};

use self::chunks::{GRAY, Png, TRUECOLOR};
use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, Request, damaged, rgb_bytes};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// Decode a PNG into `rgb`; `raw` holds its samples if they are not RGB.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let broken = |error: &str| damaged(format!("png: {error}"));
    let (width, height) = chunks::size(bytes).ok_or_else(|| broken("the header is cut short"))?;
    request.admit(ImageHeader { format: ImageFormat::Png, width, height })?;
    let image = chunks::read(bytes).map_err(broken)?;
    let orientation = request.orientation(|| {
        let metadata = metadata::read(bytes, &image);
        Orientation::from_metadata(metadata.exif.as_deref(), metadata.xmp.as_deref())
    });
    let plain = image.plain(request.background.is_some());
    unpack(plain, &image, request.background, raw, rgb).map_err(|error| broken(&reason(&error)))?;
    Ok(Decoded::whole(image.size, orientation))
}

/// The decoder's message, reworded if it contains Rust types.
fn reason(error: &DecodingError) -> String {
    let message = error.to_string();
    if message.ends_with("WrongChecksum") {
        "the compressed pixels do not match their checksum".into()
    } else if message.starts_with("Corrupt deflate stream") {
        "the compressed pixels are damaged or end early".into()
    } else if message.starts_with("Invalid color/depth combination") {
        "the header combines a colour type and a bit depth that PNG does not allow".into()
    } else {
        message
    }
}

/// Decode `plain`, the reduced copy of `image`.
fn unpack(
    plain: Vec<u8>,
    image: &Png,
    background: Option<[u8; 3]>,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<(), DecodingError> {
    let mut options = DecodeOptions::default();
    options.set_ignore_adler32(false);
    options.set_ignore_crc(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(plain), options);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info()?;
    let model = match reader.output_color_type().0 {
        ColorType::Grayscale => Model::Gray,
        ColorType::GrayscaleAlpha => Model::GrayAlpha,
        ColorType::Rgba => Model::Rgba,
        // the transformation expands palettes
        ColorType::Rgb | ColorType::Indexed => Model::Rgb,
    };
    let rgb = rgb.take(rgb_bytes(image.size));
    if model == Model::Rgb {
        reader.next_frame(rgb)?;
    } else {
        let samples = raw.take(rgb.len() / 3 * model.samples());
        reader.next_frame(samples)?;
        samples::to_rgb(samples, model, background, rgb);
    }
    if let (Some(background), Some(key)) = (background, transparent_color(image)) {
        let pixels = rgb.as_chunks_mut::<3>().0;
        pixels.iter_mut().filter(|pixel| **pixel == key).for_each(|pixel| *pixel = background);
    }
    Ok(())
}

/// The transparent colour, in RGB. 16-bit gray has none: Pillow's conversion to 8 bits loses it.
fn transparent_color(image: &Png) -> Option<[u8; 3]> {
    let key = image.transparency?;
    match (image.color, image.depth) {
        // bilevel: any value but 0 is white
        (GRAY, 1) => Some([if key.get(..2)? == [0, 0] { 0 } else { 255 }; 3]),
        (GRAY, 2..=8) => Some([*key.get(1)?; 3]),
        (TRUECOLOR, _) => Some([*key.get(1)?, *key.get(3)?, *key.get(5)?]),
        _ => None,
    }
}
