//! What one input finds: a walk of local folders, or the pages of a bucket's listing.
//!
//! Comes in: an input. Goes out: the names below its folder, in the order of their full names,
//! found as they are asked for.
//!
//! - Patterns and hidden names are not judged here; only what cannot match is not even listed.
//! - Held at any time: one folder's names, or one page.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use walkdir::{DirEntry, WalkDir};

use crate::error::{SourceError, StorageError};
use crate::items::ObjectRef;
use crate::retry::again;

use super::input::{Input, Shape};
use super::object::quoted_tag;
use super::store::{StoreKind, Stores, is_staged_name};

/// One name found, relative to its input's folder.
pub(super) struct Found {
    pub name: String,
    pub size_bytes: Option<u64>,
    pub version: Option<String>,
}

/// What an input finds, in order.
pub(super) type Names = Box<dyn Iterator<Item = Result<Listed, SourceError>> + Send>;

/// One step of a listing.
pub(super) enum Listed {
    /// The object that the input names.
    Named(ObjectRef),
    Found(Found),
    /// A name that cannot be addressed: not UTF-8, a loop of links.
    Unreadable(String),
}

/// Begin to list `input`.
pub(super) fn names(stores: &Stores, input: &Input) -> Names {
    let glob = match &input.shape {
        Shape::Object(object) => return Box::new(std::iter::once(Ok(Listed::Named(object.clone())))),
        Shape::Folder => None,
        Shape::Glob(glob) => Some(glob),
    };
    let max_depth = glob.and_then(|glob| glob.max_depth);
    if let Some(folder) = input.location.local_path() {
        return walk(folder, max_depth);
    }
    let Some(pages) = input.location.pages() else { return Box::new(std::iter::empty()) };
    let base_id = input.base_id();
    let base_key = base_id.strip_prefix(input.location.root()).unwrap_or_default().to_owned();
    let literal = glob.map_or("", |glob| glob.literal.as_str());
    Box::new(Pages {
        stores: stores.clone(),
        store: pages.clone(),
        objects: input.location.store.clone(),
        uri: input.uri.clone(),
        prefix: format!("{base_key}{literal}"),
        base_key,
        only_direct: max_depth == Some(1),
        page: Vec::new().into_iter(),
        next_token: None,
        begun: false,
    })
}

/// Files below `folder` in the order of their full names: a folder sorts as its name and a slash.
fn walk(folder: PathBuf, max_depth: Option<usize>) -> Names {
    let sort_key = |entry: &DirEntry| {
        let mut key = entry.file_name().as_encoded_bytes().to_vec();
        if entry.file_type().is_dir() {
            key.push(b'/');
        }
        key
    };
    let entries = WalkDir::new(&folder)
        .follow_links(true)
        .min_depth(1)
        .max_depth(max_depth.unwrap_or(usize::MAX))
        .sort_by(move |a, b| sort_key(a).cmp(&sort_key(b)));
    Box::new(entries.into_iter().filter_map(move |entry| walked(&folder, entry).transpose()))
}

/// One step of a walk; `None` for what is no file.
fn walked(folder: &Path, entry: walkdir::Result<DirEntry>) -> Result<Option<Listed>, SourceError> {
    let relative =
        |path: &Path| path.strip_prefix(folder).ok().and_then(|path| path.to_str()).map(str::to_owned);
    let (path, metadata) = match entry {
        Ok(entry) if !entry.file_type().is_file() => return Ok(None),
        Ok(entry) => (entry.path().to_owned(), entry.metadata().ok()),
        Err(error) => {
            let path = error.path().unwrap_or(folder).to_owned();
            if error.loop_ancestor().is_some() {
                return Ok(Some(Listed::Unreadable(path.display().to_string())));
            }
            // a link that leads nowhere is listed: reading it will say so in its own row
            let missing = error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
            if !(missing && path.is_symlink()) {
                let source = object_store::Error::Generic { store: "folder", source: error.into() };
                return Err(StorageError { uri: path.display().to_string(), source }.into());
            }
            (path, None)
        }
    };
    let name = relative(&path).filter(|name| {
        let base = name.rsplit('/').next().unwrap_or(name);
        !is_staged_name(base) && !name.chars().any(|c| c.is_ascii_control())
    });
    Ok(Some(match name {
        Some(name) => Listed::Found(Found {
            name,
            size_bytes: metadata.as_ref().map(Metadata::len),
            version: metadata.as_ref().and_then(local_version),
        }),
        None => Listed::Unreadable(path.display().to_string()),
    }))
}

