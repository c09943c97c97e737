//! What the system lets this process have: seen to before it is needed, where the lack of it would show as a crash.
//!
//! - Threads are started one by one while a run begins, and few of those who start one can go on without. So as many are
//!   started for a moment, all at once, before anything else.
//! - Memory that the system refuses ends a Rust process on the spot, in whatever it is doing then. Of a limited address
//!   space so much must be left, once engines are loaded, that the run itself is not what meets the limit.

use std::sync::Mutex;
use std::thread::Builder;

use rustix::process::{Resource, getrlimit};

use crate::error::Error;
use crate::plan::{Plan, threads_or_cores};

/// Threads of a run beside those that its plan counts: stages, stores, signals, progress.
const OTHER_THREADS: usize = 24;

/// Address space that a run takes beside the engine's and its threads', at the least: for buffers.
const LEAST_RUN_BYTES: u64 = 512 << 20;

/// Address space that any command takes beside its threads': for what it reads.
const LEAST_COMMAND_BYTES: u64 = 128 << 20;

/// Address space that a thread takes: its stack, and the 64 MiB that glibc's allocator sets apart for each thread that
/// calls it. That allocator takes them while it can, and leaves nothing to others: their next allocation ends the process.
const BYTES_PER_THREAD: u64 = 66 << 20;

fn threads(plan: &Plan) -> usize {
    let decode = threads_or_cores(plan.preprocess.threads);
    let engine = threads_or_cores(plan.engine.threads);
    decode + engine + plan.input.look_ahead + 1 + plan.engine.lanes + OTHER_THREADS
}

/// See that the threads of a run of `plan` can be had, and address space enough for it and them.
///
/// # Errors
/// [`Error::Threads`] or [`Error::AddressSpace`] when they cannot.
pub fn check_threads(plan: &Plan) -> Result<(), Error> {
    check_address_space(plan)?;
    reserve_threads(threads(plan))
}

/// See that `count` threads can be had at once, beside those that there are.
///
/// # Errors
/// [`Error::Threads`] when they cannot, [`Error::AddressSpace`] when their stacks do not fit.
pub fn reserve_threads(count: usize) -> Result<(), Error> {
    check_free_bytes(LEAST_COMMAND_BYTES + count as u64 * BYTES_PER_THREAD)?;
    let held = Mutex::new(());
    let guard = held.lock();
    std::thread::scope(|scope| {
        let mut failed = None;
        for _ in 0..count {
            // it ends when the lock is free, which is when all have been started
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

/// See that enough is left of a limited address space for a run of `plan`.
///
/// # Errors
/// [`Error::AddressSpace`] when it is not.
pub fn check_address_space(plan: &Plan) -> Result<(), Error> {
    check_free_bytes(LEAST_RUN_BYTES + threads(plan) as u64 * BYTES_PER_THREAD)
}

/// See that `needed_bytes` are left of a limited address space.
fn check_free_bytes(needed_bytes: u64) -> Result<(), Error> {
    let Some(limit_bytes) = getrlimit(Resource::As).current else { return Ok(()) };
    let Some(taken_bytes) = taken_bytes() else { return Ok(()) };
    if limit_bytes.saturating_sub(taken_bytes) >= needed_bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(Error::AddressSpace {
        limit_mib: mib(limit_bytes),
        taken_mib: mib(taken_bytes),
        needed_mib: mib(needed_bytes),
    })
}

/// Address space of this process.
fn taken_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_can_be_had_are_had() {
        reserve_threads(50).expect("a machine for tests has so many");
    }

    #[test]
    fn the_address_space_of_a_process_is_known() {
        assert!(taken_bytes() > Some(1 << 20));
    }
}
