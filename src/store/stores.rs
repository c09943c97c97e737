//! Object stores: from a URI to a store and a path in it.
//!
//! Comes in: URIs as an operator writes them. Goes out: [`Location`]s, and [`Object`]s that can be
//! read.
//!
//! - Each store is opened once and shared; [`Stores`] is cheap to clone.
//! - Credentials follow each platform's own convention through the environment; a URI never
//!   carries any.
//! - A key is what stands behind the bucket, byte for byte: `gs://b/a b#1%.jpg` means just that.
//!   Only `file://` and `https://` are URLs and percent-decoded.

use std::collections::HashMap;
use std::path::{Component, Path as FilePath, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3CopyIfNotExists};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::ClientConfigKey;
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{BackoffConfig, GetOptions, ObjectMeta, ObjectStore, RetryConfig};
use tokio::runtime::Handle;
use url::Url;

use super::retry::again;
use crate::config::StorageSection;
use crate::error::{SourceError, StorageError, wrong_checksum};
use crate::items::ObjectRef;
use crate::shown::{is_signed, looks_like_uri, names_container};

use super::answer_length::ObjectRead;
use super::disk::Disk;
use super::environment;
use super::escape::unaddressable;
use super::http_checks::CheckedConnector;
use super::object::Object;
use super::others::{LastRead, Proof, comes_again_as, gives_others};
use super::own_trouble::{is_late, is_refused_at_once, may_be_own, own_trouble};
use super::standard_input::{STANDARD_INPUT, Spooled};
use super::version::version_of;
use super::web::{self, WebServer};

/// What kind of store a URI leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// The file system of this machine.
    Local,
    /// A bucket or container that can be listed: GCS, S3, Azure.
    Bucket,
    /// A web server: objects can be read by name, nothing can be listed.
    Http,
}

/// Opens each store once and hands out objects.
#[derive(Clone)]
pub struct Stores {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Handle,
    storage: StorageSection,
    /// By root: `gs://bucket/`, `https://host/`, `/`.
    open: Mutex<HashMap<String, Opened>>,
    standard_input: OnceLock<Result<Spooled, String>>,
}

#[derive(Clone)]
struct Opened {
    store: Arc<dyn ObjectStore>,
    pages: Option<Arc<dyn PaginatedListStore>>,
    last_read: LastRead,
}

/// A place in a store: an object, a folder or a prefix.
#[derive(Clone)]
pub struct Location {
    /// As it was given, except that `file://` has become a plain path.
    pub uri: String,
    pub kind: StoreKind,
    pub store: Arc<dyn ObjectStore>,
    /// Path inside `store`, without a leading or trailing slash.
    pub path: Path,
    /// What stands before the path: `gs://bucket/`, `https://host/`, `/`.
    root: String,
    /// Listing by pages and by a prefix that need not end at a slash; buckets only.
    pages: Option<Arc<dyn PaginatedListStore>>,
    pub(crate) last_read: LastRead,
}

impl Location {
    /// Root and path: the same for every spelling of the same place.
    pub fn id(&self) -> String {
        format!("{}{}", self.root, self.path)
    }

    /// What stands before the path: `gs://bucket/`, `https://host/`, `/`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whether this is an address of a web server with a query, or the like: one object and never a folder.
    pub fn is_one_object(&self) -> bool {
        self.kind == StoreKind::Http && web::is_as_written(&self.path)
    }

    /// Where the object lies on this machine; `None` in any other store.
    pub fn local_path(&self) -> Option<PathBuf> {
        (self.kind == StoreKind::Local).then(|| PathBuf::from(format!("/{}", self.path)))
    }

    pub(crate) fn pages(&self) -> Option<&Arc<dyn PaginatedListStore>> {
        self.pages.as_ref()
    }

    pub(crate) fn error(&self, source: object_store::Error) -> StorageError {
        StorageError { uri: self.uri.clone(), source }
    }
}

impl Stores {
    /// No store is opened yet; `runtime` drives their requests and must outlive all readers.
    pub fn new(runtime: Handle) -> Self {
        Self::with(runtime, StorageSection::default())
    }

