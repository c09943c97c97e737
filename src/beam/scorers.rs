//! The scorers of a process, one for each payload, shared by all of its bundles and workers.
//!
//! - A scorer is made by the first bundle that scores, so that workers that only list or finish load no model.
//! - It lives until the last worker that has used it ends, and no bundle uses it. Then its attempt ends, too.
//! - A scorer that has failed is not used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::failure::Failure;
use super::shared_store::SharedStore;
use crate::error::Error;
use crate::flow::{StopSignal, lock};
use crate::plan::Plan;
use crate::scorer::Scorer;

/// Identifies a scorer: the encoded payload.
pub type Key = Vec<u8>;

/// All scorers of a process.
pub struct Scorers {
    runtime: Handle,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Locked while the scorer is being made: other bundles wait for it.
    scorer: Mutex<Option<Arc<SharedScorer>>>,
    /// The last failure to make it, and when.
    failure: Mutex<Option<(Instant, Failure)>>,
    /// Workers that have used it and have not ended.
    workers: Mutex<usize>,
}

/// A scorer of many bundles.
pub struct SharedScorer {
    pub scorer: Scorer,
    batches: SharedStore,
}

impl SharedScorer {
    /// See [`Scorer::store_batches`]. Bundles that end at the same time share a batches part. Blocks.
    ///
    /// # Errors
    /// See there.
    pub fn store_batches(&self, stop: &StopSignal) -> Result<bool, Error> {
        self.batches.request(stop, || self.scorer.store_batches(stop))
    }
}

impl Drop for SharedScorer {
    /// End the attempt: its batches and its note are stored, also if the scorer was discarded. Blocks.
    fn drop(&mut self) {
        if let Err(error) = self.scorer.end() {
            // the run may have been removed; the parts that it stored are safe
            tracing::debug!(%error, "the end of an attempt cannot be stored");
        }
    }
}

/// A scorer, as [`ScorersOfWorker::get`] returns it.
pub struct ReadyScorer {
    pub scorer: Arc<SharedScorer>,
    /// How long it took to make it, if the call did: to fetch, load and warm up the model.
    pub load_time: Option<Duration>,
}

impl Scorers {
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, slots: Mutex::default() }
    }

    /// The scorers as one worker uses them.
    pub fn for_worker(self: &Arc<Self>) -> ScorersOfWorker {
        ScorersOfWorker { scorers: Arc::clone(self), used: Mutex::default() }
    }
}

/// The scorers that a worker has used. Dropping it ends the attempts of those that no other worker uses. That blocks.
pub struct ScorersOfWorker {
    scorers: Arc<Scorers>,
    used: Mutex<HashMap<Key, Arc<Slot>>>,
}

impl ScorersOfWorker {
    /// The scorer of a payload. If it has yet to be made, `plan` returns its plan, or `None` if no scorer is needed.
    /// Blocks.
    ///
    /// # Errors
    /// Those of `plan` and of [`Scorer::new`], and when `stop` came before the scorer was made.
    pub fn get(
        &self,
        key: &[u8],
        stop: &StopSignal,
        plan: impl FnOnce() -> Result<Option<Plan>, Failure>,
    ) -> Result<Option<ReadyScorer>, Failure> {
        let slot = self.slot(key);
        let asked = Instant::now();
        let mut scorer = lock(&slot.scorer);
        if let Some(scorer) = &*scorer {
            return Ok(Some(ReadyScorer { scorer: Arc::clone(scorer), load_time: None }));
        }
        // calls that waited for a scorer that could not be made fail with it, instead of trying again
        if let Some((failed, failure)) = &*lock(&slot.failure)
            && *failed > asked
        {
            return Err(failure.clone());
        }
        if stop.is_draining() {
            return Err(Failure::stopped());
        }
        let begun = Instant::now();
        let made = plan()
            .and_then(|plan| Ok(plan.map(|plan| Scorer::new(plan, &self.scorers.runtime)).transpose()?));
        let made = made.inspect_err(|failure| {
            lock(&slot.failure).replace((Instant::now(), failure.clone()));
        })?;
        Ok(made.map(|made| {
            let made = Arc::new(SharedScorer { scorer: made, batches: SharedStore::default() });
            scorer.replace(Arc::clone(&made));
            ReadyScorer { scorer: made, load_time: Some(begun.elapsed()) }
        }))
    }

    /// Make the next bundle load another scorer, unless one has already.
    pub fn discard(&self, failed: &Arc<SharedScorer>) {
        let slots: Vec<_> = lock(&self.used).values().cloned().collect();
        for slot in slots {
            lock(&slot.scorer).take_if(|scorer| Arc::ptr_eq(scorer, failed));
        }
    }

    /// Make `scorer` the scorer of a payload.
    #[cfg(test)]
    pub fn put(&self, key: &[u8], scorer: Scorer) -> Arc<SharedScorer> {
        let scorer = Arc::new(SharedScorer { scorer, batches: SharedStore::default() });
        lock(&self.slot(key).scorer).replace(Arc::clone(&scorer));
        scorer
    }

    fn slot(&self, key: &[u8]) -> Arc<Slot> {
        let mut used = lock(&self.used);
        if let Some(slot) = used.get(key) {
            return Arc::clone(slot);
        }
        let slot = {
            // counted under the lock, so that no worker that ends removes the slot in between
            let mut slots = lock(&self.scorers.slots);
            let slot = Arc::clone(slots.entry(key.to_vec()).or_default());
            *lock(&slot.workers) += 1;
            slot
        };
        used.insert(key.to_vec(), Arc::clone(&slot));
        slot
    }
}

impl Drop for ScorersOfWorker {
    fn drop(&mut self) {
        // an aborted task is dropped on a thread of the runtime, which must not block on requests
        thread::scope(|scope| {
            let ending = thread::Builder::new().spawn_scoped(scope, || self.end());
            // a panic was reported by its own thread
            let _ = ending.map(thread::ScopedJoinHandle::join);
        });
    }
}

impl ScorersOfWorker {
    fn end(&self) {
        for (key, slot) in lock(&self.used).drain() {
            let scorer = {
                let mut slots = lock(&self.scorers.slots);
                let mut workers = lock(&slot.workers);
                *workers -= 1;
                if *workers > 0 {
                    continue;
                }
                slots.remove(&key);
                lock(&slot.scorer).take()
            };
            // its attempt ends here, or with the last bundle that still uses it
            drop(scorer);
        }
    }
}
