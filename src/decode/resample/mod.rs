//! Resizes RGB images, bit for bit as Pillow's `Image.resize` does.
//!
//! Input: an RGB image, and the wanted window of the resized image. Output: that window.
//!
//! - The arithmetic is Pillow's: coefficients in double precision, rounded to 22 fractional bits; 32-bit sums; two
//!   passes with 8-bit pixels between them, horizontally first unless the image is more than a hundred times as tall as
//!   wide. A difference of 1 in a few pixels changes a score by about 0.001, so libraries with less precise arithmetic
//!   are not used: `fast_image_resize` has 16-bit coefficients.
//! - Only the window is computed, so an extreme aspect ratio with `cover` costs no more than others.
//! - The inner loops are safe Rust; `pulp` picks the instruction set at run time.

mod columns;
mod rows;
mod weights;

use self::columns::filter_columns;
use self::rows::RowPass;
use self::weights::{Kernel, RGB, Weights};
use super::buffer::Buffer;
use super::geometry::Window;
use crate::config::Filter;

/// The side that the first of the two passes resizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstPass {
    /// The horizontal pass is first, as in Pillow for all but very tall images.
    Width,
    /// The vertical pass is first, for an image that is transposed afterwards.
    Height,
}

impl FirstPass {
    fn other(self) -> Self {
        match self {
            Self::Width => Self::Height,
            Self::Height => Self::Width,
        }
    }
}

/// An RGB image, and the part of it that is resized.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub pixels: &'a [u8],
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Width and height that map to the resized image, in pixels. Less than `size`, by less than 1, if
    /// a scaled JPEG decode rounded up.
    pub extent: (f64, f64),
}

/// The resizer of one thread, with its memory.
#[derive(Debug, Default)]
pub(super) struct Resampler {
    /// The image between the two passes.
    between: Buffer,
    row_pass: RowPass,
    across: Weights,
    down: Weights,
}

/// An intermediate image larger than this must not be larger than the source. It is far more than
/// models take, and about the size of a 20-megapixel photo.
const LARGE_BYTES: u64 = 64 << 20;

impl Resampler {
    /// Write `window` of the resized `source` to `out`, which holds `window.kept` width × height × 3
    /// bytes.
    pub(super) fn resample(
        &mut self,
        source: Source<'_>,
        window: Window,
        filter: Filter,
        first: FirstPass,
        out: &mut [u8],
    ) {
        let scale =
            (source.extent.0 / f64::from(window.resized.0), source.extent.1 / f64::from(window.resized.1));
        let Some(kernel) = Kernel::of(filter) else {
            nearest(source, scale, window, out);
            return;
        };
        let (width, height) = (source.size.0 as usize, source.size.1 as usize);
        let (kept_width, kept_height) = (window.kept.0 as usize, window.kept.1 as usize);
        let (columns, rows) =
            (window.cut.0..window.cut.0 + window.kept.0, window.cut.1..window.cut.1 + window.kept.1);
        // a side that keeps its size is not filtered, as in Pillow
        let keeps_width = kept_width == width && source.extent.0 == f64::from(window.resized.0);
        let keeps_height = kept_height == height && source.extent.1 == f64::from(window.resized.1);
        self.across.set(&kernel, scale.0, source.extent.0, width, columns);
        self.down.set(&kernel, scale.1, source.extent.1, height, rows);
        let Self { between, row_pass, across, down } = self;
        let pixels = &source.pixels[..width * height * RGB];
        match (keeps_width, keeps_height) {
            (true, true) => out.copy_from_slice(pixels),
            (true, false) => filter_columns(pixels, width, 0, down, out),
            (false, true) => row_pass.run(pixels, width, across, out),
            (false, false) => {
                match first_pass(first, source.size, window) {
                    FirstPass::Width => {
                        // source rows that no resized row needs are not filtered
                        let needed = down.reach();
                        let part = between.take(needed.len() * kept_width * RGB);
                        let from = &pixels[needed.start * width * RGB..needed.end * width * RGB];
                        row_pass.run(from, width, across, part);
                        filter_columns(part, kept_width, needed.start, down, out);
                    }
                    FirstPass::Height => {
                        let part = between.take(width * kept_height * RGB);
                        filter_columns(pixels, width, 0, down, part);
                        row_pass.run(part, width, across, out);
                    }
                }
                between.trim();
            }
        }
    }
}

/// Ratio of height to width above which Pillow resizes vertically first.
const TALL: u64 = 100;

/// The first pass that Pillow would choose; `wanted` is `Width` if the source is upright, and `Height` if it is
/// transposed. The order is reversed if the intermediate image of a sliver would be far larger than source and result.
fn first_pass(wanted: FirstPass, size: (u32, u32), Window { resized, kept, .. }: Window) -> FirstPass {
    let (height, width, resized_height) = match wanted {
        FirstPass::Width => (size.1, size.0, resized.1),
        FirstPass::Height => (size.0, size.1, resized.0),
    };
    let is_tall = u64::from(height) > TALL * u64::from(width) && resized_height < height;
    let wanted = if is_tall { wanted.other() } else { wanted };
    let bytes = |(width, height): (u32, u32)| u64::from(width) * u64::from(height) * RGB as u64;
    let between = match wanted {
        FirstPass::Width => (kept.0, size.1),
        FirstPass::Height => (size.0, kept.1),
    };
    if bytes(between) > bytes(size).max(LARGE_BYTES) { wanted.other() } else { wanted }
}

