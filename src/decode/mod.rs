//! Turns encoded bytes into tensor rows: decode, turn upright, resize, crop, normalise.
//!
//! Input: the bytes of one image. Output: its header and its pixels, or a [`Rejected`] with the
//! reason. The decoder itself has no threads and no queues; the [`stage`](run) around it does.
//!
//! - Pure: the result depends only on the bytes and the `[preprocess]` section, never on earlier
//!   uses of a [`Scratch`].
//! - Decoded and resized pixels equal those of Python's Pillow 12 (`convert("RGB")`, `ImageOps.exif_transpose`,
//!   `resize`) bit for bit. The tests compare them with `fixtures/codecs`.
//! - The size limit is checked against the header, before any memory is allocated for pixels. One
//!   image takes at most [`Decoder::MAX_BYTES_PER_PIXEL`] for each pixel of `max_pixels`.
//! - The work limit is checked before decoding, too: a codec that may visit its pixels more than once
//!   estimates the cost of the file, and `MAX_DECODE_SECONDS` is the limit. No clock is involved, so
//!   an image is refused on every machine or on none.
//! - A panic inside a codec rejects that image only.

mod bmp;
mod buffer;
mod geometry;
mod gif;
mod jpeg;
mod lzw;
mod orientation;
mod png;
mod request;
mod resample;
mod samples;
mod stage;
mod tensor;
mod tiff;
mod webp;

#[cfg(test)]
mod damage;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod scoring_version;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::buffer::Buffer;
use self::geometry::{Geometry, Placement};
use self::jpeg::round_trip::JpegRoundTrip;
use self::orientation::Orientation;
use self::request::{Decoded, Request, damaged, rgb_bytes};
use self::resample::{FirstPass, Resampler, Source};
#[cfg(test)]
pub(crate) use self::stage::PANICKING_ID;
pub use self::stage::{run, thread_pool};
use self::tensor::TensorWriter;
use crate::config::{self, Filter, PreprocessSection};
use crate::error::panic_message;
use crate::items::{ImageFormat, ImageHeader, PixelElement, Pixels, Rejected, Status};
use crate::sniff;

/// Turns encoded bytes into tensor rows; shared by all threads.
#[derive(Debug)]
pub struct Decoder {
    geometry: Geometry,
    writer: TensorWriter,
    filter: Filter,
    orientation: config::Orientation,
    background: Option<[u8; 3]>,
    scaled_decode: bool,
    jpeg_round_trip: Option<u8>,
    max_pixels: u64,
    max_image_bytes: u64,
}

/// Memory of one decode thread, reused for each image.
#[derive(Debug, Default)]
pub struct Scratch {
    resampler: Resampler,
    /// Samples as stored, unless they are 8-bit RGB.
    raw: Buffer,
    /// The decoded image.
    rgb: Buffer,
    /// The window of the resized image.
    resized: Buffer,
    /// The image after its EXIF orientation is applied.
    upright: Buffer,
    round_trip: JpegRoundTrip,
}

impl Decoder {
    /// Upper bound of the memory that decoding takes for each pixel of an image, without the tensor: 8 bytes of 16-bit
    /// RGBA samples and 3 of RGB, and as much again inside a codec.
    pub const MAX_BYTES_PER_PIXEL: u64 = 22;

    /// Upper bound of the memory that decoding takes regardless of the number of pixels: a TIFF tile,
    /// which may be larger than the image, the zstd window, and tables.
    pub const CODEC_BYTES: u64 = 24 << 20;

    /// A decoder for one pipeline. Images longer than `max_image_bytes` are rejected; `element` is the
    /// element type that the engine takes.
    pub fn new(preprocess: &PreprocessSection, max_image_bytes: u64, element: PixelElement) -> Self {
        let geometry = Geometry::new(preprocess);
        Self {
            geometry,
            writer: TensorWriter::new(preprocess, geometry.tensor, element),
            filter: preprocess.resize.filter,
            orientation: preprocess.orientation,
            background: preprocess.background,
            scaled_decode: preprocess.scaled_decode,
            jpeg_round_trip: preprocess.jpeg_round_trip,
            max_pixels: preprocess.max_pixels,
            max_image_bytes,
        }
    }

    /// Width and height of the tensor.
    pub fn tensor_size(&self) -> (u32, u32) {
        self.geometry.tensor
    }

