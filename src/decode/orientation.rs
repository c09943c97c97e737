//! EXIF orientation: reading it, and turning pixels upright.
//!
//! - Read as Pillow's `Image.getexif` does: the EXIF tag 274, else `tiff:Orientation` in XMP.
//! - Applied as Pillow's `ImageOps.exif_transpose` does; values outside 1..8 mean upright.

use super::geometry::Window;

/// EXIF orientation 1..8: which way the stored rows and columns run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation(u8);

const ORIENTATION_TAG: u16 = 274;

impl Orientation {
    pub(super) const UPRIGHT: Self = Self(1);

    /// From a tag's value; anything unknown is upright.
    pub(super) fn from_tag(value: u32) -> Self {
        match value {
            1..=8 => Self(value as u8),
            _ => Self::UPRIGHT,
        }
    }

    /// From an EXIF block, with or without its `Exif\0\0` prefix, and an XMP packet.
    pub(super) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let value = exif.and_then(orientation_in_exif).or_else(|| xmp.and_then(orientation_in_xmp));
        value.map_or(Self::UPRIGHT, Self::from_tag)
    }

    /// Whether width and height change places.
    pub(super) fn swaps_sides(self) -> bool {
        self.0 >= 5
    }

    /// Size of the upright image.
    pub(super) fn upright_size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.swaps_sides() { (height, width) } else { (width, height) }
    }

    /// The window of the stored image that holds `upright`, a window of the upright one.
    pub(super) fn stored_window(self, upright: Window) -> Window {
        let swap = |(a, b): (u32, u32)| if self.swaps_sides() { (b, a) } else { (a, b) };
        let mut stored =
            Window { resized: swap(upright.resized), cut: swap(upright.cut), kept: swap(upright.kept) };
        // whether stored columns and rows run against the upright ones
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

    /// Write the upright image of RGB `stored`, which is `width` × `height`, to `upright`.
    ///
    /// # Panics
    /// When either slice is not width × height × 3 long.
    pub(super) fn apply(self, stored: &[u8], (width, height): (u32, u32), upright: &mut [u8]) {
        let (width, height) = (width as isize, height as isize);
        assert_eq!(stored.len() as isize, width * height * 3, "stored image of the stated size");
        assert_eq!(stored.len(), upright.len(), "upright image of the same size");
        if stored.is_empty() {
            return;
        }
        let last = width * height - 1;
        // which stored pixel comes first, and the way to the next one right of it and below it
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

/// Tag 274 of the first directory of a TIFF structure.
fn orientation_in_exif(exif: &[u8]) -> Option<u32> {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let big_endian = match tiff.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    let entries = usize::from(u16_at(directory)?);
    // an entry is tag, type, count, value: 2 + 2 + 4 + 4 bytes
    for entry in (0..entries).map(|index| directory + 2 + 12 * index) {
        if u16_at(entry)? == ORIENTATION_TAG {
            return match u16_at(entry + 2)? {
                1 | 6 => tiff.get(entry + 8).map(|&byte| u32::from(byte)),
                3 | 8 => u16_at(entry + 8).map(u32::from),
                4 | 9 => u32_at(entry + 8),
                _ => None,
            };
        }
    }
    None
}

/// The digit of `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn orientation_in_xmp(xmp: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">")).and_then(|value| value.first());
        if let Some(digit) = value.filter(|digit| digit.is_ascii_digit()) {
            return Some(u32::from(digit - b'0'));
        }
    }
    None
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
    fn the_tag_is_found_behind_others_and_wins_over_xmp() {
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
    fn a_window_can_be_cut_before_or_after_turning_upright() {
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
