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

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;
use std::f64::consts::PI;

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;
use pulp::{Arch, NullaryFnOnce};

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
    /// Some rows of the source, column by column.
    lanes: Vec<Lanes>,
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
        let Self { between, lanes, across, down } = self;
        let pixels = &source.pixels[..width * height * RGB];
        match (keeps_width, keeps_height) {
            (true, true) => out.copy_from_slice(pixels),
            (true, false) => shrink_columns(pixels, width, 0, down, out),
            (false, true) => shrink_rows(pixels, width, across, lanes, out),
            (false, false) => {
                match first_pass(first, source.size, window.kept) {
                    FirstPass::Width => {
                        // rows that no result looks at are not filtered
                        let needed = down.reach();
                        let part = between.take(needed.len() * kept_width * RGB);
                        let from = &pixels[needed.start * width * RGB..needed.end * width * RGB];
                        shrink_rows(from, width, across, lanes, part);
                        shrink_columns(part, kept_width, needed.start, down, out);
                    }
                    FirstPass::Height => {
                        let part = between.take(width * kept_height * RGB);
                        shrink_columns(pixels, width, 0, down, part);
                        shrink_rows(part, width, across, lanes, out);
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
fn shrink_rows(pixels: &[u8], width: usize, across: &Weights, lanes: &mut Vec<Lanes>, out: &mut [u8]) {
    lanes.resize(width, [[0; LANES]; ROWS]);
    let row_bytes = width * RGB;
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new() {
        simd.vectorize(ShrinkRows { pixels, row_bytes, across, lanes, out, summing: Avx2(simd) });
        return;
    }
    Arch::new().dispatch(ShrinkRows { pixels, row_bytes, across, lanes, out, summing: Portable });
}

/// Filter each column of `pixels`, whose first row is row `first_row` of the source.
fn shrink_columns(pixels: &[u8], width: usize, first_row: usize, down: &Weights, out: &mut [u8]) {
    Arch::new().dispatch(ShrinkColumns { pixels, row_bytes: width * RGB, first_row, down, out });
}

/// Rows filtered at once: their sums fill two registers, and each weight is loaded once for all.
const ROWS: usize = 4;

/// A pixel's bytes beside those of other rows: three channels, and one whose sum is not used.
const LANES: usize = 4;

/// The pixels of one column in [`ROWS`] rows.
type Lanes = [[u8; LANES]; ROWS];

/// Sums of one resized column in [`ROWS`] rows.
type Sums = [i32; ROWS * LANES];

/// How the weighted pixels of one resized column are summed up.
trait Summing {
    /// One half plus the sum of each pixel times its weight.
    fn sums(&self, pixels: &[Lanes], weights: &[i32]) -> Sums;
}

struct Portable;

impl Summing for Portable {
    #[inline(always)]
    fn sums(&self, pixels: &[Lanes], weights: &[i32]) -> Sums {
        let mut sums = [HALF; ROWS * LANES];
        for (lanes, &weight) in pixels.iter().zip(weights) {
            for (sum, &lane) in sums.iter_mut().zip(lanes.as_flattened()) {
                *sum = sum.wrapping_add(i32::from(lane).wrapping_mul(weight));
            }
        }
        sums
    }
}

/// Spelled out, because the compiler would rather gather bytes across weights than keep the sums
/// in two registers, at half the speed.
#[cfg(target_arch = "x86_64")]
struct Avx2(V3);

#[cfg(target_arch = "x86_64")]
impl Summing for Avx2 {
    #[inline(always)]
    fn sums(&self, pixels: &[Lanes], weights: &[i32]) -> Sums {
        let V3 { sse2, avx, avx2, .. } = self.0;
        let mut low = avx._mm256_set1_epi32(HALF);
        let mut high = low;
        for (&lanes, &weight) in pixels.iter().zip(weights) {
            let lanes: __m128i = pulp::cast(lanes);
            let weight = avx._mm256_set1_epi32(weight);
            let (first, second) = (lanes, sse2._mm_unpackhi_epi64(lanes, lanes));
            let product = |half| avx2._mm256_mullo_epi32(avx2._mm256_cvtepu8_epi32(half), weight);
            low = avx2._mm256_add_epi32(low, product(first));
            high = avx2._mm256_add_epi32(high, product(second));
        }
        pulp::cast([low, high])
    }
}

/// One pass along the rows. A type and not a closure, because only this way the loops are sure to
/// be inlined into the function that `pulp` compiles for the instruction set.
struct ShrinkRows<'a, S> {
    summing: S,
    pixels: &'a [u8],
    row_bytes: usize,
    across: &'a Weights,
    /// One for each column of the source.
    lanes: &'a mut [Lanes],
    out: &'a mut [u8],
}

impl<S: Summing> NullaryFnOnce for ShrinkRows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { summing, pixels, row_bytes, across, lanes, out } = self;
        let out_row_bytes = across.starts.len() * RGB;
        let groups = pixels.chunks(ROWS * row_bytes).zip(out.chunks_mut(ROWS * out_row_bytes));
        for (rows, out) in groups {
            // a last group of fewer rows leaves old pixels in the other lanes, which nobody reads
            for (row, from) in rows.chunks_exact(row_bytes).enumerate() {
                spread(from, row, lanes);
            }
            let positions =
                across.starts.iter().zip(&across.lengths).zip(across.weights.chunks_exact(across.taps));
            for (column, ((&start, &length), weights)) in positions.enumerate() {
                let sums = summing.sums(&lanes[start..start + length], weights);
                let results = sums.map(to_pixel);
                for (row, out) in out.chunks_exact_mut(out_row_bytes).enumerate() {
                    out[column * RGB..][..RGB].copy_from_slice(&results[row * LANES..][..RGB]);
                }
            }
        }
    }
}

/// Put the pixels of one row beside those of the others.
#[inline(always)]
fn spread(from: &[u8], row: usize, lanes: &mut [Lanes]) {
    const PIXELS: usize = 4;
    let (blocks, rest) = from.as_chunks::<{ PIXELS * RGB }>();
    let mut lanes = lanes.chunks_exact_mut(PIXELS);
    for (block, lanes) in blocks.iter().zip(lanes.by_ref()) {
        // four bytes at a time are faster than three
        lanes[0][row] = [block[0], block[1], block[2], block[3]];
        lanes[1][row] = [block[3], block[4], block[5], block[6]];
        lanes[2][row] = [block[6], block[7], block[8], block[9]];
        lanes[3][row] = [block[9], block[10], block[11], 0];
    }
    for (pixel, lanes) in rest.chunks_exact(RGB).zip(lanes.into_remainder()) {
        lanes[row] = [pixel[0], pixel[1], pixel[2], 0];
    }
}

/// One pass along the columns.
struct ShrinkColumns<'a> {
    pixels: &'a [u8],
    row_bytes: usize,
    first_row: usize,
    down: &'a Weights,
    out: &'a mut [u8],
}

