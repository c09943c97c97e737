//! WebP through the `image-webp` crate: the first frame, placed on its canvas.
//!
//! - The first frame of an animation replaces the canvas below it, whatever its blending method, as in
//!   libwebp, which Pillow uses. The rest of the canvas is transparent black.
//! - The crate builds all code tables that a lossless bitstream defines, so [`prefix_codes`] computes
//!   their size first.
//! - The crate accepts some damaged lossy bitstreams, so [`lossy`] checks them first.

mod chunks;
mod lossy;
mod prefix_codes;

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, Request, damaged, rgb_bytes};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// Share of [`MAX_BYTES_PER_PIXEL`](super::Decoder::MAX_BYTES_PER_PIXEL) that lossless data may use for its code
/// tables. Pixels need less than the rest: 4 bytes in the decoder, 5 more for a lossy image, and 7 for samples and RGB.
const TABLE_BYTES_PER_PIXEL: u64 = 6;

/// Bytes of code tables that every image may have: enough for several hundred groups.
const MIN_TABLE_BYTES: u64 = 16 << 20;

/// Decode the first frame of a WebP into `rgb`; `raw` holds its samples if they cannot be decoded in place.
pub(super) fn decode(
    bytes: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let webp = chunks::read(bytes).map_err(|error| damaged(format!("webp: {error}")))?;
    request.admit(ImageHeader { format: ImageFormat::Webp, width: webp.canvas.0, height: webp.canvas.1 })?;
    let orientation = request.orientation(|| Orientation::from_metadata(webp.exif, webp.xmp));

    if let Some(data) = webp.frame.lossless_data() {
        let bytes = prefix_codes::table_bytes(data, webp.frame.size)
            .ok_or_else(|| damaged("webp: the codes of the lossless data are damaged"))?;
        let limit = (request.max_pixels * TABLE_BYTES_PER_PIXEL).max(MIN_TABLE_BYTES);
        if bytes > limit {
            let error = format!("webp: code tables may take {} MiB, limit is {}", bytes >> 20, limit >> 20);
            return Err(damaged(error));
        }
    }

    if let Some(data) = webp.frame.lossy_data() {
        lossy::check(data, webp.frame.size).map_err(|error| damaged(format!("webp: {error}")))?;
    }

    let broken = |error| match error {
        DecodingError::IoError(error) => damaged(format!("webp: {error}")),
        // outputs are compared between versions, so the prefix of the reason stays the same
        error => damaged(format!("webp: Format error decoding WebP: {error}")),
    };
    let still = webp.frame.still(webp.has_alpha);
    let mut decoder = WebPDecoder::new(Cursor::new(still)).map_err(broken)?;
    let size = decoder.dimensions();
    if size != webp.frame.size {
        return Err(damaged("webp: the chunks disagree about the size"));
    }
    let model = if decoder.has_alpha() { Model::Rgba } else { Model::Rgb };
    let canvas = rgb.take(rgb_bytes(webp.canvas));
    if model == Model::Rgb && size == webp.canvas {
        decoder.read_image(canvas).map_err(broken)?;
        return Ok(Decoded::whole(size, orientation));
    }
    let row_samples = size.0 as usize * model.samples();
    let samples = raw.take(row_samples * size.1 as usize);
    decoder.read_image(samples).map_err(broken)?;

    let background = request.background.filter(|_| webp.has_alpha);
    if size != webp.canvas {
        canvas.as_chunks_mut::<3>().0.fill(background.unwrap_or([0; 3]));
    }
    let rows = canvas.chunks_exact_mut(webp.canvas.0 as usize * 3).skip(webp.corner.1 as usize);
    let columns = webp.corner.0 as usize * 3..(webp.corner.0 + size.0) as usize * 3;
    for (samples, row) in samples.chunks_exact(row_samples).zip(rows) {
        samples::to_rgb(samples, model, background, &mut row[columns.clone()]);
    }
    Ok(Decoded::whole(webp.canvas, orientation))
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Scratch};
    use super::prefix_codes;
    use crate::items::{PixelElement, Status};

    #[test]
    fn a_lossless_image_is_refused_if_its_code_tables_take_too_much_memory() {
        let section = "resize = { width = 8, height = 8 }\nmax_pixels = 1000000";
        let decoder = Decoder::new(&toml::from_str(section).expect("section"), 1 << 20, PixelElement::U8);
        let refusal = |groups| {
            // an image of 64×64 pixels
            let header = [0x2f, 63, 0xc0, 0x0f, 0];
            let data = [&header[..], &prefix_codes::tests::with_groups(groups)].concat();
            let size = (data.len() as u32).to_le_bytes();
            let webp = [b"RIFF\0\0\0\0WEBPVP8L".as_slice(), &size, &data].concat();
            decoder.decode(&webp, &mut Scratch::default()).expect_err("must be refused")
        };
        let rejected = refusal(3000);
        assert_eq!(rejected.status, Status::DecodeError);
        assert_eq!(rejected.error, "webp: code tables may take 62 MiB, limit is 16");
        // fewer tables are within the limit, but the file ends before its pixels
        let rejected = refusal(700);
        assert!(rejected.error.contains("orrupt"), "{}", rejected.error);
    }
}
