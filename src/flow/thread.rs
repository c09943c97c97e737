//! Threads with names, which `top -H`, profilers and panic messages show.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Run `work` on a thread of `scope` called `name`, of which Linux shows 15 bytes.
///
/// # Panics
/// If the system has no thread left, as [`Scope::spawn`] does.
pub fn spawn_named<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    Builder::new().name(name.into()).spawn_scoped(scope, work).expect("the system starts a thread")
}

/// Run a stage on its own thread.
///
/// # Errors
/// When the system has no thread left.
pub fn spawn_stage<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_name() {
        std::thread::scope(|scope| {
            let named = spawn_named(scope, "sink", || std::thread::current().name().map(str::to_owned));
            assert_eq!(named.join().expect("no panic").as_deref(), Some("sink"));
        });
    }
}
