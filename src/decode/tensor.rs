//! Writes resized RGB pixels as one row of the engine's input tensor.
//!
//! - Channel order, layout and normalisation are applied here, unless the engine takes RGB bytes and
//!   applies them itself.
//! - `f32` elements equal `(pixel * scale - mean) / std`, each step rounded to `f32`. A table holds
//!   the result for each of the 256 values of a channel.

use super::geometry::Placement;
use crate::config::{Color, Layout, PreprocessSection};
use crate::items::{PixelElement, Pixels};

/// Writes tensor rows of one pipeline.
#[derive(Debug)]
pub(super) struct TensorWriter {
    /// Width and height.
    size: (u32, u32),
    layout: Layout,
    /// For each channel of the tensor, its RGB channel.
    order: [usize; 3],
    /// Colour of the letterbox bars, as RGB.
    bars: [u8; 3],
    /// For each channel of the tensor, the normalised value of each pixel value; `None` copies pixels
    /// unchanged.
    normalised: Option<Box<[[f32; 256]; 3]>>,
}

impl TensorWriter {
    pub(super) fn new(preprocess: &PreprocessSection, size: (u32, u32), element: PixelElement) -> Self {
        let (color, layout) = match element {
            PixelElement::Rgb8 => (Color::Rgb, Layout::Nhwc),
            PixelElement::U8 | PixelElement::F32 => (preprocess.color, preprocess.layout),
        };
        let order = match color {
            Color::Rgb => [0, 1, 2],
            Color::Bgr => [2, 1, 0],
        };
        let normalised = (element == PixelElement::F32).then(|| {
            Box::new(std::array::from_fn(|channel| {
                std::array::from_fn(|pixel| {
                    (pixel as f32 * preprocess.scale - preprocess.mean[channel]) / preprocess.std[channel]
                })
            }))
        });
        let bars = preprocess.background.unwrap_or_default();
        Self { size, layout, order, bars, normalised }
    }

    /// The tensor row of an image: `rgb` is the kept part of its window, and `place` its position.
    pub(super) fn write(&self, rgb: &[u8], place: Placement) -> Pixels {
        match &self.normalised {
            None if self.is_copy(place) => Pixels::U8(rgb.to_vec()),
            None => Pixels::U8(self.arrange(rgb, place, |_, pixel| pixel)),
            Some(tables) => {
                Pixels::F32(self.arrange(rgb, place, |channel, pixel| tables[channel][usize::from(pixel)]))
            }
        }
    }

    /// Whether the tensor row equals the RGB bytes of the image.
    fn is_copy(&self, place: Placement) -> bool {
        place.window.kept == self.size && self.order == [0, 1, 2] && self.layout == Layout::Nhwc
    }

