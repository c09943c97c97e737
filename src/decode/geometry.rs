//! Sizes and offsets: from the size of the upright source to that of the tensor.
//!
//! - `stretch`: resize to the target, ignoring the aspect ratio.
//! - `cover`: torchvision's `Resize` of the shorter side and `CenterCrop`, for any target: the side
//!   that needs the larger scale becomes exactly the target, and the other is rounded down.
//! - `contain`: Pillow's `ImageOps.pad` with its default centring.
//! - Offsets round halves to even, as Python's `round` does.

use crate::config::{Fit, PreprocessSection, Size};

/// The part of a resized image that reaches the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Size of the whole image after the resize.
    pub resized: (u32, u32),
    /// Top left corner of the part that is kept.
    pub cut: (u32, u32),
    /// Size of the part that is kept.
    pub kept: (u32, u32),
}

/// Where the pixels of one upright image go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub window: Window,
    /// Offset of the kept part in the tensor; the rest of the tensor is background.
    pub at: (u32, u32),
}

/// The resize and crop of the pipeline, for images of any size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    target: (u32, u32),
    fit: Fit,
    /// Width and height of the tensor.
    pub tensor: (u32, u32),
}

impl Geometry {
    pub(super) fn new(preprocess: &PreprocessSection) -> Self {
        let Size { width, height } = preprocess.tensor_size();
        Self {
            target: (preprocess.resize.width, preprocess.resize.height),
            fit: preprocess.resize.fit,
            tensor: (width, height),
        }
    }

    /// Where an upright image of `source` pixels goes.
    pub(super) fn place(&self, source: (u32, u32)) -> Placement {
        let resized = match self.fit {
            Fit::Stretch => self.target,
            Fit::Cover => cover(source, self.target),
            Fit::Contain => contain(source, self.target),
        };
        // two centre crops: to the target, and from the target to the tensor
        let (cut_x, kept_x, at_x) = place_side(resized.0, self.target.0, self.tensor.0);
        let (cut_y, kept_y, at_y) = place_side(resized.1, self.target.1, self.tensor.1);
        let window = Window { resized, cut: (cut_x, cut_y), kept: (kept_x, kept_y) };
        Placement { window, at: (at_x, at_y) }
    }
}

/// Offset of the crop, length kept, offset in the tensor.
fn place_side(resized: u32, target: u32, tensor: u32) -> (u32, u32, u32) {
    if resized < target {
        // letterbox; a plan with a crop after it is refused
        return (0, resized, half(target - resized));
    }
    (half(resized - target) + half(target - tensor), tensor, 0)
}

/// Half of `length`, rounded half to even.
fn half(length: u32) -> u32 {
    length / 2 + u32::from(length % 4 == 3)
}

fn cover((width, height): (u32, u32), (target_width, target_height): (u32, u32)) -> (u32, u32) {
    let across = u64::from(target_width) * u64::from(height);
    let down = u64::from(target_height) * u64::from(width);
    // may be up to `u32::MAX` × 16,384, so it saturates
    let narrow = |side: u64| u32::try_from(side).unwrap_or(u32::MAX);
    if across >= down {
        (target_width, target_height.max(narrow(across / u64::from(width))))
    } else {
        (target_width.max(narrow(down / u64::from(height))), target_height)
    }
}

fn contain((width, height): (u32, u32), (target_width, target_height): (u32, u32)) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    let (tw, th) = (f64::from(target_width), f64::from(target_height));
    // Order of operations and rounding are Pillow's. A side is at least 1, where Pillow raises an error.
    if w / h > tw / th {
        (target_width, ((h / w * tw).round_ties_even() as u32).clamp(1, target_height))
    } else {
        (((w / h * th).round_ties_even() as u32).clamp(1, target_width), target_height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(fit: Fit, target: (u32, u32), tensor: (u32, u32)) -> Geometry {
        Geometry { target, fit, tensor }
    }

    #[test]
    fn halves_round_to_even() {
        let halves: Vec<u32> = (0..9).map(half).collect();
        assert_eq!(halves, [0, 0, 1, 2, 2, 2, 3, 4, 4]);
    }

    #[test]
    fn cover_scales_the_shorter_side_and_rounds_the_longer_down() {
        let place = geometry(Fit::Cover, (224, 224), (224, 224)).place((640, 427));
        assert_eq!(place.window, Window { resized: (335, 224), cut: (56, 0), kept: (224, 224) });
        let wide = geometry(Fit::Cover, (100, 50), (100, 50)).place((30, 30));
        assert_eq!(wide.window, Window { resized: (100, 100), cut: (0, 25), kept: (100, 50) });
    }

    #[test]
    fn contain_centres_between_bars() {
        let place = geometry(Fit::Contain, (64, 64), (64, 64)).place((100, 33));
        assert_eq!(place.window, Window { resized: (64, 21), cut: (0, 0), kept: (64, 21) });
        assert_eq!(place.at, (0, 22));
    }

    #[test]
    fn a_sliver_keeps_at_least_one_pixel() {
        assert_eq!(contain((10_000, 1), (64, 64)), (64, 1));
    }

    proptest! {
        #[test]
        fn the_kept_part_lies_inside_the_resized_image_and_the_tensor(
            source in (1..5000_u32, 1..5000_u32),
            target in (1..600_u32, 1..600_u32),
            crop in (1..600_u32, 1..600_u32),
            fit in prop_oneof![Just(Fit::Stretch), Just(Fit::Cover), Just(Fit::Contain)],
        ) {
            let tensor = match fit {
                Fit::Contain => target,
                _ => (crop.0.min(target.0), crop.1.min(target.1)),
            };
            let place = geometry(fit, target, tensor).place(source);
            let Placement { window: Window { resized, cut, kept }, at } = place;
            prop_assert!(cut.0 + kept.0 <= resized.0 && cut.1 + kept.1 <= resized.1);
            prop_assert!(at.0 + kept.0 <= tensor.0 && at.1 + kept.1 <= tensor.1);
            if fit != Fit::Contain {
                prop_assert_eq!(kept, tensor);
            }
        }
    }
}