    /// The same, with patience as `storage` says.
    pub fn with(runtime: Handle, storage: StorageSection) -> Self {
        Self {
            shared: Arc::new(Shared {
                runtime,
                storage,
                open: Mutex::default(),
                standard_input: OnceLock::new(),
            }),
        }
    }

    /// Find store and path of `uri`: a path, `file://`, `gs://`, `s3://`, `az://`, `abfs[s]://` or
    /// `http[s]://`. Whether anything lies there is not looked up.
    ///
    /// A relative path starts at the current folder. `..` follows symbolic links, as the operating
    /// system would.
    ///
    /// # Errors
    /// [`SourceError::Uri`] when the URI cannot be understood, [`SourceError::Storage`] when the
    /// store cannot be set up, say for want of an account name.
    pub fn resolve(&self, uri: &str) -> Result<Location, SourceError> {
        if uri == STANDARD_INPUT
            && let Some(Ok(spooled)) = self.shared.standard_input.get()
        {
            return Ok(Location { uri: uri.to_owned(), ..self.resolve(&spooled.path())? });
        }
        let address =
            Address::parse(uri).map_err(|message| SourceError::Uri { uri: uri.to_owned(), message })?;
        let opened = self.opened(&address)?;
        let Address { uri, kind, root, path, .. } = address;
        let Opened { store, pages, last_read } = opened;
        Ok(Location { uri, kind, store, path, root, pages, last_read })
    }

    /// Read standard input, so that its name can be resolved.
    ///
    /// # Errors
    /// When it cannot be read, or there is no room for a copy.
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

    /// Look the object at `location` up.
    pub fn head(&self, location: &Location) -> Result<ObjectRef, StorageError> {
        let meta =
            self.wait(location.kind, again(|| look_up(location))).map_err(|source| location.error(source))?;
        let version = version_of(location.kind, &meta);
        Ok(ObjectRef { uri: location.uri.clone(), size_bytes: Some(meta.size), version })
    }

    /// Make `object` readable. It is looked up where the listing told no size, and on the local
    /// disk, where that costs nothing, also where it told no version.
    pub fn open(&self, object: &ObjectRef) -> Result<Object, SourceError> {
        let location = self.resolve(&object.uri)?;
        let known = match object.size_bytes {
            Some(size) if location.kind != StoreKind::Local || object.version.is_some() => {
                (size, object.version.clone())
            }
            _ => {
                let found = self.head(&location)?;
                (found.size_bytes.unwrap_or(0), found.version)
            }
        };
        Ok(Object::new(location, self.clone(), known.0, known.1))
    }

    /// What is wrong with the object at `location` alone, in words; `None` when it is the store that fails. `beside` are
    /// URIs of objects that are read together with it.
    pub(crate) fn trouble_of<'a>(
        &self,
        location: &Location,
        beside: impl Iterator<Item = &'a str>,
        error: &object_store::Error,
    ) -> Option<String> {
        if let Some(what) = own_trouble(error) {
            return Some(what);
        }
        let beside = beside.filter_map(|uri| self.resolve(uri).ok());
        let beside = beside.filter(|other| other.root == location.root).map(|other| other.path).collect();
        if let Some(wrong) = wrong_checksum(error) {
            let is_stored_so = self.wait(location.kind, async {
                (location.kind == StoreKind::Http || gives_others(location, beside, Proof::Checked).await)
                    && comes_again_as(location, wrong.found).await
            });
            return is_stored_so.then(|| format!("{wrong}, each time"));
        }
        let what = may_be_own(error)?;
        let proof = if is_refused_at_once(error) && !is_late(error) { Proof::One } else { Proof::Most };
        // of one server's refusal others know nothing: a manifest may name any number of them
        if location.kind == StoreKind::Http && proof == Proof::One {
            return Some(what);
        }
        self.wait(location.kind, gives_others(location, beside, proof)).then_some(what)
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// Wait for a store's answer on this thread.
    ///
    /// Outside a runtime the local store does its work in the first poll, so nothing has to be
    /// handed to another thread and back.
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

    fn opened(&self, address: &Address) -> Result<Opened, SourceError> {
        // a poisoned lock only means that another thread panicked between two whole insertions
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(&address.root) {
            return Ok(opened.clone());
        }
        let opened = address
            .connect(&self.shared.storage)
            .map_err(|source| StorageError { uri: address.uri.clone(), source })?;
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(address.root.clone(), opened.clone());
        Ok(opened)
    }
}

