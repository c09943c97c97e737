//! The stores of a process: each is opened once and shared.
//!
//! Input: URIs as an operator writes them. Output: [`Location`]s, and the size and version of the object at one.
//!
//! - [`Stores`] is cheap to clone; clones share the open stores.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::FutureExt;
use object_store::{GetOptions, ObjectMeta};
use tokio::runtime::Handle;

use crate::config::StorageSection;
use crate::error::{SourceError, StorageError, wrong_checksum};
use crate::flow::lock;
use crate::items::ObjectRef;

use super::address::Address;
use super::answer_length::ObjectRead;
use super::connect::{Connected, connect};
use super::health::{Proof, sends_the_same_again, serves_others};
use super::location::{Location, StoreKind};
use super::object_errors::{ambiguous_fault, is_immediate_refusal, is_timeout, unusable_object};
use super::retry::again;
use super::standard_input::{STANDARD_INPUT, Spooled};
use super::version::version_of;

/// The most stores that are kept open, far more than the buckets of a job. A list of images may name any number of web
/// servers; at the limit all stores are closed, and opened again as they are needed.
const MAX_OPEN: usize = 256;

/// Opens each store once.
#[derive(Clone)]
pub struct Stores {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Handle,
    storage: StorageSection,
    /// By root: `gs://bucket/`, `https://host/`, `/`.
    open: Mutex<HashMap<String, Connected>>,
    standard_input: OnceLock<Result<Spooled, String>>,
}

impl Stores {
    /// Stores with the default settings. `runtime` drives their requests and must outlive all readers. No store is
    /// opened yet.
    pub fn new(runtime: Handle) -> Self {
        Self::with(runtime, StorageSection::default())
    }

