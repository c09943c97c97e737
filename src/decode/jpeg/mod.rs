//! JPEG through libjpeg-turbo.
//!
//! Input: a whole JPEG. Output: RGB, full size or DCT-scaled.
//!
//! - Pixels equal Pillow's bit for bit: accurate integer DCT, smooth chroma upsampling.
//! - Four components are assumed to be inverted, as in Pillow, with or without an Adobe segment.
//! - A truncated file is rejected if Pillow raises "image file is truncated", unless only the end
//!   marker is missing. Pillow accepts such a file if its decoder happens not to look for the marker;
//!   this decoder always accepts it. Other damage that libjpeg only warns about is decoded, as in Pillow.
//! - Samples must have 8 bits, and images 1, 3 or 4 components, as in Pillow.

mod markers;
pub(super) mod round_trip;
mod work;

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat, ScalingFactor};

use super::buffer::Buffer;
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// A new decompressor, for an image of at most `scans` scans. A reused one would keep quantization and Huffman tables,
/// so a damaged image would be decoded with the tables of the previous image. Creating one costs a few microseconds.
fn decompressor(scans: u32) -> Result<Decompressor, turbojpeg::Error> {
    let mut created = Decompressor::new()?;
    created.set_scan_limit(scans)?;
    Ok(created)
}

fn read_header(jpeg: &[u8]) -> Result<DecompressHeader, String> {
    decompressor(1).and_then(|mut decompressor| decompressor.read_header(jpeg)).map_err(message)
}

/// Decode `jpeg` into `rgb`; `raw` holds the samples where libjpeg does not convert to RGB.
pub(super) fn decode(
    jpeg: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let markers = markers::read(jpeg);
    match markers.frame {
        Some((8, 1 | 3 | 4)) | None => {}
        Some((8, components)) => {
            return Err(damaged(format!("jpeg: {components} colour components are not supported")));
        }
        Some((bits, _)) => return Err(damaged(format!("jpeg: samples of {bits} bits are not supported"))),
    }
    let clean;
    let (jpeg, header) = match read_header(jpeg) {
        Ok(header) => (jpeg, header),
        Err(warning) if is_warning(&warning) => {
            clean = markers::with_clean_header(jpeg);
            let header = read_header(&clean).map_err(damaged)?;
            (clean.as_slice(), header)
        }
        Err(error) => return Err(damaged(error)),
    };
    let size = (side(header.width)?, side(header.height)?);
    request.admit(ImageHeader { format: ImageFormat::Jpeg, width: size.0, height: size.1 })?;
    let work = work::estimate(jpeg);
    request.admit_work(work.nanoseconds)?;
    let orientation =
        request.orientation(|| Orientation::from_metadata(markers.exif.as_deref(), markers.xmp));

    let factor =
        scaling(&header, orientation.stored_window(request.window(size, orientation)).resized, request);
    let source = Source {
        jpeg,
        restarts: markers.restarts,
        several_scans: markers.several_scans,
        scans: work.scans.max(1),
        scaled: header.scaled(factor),
        factor,
    };
    let scaled = source.scaled;
    let pixels = scaled.width * scaled.height;
    match header.colorspace {
        Colorspace::CMYK | Colorspace::YCCK => {
            let inks = raw.take(pixels * 4);
            source.decompress(PixelFormat::CMYK, inks)?;
            samples::to_rgb(inks, Model::InvertedCmyk, None, rgb.take(pixels * 3));
        }
        // libjpeg does not convert the colours of a lossless image
        Colorspace::Gray if header.is_lossless => {
            let gray = raw.take(pixels);
            source.decompress(PixelFormat::GRAY, gray)?;
            samples::to_rgb(gray, Model::Gray, None, rgb.take(pixels * 3));
        }
        _ => source.decompress(PixelFormat::RGB, rgb.take(pixels * 3))?,
    }
    let part = |side: usize| side as f64 * factor.num() as f64 / factor.denom() as f64;
    Ok(Decoded {
        size: (side(scaled.width)?, side(scaled.height)?),
        extent: (part(header.width), part(header.height)),
        stored: size,
        orientation,
    })
}

fn side(length: usize) -> Result<u32, Rejected> {
    u32::try_from(length).map_err(|_| damaged("jpeg: side is out of range"))
}

/// The strongest reduction that leaves at least `target` pixels in both directions.
fn scaling(header: &DecompressHeader, target: (u32, u32), request: &Request) -> ScalingFactor {
    if !request.scaled_decode || header.is_lossless {
        return ScalingFactor::ONE;
    }
    let factors = [ScalingFactor::ONE_EIGHTH, ScalingFactor::ONE_QUARTER, ScalingFactor::ONE_HALF];
    let enough = |factor: &ScalingFactor| {
        let scaled = header.scaled(*factor);
        scaled.width >= target.0 as usize && scaled.height >= target.1 as usize
    };
    factors.into_iter().find(enough).unwrap_or(ScalingFactor::ONE)
}

