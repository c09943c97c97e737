//! Measures setups: load time, first run, both kinds of timed runs, and scores.

use std::time::{Duration, Instant};

use super::input::{buffers, plan, preprocess, tensor};
use super::{BenchOptions, BenchOutcome, BenchRow, Measured, Times};
use crate::config::{EngineKind, EngineSection, Provider};
use crate::engine::{self, Engine, onnx};
use crate::error::{EngineError, Error};
use crate::items::BatchBuffer;
use crate::plan::Plan;

/// Measure every setup at every batch size; `done` is called with each row.
///
/// # Errors
/// If the model cannot be read. A setup that cannot run is a row with the reason.
pub fn run(options: &BenchOptions, mut done: impl FnMut(&BenchRow)) -> Result<Vec<BenchRow>, Error> {
    let model_sha256 = engine::hash_model(&options.onnx)?;
    let path = || options.onnx.clone();
    let input =
        onnx::read_input(&options.onnx).map_err(|message| EngineError::Load { path: path(), message })?;
    let preprocess =
        preprocess(&input.dims).map_err(|message| EngineError::Load { path: path(), message })?;
    let mut rows = Vec::new();
    for &batch_size in &options.batch_sizes {
        let mut expected = None;
        for &setup in &options.setups {
            let plan = plan(options, &preprocess, setup, batch_size);
            if options.check && expected.is_none() {
                expected = Some(reference(&plan));
            }
            let outcome = match measure(&plan, &model_sha256, options, expected.as_ref()) {
                Ok(measured) => BenchOutcome::Measured(Box::new(measured)),
                Err(reason) => BenchOutcome::Failed { reason },
            };
            let row = BenchRow { setup, batch_size, outcome };
            done(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The scores of ONNX Runtime on the CPU for the benchmark's pixels.
fn reference(plan: &Plan) -> Result<Vec<f32>, String> {
    let cpu = EngineSection { kind: EngineKind::Onnxruntime, provider: Provider::Cpu, ..plan.engine.clone() };
    let plan = Plan { engine: cpu, ..plan.clone() };
    let mut engines = engine::load(&plan, "").map_err(|error| error.to_string())?;
    engines[0].infer_floats(&tensor(&plan))
}

fn measure(
    plan: &Plan,
    model_sha256: &str,
    options: &BenchOptions,
    expected: Option<&Result<Vec<f32>, String>>,
) -> Result<Measured, String> {
    let start = Instant::now();
    let mut engines = engine::load(plan, model_sha256).map_err(|error| error.to_string())?;
    let load_s = start.elapsed().as_secs_f64();
    let batch_size = plan.engine.batch_size;
    let tensor = tensor(plan);
    let mut buffers = buffers(engines.as_mut_slice(), plan)?;

    let start = Instant::now();
    engines[0].infer(buffers[0].pixels(), batch_size)?;
    let first_run_s = start.elapsed().as_secs_f64();

    // the other lanes also compile and capture what they need before anything is timed
    for (worker, engine) in engines.iter_mut().enumerate() {
        engine::warm_up(engine.as_mut(), worker).map_err(|error| error.to_string())?;
    }
    let original = engines[0]
        .takes_floats()
        .then(|| timed(options, || engines[0].infer_floats(&tensor).map(drop)))
        .transpose()?;
    let mut steps = Vec::new();
    let mut scores = Vec::new();
    let own = timed(options, || {
        let inference = engines[0].infer(buffers[0].pixels(), batch_size)?;
        steps.push((inference.h2d, inference.compute, inference.d2h));
        scores = inference.scores;
        Ok(())
    })?;
    let mut steps = steps.split_off(steps.len() - own.len());
    steps.sort_by_key(|&(h2d, compute, d2h)| h2d + compute + d2h);
    let (h2d, compute, d2h) = steps.get(steps.len() / 2).copied().unwrap_or_default();
    let overlapped_images_per_second = overlapped(&mut engines, &mut buffers, own.len(), batch_size)?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (max_difference, other_top_class) = match expected {
        None => (None, None),
        Some(Ok(expected)) => {
            let (difference, other) = compare(&scores, expected, batch_size);
            (Some(difference), Some(other))
        }
        Some(Err(error)) => {
            tracing::warn!(error, "no scores to compare with: ONNX Runtime on the CPU failed");
            (None, None)
        }
    };
    Ok(Measured {
        engine: engines[0].describe(),
        iterations: own.len(),
        load_s,
        first_run_s,
        original: original.map(|seconds| Times::of(seconds, batch_size)),
        own: Times::of(own, batch_size),
        h2d_ms: ms(h2d),
        compute_ms: ms(compute),
        d2h_ms: ms(d2h),
        overlapped_images_per_second,
        max_difference,
        other_top_class,
    })
}

/// Minimum number of timed runs, for a meaningful median.
const MIN_RUNS: usize = 3;

/// Seconds of each timed run, after a tenth as many untimed runs.
fn timed(options: &BenchOptions, mut run: impl FnMut() -> Result<(), String>) -> Result<Vec<f64>, String> {
    let start = Instant::now();
    for _ in 0..options.iterations / 10 {
        run()?;
        if start.elapsed() > options.patience / 10 {
            break;
        }
    }
    let mut seconds = Vec::with_capacity(options.iterations);
    let begun = Instant::now();
    while seconds.len() < options.iterations
        && (seconds.len() < MIN_RUNS || begun.elapsed() < options.patience)
    {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Images/s of all engines at once, each on its own thread.
fn overlapped(
    engines: &mut [Box<dyn Engine>],
    buffers: &mut [Box<dyn BatchBuffer>],
    iterations: usize,
    batch_size: usize,
) -> Result<f64, String> {
    let runs = iterations * engines.len();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = engines
            .iter_mut()
            .zip(buffers)
            .map(|(engine, buffer)| {
                scope.spawn(move || {
                    (0..iterations).try_for_each(|_| engine.infer(buffer.pixels(), batch_size).map(drop))
                })
            })
            .collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().unwrap_or_else(|_| Err("a lane panicked".to_owned())))
    })?;
    Ok((runs * batch_size) as f64 / start.elapsed().as_secs_f64())
}

/// Largest difference between scores at the same index; infinite if one of them is NaN, or if the
/// lengths differ.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differ =
        |(a, b): (&f32, &f32)| Some((a - b).abs()).filter(|by| !by.is_nan()).unwrap_or(f32::INFINITY);
    if a.len() == b.len() { a.iter().zip(b).map(differ).fold(0.0, f32::max) } else { f32::INFINITY }
}

/// Largest difference, and the number of rows whose best classes differ.
fn compare(scores: &[f32], expected: &[f32], rows: usize) -> (f32, usize) {
    if scores.len() != expected.len() || rows == 0 {
        return (f32::INFINITY, rows);
    }
    let difference = largest_difference(scores, expected);
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let classes = scores.len() / rows;
    let pairs = scores.chunks(classes).zip(expected.chunks(classes));
    (difference, pairs.filter(|(a, b)| best(a) != best(b)).count())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn scores_are_compared_row_by_row() {
        assert_eq!(compare(&[0.1, 0.9, 0.6, 0.4], &[0.1, 0.9, 0.4, 0.6], 2), (0.20000002, 1));
        assert_eq!(compare(&[0.1], &[0.1, 0.2], 1).1, 1, "a different number of scores never agrees");
        assert_eq!(compare(&[f32::NAN, 0.1], &[0.3, 0.1], 1).0, f32::INFINITY);
    }

    #[test]
    fn a_slow_setup_is_run_less_often_but_at_least_three_times() {
        let options = |iterations, patience| BenchOptions {
            onnx: PathBuf::new(),
            setups: Vec::new(),
            batch_sizes: Vec::new(),
            iterations,
            patience,
            device: 0,
            lanes: 1,
            check: false,
        };
        let runs =
            |iterations, patience| timed(&options(iterations, patience), || Ok(())).expect("runs").len();
        assert_eq!(runs(50, Duration::MAX), 50);
        assert_eq!(runs(50, Duration::ZERO), MIN_RUNS);
        assert_eq!(runs(2, Duration::ZERO), 2);
    }
}
