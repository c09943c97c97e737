//! The chunks of a WebP: its first frame and its metadata.
//!
//! Input: a whole WebP. Output: the size of the canvas, the first frame and its position, metadata, and
//! a WebP of only that frame for the decoder.
//!
//! - Container: RFC 9649, sections 2.7 (VP8X) and 2.3; bitstream headers: RFC 6386, section 9.1,
//!   and RFC 9649, section 3.4.
//! - The VP8X flags for metadata and alpha count as in libwebp: without the flag the chunk is ignored,
//!   and with the flag it may be missing. For a lossless still, its bitstream header says whether it
//!   has alpha.
//! - The size in the RIFF header limits the search for metadata, but never truncates an image.
//! - Frames after the first one are ignored.

/// The first frame of a WebP, with its canvas and metadata.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Webp<'a> {
    /// Width and height of the canvas.
    pub canvas: (u32, u32),
    /// Position of the frame's upper left corner on the canvas.
    pub corner: (u32, u32),
    pub frame: Frame<'a>,
    /// Whether the pixels have alpha; without it the whole canvas is opaque.
    pub has_alpha: bool,
    pub exif: Option<&'a [u8]>,
    pub xmp: Option<&'a [u8]>,
}

/// One image: a bitstream, and for a lossy one optionally an alpha plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Width and height from the bitstream's own header.
    pub size: (u32, u32),
    lossless: bool,
    bitstream: &'a [u8],
    alpha: Option<&'a [u8]>,
}

/// Bytes of the header of an `ANMF` chunk, which the frame's chunks follow.
const FRAME_HEADER_BYTES: usize = 16;

const ANIMATION: u8 = 1 << 1;
const XMP: u8 = 1 << 2;
const EXIF: u8 = 1 << 3;
const ALPHA: u8 = 1 << 4;

/// Signature, width and height, alpha bit and version.
const LOSSLESS_HEADER_BYTES: usize = 5;

/// Mask of the compression method in the first byte of an `ALPH` chunk, and its value for lossless data.
const ALPHA_COMPRESSION: u8 = 3;
const ALPHA_LOSSLESS: u8 = 1;

/// The alpha bit of a lossless bitstream's header: bit 28 after the signature.
const LOSSLESS_ALPHA_BYTE: usize = 4;
const LOSSLESS_ALPHA_BIT: u8 = 1 << 4;

/// Read the chunks of `webp`. The error is the reason for rejection.
pub(super) fn read(webp: &[u8]) -> Result<Webp<'_>, &'static str> {
    let chunks = webp.get(12..).unwrap_or_default();
    let Chunk { name, payload, .. } = iterate(chunks).next().ok_or(NO_IMAGE)?;
    match name {
        b"VP8X" => read_extended(payload, chunks, riff_payload(webp)),
        b"VP8 " | b"VP8L" => {
            let frame = Frame::first(iterate(chunks).take(1))?;
            Ok(Webp {
                canvas: frame.size,
                corner: (0, 0),
                has_alpha: frame.lossless_alpha(),
                frame,
                exif: None,
                xmp: None,
            })
        }
        _ => Err("first chunk is no image"),
    }
}

const NO_IMAGE: &str = "holds no image";

/// Bytes after the first 12 that belong to the file according to its RIFF header.
fn riff_payload(webp: &[u8]) -> usize {
    let size = webp.get(4..8).and_then(|size| size.try_into().ok()).map_or(0, u32::from_le_bytes);
    (size as usize).saturating_sub(4)
}