/// A JPEG with its header, and the parameters to decode it with.
struct Source<'a> {
    jpeg: &'a [u8],
    restarts: bool,
    several_scans: bool,
    scans: u32,
    scaled: DecompressHeader,
    factor: ScalingFactor,
}

impl Source<'_> {
    fn run(&self, jpeg: &[u8], format: PixelFormat, output: &mut [u8]) -> Result<(), String> {
        let DecompressHeader { width, height, .. } = self.scaled;
        let image = Image { pixels: output, width, pitch: width * format.size(), height, format };
        let mut decompressor = decompressor(self.scans).map_err(message)?;
        decompressor.set_scaling_factor(self.factor).map_err(message)?;
        decompressor.decompress(jpeg, image).map_err(message)
    }

    /// Decompress, and distinguish harmless warnings from a truncated file.
    ///
    /// turbojpeg reports a warning as an error with the text of the *first* warning, although the
    /// decoder has written all pixels.
    fn decompress(&self, format: PixelFormat, output: &mut [u8]) -> Result<(), Rejected> {
        let Err(first) = self.run(self.jpeg, format, output) else { return Ok(()) };
        let cut_short = || damaged("jpeg: image is cut short");
        if first.starts_with(END_OF_FILE) {
            // Append an end marker and decode again. If nothing else is missing, libjpeg gives no warning, or
            // one about unused bytes before the marker. With restart markers or several scans, that second
            // warning can also mean missing data, so it does not count there.
            let ended = [self.jpeg, &[0xff, 0xd9]].concat();
            let is_whole = match self.run(&ended, format, output) {
                Ok(()) => true,
                Err(warning) => is_left_over(&warning) && !self.restarts && !self.several_scans,
            };
            let is_whole = is_whole && markers::has_all_scans(self.jpeg);
            return if is_whole { Ok(()) } else { Err(cut_short()) };
        }
        if !is_warning(&first) {
            return Err(damaged(first));
        }
        // Another warning came first and hides one about a premature end. Appended frame headers are a
        // fatal error for a decoder that reads past the end of the file.
        let trapped = [self.jpeg, &[0xff, 0xc0].repeat(TRAP_MARKERS)].concat();
        match self.run(&trapped, format, output) {
            Err(error) if !is_warning(&error) => Err(cut_short()),
            _ => Ok(()),
        }
    }
}

/// Frame markers appended to a damaged file: more bytes than the longest marker segment that the last
/// bytes of the file could begin.
const TRAP_MARKERS: usize = 33_000;

const END_OF_FILE: &str = "Premature end of JPEG file";

/// Prefixes of libjpeg's warnings (`JWRN_*` in its `jerror.h`). Every other message is an error.
const WARNINGS: [&str; 7] = [
    "Corrupt JPEG data: ",
    END_OF_FILE,
    "Inconsistent progression sequence",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision",
    "Invalid SOS parameters for sequential JPEG",
    "Application transferred too many scanlines",
];

fn is_warning(message: &str) -> bool {
    WARNINGS.iter().any(|warning| message.starts_with(warning))
}

/// Whether this is "Corrupt JPEG data: 1 extraneous bytes before marker 0xd9", with any number.
fn is_left_over(warning: &str) -> bool {
    warning.ends_with("extraneous bytes before marker 0xd9")
}

fn message(error: turbojpeg::Error) -> String {
    match error {
        turbojpeg::Error::TurboJpegError(message) if message.ends_with(JPEG_LS_MARKER) => {
            "jpeg: this is a JPEG-LS; convert it to JPEG, PNG or WebP".into()
        }
        turbojpeg::Error::TurboJpegError(message) => message,
        // libjpeg found no size: the file holds tables only, or ends before its frame header
        turbojpeg::Error::IntegerOverflow(_) => {
            "jpeg: there is no image, or it ends within its header".into()
        }
        other => other.to_string(),
    }
}

/// End of libjpeg's error for a JPEG-LS frame.
const JPEG_LS_MARKER: &str = "Unsupported marker type 0xf7";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_stops_at_a_scan_beyond_the_limit() {
        let jpeg = std::fs::read("fixtures/codecs/progressive.jpg").expect("a fixture");
        let decoded = |scans: u32| {
            let mut decompressor = decompressor(scans)?;
            let DecompressHeader { width, height, .. } = decompressor.read_header(&jpeg)?;
            let mut pixels = vec![0; width * height * 3];
            let image =
                Image { pixels: &mut pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
            decompressor.decompress(&jpeg, image)
        };
        let counted = work::estimate(&jpeg).scans;
        assert!(decoded(counted).is_ok());
        let message = message(decoded(counted - 1).expect_err("one scan too many"));
        assert!(message.contains("scan"), "{message}");
        assert!(!is_warning(&message));
    }
}
