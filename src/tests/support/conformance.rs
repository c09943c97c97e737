//! The conformance suite of [`Engine`]: what the pipeline requires of every engine.
//!
//! Every engine is loaded from the pipeline file of [`Bench`], whose model takes 8×8 pixels and has 4 classes.

use sluice::config::{Overrides, PipelineFile};
use sluice::engine::{self, Engine, Inference};
use sluice::items::{BatchBuffer, PixelElement, PixelsMut, PixelsRef};
use sluice::plan::Plan;

use super::support::Bench;

/// From the pipeline file of [`Bench`].
const BATCH_SIZE: usize = 4;
const ROW_ELEMENTS: usize = 8 * 8 * 3;
const CLASSES: usize = 4;
const SCALE: f32 = 1.0 / 255.0;

/// Run the suite on every engine that a plan with these settings loads. Scores that need not have the same bits may
/// differ by `tolerance`.
pub fn check(settings: &[&str], tolerance: f32) {
    let bench = Bench::new();
    let model = std::env::current_dir().expect("a current folder").join("fixtures/tiny.onnx");
    let mut set: Vec<_> = settings.iter().map(|&setting| setting.to_owned()).collect();
    set.push(format!("model.path={}", model.display()));
    let overrides =
        Overrides { output: Some(bench.path("out").display().to_string()), set, ..Default::default() };
    let file = PipelineFile::load(&bench.path("pipeline.toml"), &overrides).expect("a pipeline file");
    let plan = Plan::check(file).expect("a plan");
    let sha256 = engine::hash_model(&plan.model.path).expect("a model");
    let engines = engine::load(&plan, &sha256).unwrap_or_else(|error| panic!("{error}"));
    assert!(!engines.is_empty());
    for mut engine in engines {
        let engine = engine.as_mut();
        every_batch_has_the_shape_of_the_plan(engine);
        buffers_have_the_shape_and_the_element_type_of_the_engine(engine);
        pixels_of_another_element_type_are_refused(engine);
        each_row_has_scores_of_its_own(engine);
        a_padded_batch_gives_the_same_rows(engine);
        scores_do_not_depend_on_the_place_in_the_batch(engine, tolerance);
        the_original_protocol_gives_the_same_scores(engine, tolerance);
    }
}

fn every_batch_has_the_shape_of_the_plan(engine: &mut dyn Engine) {
    let shape = engine.batch_shape();
    assert_eq!((shape.batch_size, shape.row_elements), (BATCH_SIZE, ROW_ELEMENTS), "{}", engine.describe());
    assert_eq!(engine.classes(), CLASSES, "{}", engine.describe());
}

fn buffers_have_the_shape_and_the_element_type_of_the_engine(engine: &mut dyn Engine) {
    let shape = engine.batch_shape();
    let buffers = engine.buffers(3).expect("memory for three batches");
    assert_eq!(buffers.len(), 3, "{}", engine.describe());
    for mut buffer in buffers {
        let (length, is_floats) = match buffer.pixels() {
            PixelsRef::U8(pixels) => (pixels.len(), false),
            PixelsRef::F32(pixels) => (pixels.len(), true),
        };
        assert_eq!(length, shape.batch_size * shape.row_elements, "{}", engine.describe());
        assert_eq!(is_floats, shape.element == PixelElement::F32, "{}", engine.describe());
        fill(buffer.as_mut(), &batch());
        infer(engine, buffer.as_ref(), shape.batch_size);
    }
}

fn pixels_of_another_element_type_are_refused(engine: &mut dyn Engine) {
    let bytes = vec![0; BATCH_SIZE * ROW_ELEMENTS];
    let floats = vec![0.0; BATCH_SIZE * ROW_ELEMENTS];
    let wrong = match engine.batch_shape().element {
        PixelElement::F32 => PixelsRef::U8(&bytes),
        PixelElement::Rgb8 | PixelElement::U8 => PixelsRef::F32(&floats),
    };
    let message = engine.infer(wrong, BATCH_SIZE).expect_err("another element type");
    assert!(!message.is_empty(), "{}", engine.describe());
}

