//! JPEG through libjpeg-turbo.
//!
//! Comes in: a whole JPEG. Goes out: RGB, full size or DCT-scaled.
//!
//! - Pixels equal Pillow's to the bit: accurate integer DCT, smooth chroma upsampling.
//! - Four components are taken to be inverted, as Pillow takes them, with or without Adobe's marker.
//! - A file that ends too early is rejected where Pillow raises "image file is truncated". Where
//!   nothing but the end marker is missing Pillow is lenient if it happens not to need it; so are
//!   we, but not with restart markers. Other damage that libjpeg only warns about is decoded, as
//!   Pillow decodes it.

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat, ScalingFactor};

use super::buffer::Buffer;
use super::jpeg_markers::{self, Markers};
use super::orientation::Orientation;
use super::samples::{self, Model};
use super::{Decoded, Request, damaged};
use crate::items::{ImageFormat, ImageHeader, Rejected};

/// Scans that any progressive JPEG may have. Encoders write about 10; each one is a pass over all
/// coefficients, so a small file of thousands of empty scans would keep a thread busy for minutes.
const MAX_SCANS: u64 = 500;

/// Pixels times scans of a large one, some seconds' work.
const MAX_SCANNED_PIXELS: u64 = 3_000_000_000;

/// Scans that the largest one may have: libjpeg's own script for four components has 18.
const FEWEST_SCANS: u64 = 20;

fn scan_limit(pixels: usize) -> u32 {
    (MAX_SCANNED_PIXELS / (pixels as u64).max(1)).clamp(FEWEST_SCANS, MAX_SCANS) as u32
}

/// A decompressor that has seen no image, for one of so many pixels. libjpeg keeps quantization and Huffman tables from one
/// image to the next, so a damaged one would be decoded by the tables of whichever came before it.
/// A new decompressor costs some microseconds.
fn decompressor(pixels: usize) -> Result<Decompressor, turbojpeg::Error> {
    let mut created = Decompressor::new()?;
    created.set_scan_limit(scan_limit(pixels))?;
    Ok(created)
}

fn read_header(jpeg: &[u8]) -> Result<DecompressHeader, String> {
    decompressor(0).and_then(|mut decompressor| decompressor.read_header(jpeg)).map_err(message)
}

/// Decode `jpeg` into `rgb`, by way of `raw` where it has four components.
pub(super) fn decode(
    jpeg: &[u8],
    request: &mut Request,
    raw: &mut Buffer,
    rgb: &mut Buffer,
) -> Result<Decoded, Rejected> {
    let markers = jpeg_markers::read(jpeg);
    let tidy;
    let (jpeg, header) = match read_header(jpeg) {
        Ok(header) => (jpeg, header),
        Err(warning) if is_warning(&warning) => {
            tidy = jpeg_markers::tidied(jpeg, markers.components);
            let header = read_header(&tidy).map_err(damaged)?;
            (tidy.as_slice(), header)
        }
        Err(error) => return Err(damaged(error)),
    };
    let size = (side(header.width)?, side(header.height)?);
    request.admit(ImageHeader { format: ImageFormat::Jpeg, width: size.0, height: size.1 })?;
    let orientation = request.orientation(|| Orientation::from_metadata(markers.exif, markers.xmp));

    let factor =
        scaling(&header, orientation.stored_window(request.window(size, orientation)).resized, request);
    let scaled = header.scaled(factor);
    let pixels = scaled.width * scaled.height;
    if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
        let inks = raw.take(pixels * 4);
        decompress(jpeg, &markers, (&header, factor), PixelFormat::CMYK, inks)?;
        samples::to_rgb(inks, Model::InvertedCmyk, None, rgb.take(pixels * 3));
    } else {
        decompress(jpeg, &markers, (&header, factor), PixelFormat::RGB, rgb.take(pixels * 3))?;
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

/// Decompress, and tell harmless warnings from a file that is cut short.
///
/// turbojpeg reports a warning as an error whose text is that of the *first* warning; the pixels
/// are complete all the same.
fn decompress(
    jpeg: &[u8],
    markers: &Markers,
    (header, factor): (&DecompressHeader, ScalingFactor),
    format: PixelFormat,
    output: &mut [u8],
) -> Result<(), Rejected> {
    let scaled = header.scaled(factor);
    let run = |jpeg: &[u8], output: &mut [u8]| {
        let (width, height) = (scaled.width, scaled.height);
        let image = Image { pixels: output, width, pitch: width * format.size(), height, format };
        let mut decompressor = decompressor(header.width * header.height).map_err(message)?;
        decompressor.set_scaling_factor(factor).map_err(message)?;
        decompressor.decompress(jpeg, image).map_err(message)
    };
    let Err(first) = run(jpeg, output) else { return Ok(()) };
    let cut_short = || damaged("jpeg: image is cut short");
    if first.starts_with(END_OF_FILE) {
        // The end was met, but was it before the last row was complete? Pillow cares for nothing
        // else. Rows that wait for several scans are never complete without the end marker, and
        // a missing restart marker looks like a missing end marker.
        if markers.several_scans || markers.restarts {
            return Err(cut_short());
        }
        // A byte behind the end that is found to be in the way of the end marker was not needed.
        let padded = [jpeg, &[0, 0xff, 0xd9]].concat();
        let untouched = run(&padded, output).is_err_and(|warning| is_left_over(&warning));
        return if untouched { Ok(()) } else { Err(cut_short()) };
    }
    if !is_warning(&first) {
        return Err(damaged(first));
    }
    // Another warning came first, so one about the end would not show. A second frame header
    // behind the file's end is fatal to whoever reads that far.
    let trapped = [jpeg, &[0xff, 0xc0].repeat(TRAP_MARKERS)].concat();
    match run(&trapped, output) {
        Err(error) if !is_warning(&error) => Err(cut_short()),
        _ => Ok(()),
    }
}

/// Repetitions of the marker behind a damaged file: more bytes than the longest segment that the
/// file's last bytes could begin.
const TRAP_MARKERS: usize = 33_000;

const END_OF_FILE: &str = "Premature end of JPEG file";

/// How the texts of libjpeg's warnings begin (`JWRN_*` in its `jerror.h`). Everything else it
/// says is fatal.
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
        turbojpeg::Error::TurboJpegError(message) => message,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_an_image_the_fewer_scans_it_may_have() {
        let limits = [(1, 500), (4_000_000, 500), (12_000_000, 250), (100_000_000, 30), (1 << 32, 20)];
        for (pixels, scans) in limits {
            assert_eq!(scan_limit(pixels), scans);
        }
        let jpeg = std::fs::read("fixtures/codecs/progressive.jpg").expect("a fixture");
        let refused = decompressor(1).and_then(|mut decompressor| {
            decompressor.set_scan_limit(1)?;
            let header = decompressor.read_header(&jpeg)?;
            let (width, height, format) = (header.width, header.height, PixelFormat::RGB);
            let mut pixels = vec![0; width * height * format.size()];
            let image =
                Image { pixels: &mut pixels[..], width, pitch: width * format.size(), height, format };
            decompressor.decompress(&jpeg, image)
        });
        let message = message(refused.expect_err("more than one scan"));
        assert!(message.contains("scan"), "{message}");
        assert!(!is_warning(&message));
    }
}
