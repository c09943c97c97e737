//! Reads the orientation from EXIF and XMP.
//!
//! - As in Pillow's `Image.getexif`: the EXIF tag 274, else `tiff:Orientation` in XMP. A tag with a value
//!   outside 1..=8 also takes precedence over XMP, and means upright.
//! - Unreadable metadata means upright; it is no reason to reject the image.

use super::Orientation;

const ORIENTATION_TAG: u16 = 274;

/// Prefix of the TIFF structure in a JPEG's APP1 segment, and in the EXIF chunks of some WebP files.
pub(in crate::decode) const EXIF_PREFIX: &[u8] = b"Exif\0\0";

impl Orientation {
    /// From an EXIF block, with or without its `Exif\0\0` prefix, and an XMP packet.
    pub(in crate::decode) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let tag = match exif.map_or(Tag::Absent, orientation_in_exif) {
            Tag::Absent => xmp.map_or(Tag::Absent, orientation_in_xmp),
            value => value,
        };
        match tag {
            Tag::Value(value) => Self::from_tag(value),
            Tag::Absent => Self::UPRIGHT,
        }
    }
}

/// The orientation tag of a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// The block has no such tag, so other metadata is consulted.
    Absent,
    /// The value of the tag; 0 if it is not a valid orientation.
    Value(u32),
}

/// Tag 274 of the first IFD of a TIFF structure, after any number of `Exif\0\0` prefixes.
///
/// - If there are several entries, the last one counts, as in a Python dictionary.
/// - Reading stops at the first entry whose value lies outside the block.
/// - A block that is not a TIFF structure gives the value 0, so that no other metadata is consulted.
fn orientation_in_exif(exif: &[u8]) -> Tag {
    let mut tiff = exif;
    while let Some(rest) = tiff.strip_prefix(EXIF_PREFIX) {
        tiff = rest;
    }
    if tiff.is_empty() {
        return Tag::Absent;
    }
    let big_endian = match tiff.get(..4) {
        // only the first pattern of each is valid; Pillow accepts the others, too
        Some(b"II*\0" | b"II\0*") => false,
        Some(b"MM\0*" | b"MM*\0" | b"MM\0+") => true,
        _ => return Tag::Value(0),
    };
    let fields = Fields { tiff, big_endian };
    let Some(directory) = fields.u32_at(4) else { return Tag::Value(0) };
    fields.orientation(directory as usize)
}

/// A TIFF structure and its byte order.
struct Fields<'a> {
    tiff: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = self.tiff.get(at..at.checked_add(N)?)?.try_into().ok()?;
        if !self.big_endian {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn orientation(&self, directory: usize) -> Tag {
        let mut found = Tag::Absent;
        let entries = usize::from(self.u16_at(directory).unwrap_or(0));
        for at in (0..entries).map(|index| directory + 2 + ENTRY_BYTES * index) {
            let (Some(tag), Some(kind), Some(count), Some(value)) =
                (self.u16_at(at), self.u16_at(at + 2), self.u32_at(at + 4), self.u32_at(at + 8))
            else {
                break;
            };
            let Some(unit) = bytes_of_kind(kind) else { continue };
            let size = count as usize * unit;
            let value_at = if size > 4 { value as usize } else { at + 8 };
            if size > 4 && value_at.checked_add(size).is_none_or(|end| end > self.tiff.len()) {
                break;
            }
            if tag == ORIENTATION_TAG && size > 0 {
                found = Tag::Value(self.number(kind, value_at).unwrap_or(0));
            }
        }
        found
    }

    /// The number at `at`, if it is one of 0..=8. Text and byte fields are not numbers.
    fn number(&self, kind: u16, at: usize) -> Option<u32> {
        let value = match kind {
            3 => f64::from(self.u16_at(at)?),
            4 | 13 => f64::from(self.u32_at(at)?),
            5 => f64::from(self.u32_at(at)?) / f64::from(self.u32_at(at + 4)?),
            6 => f64::from(i8::from_be_bytes(self.array(at)?)),
            8 => f64::from(i16::from_be_bytes(self.array(at)?)),
            9 => f64::from(i32::from_be_bytes(self.array(at)?)),
            10 => {
                f64::from(i32::from_be_bytes(self.array(at)?))
                    / f64::from(i32::from_be_bytes(self.array(at + 4)?))
            }
            11 => f64::from(f32::from_be_bytes(self.array(at)?)),
            12 => f64::from_be_bytes(self.array(at)?),
            16 => u64::from_be_bytes(self.array(at)?) as f64,
            _ => return None,
        };
        (0..=8).find(|&whole| f64::from(whole) == value)
    }
}

/// Bytes of a directory entry: tag, kind, count and value.
const ENTRY_BYTES: usize = 12;

/// Bytes of one value, for the field types of TIFF 6.0, IFD (13) and BigTIFF's LONG8 (16).
fn bytes_of_kind(kind: u16) -> Option<usize> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

/// The digit of the first `tiff:Orientation="6` or `tiff:Orientation>6`.
fn orientation_in_xmp(xmp: &[u8]) -> Tag {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">")).and_then(|value| value.first());
        if let Some(digit) = value.filter(|digit| digit.is_ascii_digit()) {
            return Tag::Value(u32::from(digit - b'0'));
        }
    }
    Tag::Absent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(tag: u16, kind: u16, value: [u8; 4]) -> Vec<u8> {
        let mut bytes = b"MM\0*\0\0\0\x08\0\x02".to_vec();
        for (tag, kind, value) in [(256_u16, 3_u16, [0, 9, 0, 0]), (tag, kind, value)] {
            bytes.extend(tag.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(1_u32.to_be_bytes());
            bytes.extend(value);
        }
        bytes
    }

    #[test]
    fn the_tag_is_found_after_other_tags_and_takes_precedence_over_xmp() {
        let xmp = br#"<rdf tiff:Orientation="3">"#;
        let block = exif(274, 3, [0, 6, 0, 0]);
        assert_eq!(Orientation::from_metadata(Some(&block), Some(xmp)), Orientation(6));
        let prefixed = [b"Exif\0\0".to_vec(), block].concat();
        assert_eq!(Orientation::from_metadata(Some(&prefixed), None), Orientation(6));
        let other = exif(275, 3, [0, 6, 0, 0]);
        assert_eq!(Orientation::from_metadata(Some(&other), Some(xmp)), Orientation(3));
    }

    #[test]
    fn broken_metadata_means_upright() {
        let block = exif(274, 3, [0, 6, 0, 0]);
        for end in 0..block.len() - 2 {
            assert_eq!(Orientation::from_metadata(Some(&block[..end]), None), Orientation::UPRIGHT);
        }
        let nine = exif(274, 3, [0, 9, 0, 0]);
        assert_eq!(Orientation::from_metadata(Some(&nine), None), Orientation::UPRIGHT);
        assert_eq!(Orientation::from_metadata(None, Some(b"tiff:Orientation=six")), Orientation::UPRIGHT);
    }
}