fn each_row_has_scores_of_its_own(engine: &mut dyn Engine) {
    let scores = scores(engine, &batch(), BATCH_SIZE);
    assert!(scores.iter().all(|score| score.is_finite()), "{}: {scores:?}", engine.describe());
    let rows: Vec<_> = scores.chunks(CLASSES).collect();
    for (index, row) in rows.iter().enumerate() {
        assert!(!rows[..index].contains(row), "{}: {rows:?}", engine.describe());
    }
}

fn a_padded_batch_gives_the_same_rows(engine: &mut dyn Engine) {
    let full = scores(engine, &batch(), BATCH_SIZE);
    for rows in 1..BATCH_SIZE {
        let mut padded = batch();
        padded[rows * ROW_ELEMENTS..].fill(0);
        let scores = scores(engine, &padded, rows);
        assert_eq!(bits(&scores), bits(&full[..rows * CLASSES]), "{}, {rows} rows", engine.describe());
    }
}

fn scores_do_not_depend_on_the_place_in_the_batch(engine: &mut dyn Engine, tolerance: f32) {
    let mut expected = scores(engine, &batch(), BATCH_SIZE);
    let mut turned = batch();
    for _ in 1..BATCH_SIZE {
        turned.rotate_left(ROW_ELEMENTS);
        expected.rotate_left(CLASSES);
        let scores = scores(engine, &turned, BATCH_SIZE);
        assert_close(&scores, &expected, tolerance, engine);
    }
}

fn the_original_protocol_gives_the_same_scores(engine: &mut dyn Engine, tolerance: f32) {
    if !engine.takes_floats() {
        return;
    }
    let expected = scores(engine, &batch(), BATCH_SIZE);
    let scores = engine.infer_floats(&floats(&batch())).expect("scores");
    assert_close(&scores, &expected, tolerance, engine);
}

/// RGB bytes of a full batch of different rows (the linear congruential generator of Numerical Recipes).
fn batch() -> Vec<u8> {
    let mut state = 1_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..BATCH_SIZE * ROW_ELEMENTS).map(|_| byte()).collect()
}

/// The same pixels, normalised as in the plan. They already have the plan's layout.
fn floats(rgb: &[u8]) -> Vec<f32> {
    rgb.iter().map(|&byte| f32::from(byte) * SCALE).collect()
}

fn fill(buffer: &mut dyn BatchBuffer, rgb: &[u8]) {
    match buffer.pixels_mut() {
        PixelsMut::U8(pixels) => pixels.copy_from_slice(rgb),
        PixelsMut::F32(pixels) => pixels.copy_from_slice(&floats(rgb)),
    }
}

fn infer(engine: &mut dyn Engine, buffer: &dyn BatchBuffer, rows: usize) -> Inference {
    let inference = engine.infer(buffer.pixels(), rows).unwrap_or_else(|message| panic!("{message}"));
    assert_eq!(inference.scores.len(), rows * CLASSES, "{}", engine.describe());
    inference
}

fn scores(engine: &mut dyn Engine, rgb: &[u8], rows: usize) -> Vec<f32> {
    let mut buffer = engine.buffers(1).expect("memory for a batch").remove(0);
    fill(buffer.as_mut(), rgb);
    infer(engine, buffer.as_ref(), rows).scores
}

fn bits(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|score| score.to_bits()).collect()
}

fn assert_close(scores: &[f32], expected: &[f32], tolerance: f32, engine: &dyn Engine) {
    assert_eq!(scores.len(), expected.len(), "{}", engine.describe());
    let differences = scores.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let largest = differences.fold(0.0, f32::max);
    assert!(largest <= tolerance, "{}: differs by {largest}, limit is {tolerance}", engine.describe());
}
