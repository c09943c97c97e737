//! This machine's disk as an object store: `LocalFileSystem`, except where it would hang or cannot create objects.
//!
//! - A FIFO, a socket or a device is refused before it is opened: opening it may block forever.
//! - A complete object is created by a hard link, which fails if the object exists. On a file system without hard links
//!   (FAT, exFAT, many FUSE file systems) it is created by a rename that replaces nothing, with the same guarantee: it
//!   appears whole or not at all, and only one of several writers succeeds. A file system with neither cannot hold an
//!   output; the error says so.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::fs::RenameFlags;

use crate::regular_file::refuse_special;

/// Name of this store in messages.
const DISK: &str = "disk";

/// The file system of this machine; paths are absolute, without their first slash.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    inner: LocalFileSystem,
    /// Creates a second name for a file.
    link: fn(&FilePath, &FilePath) -> io::Result<()>,
    /// Renames a file, replacing nothing.
    rename: fn(&FilePath, &FilePath) -> io::Result<()>,
}

impl Disk {
    /// A disk that syncs all files it writes, so that they survive a crash of the machine.
    pub fn new() -> Self {
        Self {
            inner: LocalFileSystem::new().with_fsync(true),
            link: |from, to| std::fs::hard_link(from, to),
            rename: |from, to| {
                let here = rustix::fs::CWD;
                Ok(rustix::fs::renameat_with(here, from, here, to, RenameFlags::NOREPLACE)?)
            },
        }
    }

    fn link_or_rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
        let Err(no_link) = (self.link)(from, to) else { return Ok(()) };
        if !has_no_links(&no_link) {
            return Err(no_link);
        }
        (self.rename)(from, to).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM) => io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "its file system has neither hard links ({no_link}) nor renames that replace nothing ({error}), \
                     so that no file can be created whole and only once; write to another disk or to a bucket"
                ),
            ),
            _ => error,
        })
    }

    /// Publish the complete file `from` as `to` if that is absent.
    fn create(&self, from: &FilePath, to: &FilePath) -> Result<()> {
        let mut made = self.link_or_rename(from, to);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) && from.exists() {
            let folder = to.parent().unwrap_or(FilePath::new("/"));
            std::fs::create_dir_all(folder).map_err(|error| failed(to, error))?;
            // the folders above it must survive a crash, too
            folder.ancestors().take_while(|above| above.parent().is_some()).for_each(sync);
            made = self.link_or_rename(from, to);
        }
        let path = || to.display().to_string();
        match made {
            Ok(()) => {
                to.parent().into_iter().for_each(sync);
                Ok(())
            }
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists { path: path(), source: source.into() })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::NotFound { path: from.display().to_string(), source: source.into() })
            }
            Err(source) => Err(failed(to, source)),
        }
    }
}

/// Write a new file, and the folders above it.
fn write(path: &FilePath, content: &PutPayload) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = File::create_new(path)?;
    content.iter().try_for_each(|piece| file.write_all(piece))?;
    file.sync_all()
}

/// Whether the file system has no hard links, or allows no more of them for this file.
fn has_no_links(error: &io::Error) -> bool {
    let codes = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EMLINK, libc::EXDEV, libc::EINVAL];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Sync the names in a folder, if the file system supports it.
fn sync(folder: &FilePath) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(folder = %folder.display(), %error, "cannot sync a folder");
    }
}

fn failed(to: &FilePath, source: io::Error) -> Error {
    let source = io::Error::new(source.kind(), format!("cannot create {}: {source}", to.display()));
    Error::Generic { store: DISK, source: source.into() }
}

/// The path of an object; the root of the store is that of the disk.
fn file_path(location: &Path) -> PathBuf {
    PathBuf::from(format!("/{location}"))
}

/// Run work that may wait for the disk outside of async tasks, as `LocalFileSystem` does.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await?,
        Err(_) => work(),
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DISK)
    }
}

