//! What bytes are, by the bytes themselves: the one place that decides what an image is.
//!
//! Comes in: the first bytes of an object or a record, [`HEAD_BYTES`] or all of it. Goes out: a
//! [`Content`]. Source and decode both ask here, so that what one takes for an image the other
//! decodes.
//!
//! - Names and media types are never consulted: a text file called `.jpg` is not an image.
//! - Images of the formats that we decode are recognised as leniently as Pillow does it.
//! - Recognising a format promises nothing about the rest of the bytes.
//! - What cannot be decoded is named, so that its owner knows what to do about it.

use crate::items::ImageFormat;

/// First bytes that [`content`] looks at.
pub const HEAD_BYTES: usize = 4096;

/// Bytes quoted in the message about unknown content.
const QUOTED_BYTES: usize = 8;

/// Sizes of the second BMP header, by which a bitmap is told from any text that begins with "BM".
const BMP_HEADER_BYTES: [u32; 7] = [12, 40, 52, 56, 64, 108, 124];

/// What some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An image of a format that we decode.
    Image(ImageFormat),
    /// An image of a format that we do not decode, by the format's name.
    OtherImage(&'static str),
    /// Something known that is not an image, with its article.
    Other(&'static str),
    Unknown,
}

/// What `bytes` are; only the first [`HEAD_BYTES`] count.
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
    const TIFF: [&[u8]; 6] = [b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"];
    let is = |magic: &[u8]| head.starts_with(magic);
    if is(b"\xff\xd8\xff") {
        Some(ImageFormat::Jpeg)
    } else if is(b"\x89PNG\r\n\x1a\n") {
        Some(ImageFormat::Png)
    } else if is(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        Some(ImageFormat::Webp)
    } else if is(b"GIF87a") || is(b"GIF89a") {
        Some(ImageFormat::Gif)
    } else if TIFF.iter().any(|magic| is(magic)) && !is_canon_raw(head) {
        Some(ImageFormat::Tiff)
    } else if is(b"BM") {
        let size = head.get(14..18).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
        size.filter(|size| BMP_HEADER_BYTES.contains(size)).map(|_| ImageFormat::Bmp)
    } else {
        None
    }
}

/// What bytes are that were taken for something else, with an article; `None` for what is not known.
pub fn name(bytes: &[u8]) -> Option<String> {
    match content(bytes) {
        Content::Image(format) => Some(format!("an image ({})", format.as_str())),
        Content::OtherImage(name) => Some(format!("an image ({name})")),
        Content::Other(name) => Some(name.to_owned()),
        Content::Unknown => None,
    }
}

/// Whether `head` begins as a tar archive does, but for those of before POSIX, which have no mark.
pub fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// Whether `head` begins with the length of a TFRecord file's first record, and the checksum of that.
pub fn is_tfrecord(head: &[u8]) -> bool {
    head.split_first_chunk::<8>().is_some_and(|(length, rest)| {
        rest.first_chunk().is_some_and(|crc| masked_crc(length) == u32::from_le_bytes(*crc))
    })
}

/// TFRecord's checksum: CRC-32C, rotated and with a constant added (TensorFlow, `core/lib/hash/crc32c.h`).
pub fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// What to say of bytes in which [`image_format`] finds no image that we decode.
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

/// Canon's CR2 is a TIFF whose first image is a preview.
fn is_canon_raw(head: &[u8]) -> bool {
    head.starts_with(b"II*\0") && head.get(8..11) == Some(b"CR\x02")
}

/// The name of an image format that we do not decode.
fn other_image(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 30] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"II\xbc", "JPEG XR"),
        (b"8BPS", "a Photoshop document"),
        (b"v/1\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"#?RGBE", "Radiance HDR"),
        (b"DDS ", "DDS"),
        (b"qoif", "QOI"),
        (b"icns", "an Apple icon"),
        (b"gimp xcf", "a GIMP image"),
        (b"AT&TFORM", "DjVu"),
        (b"BPG\xfb", "BPG"),
        (b"FLIF", "FLIF"),
        (b"SIMPLE  =", "FITS"),
        (b"\x8aMNG", "MNG"),
        (b"\x8bJNG", "JNG"),
        (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
        (b"%!PS", "PostScript"),
        (b"\xc5\xd0\xd3\xc6", "PostScript"),
        (b"FUJIFILMCCD-RAW", "a raw camera file (RAF)"),
        (b"IIRO", "a raw camera file (ORF)"),
        (b"IIRS", "a raw camera file (ORF)"),
        (b"MMOR", "a raw camera file (ORF)"),
        (b"IIU\0", "a raw camera file (RW2)"),
        (b"FOVb", "a raw camera file (X3F)"),
        (b"II\x1a\0\0\0HEAPCCDR", "a raw camera file (CRW)"),
        (b"\0MRM", "a raw camera file (MRW)"),
    ];
    if is_canon_raw(head) {
        return Some("a raw camera file (CR2)");
    }
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
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

/// ISO base media files begin with the box `ftyp`: a brand, a version, and compatible brands.
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

/// Things with a magic number that are no images, with their article.
fn by_magic(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 31] = [
        (b"\x1f\x8b", "gzip data; unpack it first"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PK\x05\x06", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"BZh91AY", "bzip2 data; unpack it first"),
        (b"x\x01", "zlib data; unpack it first"),
        (b"x\x9c", "zlib data; unpack it first"),
        (b"x\xda", "zlib data; unpack it first"),
        (b"\xfd7zXZ\0", "xz data; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
        (b"\x04\x22\x4d\x18", "lz4 data; unpack it first"),
        (b"PAR1", "a Parquet file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
        (b"\0\0\x01\xba", "a video (MPEG)"),
        (b"\0\0\x01\xb3", "a video (MPEG)"),
        (b"FLV\x01", "a video (Flash)"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)"),
        (b"OggS", "an Ogg stream"),
        (b"ID3", "an MP3 file"),
        (b"fLaC", "a FLAC file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x7fELF", "a program"),
        (b"MZ\x90\0", "a program"),
        (b"bplist00", "a property list"),
        (b"\0\x05\x16\x07", "what macOS keeps beside a file (AppleDouble)"),
        (b"\0\0\0\x01Bud1", "a .DS_Store file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE document (Office, Thumbs.db)"),
        (b"wOFF", "a font"),
    ];
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(name);
    }
    if head.starts_with(b"RIFF") {
        return match head.get(8..12)? {
            b"AVI " => Some("a video (AVI)"),
            b"WAVE" => Some("a WAV file"),
            _ => Some("a RIFF file"),
        };
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
        _ if find(&head[..head.len().min(1024)], b"%PDF-").is_some() => Some("a PDF document"),
        _ => None,
    }
}

/// Text of any kind, with its article.
fn text(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        // every other byte of most text is zero
        return (head.len() < 4 || head[2..].contains(&0)).then_some("UTF-16 text");
    }
    let text = printable(head)?.trim_start_matches('\u{feff}').trim_start();
    let lower: String = text.chars().take(64).collect::<String>().to_ascii_lowercase();
    let is = |start: &str| lower.starts_with(start);
    if is("version https://git-lfs") {
        return Some("a Git LFS pointer; git lfs pull fetches the file itself");
    }
    if ["<!doctype html", "<html", "<head", "<body", "<script", "<title"].iter().any(|start| is(start)) {
        return Some("HTML");
    }
    if is("<?xml") || is("<!--") || is("<error") || is("<!doctype") {
        return Some(if find(head, b"<html").is_some() { "HTML" } else { "XML" });
    }
    if is("data:image/") {
        return Some("a data URI; the bytes that it encodes are the image");
    }
    if let Some(name) = encoded(text) {
        return Some(name);
    }
    if is("{") || is("[") {
        return Some("JSON");
    }
    if is("http/1.") {
        return Some("an HTTP response with its header");
    }
    if is("http://") || is("https://") || is("s3://") || is("gs://") {
        return Some("the address of an image, not its bytes");
    }
    (text.len() > 1).then_some("text")
}

/// Text that stands for the bytes of an image.
fn encoded(text: &str) -> Option<&'static str> {
    const BASE64: [(&str, &str); 8] = [
        ("/9j/", "a JPEG in base64; decode it first"),
        ("_9j_", "a JPEG in base64; decode it first"),
        ("iVBORw0KG", "a PNG in base64; decode it first"),
        ("R0lGOD", "a GIF in base64; decode it first"),
        ("UklGR", "a WebP in base64; decode it first"),
        ("SUkqA", "a TIFF in base64; decode it first"),
        ("TU0AK", "a TIFF in base64; decode it first"),
        ("Qk", "a BMP in base64; decode it first"),
    ];
    if text.starts_with("b'\\x") || text.starts_with("b\"\\x") {
        return Some("the text of a Python bytes literal, not the bytes");
    }
    let digits = text.as_bytes();
    if digits.len() >= 16 && digits.iter().all(|digit| digit.is_ascii_hexdigit()) {
        return Some("hexadecimal text");
    }
    let is_base64 = digits.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(byte));
    let of_an_image = BASE64.iter().find(|(start, _)| text.starts_with(start));
    of_an_image.filter(|_| is_base64 && digits.len() >= 16).map(|(_, name)| *name)
}

