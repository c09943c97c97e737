//! RGB pixels to another size, bit for bit as Pillow's `Image.resize` does it.
//!
//! Comes in: an RGB image and the window of the resized image that is wanted. Goes out: that
//! window.
//!
//! - The arithmetic is Pillow's: coefficients in double precision, rounded to 22 fractional bits;
//!   32-bit sums; two passes, along the rows first, with 8-bit pixels between them. A model reacts
//!   to a difference of 1 in a few pixels by a thousandth of a score, which is why no resampling
//!   library serves here: `fast_image_resize` has coefficients of 16 bits.
//! - Only the window is computed: an extreme aspect ratio with `cover` costs no more than another.
//! - The inner loops are plain Rust that the compiler vectorises; `pulp` picks the instruction set
//!   at run time.

use std::f64::consts::PI;

use pulp::Arch;

use super::buffer::Buffer;
use super::geometry::Window;
use crate::config::Filter;

/// Which direction the first of the two passes shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstPass {
    /// Along the rows, as Pillow does.
    Width,
    /// Along the columns, for an image that is transposed afterwards.
    Height,
}

/// An RGB image, and how much of it counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub pixels: &'a [u8],
    /// Pixels.
    pub size: (u32, u32),
    /// Width and height that are mapped to the resized image, in pixels. Below `size` by less
    /// than 1 where a scaled JPEG decode rounded up.
    pub extent: (f64, f64),
}

/// The resizer of one thread with its memory.
#[derive(Debug, Default)]
pub(super) struct Resampler {
    /// The image between the two passes.
    between: Buffer,
    /// The last row, followed by the byte that reading four at a time asks for.
    last_row: Vec<u8>,
    across: Weights,
    down: Weights,
}

/// Fractional bits of a coefficient: 32 of a sum, less 8 of a pixel, less 2 for filters whose
/// coefficients exceed 1 or overshoot.
const FRACTION_BITS: u32 = 32 - 8 - 2;

/// A sum starts at one half, so that cutting the fraction off rounds.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Beyond this no intermediate image may outgrow the source: far more than models take, and no
/// more than a 20-megapixel photo itself.
const LARGE_BYTES: u64 = 64 << 20;

/// Channels of a pixel.
const RGB: usize = 3;

impl Resampler {
    /// Write `window` of the resized `source` to `out`, `kept` width × height × 3 bytes.
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
        let Self { between, last_row, across, down } = self;
        let pixels = &source.pixels[..width * height * RGB];
        match (keeps_width, keeps_height) {
            (true, true) => out.copy_from_slice(pixels),
            (true, false) => shrink_columns(pixels, width, 0, down, out),
            (false, true) => shrink_rows(pixels, width, across, last_row, out),
            (false, false) => {
                match first_pass(first, source.size, window.kept) {
                    FirstPass::Width => {
                        // rows that no result looks at are not filtered
                        let needed = down.reach();
                        let part = between.take(needed.len() * kept_width * RGB);
                        let from = &pixels[needed.start * width * RGB..needed.end * width * RGB];
                        shrink_rows(from, width, across, last_row, part);
                        shrink_columns(part, kept_width, needed.start, down, out);
                    }
                    FirstPass::Height => {
                        let part = between.take(width * kept_height * RGB);
                        shrink_columns(pixels, width, 0, down, part);
                        shrink_rows(part, width, across, last_row, out);
                    }
                }
                between.trim();
            }
        }
    }
}

/// `wanted`, unless that would blow a sliver up to an image far larger than source and result.
fn first_pass(wanted: FirstPass, (width, height): (u32, u32), kept: (u32, u32)) -> FirstPass {
    let bytes = |(width, height): (u32, u32)| u64::from(width) * u64::from(height) * RGB as u64;
    let (between, other) = match wanted {
        FirstPass::Width => ((kept.0, height), FirstPass::Height),
        FirstPass::Height => ((width, kept.1), FirstPass::Width),
    };
    if bytes(between) > bytes((width, height)).max(LARGE_BYTES) { other } else { wanted }
}

