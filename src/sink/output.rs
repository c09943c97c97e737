//! The output folder: who may write it, and what makes a run complete.
//!
//! - One run, one folder: a folder that holds anything of another run is refused.
//! - `_manifest.json` lists every part; `_SUCCESS` is written after it, last of all, and only
//!   when the run succeeded.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::error::{SinkError, StorageError};
use crate::plan::hex;

use super::upload::{STAGING, Upload};

/// Name of the list of parts, at the output's root.
pub const MANIFEST: &str = "_manifest.json";

/// Name of the empty object that says the run is complete.
pub const SUCCESS: &str = "_SUCCESS";

/// Where a run writes.
#[derive(Debug, Clone)]
pub struct Output {
    store: Arc<dyn ObjectStore>,
    root: Path,
    uri: String,
    runtime: Handle,
}

impl Output {
    /// The folder `root` of `store`, called `uri` in messages.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path, uri: String, runtime: Handle) -> Self {
        Self { store, root, uri: uri.trim_end_matches('/').to_owned(), runtime }
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The output's own URI, without a trailing slash.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Full URI of an object below the output.
    pub fn uri_of(&self, name: &str) -> String {
        format!("{}/{name}", self.uri)
    }

    /// Create a small JSON object; whether it was not there before.
    pub(super) fn create(&self, name: &str, content: &impl Serialize) -> Result<bool, SinkError> {
        let json = serde_json::to_vec_pretty(content).expect("plain structs always serialise to JSON");
        let options = PutOptions::from(PutMode::Create);
        let put = self.runtime.block_on(self.store.put_opts(&self.path_of(name), json.into(), options));
        match put {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(StorageError { uri: self.uri_of(name), source }.into()),
        }
    }

    /// The bytes of a small object.
    pub fn read(&self, name: &str) -> Result<Bytes, SinkError> {
        let read = async { self.store.get(&self.path_of(name)).await?.bytes().await };
        self.runtime.block_on(read).map_err(|source| StorageError { uri: self.uri_of(name), source }.into())
    }

    /// Remove objects; what is not there is removed already.
    pub fn remove(&self, names: &[String]) -> Result<(), SinkError> {
        let paths = names.iter().map(|name| Ok(self.path_of(name)));
        let paths = futures_util::stream::iter(paths.collect::<Vec<_>>()).boxed();
        let removing = async {
            let mut removed = self.store.delete_stream(paths);
            while let Some(result) = removed.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let removed = self.runtime.block_on(removing);
        removed.map_err(|source| StorageError { uri: self.uri.clone(), source }.into())
    }

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Name below the output of the object at `path`.
    pub(super) fn name_of(&self, path: &Path) -> String {
        let name = path.as_ref();
        name.strip_prefix(self.root.as_ref()).unwrap_or(name).trim_start_matches('/').to_owned()
    }

    pub(super) fn start_upload(&self, name: &str) -> Upload {
        // the hasher's keys are random for each process and differ for each hasher
        let staging = format!("{STAGING}/{:016x}", RandomState::new().build_hasher().finish());
        Upload::start(&self.runtime, Arc::clone(&self.store), self.path_of(name), self.path_of(&staging))
    }

    /// Store the manifest, in place of an interrupted attempt's; returns its SHA-256 (hex).
    pub fn write_manifest(&self, manifest: &impl Serialize) -> Result<String, SinkError> {
        let mut json = serde_json::to_vec_pretty(manifest).expect("a manifest of plain structs serialises");
        json.push(b'\n');
        let sha256 = hex(&Sha256::digest(&json));
        self.put(MANIFEST, json)?;
        Ok(sha256)
    }

    /// Say that the run is complete, and which manifest is its. Nothing is written after this.
    pub fn write_success(&self, manifest_sha256: &str) -> Result<(), SinkError> {
        self.put(SUCCESS, format!("{manifest_sha256}\n").into_bytes())
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError> {
        let put = self.runtime.block_on(self.store.put(&self.path_of(name), bytes.into()));
        put.map(|_| ()).map_err(|source| StorageError { uri: self.uri_of(name), source }.into())
    }

    pub(super) fn path_of(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }
}
