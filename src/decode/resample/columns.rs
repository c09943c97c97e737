//! The vertical pass: each resized row is a weighted sum of source rows.

use pulp::{Arch, NullaryFnOnce};

use super::weights::{HALF, RGB, Weights, to_pixel};

/// Filter each column of `pixels`, whose first row is row `first_row` of the source.
pub(super) fn filter_columns(pixels: &[u8], width: usize, first_row: usize, down: &Weights, out: &mut [u8]) {
    Arch::new().dispatch(FilterColumns { pixels, row_bytes: width * RGB, first_row, down, out });
}

/// Bytes of a row that are summed at once: four registers of eight sums.
const BLOCK: usize = 32;

/// A type instead of a closure, because the loops of a closure are not reliably inlined into the
/// function that `pulp` compiles for the instruction set.
struct FilterColumns<'a> {
    pixels: &'a [u8],
    row_bytes: usize,
    first_row: usize,
    down: &'a Weights,
    out: &'a mut [u8],
}

impl NullaryFnOnce for FilterColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { pixels, row_bytes, first_row, down, out } = self;
        for ((start, weights), out_row) in down.positions().zip(out.chunks_exact_mut(row_bytes)) {
            let from = &pixels[(start - first_row) * row_bytes..][..weights.len() * row_bytes];
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
