//! Typed errors of the library: broken machinery and unusable plans, never bad records.
//!
//! - A record that cannot be scored is a [`crate::items::Rejected`] row, not an error.
//! - Every error says whether a retry helps: [`Error::retry`].
//! - Messages are lower case and name the thing and the limit.

#![allow(missing_docs, reason = "the message of a variant describes it and names its fields")]

use std::path::PathBuf;

use crate::shown::{message_without_secrets, without_secrets};

/// Whether the same call, or the same command, may succeed when it is made again.
///
/// | error | retry |
/// | --- | --- |
/// | [`Error::Config`] | never |
/// | [`Error::Threads`], [`Error::Memory`], [`Error::OpenFiles`], [`Error::Stack`] | never: the limits stay the same |
/// | [`Error::StagePanicked`], [`SinkError::Encode`] | again, a few times: a bug that may depend on timing |
/// | [`Error::Stopped`] | again: it resumes |
/// | [`SourceError::Uri`] | never: the address, or what it names, is wrong |
/// | [`SourceError::NoInput`] | again, once there is input |
/// | [`SourceError::Changed`], [`SourceError::Late`] | never: the message says what to do |
/// | [`SourceError::Storage`], [`SinkError::Storage`] | again; never if the store does not support the request |
/// | [`EngineError::RuntimeMissing`], [`EngineError::Provider`], [`EngineError::Device`] | elsewhere |
/// | [`EngineError::Memory`], [`EngineError::WarmUp`], [`EngineError::Inference`] | elsewhere |
/// | [`EngineError::ModelFile`], [`EngineError::Cache`] | elsewhere: a disk of this host fails, or lacks the file |
/// | [`EngineError::Load`], [`EngineError::Mismatch`] | never: the model is at fault |
/// | [`EngineError::Passport`] | never: the engine must be built again |
/// | every other [`SinkError`] | never: the message says what to do |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It fails in the same way everywhere until the pipeline file, the input, the output or a limit is changed.
    Never,
    /// This host fails or lacks something; another host may not.
    Elsewhere,
    /// It may succeed here, at once or later, without any change.
    Again,
}

impl Retry {
    /// The word for it in logs: `never`, `elsewhere` or `again`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Elsewhere => "elsewhere",
            Self::Again => "again",
        }
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(
        "cannot start {threads} threads: {message}; the limit on threads (ulimit -u, the container's pids limit) or on \
         address space (ulimit -v) is too low"
    )]
    Threads { threads: usize, message: String },
    #[error(
        "{what} is limited to {limit_mib} MiB ({option}); {taken_mib} MiB of it are in use before anything is read, and \
         at least {needed_mib} MiB more are needed"
    )]
    Memory { what: &'static str, option: &'static str, limit_mib: u64, taken_mib: u64, needed_mib: u64 },
    #[error(
        "this process may open {limit} files and connections at once (ulimit -n) and has {open} open; at least \
         {needed} more are needed"
    )]
    OpenFiles { limit: u64, open: u64, needed: u64 },
    #[error("the stack is limited to {limit_kib} KiB (ulimit -s), at least {needed_kib} KiB are needed")]
    Stack { limit_kib: u64, needed_kib: u64 },
    #[error("the {stage} stage panicked: {message}")]
    StagePanicked { stage: &'static str, message: String },
    #[error("shard {shard} was stopped before its end; the rows scored so far are in a checkpoint")]
    Stopped { shard: String },
}

impl Error {
    /// The error if the system refuses to start that many threads.
    pub(crate) fn threads(threads: usize, error: &dyn std::error::Error) -> Self {
        Self::Threads { threads, message: error.to_string() }
    }

    /// Whether the bytes received have another checksum than the object.
    pub fn is_wrong_checksum(&self) -> bool {
        matches!(self, Self::Source(SourceError::Storage(error)) if error.is_wrong_checksum())
    }

