//! A budget of bytes that items hold while they are in memory.
//!
//! - The bytes held never exceed the budget, except by one item that is larger than all of it
//!   and is then let in alone.
//! - Acquiring blocks; giving back does not, so a permit may be dropped on any thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A budget shared by whoever acquires from it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held_bytes: u64,
    closed: bool,
}

/// Bytes held; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Shared>,
    bytes: u64,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Shared { limit_bytes, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Wait until `bytes` fit, and hold them; `None` once the budget is closed.
    pub fn acquire(&self, bytes: u64) -> Option<Permit> {
        let shared = &self.0;
        // nothing panics while it holds the lock, so a poisoned state is still a correct one
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && state.held_bytes > 0 && state.held_bytes + bytes > shared.limit_bytes {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.held_bytes += bytes;
        Some(Permit { budget: Arc::clone(shared), bytes })
    }

    /// Turn away whoever waits or comes later: what they wait for will not be consumed.
    pub fn close(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held_bytes -= self.bytes;
        drop(state);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn held(budget: &Budget) -> u64 {
        budget.0.state.lock().expect("no test panics with the lock").held_bytes
    }

    #[test]
    fn an_item_larger_than_the_budget_is_let_in_alone() {
        let budget = Budget::new(10);
        let large = budget.acquire(25).expect("open");
        assert_eq!(held(&budget), 25);
        drop(large);
        assert_eq!(held(&budget), 0);
    }

    #[test]
    fn a_full_budget_admits_nothing_until_bytes_come_back() {
        let budget = Budget::new(10);
        let first = budget.acquire(8).expect("open");
        let (tx, rx) = crossbeam_channel::bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(|| tx.send(budget.acquire(5).is_some()));
            assert!(rx.recv_timeout(Duration::from_millis(20)).is_err(), "admitted over the budget");
            drop(first);
            assert_eq!(rx.recv(), Ok(true));
        });
    }

    #[test]
    fn closing_turns_the_waiting_away() {
        let budget = Budget::new(10);
        let _held = budget.acquire(10).expect("open");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.acquire(1).is_none());
            budget.close();
            assert!(waiting.join().expect("no panic"));
        });
    }
}
