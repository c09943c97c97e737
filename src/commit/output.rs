//! An output: one folder in a store, and its objects by name. This file does not know the protocol.
//!
//! - [`Output::create`] and [`Output::swap`] decide races: the first fails if the object exists, the second if its
//!   content has changed. [`Output::replace`] is for objects that have one writer.
//! - On a disk an object is written under `_staging` and linked to its name, because a put that is killed would leave a
//!   partial file beside the name.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion, WriteMultipart};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::names::{BATCHES, ObjectName, PREDICTIONS};
use crate::error::{SinkError, StorageError};
use crate::plan::hex;
use crate::report::PartReport;
use crate::store::retry::{self, again};
use crate::store::{Copying, Stores, is_staged_name};

/// Objects up to this size are stored with one put, larger ones in parts of this size; above the 5 MiB that S3 demands
/// of a part.
pub(super) const PUT_BYTES: usize = 8 << 20;

/// Parts of one object in flight at once. One stream to a bucket carries tens of MB/s, and the scores of a GPU at 5,000
/// images/s with a thousand classes make no more than 20.
pub(super) const PUTS_IN_FLIGHT: usize = 1;

/// Small objects that are requested at once.
pub(super) const REQUESTS: usize = 32;

/// The pause between two looks at an incomplete copy doubles this often, up to 6 s.
const MAX_DOUBLINGS: u32 = 6;

