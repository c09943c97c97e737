//! Recognises content by its bytes. Only this module decides whether bytes are an image.
//!
//! Input: the first [`HEAD_BYTES`] of an object or record, or all of it. Output: a [`Content`]. Sources and
//! decoders both use this module, so the decoders accept everything that the sources take for an image.
//!
//! - Names and media types are never consulted: a text file called `.jpg` is not an image.
//! - Images of the formats that we decode are recognised as leniently as by Pillow.
//! - Recognising a format promises nothing about the rest of the bytes.
//! - Content that cannot be decoded is named, so that its owner knows what to change.

mod magic;
mod text;

use crate::items::ImageFormat;

pub use magic::Content;
use magic::{GZIP, MAGIC, PARQUET, RIFF, ZSTD, find};
use text::{is_svg, position, text};

/// The number of first bytes that [`content`] examines.
pub const HEAD_BYTES: usize = 4096;

/// Bytes quoted in the message about unknown content.
const QUOTED_BYTES: usize = 8;

/// Sizes of the second BMP header, which distinguish a bitmap from text that begins with "BM".
const BMP_HEADER_BYTES: [u32; 7] = [12, 40, 52, 56, 64, 108, 124];

/// The content of `bytes`, judged by the first [`HEAD_BYTES`].
pub fn content(bytes: &[u8]) -> Content {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    image_format(head)
        .map(Content::Image)
        .or_else(|| other_image(head).map(Content::OtherImage))
        .or_else(|| by_magic(head).map(Content::Other))
        .or_else(|| text(head).map(Content::Other))
        .or_else(|| damaged(head).map(Content::Other))
        .unwrap_or(Content::Unknown)
}

/// The format of an image that we decode, or `None` for anything else.
pub fn image_format(head: &[u8]) -> Option<ImageFormat> {
    let is_image = |content: &Content| matches!(content, Content::Image(_));
    let format = match find(MAGIC, head, is_image).or_else(|| riff(head)) {
        Some(Content::Image(format)) => format,
        _ if is_bmp(head) => ImageFormat::Bmp,
        _ => return None,
    };
    (format != ImageFormat::Tiff || !is_canon_raw(head)).then_some(format)
}

/// The content of a RIFF file.
fn riff(head: &[u8]) -> Option<Content> {
    find(RIFF, head.strip_prefix(b"RIFF")?.get(4..8)?, |_| true)
}

/// Text may begin with "BM", so the second header must also have a valid size.
fn is_bmp(head: &[u8]) -> bool {
    let size = head.get(14..18).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    head.starts_with(b"BM") && size.is_some_and(|size| BMP_HEADER_BYTES.contains(&size))
}

/// Whether `head` begins like an image of any format. Text is not an image, even if it begins like one.
pub fn is_image(head: &[u8]) -> bool {
    match content(head) {
        Content::Image(_) => true,
        Content::OtherImage(_) => !text::is_text(head),
        Content::Other(_) | Content::Unknown => false,
    }
}

/// The name of unexpected content, with an article; `None` if it is unknown.
pub fn name(bytes: &[u8]) -> Option<String> {
    match content(bytes) {
        Content::Image(format) => Some(format!("an image ({})", format.as_str())),
        Content::OtherImage(name) => Some(format!("an image ({name})")),
        Content::Other(name) => Some(name.to_owned()),
        Content::Unknown => None,
    }
}

/// Whether `head` begins like a POSIX tar archive. Older archives have no magic bytes.
pub fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// Whether `head` begins with the length of a TFRecord file's first record and the checksum of that length.
pub fn is_tfrecord(head: &[u8]) -> bool {
    head.split_first_chunk::<8>().is_some_and(|(length, rest)| {
        rest.first_chunk().is_some_and(|crc| masked_crc(length) == u32::from_le_bytes(*crc))
    })
}

/// TFRecord's checksum: CRC-32C, rotated and with a constant added (TensorFlow, `core/lib/hash/crc32c.h`).
pub fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The reason for rejecting bytes in which [`image_format`] finds no image that we decode.
pub fn refusal(bytes: &[u8]) -> String {
    match content(bytes) {
        Content::OtherImage(name) => {
            format!("not a supported image: it is {name}; convert it to JPEG, PNG or WebP")
        }
        Content::Other(name) => format!("not an image: it is {name}"),
        Content::Image(_) | Content::Unknown => {
            let shown = &bytes[..bytes.len().min(QUOTED_BYTES)];
            let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            let more = if bytes.len() > QUOTED_BYTES { " …" } else { "" };
            format!("not a known image format (first bytes {}{more})", hex.join(" "))
        }
    }
}

