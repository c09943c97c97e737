//! Where the time of a stage goes: busy, blocked on the next stage, starved by the one before.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

thread_local! {
    /// The time for which this thread was blocked within the work that is being timed.
    static BLOCKED_WITHIN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Counters of one stage, written by its threads and read by the summary.
#[derive(Debug)]
pub struct StageMeter {
    /// Name of the stage.
    pub name: &'static str,
    /// Threads that can be busy at once.
    pub workers: usize,
    /// Threads that wait at the queues before and behind the stage.
    waiters: usize,
    busy_ns: AtomicU64,
    blocked_ns: AtomicU64,
    starved_ns: AtomicU64,
    items: AtomicU64,
}

/// A stage's time as shares of the run, each between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageShare {
    /// Name of the stage.
    pub stage: &'static str,
    /// Threads of the stage.
    pub workers: usize,
    /// Items passed on.
    pub items: u64,
    /// Share of all workers' time that was spent working.
    pub busy: f64,
    /// Share of the waiting threads' time that was spent waiting for room in the next queue.
    pub blocked: f64,
    /// Share of the waiting threads' time that was spent waiting for the stage before.
    pub starved: f64,
}

impl StageMeter {
    /// A stage whose workers wait at its queues themselves.
    pub fn new(name: &'static str, workers: usize) -> Self {
        Self::dispatched(name, workers, workers)
    }

    /// A stage whose work reaches its `workers` through `waiters` other threads.
    pub fn dispatched(name: &'static str, workers: usize, waiters: usize) -> Self {
        Self {
            name,
            workers,
            waiters,
            busy_ns: AtomicU64::new(0),
            blocked_ns: AtomicU64::new(0),
            starved_ns: AtomicU64::new(0),
            items: AtomicU64::new(0),
        }
    }

    /// Run `work`, and count its time as busy.
    pub fn busy<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        BLOCKED_WITHIN.set(Duration::ZERO);
        let result = work();
        self.busy_ns.fetch_add(nanoseconds(start.elapsed().saturating_sub(BLOCKED_WITHIN.get())), Relaxed);
        result
    }

    /// Wait within busy work, and count the time as blocked instead.
    pub fn blocked<R>(&self, wait: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = wait();
        self.add_blocked(start.elapsed());
        BLOCKED_WITHIN.set(BLOCKED_WITHIN.get() + start.elapsed());
        result
    }

    /// Count time spent waiting for room in the next queue.
    pub fn add_blocked(&self, time: Duration) {
        self.blocked_ns.fetch_add(nanoseconds(time), Relaxed);
    }

    /// Count time spent waiting for work.
    pub fn add_starved(&self, time: Duration) {
        self.starved_ns.fetch_add(nanoseconds(time), Relaxed);
    }

    /// Count `n` items passed on.
    pub fn add_items(&self, n: u64) {
        self.items.fetch_add(n, Relaxed);
    }

    /// Items passed on so far.
    pub fn items(&self) -> u64 {
        self.items.load(Relaxed)
    }

    /// How the stage spent a run that took `wall`.
    pub fn share(&self, wall: Duration) -> StageShare {
        let wall_ns = (wall.as_nanos() as f64).max(1.0);
        let share = |counter: &AtomicU64, threads: usize| {
            (counter.load(Relaxed) as f64 / (wall_ns * threads as f64)).min(1.0)
        };
        StageShare {
            stage: self.name,
            workers: self.workers,
            items: self.items(),
            busy: share(&self.busy_ns, self.workers),
            blocked: share(&self.blocked_ns, self.waiters),
            starved: share(&self.starved_ns, self.waiters),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_workers_time() {
        let meter = StageMeter::dispatched("decode", 4, 1);
        meter.busy_ns.store(2_000_000_000, Relaxed);
        meter.add_starved(Duration::from_millis(250));
        let share = meter.share(Duration::from_secs(1));
        assert_eq!(share.busy, 0.5);
        assert_eq!(share.starved, 0.25);
        assert_eq!(share.blocked, 0.0);

        let meter = StageMeter::new("engine", 2);
        meter.add_starved(Duration::from_secs(1));
        assert_eq!(meter.share(Duration::from_secs(1)).starved, 0.5, "one of two waited");
    }
}
