//! The chunks of a WebP: its size, and whether its frames keep to it.
//!
//! - Container: RFC 9649, sections 2.7 (VP8X) and 2.3; bitstream headers: RFC 6386, section 9.1,
//!   and RFC 9649, section 3.4.
//! - The decoder allocates what a frame's own header says before it looks at the canvas. A frame
//!   larger than the canvas is therefore refused here, whichever of them the decoder will take.

/// What the chunks of a WebP tell before it is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunks<'a> {
    /// Width and height of the canvas.
    pub size: (u32, u32),
    pub exif: Option<&'a [u8]>,
    pub xmp: Option<&'a [u8]>,
}

/// Bytes of an `ANMF` chunk before the chunks of its frame.
const FRAME_HEADER_BYTES: usize = 16;

/// Read the chunks of `webp`; an error says what is wrong with them.
pub(super) fn read(webp: &[u8]) -> Result<Chunks<'_>, &'static str> {
    let mut chunks = Chunks::default();
    let mut canvas = None;
    let (mut first, mut widest, mut highest) = (None, 0, 0);
    let mut see = |frame: (u32, u32)| {
        first.get_or_insert(frame);
        (widest, highest) = (widest.max(frame.0), highest.max(frame.1));
    };
    for (name, payload) in iterate(webp.get(12..).unwrap_or_default()) {
        match name {
            b"VP8X" => {
                let size = payload.get(4..10).map(|p| (u24(&p[..3]) + 1, u24(&p[3..]) + 1));
                canvas = canvas.or(size);
            }
            b"ANMF" => {
                let inner = payload.get(FRAME_HEADER_BYTES..).unwrap_or_default();
                iterate(inner).filter_map(|(name, payload)| frame_size(name, payload)).for_each(&mut see);
            }
            b"EXIF" => chunks.exif = chunks.exif.or(Some(payload)),
            b"XMP " => chunks.xmp = chunks.xmp.or(Some(payload)),
            _ => frame_size(name, payload).into_iter().for_each(&mut see),
        }
    }
    // without a canvas the decoder looks at the first chunk alone
    chunks.size = canvas.or(first).ok_or("holds no image")?;
    if canvas.is_some_and(|canvas| widest > canvas.0 || highest > canvas.1) {
        return Err("frame is larger than the canvas");
    }
    Ok(chunks)
}

/// Names and payloads of chunks; a payload cut short is what is there of it.
fn iterate(mut rest: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (name, after) = rest.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        let payload = &after[..size.min(after.len())];
        // chunks are padded to even lengths
        rest = after.get(size.saturating_add(size % 2)..).unwrap_or_default();
        Some((name, payload))
    })
}

/// Size of a bitstream by its own header; `None` for chunks that are none.
fn frame_size(name: &[u8; 4], payload: &[u8]) -> Option<(u32, u32)> {
    match name {
        // frame tag of 3 bytes, start code of 3 bytes, 14 bits each
        b"VP8 " => {
            let side = |at: usize| {
                Some(u32::from(u16::from_le_bytes([payload[at], *payload.get(at + 1)?]) & 0x3fff))
            };
            payload.get(9)?;
            Some((side(6)?, side(8)?))
        }
        // signature of 1 byte, 14 bits each, minus 1
        b"VP8L" => {
            let bits = u32::from_le_bytes(payload.get(1..5)?.try_into().ok()?);
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        _ => None,
    }
}

fn u24(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = name.to_vec();
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        bytes.extend(vec![0; payload.len() % 2]);
        bytes
    }

    fn webp(chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"RIFF\0\0\0\0WEBP".to_vec(), chunks.concat()].concat()
    }

    const LOSSY_300_200: &[u8] = &[0, 0, 0, 0x9d, 0x01, 0x2a, 44, 1, 200, 0];

    #[test]
    fn the_canvas_is_the_size_and_a_frame_must_keep_to_it() {
        let canvas = |side: u8| chunk(b"VP8X", &[0, 0, 0, 0, side - 1, 1, 0, side - 1, 0, 0]);
        let exif = chunk(b"EXIF", b"abc");
        let good = webp(&[canvas(200), chunk(b"VP8 ", LOSSY_300_200), exif]);
        let chunks = read(&good).expect("fits");
        assert_eq!((chunks.size, chunks.exif), ((456, 200), Some(&b"abc"[..])));
        let bad = webp(&[canvas(100), chunk(b"VP8 ", LOSSY_300_200)]);
        assert_eq!(read(&bad), Err("frame is larger than the canvas"));
        let animated = chunk(b"ANMF", &[vec![0; 16], chunk(b"VP8 ", LOSSY_300_200)].concat());
        assert_eq!(read(&webp(&[canvas(100), animated.clone()])), Err("frame is larger than the canvas"));
        // behind one that fits, inside the animation or before it
        let small = chunk(b"VP8 ", &[0, 0, 0, 0x9d, 0x01, 0x2a, 8, 0, 8, 0]);
        assert_eq!(
            read(&webp(&[canvas(100), small.clone(), animated])),
            Err("frame is larger than the canvas")
        );
        let second = [vec![0; 16], small, chunk(b"VP8 ", LOSSY_300_200)].concat();
        let second = webp(&[canvas(100), chunk(b"ANMF", &second)]);
        assert_eq!(read(&second), Err("frame is larger than the canvas"));
    }

    #[test]
    fn a_file_cut_anywhere_is_read_without_panic() {
        let whole = webp(&[chunk(b"VP8 ", LOSSY_300_200), chunk(b"VP8L", &[0x2f, 1, 2, 3, 4])]);
        assert_eq!(read(&whole).map(|chunks| chunks.size), Ok((300, 200)));
        for end in 0..whole.len() {
            let _ = read(&whole[..end]);
        }
    }
}
