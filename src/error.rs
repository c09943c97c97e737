//! Typed errors of the library: broken machinery and unusable plans, never bad records.
//!
//! - A record that cannot be scored is a [`crate::items::Rejected`] row, not an error.
//! - Messages are lower case and name the thing and the limit.

use std::borrow::Cow;
use std::path::PathBuf;

/// Why a run could not be done.
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
    #[error("cannot start {threads} decode threads: {message}")]
    Threads { threads: usize, message: String },
    #[error("the {stage} stage panicked: {message}")]
    StagePanicked { stage: &'static str, message: String },
}

/// The pipeline file, or a flag that overrides it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the pipeline file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid TOML: {source}")]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
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

/// An object store said no, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", without_secrets(uri))]
pub struct StorageError {
    pub uri: String,
    pub source: object_store::Error,
}

impl StorageError {
    /// Whether the object or its bucket is not there, as opposed to denied or unreachable.
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }

    /// Whether bytes have come that are not those of the object.
    pub fn is_wrong_checksum(&self) -> bool {
        self.is_caused_by::<WrongChecksum>()
    }

    /// Whether a connection failed, or an answer on its way.
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

/// Bytes that have come are not those that the store has. CRC-32C.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("its bytes have arrived with the checksum {found:08x}, those in the store have {expected:08x}")]
pub struct WrongChecksum {
    pub found: u32,
    pub expected: u32,
}

/// No request to a server has reached it so far. `advice` is empty, or `; ` and what to do.
#[derive(Debug, thiserror::Error)]
#[error("nothing answers at {host} ({source}){advice}")]
pub struct NoAnswer {
    pub host: String,
    pub advice: &'static str,
    pub source: object_store::client::HttpError,
}

/// Input could not be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("input {}: {message}", without_secrets(uri))]
    Uri { uri: String, message: String },
    #[error("input {} holds nothing to score: {message}", without_secrets(uri))]
    NoInput { uri: String, message: String },
    #[error(
        "the input is not the one that this output was begun with: {shard}: {message}; choose another output, or start anew with --overwrite"
    )]
    Changed { shard: String, message: String },
    #[error(
        "shard {place} of the input has come since worker {worker} has done its share; run worker {worker} again"
    )]
    Late { place: u64, worker: u32 },
    /// What has been scored of the shards in those places of the input may be wrong. `error` is of the first.
    #[error("cannot read input {error}")]
    Garbled { shards: Vec<u64>, error: StorageError },
    #[error("cannot read input {0}")]
    Storage(#[from] StorageError),
}

/// Why a shard reader stopped before the end of its shard.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed: the run cannot go on, and nothing is known about the data.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data itself is damaged from here on; an unknown number of records is lost.
    #[error("{0}")]
    Corrupt(String),
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
    #[error("the engine {path} cannot be used here: {message}; build it again: {rebuild}")]
    Passport { path: PathBuf, message: String, rebuild: String },
    #[error("cannot keep engines: {message}")]
    Cache { message: String },
    #[error("the warm-up batch of {batch_size} rows failed: {message}")]
    WarmUp { batch_size: usize, ordinal: Option<usize>, message: String },
    #[error("inference failed on batch {batch_id}: {message}")]
    Inference { batch_id: u64, message: String },
}

impl EngineError {
    /// Whether a GPU or its provider cannot be had, as opposed to a model that cannot be used.
    pub(crate) fn is_for_want_of_a_gpu(&self) -> bool {
        match self {
            Self::RuntimeMissing(_) => true,
            // a GPU that is too small is there
            Self::Provider { message, .. } => !is_out_of_memory(message),
            _ => false,
        }
    }
}

/// Whether a message of CUDA, TensorRT or ONNX Runtime says that memory was missing.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["out of memory", "outofmemory", "out_of_memory", "could not be allocated", "failed to allocate"]
        .iter()
        .any(|words| message.contains(words))
}

/// Output could not be written, or must not be.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("output {}: {message}", without_secrets(uri))]
    Uri { uri: String, message: String },
    #[error("output {uri} already holds {what}; choose another output or remove it")]
    Occupied { uri: String, what: String },
    #[error(
        "output {uri} holds another run: {difference}; choose another output, or start anew with --overwrite"
    )]
    OtherRun { uri: String, difference: String },
    #[error("cannot write output {0}")]
    Storage(#[from] StorageError),
    #[error("cannot encode {part}: {source}")]
    Encode { part: String, source: parquet::errors::ParquetError },
}