    /// Whether a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Config(_) => Retry::Never,
            Self::Source(error) => error.retry(),
            Self::Engine(error) => error.retry(),
            Self::Sink(error) => error.retry(),
            Self::Threads { .. } | Self::Memory { .. } | Self::OpenFiles { .. } | Self::Stack { .. } => {
                Retry::Never
            }
            Self::StagePanicked { .. } | Self::Stopped { .. } => Retry::Again,
        }
    }
}

/// The pipeline file, or a flag that overrides it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the pipeline file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid TOML: line {line}, column {column}: {message}")]
    Syntax { path: PathBuf, line: usize, column: usize, message: String },
    #[error("unknown key {key}{}", nearest.as_ref().map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    UnknownKey { key: String, nearest: Option<String> },
    #[error("{key}: {message}")]
    Invalid { key: String, message: String },
    #[error("{argument}: {message}")]
    Argument { argument: &'static str, message: String },
    #[error("--set {argument}: {message}")]
    Set { argument: String, message: String },
    #[error("cannot read the label file {path}: {source}")]
    Labels { path: PathBuf, source: std::io::Error },
}

impl ConfigError {
    pub(crate) fn invalid(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { key: key.into(), message: message.into() }
    }
}

/// An object store refused a request, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", without_secrets(uri), message_without_secrets(&plain_message(source)))]
pub struct StorageError {
    pub uri: String,
    pub source: object_store::Error,
}

impl StorageError {
    /// Whether a retry helps. Access may be granted, and an object may appear, without a change to the request.
    pub fn retry(&self) -> Retry {
        use object_store::Error as E;
        let is_request_wrong = matches!(
            self.source,
            E::InvalidPath { .. }
                | E::NotSupported { .. }
                | E::NotImplemented { .. }
                | E::UnknownConfigurationKey { .. }
        );
        if is_request_wrong || self.is_caused_by::<NoListing>() { Retry::Never } else { Retry::Again }
    }

    /// Whether the object or its bucket does not exist, as opposed to being denied or unreachable.
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }

    /// Whether the bytes received have another checksum than the object.
    pub fn is_wrong_checksum(&self) -> bool {
        wrong_checksum(&self.source).is_some()
    }

    /// Whether a connection failed, or broke off in the middle of an answer.
    pub(crate) fn is_of_a_connection(&self) -> bool {
        self.is_caused_by::<object_store::client::HttpError>()
    }

    fn is_caused_by<E: std::error::Error + 'static>(&self) -> bool {
        let mut cause: Option<&dyn std::error::Error> = Some(&self.source);
        while let Some(error) = cause {
            if error.is::<E>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// The store's message without the client library's prefix ("Generic S3 error").
fn plain_message(error: &object_store::Error) -> String {
    let said = match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    if lacks_open_files(error) {
        return format!("{said}; the limit on open files (ulimit -n) is too low");
    }
    said
}

/// Whether the system refused to open one more file or connection; the request itself was fine.
pub(crate) fn lacks_open_files(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let code = error.downcast_ref().and_then(std::io::Error::raw_os_error);
        if matches!(code, Some(libc::EMFILE | libc::ENFILE)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The bytes received have another checksum (CRC-32C) than the store reports.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("checksum mismatch: the bytes received have {found:08x}, the store reports {expected:08x}")]
pub struct WrongChecksum {
    pub found: u32,
    pub expected: u32,
}

/// The two checksums, if `error` is about a mismatch.
pub(crate) fn wrong_checksum(error: &object_store::Error) -> Option<WrongChecksum> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(wrong) = error.downcast_ref() {
            return Some(*wrong);
        }
        cause = error.source();
    }
    None
}

/// No request has reached the server so far. `advice` is empty, or `; ` and what to do.
#[derive(Debug, thiserror::Error)]
#[error("nothing answers at {host} ({source}){advice}")]
pub struct NoAnswer {
    pub host: String,
    pub advice: &'static str,
    pub source: object_store::client::HttpError,
}

/// A web server does not support the request that lists a folder.
#[derive(Debug, thiserror::Error)]
#[error("the server cannot list folders: it answers PROPFIND (WebDAV) with {status}")]
pub struct NoListing {
    pub status: http::StatusCode,
}

