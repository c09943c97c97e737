//! One suite that checks the guarantees of every store.
//!
//! Stores take their settings from the environment of their process. Each test therefore starts the suite in another
//! process, with the variables of its store.

use std::process::Command;

use object_store::{Error, ObjectStoreExt};
use sluice::config::InputSection;
use sluice::error::{SourceError, StorageError};
use sluice::items::{ObjectRef, ShardContent};
use sluice::source::list_shards;
use sluice::store::{Location, Object, StoreKind, Stores, retry};

use super::gcs::{Gcs, Oddity};
use super::servers::Server;

/// The variable that names the folder in which the suite may create objects.
const BASE: &str = "CONFORMANCE_BASE";

/// The variable that names an object that the store refuses to read.
const DENIED: &str = "CONFORMANCE_DENIED";

/// Run the suite in a process with this environment.
fn conforms(environment: &[(&str, &str)]) {
    let mut suite = Command::new(std::env::current_exe().expect("a test binary"));
    suite.args(["--exact", "conformance::the_store_in_the_environment_conforms", "--nocapture"]);
    let output = suite.envs(environment.iter().copied()).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// The suite itself. It checks nothing without the variables that [`conforms`] sets.
#[test]
fn the_store_in_the_environment_conforms() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let stores = Stores::new(runtime.handle().clone());
    if let Ok(denied) = std::env::var(DENIED) {
        let error = stores.head(&stores.resolve(&denied).expect("a location")).expect_err("denied").source;
        assert!(matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }), "{error}");
    }
    if let Ok(base) = std::env::var(BASE) {
        Suite { runtime, stores, base }.check();
    }
}

struct Suite {
    runtime: tokio::runtime::Runtime,
    stores: Stores,
    base: String,
}

impl Suite {
    fn at(&self, name: &str) -> Location {
        self.stores.resolve(&format!("{}/{name}", self.base)).expect("a location")
    }

    /// Create or replace an object.
    fn put(&self, name: &str, bytes: &[u8]) {
        let location = self.at(name);
        let put = location.store.put(&location.path, bytes.to_vec().into());
        self.runtime.block_on(put).expect("stored");
    }

    fn head(&self, name: &str) -> Result<ObjectRef, StorageError> {
        self.stores.head(&self.at(name))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let object = Object::open(&self.stores, &self.head(name).expect("it exists")).expect("it exists");
        object.read_range(0..object.size_bytes()).expect("read").to_vec()
    }

    fn check(&self) {
        self.an_object_is_read_by_ranges();
        self.a_changed_object_is_an_error_and_never_a_mixture();
        self.a_missing_object_is_not_found();
        if self.at("").kind == StoreKind::Http {
            self.a_store_without_a_listing_says_so();
        } else {
            self.an_object_is_created_only_if_it_is_absent();
            self.an_object_is_copied_only_to_an_absent_one();
            self.objects_are_listed_in_the_order_of_their_names();
        }
    }

    fn an_object_is_read_by_ranges(&self) {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| ((n * 31) >> 5) as u8).collect();
        self.put("ranges.bin", &bytes);
        let found = self.head("ranges.bin").expect("it exists");
        assert_eq!(found.size_bytes, Some(100_000));
        assert!(found.version.is_some(), "no version");
        let object = Object::open(&self.stores, &found).expect("it exists");
        for range in [0..1, 0..100_000, 99_999..100_000, 500..70_000, 5..5] {
            let read = object.read_range(range.clone()).expect("inside");
            assert!(read == bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        let mut read = Vec::new();
        std::io::copy(&mut object.reader(), &mut read).expect("read");
        assert!(read == bytes);
    }

    fn a_changed_object_is_an_error_and_never_a_mixture(&self) {
        self.put("changed.bin", &[1; 1000]);
        let object =
            Object::open(&self.stores, &self.head("changed.bin").expect("it exists")).expect("it exists");
        object.read_range(0..500).expect("unchanged");
        self.put("changed.bin", &[2; 2000]);
        let error = object.read_range(500..1000).expect_err("changed").source;
        assert!(matches!(error, Error::Precondition { .. }), "{error}");
        assert_eq!(self.read("changed.bin"), [2; 2000]);
    }

    fn a_missing_object_is_not_found(&self) {
        let error = self.head("missing.bin").expect_err("missing");
        assert!(error.is_not_found(), "{error}");
        assert!(error.to_string().contains("missing.bin"), "{error}");
        let known = ObjectRef {
            uri: self.at("missing.bin").uri,
            size_bytes: Some(10),
            version: Some("\"1\"".to_owned()),
        };
        let object = Object::open(&self.stores, &known).expect("opened without a request");
        let error = object.read_range(0..10).expect_err("missing");
        assert!(error.is_not_found(), "{error}");
    }

    fn an_object_is_created_only_if_it_is_absent(&self) {
        let location = self.at("folder/created.bin");
        let create = |bytes: &'static [u8]| {
            self.runtime.block_on(retry::create(&*location.store, &location.path, bytes.into()))
        };
        assert!(create(b"first").expect("created"));
        assert!(!create(b"second").expect("refused"));
        assert_eq!(self.read("folder/created.bin"), b"first");
    }

