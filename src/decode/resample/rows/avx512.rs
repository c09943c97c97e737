//! The horizontal pass with AVX-512: one resized pixel in each of sixteen rows at a time.
//!
//! - Pixels are transposed first: a register holds one channel of two neighbouring pixels in each of
//!   sixteen rows. A pair of taps is then one multiplication for all rows, without a horizontal sum.

use std::arch::x86_64::__m512i;

use pulp::{NullaryFnOnce, x86::V4};

use super::super::weights::{FRACTION_BITS, HALF, RGB, Weights};
use super::taps::{LOW_BITS, split, with_slack};

/// Weights and memory of the pass.
#[derive(Debug, Default)]
pub(super) struct RowPass {
    taps: PairedTaps,
    /// [`ROWS`] rows, transposed.
    strip: Vec<Pair>,
    /// A copy of the last rows, padded with zeros.
    tail: Vec<u8>,
}

impl RowPass {
    /// Filter each row of `pixels`; `out` has as many rows.
    pub(super) fn run(
        &mut self,
        simd: V4,
        pixels: &[u8],
        row_bytes: usize,
        across: &Weights,
        out: &mut [u8],
    ) {
        self.taps.pack(across);
        let steps = row_bytes.div_ceil(STEP_BYTES);
        let none = pulp::cast([0_u8; 64]);
        self.strip.resize(steps * PAIRS, [none; RGB]);
        let Self { taps, strip, tail } = self;
        simd.vectorize(FilterRows { simd, pixels, row_bytes, taps, strip, tail, out });
    }

    #[cfg(test)]
    pub(super) fn strip_bytes(&self) -> usize {
        self.strip.capacity() * size_of::<Pair>()
    }
}

/// Widest image, in pixels, that is resized here: its strip takes 1.6 MB, and a cache holds no more.
/// The strip of an image of a million pixels in a row would take 100 MB in each thread.
pub(super) const WIDEST: usize = 16_384;

/// Rows filtered at once: a register holds one 32-bit sum of each.
const ROWS: usize = 16;

/// Two neighbouring pixels of [`ROWS`] rows: for each channel and row, two 16-bit samples.
type Pair = [__m512i; RGB];

/// Pairs that are transposed at once, and their bytes in a row.
const PAIRS: usize = 2;
const STEP_BYTES: usize = PAIRS * 2 * RGB;

/// Bytes of one load, of which [`STEP_BYTES`] are used.
const LOAD_BYTES: usize = 16;

/// Bytes that may be loaded past the end of a row: the last pixel of a row may be the first of a step.
const SLACK_BYTES: usize = LOAD_BYTES - RGB;

/// Resized pixels of a row that are written at once.
const COLUMNS: usize = 4;

/// The weights of all positions, split into low and high parts, in pairs that begin at even pixels.
#[derive(Debug, Default)]
struct PairedTaps {
    /// For each position, its first pair of pixels, and the end of its weights.
    positions: Vec<(usize, usize)>,
    /// The low parts of the weights of two pixels, and their high parts, packed as two 16-bit halves.
    weights: Vec<[i32; 2]>,
}

impl PairedTaps {
    fn pack(&mut self, across: &Weights) {
        self.positions.clear();
        self.weights.clear();
        for (start, weights) in across.positions() {
            let (single, pairs) = weights.split_at((start % 2).min(weights.len()));
            self.weights.extend(single.iter().map(|&weight| paired(0, weight)));
            let pairs = pairs.chunks(2).map(|pair| paired(pair[0], pair.get(1).copied().unwrap_or(0)));
            self.weights.extend(pairs);
            self.positions.push((start / 2, self.weights.len()));
        }
    }
}

fn paired(first: i32, second: i32) -> [i32; 2] {
    let ([first_low, first_high], [second_low, second_high]) = (split(first), split(second));
    pulp::cast([first_low, second_low, first_high, second_high])
}

struct FilterRows<'a> {
    simd: V4,
    pixels: &'a [u8],
    row_bytes: usize,
    taps: &'a PairedTaps,
    strip: &'a mut [Pair],
    tail: &'a mut Vec<u8>,
    out: &'a mut [u8],
}

impl NullaryFnOnce for FilterRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, pixels, row_bytes, taps, strip, tail, out } = self;
        let out_row_bytes = taps.positions.len() * RGB;
        let wanted_bytes = ROWS * row_bytes + SLACK_BYTES;
        for (group, out) in out.chunks_mut(ROWS * out_row_bytes).enumerate() {
            let rows = with_slack(&pixels[group * ROWS * row_bytes..], wanted_bytes, tail);
            for (step, pairs) in strip.as_chunks_mut::<PAIRS>().0.iter_mut().enumerate() {
                *pairs = transposed_pairs(simd, &rows[step * STEP_BYTES..], row_bytes);
            }
            let mut weights = 0;
            for (block, positions) in taps.positions.chunks(COLUMNS).enumerate() {
                let mut columns = [simd.avx512f._mm512_setzero_si512(); COLUMNS];
                for (column, &(pair, end)) in columns.iter_mut().zip(positions) {
                    *column = filtered(simd, &strip[pair..], &taps.weights[weights..end]);
                    weights = end;
                }
                let rows = rows_of(simd, columns);
                let at = block * COLUMNS * RGB;
                for (row, pixels) in out.chunks_exact_mut(out_row_bytes).zip(rows) {
                    match row[at..].first_chunk_mut() {
                        Some(all) => *all = pixels,
                        None => row[at..].copy_from_slice(&pixels[..positions.len() * RGB]),
                    }
                }
            }
        }
    }
}

