//! Limits how long requests to a failing web server are repeated.
//!
//! - Each request is repeated for `storage.retry_seconds`, as with a bucket. But a manifest may name a million images
//!   of one server, so the limit applies to the server as a whole: once the server has failed for that long without a
//!   good answer, each further request is made only once. A good answer resets the limit.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::flow::lock;

/// Marks a request that is never repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct SingleTry;

/// A client's record of its server's failures.
#[derive(Debug)]
pub(super) struct Outage {
    /// `None` for stores that a run depends on.
    limit: Option<Duration>,
    since: Mutex<Option<Instant>>,
}

/// The server has failed for as long as requests are repeated.
#[derive(Debug, thiserror::Error)]
#[error("its server has answered nothing but errors for {} s ({last})", .seconds)]
pub(super) struct GivenUp {
    pub seconds: u64,
    /// The last answer.
    pub last: String,
}

impl Outage {
    pub fn new(limit: Option<Duration>) -> Self {
        Self { limit, since: Mutex::default() }
    }

    /// Record a good answer.
    pub fn ended(&self) {
        *lock(&self.since) = None;
    }

    /// Record a temporary failure at `now`. Returns how long the server has failed, if that reaches the limit.
    pub fn failed_at(&self, now: Instant) -> Option<Duration> {
        let mut since = lock(&self.since);
        let lasting = now.saturating_duration_since(*since.get_or_insert(now));
        self.limit.filter(|limit| lasting >= *limit).map(|_| lasting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_applies_to_the_server_and_a_good_answer_resets_it() {
        let (outage, start) = (Outage::new(Some(Duration::from_secs(60))), Instant::now());
        let at = |seconds| outage.failed_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), None);
        assert_eq!(at(59), None);
        assert_eq!(at(61), Some(Duration::from_secs(61)));
        outage.ended();
        assert_eq!(at(100), None);
        assert_eq!(at(159), None);
        assert_eq!(at(160), Some(Duration::from_secs(60)));
        assert_eq!(Outage::new(None).failed_at(start), None);
    }
}