/// A URI as logs, messages and rows may show it: without user and password, and without a query that may
/// be a signature. In a bucket `@` and `?` belong to names, and so they do in paths.
pub(crate) fn without_secrets(uri: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.into() };
    let scheme = scheme.to_ascii_lowercase();
    if scheme == "file" {
        return uri.into();
    }
    let is_bucket = ["gs", "s3", "s3a", "az", "azure", "adl", "abfs", "abfss"].contains(&scheme.as_str());
    let query = rest.find(['?', '#']).filter(|_| !is_bucket || is_signed(rest));
    let (address, query) = query.map_or((rest, ""), |at| (&rest[..at], "?…"));
    let (host, path) = address.split_at(address.find('/').unwrap_or(address.len()));
    if names_container(&scheme, host) {
        return if query.is_empty() { uri.into() } else { format!("{scheme}://{address}{query}").into() };
    }
    let (user, server) = host.rsplit_once('@').map_or((None, host), |(user, server)| (Some(user), server));
    // a slash in a password ends what looks like the host
    let is_cut = user.is_none() && server.split_once(':').is_some_and(|(_, port)| !is_port(port));
    if is_cut && !server.starts_with('[') {
        return format!("{scheme}://…").into();
    }
    match user {
        Some(_) => format!("{scheme}://…@{server}{path}{query}").into(),
        None if query.is_empty() => uri.into(),
        None => format!("{scheme}://{address}{query}").into(),
    }
}

/// Whether what stands before the first slash is `container@account.…`, as in Azure's own addresses.
pub(crate) fn names_container(scheme: &str, authority: &str) -> bool {
    let is_azure = ["az", "abfs", "abfss"].contains(&scheme);
    let account = authority.split_once('@').filter(|(container, _)| !container.contains(':'));
    is_azure
        && account.is_some_and(|(_, host)| {
            !host.contains('@')
                && [".windows.net", ".fabric.microsoft.com"].iter().any(|end| host.ends_with(end))
        })
}

/// Whether an address ends in a query that lets whoever has it in, as stores sign them for others to use.
pub(crate) fn is_signed(address: &str) -> bool {
    const SIGNATURES: [&str; 7] = [
        "sig",
        "signature",
        "x-amz-signature",
        "x-amz-credential",
        "x-amz-security-token",
        "x-goog-signature",
        "x-goog-credential",
    ];
    let Some((_, query)) = address.split_once('?') else { return false };
    let mut keys = query.split(['&', '?']).filter_map(|pair| pair.split_once('=')).map(|(key, _)| key);
    keys.any(|key| SIGNATURES.iter().any(|known| key.eq_ignore_ascii_case(known)))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for (uri, shown) in [
            ("https://h/x?X-Goog-Signature=abc", "https://h/x?…"),
            ("HTTPS://me:abc@h:80/a@b", "https://…@h:80/a@b"),
            ("https://me:a/bc@h/x", "https://…"),
            ("https://[::1]:80/x", "https://[::1]:80/x"),
            ("ftp://me:abc@h/x?token=abc", "ftp://…@h/x?…"),
            ("s3://AKIA:abc@b/x", "s3://…@b/x"),
            ("s3://AKIA:a/bc@b/x", "s3://…"),
            ("gs://abc@b/x", "gs://…@b/x"),
            ("az://abc@b/x", "az://…@b/x"),
            ("abfss://c:abc@account.dfs.core.windows.net/x", "abfss://…@account.dfs.core.windows.net/x"),
            ("s3://b/x?a=b&X-Amz-Signature=abc", "s3://b/x?…"),
            ("az://b/x?sv=1&sig=abc", "az://b/x?…"),
            ("gs://b/what?.jpg?a=b", "gs://b/what?.jpg?a=b"),
            ("file:///a:b@c?sig=d", "file:///a:b@c?sig=d"),
            ("https://abc@h?sig=/abc@", "https://…@h?…"),
            ("https://h/a@b", "https://h/a@b"),
            ("gs://b/what?.jpg", "gs://b/what?.jpg"),
            (
                "abfss://container@account.dfs.core.windows.net/x",
                "abfss://container@account.dfs.core.windows.net/x",
            ),
            ("/data/a?b@c", "/data/a?b@c"),
        ] {
            assert_eq!(without_secrets(uri), shown);
        }
    }
}