    fn arrange<T: Copy>(&self, rgb: &[u8], place: Placement, value: impl Fn(usize, u8) -> T) -> Vec<T> {
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        let (kept_width, kept_height) = (place.window.kept.0 as usize, place.window.kept.1 as usize);
        let (left, top) = (place.at.0 as usize, place.at.1 as usize);
        let bars: [T; 3] = std::array::from_fn(|channel| value(channel, self.bars[self.order[channel]]));
        let covered = (kept_width, kept_height) == (width, height);
        let [first, second, third] = self.order;
        let rgb_rows = rgb.chunks_exact(kept_width * 3);
        // not `vec![0; …]`: zeroed memory comes as fresh pages, each of which costs a page fault
        let mut row = Vec::with_capacity(width * height * 3);
        row.resize(width * height * 3, bars[0]);
        match self.layout {
            Layout::Nhwc => {
                if !covered {
                    row.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&bars));
                }
                let inside = row.chunks_exact_mut(width * 3).skip(top);
                for (line, rgb_row) in inside.zip(rgb_rows) {
                    let line = &mut line[left * 3..(left + kept_width) * 3];
                    for (pixel, rgb) in line.chunks_exact_mut(3).zip(rgb_row.chunks_exact(3)) {
                        pixel[0] = value(0, rgb[first]);
                        pixel[1] = value(1, rgb[second]);
                        pixel[2] = value(2, rgb[third]);
                    }
                }
            }
            Layout::Nchw => {
                for (channel, plane) in row.chunks_exact_mut(width * height).enumerate() {
                    if !covered {
                        plane.fill(bars[channel]);
                    }
                    let from = self.order[channel];
                    let inside = plane.chunks_exact_mut(width).skip(top);
                    for (line, rgb_row) in inside.zip(rgb_rows.clone()) {
                        let line = &mut line[left..left + kept_width];
                        for (element, rgb) in line.iter_mut().zip(rgb_row.chunks_exact(3)) {
                            *element = value(channel, rgb[from]);
                        }
                    }
                }
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::Window;
    use super::*;
    use crate::config::{Fit, Resize};

    fn preprocess(color: Color, layout: Layout) -> PreprocessSection {
        let text = "resize = { width = 2, height = 2 }";
        let mut section: PreprocessSection = toml::from_str(text).expect("valid section");
        section.resize = Resize { fit: Fit::Contain, ..section.resize };
        section.color = color;
        section.layout = layout;
        section.background = Some([7, 8, 9]);
        section
    }

    /// Pixels (1, 2, 3) and (4, 5, 6) on the lower of two lines.
    fn write(section: &PreprocessSection, element: PixelElement) -> Pixels {
        let window = Window { resized: (2, 1), cut: (0, 0), kept: (2, 1) };
        let writer = TensorWriter::new(section, (2, 2), element);
        writer.write(&[1, 2, 3, 4, 5, 6], Placement { window, at: (0, 1) })
    }

    #[test]
    fn every_layout_and_channel_order_holds_the_same_pixels() {
        let cases = [
            (Color::Rgb, Layout::Nhwc, [7, 8, 9, 7, 8, 9, 1, 2, 3, 4, 5, 6]),
            (Color::Bgr, Layout::Nhwc, [9, 8, 7, 9, 8, 7, 3, 2, 1, 6, 5, 4]),
            (Color::Rgb, Layout::Nchw, [7, 7, 1, 4, 8, 8, 2, 5, 9, 9, 3, 6]),
            (Color::Bgr, Layout::Nchw, [9, 9, 3, 6, 8, 8, 2, 5, 7, 7, 1, 4]),
        ];
        for (color, layout, expected) in cases {
            let got = write(&preprocess(color, layout), PixelElement::U8);
            assert_eq!(got, Pixels::U8(expected.to_vec()), "{color:?} {layout:?}");
        }
    }

    #[test]
    fn an_image_that_fills_the_tensor_is_copied() {
        let window = Window { resized: (2, 2), cut: (0, 0), kept: (2, 2) };
        let rgb: [u8; 12] = std::array::from_fn(|index| index as u8);
        for element in [PixelElement::U8, PixelElement::Rgb8] {
            let writer = TensorWriter::new(&preprocess(Color::Rgb, Layout::Nhwc), (2, 2), element);
            assert_eq!(writer.write(&rgb, Placement { window, at: (0, 0) }), Pixels::U8(rgb.to_vec()));
        }
        let writer = TensorWriter::new(&preprocess(Color::Bgr, Layout::Nhwc), (2, 2), PixelElement::U8);
        let Pixels::U8(row) = writer.write(&rgb, Placement { window, at: (0, 0) }) else {
            panic!("u8 was requested")
        };
        assert_eq!(row[..6], [2, 1, 0, 5, 4, 3]);
    }

    #[test]
    fn mean_and_std_are_in_the_channel_order_of_the_tensor() {
        let mut section = preprocess(Color::Bgr, Layout::Nhwc);
        section.scale = 1.0 / 255.0;
        section.mean = [0.485, 0.456, 0.406];
        section.std = [0.229, 0.224, 0.225];
        let Pixels::F32(row) = write(&section, PixelElement::F32) else { panic!("f32 was requested") };
        let pixels = [9, 8, 7, 9, 8, 7, 3, 2, 1, 6, 5, 4_u8];
        for (index, (value, pixel)) in row.iter().zip(pixels).enumerate() {
            let channel = index % 3;
            let expected = (f32::from(pixel) * section.scale - section.mean[channel]) / section.std[channel];
            assert_eq!(value.to_bits(), expected.to_bits());
        }
    }
}
