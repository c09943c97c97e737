//! Converts decoded samples of any colour model to 8-bit RGB, as Pillow's `convert("RGB")` does.
//!
//! Input: interleaved 8-bit samples. Output: RGB, with alpha dropped or composited.
//!
//! - Dropping alpha keeps the stored colour, even of fully transparent pixels.
//! - Formulas use integer arithmetic and equal Pillow's bit for bit (`Convert.c`,
//!   `AlphaComposite.c` over an opaque background).

/// The meaning of the samples of one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    Gray,
    GrayAlpha,
    Rgb,
    Rgba,
    /// 0 is no ink.
    Cmyk,
    /// 255 is no ink, as in the JPEGs of Adobe, and as Pillow assumes of every four-component JPEG.
    InvertedCmyk,
}

impl Model {
    pub(super) fn samples(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::GrayAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba | Self::Cmyk | Self::InvertedCmyk => 4,
        }
    }
}

/// Convert `samples`, pixel by pixel, into `rgb`.
///
/// # Panics
/// If the two slices do not hold the same number of pixels.
pub(super) fn to_rgb(samples: &[u8], model: Model, background: Option<[u8; 3]>, rgb: &mut [u8]) {
    let pixels = samples.chunks_exact(model.samples());
    assert_eq!(pixels.len() * 3, rgb.len(), "one RGB pixel for every decoded one");
    let pairs = pixels.zip(rgb.chunks_exact_mut(3));
    match model {
        Model::Gray => pairs.for_each(|(pixel, out)| out.fill(pixel[0])),
        Model::Rgb => rgb.copy_from_slice(samples),
        Model::GrayAlpha => pairs.for_each(|(pixel, out)| {
            out.copy_from_slice(&over([pixel[0]; 3], pixel[1], background));
        }),
        Model::Rgba => pairs.for_each(|(pixel, out)| {
            out.copy_from_slice(&over([pixel[0], pixel[1], pixel[2]], pixel[3], background));
        }),
        Model::Cmyk => pairs.for_each(|(pixel, out)| {
            out.copy_from_slice(&cmyk([pixel[0], pixel[1], pixel[2]], pixel[3]));
        }),
        Model::InvertedCmyk => pairs.for_each(|(pixel, out)| {
            out.copy_from_slice(&cmyk([!pixel[0], !pixel[1], !pixel[2]], !pixel[3]));
        }),
    }
}

/// Write the colour of each index to `rgb`.
///
/// # Panics
/// If the two slices do not hold the same number of pixels.
pub(super) fn look_up(indices: &[u8], colors: &[[u8; 3]; 256], rgb: &mut [u8]) {
    assert_eq!(indices.len() * 3, rgb.len(), "one RGB pixel for every index");
    for (pixel, &index) in rgb.chunks_exact_mut(3).zip(indices) {
        pixel.copy_from_slice(&colors[usize::from(index)]);
    }
}

/// `color` with `alpha` composited over an opaque background, or `color` itself without a background.
pub(super) fn over(color: [u8; 3], alpha: u8, background: Option<[u8; 3]>) -> [u8; 3] {
    let Some(background) = background else { return color };
    let alpha = u32::from(alpha);
    let mut out = [0; 3];
    for channel in 0..3 {
        let front = u32::from(color[channel]) * alpha;
        let back = u32::from(background[channel]) * (255 - alpha);
        // 7 bits of extra precision, then a rounded division by 255
        out[channel] = (divide_by_255(((front + back) << 7) + (128 << 7)) >> 7) as u8;
    }
    out
}

fn cmyk(inks: [u8; 3], black: u8) -> [u8; 3] {
    let light = u32::from(255 - black);
    inks.map(|ink| (light - divide_by_255(u32::from(ink) * light + 128)) as u8)
}

/// `value / 255`, for a value that includes its rounding term.
fn divide_by_255(value: u32) -> u32 {
    ((value >> 8) + value) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compositing_is_the_rounded_mean_weighted_by_alpha() {
        for alpha in 0..=255_u8 {
            for (front, back) in [(0_u8, 255_u8), (255, 0), (17, 200), (255, 255), (0, 0)] {
                let exact =
                    (f64::from(front) * f64::from(alpha) + f64::from(back) * f64::from(255 - alpha)) / 255.0;
                let got = over([front; 3], alpha, Some([back; 3]))[0];
                assert!((f64::from(got) - exact).abs() <= 0.51, "{front} at {alpha} over {back}: {got}");
            }
        }
    }

    #[test]
    fn dropped_alpha_keeps_the_stored_colour() {
        let mut rgb = [0; 6];
        to_rgb(&[1, 2, 3, 0, 4, 5, 6, 9], Model::Rgba, None, &mut rgb);
        assert_eq!(rgb, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn no_ink_is_white_and_full_black_is_black() {
        let mut rgb = [0; 6];
        to_rgb(&[0, 0, 0, 0, 9, 9, 9, 255], Model::Cmyk, None, &mut rgb);
        assert_eq!(rgb, [255, 255, 255, 0, 0, 0]);
        to_rgb(&[255, 255, 255, 255, 9, 9, 9, 0], Model::InvertedCmyk, None, &mut rgb);
        assert_eq!(rgb, [255, 255, 255, 0, 0, 0]);
    }
}
