//! Checks the system's limits on this process before a run, since reaching one later would look like a crash.
//!
//! - Threads: a run starts them one by one, some of them in libraries that fail without them. So the same number is
//!   started at once, and ended, before anything else.
//! - Memory: an allocation that fails ends a Rust process at once. So once engines are loaded, a limited address space
//!   (`ulimit -v`) or data segment (`ulimit -d`) must leave enough for the run.
//! - Open files: a file or a connection that cannot be opened would look like an error of the image it was for.
//! - Stack: a stack that is too small can end the process at any time.

use std::sync::Mutex;
use std::thread::Builder;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::Error;
use crate::plan::{Plan, threads_or_cores};
use crate::source::REQUESTS_IN_FLIGHT;

/// Threads of a run besides those in its plan: stages, stores, signals, progress.
const OTHER_THREADS: usize = 24;

/// Address space that a run's buffers need, besides engine and threads.
const MIN_RUN_BYTES: u64 = 512 << 20;

/// Address space that any command needs for what it reads, besides its threads.
const MIN_COMMAND_BYTES: u64 = 128 << 20;

/// Address space that glibc's allocator reserves for each thread that calls it, up to a number of threads per core. It
/// reserves as long as it can; if nothing is left, the next allocation elsewhere ends the process.
const ARENA_BYTES: u64 = 64 << 20;
const ARENAS_PER_CORE: usize = 8;

fn arenas_bytes(threads: usize) -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    threads.min(ARENAS_PER_CORE * cores) as u64 * ARENA_BYTES
}

fn threads(plan: &Plan) -> usize {
    let decode = threads_or_cores(plan.preprocess.threads);
    let engine = threads_or_cores(plan.engine.threads);
    decode + engine + plan.input.look_ahead + 1 + plan.engine.lanes + OTHER_THREADS
}

/// Files and connections of any command at once: its stores, its log, and files that libraries open briefly.
const OTHER_FILES: u64 = 48;

/// Stack of the main thread, and of each thread that a C library starts. A small model needs a quarter of this.
const MIN_STACK_BYTES: u64 = 1 << 20;

/// Stack of a thread that Rust starts.
const THREAD_STACK_BYTES: u64 = 2 << 20;

/// Check that the stack is large enough. Call it before anything that needs much of it.
///
/// # Errors
/// [`Error::Stack`] if it is not.
pub fn check_stack() -> Result<(), Error> {
    match getrlimit(Resource::Stack).current {
        Some(limit) if limit < MIN_STACK_BYTES => {
            Err(Error::Stack { limit_kib: limit >> 10, needed_kib: MIN_STACK_BYTES >> 10 })
        }
        _ => Ok(()),
    }
}

/// Raise the limit on open files as far as the system allows, and check that it suffices for any command.
///
/// # Errors
/// [`Error::OpenFiles`] if it does not.
pub fn raise_open_files_limit() -> Result<(), Error> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some()
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        // the present limit may be enough
        tracing::debug!(%error, "the limit on open files cannot be raised");
    }
    check_open_files(OTHER_FILES)
}

/// Check that `needed` more files can be opened.
fn check_open_files(needed: u64) -> Result<(), Error> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let open = match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => open.count() as u64,
        // the limit is reached already
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => limit,
        Err(_) => 0,
    };
    if limit.saturating_sub(open) >= needed { Ok(()) } else { Err(Error::OpenFiles { limit, open, needed }) }
}

/// Check that the limits leave enough threads, files and memory for a run of `plan`.
///
/// # Errors
/// [`Error::Threads`], [`Error::Memory`] or [`Error::OpenFiles`] if they do not.
pub fn check_limits(plan: &Plan) -> Result<(), Error> {
    let readers = plan.input.look_ahead as u64 + 1;
    check_open_files(OTHER_FILES + readers * REQUESTS_IN_FLIGHT as u64)?;
    check_memory(plan)?;
    check_threads(threads(plan))
}

/// Check that `count` more threads can be started at once.
///
/// # Errors
/// [`Error::Threads`] if they cannot, [`Error::Memory`] if their stacks do not fit.
pub fn check_threads(count: usize) -> Result<(), Error> {
    check_free_bytes(MIN_COMMAND_BYTES, count)?;
    let held = Mutex::new(());
    let guard = held.lock();
    std::thread::scope(|scope| {
        let mut failed = None;
        for _ in 0..count {
            // it ends when the lock is released, after all have been started
            let waiting = Builder::new().spawn_scoped(scope, || drop(held.lock()));
            if let Err(error) = waiting {
                failed = Some(error);
                break;
            }
        }
        drop(guard);
        match failed {
            None => Ok(()),
            Some(error) => Err(Error::Threads { threads: count, message: error.to_string() }),
        }
    })
}

/// Check that limits on memory leave enough for a run of `plan`.
///
/// # Errors
/// [`Error::Memory`] if they do not.
pub fn check_memory(plan: &Plan) -> Result<(), Error> {
    check_free_bytes(MIN_RUN_BYTES, threads(plan))
}

/// Check that memory is left for `bytes` and for the stacks of `threads`.
fn check_free_bytes(bytes: u64, threads: usize) -> Result<(), Error> {
    let limits = [
        (Resource::As, "the address space", "ulimit -v", "VmSize:", arenas_bytes(threads)),
        (Resource::Data, "memory for data", "ulimit -d", "VmData:", 0),
    ];
    for (resource, what, option, taken, set_apart_bytes) in limits {
        let needed_bytes = bytes + set_apart_bytes + threads as u64 * THREAD_STACK_BYTES;
        let Some(limit_bytes) = getrlimit(resource).current else { continue };
        let Some(taken_bytes) = taken_bytes(taken) else { continue };
        if limit_bytes.saturating_sub(taken_bytes) < needed_bytes {
            let (limit_mib, taken_mib, needed_mib) =
                (limit_bytes >> 20, taken_bytes >> 20, needed_bytes >> 20);
            return Err(Error::Memory { what, option, limit_mib, taken_mib, needed_mib });
        }
    }
    Ok(())
}

/// Memory that this process uses; `kind` is a field of `/proc/self/status`.
fn taken_bytes(kind: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(kind))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_threads_can_be_started() {
        check_threads(50).expect("a machine for tests has that many");
    }

    #[test]
    fn the_address_space_of_a_process_is_known() {
        assert!(taken_bytes("VmSize:") > Some(1 << 20));
        assert!(taken_bytes("VmData:") > Some(1 << 20));
    }
}