/// Size and version of an object. Not every web server answers HEAD, or says there how long the object is; the answer
/// to a range says it, too.
async fn look_up(location: &Location) -> object_store::Result<ObjectMeta> {
    let extensions = || ObjectRead { most_bytes: 1 }.extensions();
    let head = GetOptions { head: true, extensions: extensions(), ..GetOptions::default() };
    let refused = match location.store.get_opts(&location.path, head).await {
        Ok(answer) => return Ok(answer.meta),
        Err(error) if location.kind == StoreKind::Local || !may_know_more(location.kind, &error) => {
            return Err(error);
        }
        Err(error) => error,
    };
    let range = GetOptions { range: Some((0..1).into()), extensions: extensions(), ..GetOptions::default() };
    match location.store.get_opts(&location.path, range).await {
        Ok(answer) => Ok(answer.meta),
        // a refusal of HEAD has no words
        Err(error) if may_be_own(&refused).is_some() => Err(error),
        Err(_) => Err(refused),
    }
}

/// Whether a server that answers HEAD so may answer a range better.
fn may_know_more(kind: StoreKind, error: &object_store::Error) -> bool {
    match error {
        object_store::Error::PermissionDenied { .. } => kind == StoreKind::Http,
        // a web server's 405 is told as not found
        object_store::Error::Generic { .. } | object_store::Error::NotFound { .. } => {
            is_refused_at_once(error) || error.to_string().contains("405 Method Not Allowed")
        }
        _ => false,
    }
}

/// Stores that are remembered: far more than a job has buckets. A manifest may name any number of
/// web servers; they are opened again when their turn comes again.
const MAX_OPEN: usize = 256;

/// Which service a root belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Local,
    Google,
    Amazon,
    Azure,
    Http,
}

impl Service {
    /// What the names of the environment variables begin with that it is set up from.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Local | Self::Http => &[],
            Self::Google => &["GOOGLE_", "STORAGE_EMULATOR_HOST", "GCE_METADATA_"],
            Self::Amazon => &["AWS_"],
            Self::Azure => &["AZURE_"],
        }
    }
}

const CREDENTIALS: &str = "credentials in a URI would end up in logs and in the output";

/// A URI taken apart.
#[derive(Debug)]
struct Address {
    uri: String,
    service: Service,
    kind: StoreKind,
    root: String,
    path: Path,
}

