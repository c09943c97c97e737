//! Encoded bytes to tensor rows: decode, turn upright, resize, crop, normalise.
//!
//! Comes in: the bytes of one image. Goes out: its header and its pixels, or a [`Rejected`] that
//! says why there are none. No threads and no queues here; the stage around this brings them.
//!
//! - Pure: the result depends on the bytes and the `[preprocess]` section only, never on what a
//!   [`Scratch`] was used for before.
//! - Pixels are those of Python's Pillow 12 (`convert("RGB")`, `ImageOps.exif_transpose`,
//!   `resize`): to the bit, decoded and resized. `fixtures/codecs` holds the proof.
//! - Sizes are judged by the header, before memory is taken for pixels. The most that one image
//!   can take is [`Decoder::MAX_BYTES_PER_PIXEL`] for each pixel of `max_pixels`.
//! - So is work: a codec that may look at its pixels more than once estimates what the file asks for
//!   before it begins, and `MAX_DECODE_SECONDS` is the limit. Never by a clock: an image is refused
//!   on every machine or on none.
//! - A panic inside a codec is that image's failure.

mod bmp;
mod buffer;
mod geometry;
mod gif;
mod jpeg;
mod lzw;
mod orientation;
mod png;
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
use self::geometry::{Geometry, Placement, Window};
use self::jpeg::round_trip::JpegRoundTrip;
use self::orientation::Orientation;
use self::resample::{FirstPass, Resampler, Source};
pub use self::stage::{Ending, run, thread_pool};
use self::tensor::TensorWriter;
use crate::config::{self, Filter, PreprocessSection};
use crate::error::panic_message;
use crate::items::{ImageFormat, ImageHeader, PixelElement, Pixels, Rejected, Status};
use crate::sniff;

/// Longest side of an image, in pixels: far beyond any camera's or scanner's. What resizing keeps
/// for each pixel of a side (weights, a few rows) stays below 100 MB with it.
const MAX_SIDE: u32 = 1 << 20;

/// What one image may take of one core, decoding and resizing together. Estimates are made for a core
/// of 2020 and for the worst content that the headers allow, so that an ordinary image stays far below.
const MAX_DECODE_SECONDS: u64 = 20;

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

/// Memory of one thread, used again for each image.
#[derive(Debug, Default)]
pub struct Scratch {
    resampler: Resampler,
    /// Samples as stored, where they are not RGB of 8 bits.
    raw: Buffer,
    /// The decoded image.
    rgb: Buffer,
    /// The window of the resized image.
    resized: Buffer,
    /// An image turned upright.
    upright: Buffer,
    round_trip: JpegRoundTrip,
}

/// What a codec is asked for, and where it notes what it has learned.
struct Request<'a> {
    geometry: &'a Geometry,
    orientation: config::Orientation,
    background: Option<[u8; 3]>,
    scaled_decode: bool,
    max_pixels: u64,
    header: Option<ImageHeader>,
}

/// What a codec says of the RGB pixels it has written.
#[derive(Debug, Clone, Copy)]
struct Decoded {
    /// Pixels written.
    size: (u32, u32),
    /// Width and height they stand for; less than `size` by a fraction after a scaled decode.
    extent: (f64, f64),
    /// Pixels stored in the file.
    stored: (u32, u32),
    orientation: Orientation,
}

impl Decoded {
    /// All pixels that are stored.
    fn whole(size: (u32, u32), orientation: Orientation) -> Self {
        Self { size, extent: (f64::from(size.0), f64::from(size.1)), stored: size, orientation }
    }
}

impl Request<'_> {
    /// Take note of the header, and refuse an image by it.
    fn admit(&mut self, header: ImageHeader) -> Result<(), Rejected> {
        self.header = Some(header);
        let ImageHeader { width, height, .. } = header;
        if width == 0 || height == 0 {
            return Err(damaged(format!("image is {width}×{height} pixels, a side is zero")));
        }
        if width.max(height) > MAX_SIDE {
            let error = format!("image is {width}×{height} pixels, limit is {MAX_SIDE} on a side");
            return Err(Rejected::new(Status::TooLarge, error));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            let limit = match self.max_pixels {
                pixels if pixels % 1_000_000 == 0 => format!("{} megapixels", pixels / 1_000_000),
                pixels => format!("{pixels} pixels"),
            };
            let error = format!("image is {width}×{height} pixels, limit is {limit}");
            return Err(Rejected::new(Status::TooLarge, error));
        }
        Ok(())
    }

    /// Refuse an image that may keep a core busy for more than [`MAX_DECODE_SECONDS`], or for more by as
    /// much as `max_pixels` is above its default.
    fn admit_work(&self, nanoseconds: u64) -> Result<(), Rejected> {
        let scaled = self.max_pixels.saturating_mul(MAX_DECODE_SECONDS) / config::DEFAULT_MAX_PIXELS;
        let limit = scaled.max(MAX_DECODE_SECONDS);
        let seconds = nanoseconds / 1_000_000_000;
        if seconds < limit {
            return Ok(());
        }
        let error = format!("image may take {seconds} s of a core to decode, limit is {limit}");
        Err(Rejected::new(Status::TooLarge, error))
    }

    /// The orientation to apply; `read` is only called where one is wanted.
    fn orientation(&self, read: impl FnOnce() -> Orientation) -> Orientation {
        match self.orientation {
            config::Orientation::Apply => read(),
            config::Orientation::Ignore => Orientation::UPRIGHT,
        }
    }

    /// The window wanted of an image of `stored` pixels, upright.
    fn window(&self, stored: (u32, u32), orientation: Orientation) -> Window {
        self.geometry.place(orientation.upright_size(stored)).window
    }
}

impl Decoder {
    /// Upper bound of what decoding takes for each pixel of an image, beside the tensor: 8 bytes
    /// of 16-bit RGBA samples and 3 of RGB, and as much again inside a codec.
    pub const MAX_BYTES_PER_PIXEL: u64 = 22;

    /// What decoding takes besides, however few pixels an image may have: a tile of a TIFF, which may
    /// be larger than the image, the window of zstd data, tables.
    pub const CODEC_BYTES: u64 = 24 << 20;

    /// A decoder for one pipeline. Images of more than `max_image_bytes` are refused; `element`
    /// is what the engine takes.
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

    /// Header and tensor row of one encoded image. A refused image carries its header as far as
    /// one was read.
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
        // A panic may leave a codec's state half changed, so the scratch is not used again.
        let caught = catch_unwind(AssertUnwindSafe(|| self.decode_as(format, bytes, &mut request, scratch)));
        let result = caught.unwrap_or_else(|panic| {
            *scratch = Scratch::default();
            Err(damaged(format!("{} decoder panicked: {}", format.as_str(), panic_message(&*panic))))
        });
        match (result, request.header) {
            (Ok(pixels), Some(header)) => Ok((header, pixels)),
            (Ok(_), None) => unreachable!("every codec has its header admitted first"),
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

    /// Resize, turn upright, crop and normalise what lies in `scratch.rgb`.
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
        // Turning the small image is cheaper, and the same: the filter is symmetric, and the
        // passes change places where rows become columns.
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

/// Whether a filter gives a mirrored image the mirrored result. Nearest and box do not where a
/// source pixel lies exactly on the edge between two resized ones.
fn is_symmetric(filter: Filter) -> bool {
    !matches!(filter, Filter::Nearest | Filter::Box)
}

fn rgb_bytes((width, height): (u32, u32)) -> usize {
    width as usize * height as usize * 3
}

fn damaged(error: impl Into<String>) -> Rejected {
    Rejected::new(Status::DecodeError, error)
}