/// What is left of an image that was handled as what it is not.
fn damaged(head: &[u8]) -> Option<&'static str> {
    if head.len() >= 4 && head.iter().all(|&byte| byte == 0) {
        return Some("nothing but zero bytes");
    }
    // U+FFFD stands for each byte that is no UTF-8
    let replacement = "\u{fffd}".as_bytes();
    if head.starts_with(replacement) && find(&head[3..], replacement).is_some() {
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
    INSIDE.iter().find(|(magic, _)| find(head, magic).is_some()).map(|(_, name)| *name)
}

const JPEG_INSIDE: &str = "a JPEG with other bytes before it";
const PNG_INSIDE: &str = "a PNG with other bytes before it";

/// Whether a name that was found here rests on an image somewhere inside, and not on the first bytes.
pub fn is_of_inside(name: &str) -> bool {
    [JPEG_INSIDE, PNG_INSIDE].contains(&name)
}

fn is_svg(head: &[u8]) -> bool {
    let Some(text) = printable(head) else { return false };
    let text = text.trim_start_matches('\u{feff}').trim_start();
    text.starts_with("<svg") || (text.starts_with('<') && text.contains("<svg") && !text.contains("<html"))
}

/// `head` as text without control characters; a character cut at its end is left out.
fn printable(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| (!c.is_control() || "\n\r\t\u{c}".contains(c)) && c != '\u{fffd}';
    text.chars().all(is_text).then_some(text)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Whether `head` may begin a zlib stream (RFC 1950, 2.2): deflate with a window of up to 32 KiB, no dictionary, and a
/// sum that holds.
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
    fn formats_that_we_decode_are_known_by_their_magic() {
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
    fn other_images_are_named_and_advised_to_be_converted() {
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
    fn what_is_no_image_is_named() {
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
        fn random_bytes_never_panic_the_sniffer(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            magic in proptest::sample::select(vec![&b""[..], b"\0\0\0\x18ftyp", b"RIFF", b"<", b"BM", b"\xef\xbf\xbd"]),
        ) {
            let bytes = [magic, &bytes[..]].concat();
            proptest::prop_assert!(!refusal(&bytes).is_empty());
        }
    }
}
