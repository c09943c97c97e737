//! The chunks of a PNG that its pixels need.
//!
//! Input: a whole PNG. Output: header, palette, transparency and image data, and a PNG of only those
//! for the decoder.
//!
//! - Chunk layout: PNG specification, third edition, section 5, which includes APNG.
//! - Chunks that the pixels need are read strictly, up to the end of the image data. Other chunks are
//!   skipped, damaged or not, and the file may end anywhere after the image data.
//! - The Adler-32 inside the image data verifies the pixels; the CRCs of the IDAT chunks are ignored,
//!   as in Pillow.

use flate2::Crc;

/// The content of a PNG up to the end of its image data.
#[derive(Debug)]
pub(super) struct Png<'a> {
    pub size: (u32, u32),
    pub depth: u8,
    pub color: u8,
    interlaced: bool,
    palette: &'a [u8],
    /// Content of the `tRNS` chunk: alpha of each palette entry, or one transparent colour.
    pub transparency: Option<&'a [u8]>,
    /// The first run of consecutive `IDAT` chunks; later ones are not part of the image.
    data: Vec<&'a [u8]>,
    /// Offset of the first chunk after the image data.
    pub rest_at: usize,
}

const SIGNATURE_BYTES: usize = 8;
const HEADER_BYTES: usize = 13;

/// Colour types of the header.
pub(super) const GRAY: u8 = 0;
pub(super) const TRUECOLOR: u8 = 2;
pub(super) const INDEXED: u8 = 3;

/// Width and height of `png`, if its first chunk is a header.
pub(super) fn size(png: &[u8]) -> Option<(u32, u32)> {
    let header = Chunks::new(png).next().filter(|chunk| chunk.name == b"IHDR")?.payload;
    Some((u32_at(header, 0)?, u32_at(header, 4)?))
}

/// Read the chunks of `png` up to the end of its image data. The error is the reason for rejection.
pub(super) fn read(png: &[u8]) -> Result<Png<'_>, &'static str> {
    let mut chunks = Chunks::new(png);
    let header = chunks.next().filter(|chunk| chunk.name == b"IHDR").ok_or("the header is missing")?;
    let fields = header.payload.get(..HEADER_BYTES).ok_or("the header is cut short")?;
    if !header.is_sound() {
        return Err("the header is damaged");
    }
    if fields[11] != 0 {
        return Err("the filter method is unknown");
    }
    let mut read = Png {
        size: size(png).ok_or("the header is cut short")?,
        depth: fields[8],
        color: fields[9],
        interlaced: fields[12] != 0,
        palette: &[],
        transparency: None,
        data: Vec::new(),
        rest_at: 0,
    };
    for chunk in chunks.by_ref() {
        match chunk.name {
            b"IDAT" => read.data.push(chunk.payload),
            _ if !read.data.is_empty() => {
                read.rest_at = chunk.at;
                break;
            }
            b"IHDR" => return Err("there are two headers"),
            b"IEND" => break,
            b"PLTE" | b"tRNS" if !chunk.is_sound() => return Err("the palette is damaged"),
            b"PLTE" => read.palette = chunk.payload,
            b"tRNS" => read.transparency = Some(chunk.payload),
            b"fcTL" if !covers(chunk.payload, read.size) => {
                return Err("the first frame does not cover the canvas");
            }
            _ if !chunk.has_name() => return Err("the chunks are damaged"),
            _ => {}
        }
    }
    if read.rest_at == 0 {
        read.rest_at = png.len();
    }
    if read.data.is_empty() {
        return Err("there is no image data");
    }
    if read.color == INDEXED && read.palette.len() < 3 {
        return Err("there is no palette");
    }
    if read.color == INDEXED && read.palette.len() / 3 > 256 {
        return Err("the palette has more than 256 colours");
    }
    Ok(read)
}

/// Whether an animation's frame is as large as the canvas; missing fields of a truncated `fcTL` chunk
/// count as equal.
fn covers(frame_control: &[u8], size: (u32, u32)) -> bool {
    let field = |at| u32_at(frame_control, at);
    [field(4), field(8), field(12), field(16)]
        .iter()
        .zip([size.0, size.1, 0, 0])
        .all(|(found, wanted)| found.is_none_or(|found| found == wanted))
}

impl Png<'_> {
    /// A PNG of only the chunks that the pixels need, optionally with the alpha of palette entries.
    /// Missing palette entries are black, as in Pillow.
    pub(super) fn plain(&self, with_transparency: bool) -> Vec<u8> {
        let length: usize = self.data.iter().map(|data| data.len()).sum();
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        png.reserve(length + 2048);
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&self.size.0.to_be_bytes());
        header[4..8].copy_from_slice(&self.size.1.to_be_bytes());
        header[8..].copy_from_slice(&[self.depth, self.color, 0, 0, u8::from(self.interlaced)]);
        push(&mut png, b"IHDR", &[&header]);
        if self.color == INDEXED {
            let colors = 1_usize << self.depth.min(8);
            let stored = self.palette.len() / 3;
            let mut palette = self.palette[..stored * 3].to_vec();
            palette.resize(colors * 3, 0);
            push(&mut png, b"PLTE", &[&palette]);
            if let Some(alphas) = self.transparency.filter(|_| with_transparency) {
                push(&mut png, b"tRNS", &[&alphas[..alphas.len().min(colors)]]);
            }
        }
        push(&mut png, b"IDAT", &self.data);
        push(&mut png, b"IEND", &[]);
        png
    }
}

