//! Converts rows of samples to RGB.

use super::super::samples::{self, Model};
use super::directory::Directory;
use super::layout::{Color, Layout};
use super::tag;

/// Converts the rows of one image, and owns the memory for it.
pub(super) struct Rows<'a> {
    layout: &'a Layout,
    background: Option<[u8; 3]>,
    palette: Option<Box<[[u8; 3]; 256]>>,
    /// One row: the samples of each pixel that the conversion reads, 8 bits each.
    row: Vec<u8>,
}

impl<'a> Rows<'a> {
    /// Fails if a palette is missing or truncated.
    pub(super) fn new(
        directory: &Directory,
        layout: &'a Layout,
        background: Option<[u8; 3]>,
    ) -> Result<Self, String> {
        let palette = match layout.color {
            Color::Palette | Color::PaletteAlpha => Some(palette(directory)?),
            _ => None,
        };
        let row = vec![0; layout.width.min(layout.segment_width) * layout.color.samples()];
        Ok(Self { layout, background, palette, row })
    }

    /// Convert the first `width` pixels of row `row` of a strip or tile to RGB; `stored` holds all of
    /// its planes.
    pub(super) fn convert(&mut self, stored: &[u8], row: usize, width: usize, rgb: &mut [u8]) {
        let layout = self.layout;
        let wanted = layout.color.samples();
        let samples = &mut self.row[..width * wanted];
        let start = row * layout.segment_row_bytes();
        let chunky = &stored[start..start + layout.row_bytes(width)];
        if layout.planes_read > 1 {
            for plane in 0..wanted {
                let start = plane * layout.plane_bytes() + start;
                narrow(layout, &stored[start..start + layout.row_bytes(width)], 1, plane, wanted, samples);
            }
        } else if layout.bits == 8 && layout.interleaved_samples == wanted {
            samples.copy_from_slice(chunky);
        } else if layout.bits < 8 {
            expand(chunky, layout.bits, self.palette.is_some(), samples);
        } else {
            for sample in 0..wanted {
                let sample_bytes = layout.bits / 8;
                narrow(
                    layout,
                    &chunky[sample * sample_bytes..],
                    layout.interleaved_samples,
                    sample,
                    wanted,
                    samples,
                );
            }
        }
        self.color(width, rgb);
    }

    fn color(&mut self, width: usize, rgb: &mut [u8]) {
        let samples = &mut self.row[..width * self.layout.color.samples()];
        let model = match self.layout.color {
            Color::Gray { white_is_zero } => {
                // Pillow never inverts 16-bit gray
                if white_is_zero && self.layout.bits <= 8 {
                    samples.iter_mut().for_each(|sample| *sample = !*sample);
                }
                Model::Gray
            }
            Color::GrayAlpha => Model::GrayAlpha,
            Color::Rgb | Color::YCbCr => Model::Rgb,
            Color::Rgba => Model::Rgba,
            Color::PremultipliedRgba => {
                samples.chunks_exact_mut(4).for_each(divide_by_alpha);
                Model::Rgba
            }
            Color::Cmyk => Model::Cmyk,
            Color::Palette | Color::PaletteAlpha => {
                let palette = self.palette.as_ref().expect("new() reads the palette");
                let pixels = samples.chunks_exact(self.layout.color.samples());
                for (pixel, out) in pixels.zip(rgb.chunks_exact_mut(3)) {
                    let color = palette[usize::from(pixel[0])];
                    out.copy_from_slice(&match pixel {
                        [_, alpha] => samples::over(color, *alpha, self.background),
                        _ => color,
                    });
                }
                return;
            }
        };
        samples::to_rgb(samples, model, self.background, rgb);
    }
}

/// Copy every `step`-th sample of `stored` to sample `sample` of each pixel of `row`, which has `wanted`
/// samples per pixel. Of a 16-bit sample the high byte is kept.
fn narrow(layout: &Layout, stored: &[u8], step: usize, sample: usize, wanted: usize, row: &mut [u8]) {
    let sample_bytes = layout.bits / 8;
    let high = if sample_bytes == 2 && !layout.big_endian { 1 } else { 0 };
    let pixels = row.chunks_exact_mut(wanted);
    for (pixel, value) in pixels.zip(stored[high..].iter().step_by(sample_bytes * step)) {
        pixel[sample] = *value;
    }
}

/// Unpack samples of 1, 2 or 4 bits to bytes: scaled to the full range, or unchanged if they are
/// palette indices.
fn expand(packed: &[u8], bits: usize, are_indices: bool, row: &mut [u8]) {
    let largest = (1_u8 << bits) - 1;
    let factor = if are_indices { 1 } else { 255 / largest };
    for (index, sample) in row.iter_mut().enumerate() {
        let at = index * bits;
        *sample = (packed[at / 8] >> (8 - bits - at % 8) & largest) * factor;
    }
}

/// Undo the multiplication by alpha, rounding down and clamping at 255, as Pillow's `ImagingUnpackRGBa`
/// does.
fn divide_by_alpha(pixel: &mut [u8]) {
    let alpha = u32::from(pixel[3]);
    for channel in &mut pixel[..3] {
        *channel = match alpha {
            0 => 0,
            alpha => (u32::from(*channel) * 255 / alpha).min(255) as u8,
        };
    }
}

/// Read the colour map: all reds, then all greens, then all blues, 16 bits each. Indices past its end
/// are black.
fn palette(directory: &Directory) -> Result<Box<[[u8; 3]; 256]>, String> {
    let map = directory.values(tag::COLOR_MAP)?.ok_or("the palette is missing")?;
    let length = map.len() / 3;
    let mut colors = Box::new([[0; 3]; 256]);
    for (index, color) in colors.iter_mut().enumerate().take(length) {
        for (channel, value) in color.iter_mut().enumerate() {
            *value = (map.get(channel * length + index).unwrap_or(0) >> 8).min(255) as u8;
        }
    }
    Ok(colors)
}