fn read_extended<'a>(header: &[u8], chunks: &'a [u8], riff_payload: usize) -> Result<Webp<'a>, &'static str> {
    let (Some(&flags), Some(sides)) = (header.first(), header.get(4..10)) else {
        return Err("VP8X chunk is cut short");
    };
    let canvas = (u24(&sides[..3]) + 1, u24(&sides[3..]) + 1);
    let inside_riff = &chunks[..riff_payload.min(chunks.len())];
    let metadata = |flag: u8, wanted: &[u8; 4]| {
        let mut found = iterate(inside_riff).filter(|chunk| chunk.name == wanted);
        (flags & flag != 0).then(|| found.next()).flatten().map(|chunk| chunk.payload)
    };
    let (exif, xmp) = (metadata(EXIF, b"EXIF"), metadata(XMP, b"XMP "));
    let has_alpha = flags & ALPHA != 0;
    if flags & ANIMATION == 0 {
        let frame = Frame::first(iterate(chunks))?;
        if frame.size != canvas {
            return Err("frame is not as large as the canvas");
        }
        let has_alpha = if frame.lossless { frame.lossless_alpha() } else { has_alpha };
        return Ok(Webp { canvas, corner: (0, 0), frame, has_alpha, exif, xmp });
    }
    let animated = iterate(chunks).find(|chunk| chunk.name == b"ANMF").ok_or(NO_IMAGE)?.payload;
    let place = animated.get(..FRAME_HEADER_BYTES).ok_or("frame is cut short")?;
    let corner = (u24(&place[..3]) * 2, u24(&place[3..6]) * 2);
    let frame = Frame::first(iterate(&animated[FRAME_HEADER_BYTES..]))?;
    // the size in the ANMF header is ignored in favour of the bitstream's own
    let size = frame.size;
    if corner.0 + size.0 > canvas.0 || corner.1 + size.1 > canvas.1 {
        return Err("frame is larger than the canvas");
    }
    Ok(Webp { canvas, corner, frame, has_alpha, exif, xmp })
}

impl<'a> Frame<'a> {
    /// The first image among `chunks`.
    fn first(chunks: impl Iterator<Item = Chunk<'a>>) -> Result<Self, &'static str> {
        let mut alpha = None;
        let mut image = None;
        for Chunk { name, payload, whole } in chunks {
            match name {
                b"ALPH" => alpha = alpha.or(Some(payload)),
                b"VP8 " | b"VP8L" if image.is_none() => image = Some((name, payload, whole)),
                _ => {}
            }
        }
        let (name, bitstream, whole) = image.ok_or(NO_IMAGE)?;
        // a truncated bitstream may lack bytes in its middle, too
        if !whole {
            return Err("image is cut short");
        }
        let lossless = name == b"VP8L";
        let size = if lossless { lossless_size(bitstream) } else { lossy_size(bitstream) };
        let size = size.ok_or("bitstream is cut short")?;
        // a lossless bitstream contains its alpha
        Ok(Self { size, lossless, bitstream, alpha: alpha.filter(|_| !lossless) })
    }

    fn lossless_alpha(&self) -> bool {
        self.lossless && self.bitstream[LOSSLESS_ALPHA_BYTE] & LOSSLESS_ALPHA_BIT != 0
    }

    /// Lossless data without its header: the image, or the alpha plane of a lossy one.
    pub(super) fn lossless_data(&self) -> Option<&'a [u8]> {
        if self.lossless {
            return self.bitstream.get(LOSSLESS_HEADER_BYTES..);
        }
        let (&flags, data) = self.alpha?.split_first()?;
        (flags & ALPHA_COMPRESSION == ALPHA_LOSSLESS).then_some(data)
    }

    /// The lossy image.
    pub(super) fn lossy_data(&self) -> Option<&'a [u8]> {
        (!self.lossless).then_some(self.bitstream)
    }

    /// A WebP of only this frame; with alpha only if `has_alpha` and the frame has any.
    pub(super) fn still(&self, has_alpha: bool) -> Vec<u8> {
        let alpha = self.alpha.filter(|_| has_alpha);
        let mut webp = b"RIFF\0\0\0\0WEBP".to_vec();
        webp.reserve(self.bitstream.len() + alpha.map_or(0, <[u8]>::len) + 64);
        if let Some(alpha) = alpha {
            let sides = [self.size.0 - 1, self.size.1 - 1].map(u32::to_le_bytes);
            let header = [&[ALPHA, 0, 0, 0][..], &sides[0][..3], &sides[1][..3]].concat();
            push(&mut webp, b"VP8X", &header);
            push(&mut webp, b"ALPH", alpha);
        }
        let bitstream_at = webp.len() + 8;
        push(&mut webp, if self.lossless { b"VP8L" } else { b"VP8 " }, self.bitstream);
        if self.lossless {
            // the bit is a hint, and only decides whether the decoder returns alpha
            let byte = &mut webp[bitstream_at + LOSSLESS_ALPHA_BYTE];
            *byte = *byte & !LOSSLESS_ALPHA_BIT | if has_alpha { LOSSLESS_ALPHA_BIT } else { 0 };
        }
        let size = webp.len() as u32 - 8;
        webp[4..8].copy_from_slice(&size.to_le_bytes());
        webp
    }
}

