//! Exit codes, which tell a scheduler what to do next.
//!
//! - [`CODES`] is the one table: `--help` prints it, and a test compares the README's table with it.
//! - The code of an error allows the retry that the error itself asks for ([`Error::retry`]).

#[cfg(feature = "beam")]
use sluice::beam::SubmitError;
use sluice::error::{Error, Retry};
pub use sluice::exit_code::*;

use super::print::StandardOutput;

/// What one exit code means.
pub struct ExitCode {
    pub code: u8,
    /// Lines of `--help`.
    meaning: &'static [&'static str],
    /// The retries that errors with this code may ask for; empty for success.
    retries: &'static [Retry],
}

/// Every exit code, in order.
pub const CODES: [ExitCode; 13] = {
    use Retry::{Again, Elsewhere, Never};
    const fn entry(code: u8, retries: &'static [Retry], meaning: &'static [&'static str]) -> ExitCode {
        ExitCode { code, meaning, retries }
    }
    [
        entry(DONE, &[], &["done"]),
        entry(
            FAILED,
            &[Again],
            &[
                "beam: a runner cannot be reached, or failed without a worker's error;",
                "otherwise an internal failure: please report it",
            ],
        ),
        entry(
            USAGE,
            &[Never],
            &["arguments, pipeline file, or a limit on threads, files or memory (ulimit)"],
        ),
        entry(INPUT, &[Again, Never], &["input missing, denied or unreadable"]),
        entry(ENGINE, &[Elsewhere, Never], &["model or engine unusable on this host"]),
        entry(
            TOO_MANY_ERRORS,
            &[Never],
            &[
                "run: more errors or damaged shards than the pipeline allows;",
                "     the output is complete, without _SUCCESS",
                "inspect: the shard is damaged; diff: the outputs differ",
            ],
        ),
        entry(
            OUTPUT,
            &[Again, Never],
            &["output (or standard output) occupied, incomplete, denied or not writable"],
        ),
        entry(PASSPORT, &[Never], &["a built engine is damaged or does not fit this host: build it again"]),
        entry(INFERENCE, &[Elsewhere], &["an engine failed in the middle of a run, for example a lost GPU"]),
        entry(UNVERIFIED, &[Never], &["verify: the output is not as its run wrote it"]),
        entry(
            CRASHED,
            &[Again],
            &["a decoder or a shard's reader crashed: the next attempt skips the record"],
        ),
        entry(INTERRUPTED, &[Again], &["interrupted (SIGINT): the next attempt resumes"]),
        entry(TERMINATED, &[Again], &["terminated (SIGTERM): the next attempt resumes"]),
    ]
};

impl ExitCode {
    /// When a retry helps: `again or never`; empty for success.
    fn retry(&self) -> String {
        self.retries.iter().map(|retry| retry.as_str()).collect::<Vec<_>>().join(" or ")
    }
}

/// The table for `--help`.
pub fn help() -> String {
    let mut lines =
        vec!["Exit codes, and whether a retry helps (here again, elsewhere, or never):".to_owned()];
    for code in &CODES {
        let mut number = code.code.to_string();
        let mut retry = code.retry();
        for meaning in code.meaning {
            lines.push(format!("  {number:<5}{retry:<20}{meaning}"));
            (number, retry) = (String::new(), String::new());
        }
    }
    lines.join("\n")
}

/// The exit code of a failed command.
pub fn code_of_any(error: &anyhow::Error) -> u8 {
    if error.is::<StandardOutput>() {
        return OUTPUT;
    }
    #[cfg(feature = "beam")]
    if let Some(error) = error.downcast_ref::<SubmitError>() {
        return code_of_submission(error);
    }
    error.downcast_ref().map_or(FAILED, code_of)
}

/// Whether a retry of a failed command helps.
pub fn retry_of_any(error: &anyhow::Error) -> Retry {
    #[cfg(feature = "beam")]
    if let Some(error) = error.downcast_ref::<SubmitError>() {
        return error.retry();
    }
    error.downcast_ref().map_or(Retry::Again, Error::retry)
}

/// The exit code of a failed submission. A worker sends the code of its error.
#[cfg(feature = "beam")]
fn code_of_submission(error: &SubmitError) -> u8 {
    match error {
        SubmitError::Local(error) => code_of(error),
        SubmitError::Worker(failure) => {
            // a code of another version may mean anything
            let known = CODES.iter().find(|entry| entry.code == failure.code && entry.code != DONE);
            known.map_or(FAILED, |entry| entry.code)
        }
        SubmitError::Service { .. } | SubmitError::Ended { .. } | SubmitError::NotDone { .. } => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use sluice::error::{ConfigError, EngineError, SinkError, SourceError, StorageError};

    use super::*;

    fn text() -> String {
        "x".to_owned()
    }

    fn storage(source: object_store::Error) -> StorageError {
        StorageError { uri: text(), source }
    }

    fn unreachable() -> StorageError {
        storage(object_store::Error::Generic { store: "test", source: "reset".into() })
    }

    fn unsupported() -> StorageError {
        storage(object_store::Error::NotImplemented { operation: text(), implementer: text() })
    }

    /// Every kind of error, with its exit code and its retry.
    fn errors() -> Vec<(Error, u8, Retry)> {
        use Retry::{Again, Elsewhere, Never};
        let (path, io) = (|| "a".into(), || io::Error::other("x"));
        let config = [
            ConfigError::Read { path: path(), source: io() },
            ConfigError::Syntax { path: path(), line: 1, column: 1, message: text() },
            ConfigError::UnknownKey { key: text(), nearest: None },
            ConfigError::Invalid { key: text(), message: text() },
            ConfigError::Argument { argument: "--x", message: text() },
            ConfigError::Set { argument: text(), message: text() },
            ConfigError::Labels { path: path(), source: io() },
        ];
        let limits = [
            Error::Threads { threads: 1, message: text() },
            Error::Memory { what: "x", option: "x", limit_mib: 1, taken_mib: 1, needed_mib: 1 },
            Error::OpenFiles { limit: 1, open: 1, needed: 1 },
            Error::Stack { limit_kib: 1, needed_kib: 2 },
        ];
        let source = [
            (SourceError::Uri { uri: text(), message: text() }, INPUT, Never),
            (SourceError::NoInput { uri: text(), message: text() }, INPUT, Again),
            (SourceError::Changed { shard: text(), message: text() }, OUTPUT, Never),
            (SourceError::Late { place: 1, worker: 0 }, OUTPUT, Never),
            (SourceError::Storage(unreachable()), INPUT, Again),
            (SourceError::Storage(unsupported()), INPUT, Never),
        ];
        let engine = [
            (EngineError::RuntimeMissing(text()), ENGINE, Elsewhere),
            (EngineError::ModelFile { path: path(), source: io() }, ENGINE, Elsewhere),
            (EngineError::Load { path: path(), message: text() }, ENGINE, Never),
            (EngineError::Mismatch { path: path(), message: text() }, ENGINE, Never),
            (EngineError::Provider { provider: "x", message: text() }, ENGINE, Elsewhere),
            (
                EngineError::Memory { ordinal: 0, batch_size: 1, message: text(), advice: text() },
                ENGINE,
                Elsewhere,
            ),
            (EngineError::Device { ordinal: 0, device: text(), message: text() }, ENGINE, Elsewhere),
            (EngineError::Passport { path: path(), message: text(), rebuild: text() }, PASSPORT, Never),
            (EngineError::Cache { message: text() }, ENGINE, Elsewhere),
            (EngineError::WarmUp { batch_size: 1, ordinal: None, message: text() }, ENGINE, Elsewhere),
            (EngineError::Inference { batch_id: 7, message: text() }, INFERENCE, Elsewhere),
        ];
        let encode = parquet::errors::ParquetError::General(text());
        let sink = [
            (SinkError::Uri { uri: text(), message: text() }, OUTPUT, Never),
            (SinkError::Occupied { uri: text(), what: text() }, OUTPUT, Never),
            (SinkError::OtherRun { uri: text(), difference: text() }, OUTPUT, Never),
            (SinkError::Incomplete { uri: text(), wrong: vec![text()] }, OUTPUT, Never),
            (SinkError::Damaged { uri: text(), worker: 1 }, OUTPUT, Never),
            (SinkError::Storage(unreachable()), OUTPUT, Again),
            (SinkError::Storage(unsupported()), OUTPUT, Never),
            (SinkError::Encode { part: text(), source: encode }, FAILED, Again),
        ];
        let mut errors = vec![
            (Error::StagePanicked { stage: "sink", message: text() }, FAILED, Again),
            (Error::Stopped { shard: text() }, FAILED, Again),
        ];
        errors.extend(config.map(|error| (error.into(), USAGE, Never)));
        errors.extend(limits.map(|error| (error, USAGE, Never)));
        errors.extend(source.map(|(error, code, retry)| (error.into(), code, retry)));
        errors.extend(engine.map(|(error, code, retry)| (error.into(), code, retry)));
        errors.extend(sink.map(|(error, code, retry)| (error.into(), code, retry)));
        errors
    }

    #[test]
    fn every_error_has_its_code_and_its_retry() {
        for (error, code, retry) in errors() {
            assert_eq!((code_of(&error), error.retry()), (code, retry), "{error:?}");
        }
    }

    #[cfg(feature = "beam")]
    #[test]
    fn a_submission_has_the_code_of_the_worker_that_failed() {
        let failed = |code| {
            let failure = sluice::beam::Failure { code, retry: Retry::Elsewhere, message: text() };
            anyhow::Error::from(SubmitError::Worker(failure))
        };
        for (code, expected) in [(ENGINE, ENGINE), (OUTPUT, OUTPUT), (DONE, FAILED), (99, FAILED)] {
            let error = failed(code);
            assert_eq!((code_of_any(&error), retry_of_any(&error)), (expected, Retry::Elsewhere), "{code}");
        }
        let local = ConfigError::Argument { argument: "--x", message: text() };
        let local = anyhow::Error::from(SubmitError::Local(local.into()));
        assert_eq!((code_of_any(&local), retry_of_any(&local)), (USAGE, Retry::Never));
        let not_done = anyhow::Error::from(SubmitError::NotDone { output: text() });
        assert_eq!((code_of_any(&not_done), retry_of_any(&not_done)), (FAILED, Retry::Again));
    }

    #[test]
    fn a_code_allows_exactly_the_retries_of_its_errors() {
        for entry in &CODES {
            let of_code = || errors().into_iter().filter(|(_, code, _)| *code == entry.code);
            for (error, _, retry) in of_code() {
                assert!(entry.retries.contains(&retry), "{}: {error:?}", entry.code);
            }
            let is_found =
                |retry: &Retry| of_code().next().is_none() || of_code().any(|(_, _, found)| found == *retry);
            assert!(entry.retries.iter().all(is_found), "{}", entry.code);
        }
    }

    #[test]
    fn the_readme_has_the_same_table() {
        let readme = include_str!("../../README.md");
        let rows = readme.lines().filter_map(|line| {
            let (codes, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
            let codes: Result<Vec<u8>, _> = codes.split(", ").map(str::parse).collect();
            let (_, advice) = rest.strip_suffix('|')?.rsplit_once(" | ")?;
            Some((codes.ok()?, advice.trim()))
        });
        let mut found = Vec::new();
        for (codes, advice) in rows {
            for code in codes {
                let entry = CODES.iter().find(|entry| entry.code == code).expect("a known exit code");
                let words = advice.split([':', ',', ';']).next().unwrap_or_default();
                assert_eq!(words, entry.retry(), "{code}: {advice}");
                found.push(code);
            }
        }
        assert_eq!(found, CODES.map(|entry| entry.code));
    }
}