impl Address {
    fn parse(uri: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = uri.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
            if looks_like_uri(uri) {
                return Err(
                    "looks like a URI, and is none: a scheme is followed by :// and a name".to_owned()
                );
            }
            return Self::local(uri, uri);
        };
        let service = match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let path = Url::parse(uri).ok().and_then(|url| url.to_file_path().ok());
                let path = path.ok_or("a file URL must name an absolute path of this machine")?;
                let path = path.to_str().ok_or("the path is not valid UTF-8")?;
                return Self::local(path, path);
            }
            "http" | "https" => return Self::http(uri),
            "gs" => Service::Google,
            "s3" | "s3a" => Service::Amazon,
            "az" | "azure" | "adl" | "abfs" | "abfss" => Service::Azure,
            _ => {
                return Err(format!(
                    "scheme {scheme} is not supported, expected a path, file, gs, s3, az, abfs, http or https"
                ));
            }
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("names no bucket".to_owned());
        }
        let scheme = scheme.to_ascii_lowercase();
        if bucket.contains(['@', ':']) && !names_container(&scheme, bucket) {
            return Err(CREDENTIALS.to_owned());
        }
        if is_signed(key) {
            return Err("a signature in a URI would end up in logs and in the output".to_owned());
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if !bucket.chars().all(is_name) {
            return Err("names no bucket: its name has letters, digits, '-', '_' and '.' only".to_owned());
        }
        let path = Path::parse(key).map_err(|error| unaddressable(&error))?;
        let root = format!("{scheme}://{bucket}/");
        Ok(Self { uri: uri.to_owned(), service, kind: StoreKind::Bucket, root, path })
    }

    fn local(uri: &str, path: &str) -> Result<Self, String> {
        let absolute = absolute_path(FilePath::new(path))
            .map_err(|error| format!("cannot be made an absolute path: {error}"))?;
        let absolute = absolute.to_str().ok_or("the path is not valid UTF-8")?;
        let path = Path::parse(absolute).map_err(|error| unaddressable(&error))?;
        if path.filename().is_some_and(is_staged_name) {
            return Err("a name that ends in # and digits is that of a file still being written".to_owned());
        }
        let root = "/".to_owned();
        Ok(Self { uri: uri.to_owned(), service: Service::Local, kind: StoreKind::Local, root, path })
    }

    fn http(uri: &str) -> Result<Self, String> {
        let url = Url::parse(uri).map_err(|error| error.to_string())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(CREDENTIALS.to_owned());
        }
        if url.fragment().is_some() {
            return Err("a fragment is not supported; percent-encode # in names".to_owned());
        }
        let path = web::path_of(&url)?;
        let root = url[..url::Position::BeforePath].to_owned() + "/";
        Ok(Self { uri: uri.to_owned(), service: Service::Http, kind: StoreKind::Http, root, path })
    }

    /// Open the store. Sends nothing; credentials are asked for by the first request.
    fn connect(&self, section: &StorageSection) -> object_store::Result<Opened> {
        fn listed(store: Arc<impl ObjectStore + PaginatedListStore>) -> Opened {
            Opened { store: store.clone(), pages: Some(store), last_read: LastRead::default() }
        }
        fn unlisted(store: impl ObjectStore) -> Opened {
            Opened { store: Arc::new(store), pages: None, last_read: LastRead::default() }
        }
        let is_local = self.service == Service::Local;
        let checked = environment::check(self.service.variables());
        checked
            .and_then(|()| if is_local { Ok(()) } else { environment::check_certificates() })
            .map_err(|what| object_store::Error::Generic { store: "environment", source: what.into() })?;
        let retry = patience(section.retry_seconds);
        let first_answer_within = FIRST_ANSWER_WITHIN.min(retry.retry_timeout / 2);
        let give_up_after = (self.service == Service::Http).then_some(retry.retry_timeout);
        let accept_encoding = match self.service {
            Service::Google => Some("gzip"),
            Service::Http => Some("identity"),
            Service::Local | Service::Amazon | Service::Azure => None,
        };
        let connector = CheckedConnector { first_answer_within, give_up_after, accept_encoding };
        let timeout = format!("{}ms", (section.timeout_seconds * 1e3).ceil() as u64);
        Ok(match self.service {
            Service::Local => unlisted(Disk::new()),
            Service::Google => listed(Arc::new(connect_google(&self.root, retry, &timeout, connector)?)),
            Service::Amazon => {
                let mut builder = AmazonS3Builder::new();
                for (name, value) in environment::settings("AWS_") {
                    if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                        builder = builder.with_config(key, value);
                    }
                }
                builder = builder
                    .with_url(&self.root)
                    .with_retry(retry)
                    .with_http_connector(connector)
                    .with_copy_if_not_exists(S3CopyIfNotExists::Multipart);
                if names_plain_http(&["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]) {
                    builder = builder.with_allow_http(true);
                }
                builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), timeout);
                listed(Arc::new(builder.build()?))
            }
            Service::Azure => {
                let mut builder = MicrosoftAzureBuilder::new();
                for (name, value) in environment::settings("AZURE_") {
                    if let Ok(key) = name.parse::<AzureConfigKey>() {
                        builder = builder.with_config(key, value);
                    }
                }
                if let Some(endpoint) = environment::variable("IDENTITY_ENDPOINT") {
                    builder = builder.with_msi_endpoint(endpoint);
                }
                builder = builder.with_url(&self.root).with_retry(retry).with_http_connector(connector);
                if names_plain_http(&["AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"]) {
                    builder = builder.with_allow_http(true);
                }
                builder = builder.with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), timeout);
                listed(Arc::new(builder.build()?))
            }
            Service::Http => {
                let builder = HttpBuilder::new().with_url(&self.root).with_retry(retry);
                let builder = builder.with_http_connector(connector);
                let builder = builder.with_config(ClientConfigKey::Timeout, timeout);
                unlisted(WebServer(builder.with_config(ClientConfigKey::AllowHttp, "true").build()?))
            }
        })
    }
}