/// A filter of Pillow's: how far it reaches at scale 1, and its value there.
struct Kernel {
    support: f64,
    value: fn(f64) -> f64,
}

impl Kernel {
    fn of(filter: Filter) -> Option<Self> {
        let (support, value): (f64, fn(f64) -> f64) = match filter {
            Filter::Nearest => return None,
            Filter::Box => (0.5, |x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }),
            Filter::Bilinear => (1.0, |x| (1.0 - x.abs()).max(0.0)),
            Filter::Bicubic => (2.0, cubic),
            Filter::Lanczos3 => {
                (3.0, |x| if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 })
            }
        };
        Some(Self { support, value })
    }
}

/// Cubic convolution (Keys 1981) with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// For each resized position along one side: where its source pixels start, and their weights.
#[derive(Debug, Default)]
struct Weights {
    starts: Vec<usize>,
    /// `taps` for each position; what a position does not need is zero at its end.
    weights: Vec<i32>,
    /// Weights that each position really has.
    lengths: Vec<usize>,
    taps: usize,
    /// One position's weights before rounding.
    exact: Vec<f64>,
}

impl Weights {
    /// Weights of the resized positions `wanted`, each `scale` source pixels apart; the source has
    /// `length` pixels, of which `extent` are mapped.
    fn set(&mut self, kernel: &Kernel, scale: f64, extent: f64, length: usize, wanted: std::ops::Range<u32>) {
        debug_assert!(extent <= length as f64);
        let stretch = scale.max(1.0);
        let support = kernel.support * stretch;
        self.taps = support.ceil() as usize * 2 + 1;
        self.starts.clear();
        self.lengths.clear();
        self.weights.clear();
        for position in wanted {
            let center = (f64::from(position) + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(length);
            self.exact.clear();
            self.exact
                .extend((start..end).map(|at| (kernel.value)((at as f64 - center + 0.5) * stretch.recip())));
            let sum: f64 = self.exact.iter().sum();
            let norm = if sum == 0.0 { 1.0 } else { sum };
            self.starts.push(start);
            self.lengths.push(self.exact.len());
            self.weights.extend(self.exact.iter().map(|weight| fixed_point(weight / norm)));
            self.weights.resize(self.starts.len() * self.taps, 0);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.taps).zip(&self.lengths);
        self.starts.iter().zip(weights).map(|(&start, (weights, &length))| (start, &weights[..length]))
    }

    /// Source pixels that any position looks at.
    fn reach(&self) -> std::ops::Range<usize> {
        let end = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length).max();
        self.starts.first().copied().unwrap_or(0)..end.unwrap_or(0)
    }
}

/// Halves are rounded away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << FRACTION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