/// Input could not be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("input {}: {}", without_secrets(uri), message_without_secrets(message))]
    Uri { uri: String, message: String },
    #[error("input {} has nothing to score: {message}", without_secrets(uri))]
    NoInput { uri: String, message: String },
    #[error(
        "the input has changed since this output was begun: {shard}: {message}; choose another output, or start over with --overwrite"
    )]
    Changed { shard: String, message: String },
    #[error(
        "shard {place} of the input was added after worker {worker} finished its share; run worker {worker} again"
    )]
    Late { place: u64, worker: u32 },
    #[error("cannot read input {0}")]
    Storage(#[from] StorageError),
}

impl SourceError {
    /// Whether a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Uri { .. } | Self::Changed { .. } | Self::Late { .. } => Retry::Never,
            Self::NoInput { .. } => Retry::Again,
            Self::Storage(error) => error.retry(),
        }
    }
}

/// Why a shard reader stopped before the end of its shard.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed: the run cannot continue, and nothing is known about the data.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data itself is damaged from here on; an unknown number of records is lost.
    #[error("{0}")]
    Corrupt(String),
    /// The data is sound, but it does not match the pipeline file, or has a compression that is not supported. The
    /// message names the key, or what to do.
    #[error("{0}")]
    Config(String),
}

/// The model or the engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{0}")]
    RuntimeMissing(String),
    #[error("cannot read the model {path}: {source}")]
    ModelFile { path: PathBuf, source: std::io::Error },
    #[error("cannot load the model {path}: {message}")]
    Load { path: PathBuf, message: String },
    #[error("the model {path} does not fit the pipeline: {message}")]
    Mismatch { path: PathBuf, message: String },
    #[error("ONNX Runtime's provider {provider} cannot be used: {message}")]
    Provider { provider: &'static str, message: String },
    #[error("GPU {ordinal} has too little memory for batches of {batch_size}: {advice} ({message})")]
    Memory { ordinal: usize, batch_size: usize, message: String, advice: String },
    #[error("{device}: {message}")]
    Device { ordinal: usize, device: String, message: String },
    #[error("the engine {path} does not work on this host: {message}; build it again: {rebuild}")]
    Passport { path: PathBuf, message: String, rebuild: String },
    #[error("cannot cache the built engine: {message}")]
    Cache { message: String },
    #[error("the warm-up batch of {batch_size} rows failed: {message}")]
    WarmUp { batch_size: usize, ordinal: Option<usize>, message: String },
    #[error("inference failed on batch {batch_id}: {message}")]
    Inference { batch_id: u64, message: String },
}

impl EngineError {
    /// Whether a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Load { .. } | Self::Mismatch { .. } | Self::Passport { .. } => Retry::Never,
            Self::RuntimeMissing(_)
            | Self::ModelFile { .. }
            | Self::Provider { .. }
            | Self::Memory { .. }
            | Self::Device { .. }
            | Self::Cache { .. }
            | Self::WarmUp { .. }
            | Self::Inference { .. } => Retry::Elsewhere,
        }
    }

    /// Whether the host lacks a GPU or its provider, as opposed to a model that is unusable.
    pub(crate) fn is_for_want_of_a_gpu(&self) -> bool {
        match self {
            Self::RuntimeMissing(_) => true,
            // a GPU that is too small is still a GPU
            Self::Provider { message, .. } => !is_out_of_memory(message),
            _ => false,
        }
    }
}

/// Whether a message of CUDA, TensorRT or ONNX Runtime says that memory ran out.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["out of memory", "outofmemory", "out_of_memory", "could not be allocated", "failed to allocate"]
        .iter()
        .any(|words| message.contains(words))
}