/// Append a chunk with a zero checksum, which the decoder ignores.
fn push(png: &mut Vec<u8>, name: &[u8; 4], parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    png.extend((length as u32).to_be_bytes());
    png.extend(name);
    parts.iter().for_each(|part| png.extend(*part));
    png.extend([0; 4]);
}

pub(super) struct Chunk<'a> {
    pub name: &'a [u8],
    /// The payload, up to the end of the file.
    pub payload: &'a [u8],
    /// The file ends inside the payload.
    pub is_cut: bool,
    /// Offset of the chunk in the file.
    pub at: usize,
    checksum: Option<u32>,
}

impl<'a> Chunk<'a> {
    /// Whether the name consists of characters that Pillow accepts in chunk names.
    pub(super) fn has_name(&self) -> bool {
        self.name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }

    /// Whether the CRC is present and correct.
    pub(super) fn is_sound(&self) -> bool {
        let mut crc = Crc::new();
        crc.update(self.name);
        crc.update(self.payload);
        self.checksum == Some(crc.sum())
    }
}

/// Iterates over chunks, the last of which may be truncated.
pub(super) struct Chunks<'a> {
    png: &'a [u8],
    at: usize,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(png: &'a [u8]) -> Self {
        Self { png, at: SIGNATURE_BYTES }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let at = self.at;
        let length = u32_at(self.png, at)? as usize;
        let name = self.png.get(at + 4..at + 8)?;
        let after = &self.png[at + 8..];
        let payload = &after[..length.min(after.len())];
        self.at = at + 8 + length + 4;
        Some(Chunk { name, payload, is_cut: payload.len() < length, at, checksum: u32_at(after, length) })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::decode::png) fn chunk(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push(&mut bytes, name, &[payload]);
        let mut crc = Crc::new();
        crc.update(&bytes[4..bytes.len() - 4]);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&crc.sum().to_be_bytes());
        bytes
    }

    pub(in crate::decode::png) fn header(depth: u8, color: u8) -> Vec<u8> {
        chunk(b"IHDR", &[0, 0, 0, 3, 0, 0, 0, 2, depth, color, 0, 0, 0])
    }

    pub(in crate::decode::png) fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
    }

    #[test]
    fn only_the_first_run_of_image_data_and_chunks_that_its_pixels_need_are_kept() {
        let data = |payload: &[u8]| chunk(b"IDAT", payload);
        let other = chunk(b"ABCD", b"an unknown critical chunk");
        let parts =
            [other.clone(), data(b"ab"), data(b""), data(b"c"), other, data(b"d"), chunk(b"IEND", b"")];
        let file = png(&[vec![header(8, GRAY)], parts.to_vec()].concat());
        let read = read(&file).expect("sound");
        assert_eq!((read.size, read.data.concat()), ((3, 2), b"abc".to_vec()));
        let plain = read.plain(true);
        assert_eq!(
            super::read(&{
                // the copy has zero checksums
                let mut sound = plain.clone();
                sound.splice(8..33, header(8, GRAY));
                sound
            })
            .expect("sound")
            .data
            .concat(),
            b"abc"
        );
        let names: Vec<_> = Chunks::new(&plain).map(|chunk| chunk.name.to_vec()).collect();
        assert_eq!(names, [b"IHDR", b"IDAT", b"IEND"]);
    }

    #[test]
    fn missing_palette_entries_are_black() {
        let parts =
            [header(2, INDEXED), chunk(b"PLTE", b"abcdefg"), chunk(b"tRNS", &[9; 9]), chunk(b"IDAT", b"x")];
        let file = png(&parts);
        let plain = read(&file).expect("sound").plain(true);
        let mut kept = Chunks::new(&plain).skip(1);
        assert_eq!(kept.next().map(|chunk| chunk.payload), Some(&b"abcdef\0\0\0\0\0\0"[..]));
        assert_eq!(kept.next().map(|chunk| chunk.payload), Some(&[9; 4][..]));
        let none = png(&[header(2, INDEXED), chunk(b"IDAT", b"x")]);
        assert_eq!(read(&none).err(), Some("there is no palette"));
        let long = png(&[header(8, INDEXED), chunk(b"PLTE", &[0; 771]), chunk(b"IDAT", b"x")]);
        assert_eq!(read(&long).err(), Some("the palette has more than 256 colours"));
    }

    #[test]
    fn damage_to_chunks_that_the_pixels_need_is_an_error() {
        let sound = [header(8, INDEXED), chunk(b"PLTE", b"abc"), chunk(b"IDAT", b"x")];
        assert!(read(&png(&sound)).is_ok());
        for damaged in 0..2 {
            let mut chunks = sound.clone();
            let last = chunks[damaged].len() - 1;
            chunks[damaged][last] ^= 1;
            assert!(read(&png(&chunks)).is_err());
        }
        let frame = |width: u8| {
            let mut control = [0; 26];
            (control[7], control[11]) = (width, 2);
            png(&[header(8, GRAY), chunk(b"fcTL", &control), chunk(b"IDAT", b"x")])
        };
        assert!(read(&frame(3)).is_ok());
        assert_eq!(read(&frame(2)).err(), Some("the first frame does not cover the canvas"));
    }
}
