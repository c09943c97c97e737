//! The metadata of a PNG that may hold its orientation: EXIF and XMP, in chunks of their own or as text.
//!
//! - Metadata is searched before and after the image data, as by Pillow; the last of each kind counts.
//! - Unreadable metadata is ignored: it is no reason to reject the image.

use std::borrow::Cow;
use std::io::{ErrorKind, Read};

use flate2::read::ZlibDecoder;

use super::chunks::{Chunk, Chunks, Png};

/// EXIF and XMP, as Pillow finds them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata<'a> {
    pub exif: Option<Cow<'a, [u8]>>,
    pub xmp: Option<Cow<'a, [u8]>>,
}

/// Limit of a decompressed text, as in Pillow.
const MAX_TEXT_BYTES: u64 = 1 << 20;

const RAW_EXIF_KEY: &[u8] = b"Raw profile type exif";
const XMP_KEY: &[u8] = b"XML:com.adobe.xmp";

/// The metadata before and after the image data. A chunk with a wrong CRC is ignored before the image
/// data only, since Pillow checks CRCs only there.
pub(super) fn read<'a>(png: &'a [u8], image: &Png) -> Metadata<'a> {
    let (mut exif, mut raw_exif, mut text_xmp, mut xmp) = (None, None, None, None);
    for chunk in Chunks::new(png) {
        if chunk.name == b"IEND" || !chunk.has_name() || chunk.is_cut {
            break;
        }
        if !matches!(chunk.name, b"eXIf" | b"tEXt" | b"zTXt" | b"iTXt")
            || (chunk.at < image.rest_at && !chunk.is_sound())
        {
            continue;
        }
        if chunk.name == b"eXIf" {
            exif = Some(Cow::Borrowed(chunk.payload));
            continue;
        }
        match (text(&chunk), chunk.name) {
            (Some((b"exif", block)), b"tEXt") => exif = Some(block),
            (Some((RAW_EXIF_KEY, hex)), _) => raw_exif = Some(hex),
            (Some((XMP_KEY, packet)), b"iTXt") => {
                text_xmp = std::str::from_utf8(&packet).is_ok().then(|| packet.clone()).or(text_xmp);
                xmp = Some(packet);
            }
            (Some((XMP_KEY, packet)), _) => text_xmp = Some(packet),
            _ => {}
        }
    }
    let raw_exif = || raw_exif.as_deref().map(|text| Cow::Owned(unhex(text).unwrap_or_default()));
    Metadata {
        exif: exif.or_else(raw_exif),
        xmp: text_xmp.filter(|packet: &Cow<[u8]>| !packet.is_empty()).or(xmp),
    }
}

/// Keyword and text of a `tEXt`, `zTXt` or `iTXt` chunk, if the keyword is one for EXIF or XMP.
fn text<'a>(chunk: &Chunk<'a>) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let mut parts = chunk.payload.splitn(2, |&byte| byte == 0);
    let keyword = parts.next().filter(|keyword| [b"exif", RAW_EXIF_KEY, XMP_KEY].contains(keyword))?;
    let rest = parts.next()?;
    let text = match chunk.name {
        b"tEXt" => Cow::Borrowed(rest),
        // the text follows the compression method, of which only 0 is defined
        b"zTXt" => Cow::Owned(rest.strip_prefix(&[0]).and_then(inflate).unwrap_or_default()),
        _ => {
            // compression flag and method, then language tag and translated keyword
            let (&[compressed, method], rest) = rest.split_first_chunk::<2>()?;
            let text = rest.splitn(3, |&byte| byte == 0).nth(2)?;
            match (compressed, method) {
                (0, _) => Cow::Borrowed(text),
                (_, 0) => Cow::Owned(inflate(text)?),
                _ => return None,
            }
        }
    };
    Some((keyword, text))
}

/// Decompressed zlib data, up to its premature end if it has one; `None` if it is damaged or too long.
fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    match ZlibDecoder::new(packed).take(MAX_TEXT_BYTES + 1).read_to_end(&mut unpacked) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(_) => return None,
    }
    (unpacked.len() as u64 <= MAX_TEXT_BYTES).then_some(unpacked)
}