#[inline(always)]
fn to_pixel(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Filter each row of `pixels` along its length; `out` has as many rows.
fn shrink_rows(pixels: &[u8], width: usize, across: &Weights, last_row: &mut Vec<u8>, out: &mut [u8]) {
    let row_bytes = width * RGB;
    // a pixel is read with the byte behind it, which the last row does not have
    last_row.clear();
    last_row.extend_from_slice(&pixels[pixels.len() - row_bytes..]);
    last_row.push(0);
    let rows = pixels.len() / row_bytes;
    let row = |y: usize| {
        if y + 1 < rows { &pixels[y * row_bytes..=(y + 1) * row_bytes] } else { last_row.as_slice() }
    };
    let out_row_bytes = across.starts.len() * RGB;
    Arch::new().dispatch(|| {
        let mut pairs = out.chunks_exact_mut(2 * out_row_bytes);
        for (pair, out) in pairs.by_ref().enumerate() {
            let (upper, lower) = out.split_at_mut(out_row_bytes);
            shrink_two_rows(row(2 * pair), row(2 * pair + 1), across, upper, lower);
        }
        let odd = pairs.into_remainder();
        if !odd.is_empty() {
            let mut unused = vec![0; out_row_bytes];
            shrink_two_rows(row(rows - 1), row(rows - 1), across, odd, &mut unused);
        }
    });
}

/// Two rows at once, so that eight sums fill one register and each weight is loaded once.
#[inline(always)]
fn shrink_two_rows(upper: &[u8], lower: &[u8], across: &Weights, out_upper: &mut [u8], out_lower: &mut [u8]) {
    let out = out_upper.chunks_exact_mut(RGB).zip(out_lower.chunks_exact_mut(RGB));
    for ((start, weights), (out_upper, out_lower)) in across.iter().zip(out) {
        // three channels of a pixel and one byte of the next, whose sum is not used
        let bytes = start * RGB..(start + weights.len()) * RGB + 1;
        let (upper, lower) = (&upper[bytes.clone()], &lower[bytes]);
        let mut sums = [HALF; 8];
        for (tap, &weight) in weights.iter().enumerate() {
            let at = tap * RGB;
            let mut pixels = [0; 8];
            pixels[..4].copy_from_slice(&upper[at..at + 4]);
            pixels[4..].copy_from_slice(&lower[at..at + 4]);
            for (sum, pixel) in sums.iter_mut().zip(pixels) {
                *sum = sum.wrapping_add(i32::from(pixel).wrapping_mul(weight));
            }
        }
        let results = sums.map(to_pixel);
        out_upper.copy_from_slice(&results[..RGB]);
        out_lower.copy_from_slice(&results[4..4 + RGB]);
    }
}

/// Filter each column of `pixels`, whose first row is row `first_row` of the source.
fn shrink_columns(pixels: &[u8], width: usize, first_row: usize, down: &Weights, out: &mut [u8]) {
    let row_bytes = width * RGB;
    Arch::new().dispatch(|| {
        for ((start, weights), out_row) in down.iter().zip(out.chunks_exact_mut(row_bytes)) {
            let from = &pixels[(start - first_row) * row_bytes..][..weights.len() * row_bytes];
            let mut blocks = out_row.chunks_exact_mut(BLOCK);
            for (block, out) in blocks.by_ref().enumerate() {
                let mut sums = [HALF; BLOCK];
                for (row, &weight) in from.chunks_exact(row_bytes).zip(weights) {
                    let row = &row[block * BLOCK..][..BLOCK];
                    for (sum, &pixel) in sums.iter_mut().zip(row) {
                        *sum = sum.wrapping_add(i32::from(pixel).wrapping_mul(weight));
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = to_pixel(sum);
                }
            }
            let rest = blocks.into_remainder();
            let offset = row_bytes - rest.len();
            for (column, out) in rest.iter_mut().enumerate() {
                let sum = from.chunks_exact(row_bytes).zip(weights).fold(HALF, |sum, (row, &weight)| {
                    sum.wrapping_add(i32::from(row[offset + column]).wrapping_mul(weight))
                });
                *out = to_pixel(sum);
            }
        }
    });
}

/// Bytes of a row that are summed up at once: four registers of eight sums.
const BLOCK: usize = 32;

/// The source pixel below the centre of each resized one. Positions are summed up as Pillow sums
/// them, so that they fall on the same side of a pixel's edge.
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
    // nobody counts up to millions for a sliver, where the last bit is the least of all worries
    let skipped = if cut > MOST_SUMMED { cut } else { 0 };
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

/// Positions that are summed up one by one, a millisecond's work at the most.
const MOST_SUMMED: u32 = 1 << 20;

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
    fn the_same_size_is_a_copy() {
        let pixels = noise((13, 9));
        for filter in FILTERS {
            let window = Window { resized: (13, 9), cut: (0, 0), kept: (13, 9) };
            assert_eq!(resample(&pixels, (13, 9), window, filter), pixels, "{filter:?}");
        }
    }

    #[test]
    fn a_window_equals_the_same_part_of_the_whole() {
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

    #[test]
    fn a_sliver_takes_no_more_memory_than_a_square() {
        let size = (1, 3_000_000);
        let pixels = vec![7; bytes(size)];
        for filter in FILTERS {
            let window = Window { resized: (64, 192_000_000), cut: (0, 96_000_000), kept: (64, 64) };
            assert_eq!(resample(&pixels, size, window, filter), vec![7; bytes((64, 64))], "{filter:?}");
            assert_eq!(first_pass(FirstPass::Width, size, window.kept), FirstPass::Height);
        }
    }
}
