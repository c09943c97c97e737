//! How long a web server is waited for that has begun to fail.
//!
//! - Each request is repeated for `storage.retry_seconds`, as to a bucket. A manifest may name a million images of one
//!   server, though, so the patience is the server's: once it has failed for so long without one good answer, each
//!   further request is made once. The first good answer makes up for everything.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Marks a request that is made once, whatever comes of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskedOnce;

/// What a client knows of its server.
#[derive(Debug)]
pub(super) struct Outage {
    /// `None` for stores that a run cannot do without.
    patience: Option<Duration>,
    since: Mutex<Option<Instant>>,
}

/// A server that has failed for as long as it was waited for.
#[derive(Debug, thiserror::Error)]
#[error("its server has answered nothing but errors for {} s ({last})", .seconds)]
pub(super) struct GivenUp {
    pub seconds: u64,
    /// What was answered last.
    pub last: String,
}

impl Outage {
    pub fn new(patience: Option<Duration>) -> Self {
        Self { patience, since: Mutex::default() }
    }

    /// A good answer has come.
    pub fn ended(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A request has failed for the moment at `now`; how long it goes on, if that is longer than the patience.
    pub fn goes_on(&self, now: Instant) -> Option<Duration> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = now.saturating_duration_since(*since.get_or_insert(now));
        self.patience.filter(|patience| lasting >= *patience).map(|_| lasting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_the_servers_and_one_good_answer_renews_it() {
        let (outage, start) = (Outage::new(Some(Duration::from_secs(60))), Instant::now());
        let at = |seconds| outage.goes_on(start + Duration::from_secs(seconds));
        assert_eq!(at(0), None);
        assert_eq!(at(59), None);
        assert_eq!(at(61), Some(Duration::from_secs(61)));
        outage.ended();
        assert_eq!(at(100), None);
        assert_eq!(at(159), None);
        assert_eq!(at(160), Some(Duration::from_secs(60)));
        assert_eq!(Outage::new(None).goes_on(start), None);
    }
}
