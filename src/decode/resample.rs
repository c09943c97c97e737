//! RGB pixels to another size, as Pillow's `Image.resize` does it.
//!
//! Comes in: an RGB image and the window of the resized image that is wanted. Goes out: that
//! window.
//!
//! - Two passes with 8-bit pixels between them. Which pass is first matters to filters that
//!   overshoot (bicubic, Lanczos), because the overshoot is cut off between the passes. Pillow
//!   works along the rows first; `fast_image_resize`, asked for both at once, along the columns
//!   first, which is why it is off by up to 10 there. So each pass is asked for by itself.
//! - Coefficients have 16 bits where Pillow's have 22, so a pixel can differ by 1.
//! - Only the window is computed: an extreme aspect ratio with `cover` costs no more than another.
//!   The box filter is the exception, because it is not continuous: where the edge of a box falls
//!   on the centre of a pixel, the last bit of a coordinate decides, and a window has other last
//!   bits than the whole.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};

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
    resizer: Resizer,
    /// The image between the two passes.
    between: Buffer,
    /// A whole resized image of which a window is wanted.
    whole: Buffer,
}

/// Beyond this no intermediate image may outgrow the source: far more than models take, and no
/// more than a 20-megapixel photo itself.
const LARGE_BYTES: u64 = 64 << 20;

impl Resampler {
    /// Write `window` of the resized `source` to `out`, `kept` width × height × 3 bytes.
    pub(super) fn resample(
        &mut self,
        source: Source,
        window: Window,
        filter: Filter,
        first: FirstPass,
        out: &mut [u8],
    ) -> Result<(), ResizeError> {
        let whole = Window { resized: window.resized, cut: (0, 0), kept: window.resized };
        if filter == Filter::Box && window != whole && bytes_u64(window.resized) <= LARGE_BYTES {
            let mut buffer = std::mem::take(&mut self.whole);
            let pixels = buffer.take(bytes(window.resized));
            let result = self.resample(source, whole, filter, first, pixels);
            cut(pixels, window, out);
            buffer.trim();
            self.whole = buffer;
            return result;
        }
        let scale =
            (source.extent.0 / f64::from(window.resized.0), source.extent.1 / f64::from(window.resized.1));
        let Some(filter) = convolution(filter) else {
            nearest(source, scale, window, out);
            return Ok(());
        };
        let (width, height) = source.size;
        let x = Span::new(window.cut.0, window.kept.0, scale.0, source.extent.0);
        let y = Span::new(window.cut.1, window.kept.1, scale.1, source.extent.1);
        let all_columns = Span { start: 0.0, length: f64::from(width) };
        let all_rows = Span { start: 0.0, length: f64::from(height) };
        let keep_height = (window.kept.0, height);
        let keep_width = (width, window.kept.1);
        let (between, first_spans, second_spans) = match first_pass(first, source.size, window.kept) {
            FirstPass::Width => (keep_height, (x, all_rows), (Span::whole(window.kept.0), y)),
            FirstPass::Height => (keep_width, (all_columns, y), (x, Span::whole(window.kept.1))),
        };
        // a pass that changes nothing is left out
        if between == source.size && first_spans == (all_columns, all_rows) {
            return self.pass(source.pixels, source.size, second_spans, filter, window.kept, out);
        }
        if between == window.kept && second_spans == (Span::whole(between.0), Span::whole(between.1)) {
            return self.pass(source.pixels, source.size, first_spans, filter, window.kept, out);
        }
        let mut buffer = std::mem::take(&mut self.between);
        let pixels = buffer.take(bytes(between));
        let result = self
            .pass(source.pixels, source.size, first_spans, filter, between, pixels)
            .and_then(|()| self.pass(pixels, between, second_spans, filter, window.kept, out));
        buffer.trim();
        self.between = buffer;
        result
    }

    /// Resize the part of `pixels` inside `spans` to `out_size`.
    fn pass(
        &mut self,
        pixels: &[u8],
        size: (u32, u32),
        (x, y): (Span, Span),
        filter: FilterType,
        out_size: (u32, u32),
        out: &mut [u8],
    ) -> Result<(), ResizeError> {
        let source = ImageRef::new(size.0, size.1, &pixels[..bytes(size)], PixelType::U8x3)
            .expect("the slice is cut to the size of the image");
        let mut target = Image::from_slice_u8(out_size.0, out_size.1, out, PixelType::U8x3)
            .expect("the caller gives a slice of the size of the window");
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(filter))
            .crop(x.start, y.start, x.length, y.length);
        self.resizer.resize(&source, &mut target, &options)
    }
}

/// A stretch of source pixels along one side.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span {
    start: f64,
    length: f64,
}

impl Span {
    /// The source pixels behind `kept` resized ones that follow `cut` others.
    fn new(cut: u32, kept: u32, scale: f64, extent: f64) -> Self {
        let start = f64::from(cut) * scale;
        // rounding must not carry the end past the last pixel
        Self { start, length: (f64::from(kept) * scale).min(extent - start) }
    }

    fn whole(length: u32) -> Self {
        Self { start: 0.0, length: f64::from(length) }
    }
}

fn bytes((width, height): (u32, u32)) -> usize {
    width as usize * height as usize * 3
}

fn bytes_u64((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height) * 3
}

/// Copy the window out of the whole resized image.
fn cut(whole: &[u8], window: Window, out: &mut [u8]) {
    let rows = whole.chunks_exact(window.resized.0 as usize * 3).skip(window.cut.1 as usize);
    let (left, length) = (window.cut.0 as usize * 3, window.kept.0 as usize * 3);
    for (row, out) in rows.zip(out.chunks_exact_mut(length)) {
        out.copy_from_slice(&row[left..left + length]);
    }
}

/// `wanted`, unless that would blow a sliver up to an image far larger than source and result.
fn first_pass(wanted: FirstPass, (width, height): (u32, u32), kept: (u32, u32)) -> FirstPass {
    let (between, other) = match wanted {
        FirstPass::Width => ((kept.0, height), FirstPass::Height),
        FirstPass::Height => ((width, kept.1), FirstPass::Width),
    };
    let large = bytes_u64((width, height)).max(LARGE_BYTES);
    if bytes_u64(between) > large { other } else { wanted }
}

fn convolution(filter: Filter) -> Option<FilterType> {
    match filter {
        Filter::Nearest => None,
        Filter::Box => Some(FilterType::Box),
        Filter::Bilinear => Some(FilterType::Bilinear),
        // Catmull-Rom is the cubic convolution with a = -0.5, as is Pillow's bicubic
        Filter::Bicubic => Some(FilterType::CatmullRom),
        Filter::Lanczos3 => Some(FilterType::Lanczos3),
    }
}

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

    const FILTERS: [Filter; 5] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos3];

    fn noise(size: (u32, u32)) -> Vec<u8> {
        (0..bytes(size) as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn resample(pixels: &[u8], size: (u32, u32), window: Window, filter: Filter) -> Vec<u8> {
        let extent = (f64::from(size.0), f64::from(size.1));
        let mut out = vec![0; bytes(window.kept)];
        Resampler::default()
            .resample(Source { pixels, size, extent }, window, filter, FirstPass::Width, &mut out)
            .expect("valid window");
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
                    for (a, b) in row.iter().zip(&whole[at..at + 33]) {
                        assert!(a.abs_diff(*b) <= 1, "{filter:?} {resized:?}");
                    }
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