/// The entity tag that `LocalFileSystem` gives a file: its inode, its time in microseconds and its size, in
/// hexadecimal. Told here, it costs no look at the file.
fn local_version(metadata: &Metadata) -> Option<String> {
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("\"{:x}-{:x}-{:x}\"", metadata.ino(), modified.as_micros(), metadata.len()))
}

/// Names of a bucket, page by page.
struct Pages {
    stores: Stores,
    store: Arc<dyn PaginatedListStore>,
    /// The same, for a look at one object.
    objects: Arc<dyn ObjectStore>,
    /// The input, for errors.
    uri: String,
    prefix: String,
    /// What to take off the keys found.
    base_key: String,
    /// Whether only objects directly below the prefix's folder are of interest.
    only_direct: bool,
    page: std::vec::IntoIter<ObjectMeta>,
    next_token: Option<String>,
    begun: bool,
}

impl Pages {
    /// Fetch the next page; `None` after the last.
    fn turn(&mut self) -> Option<Result<(), SourceError>> {
        if self.begun && self.next_token.is_none() {
            return None;
        }
        self.begun = true;
        let options = PaginatedListOptions {
            delimiter: self.only_direct.then_some("/".into()),
            page_token: self.next_token.take(),
            ..PaginatedListOptions::default()
        };
        let prefix = (!self.prefix.is_empty()).then_some(self.prefix.as_str());
        match self
            .stores
            .wait(StoreKind::Bucket, again(|| self.store.list_paginated(prefix, options.clone())))
        {
            Ok(page) => {
                self.page = page.result.objects.into_iter();
                self.next_token = page.page_token;
                Some(Ok(()))
            }
            Err(object_store::Error::InvalidPath { source }) => {
                let message = format!(
                    "a name in it cannot be addressed, and with it none of its page be listed: {source}; move that \
                     object away, or choose a prefix without it"
                );
                Some(Err(SourceError::Uri { uri: self.uri.clone(), message }))
            }
            Err(source) => Some(Err(StorageError { uri: self.uri.clone(), source }.into())),
        }
    }

    /// Whether what was listed as an empty object is a folder's marker: its name ends in a slash, which the
    /// listing does not show, so that nothing is found without.
    fn is_marker(&self, meta: &ObjectMeta) -> Result<bool, SourceError> {
        match self.stores.wait(StoreKind::Bucket, again(|| self.objects.head(&meta.location))) {
            Ok(_) => Ok(false),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(source) => {
                Err(StorageError { uri: format!("{}/{}", self.uri, meta.location), source }.into())
            }
        }
    }
}