/// [`PAIRS`] pairs of pixels at the beginning of each row, transposed.
#[inline(always)]
fn transposed_pairs(simd: V4, rows: &[u8], row_bytes: usize) -> [Pair; PAIRS] {
    /// Shuffle for two pixels in each quarter of a register: both reds, both greens, both blues, as
    /// 16-bit samples.
    const NONE: u8 = 0x80;
    const SAMPLES: [[[u8; LOAD_BYTES]; 4]; PAIRS] = {
        let mut samples = [[[NONE; LOAD_BYTES]; 4]; PAIRS];
        let mut at = 0;
        while at < PAIRS * 4 * RGB {
            let (pair, quarter, channel) = (at / (4 * RGB), at / RGB % 4, at % RGB);
            let from = pair * 2 * RGB + channel;
            samples[pair][quarter][channel * 4] = from as u8;
            samples[pair][quarter][channel * 4 + 2] = (from + RGB) as u8;
            at += 1;
        }
        samples
    };
    let V4 { avx512f, avx512bw, .. } = simd;
    // quarter q of register r is row 4q + r
    let mut bytes = [[[0; LOAD_BYTES]; 4]; 4];
    for row in 0..ROWS {
        let from = rows[row * row_bytes..].first_chunk();
        bytes[row % 4][row / 4] = *from.expect("with_slack pads the rows");
    }
    let mut pairs = [[avx512f._mm512_setzero_si512(); RGB]; PAIRS];
    for (pair, samples) in pairs.iter_mut().zip(SAMPLES) {
        let samples = pulp::cast(samples);
        let a = avx512bw._mm512_shuffle_epi8(pulp::cast(bytes[0]), samples);
        let b = avx512bw._mm512_shuffle_epi8(pulp::cast(bytes[1]), samples);
        let c = avx512bw._mm512_shuffle_epi8(pulp::cast(bytes[2]), samples);
        let d = avx512bw._mm512_shuffle_epi8(pulp::cast(bytes[3]), samples);
        let [red, green, blue, _] = transposed(simd, [a, b, c, d]);
        *pair = [red, green, blue];
    }
    pairs
}

/// One resized pixel in each row: three channels and a zero byte.
#[inline(always)]
fn filtered(simd: V4, strip: &[Pair], weights: &[[i32; 2]]) -> __m512i {
    /// Shuffle that turns, in each quarter, the reds, greens and blues of four rows into four pixels.
    const PIXELS: [[u8; 16]; 4] = [[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]; 4];
    let V4 { avx512f, avx512bw, .. } = simd;
    let (mut low, mut high) = ([avx512f._mm512_set1_epi32(HALF); RGB], [avx512f._mm512_setzero_si512(); RGB]);
    for (pair, &[low_weights, high_weights]) in strip.iter().zip(weights) {
        let low_weights = avx512f._mm512_set1_epi32(low_weights);
        let high_weights = avx512f._mm512_set1_epi32(high_weights);
        for channel in 0..RGB {
            let (low_sum, high_sum) = (&mut low[channel], &mut high[channel]);
            let samples = pair[channel];
            *low_sum = avx512f._mm512_add_epi32(*low_sum, avx512bw._mm512_madd_epi16(samples, low_weights));
            *high_sum =
                avx512f._mm512_add_epi32(*high_sum, avx512bw._mm512_madd_epi16(samples, high_weights));
        }
    }
    let mut sums = low;
    for (sum, high) in sums.iter_mut().zip(high) {
        let whole = avx512f._mm512_add_epi32(*sum, avx512f._mm512_slli_epi32::<LOW_BITS>(high));
        *sum = avx512f._mm512_srai_epi32::<FRACTION_BITS>(whole);
    }
    // packing saturates at 0 and 255
    let words = avx512bw._mm512_packus_epi32(sums[0], sums[1]);
    let rest = avx512bw._mm512_packus_epi32(sums[2], avx512f._mm512_setzero_si512());
    avx512bw._mm512_shuffle_epi8(avx512bw._mm512_packus_epi16(words, rest), pulp::cast(PIXELS))
}

/// Transpose columns of four-byte pixels to rows of three-byte pixels.
#[inline(always)]
fn rows_of(simd: V4, columns: [__m512i; COLUMNS]) -> [[u8; COLUMNS * RGB]; ROWS] {
    /// Shuffle that drops, in each quarter, the fourth byte of each pixel.
    const COMPACT: [[u8; 16]; 4] = [[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15]; 4];
    let mut rows = [[0; COLUMNS * RGB]; ROWS];
    for (register, pixels) in transposed(simd, columns).into_iter().enumerate() {
        let quarters: [[u8; 16]; 4] =
            pulp::cast(simd.avx512bw._mm512_shuffle_epi8(pixels, pulp::cast(COMPACT)));
        for (quarter, pixels) in quarters.iter().enumerate() {
            rows[4 * quarter + register].copy_from_slice(&pixels[..COLUMNS * RGB]);
        }
    }
    rows
}

/// Transpose the 4×4 matrix of 32-bit numbers in each quarter.
#[inline(always)]
fn transposed(simd: V4, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let V4 { avx512f, .. } = simd;
    let (ab, cd) = (avx512f._mm512_unpacklo_epi32(a, b), avx512f._mm512_unpacklo_epi32(c, d));
    let (ab_rest, cd_rest) = (avx512f._mm512_unpackhi_epi32(a, b), avx512f._mm512_unpackhi_epi32(c, d));
    [
        avx512f._mm512_unpacklo_epi64(ab, cd),
        avx512f._mm512_unpackhi_epi64(ab, cd),
        avx512f._mm512_unpacklo_epi64(ab_rest, cd_rest),
        avx512f._mm512_unpackhi_epi64(ab_rest, cd_rest),
    ]
}
