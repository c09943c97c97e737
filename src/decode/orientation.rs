//! EXIF orientation: reading it, and turning pixels upright.
//!
//! - Read as by Pillow's `Image.getexif`: the EXIF tag 274, else `tiff:Orientation` in XMP. A tag with
//!   a value outside 1..=8 also takes precedence over XMP, and means upright.
//! - Unreadable metadata means upright; it is no reason to reject the image.
//! - Applied as Pillow's `ImageOps.exif_transpose` does.

use super::geometry::Window;

/// EXIF orientation 1..=8: the direction of the stored rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation(u8);

const ORIENTATION_TAG: u16 = 274;

/// Prefix of the TIFF structure in a JPEG's APP1 segment, and in the EXIF chunks of some WebP files.
pub(super) const EXIF_PREFIX: &[u8] = b"Exif\0\0";

impl Orientation {
    pub(super) const UPRIGHT: Self = Self(1);

    /// From the value of the tag; an unknown value means upright.
    pub(super) fn from_tag(value: u32) -> Self {
        match value {
            1..=8 => Self(value as u8),
            _ => Self::UPRIGHT,
        }
    }

    /// From an EXIF block, with or without its `Exif\0\0` prefix, and an XMP packet.
    pub(super) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let tag = match exif.map_or(Tag::Absent, orientation_in_exif) {
            Tag::Absent => xmp.map_or(Tag::Absent, orientation_in_xmp),
            value => value,
        };
        match tag {
            Tag::Value(value) => Self::from_tag(value),
            Tag::Absent => Self::UPRIGHT,
        }
    }

    /// Whether width and height are swapped.
    pub(super) fn swaps_sides(self) -> bool {
        self.0 >= 5
    }

    /// Size of the upright image.
    pub(super) fn upright_size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.swaps_sides() { (height, width) } else { (width, height) }
    }

    /// The window of the stored image that corresponds to `upright`, a window of the upright image.
    pub(super) fn stored_window(self, upright: Window) -> Window {
        let swap = |(a, b): (u32, u32)| if self.swaps_sides() { (b, a) } else { (a, b) };
        let mut stored =
            Window { resized: swap(upright.resized), cut: swap(upright.cut), kept: swap(upright.kept) };
        // whether stored columns and rows run in the opposite direction
        let (columns_reversed, rows_reversed) = match self.0 {
            2 => (true, false),
            3 | 7 => (true, true),
            4 | 6 => (false, true),
            8 => (true, false),
            _ => (false, false),
        };
        if columns_reversed {
            stored.cut.0 = stored.resized.0 - stored.cut.0 - stored.kept.0;
        }
        if rows_reversed {
            stored.cut.1 = stored.resized.1 - stored.cut.1 - stored.kept.1;
        }
        stored
    }

    /// Turn the RGB image `stored` of `width` × `height` pixels upright, and write it to `upright`.
    ///
    /// # Panics
    /// If either slice is not width × height × 3 bytes long.
    pub(super) fn apply(self, stored: &[u8], (width, height): (u32, u32), upright: &mut [u8]) {
        let (width, height) = (width as isize, height as isize);
        assert_eq!(stored.len() as isize, width * height * 3, "stored image of the stated size");
        assert_eq!(stored.len(), upright.len(), "upright image of the same size");
        if stored.is_empty() {
            return;
        }
        let last = width * height - 1;
        // index of the first stored pixel, and the steps to the next pixel to the right and below
        let (first, right, down) = match self.0 {
            2 => (width - 1, -1, width),
            3 => (last, -1, -width),
            4 => (last - (width - 1), 1, -width),
            5 => (0, width, 1),
            6 => (last - (width - 1), -width, 1),
            7 => (last, -width, -1),
            8 => (width - 1, width, -1),
            _ => return upright.copy_from_slice(stored),
        };
        let (upright_width, _) = self.upright_size((width as u32, height as u32));
        let mut row_start = first;
        for row in upright.chunks_exact_mut(upright_width as usize * 3) {
            let mut at = row_start;
            for pixel in row.chunks_exact_mut(3) {
                let from = at as usize * 3;
                pixel.copy_from_slice(&stored[from..from + 3]);
                at += right;
            }
            row_start += down;
        }
    }
}

/// What a metadata block says about the orientation.
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

    /// 3×2 pixels named a b c / d e f.
    #[test]
    fn every_orientation_turns_the_image_upright() {
        let expected = ["abcdef", "cbafed", "fedcba", "defabc", "adbecf", "daebfc", "fcebda", "cfbead"];
        let stored: Vec<u8> = "abcdef".bytes().flat_map(|name| [name; 3]).collect();
        for (value, expected) in (1..).zip(expected) {
            let mut upright = vec![0; 18];
            Orientation::from_tag(value).apply(&stored, (3, 2), &mut upright);
            let names: String = upright.chunks(3).map(|pixel| char::from(pixel[0])).collect();
            assert_eq!(names, expected, "orientation {value}");
        }
    }

    #[test]
    fn cropping_a_window_before_or_after_turning_upright_gives_the_same_pixels() {
        let (width, height) = (5, 4);
        let stored: Vec<u8> = (0..width * height).flat_map(|at| [at as u8; 3]).collect();
        for value in 1..=8 {
            let orientation = Orientation::from_tag(value);
            let resized = orientation.upright_size((width, height));
            let upright = Window { resized, cut: (1, 0), kept: (2, 3) };
            let mut turned = vec![0; stored.len()];
            orientation.apply(&stored, (width, height), &mut turned);
            let window = orientation.stored_window(upright);
            let mut cut_first = vec![0; 18];
            let part = cut(&stored, width, &window);
            orientation.apply(&part, window.kept, &mut cut_first);
            assert_eq!(cut_first, cut(&turned, resized.0, &upright), "orientation {value}");
        }
    }

    fn cut(pixels: &[u8], width: u32, window: &Window) -> Vec<u8> {
        let rows = pixels.chunks(width as usize * 3).skip(window.cut.1 as usize).take(window.kept.1 as usize);
        let columns = window.cut.0 as usize * 3..(window.cut.0 + window.kept.0) as usize * 3;
        rows.flat_map(|row| row[columns.clone()].to_vec()).collect()
    }
}
