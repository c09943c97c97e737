//! How many callers may still bring items, so that whoever collects them knows when to wait for no more.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A count of those who are expected to bring items.
#[derive(Debug, Default)]
pub struct Arrivals(AtomicUsize);

impl Arrivals {
    /// One more is expected.
    pub fn expect(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    /// One of those expected brings nothing any more; whether nobody else is expected.
    ///
    /// # Panics
    /// If nobody was expected.
    pub fn done(&self) -> bool {
        let before = self.0.fetch_sub(1, SeqCst);
        assert!(before > 0, "only those who were expected are done");
        before == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_of_all_is_told() {
        let arrivals = Arrivals::default();
        (0..3).for_each(|_| arrivals.expect());
        assert_eq!([(); 3].map(|()| arrivals.done()), [false, false, true]);
        arrivals.expect();
        assert!(arrivals.done());
    }
}
