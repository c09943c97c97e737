//! Shares one write to the output among many bundles: bundles that end while a write is running share the next one.
//!
//! - A request is satisfied by a write that began after the request was made.
//! - So bundles that end at the same time wait for at most two writes, however many they are.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::flow::StopSignal;

/// The shared writes of one scorer.
pub struct SharedStore {
    /// Requests so far.
    requested: AtomicU64,
    /// How many of these, from the first on, have been satisfied.
    met: AtomicU64,
    /// Holds a token while no store is running.
    turn: (Sender<()>, Receiver<()>),
}

impl Default for SharedStore {
    fn default() -> Self {
        let (give, take) = bounded(1);
        give.send(()).expect("it has room for the token");
        Self { requested: AtomicU64::new(0), met: AtomicU64::new(0), turn: (give, take) }
    }
}

/// Gives the turn back, even if a store panics.
struct Turn<'a>(&'a Sender<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // there is one token, so there is room for it
        let _ = self.0.send(());
    }
}

impl SharedStore {
    /// Run `store`, unless another request's has begun since this call and succeeded. Returns whether it
    /// was stored: `false` if `stop` came first, or if `store` says so. Blocks.
    ///
    /// # Errors
    /// Those of `store`.
    pub fn request<E>(&self, stop: &StopSignal, store: impl FnOnce() -> Result<bool, E>) -> Result<bool, E> {
        let own = self.requested.fetch_add(1, SeqCst) + 1;
        let (give, take) = &self.turn;
        select! {
            recv(take) -> _ => {}
            recv(stop.asked()) -> _ => return Ok(false),
        }
        let _turn = Turn(give);
        if self.met.load(SeqCst) >= own {
            return Ok(true);
        }
        let meets = self.requested.load(SeqCst);
        let is_stored = store()?;
        if is_stored {
            self.met.store(meets, SeqCst);
        }
        Ok(is_stored)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    fn requested(store: &SharedStore) -> u64 {
        store.requested.load(SeqCst)
    }

    /// Make requests while the first store runs. `first` is its result. Returns the numbers of stores, and of requests
    /// that were met.
    fn stores(first: Result<bool, ()>) -> (usize, usize) {
        let (shared, stop) = (SharedStore::default(), StopSignal::default());
        let begun = Mutex::new(0);
        let count = || {
            *begun.lock().expect("a lock") += 1;
            Ok(true)
        };
        let met = thread::scope(|scope| {
            let (release, released) = bounded::<()>(0);
            let (shared, stop, count) = (&shared, &stop, &count);
            let blocked = scope.spawn(move || {
                shared.request(stop, || {
                    let _ = count();
                    released.recv().expect("a test");
                    first
                })
            });
            while requested(shared) < 1 {
                thread::yield_now();
            }
            let others: Vec<_> = (0..7).map(|_| scope.spawn(move || shared.request(stop, count))).collect();
            while requested(shared) < 8 {
                thread::yield_now();
            }
            release.send(()).expect("it waits");
            let all = others.into_iter().chain([blocked]);
            all.map(|one| one.join().expect("no panic")).filter(|met| *met == Ok(true)).count()
        });
        (begun.into_inner().expect("a lock"), met)
    }

    #[test]
    fn requests_during_a_store_share_the_next_one() {
        assert_eq!(stores(Ok(true)), (2, 8));
    }

    #[test]
    fn a_store_that_fails_meets_no_request() {
        assert_eq!(stores(Err(())), (2, 7));
        assert_eq!(stores(Ok(false)), (2, 7));
    }

    #[test]
    fn a_request_that_waits_ends_when_it_is_stopped() {
        let (shared, stop) = (SharedStore::default(), StopSignal::default());
        let waiting = StopSignal::default();
        let stored = shared.request(&stop, || {
            waiting.drain();
            let stopped = shared.request(&waiting, || Err("another store is running"));
            assert_eq!(stopped, Ok(false));
            Ok::<_, ()>(true)
        });
        assert_eq!(stored, Ok(true));
    }
}
