//! A place in a store: an object, a folder or a prefix.
//!
//! [`super::Stores::resolve`] makes locations from URIs. A location does not imply that an object exists there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;

use crate::error::StorageError;
use crate::flow::lock;

use super::web;

/// The kind of store that a URI leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// The file system of this machine.
    Local,
    /// A bucket or container that can be listed: GCS, S3, Azure.
    Bucket,
    /// A web server: objects can be read by name, nothing can be listed.
    Http,
}

/// A place in a store: an object, a folder or a prefix.
#[derive(Clone)]
pub struct Location {
    /// The URI as it was given, except that `file://` has become a plain path.
    pub uri: String,
    /// The kind of the store.
    pub kind: StoreKind,
    /// The client.
    pub store: Arc<dyn ObjectStore>,
    /// Path inside `store`, without a leading or trailing slash.
    pub path: Path,
    /// See [`Location::root`].
    pub(super) root: String,
    /// Lists pages, by a prefix that need not end at a slash; buckets only.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    pub(crate) last_read: LastRead,
    pub(crate) copying: Copying,
}

impl Location {
    /// Root and path, which are the same for every spelling of one place.
    pub fn id(&self) -> String {
        format!("{}{}", self.root, self.path)
    }

    /// The part of the URI before the path: `gs://bucket/`, `https://host/`, `/`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whether this is a single object that cannot be a folder: the address of a web page with a query or the like.
    pub fn is_one_object(&self) -> bool {
        self.kind == StoreKind::Http && web::is_as_written(&self.path)
    }

    /// Path of the object on this machine; `None` in any other store.
    pub fn local_path(&self) -> Option<PathBuf> {
        (self.kind == StoreKind::Local).then(|| PathBuf::from(format!("/{}", self.path)))
    }

    /// `source` with the URI of this location.
    pub(crate) fn error(&self, source: object_store::Error) -> StorageError {
        StorageError { uri: self.uri.clone(), source }
    }
}

/// How a store copies an object to another name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copying {
    /// The largest object that it copies.
    pub max_bytes: u64,
    /// How long to wait for a copy that it has accepted. `None` if an accepted copy is complete.
    pub wait: Option<Duration>,
}

impl Default for Copying {
    fn default() -> Self {
        Self { max_bytes: u64::MAX, wait: None }
    }
}

/// The path of the last successful read from a store, shared by all locations in that store.
#[derive(Clone, Default)]
pub(crate) struct LastRead(Arc<Mutex<Option<Path>>>);

impl LastRead {
    pub fn set(&self, path: &Path) {
        *lock(&self.0) = Some(path.clone());
    }

    pub fn get(&self) -> Option<Path> {
        lock(&self.0).clone()
    }
}