/// Whether `head` begins a Canon CR2 file: a TIFF whose first image is only a preview.
fn is_canon_raw(head: &[u8]) -> bool {
    head.starts_with(b"II*\0") && head.get(8..11) == Some(b"CR\x02")
}

/// The name of an image format that we do not decode.
fn other_image(head: &[u8]) -> Option<&'static str> {
    if is_canon_raw(head) {
        return Some("a raw camera file (CR2)");
    }
    if let Some(Content::OtherImage(name)) =
        find(MAGIC, head, |content| matches!(content, Content::OtherImage(_)))
    {
        return Some(name);
    }
    if head.get(128..132) == Some(b"DICM") {
        return Some("DICOM");
    }
    match head {
        // "P1" to "P7", white space, then the width or a comment
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', b'0'..=b'9' | b'#' | b'W', ..] => {
            return Some("a portable any-map (PNM)");
        }
        // reserved, type, then a count of images that is small
        [0, 0, kind @ (1 | 2), 0, 1..=64, 0, ..] => {
            return Some(if *kind == 1 { "a Windows icon" } else { "a Windows cursor" });
        }
        _ => {}
    }
    still_of_a_media_container(head).or_else(|| is_svg(head).then_some("SVG"))
}

/// The brands of an ISO base media file. It begins with the box `ftyp`: a brand, a version, and compatible brands.
fn file_type_brands(head: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let size = u32::from_be_bytes(head.get(..4)?.try_into().ok()?) as usize;
    if head.get(4..8)? != b"ftyp" {
        return None;
    }
    let end = size.clamp(16, 256).min(head.len());
    let brands = head.get(8..end)?.chunks_exact(4);
    // the second word is a version
    Some(brands.enumerate().filter(|(index, _)| *index != 1).map(|(_, brand)| brand))
}

fn still_of_a_media_container(head: &[u8]) -> Option<&'static str> {
    let mut generic = None;
    for brand in file_type_brands(head)? {
        match brand {
            b"avif" | b"avis" => return Some("AVIF"),
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"hevm" | b"hevs" => {
                return Some("HEIC");
            }
            b"crx " => return Some("a raw camera file (CR3)"),
            b"jxl " => return Some("JPEG XL"),
            b"mif1" | b"msf1" | b"mif2" => generic = Some("HEIF"),
            _ => {}
        }
    }
    generic
}

/// The name, with an article, of content that has a magic number and is not an image.
fn by_magic(head: &[u8]) -> Option<&'static str> {
    let is_other = |content: &Content| matches!(content, Content::Other(_));
    if let Some(Content::Other(name)) = find(MAGIC, head, is_other).or_else(|| riff(head)) {
        return Some(name);
    }
    if is_tar(head) {
        return Some("a tar archive");
    }
    if is_tfrecord(head) {
        return Some("a TFRecord file, which is a shard of its own");
    }
    match head.get(4..8) {
        Some(b"ftyp") if file_type_brands(head)?.next() == Some(b"qt  ") => Some("a video (QuickTime)"),
        Some(b"ftyp") => Some("a video (MP4)"),
        Some(b"moov" | b"mdat" | b"wide" | b"pnot") => Some("a video (QuickTime)"),
        _ if position(&head[..head.len().min(1024)], b"%PDF-").is_some() => Some("a PDF document"),
        _ => None,
    }
}

/// The name of an image that was damaged by wrong handling, such as a conversion of encodings.
fn damaged(head: &[u8]) -> Option<&'static str> {
    if head.len() >= 4 && head.iter().all(|&byte| byte == 0) {
        return Some("nothing but zero bytes");
    }
    // U+FFFD replaces each byte that is not UTF-8
    let replacement = "\u{fffd}".as_bytes();
    if head.starts_with(replacement) && position(&head[3..], replacement).is_some() {
        return Some("binary data that was read as UTF-8 text and written again");
    }
    if head.starts_with(b"\x89PNG") {
        return Some("a PNG whose first bytes were changed, as by a transfer in text mode");
    }
    if head.starts_with(b"\xc3\xbf\xc3\x98\xc3\xbf") || head.starts_with(b"\xc2\x89PNG") {
        return Some("binary data that was read as Latin-1 text and written as UTF-8");
    }
    if head.starts_with(b"\xff\xd8") {
        return Some("a JPEG that is damaged behind its first two bytes");
    }
    const INSIDE: [(&[u8], &str); 3] = [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", JPEG_INSIDE),
        (b"\xff\xd8\xff\xe1", JPEG_INSIDE),
        (b"\x89PNG\r\n\x1a\n", PNG_INSIDE),
    ];
    INSIDE.iter().find(|(magic, _)| position(head, magic).is_some()).map(|(_, name)| *name)
}

