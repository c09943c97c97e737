//! The request to a codec, and its report about the pixels that it has written.
//!
//! - A codec calls [`Request::admit`] with the header before it allocates memory for pixels, and
//!   [`Request::admit_work`] before it decodes what may take long.

use super::geometry::{Geometry, Window};
use super::orientation::Orientation;
use crate::config;
use crate::items::{ImageHeader, Rejected, Status};

/// Longest side of an image, in pixels: far beyond any camera or scanner. It keeps the memory that
/// resizing takes for each pixel of a side (weights, a few rows) below 100 MB.
pub(super) const MAX_SIDE: u32 = 1 << 20;

/// CPU time that one image may take, decoding and resizing together. Estimates assume a core of 2020
/// and the worst content that the headers allow, so ordinary images stay far below the limit.
pub(super) const MAX_DECODE_SECONDS: u64 = 20;

/// The pipeline's settings for a codec, and the header that the codec reports back.
pub(super) struct Request<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) orientation: config::Orientation,
    pub(super) background: Option<[u8; 3]>,
    pub(super) scaled_decode: bool,
    pub(super) max_pixels: u64,
    pub(super) header: Option<ImageHeader>,
}

/// Describes the RGB pixels that a codec has written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoded {
    /// Width and height of the written image.
    pub(super) size: (u32, u32),
    /// Exact width and height before rounding up to `size`; they differ after a scaled decode only.
    pub(super) extent: (f64, f64),
    /// Width and height of the image in the file.
    pub(super) stored: (u32, u32),
    pub(super) orientation: Orientation,
}

impl Decoded {
    /// The image at its full stored size.
    pub(super) fn whole(size: (u32, u32), orientation: Orientation) -> Self {
        Self { size, extent: (f64::from(size.0), f64::from(size.1)), stored: size, orientation }
    }
}

impl Request<'_> {
    /// Record the header, and reject the image if its size is beyond a limit.
    pub(super) fn admit(&mut self, header: ImageHeader) -> Result<(), Rejected> {
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

    /// Reject an image whose decoding may take more than [`MAX_DECODE_SECONDS`] of CPU time. The limit
    /// grows with `max_pixels` above its default.
    pub(super) fn admit_work(&self, nanoseconds: u64) -> Result<(), Rejected> {
        let scaled = self.max_pixels.saturating_mul(MAX_DECODE_SECONDS) / config::DEFAULT_MAX_PIXELS;
        let limit = scaled.max(MAX_DECODE_SECONDS);
        let seconds = nanoseconds / 1_000_000_000;
        if seconds < limit {
            return Ok(());
        }
        let error = format!("image may take {seconds} s of a core to decode, limit is {limit}");
        Err(Rejected::new(Status::TooLarge, error))
    }

    /// The orientation to apply; `read` is called only if the pipeline applies EXIF orientation.
    pub(super) fn orientation(&self, read: impl FnOnce() -> Orientation) -> Orientation {
        match self.orientation {
            config::Orientation::Apply => read(),
            config::Orientation::Ignore => Orientation::UPRIGHT,
        }
    }

    /// The window, in upright coordinates, that the tensor needs of an image of `stored` pixels.
    pub(super) fn window(&self, stored: (u32, u32), orientation: Orientation) -> Window {
        self.geometry.place(orientation.upright_size(stored)).window
    }
}

pub(super) fn rgb_bytes((width, height): (u32, u32)) -> usize {
    width as usize * height as usize * 3
}

pub(super) fn damaged(error: impl Into<String>) -> Rejected {
    Rejected::new(Status::DecodeError, error)
}