#[async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return self.inner.put_opts(location, payload, options).await;
        }
        // listings omit files with such a name, which marks them as unfinished
        let staged = format!("{location}#{}", RandomState::new().build_hasher().finish());
        let (disk, staged, to) = (self.clone(), file_path(&Path::from(staged)), file_path(location));
        run_blocking(move || {
            let put = write(&staged, &payload).map_err(|error| failed(&to, error));
            let put = put.and_then(|()| disk.create(&staged, &to));
            // after a rename the staged file does not exist
            let _ = std::fs::remove_file(&staged);
            put.map(|()| PutResult { e_tag: None, version: None, extensions: Default::default() })
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = file_path(location);
        let refused = move || {
            refuse_special(&path).map_err(|error| Error::Generic { store: DISK, source: error.into() })
        };
        run_blocking(refused).await?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    /// A copy to an absent object may remove `from`: callers that publish an object delete its staged copy anyway.
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if options.mode != CopyMode::Create {
            return self.inner.copy_opts(from, to, options).await;
        }
        let (from, to) = (file_path(from), file_path(to));
        let disk = self.clone();
        run_blocking(move || disk.create(&from, &to)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    fn denied(_: &FilePath, _: &FilePath) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    fn unknown(_: &FilePath, _: &FilePath) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// A folder with complete files `a` and `b`, and the results of publishing each of them as `c/d`.
    fn published(disk: &Disk) -> (tempfile::TempDir, [Result<()>; 2]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| Path::parse(folder.path().join(name).to_str().expect("UTF-8")).expect("a path");
        let results = ["a", "b"].map(|name| {
            std::fs::write(folder.path().join(name), name).expect("write");
            runtime.block_on(disk.copy_if_not_exists(&at(name), &at("c/d")))
        });
        (folder, results)
    }

    #[test]
    fn one_of_two_writers_succeeds_with_and_without_hard_links() {
        let without = Disk { link: denied, ..Disk::new() };
        for disk in [Disk::new(), without] {
            let (folder, [first, second]) = published(&disk);
            first.expect("it was absent");
            assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
            assert_eq!(std::fs::read(folder.path().join("c/d")).expect("whole"), b"a");
            assert!(folder.path().join("b").exists(), "the second writer keeps its file");
        }
    }

    #[test]
    fn creating_an_object_replaces_nothing_and_leaves_no_staged_file() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        for disk in [Disk::new(), Disk { link: denied, ..Disk::new() }] {
            let folder = tempfile::tempdir().expect("folder");
            let to = Path::parse(folder.path().join("c/d").to_str().expect("UTF-8")).expect("a path");
            let put = |text: &'static str| {
                runtime.block_on(disk.put_opts(&to, text.into(), PutMode::Create.into()))
            };
            put("first").expect("it was absent");
            let second = put("second");
            assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
            let names: Vec<_> = std::fs::read_dir(folder.path().join("c")).expect("folder").collect();
            assert_eq!(names.len(), 1, "{names:?}");
            assert_eq!(std::fs::read(folder.path().join("c/d")).expect("whole"), b"first");
        }
    }

    #[test]
    fn a_file_system_that_cannot_create_whole_files_is_refused() {
        let (folder, [first, _]) = published(&Disk { link: denied, rename: unknown, ..Disk::new() });
        let message = first.expect_err("impossible").to_string();
        for words in ["neither hard links", "another disk"] {
            assert!(message.contains(words), "{message}");
        }
        assert!(!folder.path().join("c/d").exists());
    }

    #[test]
    fn copying_a_missing_file_fails_with_not_found() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let copied = runtime.block_on(Disk::new().copy_if_not_exists(&"no/such".into(), &"no/other".into()));
        assert!(matches!(copied, Err(Error::NotFound { .. })), "{copied:?}");
    }

    #[test]
    fn a_device_is_not_opened() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let refused = runtime.block_on(Disk::new().get(&"dev/zero".into())).expect_err("no file");
        assert!(refused.to_string().contains("is a device"), "{refused}");
    }
}
