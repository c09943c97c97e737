//! The pass along the rows: each resized pixel is a weighted sum of its neighbours in one row.
//!
//! - With AVX2, two taps are multiplied and added by one instruction that takes weights of 16 bits.
//!   A weight is therefore split into `high * 2^15 + low`; the two sums are put together at the
//!   end. Everything wraps at 2^32, so the result is the 32-bit sum to the bit.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

#[cfg(target_arch = "x86_64")]
use pulp::{NullaryFnOnce, x86::V3};

use super::RGB;
#[cfg(target_arch = "x86_64")]
use super::weights::FRACTION_BITS;
use super::weights::{HALF, Weights, to_pixel};

/// The pass of one thread with its memory.
#[derive(Debug, Default)]
pub(super) struct RowPass {
    taps: PackedTaps,
    /// The last rows, with room behind them.
    tail: Vec<u8>,
}

impl RowPass {
    /// Filter each row of `pixels`, `width` pixels long; `out` has as many rows.
    pub(super) fn run(&mut self, pixels: &[u8], width: usize, across: &Weights, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = V3::try_new() {
            self.taps.pack(across);
            let row_bytes = width * RGB;
            simd.vectorize(ShrinkRows {
                simd,
                pixels,
                row_bytes,
                taps: &self.taps,
                tail: &mut self.tail,
                out,
            });
            return;
        }
        shrink_rows(pixels, width * RGB, across, out);
    }
}

/// The pass without special instructions.
fn shrink_rows(pixels: &[u8], row_bytes: usize, across: &Weights, out: &mut [u8]) {
    for (row, out) in pixels.chunks_exact(row_bytes).zip(out.chunks_exact_mut(across.len() * RGB)) {
        for ((start, weights), pixel) in across.positions().zip(out.chunks_exact_mut(RGB)) {
            let mut sums = [HALF; RGB];
            for (from, &weight) in row[start * RGB..].chunks_exact(RGB).zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(from) {
                    *sum = sum.wrapping_add(i32::from(sample).wrapping_mul(weight));
                }
            }
            pixel.copy_from_slice(&sums.map(to_pixel));
        }
    }
}

/// Taps of one instruction sequence: a register holds two in each half.
const TAPS: usize = 4;

/// Bits of a weight in its low part; the part is positive in 16 bits with a sign.
const LOW_BITS: u32 = 15;

/// The low parts of [`TAPS`] weights, and their high parts. A weight's magnitude is below
/// 2^24, so its high part fits with room to spare.
type Block = [i16; 2 * TAPS];

/// The weights of all positions, split and in blocks.
#[derive(Debug, Default)]
struct PackedTaps {
    /// Each position's first source byte, and the end of its blocks.
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
                    block[tap] = (weight & ((1 << LOW_BITS) - 1)) as i16;
                    block[TAPS + tap] = (weight >> LOW_BITS) as i16;
                }
                self.blocks.push(block);
            }
            self.positions.push((start * RGB, self.blocks.len()));
        }
    }
}

/// Rows filtered at once: their sums fill eight registers, and each weight is loaded once for all.
const ROWS: usize = 4;

/// Bytes of one load, of which [`TAPS`] pixels are used.
const LOAD_BYTES: usize = 16;

/// Bytes that may be loaded behind the end of a row: a position's last pixel may be the row's
/// last, and the first of a block.
const SLACK_BYTES: usize = LOAD_BYTES - RGB;

#[cfg(target_arch = "x86_64")]
struct ShrinkRows<'a> {
    simd: V3,
    pixels: &'a [u8],
    row_bytes: usize,
    taps: &'a PackedTaps,
    tail: &'a mut Vec<u8>,
    out: &'a mut [u8],
}

#[cfg(target_arch = "x86_64")]
impl NullaryFnOnce for ShrinkRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, pixels, row_bytes, taps, tail, out } = self;
        let out_row_bytes = taps.positions.len() * RGB;
        let wanted_bytes = ROWS * row_bytes + SLACK_BYTES;
        for (group, out) in out.chunks_mut(ROWS * out_row_bytes).enumerate() {
            let from = &pixels[group * ROWS * row_bytes..];
            let rows = from.get(..wanted_bytes).unwrap_or_else(|| {
                tail.clear();
                tail.extend_from_slice(from);
                tail.resize(wanted_bytes, 0);
                tail
            });
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

/// One resized column in [`ROWS`] rows: three channels and a byte without meaning for each.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn filtered(simd: V3, rows: &[u8], row_bytes: usize, blocks: &[Block]) -> [u8; 4 * ROWS] {
    /// For two pixels in each half: both reds, both greens, both blues as 16-bit samples.
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
            let bytes: [u8; LOAD_BYTES] = *rows[at..].first_chunk().expect("rows have slack behind them");
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
    // saturating at 0 and 255 on the way to bytes
    let words = (sse4_1._mm_packus_epi32(whole[0], whole[1]), sse4_1._mm_packus_epi32(whole[2], whole[3]));
    pulp::cast(sse2._mm_packus_epi16(words.0, words.1))
}

#[cfg(test)]
mod tests {
    use super::super::weights::Kernel;
    use super::*;
    use crate::config::Filter;
    use proptest::prelude::*;

    proptest! {
        /// Whatever instructions are used, the result is the same.
        #[test]
        fn both_ways_of_summing_agree(
            rows in prop::collection::vec(prop::collection::vec(any::<[u8; RGB]>(), 1..150), 1..10),
            resized in 1..80_u32,
            filter in prop_oneof![
                Just(Filter::Box), Just(Filter::Bilinear), Just(Filter::Bicubic), Just(Filter::Lanczos3)
            ],
        ) {
            let width = rows.iter().map(Vec::len).min().expect("one row at least");
            let pixels: Vec<u8> = rows.iter().flat_map(|row| row[..width].as_flattened()).copied().collect();
            let kernel = Kernel::of(filter).expect("a filter with a kernel");
            let mut across = Weights::default();
            across.set(&kernel, width as f64 / f64::from(resized), width as f64, width, 0..resized);
            let mut expected = vec![0; rows.len() * resized as usize * RGB];
            let mut got = expected.clone();
            shrink_rows(&pixels, width * RGB, &across, &mut expected);
            RowPass::default().run(&pixels, width, &across, &mut got);
            prop_assert_eq!(got, expected);
        }
    }
}