/// The output cannot be written, or must not be.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("output {}: {}", without_secrets(uri), message_without_secrets(message))]
    Uri { uri: String, message: String },
    #[error("output {uri} already holds {what}; choose another output or remove it")]
    Occupied { uri: String, what: String },
    #[error(
        "output {uri} holds another run: {difference}; choose another output, or start over with --overwrite"
    )]
    OtherRun { uri: String, difference: String },
    /// A finished run lacks some of its files.
    #[error(
        "output {} holds this run, finished but incomplete: {}; remove its _SUCCESS and _manifest.json, and every file that has another size, then run again, which scores only what is missing; or start over with --overwrite",
        without_secrets(uri),
        wrong.join(", ")
    )]
    Incomplete { uri: String, wrong: Vec<String> },
    /// A part has other bytes than its attempt stored, and its shard belongs to another worker.
    #[error(
        "output {} is damaged: its bytes are not those that its attempt stored; run worker {worker} again, which removes it and scores its shard again",
        without_secrets(uri)
    )]
    Damaged { uri: String, worker: u64 },
    #[error("cannot write output {0}")]
    Storage(#[from] StorageError),
    #[error("cannot encode {part}: {}", parquet_words(source))]
    Encode { part: String, source: parquet::errors::ParquetError },
}

impl SinkError {
    /// Whether a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Uri { .. }
            | Self::Occupied { .. }
            | Self::OtherRun { .. }
            | Self::Incomplete { .. }
            | Self::Damaged { .. } => Retry::Never,
            Self::Storage(error) => error.retry(),
            Self::Encode { .. } => Retry::Again,
        }
    }

    /// The same error for a command that only reads an output: for it, the output is input.
    #[must_use]
    pub fn of_reading(self) -> Error {
        match self {
            Self::Storage(error) => SourceError::Storage(error).into(),
            Self::Uri { uri, message } => SourceError::Uri { uri, message }.into(),
            error => error.into(),
        }
    }
}

/// A message of the Parquet and Arrow libraries without their prefixes, which they may nest ("Arrow: EOF: ").
pub fn parquet_words(error: &dyn std::error::Error) -> String {
    const KINDS: [&str; 12] = [
        "Parquet error: ",
        "Parquet argument error: ",
        "Arrow: ",
        "External: ",
        "External error: ",
        "EOF: ",
        "Io error: ",
        "Invalid argument error: ",
        "Parser error: ",
        "Schema error: ",
        "Compute error: ",
        "Cast error: ",
    ];
    let error = error.to_string();
    let mut words = error.as_str();
    while let Some(rest) = KINDS.iter().find_map(|kind| words.strip_prefix(kind)) {
        words = rest;
    }
    // the standard library's messages for any reader
    if ["failed to fill whole buffer", "unexpected end of file"].contains(&words) {
        return "it ends early".to_owned();
    }
    words.replacen("NYI: ", "not supported: ", 1)
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use arrow_schema::ArrowError;
    use object_store::client::{HttpError, HttpErrorKind};
    use parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn parquet_messages_lose_every_prefix_of_the_libraries() {
        let ended = ParquetError::EOF("the page ends early".to_owned());
        let nested = ArrowError::from(ParquetError::External(Box::new(ended)));
        assert_eq!(parquet_words(&nested), "the page ends early");
        assert_eq!(parquet_words(&ParquetError::NYI("LZO".to_owned())), "not supported: LZO");
        let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        assert_eq!(parquet_words(&ParquetError::External(short.into())), "it ends early");
        assert_eq!(parquet_words(&ArrowError::DivideByZero), "Divide by zero error");
    }

    #[test]
    fn a_lack_of_open_files_names_the_limit() {
        for (code, expected) in [(libc::EMFILE, true), (libc::ENFILE, true), (libc::EIO, false)] {
            let refused = std::io::Error::from_raw_os_error(code);
            let refused = HttpError::new(HttpErrorKind::Connect, refused);
            let source = object_store::Error::Generic { store: "test", source: refused.into() };
            let error = StorageError { uri: "https://h/x".to_owned(), source };
            assert_eq!(error.to_string().contains("ulimit -n"), expected, "{error}");
            assert_eq!(lacks_open_files(&error.source), expected);
        }
    }
}
