//! The input of the benchmark: a plan for the model, and batches of pseudo-random pixels.

use super::{BenchOptions, Setup};
use crate::config::{
    Color, Devices, EngineSection, Filter, Fit, InputSection, Layout, OneOrMany, Orientation,
    PreprocessSection, Resize, StorageSection,
};
use crate::engine::Engine;
use crate::engine::cuda::ordinary_memory;
use crate::items::{BatchBuffer, PixelsMut};
use crate::plan::{ModelPlan, OutputPlan, Plan, ScoresKept};

/// Scales pixels to 0..=1, the usual range of a model's input.
const SCALE: f32 = 1.0 / 255.0;

pub(super) fn preprocess(dims: &[i64]) -> Result<PreprocessSection, String> {
    let (layout, height, width) = match dims[..] {
        [_, height, width, 3] => (Layout::Nhwc, height, width),
        [_, 3, height, width] => (Layout::Nchw, height, width),
        _ => return Err(format!("its input has dimensions {dims:?}, expected batches of images")),
    };
    let side = |length: i64| {
        u32::try_from(length).ok().filter(|&side| side > 0).ok_or("the image size of its input is dynamic")
    };
    let (width, height) = (side(width)?, side(height)?);
    let resize = Resize { width, height, fit: Fit::Stretch, filter: Filter::Bilinear };
    Ok(PreprocessSection {
        resize,
        layout,
        color: Color::Rgb,
        scale: SCALE,
        orientation: Orientation::Ignore,
        ..PreprocessSection::smallest()
    })
}

pub(super) fn plan(
    options: &BenchOptions,
    preprocess: &PreprocessSection,
    setup: Setup,
    batch_size: usize,
) -> Plan {
    let (kind, provider) = setup.engine();
    Plan {
        name: "bench".to_owned(),
        inputs: Vec::new(),
        input: InputSection { uri: OneOrMany::Many(Vec::new()), ..InputSection::default() },
        preprocess: preprocess.clone(),
        model: ModelPlan { path: options.onnx.clone(), labels: None },
        engine: EngineSection {
            kind,
            provider,
            batch_size,
            devices: Devices::List(vec![options.device]),
            lanes: options.lanes,
            ..EngineSection::default()
        },
        output: OutputPlan {
            uri: String::new(),
            scores: ScoresKept::All,
            max_error_rate: 1.0,
            max_damaged_shards: 0,
            checkpoint_seconds: 30.0,
        },
        storage: StorageSection::default(),
    }
}

/// Pseudo-random pixels, the same in every run: Marsaglia's 32-bit xorshift.
fn pixels() -> impl Iterator<Item = u8> {
    let mut state = 2_463_534_242_u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    })
}

/// The same pixels as a tensor in the plan's layout.
pub(super) fn tensor(plan: &Plan) -> Vec<f32> {
    let row = plan.preprocess.row_elements();
    let elements = plan.engine.batch_size * row;
    let mut tensor = ordinary_memory(elements);
    let rgb: Vec<f32> = pixels().take(elements).map(|pixel| f32::from(pixel) * SCALE).collect();
    match plan.preprocess.layout {
        Layout::Nhwc => tensor.extend(rgb),
        Layout::Nchw => {
            for image in rgb.chunks(row) {
                for channel in 0..3 {
                    tensor.extend(image.iter().skip(channel).step_by(3));
                }
            }
        }
    }
    tensor
}

/// A buffer with the benchmark's pixels for each engine.
pub(super) fn buffers(
    engines: &mut [Box<dyn Engine>],
    plan: &Plan,
) -> Result<Vec<Box<dyn BatchBuffer>>, String> {
    let mut buffers = Vec::new();
    for engine in engines {
        let mut buffer = engine.buffers(1).map_err(|error| error.to_string())?;
        for buffer in &mut buffer {
            match buffer.pixels_mut() {
                PixelsMut::U8(bytes) => bytes.iter_mut().zip(pixels()).for_each(|(to, from)| *to = from),
                PixelsMut::F32(values) => values.copy_from_slice(&tensor(plan)),
            }
        }
        buffers.append(&mut buffer);
    }
    Ok(buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_models_input() {
        let found = preprocess(&[-1, 384, 380, 3]).expect("an image");
        assert_eq!((found.layout, found.resize.height, found.resize.width), (Layout::Nhwc, 384, 380));
        assert_eq!(preprocess(&[1, 3, 8, 9]).expect("an image").layout, Layout::Nchw);
        assert!(preprocess(&[-1, 10]).is_err() && preprocess(&[-1, -1, -1, 3]).is_err());
    }
}