    /// The same with the timeouts of `storage`.
    pub fn with(runtime: Handle, storage: StorageSection) -> Self {
        let shared = Shared { runtime, storage, open: Mutex::default(), standard_input: OnceLock::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Find the store and the path of `uri`: a path, `file://`, `gs://`, `s3://`, `az://`, `abfs[s]://` or
    /// `http[s]://`. Does not look up whether anything exists there.
    ///
    /// A relative path starts at the current folder. `..` follows symbolic links, as the operating system does.
    ///
    /// # Errors
    /// [`SourceError::Uri`] when the URI cannot be understood, [`SourceError::Storage`] when the store cannot be set
    /// up, for example if the account name is missing.
    pub fn resolve(&self, uri: &str) -> Result<Location, SourceError> {
        if uri == STANDARD_INPUT
            && let Some(Ok(spooled)) = self.shared.standard_input.get()
        {
            return Ok(Location { uri: uri.to_owned(), ..self.resolve(&spooled.path())? });
        }
        let address =
            Address::parse(uri).map_err(|message| SourceError::Uri { uri: uri.to_owned(), message })?;
        let Connected { store, pages, last_read, copying } = self.connected(&address)?;
        let Address { uri, kind, root, path, .. } = address;
        Ok(Location { uri, kind, store, path, root, pages, last_read, copying })
    }

    /// Copy standard input, so that its name can be resolved. Only the first call reads it.
    ///
    /// # Errors
    /// When standard input cannot be read, or there is no room for the copy.
    pub(crate) fn spool_standard_input(&self) -> Result<(), SourceError> {
        let spooled =
            self.shared.standard_input.get_or_init(|| Spooled::read().map_err(|error| error.to_string()));
        match spooled {
            Ok(_) => Ok(()),
            Err(message) => {
                let message = format!("standard input cannot be copied: {message}");
                Err(SourceError::Uri { uri: STANDARD_INPUT.to_owned(), message })
            }
        }
    }

    /// Look up the object at `location`.
    pub fn head(&self, location: &Location) -> Result<ObjectRef, StorageError> {
        let meta =
            self.wait(location.kind, again(|| look_up(location))).map_err(|source| location.error(source))?;
        let version = version_of(location.kind, &meta);
        Ok(ObjectRef { uri: location.uri.clone(), size_bytes: Some(meta.size), version })
    }

    /// The fault of the object at `location` itself, after a request for it failed with `error`; `None` if the store is
    /// at fault. `beside` are URIs of objects that are read at the same time.
    pub(crate) fn find_object_fault<'a>(
        &self,
        location: &Location,
        beside: impl Iterator<Item = &'a str>,
        error: &object_store::Error,
    ) -> Option<String> {
        if let Some(fault) = unusable_object(error) {
            return Some(fault);
        }
        let beside = beside.filter_map(|uri| self.resolve(uri).ok());
        let beside = beside.filter(|other| other.root == location.root).map(|other| other.path).collect();
        if let Some(wrong) = wrong_checksum(error) {
            let is_stored_wrong = self.wait(location.kind, async {
                (location.kind == StoreKind::Http || serves_others(location, beside, Proof::Checked).await)
                    && sends_the_same_again(location, wrong.found).await
            });
            return is_stored_wrong.then(|| format!("{wrong}, each time"));
        }
        let fault = ambiguous_fault(error)?;
        let proof = if is_immediate_refusal(error) && !is_timeout(error) { Proof::One } else { Proof::Most };
        // a web server's refusal is always the object's fault: a list of images may name any number of servers
        if location.kind == StoreKind::Http && proof == Proof::One {
            return Some(fault);
        }
        self.wait(location.kind, serves_others(location, beside, proof)).then_some(fault)
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// Wait for a store's answer on this thread.
    ///
    /// Outside a runtime the local store does its work in the first poll, so this thread does it itself.
    pub(crate) fn wait<T>(&self, kind: StoreKind, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        if kind == StoreKind::Local
            && Handle::try_current().is_err()
            && let Some(done) = future.as_mut().now_or_never()
        {
            return done;
        }
        self.shared.runtime.block_on(future)
    }

    fn connected(&self, address: &Address) -> Result<Connected, SourceError> {
        // a poisoned lock only means that another thread panicked between two complete insertions
        let mut open = lock(&self.shared.open);
        if let Some(connected) = open.get(&address.root) {
            return Ok(connected.clone());
        }
        let connected = connect(address.service, &address.root, &self.shared.storage)
            .map_err(|source| StorageError { uri: address.uri.clone(), source })?;
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(address.root.clone(), connected.clone());
        Ok(connected)
    }
}

/// Size and version of an object. Some web servers do not answer HEAD, or leave out the length; their answer to a
/// ranged GET has both.
async fn look_up(location: &Location) -> object_store::Result<ObjectMeta> {
    let extensions = || ObjectRead { most_bytes: 1 }.extensions();
    let head = GetOptions { head: true, extensions: extensions(), ..GetOptions::default() };
    let refused = match location.store.get_opts(&location.path, head).await {
        Ok(answer) => return Ok(answer.meta),
        Err(error) if location.kind == StoreKind::Local || !may_answer_ranged_get(location.kind, &error) => {
            return Err(error);
        }
        Err(error) => error,
    };
    let range = GetOptions { range: Some((0..1).into()), extensions: extensions(), ..GetOptions::default() };
    match location.store.get_opts(&location.path, range).await {
        Ok(answer) => Ok(answer.meta),
        // the refusal of a HEAD has no body; the refusal of a GET states the reason
        Err(error) if ambiguous_fault(&refused).is_some() => Err(error),
        Err(_) => Err(refused),
    }
}

/// Whether a server that answered a HEAD with `error` may still answer a ranged GET.
fn may_answer_ranged_get(kind: StoreKind, error: &object_store::Error) -> bool {
    match error {
        object_store::Error::PermissionDenied { .. } => kind == StoreKind::Http,
        // `object_store` reports a web server's 405 as not found
        object_store::Error::Generic { .. } | object_store::Error::NotFound { .. } => {
            is_immediate_refusal(error) || error.to_string().contains("405 Method Not Allowed")
        }
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::object::Object;
    use super::*;

    /// Stores on a runtime of their own, which the caller keeps alive.
    pub(crate) fn local_stores() -> (tokio::runtime::Runtime, Stores) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("test runtime");
        let stores = Stores::new(runtime.handle().clone());
        (runtime, stores)
    }

    fn object(uri: &str) -> ObjectRef {
        ObjectRef { uri: uri.to_owned(), size_bytes: None, version: None }
    }

    #[test]
    fn files_with_awkward_names_can_be_read() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        for name in
            ["a b.bin", "a#b.bin", "100%.bin", "a%20b.bin", "ümlaut 日本.bin", " x ", "q?*[1]{2}.bin", "b\\c"]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, name).expect("write");
            let opened = Object::open(&stores, &object(path.to_str().expect("UTF-8"))).expect(name);
            let bytes = opened.read_range(0..opened.size_bytes()).expect(name);
            assert_eq!(&bytes[..], name.as_bytes());
        }
    }

    #[test]
    fn parent_folders_and_links_resolve_as_in_the_operating_system() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir_all(folder.path().join("real/inner")).expect("folders");
        std::fs::write(folder.path().join("real/x.bin"), b"through").expect("write");
        std::os::unix::fs::symlink(folder.path().join("real/inner"), folder.path().join("link"))
            .expect("link");
        std::os::unix::fs::symlink(folder.path().join("real/x.bin"), folder.path().join("y.bin"))
            .expect("link");
        for name in ["link/../x.bin", "y.bin", "./y.bin", "real/inner/..//x.bin"] {
            let uri = format!("{}/{name}", folder.path().display());
            let opened = Object::open(&stores, &object(&uri)).expect(name);
            assert_eq!(&opened.read_range(0..7).expect(name)[..], b"through");
        }
    }

    #[test]
    fn azure_may_copy_later_and_s3_copies_up_to_five_gibibytes() {
        let (_runtime, stores) = local_stores();
        let copying = |uri| stores.resolve(uri).expect(uri).copying;
        for (uri, max_bytes, wait_seconds) in [
            ("abfss://data@account.dfs.core.windows.net/out", u64::MAX, Some(180)),
            ("s3://data/out", 5_368_709_120, None),
            ("/data/out", u64::MAX, None),
        ] {
            assert_eq!(copying(uri).max_bytes, max_bytes, "{uri}");
            assert_eq!(copying(uri).wait.map(|wait| wait.as_secs()), wait_seconds, "{uri}");
        }
    }

    #[test]
    fn the_error_for_a_missing_file_is_not_found_and_names_it() {
        let (_runtime, stores) = local_stores();
        let error = Object::open(&stores, &object("no/such/file.tar")).err().expect("missing");
        assert!(error.to_string().contains("no/such/file.tar"), "{error}");
        assert!(matches!(error, SourceError::Storage(error) if error.is_not_found()));
    }

    #[test]
    fn a_blocking_thread_of_the_runtime_can_read_from_a_local_store() {
        let (runtime, stores) = local_stores();
        let found = runtime.block_on(async move {
            tokio::task::spawn_blocking(move || {
                Object::open(&stores, &object("Cargo.toml")).map(|o| o.size_bytes())
            })
            .await
            .expect("no panic")
        });
        assert!(found.expect("Cargo.toml") > 0);
    }
}
