//! Asking a run to stop: close the source and let the belt run dry.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

/// Shared flag; once set, no further record is admitted and what is in flight is finished. It can
/// be waited for beside a channel ([`super::Receiver::recv_unless`]).
#[derive(Debug, Clone)]
pub struct StopSignal {
    /// Dropped to ask for the drain, which ends the channel for all that wait on it.
    unasked: Arc<Mutex<Option<Sender<Infallible>>>>,
    asked: Receiver<Infallible>,
}

impl Default for StopSignal {
    fn default() -> Self {
        let (unasked, asked) = bounded(0);
        Self { unasked: Arc::new(Mutex::new(Some(unasked))), asked }
    }
}

impl StopSignal {
    /// Ask for the drain. Safe to call from any thread, any number of times.
    pub fn drain(&self) {
        self.unasked.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether sources take no new work, and what is under way is finished.
    pub fn is_draining(&self) -> bool {
        self.asked.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Ends when the drain is asked for; nothing ever arrives on it.
    pub(crate) fn asked(&self) -> &Receiver<Infallible> {
        &self.asked
    }
}
