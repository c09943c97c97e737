//! Exit codes, so that a scheduler knows what to do next.

use sluice::error::{EngineError, Error, SinkError, SourceError};

use super::print::StandardOutput;

/// Something that should not happen: report it.
pub const FAILED: u8 = 1;
/// Usage or pipeline file, or a machine that allows a process too little. Do not retry.
pub const USAGE: u8 = 2;
/// Input missing, denied or unreadable.
pub const INPUT: u8 = 3;
/// Model or engine unusable. Do not retry.
pub const ENGINE: u8 = 4;
/// More rejected rows or damaged shards than allowed; the output is whole, without `_SUCCESS`. `inspect`, `diff`:
/// something is bad, or differs.
pub const TOO_MANY_ERRORS: u8 = 5;
/// Output occupied by another run, denied, or not writable; also standard output.
pub const OUTPUT: u8 = 6;
/// A built engine that does not fit this host or is damaged: build it again. Do not retry.
pub const PASSPORT: u8 = 7;
/// An engine failed in the middle of a run: a GPU is gone, say. Another host may do.
pub const INFERENCE: u8 = 8;
/// `verify`: the output is not what its run has written.
pub const UNVERIFIED: u8 = 9;
/// A native decoder or a shard's reader crashed. The record is noted in the output, and the next attempt goes on
/// without it, or takes the shard as damaged from there on.
pub const CRASHED: u8 = 10;
/// Interrupted: 128 + SIGINT, as shells count it.
pub const INTERRUPTED: u8 = 130;
/// Interrupted: 128 + SIGTERM.
pub const TERMINATED: u8 = 143;

/// What `--help` says about them.
pub const HELP: &str = "Exit codes:
  0    done
  1    internal failure
  2    usage or pipeline file; too few threads or open files, or too little memory, by a limit of this process
  3    input missing, denied or unreadable
  4    model or engine unusable
  5    run: more errors or damaged shards than the pipeline allows; output whole, no _SUCCESS
       inspect: something in the shard is bad; diff: the outputs differ
  6    output (or standard output) occupied, not whole any more, denied or not writable
  7    a built engine does not fit this host or is damaged: build it again
  8    an engine failed in the middle of a run, as when a GPU is gone: another host may do
  9    verify: the output is not what its run has written
  10   a decoder or a shard's reader crashed: the record is named, and a retry goes on without it
  130  interrupted (SIGINT)
  143  interrupted (SIGTERM)";

/// The exit code of a failed command.
pub fn code_of_any(error: &anyhow::Error) -> u8 {
    if error.is::<StandardOutput>() {
        return OUTPUT;
    }
    error.downcast_ref().map_or(FAILED, code_of)
}

/// The exit code of a failed run.
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::Config(_) => USAGE,
        Error::Threads { .. } | Error::Memory { .. } | Error::OpenFiles { .. } | Error::Stack { .. } => USAGE,
        Error::Source(SourceError::Changed { .. } | SourceError::Late { .. }) => OUTPUT,
        Error::Source(_) => INPUT,
        Error::Engine(EngineError::Passport { .. }) => PASSPORT,
        Error::Engine(EngineError::Inference { .. }) => INFERENCE,
        Error::Engine(_) => ENGINE,
        Error::Sink(SinkError::Encode { .. }) | Error::StagePanicked { .. } => FAILED,
        Error::Sink(_) => OUTPUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_fails_in_the_middle_is_told_from_one_that_cannot_be_had() {
        let message = String::new;
        let failed = EngineError::Inference { batch_id: 7, message: message() };
        assert_eq!(code_of(&Error::Engine(failed)), 8);
        let device = EngineError::Device { ordinal: 0, device: "GPU 0".to_owned(), message: message() };
        assert_eq!(code_of(&Error::Engine(device)), 4);
        let passport = EngineError::Passport { path: "a".into(), message: message(), rebuild: message() };
        assert_eq!(code_of(&Error::Engine(passport)), 7);
    }
}
