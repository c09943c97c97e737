//! EXIF orientation: turns pixels upright, as Pillow's `ImageOps.exif_transpose` does.

mod metadata;

pub(super) use self::metadata::EXIF_PREFIX;

use super::geometry::Window;

/// EXIF orientation 1..=8: the direction of the stored rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation(u8);

impl Orientation {
    pub(super) const UPRIGHT: Self = Self(1);

    /// From the value of the tag; an unknown value means upright.
    pub(super) fn from_tag(value: u32) -> Self {
        match value {
            1..=8 => Self(value as u8),
            _ => Self::UPRIGHT,
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

#[cfg(test)]
mod tests {
    use super::*;

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