fn push(webp: &mut Vec<u8>, name: &[u8; 4], payload: &[u8]) {
    webp.extend(name);
    webp.extend((payload.len() as u32).to_le_bytes());
    webp.extend(payload);
    webp.extend(&[0][..payload.len() % 2]);
}

struct Chunk<'a> {
    name: &'a [u8; 4],
    /// The payload, up to the end of the file.
    payload: &'a [u8],
    /// The payload is complete.
    whole: bool,
}

fn iterate(mut rest: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (name, after) = rest.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        let payload = &after[..size.min(after.len())];
        // chunks are padded to even lengths
        rest = after.get(size.saturating_add(size % 2)..).unwrap_or_default();
        Some(Chunk { name, payload, whole: payload.len() == size })
    })
}

/// Width and height of a lossy bitstream: they follow the frame tag and start code of 3 bytes each,
/// with 14 bits each.
fn lossy_size(bitstream: &[u8]) -> Option<(u32, u32)> {
    let sides = bitstream.get(6..10)?;
    let side = |at: usize| u32::from(u16::from_le_bytes([sides[at], sides[at + 1]]) & 0x3fff);
    Some((side(0), side(2)))
}

/// Width and height of a lossless bitstream: they follow the signature of 1 byte, with 14 bits each,
/// minus 1.
fn lossless_size(bitstream: &[u8]) -> Option<(u32, u32)> {
    let bits = u32::from_le_bytes(bitstream.get(1..5)?.try_into().ok()?);
    Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
}

