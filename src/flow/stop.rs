//! Asking a run to stop: close the source and let the belt run dry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shared flag; once set, no further record is admitted and what is in flight is finished.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Ask for the drain. Safe to call from any thread, any number of times.
    pub fn drain(&self) {
        self.0.store(true, Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.0.load(Relaxed)
    }
}