const JPEG_INSIDE: &str = "a JPEG with other bytes before it";
const PNG_INSIDE: &str = "a PNG with other bytes before it";

/// Whether `name` stands for content with an image somewhere inside, not at its start.
pub fn is_image_inside(name: &str) -> bool {
    [JPEG_INSIDE, PNG_INSIDE].contains(&name)
}

/// Whether `head` begins a gzip stream.
pub fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(GZIP)
}

/// Whether `head` begins with a zstd frame.
pub fn is_zstd_frame(head: &[u8]) -> bool {
    head.starts_with(ZSTD)
}

/// Whether `head` begins a zstd stream: a frame, or a skippable frame, which `pzstd` writes before each of its frames
/// (RFC 8878, 3.1.2).
pub fn is_zstd(head: &[u8]) -> bool {
    is_zstd_frame(head) || matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Whether `head` begins a Parquet file.
pub fn is_parquet(head: &[u8]) -> bool {
    head.starts_with(PARQUET)
}

/// Whether `head` may begin a zlib stream (RFC 1950, 2.2): deflate with a window of up to 32 KiB, no dictionary, and
/// valid check bits.
pub(crate) fn is_zlib(head: &[u8]) -> bool {
    const DICTIONARY: u8 = 0x20;
    matches!(head, [method, flags, ..] if method & 0xf == 8
        && method >> 4 <= 7
        && flags & DICTIONARY == 0
        && u16::from_be_bytes([*method, *flags]) % 31 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_we_decode_are_recognised_by_their_magic_bytes() {
        let cases: [(&[u8], ImageFormat); 9] = [
            (b"\xff\xd8\xff\xe0", ImageFormat::Jpeg),
            (b"\x89PNG\r\n\x1a\n", ImageFormat::Png),
            (b"RIFF\x10\0\0\0WEBPVP8L", ImageFormat::Webp),
            (b"GIF87a", ImageFormat::Gif),
            (b"GIF89a", ImageFormat::Gif),
            (b"II*\0", ImageFormat::Tiff),
            (b"MM\0+\0\x08", ImageFormat::Tiff),
            (b"MM*\0", ImageFormat::Tiff),
            // the reserved bytes are not zero
            (b"BM\0\0\0\0name\x36\0\0\0\x28\0\0\0", ImageFormat::Bmp),
        ];
        for (bytes, format) in cases {
            assert_eq!(content(bytes), Content::Image(format), "{bytes:?}");
        }
    }

    #[test]
    fn text_is_not_an_image_whatever_it_begins_with() {
        for text in ["hello, world", "BMW and Mercedes are cars", "GIF", "RIFF0000WAVE", "\u{ff}"] {
            assert_eq!(image_format(text.as_bytes()), None, "{text}");
        }
        assert_eq!(
            refusal(b"\x01\x02binary"),
            "not a known image format (first bytes 01 02 62 69 6e 61 72 79)"
        );
        assert_eq!(refusal(b"\x01\x02"), "not a known image format (first bytes 01 02)");
    }

    #[test]
    fn other_images_are_named_with_the_advice_to_convert_them() {
        let cases: [(&[u8], &str); 15] = [
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1", "HEIC"),
            (b"\0\0\0\x14ftypmif1\0\0\0\0miaf", "HEIF"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx ", "a raw camera file (CR3)"),
            (b"\xff\x0a\x10", "JPEG XL"),
            (b"\0\0\0\x0cJXL \r\n\x87\n\0\0", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n\0\0", "JPEG 2000"),
            (b"\xff\x4f\xff\x51\0", "JPEG 2000"),
            (b"II*\0\x10\0\0\0CR\x02\0", "a raw camera file (CR2)"),
            (b"8BPS\0\x01", "a Photoshop document"),
            (b"\0\0\x01\0\x02\0\x10\x10", "a Windows icon"),
            (b"P6\n3 2\n255\n", "a portable any-map (PNM)"),
            (b"<?xml version=\"1.0\"?>\n<svg width='1'/>", "SVG"),
            (b"\xef\xbb\xbf <svg/>", "SVG"),
        ];
        for (bytes, name) in cases {
            assert_eq!(content(bytes), Content::OtherImage(name), "{bytes:?}");
        }
        assert_eq!(
            refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
            "not a supported image: it is HEIC; convert it to JPEG, PNG or WebP"
        );
    }

    #[test]
    fn images_of_any_format_are_images_and_text_is_not() {
        let images: [&[u8]; 4] = [
            b"\xff\xd8\xff\xe0",
            b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
            b"\xff\x0a\0\0",
            b"P6 2 2 255\n\0\xff",
        ];
        for head in images {
            assert!(is_image(head), "{head:?}");
        }
        let others: [&[u8]; 6] = [
            b"",
            b"{}",
            b"P1 is the first place",
            "P2 \u{e4}\u{f6}".as_bytes(),
            b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>",
            b"PK\x03\x04",
        ];
        for head in others {
            assert!(!is_image(head), "{head:?}");
        }
    }

    #[test]
    fn content_that_is_not_an_image_is_named() {
        let cases: [(&[u8], &str); 29] = [
            (b"\n<!DOCTYPE html><html>", "HTML"),
            (b"<?xml version='1.0'?><html>", "HTML"),
            (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
            (b"\x1f\x8b\x08\0", "gzip data; unpack it first"),
            (b"PK\x03\x04\x14\0", "a zip archive"),
            (b"/9j/4AAQSkZJRgABAQ==", "a JPEG in base64; decode it first"),
            (b"iVBORw0KGgoAAAANSUhEUg\n", "a PNG in base64; decode it first"),
            (b"data:image/png;base64,iVBO", "a data URI; the bytes that it encodes are the image"),
            (b"ffd8ffe000104a464946", "hexadecimal text"),
            (b"b'\\xff\\xd8\\xff'", "the text of a Python bytes literal, not the bytes"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
                "a Git LFS pointer; git lfs pull fetches the file itself",
            ),
            (b"%PDF-1.7", "a PDF document"),
            (b"P2 is the second", "text"),
            (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "what macOS keeps beside a file (AppleDouble)"),
            (b"{\"error\": 1}", "JSON"),
            (b"[1]", "JSON"),
            (b"https://example.org/a.jpg", "the address of an image, not its bytes"),
            (b"hello, world", "text"),
            (b"\xef\xbb\xbfhello", "text"),
            (b"\xff\xfeh\0i\0", "UTF-16 text"),
            (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "a video (MP4)"),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video (QuickTime)"),
            (b"RIFF\x10\0\0\0AVI LIST", "a video (AVI)"),
            (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
            (b"\0\0\0\0\0\0", "nothing but zero bytes"),
            (
                b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\x01",
                "binary data that was read as UTF-8 text and written again",
            ),
            (b"\x89PNG\n\x1a\n\0", "a PNG whose first bytes were changed, as by a transfer in text mode"),
            (b"\xff\xd8\0\0", "a JPEG that is damaged behind its first two bytes"),
            (b"\r\n\xff\xd8\xff\xe0\0\x10JFIF\0", "a JPEG with other bytes before it"),
        ];
        let mut tfrecord = 100_u64.to_le_bytes().to_vec();
        tfrecord.extend(masked_crc(&tfrecord).to_le_bytes());
        tfrecord.extend(b"\x0a\x62\xff\xd8\xff\xe0\0\x10JFIF");
        assert_eq!(name(&tfrecord).expect("known"), "a TFRecord file, which is a shard of its own");
        for (bytes, name) in cases {
            assert_eq!(content(bytes), Content::Other(name), "{bytes:?}");
        }
        assert_eq!(refusal(b"<html>"), "not an image: it is HTML");
    }

    proptest::proptest! {
        #[test]
        fn sniffing_never_panics_on_random_bytes(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            magic in proptest::sample::select(vec![&b""[..], b"\0\0\0\x18ftyp", b"RIFF", b"<", b"BM", b"\xef\xbf\xbd"]),
        ) {
            let bytes = [magic, &bytes[..]].concat();
            proptest::prop_assert!(!refusal(&bytes).is_empty());
        }
    }
}