/// Indented JSON.
pub fn json(content: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(content).expect("plain structs always serialise to JSON");
    json.push(b'\n');
    json
}

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Sixteen random hexadecimal digits.
pub(super) fn random_name() -> String {
    // the keys of each hasher are random
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Where a run writes.
#[derive(Debug, Clone)]
pub struct Output {
    store: Arc<dyn ObjectStore>,
    root: Path,
    uri: String,
    /// Path of the folder, if it is on this machine's disk.
    local: Option<PathBuf>,
    /// How the store copies a staged object to its name.
    pub(super) copying: Copying,
    runtime: Handle,
}

impl Output {
    /// The output at `uri`. The folder need not exist.
    ///
    /// # Errors
    /// When the URI is not that of a folder in a supported store.
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
        let copying = location.copying;
        let output = Self::new(location.store, location.path, location.uri, local, stores.runtime().clone());
        Ok(Self { copying, ..output })
    }

    /// The folder `root` of `store`, shown as `uri` in messages. `local` is its path, if it is on this machine's disk.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        root: Path,
        uri: String,
        local: Option<PathBuf>,
        runtime: Handle,
    ) -> Self {
        let uri = uri.trim_end_matches('/').to_owned();
        Self { store, root, uri, local, copying: Copying::default(), runtime }
    }

    /// The runtime that runs its requests.
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

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Path of the folder, if it is on this machine's disk.
    pub(super) fn local(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    pub(super) fn path_of(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }

    /// Name below the output of the object at `path`.
    pub(super) fn name_of(&self, path: &Path) -> String {
        let name = path.as_ref();
        name.strip_prefix(self.root.as_ref()).unwrap_or(name).trim_start_matches('/').to_owned()
    }

    /// A unique path below `_staging`.
    pub(super) fn staging_path(&self) -> Path {
        self.path_of(&ObjectName::Staged(random_name()).to_string())
    }

    pub(super) fn failed(&self, name: &str, source: Error) -> SinkError {
        StorageError { uri: self.uri_of(name), source }.into()
    }

    /// Create a small object, unless it exists. Returns whether it was created. An existing object with the same
    /// content counts as created by this call: the store may have executed the request while the answer was lost. A
    /// caller that must be the only one to create a name puts something unique into the content.
    pub fn create(&self, name: &str, content: Vec<u8>) -> Result<bool, SinkError> {
        let (path, content) = (self.path_of(name), Bytes::from(content));
        let created = self.runtime.block_on(async {
            let created = if self.local.is_some() {
                let staged = self.staging_path();
                self.put(&staged, content.clone()).await?;
                let created = self.copy_new(&staged, &path).await;
                self.delete_staged(&staged).await;
                created?
            } else {
                retry::create(&self.store, &path, content.clone().into()).await?
            };
            Ok(created || self.get_path(&path).await?.is_some_and(|found| found == content))
        });
        created.map_err(|source| self.failed(name, source))
    }

    /// Store an object, and replace an existing one.
    pub(super) fn replace(&self, name: &str, content: Vec<u8>) -> Result<(), SinkError> {
        let put = self.runtime.block_on(self.put(&self.path_of(name), content.into()));
        put.map_err(|source| self.failed(name, source))
    }

    /// Replace an object whose content is `old`. Returns whether it was replaced. The store checks that the object has
    /// not changed in between. On a disk, and on a store without conditional puts, the object is compared and then
    /// replaced.
    pub(super) fn swap(&self, name: &str, old: &[u8], new: Vec<u8>) -> Result<bool, SinkError> {
        let (path, new) = (self.path_of(name), Bytes::from(new));
        let swapped = self.runtime.block_on(async {
            let Some((meta, found)) = self.get_version(&path).await? else { return Ok(false) };
            if found[..] != *old {
                return Ok(false);
            }
            let mode = PutMode::Update(UpdateVersion { e_tag: meta.e_tag, version: meta.version });
            match again(|| self.store.put_opts(&path, new.clone().into(), mode.clone().into())).await {
                Ok(_) => Ok(true),
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                    self.put(&path, new).await.map(|()| true)
                }
                // the store may have replaced the object, and the answer was lost
                Err(Error::Precondition { .. }) => {
                    Ok(self.get_path(&path).await?.is_some_and(|found| found == new))
                }
                Err(error) => Err(error),
            }
        });
        swapped.map_err(|source| self.failed(name, source))
    }

    /// The bytes of a small object.
    pub fn read(&self, name: &str) -> Result<Bytes, SinkError> {
        let path = self.path_of(name);
        let read = again(|| async { self.store.get(&path).await?.bytes().await });
        self.runtime.block_on(read).map_err(|source| self.failed(name, source))
    }

    /// The bytes of a small object. `None` if it does not exist.
    pub(crate) fn read_if_any(&self, name: &str) -> Result<Option<Bytes>, SinkError> {
        self.runtime.block_on(self.get(name))
    }

    /// The same, inside the runtime.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, SinkError> {
        self.get_path(&self.path_of(name)).await.map_err(|source| self.failed(name, source))
    }

    async fn get_path(&self, path: &Path) -> object_store::Result<Option<Bytes>> {
        Ok(self.get_version(path).await?.map(|(_, bytes)| bytes))
    }

    /// The bytes of a small object, and the version that was read. `None` if it does not exist.
    pub(super) fn read_version(&self, name: &str) -> Result<Option<(ObjectMeta, Bytes)>, SinkError> {
        let read = self.runtime.block_on(self.get_version(&self.path_of(name)));
        read.map_err(|source| self.failed(name, source))
    }

    /// The same for a path, inside the runtime.
    async fn get_version(&self, path: &Path) -> object_store::Result<Option<(ObjectMeta, Bytes)>> {
        let get = || async {
            let got = self.store.get(path).await?;
            Ok((got.meta.clone(), got.bytes().await?))
        };
        match again(get).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The current version of an object. `None` if it does not exist.
    pub(super) async fn version(&self, name: &str) -> Result<Option<ObjectMeta>, SinkError> {
        let path = self.path_of(name);
        match again(|| self.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(name, source)),
        }
    }

    /// The sizes of the objects `names`, in this order. `None` for an object that does not exist.
    pub(super) fn sizes_of(&self, names: &[String]) -> Result<Vec<Option<u64>>, SinkError> {
        let versions = self.versions_of(names)?.into_iter();
        Ok(versions.map(|version| version.map(|meta| meta.size)).collect())
    }

    /// The current versions of the objects `names`, in this order.
    pub(super) fn versions_of(&self, names: &[String]) -> Result<Vec<Option<ObjectMeta>>, SinkError> {
        self.all(names.iter().map(|name| self.version(name)))
    }

    /// The results of `requests`, in this order. [`REQUESTS`] of them run at once.
    pub(super) fn all<T>(
        &self,
        requests: impl Iterator<Item = impl Future<Output = Result<T, SinkError>>>,
    ) -> Result<Vec<T>, SinkError> {
        self.runtime.block_on(futures_util::stream::iter(requests).buffered(REQUESTS).try_collect())
    }

    /// Size and SHA-256 of a small object.
    pub fn digest(&self, name: &str) -> Result<PartReport, SinkError> {
        let bytes = self.read(name)?;
        let sha256 = sha256_of(&bytes);
        Ok(PartReport { path: name.to_owned(), bytes: bytes.len() as u64, sha256, ..PartReport::default() })
    }

    /// Remove objects, if they exist.
    pub fn remove(&self, names: &[String]) -> Result<(), SinkError> {
        let paths: Vec<_> = names.iter().map(|name| self.path_of(name)).collect();
        let removing = || async {
            let paths = futures_util::stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            let mut removed = self.store.delete_stream(paths);
            while let Some(result) = removed.next().await {
                match result {
                    Ok(_) | Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let removed = self.runtime.block_on(again(removing));
        removed.map_err(|source| StorageError { uri: self.uri.clone(), source }.into())
    }

    /// Remove one version of an object, and warn `why`. A version that was stored since stays, unless it is stored
    /// between the two requests made here.
    pub(super) async fn remove_version(&self, meta: &ObjectMeta, why: &str) -> Result<(), SinkError> {
        let name = self.name_of(&meta.location);
        let Some(now) = self.version(&name).await? else { return Ok(()) };
        if now.e_tag != meta.e_tag || now.last_modified != meta.last_modified {
            return Ok(());
        }
        tracing::warn!(name, "{why}");
        match again(|| self.store.delete(&meta.location)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed(&name, source)),
        }
    }

    /// Put an object at `path`, in parts if it is large.
    pub(super) async fn put(&self, path: &Path, content: Bytes) -> object_store::Result<()> {
        again(|| async {
            if content.len() <= PUT_BYTES {
                return self.store.put(path, content.clone().into()).await.map(drop);
            }
            let upload = self.store.put_multipart(path).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PUT_BYTES);
            for part in (0..content.len()).step_by(PUT_BYTES) {
                if let Err(error) = parts.wait_for_capacity(PUTS_IN_FLIGHT).await {
                    let _ = parts.abort().await;
                    return Err(error);
                }
                parts.put(content.slice(part..content.len().min(part + PUT_BYTES)));
            }
            self.complete(parts, path, content.len() as u64).await
        })
        .await
    }

    /// Complete an upload of so many bytes to `path`, which has no other writer. If the answer was lost, the object
    /// exists with that size.
    pub(super) async fn complete(
        &self,
        parts: WriteMultipart,
        path: &Path,
        bytes: u64,
    ) -> object_store::Result<()> {
        let Err(error) = parts.finish().await else { return Ok(()) };
        match self.store.head(path).await {
            Ok(there) if there.size == bytes => Ok(()),
            _ => Err(error),
        }
    }

    /// Copy an object, unless `to` exists. Returns whether it was copied. Then `to` is complete, whoever copied it.
    ///
    /// # Errors
    /// Those of the store. If the store may have accepted the copy, it may still read `from`.
    pub(super) async fn copy_new(&self, from: &Path, to: &Path) -> object_store::Result<bool> {
        let copy = || again(|| self.store.copy_if_not_exists(from, to));
        let look = || again(|| async { self.store.head(to).await.map(drop) });
        let copied = retry::create_by(copy, look).await?;
        Ok(self.wait_for_copy(to).await? && copied)
    }

    /// Wait until the copy of an object to `name`, if there is one, is complete.
    pub(super) fn wait_for(&self, name: &str) -> Result<(), SinkError> {
        let waited = self.runtime.block_on(self.wait_for_copy(&self.path_of(name)));
        waited.map(drop).map_err(|source| self.failed(name, source))
    }

    /// Wait until the copy of an object to `path` is complete. Returns whether `path` still exists.
    ///
    /// Azure may accept a copy and carry it out later. Until then the object is empty, and afterwards it is whole. No
    /// object that is copied is empty.
    async fn wait_for_copy(&self, path: &Path) -> object_store::Result<bool> {
        let Some(wait) = self.copying.wait else { return Ok(true) };
        let (start, mut pauses) = (Instant::now(), 0);
        loop {
            match again(|| self.store.head(path)).await {
                Ok(meta) if meta.size > 0 => return Ok(true),
                Ok(_) if start.elapsed() < wait => retry::pause(pauses.min(MAX_DOUBLINGS)).await,
                Ok(_) => {
                    let message = format!(
                        "the store accepted a copy and has not completed it within {} s (storage.retry_seconds); if \
                         the object stays empty, remove it",
                        wait.as_secs_f64()
                    );
                    return Err(Error::Generic { store: "copy", source: message.into() });
                }
                Err(Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            pauses += 1;
        }
    }

    /// Remove a staged object. A failure is only logged: it costs a little space.
    pub(super) async fn delete_staged(&self, staged: &Path) {
        match self.store.delete(staged).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::debug!(%error, "a staged object remains"),
        }
    }

    /// Remove a folder, if the output is on this machine's disk.
    pub(super) fn remove_folder(&self, folder: &str) -> Result<(), SinkError> {
        use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
        let Some(local) = &self.local else { return Ok(()) };
        match std::fs::remove_dir_all(local.join(folder)) {
            Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => {
                Err(self.failed(folder, Error::Generic { store: "folder", source: error.into() }))
            }
            _ => Ok(()),
        }
    }

    /// Names of files beside the parts that no listing shows, because they are named like files being written. No part
    /// is written there, so they are foreign, but a glob over the folder would match them.
    pub(super) fn unlisted(&self) -> Vec<String> {
        let Some(local) = &self.local else { return Vec::new() };
        let mut found = Vec::new();
        for folder in [PREDICTIONS, BATCHES] {
            let files = std::fs::read_dir(local.join(folder)).into_iter().flatten().flatten();
            let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
            found.extend(names.filter(|name| is_staged_name(name)).map(|name| format!("{folder}/{name}")));
        }
        found
    }
}