    /// Decodes one image to its header and its tensor row.
    ///
    /// # Errors
    /// A [`Rejected`] with the reason, and with the header if it could be read.
    pub fn decode(&self, bytes: &[u8], scratch: &mut Scratch) -> Result<(ImageHeader, Pixels), Rejected> {
        if bytes.is_empty() {
            return Err(Rejected::new(Status::Empty, "image is zero bytes long"));
        }
        let length = bytes.len();
        if length as u64 > self.max_image_bytes {
            let error = format!("image is {length} bytes long, limit is {}", self.max_image_bytes);
            return Err(Rejected::new(Status::TooLarge, error));
        }
        let format = sniff::image_format(bytes).ok_or_else(|| damaged(sniff::refusal(bytes)))?;
        let mut request = Request {
            geometry: &self.geometry,
            orientation: self.orientation,
            background: self.background,
            scaled_decode: self.scaled_decode,
            max_pixels: self.max_pixels,
            header: None,
        };
        // a panic may leave a codec's state inconsistent, so the scratch is replaced
        let caught = catch_unwind(AssertUnwindSafe(|| self.decode_as(format, bytes, &mut request, scratch)));
        let result = caught.unwrap_or_else(|panic| {
            *scratch = Scratch::default();
            Err(damaged(format!("{} decoder panicked: {}", format.as_str(), panic_message(&*panic))))
        });
        match (result, request.header) {
            (Ok(pixels), Some(header)) => Ok((header, pixels)),
            (Ok(_), None) => unreachable!("every codec calls Request::admit before it decodes"),
            (Err(rejected), header) => Err(Rejected { header, ..rejected }),
        }
    }

    fn decode_as(
        &self,
        format: ImageFormat,
        bytes: &[u8],
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Result<Pixels, Rejected> {
        let Scratch { raw, rgb, .. } = &mut *scratch;
        let decoded = match format {
            ImageFormat::Jpeg => jpeg::decode(bytes, request, raw, rgb),
            ImageFormat::Png => png::decode(bytes, request, raw, rgb),
            ImageFormat::Webp => webp::decode(bytes, request, raw, rgb),
            ImageFormat::Gif => gif::decode(bytes, request, raw, rgb),
            ImageFormat::Bmp => bmp::decode(bytes, request, raw, rgb),
            ImageFormat::Tiff => tiff::decode(bytes, request, raw, rgb),
        }?;
        let pixels = self.finish(decoded, scratch);
        for buffer in [&mut scratch.raw, &mut scratch.rgb, &mut scratch.resized, &mut scratch.upright] {
            buffer.trim();
        }
        Ok(pixels)
    }

    /// Resize, turn upright, crop and normalise the image in `scratch.rgb`.
    fn finish(&self, decoded: Decoded, scratch: &mut Scratch) -> Pixels {
        let Scratch { resampler, rgb, resized, upright, round_trip, .. } = scratch;
        let Decoded { size, extent, stored, orientation } = decoded;
        let place = self.geometry.place(orientation.upright_size(stored));
        let kept_bytes = rgb_bytes(place.window.kept);
        let mut source = Source { pixels: rgb.written(rgb_bytes(size)), size, extent };

        if orientation == Orientation::UPRIGHT || !is_symmetric(self.filter) {
            if orientation != Orientation::UPRIGHT {
                let turned = upright.take(rgb_bytes(size));
                orientation.apply(source.pixels, size, turned);
                source = Source {
                    pixels: turned,
                    size: orientation.upright_size(size),
                    extent: if orientation.swaps_sides() { (extent.1, extent.0) } else { extent },
                };
            }
            let resized = resized.take(kept_bytes);
            resampler.resample(source, place.window, self.filter, FirstPass::Width, resized);
            return self.write(resized, place, round_trip);
        }
        // Turning the small image is cheaper and gives the same pixels: the filter is symmetric, and
        // the two passes are swapped if rows become columns.
        let window = orientation.stored_window(place.window);
        let first = if orientation.swaps_sides() { FirstPass::Height } else { FirstPass::Width };
        let resized = resized.take(kept_bytes);
        resampler.resample(source, window, self.filter, first, resized);
        let turned = upright.take(kept_bytes);
        orientation.apply(resized, window.kept, turned);
        self.write(turned, place, round_trip)
    }

    fn write(&self, rgb: &mut [u8], place: Placement, round_trip: &mut JpegRoundTrip) -> Pixels {
        if let Some(quality) = self.jpeg_round_trip {
            round_trip.apply(rgb, place.window.kept, quality);
        }
        self.writer.write(rgb, place)
    }
}

/// Whether filtering a mirrored image gives the mirrored result. Nearest and box do not give it if a source pixel lies
/// exactly on the edge between two resized pixels.
fn is_symmetric(filter: Filter) -> bool {
    !matches!(filter, Filter::Nearest | Filter::Box)
}