impl Iterator for Pages {
    type Item = Result<Listed, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(meta) = self.page.next() {
                let Some(name) = meta.location.as_ref().strip_prefix(&self.base_key) else { continue };
                if name.is_empty() {
                    continue;
                }
                // consoles make an empty object to show an empty folder
                if meta.size == 0 {
                    match self.is_marker(&meta) {
                        Ok(true) => continue,
                        Ok(false) => {}
                        Err(error) => return Some(Err(error)),
                    }
                }
                let (name, size_bytes) = (name.to_owned(), Some(meta.size));
                let version = meta.e_tag.map(quoted_tag);
                return Some(Ok(Listed::Found(Found { name, size_bytes, version })));
            }
            if let Err(error) = self.turn()? {
                return Some(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::ListResult;
    use object_store::list::PaginatedListResult;
    use object_store::memory::InMemory;

    use super::super::store::tests::local_stores;
    use super::*;

    /// A bucket in memory that lists two keys a page and counts the pages.
    struct TwoAPage {
        objects: BTreeMap<String, u64>,
        pages: Arc<AtomicUsize>,
    }

    #[async_trait::async_trait]
    impl PaginatedListStore for TwoAPage {
        async fn list_paginated(
            &self,
            prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            self.pages.fetch_add(1, Ordering::Relaxed);
            let prefix = prefix.unwrap_or_default();
            let direct = |key: &str| options.delimiter.is_none() || !key[prefix.len()..].contains('/');
            let after = options.page_token.clone().unwrap_or_default();
            let mut keys =
                self.objects.range(after..).filter(|(key, _)| key.starts_with(prefix) && direct(key));
            let store = object_store::memory::InMemory::new();
            let mut objects = Vec::new();
            for (key, &size) in keys.by_ref().take(2) {
                let location = object_store::path::Path::parse(key)?;
                store.put(&location, vec![0; size as usize].into()).await?;
                objects.push(store.head(&location).await?);
            }
            let result = ListResult { objects, common_prefixes: Vec::new(), extensions: Default::default() };
            Ok(PaginatedListResult { result, page_token: keys.next().map(|(key, _)| key.clone()) })
        }
    }

    fn pages(
        keys: &[&str],
        prefix: &str,
        base_key: &str,
        only_direct: bool,
    ) -> (Pages, Arc<AtomicUsize>, tokio::runtime::Runtime) {
        let (runtime, stores) = local_stores();
        let count = Arc::new(AtomicUsize::new(0));
        let size = |key: &str| u64::from(!key.contains("folder") && !key.contains("empty"));
        let objects = keys.iter().map(|key| ((*key).to_owned(), size(key))).collect();
        // of a marker there is nothing under the name without its slash
        let there = InMemory::new();
        for key in keys.iter().filter(|key| !key.contains("folder")) {
            let location = object_store::path::Path::from(*key);
            runtime.block_on(there.put(&location, vec![0; size(key) as usize].into())).expect("stored");
        }
        let pages = Pages {
            stores,
            store: Arc::new(TwoAPage { objects, pages: count.clone() }),
            objects: Arc::new(there),
            uri: "gs://b/".to_owned(),
            prefix: prefix.to_owned(),
            base_key: base_key.to_owned(),
            only_direct,
            page: Vec::new().into_iter(),
            next_token: None,
            begun: false,
        };
        (pages, count, runtime)
    }

    fn found(pages: Pages) -> Vec<String> {
        pages
            .map(|listed| match listed.expect("listed") {
                Listed::Found(found) => found.name,
                Listed::Named(_) | Listed::Unreadable(_) => panic!("a bucket only finds names"),
            })
            .collect()
    }

    const KEYS: [&str; 8] =
        ["d/a.jpg", "d/b.jpg", "d/folder", "d/x-1.tar", "d/x-2.tar", "d/x-3/c.tar", "e.tar", "f"];

    #[test]
    fn a_bucket_is_listed_page_by_page_as_it_is_asked() {
        let (mut all, count, _runtime) = pages(&KEYS, "", "", false);
        assert!(all.next().is_some());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert_eq!(found(all), ["d/b.jpg", "d/x-1.tar", "d/x-2.tar", "d/x-3/c.tar", "e.tar", "f"]);
        assert_eq!(count.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn folder_markers_are_passed_over_and_empty_objects_are_not() {
        let (listed, _, _runtime) =
            pages(&["a.tar", "day.parquet-folder", "empty", "empty.jpg", "folder"], "", "", false);
        assert_eq!(found(listed), ["a.tar", "empty", "empty.jpg"]);
    }

    #[test]
    fn a_name_that_cannot_be_addressed_is_named() {
        let (mut listed, _, _runtime) = pages(&["a.jpg", "b//c.jpg", "d.jpg"], "", "", false);
        let error = listed.find_map(Result::err).expect("refused").to_string();
        assert!(error.contains("gs://b/") && error.contains("b//c.jpg"), "{error}");
    }

    #[test]
    fn a_file_that_is_walked_has_the_version_that_its_store_tells() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, b"image").expect("a file");
        let told =
            stores.head(&stores.resolve(path.to_str().expect("UTF-8")).expect("a path")).expect("a file");
        let version = local_version(&std::fs::metadata(&path).expect("a file"));
        assert!(version.is_some() && version == told.version, "{version:?} {:?}", told.version);
    }

    #[test]
    fn a_bucket_is_asked_for_the_literal_start_of_a_glob_only() {
        let (listed, count, _runtime) = pages(&KEYS, "d/x-", "d/", true);
        assert_eq!(found(listed), ["x-1.tar", "x-2.tar"]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
