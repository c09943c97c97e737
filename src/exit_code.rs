//! The exit codes of commands, which tell a scheduler what to do next.

use crate::error::{EngineError, Error, SinkError, SourceError};

/// Success.
pub const DONE: u8 = 0;
/// A bug, or a system call that failed unexpectedly.
pub const FAILED: u8 = 1;
/// Arguments, the pipeline file, or a limit on this process.
pub const USAGE: u8 = 2;
/// Input missing, denied or unreadable.
pub const INPUT: u8 = 3;
/// Model or engine unusable on this host.
pub const ENGINE: u8 = 4;
/// More rejected rows or damaged shards than allowed. `inspect`: the shard is damaged. `diff`: the outputs differ.
pub const TOO_MANY_ERRORS: u8 = 5;
/// Output occupied, incomplete, denied or not writable; also standard output.
pub const OUTPUT: u8 = 6;
/// A built engine is damaged or does not fit this host.
pub const PASSPORT: u8 = 7;
/// An engine failed in the middle of a run.
pub const INFERENCE: u8 = 8;
/// `verify`: the output is not as its run wrote it.
pub const UNVERIFIED: u8 = 9;
/// A decoder or a shard's reader crashed; the output holds a note of the record.
pub const CRASHED: u8 = 10;
/// 128 + SIGINT, as shells count it.
pub const INTERRUPTED: u8 = 130;
/// 128 + SIGTERM.
pub const TERMINATED: u8 = 143;

/// The exit code of a command that failed with `error`.
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::Config(_)
        | Error::Threads { .. }
        | Error::Memory { .. }
        | Error::OpenFiles { .. }
        | Error::Stack { .. } => USAGE,
        Error::Source(SourceError::Changed { .. } | SourceError::Late { .. }) => OUTPUT,
        Error::Source(_) => INPUT,
        Error::Engine(EngineError::Passport { .. }) => PASSPORT,
        Error::Engine(EngineError::Inference { .. }) => INFERENCE,
        Error::Engine(_) => ENGINE,
        Error::Sink(SinkError::Encode { .. }) | Error::StagePanicked { .. } | Error::Stopped { .. } => FAILED,
        Error::Sink(_) => OUTPUT,
    }
}
