//! The output folder: who may write it, and what makes a run complete.
//!
//! - One run, one folder: a folder that holds anything of another run is refused.
//! - `_manifest.json` lists every part; `_SUCCESS` is written after it, last of all, and only
//!   when the run succeeded.

use std::sync::Arc;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::error::{SinkError, StorageError};

use super::upload::Upload;

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

    /// Refuse an output that already holds something.
    pub fn check_vacant(&self) -> Result<(), SinkError> {
        let first = self.runtime.block_on(async { self.store.list(Some(&self.root)).next().await });
        match first {
            None | Some(Err(object_store::Error::NotFound { .. })) => Ok(()),
            Some(Ok(object)) => {
                let what = object.location.as_ref().trim_start_matches(self.root.as_ref());
                let what = what.trim_start_matches('/').to_owned();
                Err(SinkError::Occupied { uri: self.uri.clone(), what })
            }
            Some(Err(source)) => Err(StorageError { uri: self.uri.clone(), source }.into()),
        }
    }

    pub(super) fn start_upload(&self, name: &str) -> Upload {
        Upload::start(&self.runtime, Arc::clone(&self.store), self.path_of(name))
    }

    /// Store the manifest, replacing none.
    pub fn write_manifest(&self, manifest: &impl Serialize) -> Result<(), SinkError> {
        let mut json = serde_json::to_vec_pretty(manifest).expect("a manifest of plain structs serialises");
        json.push(b'\n');
        self.put(MANIFEST, json)
    }

    /// Say that the run is complete. Nothing is written after this.
    pub fn write_success(&self) -> Result<(), SinkError> {
        self.put(SUCCESS, Vec::new())
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError> {
        let put = self.runtime.block_on(self.store.put(&self.path_of(name), bytes.into()));
        put.map(|_| ()).map_err(|source| StorageError { uri: self.uri_of(name), source }.into())
    }

    fn path_of(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }
}
