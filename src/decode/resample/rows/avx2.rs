//! The horizontal pass with AVX2: one resized pixel in each of four rows at a time.
//!
//! - A register holds two pixels of a row in each half, so one pair of weights applies to all three
//!   channels.

use std::arch::x86_64::__m256i;

use pulp::{NullaryFnOnce, x86::V3};

use super::super::weights::{FRACTION_BITS, HALF, RGB, Weights};
use super::taps::{LOW_BITS, split, with_slack};

/// Weights and memory of the pass.
#[derive(Debug, Default)]
pub(super) struct RowPass {
    taps: PackedTaps,
    /// A copy of the last rows, padded with zeros.
    tail: Vec<u8>,
}

impl RowPass {
    /// Filter each row of `pixels`; `out` has as many rows.
    pub(super) fn run(
        &mut self,
        simd: V3,
        pixels: &[u8],
        row_bytes: usize,
        across: &Weights,
        out: &mut [u8],
    ) {
        self.taps.pack(across);
        let Self { taps, tail } = self;
        simd.vectorize(FilterRows { simd, pixels, row_bytes, taps, tail, out });
    }
}

/// Taps that are processed at once: a register holds two in each half.
const TAPS: usize = 4;

/// The low parts of [`TAPS`] weights, and their high parts.
type Block = [i16; 2 * TAPS];

/// The weights of all positions, split into low and high parts and grouped in blocks.
#[derive(Debug, Default)]
struct PackedTaps {
    /// For each position, the offset of its first source byte, and the end of its blocks.
    positions: Vec<(usize, usize)>,
    blocks: Vec<Block>,
}

impl PackedTaps {
    fn pack(&mut self, across: &Weights) {
        self.positions.clear();
        self.blocks.clear();
        for (start, weights) in across.positions() {
            for taps in weights.chunks(TAPS) {
                let mut block = [0; 2 * TAPS];
                for (tap, &weight) in taps.iter().enumerate() {
                    [block[tap], block[TAPS + tap]] = split(weight);
                }
                self.blocks.push(block);
            }
            self.positions.push((start * RGB, self.blocks.len()));
        }
    }
}

/// Rows filtered at once: their sums take eight registers, and each weight is loaded once for all rows.
const ROWS: usize = 4;

/// Bytes of one load, of which [`TAPS`] pixels are used.
const LOAD_BYTES: usize = 16;

/// Bytes that may be loaded past the end of a row: the last pixel of a row may be the first of a block.
const SLACK_BYTES: usize = LOAD_BYTES - RGB;

struct FilterRows<'a> {
    simd: V3,
    pixels: &'a [u8],
    row_bytes: usize,
    taps: &'a PackedTaps,
    tail: &'a mut Vec<u8>,
    out: &'a mut [u8],
}

impl NullaryFnOnce for FilterRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, pixels, row_bytes, taps, tail, out } = self;
        let out_row_bytes = taps.positions.len() * RGB;
        let wanted_bytes = ROWS * row_bytes + SLACK_BYTES;
        for (group, out) in out.chunks_mut(ROWS * out_row_bytes).enumerate() {
            let rows = with_slack(&pixels[group * ROWS * row_bytes..], wanted_bytes, tail);
            let mut block = 0;
            for (column, &(start, end)) in taps.positions.iter().enumerate() {
                let results = filtered(simd, &rows[start..], row_bytes, &taps.blocks[block..end]);
                block = end;
                for (row, pixel) in out.chunks_exact_mut(out_row_bytes).zip(results.as_chunks::<4>().0) {
                    row[column * RGB..][..RGB].copy_from_slice(&pixel[..RGB]);
                }
            }
        }
    }
}

/// One resized pixel in each of [`ROWS`] rows: three channels and an unused byte.
#[inline(always)]
fn filtered(simd: V3, rows: &[u8], row_bytes: usize, blocks: &[Block]) -> [u8; 4 * ROWS] {
    /// Shuffle for two pixels in each half: both reds, both greens, both blues, as 16-bit samples.
    const NONE: u8 = 0x80;
    const PAIRS: [u8; 32] = {
        let mut pairs = [NONE; 32];
        let mut half = 0;
        while half < 2 {
            let mut channel = 0;
            while channel < RGB {
                let (to, from) = (half * 16 + channel * 4, half * 2 * RGB + channel);
                pairs[to] = from as u8;
                pairs[to + 2] = (from + RGB) as u8;
                channel += 1;
            }
            half += 1;
        }
        pairs
    };
    let V3 { sse2, sse4_1, avx, avx2, .. } = simd;
    let pairs: __m256i = pulp::cast(PAIRS);
    let low_taps: __m256i = pulp::cast([0, 0, 0, 0, 1, 1, 1, 1]);
    let high_taps: __m256i = pulp::cast([2, 2, 2, 2, 3, 3, 3, 3]);
    let zero = avx._mm256_setzero_si256();
    let (mut low, mut high) = ([zero; ROWS], [zero; ROWS]);
    for (index, &block) in blocks.iter().enumerate() {
        let block = avx2._mm256_broadcastsi128_si256(pulp::cast(block));
        let low_weights = avx2._mm256_permutevar8x32_epi32(block, low_taps);
        let high_weights = avx2._mm256_permutevar8x32_epi32(block, high_taps);
        for row in 0..ROWS {
            let at = row * row_bytes + index * TAPS * RGB;
            let bytes: [u8; LOAD_BYTES] = *rows[at..].first_chunk().expect("with_slack pads the rows");
            let pixels = avx2._mm256_broadcastsi128_si256(pulp::cast(bytes));
            let samples = avx2._mm256_shuffle_epi8(pixels, pairs);
            low[row] = avx2._mm256_add_epi32(low[row], avx2._mm256_madd_epi16(samples, low_weights));
            high[row] = avx2._mm256_add_epi32(high[row], avx2._mm256_madd_epi16(samples, high_weights));
        }
    }
    let half = sse2._mm_set1_epi32(HALF);
    let whole: [_; ROWS] = std::array::from_fn(|row| {
        let sums = avx2._mm256_add_epi32(low[row], avx2._mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[row]));
        let (first, second) = (avx._mm256_castsi256_si128(sums), avx2._mm256_extracti128_si256::<1>(sums));
        let sum = sse2._mm_add_epi32(sse2._mm_add_epi32(first, second), half);
        sse2._mm_srai_epi32::<{ FRACTION_BITS as i32 }>(sum)
    });
    // packing saturates at 0 and 255
    let words = (sse4_1._mm_packus_epi32(whole[0], whole[1]), sse4_1._mm_packus_epi32(whole[2], whole[3]));
    pulp::cast(sse2._mm_packus_epi16(words.0, words.1))
}
