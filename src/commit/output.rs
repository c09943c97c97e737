//! The output folder: its objects by name.
//!
//! - What decides a race is created, which fails where there is something already; what is nobody
//!   else's, an attempt's own note, is replaced.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::error::{SinkError, StorageError};
use crate::plan::hex;
use crate::report::PartReport;
use crate::store::retry::again;
use crate::store::{Stores, is_staged_name};

use super::attempts::ATTEMPTS;
use super::checkpoints::CHECKPOINTS;
use super::crashes::CRASHES;
use super::fence::DISPLACED;
use super::names::WORKERS;
use super::upload::{STAGING, Staging, Upload, create, replace};

/// Name of the list of parts, at the output's root.
pub const MANIFEST: &str = "_manifest.json";

/// Name of the object that says the run is complete, and which manifest is its.
pub const SUCCESS: &str = "_SUCCESS";

/// As a person may read it.
pub fn json(content: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(content).expect("plain structs always serialise to JSON");
    json.push(b'\n');
    json
}

/// Sixteen hexadecimal digits that nobody else has.
pub(super) fn random_name() -> String {
    // the hasher's keys are random for each process and differ for each hasher
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Where a run writes.
#[derive(Debug, Clone)]
pub struct Output {
    store: Arc<dyn ObjectStore>,
    root: Path,
    uri: String,
    /// Where the folder lies on this machine's disk, if it does.
    local: Option<PathBuf>,
    runtime: Handle,
}

impl Output {
    /// The folder at `uri`, which need not be there yet.
    ///
    /// # Errors
    /// When the URI is no folder of any store that we know.
    pub fn open(stores: &Stores, uri: &str) -> Result<Self, SinkError> {
        let refused = |message| SinkError::Uri { uri: uri.to_owned(), message };
        let location = stores.resolve(uri).map_err(|error| refused(error.to_string()))?;
        if location.is_one_object() {
            return Err(refused(
                "an output is a folder; its address has no query, and no %2F, %2B or %3B".to_owned(),
            ));
        }
        let local = location.local_path();
        if let Some(path) = local.as_ref().filter(|path| path.exists() && !path.is_dir()) {
            return Err(refused(format!("{} is a file, not a folder", path.display())));
        }
        Ok(Self::new(location.store, location.path, location.uri, local, stores.runtime().clone()))
    }

    /// The folder `root` of `store`, called `uri` in messages and `local` on this machine.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        root: Path,
        uri: String,
        local: Option<PathBuf>,
        runtime: Handle,
    ) -> Self {
        Self { store, root, uri: uri.trim_end_matches('/').to_owned(), local, runtime }
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

    /// Create an object that is held whole; whether it was not there before. One that is there with the very same
    /// content counts as created here: its store may have carried a request out and lost the answer. Who must be
    /// the only one to create a name therefore puts something into the content that is nobody else's.
    pub fn create(&self, name: &str, content: Vec<u8>) -> Result<bool, SinkError> {
        let (path, content) = (self.path_of(name), Bytes::from(content));
        let created = self.runtime.block_on(create(&self.store, &self.staging(), &path, content));
        match created {
            Ok(()) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(StorageError { uri: self.uri_of(name), source }.into()),
        }
    }

    /// Store an object that is held whole, in place of the one that is there.
    pub(super) fn replace(&self, name: &str, content: Vec<u8>) -> Result<(), SinkError> {
        let (path, content) = (self.path_of(name), Bytes::from(content));
        let put = self.runtime.block_on(again(|| replace(&self.store, &path, content.clone())));
        put.map_err(|source| StorageError { uri: self.uri_of(name), source }.into())
    }

    /// The bytes of a small object.
    pub fn read(&self, name: &str) -> Result<Bytes, SinkError> {
        let path = self.path_of(name);
        let read = again(|| async { self.store.get(&path).await?.bytes().await });
        self.runtime.block_on(read).map_err(|source| StorageError { uri: self.uri_of(name), source }.into())
    }

    /// The bytes of a small object; `None` where there is none.
    pub(crate) fn read_if_any(&self, name: &str) -> Result<Option<Bytes>, SinkError> {
        self.runtime.block_on(self.read_if_there(name))
    }

    /// The same, from within the runtime.
    pub(super) async fn read_if_there(&self, name: &str) -> Result<Option<Bytes>, SinkError> {
        let path = self.path_of(name);
        let read = again(|| async { self.store.get(&path).await?.bytes().await });
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(StorageError { uri: self.uri_of(name), source }.into()),
        }
    }

    /// Size and SHA-256 of a small object.
    pub fn digest(&self, name: &str) -> Result<PartReport, SinkError> {
        let bytes = self.read(name)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Ok(PartReport { path: name.to_owned(), bytes: bytes.len() as u64, sha256, ..PartReport::default() })
    }

    /// Remove objects; what is not there is removed already.
    pub fn remove(&self, names: &[String]) -> Result<(), SinkError> {
        let paths: Vec<_> = names.iter().map(|name| self.path_of(name)).collect();
        let removing = || async {
            let paths = futures_util::stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            let mut removed = self.store.delete_stream(paths);
            while let Some(result) = removed.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let removed = self.runtime.block_on(again(removing));
        removed.map_err(|source| StorageError { uri: self.uri.clone(), source }.into())
    }

    /// The folder, if it lies on this machine's disk.
    pub(super) fn local(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    /// Whether the folder lies on this machine's disk.
    pub(super) fn is_local(&self) -> bool {
        self.local.is_some()
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

    /// Begin a part of the run `run_id`.
    pub(crate) fn start_upload(&self, run_id: &str) -> Upload {
        let staging = Staging { fence: Some(self.fence(run_id)), ..self.staging() };
        Upload::start(&self.runtime, Arc::clone(&self.store), staging)
    }

    /// A place for one object that is nobody else's.
    fn staging(&self) -> Staging {
        let name = format!("{STAGING}/{}", random_name());
        Staging { path: self.path_of(&name), always: self.local.is_some(), fence: None }
    }

    /// Remove what a run that has ended has no use for any more. On a disk these are also files that a
    /// killed process has left half written, which no listing shows. What another attempt is writing
    /// just now may stay: it finds the run finished when it ends, and tidies up itself.
    pub fn tidy(&self, passing: &[String]) -> Result<(), SinkError> {
        self.remove(passing)?;
        let Some(local) = &self.local else { return Ok(()) };
        for folder in [STAGING, ATTEMPTS, CHECKPOINTS, CRASHES, DISPLACED, WORKERS] {
            use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
            match std::fs::remove_dir_all(local.join(folder)) {
                Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => {
                    let uri = self.uri_of(folder);
                    let source = object_store::Error::Generic { store: "folder", source: error.into() };
                    return Err(StorageError { uri, source }.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Names of files among the parts that no listing shows, for they are called as those that are still
    /// being written. Parts are written elsewhere, so they are none of ours, but others would read them.
    pub(crate) fn unlisted(&self) -> Vec<String> {
        let Some(local) = &self.local else { return Vec::new() };
        let mut found = Vec::new();
        for folder in ["predictions", "batches"] {
            let files = std::fs::read_dir(local.join(folder)).into_iter().flatten().flatten();
            let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
            found.extend(names.filter(|name| is_staged_name(name)).map(|name| format!("{folder}/{name}")));
        }
        found
    }

    pub(crate) fn path_of(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }
}
