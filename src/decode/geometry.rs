//! Sizes and places: from the upright source's size to the tensor's.
//!
//! - `stretch`: the target, aspect ratio ignored.
//! - `cover`: torchvision's `Resize` of the shorter side and `CenterCrop`, for any target: the side
//!   that needs the larger scale becomes exactly the target, the other one is rounded down.
//! - `contain`: Pillow's `ImageOps.pad` with its default centring.
//! - Offsets round halves to even, as Python's `round` does.

use crate::config::{Fit, PreprocessSection, Size};

/// The part of a resized image that reaches the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Size of the whole image after the resize.
    pub resized: (u32, u32),
    /// Top left corner of what is kept of it.
    pub cut: (u32, u32),
    /// Size of what is kept of it.
    pub kept: (u32, u32),
}

/// Where the pixels of one upright image go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub window: Window,
    /// Where the kept part lies in the tensor; what it leaves free is background.
    pub at: (u32, u32),
}

/// The geometry section of the pipeline, ready to be asked about images.
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
        // Two crops about the centre: to the target, and from the target to the tensor.
        let (cut_x, kept_x, at_x) = place_side(resized.0, self.target.0, self.tensor.0);
        let (cut_y, kept_y, at_y) = place_side(resized.1, self.target.1, self.tensor.1);
        let window = Window { resized, cut: (cut_x, cut_y), kept: (kept_x, kept_y) };
        Placement { window, at: (at_x, at_y) }
    }
}

/// Offset of the cut, length kept, offset in the tensor.
fn place_side(resized: u32, target: u32, tensor: u32) -> (u32, u32, u32) {
    if resized < target {
        // letterbox; the plan allows no crop after it
        return (0, resized, half(target - resized));
    }
    (half(resized - target) + half(target - tensor), tensor, 0)
}

/// Half of `length`, halves to even.
fn half(length: u32) -> u32 {
    length / 2 + u32::from(length % 4 == 3)
}

fn cover((width, height): (u32, u32), (target_width, target_height): (u32, u32)) -> (u32, u32) {
    let across = u64::from(target_width) * u64::from(height);
    let down = u64::from(target_height) * u64::from(width);
    // at most `u32::MAX` times 16,384 over 1, so it is cut off where it does not fit
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
    // Order of operations and rounding are Pillow's; a side never vanishes, where Pillow gives up.
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
        fn what_is_kept_lies_inside_both_images(
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