    fn an_object_is_copied_only_to_an_absent_one(&self) {
        let to = self.at("folder/copied.bin");
        let copy = |name: &str, bytes: &[u8]| {
            self.put(name, bytes);
            self.runtime.block_on(to.store.copy_if_not_exists(&self.at(name).path, &to.path))
        };
        copy("one.bin", b"one").expect("copied");
        let refused = copy("two.bin", b"two").expect_err("it exists");
        assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
        assert_eq!(self.read("folder/copied.bin"), b"one");
        let missing = self.at("missing.bin").path;
        let refused =
            self.runtime.block_on(to.store.copy_if_not_exists(&missing, &self.at("three.bin").path));
        refused.expect_err("nothing to copy");
    }

    fn objects_are_listed_in_the_order_of_their_names(&self) {
        for name in
            ["list/b.png", "list/a/2.png", "list/a.png", "list/a-1.png", "list/a/10.png", ".list/c.png"]
        {
            self.put(name, name.as_bytes());
        }
        let shards = list_shards(&self.stores, &[format!("{}/list", self.base)], &InputSection::default());
        let mut found = Vec::new();
        for shard in shards.expect("a folder") {
            let ShardContent::Objects(entries) = shard.expect("listed").content else {
                panic!("loose images")
            };
            found.extend(entries.into_iter().map(|entry| entry.object));
        }
        let expected = |names: [&str; 5]| names.map(|name| format!("{}/list/{name}", self.base)).to_vec();
        let by_bytes = expected(["a-1.png", "a.png", "a/10.png", "a/2.png", "b.png"]);
        let by_folders = expected(["a/10.png", "a/2.png", "a-1.png", "a.png", "b.png"]);
        let uris: Vec<_> = found.iter().map(|object| object.uri.clone()).collect();
        assert!(uris == by_bytes || uris == by_folders, "{uris:?}");
        for object in found {
            let name = object.uri.strip_prefix(&self.base).expect("in the folder").trim_start_matches('/');
            assert_eq!(object.size_bytes, Some(name.len() as u64), "{name}");
            assert_eq!(Some(object.version), self.head(name).ok().map(|head| head.version), "{name}");
        }
    }

    fn a_store_without_a_listing_says_so(&self) {
        let listed = list_shards(&self.stores, &[format!("{}/*.png", self.base)], &InputSection::default());
        match listed.err() {
            Some(SourceError::Uri { message, .. }) => {
                assert!(message.contains("cannot be listed"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A server in this process that denies reading one object of `bucket`.
fn fake() -> Gcs {
    let server = Gcs::start();
    server.put("bucket", "denied.png", b"image".to_vec());
    server.serve_oddly("bucket", "denied.png", Oddity::Refused(403, "AccessDenied"));
    server
}

#[test]
fn the_disk_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().to_str().expect("UTF-8");
    conforms(&[(BASE, base)]);
    // root may read all files
    if !rustix::process::geteuid().is_root() {
        let denied = folder.path().join("denied");
        std::fs::create_dir(&denied).expect("a folder");
        std::fs::set_permissions(&denied, std::os::unix::fs::PermissionsExt::from_mode(0o000))
            .expect("a folder");
        conforms(&[(DENIED, &format!("{base}/denied/a.png"))]);
    }
}

#[test]
fn google_cloud_storage_conforms() {
    let server = fake();
    conforms(&[
        ("STORAGE_EMULATOR_HOST", &server.url()),
        (BASE, "gs://bucket/folder"),
        (DENIED, "gs://bucket/denied.png"),
    ]);
}

#[test]
fn azure_conforms() {
    let server = fake();
    conforms(&[
        ("AZURE_STORAGE_ENDPOINT", &server.url()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=x"),
        (BASE, "az://bucket/folder"),
        (DENIED, "az://bucket/denied.png"),
    ]);
}

#[test]
fn a_web_server_conforms() {
    let server = fake();
    let base = format!("{}/bucket/folder", server.url());
    conforms(&[(BASE, &base), (DENIED, &format!("{}/bucket/denied.png", server.url()))]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with servers"]
fn s3_conforms() {
    let server = Server::seaweedfs("bucket");
    let environment = server.environment.iter().map(|(name, value)| (*name, value.as_str()));
    let mut suite: Vec<_> = environment.chain([(BASE, "s3://bucket/folder")]).collect();
    conforms(&suite);
    suite.pop();
    suite.extend([("AWS_SECRET_ACCESS_KEY", "wrong"), (DENIED, "s3://bucket/folder/ranges.bin")]);
    conforms(&suite);
}
