//! The weights of a filter: for each resized position, its source pixels and their coefficients.
//!
//! - Coefficients are computed in double precision and rounded to 22 fractional bits, as in Pillow.

use std::f64::consts::PI;
use std::ops::Range;

use crate::config::Filter;

/// Fractional bits of a coefficient: 32 of a sum, less 8 of a pixel, less 2 for filters with negative
/// lobes, whose sums may exceed the range of a pixel.
pub(super) const FRACTION_BITS: u32 = 32 - 8 - 2;

/// A sum starts at one half, so that truncating the fraction rounds.
pub(super) const HALF: i32 = 1 << (FRACTION_BITS - 1);

#[inline(always)]
pub(super) fn to_pixel(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Channels of a pixel.
pub(super) const RGB: usize = 3;

/// One of Pillow's filters: its support at scale 1, and its function.
pub(super) struct Kernel {
    support: f64,
    value: fn(f64) -> f64,
}

impl Kernel {
    pub(super) fn of(filter: Filter) -> Option<Self> {
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

/// For each resized position along one side: its first source pixel, and the weights from there on.
#[derive(Debug, Default)]
pub(super) struct Weights {
    starts: Vec<usize>,
    /// `taps` weights for each position, padded with zeros.
    weights: Vec<i32>,
    /// Number of weights of each position, without the padding.
    lengths: Vec<usize>,
    taps: usize,
    /// One position's weights before rounding.
    exact: Vec<f64>,
}

impl Weights {
    /// Compute the weights of the resized positions `wanted`, which are `scale` source pixels apart. The
    /// source has `length` pixels, of which `extent` map to the resized image.
    pub(super) fn set(
        &mut self,
        kernel: &Kernel,
        scale: f64,
        extent: f64,
        length: usize,
        wanted: Range<u32>,
    ) {
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

    /// Number of resized positions.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Each position's first source pixel, and the weights of that pixel and its successors.
    pub(super) fn positions(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.taps).zip(&self.lengths);
        self.starts.iter().copied().zip(weights.map(|(weights, &length)| &weights[..length]))
    }

    /// The range of source pixels that any position needs.
    pub(super) fn reach(&self) -> Range<usize> {
        let end = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length).max();
        self.starts.first().copied().unwrap_or(0)..end.unwrap_or(0)
    }
}

/// Rounds halves away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << FRACTION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}
