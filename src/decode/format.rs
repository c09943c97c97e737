//! Which codec an image needs, told by its first bytes.
//!
//! - Names and media types are never consulted: a text file called `.jpg` is not an image.
//! - Recognising a format promises nothing about the rest of the bytes.

use crate::items::ImageFormat;

/// Bytes quoted in the message about an unknown format.
const QUOTED_BYTES: usize = 8;

/// Sizes of the second BMP header, by which a bitmap is told from any text that begins with "BM".
const BMP_HEADER_BYTES: [u32; 7] = [12, 40, 52, 56, 64, 108, 124];

/// The format of `bytes`, or `None` for anything that is not one of ours.
pub(super) fn detect(bytes: &[u8]) -> Option<ImageFormat> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(b"\xff\xd8\xff") {
        return Some(ImageFormat::Jpeg);
    }
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Some(ImageFormat::Png);
    }
    if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Some(ImageFormat::Webp);
    }
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Some(ImageFormat::Gif);
    }
    // classic and big TIFF, both byte orders
    if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        return Some(ImageFormat::Tiff);
    }
    if starts(b"BM") {
        let size = bytes.get(14..18).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
        return size.filter(|size| BMP_HEADER_BYTES.contains(size)).map(|_| ImageFormat::Bmp);
    }
    None
}

/// What to say of bytes that [`detect`] does not know.
pub(super) fn unknown(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(QUOTED_BYTES)];
    let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > QUOTED_BYTES { " …" } else { "" };
    format!("not a known image format (first bytes {}{more})", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_an_image_whatever_it_begins_with() {
        for text in ["hello, world", "BMW and Mercedes are cars", "GIF", "RIFF0000WAVE", "\u{ff}"] {
            assert_eq!(detect(text.as_bytes()), None, "{text}");
        }
        assert_eq!(
            unknown(b"hello, world"),
            "not a known image format (first bytes 68 65 6c 6c 6f 2c 20 77 …)"
        );
        assert_eq!(unknown(b"hi"), "not a known image format (first bytes 68 69)");
    }
}