/// The bytes of an ImageMagick raw profile: an empty line, a name, a length, then hexadecimal digits.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> = lines.flatten().copied().collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut rest = digits.trim_ascii_start();
    let mut bytes = Vec::with_capacity(rest.len() / 2);
    // white space may separate bytes, but not the two digits of a byte
    while let Some((&[high, low], after)) = rest.split_first_chunk() {
        bytes.push(digit(high)? << 4 | digit(low)?);
        rest = after.trim_ascii_start();
    }
    rest.is_empty().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::chunks::tests::{chunk, header, png};
    use super::super::chunks::{GRAY, INDEXED, read, size};
    use super::*;

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    /// EXIF and XMP of a file with these chunks before and after its image data.
    fn found(before: &[Vec<u8>], after: &[Vec<u8>]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let parts =
            [&[header(8, GRAY)], before, &[chunk(b"IDAT", b"x")], after, &[chunk(b"IEND", b"")]].concat();
        let file = png(&parts);
        let metadata = super::read(&file, &read(&file).expect("sound"));
        (metadata.exif.map(Cow::into_owned), metadata.xmp.map(Cow::into_owned))
    }

    #[test]
    fn exif_is_found_in_its_own_chunk_and_in_texts_before_and_after_the_pixels() {
        let own = |payload: &[u8]| chunk(b"eXIf", payload);
        let raw = b"\nexif\n   3\n4949\n2a\n".as_slice();
        let text = |name: &[u8; 4], between: &[u8], text: &[u8]| {
            chunk(name, &[RAW_EXIF_KEY, b"\0", between, text].concat())
        };
        let plain = text(b"tEXt", b"", raw);
        assert_eq!(found(&[own(b"a")], &[own(b"b")]).0, Some(b"b".to_vec()));
        assert_eq!(found(&[own(b"a"), plain.clone()], &[]).0, Some(b"a".to_vec()));
        let packed = deflated(raw);
        for profile in [
            plain,
            text(b"zTXt", b"\0", &packed),
            text(b"iTXt", b"\0\0\0\0", raw),
            text(b"iTXt", b"\x01\0de\0\0", &packed),
        ] {
            assert_eq!(found(std::slice::from_ref(&profile), &[]).0, Some(b"II*".to_vec()));
            assert_eq!(found(&[], &[profile]).0, Some(b"II*".to_vec()));
        }
        let damaged = [text(b"zTXt", b"\0", b"no zlib"), text(b"tEXt", b"", b"\nexif\n 1\nxy\n")];
        for profile in damaged {
            assert_eq!(found(&[profile], &[]).0, Some(vec![]));
        }
        let endless = deflated(&vec![b'0'; MAX_TEXT_BYTES as usize + 1]);
        assert_eq!(found(&[text(b"iTXt", b"\x01\0\0\0", &endless)], &[]).0, None);
    }

    #[test]
    fn a_wrong_checksum_counts_only_before_the_pixels() {
        let mut damaged = chunk(b"eXIf", b"a");
        damaged[12] ^= 1;
        assert_eq!(found(&[damaged.clone()], &[]).0, None);
        assert_eq!(found(&[], &[damaged]).0, Some(b"a".to_vec()));
    }

    #[test]
    fn xmp_that_is_valid_utf_8_takes_precedence() {
        let packet = |text: &[u8]| chunk(b"iTXt", &[XMP_KEY, b"\0\0\0\0\0", text].concat());
        let other = chunk(b"tEXt", &[XMP_KEY, b"\0c"].concat());
        assert_eq!(found(&[packet(b"a")], &[packet(b"b")]).1, Some(b"b".to_vec()));
        assert_eq!(found(&[packet(b"\xff")], &[]).1, Some(b"\xff".to_vec()));
        assert_eq!(found(&[other], &[packet(b"\xff")]).1, Some(b"c".to_vec()));
    }

    #[test]
    fn a_file_truncated_anywhere_never_panics() {
        let text = chunk(b"iTXt", &[XMP_KEY, b"\0\x01\0\0\0", &deflated(b"<a/>")].concat());
        let parts = [header(8, INDEXED), chunk(b"PLTE", b"abc"), text.clone(), chunk(b"IDAT", b"x"), text];
        let whole = png(&parts);
        for end in 0..whole.len() {
            size(&whole[..end]);
            if let Ok(image) = read(&whole[..end]) {
                super::read(&whole[..end], &image);
                image.plain(true);
            }
        }
    }
}