fn u24(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push(&mut bytes, name, payload);
        bytes
    }

    fn webp(chunks: &[Vec<u8>]) -> Vec<u8> {
        let chunks = chunks.concat();
        let size = (chunks.len() as u32 + 4).to_le_bytes();
        [b"RIFF".as_slice(), &size, b"WEBP", &chunks].concat()
    }

    /// A `VP8X` chunk of a canvas of 256×1 pixels.
    fn canvas(flags: u8) -> Vec<u8> {
        chunk(b"VP8X", &[flags, 0, 0, 0, 255, 0, 0, 0, 0, 0])
    }

    fn lossy(width: u16, height: u8) -> Vec<u8> {
        let sides = [width.to_le_bytes(), [height, 0]].concat();
        chunk(b"VP8 ", &[&[0, 0, 0, 0x9d, 0x01, 0x2a], &sides[..]].concat())
    }

    fn animated(x: u8, width: u16) -> Vec<u8> {
        let place = [&[x, 0, 0, 0, 0, 0][..], &(width - 1).to_le_bytes(), &[0; 8]].concat();
        chunk(b"ANMF", &[place, lossy(width, 1)].concat())
    }

    #[test]
    fn a_still_must_equal_its_canvas_in_size_and_an_animated_frame_must_fit_on_it() {
        let file = webp(&[canvas(0), lossy(256, 1)]);
        let still = read(&file).expect("fits");
        assert_eq!((still.canvas, still.has_alpha), ((256, 1), false));
        assert_eq!(read(&webp(&[canvas(0), lossy(255, 1)])), Err("frame is not as large as the canvas"));
        let file = webp(&[canvas(ANIMATION), animated(3, 250), animated(9, 9)]);
        let first = read(&file).expect("fits");
        assert_eq!((first.corner, first.frame.size), ((6, 0), (250, 1)));
        assert_eq!(
            read(&webp(&[canvas(ANIMATION), animated(4, 250)])),
            Err("frame is larger than the canvas")
        );
        assert_eq!(read(&webp(&[canvas(ANIMATION), lossy(256, 1)])), Err(NO_IMAGE));
        assert_eq!(read(&webp(&[canvas(0), chunk(b"ALPH", b"abc")])), Err(NO_IMAGE));
    }

    #[test]
    fn the_image_must_be_complete_but_later_chunks_may_be_truncated() {
        let cut = Err("image is cut short");
        for image in [lossy(256, 1), chunk(b"VP8L", &[0x2f, 1, 2, 3, 4, 5])] {
            let whole = webp(std::slice::from_ref(&image));
            assert!(read(&whole).is_ok());
            assert_eq!(read(&whole[..whole.len() - 1]), cut);
        }
        let still = webp(&[canvas(0), lossy(256, 1), chunk(b"EXIF", b"abc")]);
        assert!(read(&still[..still.len() - 3]).is_ok());
        let first = webp(&[canvas(ANIMATION), animated(0, 256)]);
        assert_eq!(read(&first[..first.len() - 1]), cut);
        let frames = webp(&[canvas(ANIMATION), animated(0, 256), animated(0, 256)]);
        assert!(read(&frames[..frames.len() - 1]).is_ok());
    }

    #[test]
    fn metadata_counts_only_with_its_flag_and_inside_the_riff_size() {
        let parts = |flags| vec![canvas(flags), lossy(256, 1), chunk(b"EXIF", b"abc"), chunk(b"XMP ", b"de")];
        let metadata = |file: &[u8]| {
            let read = read(file).expect("sound");
            (read.exif.map(<[u8]>::to_vec), read.xmp.map(<[u8]>::to_vec))
        };
        assert_eq!(metadata(&webp(&parts(EXIF))), (Some(b"abc".to_vec()), None));
        assert_eq!(metadata(&webp(&parts(XMP))), (None, Some(b"de".to_vec())));
        assert_eq!(metadata(&webp(&parts(EXIF | XMP)[..2])), (None, None));
        let outside = [webp(&parts(EXIF)[..2]), chunk(b"EXIF", b"abc")].concat();
        assert_eq!(metadata(&outside), (None, None));
    }

    #[test]
    fn a_still_of_the_frame_has_alpha_only_if_the_file_declares_it() {
        let file = webp(&[canvas(ALPHA), chunk(b"ALPH", b"abc"), lossy(256, 1)]);
        let frame = read(&file).expect("sound").frame;
        assert_eq!(frame.still(true), file);
        assert_eq!(frame.still(false), webp(&[lossy(256, 1)]));
        let lossless = |hint: u8| webp(&[chunk(b"VP8L", &[0x2f, 0, 0, 0, hint, 9])]);
        for hint in [0, LOSSLESS_ALPHA_BIT] {
            let file = lossless(hint);
            let read = read(&file).expect("sound");
            assert_eq!(read.has_alpha, hint != 0);
            assert_eq!(read.frame.still(false), lossless(0));
            assert_eq!(read.frame.still(true), lossless(LOSSLESS_ALPHA_BIT));
        }
    }

    #[test]
    fn a_file_truncated_anywhere_never_panics() {
        let still = webp(&[canvas(ALPHA), chunk(b"ALPH", b"abc"), lossy(256, 1), chunk(b"EXIF", b"abc")]);
        let lossless = webp(&[chunk(b"VP8L", &[0x2f, 1, 2, 3, 4])]);
        for whole in [still, lossless, webp(&[canvas(ANIMATION), animated(0, 256)])] {
            assert!(read(&whole).is_ok());
            for end in 0..whole.len() {
                if let Ok(read) = read(&whole[..end]) {
                    read.frame.still(true);
                }
            }
        }
    }
}
