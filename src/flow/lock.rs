//! Locks that survive the panic of a thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock `mutex`, also if a thread panicked while it held the lock. So what it guards must be valid at every moment: a
/// panic is reported by the thread that it ends, and must not end others.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
