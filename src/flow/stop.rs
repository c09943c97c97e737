//! Asks a run to stop: sources take no new work, and work in flight is finished.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::lock::lock;

/// Shared flag; once set, no further record is admitted and what is in flight is finished. A thread can wait for it and
/// for a channel at once ([`super::Receiver::recv_unless`]).
#[derive(Debug, Clone)]
pub struct StopSignal {
    /// Dropped to ask for the drain, which disconnects `asked`.
    sender: Arc<Mutex<Option<Sender<Infallible>>>>,
    asked: Receiver<Infallible>,
}

impl Default for StopSignal {
    fn default() -> Self {
        // a channel that could hold a message is read without a lock
        let (sender, asked) = bounded(1);
        Self { sender: Arc::new(Mutex::new(Some(sender))), asked }
    }
}

impl StopSignal {
    /// Ask for the drain. Safe to call from any thread, any number of times.
    pub fn drain(&self) {
        lock(&self.sender).take();
    }

    /// Whether a drain was asked for.
    pub fn is_draining(&self) -> bool {
        self.asked.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Disconnected once the drain is asked for. Nothing ever arrives on it.
    pub(crate) fn asked(&self) -> &Receiver<Infallible> {
        &self.asked
    }
}