impl NullaryFnOnce for ShrinkColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { pixels, row_bytes, first_row, down, out } = self;
        let positions = down.starts.iter().zip(&down.lengths).zip(down.weights.chunks_exact(down.taps));
        for (((&start, &length), weights), out_row) in positions.zip(out.chunks_exact_mut(row_bytes)) {
            let from = &pixels[(start - first_row) * row_bytes..][..length * row_bytes];
            let weights = &weights[..length];
            let mut blocks = out_row.chunks_exact_mut(BLOCK);
            for (block, out) in blocks.by_ref().enumerate() {
                let mut sums = [HALF; BLOCK];
                for (row, &weight) in from.chunks_exact(row_bytes).zip(weights) {
                    let row = &row[block * BLOCK..][..BLOCK];
                    for lane in 0..BLOCK {
                        sums[lane] = sums[lane].wrapping_add(i32::from(row[lane]).wrapping_mul(weight));
                    }
                }
                for lane in 0..BLOCK {
                    out[lane] = to_pixel(sums[lane]);
                }
            }
            let rest = blocks.into_remainder();
            let offset = row_bytes - rest.len();
            for (column, out) in rest.iter_mut().enumerate() {
                let mut sum = HALF;
                for (row, &weight) in from.chunks_exact(row_bytes).zip(weights) {
                    sum = sum.wrapping_add(i32::from(row[offset + column]).wrapping_mul(weight));
                }
                *out = to_pixel(sum);
            }
        }
    }
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