/// Until a server has answered for the first time, whatever it says, more looks like a wrong name or like
/// credentials that are sought where there are none than like an outage.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// First pause of `object_store`, and the least of all that follow.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Repeat a request for so long, however often that is. A pause is chosen between the shortest one and
/// three times the last one; twice would be the last one again, on average, and many workers that all
/// wait for a store ought to leave it alone.
fn patience(retry_seconds: f64) -> RetryConfig {
    let retry_timeout = Duration::from_secs_f64(retry_seconds);
    let max_backoff = (retry_timeout / 4).clamp(MIN_PAUSE, BackoffConfig::default().max_backoff);
    RetryConfig {
        max_retries: retry_timeout.div_duration_f64(MIN_PAUSE).ceil() as usize + 1,
        retry_timeout,
        backoff: BackoffConfig { init_backoff: MIN_PAUSE, max_backoff, base: 3.0 },
    }
}

/// `STORAGE_EMULATOR_HOST` is the convention of Google's own clients; `object_store` does not
/// know it.
fn connect_google(
    root: &str,
    retry: RetryConfig,
    timeout: &str,
    connector: CheckedConnector,
) -> object_store::Result<GoogleCloudStorage> {
    let checked = |builder: GoogleCloudStorageBuilder| {
        let timeout_key = GoogleConfigKey::Client(ClientConfigKey::Timeout);
        builder
            .with_url(root)
            .with_retry(retry)
            .with_config(timeout_key, timeout)
            .with_http_connector(connector)
    };
    let allow_http = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
    // an empty one counts as none, as with Google's clients
    let Some(host) = environment::variable("STORAGE_EMULATOR_HOST") else {
        let mut builder = GoogleCloudStorageBuilder::new();
        for (name, value) in environment::settings("GOOGLE_") {
            if let Ok(key) = name.parse::<GoogleConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(path) = environment::variable("SERVICE_ACCOUNT") {
            builder = builder.with_service_account_path(path);
        }
        let mut builder = checked(builder);
        if names_plain_http(&["GOOGLE_BASE_URL"]) {
            builder = builder.with_config(allow_http, "true");
        }
        return builder.build();
    };
    let base = if host.contains("://") { host } else { format!("http://{host}") };
    let account = serde_json::json!({
        "gcs_base_url": base.trim_end_matches('/'),
        "disable_oauth": true,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    });
    checked(GoogleCloudStorageBuilder::new())
        .with_service_account_key(account.to_string())
        .with_config(allow_http, "true")
        .build()
}

/// A letter, then letters, digits and three signs (RFC 3986, 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Whether one of the variables holds an endpoint without TLS, which the operator then means.
fn names_plain_http(variables: &[&str]) -> bool {
    variables.iter().any(|name| std::env::var(name).is_ok_and(|value| value.starts_with("http://")))
}

/// Absolute, without `.` and `..`. A path need not exist: outputs do not, yet.
fn absolute_path(path: &FilePath) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    if !absolute.components().any(|part| part == Component::ParentDir) {
        return Ok(absolute);
    }
    let mut result = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            // the parent of a symbolic link's target is not the parent of the link
            result = result.canonicalize().unwrap_or(result);
            result.pop();
        } else {
            result.push(part);
        }
    }
    Ok(result)
}

