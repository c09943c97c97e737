//! Estimates the batch size that fits into a GPU's memory, after the plan's batch size did not.
//!
//! The memory that an engine takes is not known beforehand, so two small engines are loaded and run, and the memory per
//! row is computed from the memory that they took.

use super::cuda::Device;
use super::{Engine, load, warm_up};
use crate::config::{Devices, EngineSection};
use crate::error::{EngineError, is_out_of_memory};
use crate::plan::Plan;

/// Batch sizes of the two engines that are tried.
const TRIED: [usize; 2] = [8, 32];

/// Usable share of the free memory: allocators round up.
const USABLE: f64 = 0.95;

/// Replaces an out-of-memory error by one that says which batch size would fit; returns other errors
/// unchanged.
pub fn explain(plan: &Plan, model_sha256: &str, error: EngineError) -> EngineError {
    let message = error.to_string();
    if !is_out_of_memory(&message) {
        return error;
    }
    let ordinal = match (&error, &plan.engine.devices) {
        (EngineError::Device { ordinal, .. } | EngineError::WarmUp { ordinal: Some(ordinal), .. }, _) => {
            *ordinal
        }
        (_, Devices::List(ordinals)) => ordinals.first().copied().unwrap_or_default(),
        (_, Devices::All(_)) => 0,
    };
    let batch_size = plan.engine.batch_size;
    tracing::info!(batch_size, "out of memory; trying smaller batches to see what fits");
    match fitting_batch(plan, model_sha256, ordinal) {
        Ok(fits) if fits > 0 => {
            let advice = format!(
                "about {fits} would fit (engine.batch_size), with engine.lanes = {}",
                plan.engine.lanes
            );
            EngineError::Memory { ordinal, batch_size, message, advice }
        }
        Ok(_) => EngineError::Memory {
            ordinal,
            batch_size,
            message,
            advice: "not even one row would fit".to_owned(),
        },
        Err(reason) => EngineError::Memory {
            ordinal,
            batch_size,
            message,
            advice: format!("trying smaller batches failed: {reason}"),
        },
    }
}

fn fitting_batch(plan: &Plan, model_sha256: &str, ordinal: usize) -> Result<usize, String> {
    let free_bytes = free_bytes(ordinal)?;
    let mut taken = [0; TRIED.len()];
    for (batch_size, taken) in TRIED.into_iter().zip(&mut taken) {
        let engine =
            EngineSection { batch_size, devices: Devices::List(vec![ordinal]), ..plan.engine.clone() };
        let plan = Plan { engine, ..plan.clone() };
        let mut engines = load(&plan, model_sha256).map_err(|error| error.to_string())?;
        for (worker, engine) in engines.iter_mut().enumerate() {
            let engine: &mut dyn Engine = engine.as_mut();
            warm_up(engine, worker).map_err(|error| error.to_string())?;
        }
        *taken = free_bytes.saturating_sub(self::free_bytes(ordinal)?);
    }
    Ok(rows_that_fit(free_bytes, TRIED, taken))
}

/// Rows whose memory fits into `free_bytes`, by linear extrapolation from two engines, of `rows` each,
/// that took `taken_bytes`.
fn rows_that_fit(free_bytes: usize, rows: [usize; 2], taken_bytes: [usize; 2]) -> usize {
    let per_row = (taken_bytes[1] as f64 - taken_bytes[0] as f64) / (rows[1] as f64 - rows[0] as f64);
    if per_row <= 0.0 {
        // allocators rounded both up to the same size; a row takes no more than its share of that
        return (free_bytes as f64 * USABLE / (taken_bytes[1] as f64 / rows[1] as f64).max(1.0)) as usize;
    }
    let fixed = (taken_bytes[0] as f64 - per_row * rows[0] as f64).max(0.0);
    ((free_bytes as f64 * USABLE - fixed) / per_row).max(0.0) as usize
}

fn free_bytes(ordinal: usize) -> Result<usize, String> {
    Ok(Device::open(ordinal)?.memory()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fitting_batch_is_extrapolated_from_two_engines() {
        // 100 for the engine and 10 for each row
        assert_eq!(rows_that_fit(1000, [8, 32], [180, 420]), 85);
        assert_eq!(rows_that_fit(50, [8, 32], [180, 420]), 0);
        assert_eq!(rows_that_fit(1000, [8, 32], [320, 320]), 95);
    }

    #[test]
    fn only_out_of_memory_errors_are_recognised() {
        assert!(is_out_of_memory("CUDA_ERROR_OUT_OF_MEMORY"));
        assert!(is_out_of_memory("Requested amount of GPU memory (7 bytes) could not be allocated."));
        assert!(!is_out_of_memory("no such file"));
    }
}
