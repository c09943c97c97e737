//! Counts the callers that may still bring items, so that the stage that collects the items knows when to stop waiting.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The number of callers that are expected to bring items.
#[derive(Debug, Default)]
pub struct Arrivals(AtomicUsize);

impl Arrivals {
    /// Expect one more caller.
    pub fn expect(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    /// Note that an expected caller brings no more items. Returns whether it was the last one.
    ///
    /// # Panics
    /// If no caller was expected.
    pub fn done(&self) -> bool {
        let before = self.0.fetch_sub(1, SeqCst);
        assert!(before > 0, "every call of `done` follows one of `expect`");
        before == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn done_is_true_only_for_the_last_caller() {
        let arrivals = Arrivals::default();
        (0..3).for_each(|_| arrivals.expect());
        assert_eq!([(); 3].map(|()| arrivals.done()), [false, false, true]);
        arrivals.expect();
        assert!(arrivals.done());
    }
}
