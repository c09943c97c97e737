//! JPEG inside a strip or tile: an abbreviated stream, whose tables may be in the tag `JPEGTables`
//! (TIFF Technical Note 2).
//!
//! - The TIFF defines the colour space: the stream's own APPn segments are dropped, and an Adobe
//!   segment with the TIFF's colour space replaces them.
//! - Only sequential coding of 8-bit samples is supported; the note allows nothing else.

use std::ops::RangeInclusive;

use turbojpeg::{Decompressor, Image, PixelFormat};

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
/// SOF0 and SOF1: baseline and extended sequential, both with Huffman coding.
const SEQUENTIAL: [u8; 2] = [0xc0, 0xc1];

/// Limit of the scans of a stream: one for each component, with room to spare.
const MAX_SCANS: u32 = 8;

/// The image that a stream must hold.
pub(super) struct Shape {
    pub(super) width: usize,
    pub(super) rows: RangeInclusive<usize>,
    pub(super) components: usize,
    /// The components are YCbCr and are converted to RGB; otherwise they are copied.
    pub(super) is_ycbcr: bool,
}

/// Decode `stream` into the first bytes of `output`, in rows of `shape.width` pixels. Returns the bytes
/// read.
pub(super) fn decode(
    tables: &[u8],
    stream: &[u8],
    shape: &Shape,
    output: &mut [u8],
) -> Result<usize, String> {
    let mut jpeg = vec![0xff, SOI];
    // Adobe segment: version 100, no flags, the colour transform
    jpeg.extend([0xff, 0xee, 0, 14]);
    jpeg.extend(b"Adobe\0\x64\0\0\0\0");
    jpeg.push(u8::from(shape.is_ycbcr));
    let mut frame = None;
    copy(tables, &mut jpeg, &mut frame);
    copy(stream, &mut jpeg, &mut frame);
    // The stream's own end marker may be missing. If pixels are missing as well, libjpeg warns about a
    // premature end marker.
    jpeg.extend([0xff, EOI]);
    let frame = frame.ok_or("its JPEG data has no frame header")?;
    if !SEQUENTIAL.contains(&frame.marker) || frame.bits != 8 {
        return Err("JPEG data that is not sequential or not of 8 bits is not supported".to_owned());
    }
    let (width, height) = (frame.width, frame.height);
    if width != shape.width || !shape.rows.contains(&height) || frame.components != shape.components {
        return Err(format!(
            "its JPEG data is {width}×{height} pixels of {} components, not {}×{} of {}",
            frame.components,
            shape.width,
            shape.rows.end(),
            shape.components
        ));
    }
    let format = match shape.components {
        1 => PixelFormat::GRAY,
        3 => PixelFormat::RGB,
        4 => PixelFormat::CMYK,
        components => return Err(format!("JPEG data of {components} components is not supported")),
    };
    let pitch = width * format.size();
    let image = Image { pixels: &mut output[..pitch * height], width, pitch, height, format };
    let result = Decompressor::new().and_then(|mut decompressor| {
        decompressor.set_scan_limit(MAX_SCANS)?;
        decompressor.decompress(&jpeg, image)
    });
    match result {
        Ok(()) => Ok(tables.len() + stream.len()),
        // no pixel is missing
        Err(error) if error.to_string().ends_with("extraneous bytes before marker 0xd9") => {
            Ok(tables.len() + stream.len())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The fields of a frame header.
struct Frame {
    marker: u8,
    bits: u8,
    width: usize,
    height: usize,
    components: usize,
}

/// Append the marker segments of `stream` to `jpeg`, and everything from the first SOS on; leave out
/// SOI and EOI, application segments and comments. `frame` is set to the frame header.
fn copy(stream: &[u8], jpeg: &mut Vec<u8>, frame: &mut Option<Frame>) {
    let mut rest = stream;
    while let Some(start) = rest.iter().position(|&byte| byte == 0xff) {
        rest = &rest[start..];
        let Some(&marker) = rest.get(1) else { return };
        match marker {
            // fill
            0xff => rest = &rest[1..],
            0 | 1 | 0xd0..=0xd7 | SOI => rest = &rest[2..],
            EOI => return,
            SOS => return jpeg.extend(rest),
            _ => {
                let Some(length) = rest.get(2..4).map(|length| u16::from_be_bytes([length[0], length[1]]))
                else {
                    return;
                };
                let Some((segment, behind)) = rest.split_at_checked(2 + usize::from(length.max(2))) else {
                    return;
                };
                rest = behind;
                let is_frame = matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
                if let (true, Some(&[bits, h1, h2, w1, w2, components])) =
                    (is_frame, segment.get(4..).and_then(|payload| payload.first_chunk()))
                {
                    let (height, width) = (u16::from_be_bytes([h1, h2]), u16::from_be_bytes([w1, w2]));
                    *frame = Some(Frame {
                        marker,
                        bits,
                        width: usize::from(width),
                        height: usize::from(height),
                        components: usize::from(components),
                    });
                }
                if !matches!(marker, 0xe0..=0xef | 0xfe) {
                    jpeg.extend(segment);
                }
            }
        }
    }
}
