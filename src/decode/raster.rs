//! BMP through the `image` crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::error::{ImageError, LimitErrorKind};
use image::{ColorType, ImageDecoder};

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, MAX_METADATA_BYTES, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// Decode a BMP into `rgb`, by way of its samples in `raw`.
pub(super) fn decode_bmp(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|error| refused("bmp", error))?;
    let (width, height) = decoder.dimensions();
    request.admit(ImageHeader { format: ImageFormat::Bmp, width, height })?;
    read("bmp", decoder, Orientation::UPRIGHT, request, raw, rgb)
}

/// The common end: samples, then RGB.
fn read(
    format: &str,
    decoder: impl ImageDecoder,
    orientation: Orientation,
    request: &Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let size = decoder.dimensions();
    let pixels = size.0 as usize * size.1 as usize;
    let (model, wide) = match decoder.color_type() {
        ColorType::L8 => (Model::Gray, false),
        ColorType::La8 => (Model::GrayAlpha, false),
        ColorType::Rgb8 => (Model::Rgb, false),
        ColorType::Rgba8 => (Model::Rgba, false),
        ColorType::L16 => (Model::Gray, true),
        ColorType::La16 => (Model::GrayAlpha, true),
        ColorType::Rgb16 => (Model::Rgb, true),
        ColorType::Rgba16 => (Model::Rgba, true),
        other => return Err(damaged(format!("{format}: colour type {other:?} is not supported"))),
    };
    let broken = |error| refused(format, error);
    let rgb = rgb.take(pixels * 3);
    if (model, wide) == (Model::Rgb, false) {
        decoder.read_image(rgb).map_err(broken)?;
        return Ok(Decoded::whole(size, orientation));
    }
    let samples = pixels * model.samples();
    let stored = raw.take(if wide { samples * 2 } else { samples });
    decoder.read_image(stored).map_err(broken)?;
    if wide {
        samples::narrow(stored);
    }
    samples::to_rgb(&stored[..samples], model, request.background, rgb);
    Ok(Decoded::whole(size, orientation))
}

fn refused(format: &str, error: ImageError) -> Rejected {
    let limit = MAX_METADATA_BYTES.get() >> 20;
    match error {
        ImageError::Limits(limits) if matches!(limits.kind(), LimitErrorKind::InsufficientMemory) => {
            damaged(format!("{format}: metadata needs more than {limit} MiB"))
        }
        other => damaged(format!("{format}: {other}")),
    }
}
