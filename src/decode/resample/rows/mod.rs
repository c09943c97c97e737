//! The horizontal pass: each resized pixel is a weighted sum of pixels in the same row.
//!
//! - The instructions that multiply and add two taps at once take 16-bit weights. A weight is therefore
//!   split into `high * 2^15 + low`, and the two sums are combined at the end. All arithmetic wraps at
//!   2^32, so every instruction set gives the same 32-bit sum.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod taps;

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

use super::weights::{HALF, RGB, Weights, to_pixel};

/// The horizontal pass of one thread, with its memory.
#[derive(Debug, Default)]
pub(super) struct RowPass {
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::RowPass,
    #[cfg(target_arch = "x86_64")]
    avx512: avx512::RowPass,
}

impl RowPass {
    /// Filter each row of `pixels`, which are `width` pixels wide; `out` has as many rows.
    pub(super) fn run(&mut self, pixels: &[u8], width: usize, across: &Weights, out: &mut [u8]) {
        let row_bytes = width * RGB;
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = V4::try_new().filter(|_| width <= avx512::WIDEST) {
            return self.avx512.run(simd, pixels, row_bytes, across, out);
        } else if let Some(simd) = V3::try_new() {
            return self.avx2.run(simd, pixels, row_bytes, across, out);
        }
        filter_rows(pixels, row_bytes, across, out);
    }
}

/// The portable version of the pass.
fn filter_rows(pixels: &[u8], row_bytes: usize, across: &Weights, out: &mut [u8]) {
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

#[cfg(test)]
mod tests {
    use super::super::weights::Kernel;
    use super::*;
    use crate::config::Filter;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_result(
            rows in prop::collection::vec(prop::collection::vec(any::<[u8; RGB]>(), 1..150), 1..40),
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
            filter_rows(&pixels, width * RGB, &across, &mut expected);
            let mut got = vec![0; expected.len()];
            RowPass::default().run(&pixels, width, &across, &mut got);
            prop_assert_eq!(&got, &expected);
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = V3::try_new() {
                got.fill(0);
                avx2::RowPass::default().run(simd, &pixels, width * RGB, &across, &mut got);
                prop_assert_eq!(&got, &expected);
            }
        }
    }

    /// An image of a million pixels in a row must not leave a thread with a strip of that width.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_memory_for_a_strip_is_bounded_for_any_width() {
        let kernel = Kernel::of(Filter::Bilinear).expect("a filter with a kernel");
        let mut pass = RowPass::default();
        for width in [avx512::WIDEST, avx512::WIDEST + 1, 1 << 20] {
            let pixels: Vec<u8> = (0..width * RGB).map(|at| (at * 7) as u8).collect();
            let mut across = Weights::default();
            across.set(&kernel, width as f64 / 5.0, width as f64, width, 0..5);
            let (mut expected, mut got) = ([0; 5 * RGB], [0; 5 * RGB]);
            filter_rows(&pixels, width * RGB, &across, &mut expected);
            pass.run(&pixels, width, &across, &mut got);
            assert_eq!(got, expected, "{width} pixels wide");
            assert!(pass.avx512.strip_bytes() <= 2 << 20, "{} bytes", pass.avx512.strip_bytes());
        }
    }
}