/// `name#1`: how `LocalFileSystem` names a file that it has not finished writing. It refuses to
/// read one.
pub fn is_staged_name(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
pub(crate) mod tests {
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
    fn uris_are_taken_apart_byte_for_byte() {
        let cases = [
            ("gs://b/a b#1%20.jpg", "gs://b/", "a b#1%20.jpg"),
            ("s3://my_bucket", "s3://my_bucket/", ""),
            ("s3://b/folder/", "s3://b/", "folder"),
            ("abfss://c@a.dfs.core.windows.net/x/y", "abfss://c@a.dfs.core.windows.net/", "x/y"),
            ("https://h:8080/a%20b/c.tar", "https://h:8080/", "a b/c.tar"),
            ("/data/a%b.tar", "/", "data/a%b.tar"),
            ("file:///data/a%20b.tar", "/", "data/a b.tar"),
        ];
        for (uri, root, path) in cases {
            let address = Address::parse(uri).expect(uri);
            assert_eq!((address.root.as_str(), address.path.as_ref()), (root, path), "{uri}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_says_why() {
        let cases = [
            ("ftp://h/x", "scheme ftp is not supported"),
            ("gs:///x", "names no bucket"),
            ("s3://my bucket/x", "names no bucket"),
            ("https://h/x#y", "fragment"),
            ("https://me:secret@h/x", "credentials"),
            ("s3://AKIA:secret@b/x", "credentials"),
            ("s3://AKIA:sec/ret@b/x", "credentials"),
            ("gs://secret@b/x", "credentials"),
            ("az://secret@b/x", "credentials"),
            ("az://b/x?sv=1&sig=secret", "signature"),
            ("https:///me:secret@h/x", "credentials"),
            ("https:/me:secret@h/x", "looks like a URI"),
            ("https:me:secret@h/x", "looks like a URI"),
            ("s3:///AKIA:secret@b/x", "names no bucket"),
            ("https:/me:secret@h/a?u=http://x", "looks like a URI"),
            ("gs://b/x;%73ig=secret", "signature"),
            ("dir/part.parquet#12", "still being written"),
        ];
        for (uri, expected) in cases {
            let message = Address::parse(uri).expect_err(uri);
            assert!(message.contains(expected), "{uri}: {message}");
            let told = SourceError::Uri { uri: uri.to_owned(), message }.to_string();
            assert!(!told.contains("secret") && !told.contains("ret@"), "{told}");
        }
    }

    #[test]
    fn a_request_is_repeated_for_as_long_as_was_asked_for() {
        for seconds in [0.1, 6.0, 180.0, 86_400.0] {
            let retry = patience(seconds);
            // however short the pauses turn out, time is up before the repetitions are
            let BackoffConfig { init_backoff, max_backoff, base } = retry.backoff;
            let shortest = init_backoff.as_secs_f64() * retry.max_retries as f64;
            assert!(shortest > seconds, "{seconds} s: {} retries", retry.max_retries);
            assert_eq!(retry.retry_timeout, Duration::from_secs_f64(seconds));
            assert!(max_backoff.mul_f64(base) > init_backoff && max_backoff.as_secs_f64() <= seconds);
        }
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
            let opened = stores.open(&object(path.to_str().expect("UTF-8"))).expect(name);
            let bytes = opened.read_range(0..opened.size_bytes()).expect(name);
            assert_eq!(&bytes[..], name.as_bytes());
        }
    }

    #[test]
    fn parent_folders_and_links_resolve_as_the_system_does() {
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
            let opened = stores.open(&object(&uri)).expect(name);
            assert_eq!(&opened.read_range(0..7).expect(name)[..], b"through");
        }
    }

    #[test]
    fn a_missing_file_is_not_found_and_named() {
        let (_runtime, stores) = local_stores();
        let error = stores.open(&object("no/such/file.tar")).err().expect("missing");
        assert!(error.to_string().contains("no/such/file.tar"), "{error}");
        assert!(matches!(error, SourceError::Storage(error) if error.is_not_found()));
    }

    #[test]
    fn a_local_store_can_also_be_waited_for_on_a_blocking_thread_of_the_runtime() {
        let (runtime, stores) = local_stores();
        let found = runtime.block_on(async move {
            tokio::task::spawn_blocking(move || stores.open(&object("Cargo.toml")).map(|o| o.size_bytes()))
                .await
                .expect("no panic")
        });
        assert!(found.expect("Cargo.toml") > 0);
    }
}