/// Copy the source pixel at the centre of each resized pixel. Positions are accumulated as in Pillow, so
/// that rounding puts them on the same side of a pixel edge.
fn nearest(source: Source, scale: (f64, f64), window: Window, out: &mut [u8]) {
    let columns = nearest_positions(scale.0, window.cut.0, window.kept.0, source.size.0);
    let rows = nearest_positions(scale.1, window.cut.1, window.kept.1, source.size.1);
    let row_bytes = source.size.0 as usize * 3;
    for (row, out_row) in rows.into_iter().zip(out.chunks_exact_mut(columns.len() * 3)) {
        let from = &source.pixels[row * row_bytes..(row + 1) * row_bytes];
        for (&column, pixel) in columns.iter().zip(out_row.chunks_exact_mut(3)) {
            pixel.copy_from_slice(&from[column * 3..column * 3 + 3]);
        }
    }
}

fn nearest_positions(scale: f64, cut: u32, kept: u32, length: u32) -> Vec<usize> {
    // beyond the limit the position is multiplied, which may differ from the sum in the last bit
    let skipped = if cut > MAX_ACCUMULATED { cut } else { 0 };
    let mut position = scale * (f64::from(skipped) + 0.5);
    let mut positions = Vec::with_capacity(kept as usize);
    for index in skipped..cut + kept {
        if index >= cut {
            positions.push((position as usize).min(length as usize - 1));
        }
        position += scale;
    }
    positions
}

/// Limit of the positions that are accumulated one by one: at most a millisecond of work.
const MAX_ACCUMULATED: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes((width, height): (u32, u32)) -> usize {
        width as usize * height as usize * RGB
    }

    const FILTERS: [Filter; 5] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos3];

    fn noise(size: (u32, u32)) -> Vec<u8> {
        (0..bytes(size) as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn resample(pixels: &[u8], size: (u32, u32), window: Window, filter: Filter) -> Vec<u8> {
        let extent = (f64::from(size.0), f64::from(size.1));
        let mut out = vec![0; bytes(window.kept)];
        Resampler::default().resample(
            Source { pixels, size, extent },
            window,
            filter,
            FirstPass::Width,
            &mut out,
        );
        out
    }

    #[test]
    fn resizing_to_the_same_size_is_a_copy() {
        let pixels = noise((13, 9));
        for filter in FILTERS {
            let window = Window { resized: (13, 9), cut: (0, 0), kept: (13, 9) };
            assert_eq!(resample(&pixels, (13, 9), window, filter), pixels, "{filter:?}");
        }
    }

    #[test]
    fn a_window_equals_the_same_part_of_the_whole_resized_image() {
        let size = (61, 47);
        let pixels = noise(size);
        for filter in FILTERS {
            for resized in [(20, 20), (100, 31), (61, 90)] {
                let all = Window { resized, cut: (0, 0), kept: resized };
                let whole = resample(&pixels, size, all, filter);
                let window = Window { resized, cut: (3, 4), kept: (11, 13) };
                let part = resample(&pixels, size, window, filter);
                for (index, row) in part.chunks(33).enumerate() {
                    let at = ((index + 4) * resized.0 as usize + 3) * 3;
                    assert_eq!(row, &whole[at..at + 33], "{filter:?} {resized:?}");
                }
            }
        }
    }

    /// CRC-32C of the result of Pillow 12.3's `Image.resize` for the same noise.
    const CRCS: [(Filter, u32); 4] = [
        (Filter::Box, 0x1fac_fba8),
        (Filter::Bilinear, 0xa871_3e17),
        (Filter::Bicubic, 0xff4d_9aff),
        (Filter::Lanczos3, 0x09ec_ac28),
    ];

    #[test]
    fn a_very_tall_image_is_resized_vertically_first_as_in_pillow() {
        let (size, resized) = ((2, 210), (3, 50));
        let upright = noise(size);
        let turned: Vec<u8> = (0..2)
            .flat_map(|x| (0..210).map(move |y| (y * 2 + x) * 3))
            .flat_map(|at| upright[at..at + 3].to_vec())
            .collect();
        for (filter, expected) in CRCS {
            let window = Window { resized, cut: (0, 0), kept: resized };
            let out = resample(&upright, size, window, filter);
            assert_eq!(crc32c::crc32c(&out), expected, "{filter:?}");
            // the transposed image gives the same pixels
            let window = Window { resized: (50, 3), cut: (0, 0), kept: (50, 3) };
            let source = Source { pixels: &turned, size: (210, 2), extent: (210.0, 2.0) };
            let mut on_its_side = vec![0; out.len()];
            Resampler::default().resample(source, window, filter, FirstPass::Height, &mut on_its_side);
            let pixel = |x: usize, y: usize| &on_its_side[(x * 50 + y) * 3..][..3];
            for (at, expected) in out.chunks(3).enumerate() {
                assert_eq!(pixel(at % 3, at / 3), expected, "{filter:?}, pixel {at}");
            }
        }
    }

    #[test]
    fn a_sliver_takes_no_more_memory_than_a_square() {
        let size = (1, 3_000_000);
        let pixels = vec![7; bytes(size)];
        for filter in FILTERS {
            let window = Window { resized: (64, 192_000_000), cut: (0, 96_000_000), kept: (64, 64) };
            assert_eq!(resample(&pixels, size, window, filter), vec![7; bytes((64, 64))], "{filter:?}");
            assert_eq!(first_pass(FirstPass::Width, size, window), FirstPass::Height);
        }
    }
}
