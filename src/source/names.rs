//! What one input finds: a walk of local folders, or the pages of a bucket's listing.
//!
//! Comes in: an input. Goes out: the names below its folder, in the order of their full names,
//! found as they are asked for.
//!
//! - Patterns and hidden names are judged by who asks; what they rule out is not even listed, as far as that can
//!   be told from a prefix of a bucket's keys, or from a folder's name.
//! - Held at any time: one folder's names, or one page.
//! - A listing whose keys do not ascend is refused ([`Ascending`]): somebody would be scored twice, or for ever.
//! - A key that `object_store` cannot address fails the page that it stands in. The page is then asked for in
//!   ever smaller pieces, down to that key, which is passed over together with what else begins as badly.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path;
use walkdir::{DirEntry, WalkDir};

use crate::error::{SourceError, StorageError};
use crate::items::ObjectRef;
use crate::store::retry::again;

use super::input::{Folder, FolderRules, Input, Shape};
use super::naming;
use crate::store::{
    Ascending, MendEntries, StoreKind, Stores, UNTOLD_BYTES, escaped, is_staged_name, local_version,
    version_of,
};

/// One name found, relative to its input's folder.
pub(super) struct Found {
    /// As [`escaped`] spells it.
    pub name: String,
    /// Where it lies on this machine's disk, if the store cannot address its name.
    pub path: Option<PathBuf>,
    pub size_bytes: Option<u64>,
    pub version: Option<String>,
    /// Whether it is `name/`, an object of no bytes that shows a folder, beside what is called `name`.
    pub is_folder_marker: bool,
}

/// What an input finds, in order.
pub(super) type Names = Box<dyn Iterator<Item = Result<Listed, SourceError>> + Send>;

/// One step of a listing.
pub(super) enum Listed {
    /// The object that the input names.
    Named(ObjectRef),
    Found(Found),
    /// Something that is neither read nor listed further, of the kind that comes first.
    Passed(&'static str, String),
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
        return Box::new(Walk::new(folder, max_depth, input.folder_rules()));
    }
    let Some(pages) = input.location.pages() else { return Box::new(std::iter::empty()) };
    let base_id = input.base_id();
    let base_key = base_id.strip_prefix(input.location.root()).unwrap_or_default().to_owned();
    let literal = glob.map_or("", |glob| glob.literal.as_str());
    Box::new(Pages {
        stores: stores.clone(),
        store: pages.clone(),
        uri: input.uri.clone(),
        prefix: format!("{base_key}{literal}"),
        base_key,
        only_direct: max_depth == Some(1),
        page: Vec::new().into_iter(),
        next: Some(Place::default()),
        size: PageSize::Full,
        passed_over: None,
        order: Ascending::default(),
        empty_since: HashSet::new(),
    })
}

/// Files below a folder in the order of their full names: a folder sorts as its name and a slash.
struct Walk {
    folder: PathBuf,
    rules: FolderRules,
    entries: walkdir::IntoIter,
}

impl Walk {
    fn new(folder: PathBuf, max_depth: Option<usize>, rules: FolderRules) -> Self {
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
            .sort_by(move |a, b| sort_key(a).cmp(&sort_key(b)))
            .into_iter();
        Self { folder, rules, entries }
    }

    /// Name below the folder.
    fn name_of(&self, path: &Path) -> String {
        escaped(path.strip_prefix(&self.folder).unwrap_or(path).as_os_str().as_encoded_bytes())
    }

    /// One step; `None` for a folder that is looked into, or is nobody's business.
    fn step(&mut self, entry: walkdir::Result<DirEntry>) -> Result<Option<Listed>, SourceError> {
        let (path, metadata) = match entry {
            Ok(entry) => {
                let (name, kind) = (self.name_of(entry.path()), entry.file_type());
                // links are followed, so that a link to a folder is one
                if kind.is_dir() {
                    return Ok(self.folder(name));
                }
                if !kind.is_file() {
                    return Ok(Some(Listed::Passed(naming::SPECIAL, name)));
                }
                (entry.path().to_owned(), entry.metadata().ok())
            }
            Err(error) => {
                let path = error.path().unwrap_or(&self.folder).to_owned();
                if error.loop_ancestor().is_some() {
                    return Ok(Some(Listed::Passed(naming::LINK, self.name_of(&path))));
                }
                let kind = error.io_error().map(std::io::Error::kind);
                // a link that leads nowhere is listed: reading it will say so in its own row
                let leads_nowhere =
                    matches!(kind, Some(ErrorKind::NotFound | ErrorKind::NotADirectory)) || is_loop(&error);
                if kind == Some(ErrorKind::NotFound) && !path.is_symlink() && path != self.folder {
                    // it was removed since the folder around it was listed
                    return Ok(None);
                }
                if !(leads_nowhere && path.is_symlink()) {
                    let source = object_store::Error::Generic { store: "folder", source: error.into() };
                    return Err(StorageError { uri: path.display().to_string(), source }.into());
                }
                (path, None)
            }
        };
        let name = self.name_of(&path);
        if is_staged_name(name.rsplit('/').next().unwrap_or(&name)) {
            return Ok(Some(Listed::Passed(naming::BEING_WRITTEN, name)));
        }
        let (size_bytes, version) =
            (metadata.as_ref().map(Metadata::len), metadata.as_ref().map(local_version));
        // a name that is spelled otherwise than it is would not be found by its spelling
        let is_addressable =
            path.to_str().is_some_and(|path| path.ends_with(&name) && path::Path::parse(path).is_ok());
        let path = (!is_addressable).then_some(path);
        Ok(Some(Listed::Found(Found { name, path, size_bytes, version, is_folder_marker: false })))
    }

    fn folder(&mut self, name: String) -> Option<Listed> {
        match self.rules.judge(&name) {
            Folder::Descend => None,
            judged => {
                self.entries.skip_current_dir();
                (judged == Folder::Hidden).then(|| Listed::Passed(naming::HIDDEN, name + "/"))
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Listed, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.entries.next()?;
            if let Some(listed) = self.step(entry).transpose() {
                return Some(listed);
            }
        }
    }
}

/// Whether a link leads to itself.
fn is_loop(error: &walkdir::Error) -> bool {
    error.io_error().and_then(std::io::Error::raw_os_error) == Some(libc::ELOOP)
}

/// Names of a bucket, page by page.
struct Pages {
    stores: Stores,
    store: Arc<dyn PaginatedListStore>,
    /// The input, for errors.
    uri: String,
    prefix: String,
    /// What to take off the keys found.
    base_key: String,
    /// Whether only objects directly below the prefix's folder are of interest.
    only_direct: bool,
    page: std::vec::IntoIter<ObjectMeta>,
    /// Where the next page begins; `None` after the last.
    next: Option<Place>,
    size: PageSize,
    /// What was passed over last. Nothing up to here is found again.
    passed_over: Option<String>,
    order: Ascending,
    /// Tokens since the last page that held a key.
    empty_since: HashSet<String>,
}

/// Where a page begins.
#[derive(Clone, Default)]
struct Place {
    token: Option<String>,
    /// The key behind which it begins, after one that was passed over.
    behind: Option<String>,
}

/// Keys asked for at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageSize {
    /// As many as the store gives.
    Full,
    /// Fewer and fewer, until a page fails that holds one key alone.
    Narrowing(usize),
    /// Again more and more: where one key is odd, others may be.
    Widening(usize),
}

/// Keys in a page of every store.
const FULL_PAGE: usize = 1000;

impl PageSize {
    fn max_keys(self) -> Option<usize> {
        match self {
            Self::Full => None,
            Self::Narrowing(keys) | Self::Widening(keys) => Some(keys),
        }
    }

    fn after_success(self) -> Self {
        match self {
            Self::Widening(keys) if keys * 2 < FULL_PAGE => Self::Widening(keys * 2),
            Self::Full | Self::Widening(_) => Self::Full,
            Self::Narrowing(keys) => Self::Narrowing(keys),
        }
    }
}

impl Pages {
    /// Fetch the next page, which may be an unaddressable key instead; `None` after the last.
    fn turn(&mut self) -> Option<Result<Option<Listed>, SourceError>> {
        let place = self.next.take()?;
        let mut extensions = http::Extensions::new();
        extensions.insert(MendEntries);
        let options = PaginatedListOptions {
            delimiter: self.only_direct.then_some("/".into()),
            page_token: place.token.clone(),
            offset: place.behind.clone(),
            max_keys: self.size.max_keys(),
            extensions,
        };
        let prefix = (!self.prefix.is_empty()).then_some(self.prefix.as_str());
        let listed =
            self.stores.wait(StoreKind::Bucket, again(|| self.store.list_paginated(prefix, options.clone())));
        let error = match listed {
            Ok(page) => {
                let token = page.page_token.filter(|token| !token.is_empty());
                if page.result.objects.is_empty() {
                    let is_new = token.as_ref().is_none_or(|token| self.empty_since.insert(token.clone()));
                    if !is_new || self.empty_since.len() > MAX_EMPTY_PAGES {
                        return Some(Err(self.refused("its pages lead back to each other and hold no key")));
                    }
                } else {
                    self.empty_since.clear();
                }
                self.page = page.result.objects.into_iter();
                self.next = token.map(|token| Place { token: Some(token), behind: None });
                self.size = self.size.after_success();
                return Some(Ok(None));
            }
            Err(error) => error,
        };
        let bad = odd_key(&error).map(bad_start);
        // a store that does not begin where it is told to would be asked for ever
        let Some(bad) = bad.filter(|bad| self.passed_over.as_ref().is_none_or(|last| last < bad)) else {
            return Some(Err(StorageError { uri: self.uri.clone(), source: error }.into()));
        };
        let keys = self.size.max_keys().unwrap_or(FULL_PAGE);
        if keys > 1 {
            self.size = PageSize::Narrowing(keys / 2);
            self.next = Some(place);
            return Some(Ok(None));
        }
        // the last character that there is sorts behind all that begin as badly
        let behind = if bad.ends_with('/') { format!("{bad}{}", char::MAX) } else { bad.clone() };
        self.next = Some(Place { token: None, behind: Some(behind.clone()) });
        self.size = PageSize::Widening(1);
        self.passed_over = Some(behind);
        Some(Ok(Some(Listed::Passed(naming::UNADDRESSABLE, escaped(bad.as_bytes())))))
    }
}

impl Pages {
    /// The listing is none that can be gone by.
    fn refused(&self, what: &str) -> SourceError {
        let message = format!("the store's listing cannot be used: {what}");
        SourceError::Uri { uri: self.uri.clone(), message }
    }
}

/// Pages in a row that hold no key, which stores send where much was removed.
const MAX_EMPTY_PAGES: usize = 10_000;

/// The key that made a page fail.
fn odd_key(error: &object_store::Error) -> Option<&str> {
    match error {
        object_store::Error::InvalidPath {
            source: path::Error::EmptySegment { path } | path::Error::BadSegment { path, .. },
        } => Some(path),
        _ => None,
    }
}

/// The start of an odd `key` that makes every key odd that has it, with a slash at its end; or the whole key.
fn bad_start(key: &str) -> String {
    let folders = key.match_indices('/').map(|(slash, _)| &key[..=slash]);
    let bad = folders.into_iter().find(|folder| path::Path::parse(folder).is_err());
    bad.unwrap_or(key).to_owned()
}

impl Iterator for Pages {
    type Item = Result<Listed, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for meta in self.page.by_ref() {
                let key = meta.location.as_ref();
                if self.passed_over.as_ref().is_some_and(|last| key <= last.as_str()) {
                    continue;
                }
                let is_folder_marker = match self.order.accept(key, meta.size) {
                    Ok(is_marker) => is_marker,
                    Err(what) => {
                        self.next = None;
                        let error = self.refused(&what);
                        self.page = Vec::new().into_iter();
                        return Some(Err(error));
                    }
                };
                let Some(name) = key.strip_prefix(&self.base_key).filter(|name| !name.is_empty()) else {
                    continue;
                };
                let (name, size_bytes) = (name.to_owned(), (meta.size != UNTOLD_BYTES).then_some(meta.size));
                let version = version_of(StoreKind::Bucket, &meta);
                let found = Found { name, path: None, size_bytes, version, is_folder_marker };
                return Some(Ok(Listed::Found(found)));
            }
            match self.turn()? {
                Ok(None) => {}
                Ok(Some(odd)) => return Some(Ok(odd)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::list::PaginatedListResult;
    use object_store::{ListResult, ObjectStoreExt};

    use super::*;
    use crate::store::local_stores;

    #[test]
    fn a_walk_tells_the_versions_that_the_store_knows() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("a.jpg"), b"image").expect("write");
        std::os::unix::fs::symlink("a.jpg", folder.path().join("b.jpg")).expect("link");
        let path = folder.path().to_owned();
        let rules =
            Input::find(&stores, folder.path().to_str().expect("UTF-8")).expect("a folder").folder_rules();
        for listed in Walk::new(path, None, rules) {
            let Listed::Found(found) = listed.expect("listed") else { panic!("files are found") };
            let path = folder.path().join(&found.name);
            let location = stores.resolve(path.to_str().expect("UTF-8")).expect("a path");
            let looked_up = stores.head(&location).expect("there");
            assert!(found.version.is_some() && found.version == looked_up.version, "{:?}", found.version);
            assert_eq!(found.size_bytes, looked_up.size_bytes);
        }
    }

    /// A bucket in memory that lists so many keys a page and counts the pages.
    struct FewAPage {
        keys: BTreeSet<String>,
        page_keys: usize,
        pages: Arc<AtomicUsize>,
        /// Whether it begins behind a key if it is told to.
        knows_offsets: bool,
    }

    #[async_trait::async_trait]
    impl PaginatedListStore for FewAPage {
        async fn list_paginated(
            &self,
            prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            self.pages.fetch_add(1, Ordering::Relaxed);
            let prefix = prefix.unwrap_or_default();
            let direct = |key: &str| options.delimiter.is_none() || !key[prefix.len()..].contains('/');
            let offset = options.offset.filter(|_| self.knows_offsets).map(|key| key + "\0");
            let from = options.page_token.or(offset).unwrap_or_default();
            let mut keys = self.keys.range(from..).filter(|key| key.starts_with(prefix) && direct(key));
            let store = object_store::memory::InMemory::new();
            let mut objects = Vec::new();
            for key in keys.by_ref().take(options.max_keys.unwrap_or(usize::MAX).min(self.page_keys)) {
                let location = object_store::path::Path::parse(key)?;
                store.put(&location, vec![0; 1].into()).await?;
                objects.push(store.head(&location).await?);
            }
            let result = ListResult { objects, common_prefixes: Vec::new(), extensions: Default::default() };
            Ok(PaginatedListResult { result, page_token: keys.next().cloned() })
        }
    }

    struct Listing {
        pages: Pages,
        count: Arc<AtomicUsize>,
        _runtime: tokio::runtime::Runtime,
    }

    fn listing(keys: &[&str], page_keys: usize, prefix: &str, base_key: &str, only_direct: bool) -> Listing {
        let (runtime, stores) = local_stores();
        let count = Arc::new(AtomicUsize::new(0));
        let keys = keys.iter().map(|&key| key.to_owned()).collect();
        let store = FewAPage { keys, page_keys, pages: count.clone(), knows_offsets: true };
        let pages = Pages {
            stores,
            store: Arc::new(store),
            uri: "gs://b/".to_owned(),
            prefix: prefix.to_owned(),
            base_key: base_key.to_owned(),
            only_direct,
            page: Vec::new().into_iter(),
            next: Some(Place::default()),
            size: PageSize::Full,
            passed_over: None,
            order: Ascending::default(),
            empty_since: HashSet::new(),
        };
        Listing { pages, count, _runtime: runtime }
    }

    /// Names found, those that cannot be addressed in brackets.
    fn found(pages: impl Iterator<Item = Result<Listed, SourceError>>) -> Vec<String> {
        pages
            .map(|listed| match listed.expect("listed") {
                Listed::Found(found) => found.name,
                Listed::Passed(_, name) => format!("[{name}]"),
                Listed::Named(_) => panic!("a bucket only finds names"),
            })
            .collect()
    }

    /// A store with one answer for each token.
    struct Told(Vec<(Option<&'static str>, &'static [&'static str], &'static str)>);

    #[async_trait::async_trait]
    impl PaginatedListStore for Told {
        async fn list_paginated(
            &self,
            _: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            let token = options.page_token.as_deref();
            let (_, keys, next) = self.0.iter().find(|(of, ..)| *of == token).expect("a page");
            let store = object_store::memory::InMemory::new();
            let mut objects = Vec::new();
            for key in *keys {
                let location = object_store::path::Path::parse(key)?;
                store.put(&location, vec![0; 1].into()).await?;
                objects.push(store.head(&location).await?);
            }
            let result = ListResult { objects, common_prefixes: Vec::new(), extensions: Default::default() };
            Ok(PaginatedListResult { result, page_token: Some((*next).to_owned()) })
        }
    }

    #[test]
    fn a_listing_that_leads_back_ends_with_an_error() {
        for (pages, found_before, expected) in [
            (vec![(None, &["a", "b"][..], "1"), (Some("1"), &["b", "c"], "")], 2, "\"b\" twice"),
            (
                vec![(None, &["a", "b"][..], "1"), (Some("1"), &["c"], "2"), (Some("2"), &["a"], "")],
                3,
                "\"a\" behind",
            ),
            (vec![(None, &["a"][..], "1"), (Some("1"), &["b"], "1")], 2, "\"b\" twice"),
            (vec![(None, &["a"][..], "1"), (Some("1"), &[], "1")], 1, "lead back"),
            (vec![(None, &["a"][..], "1"), (Some("1"), &[], "2"), (Some("2"), &[], "1")], 1, "lead back"),
        ] {
            let mut listed = listing(&[], 1, "", "", false);
            listed.pages.store = Arc::new(Told(pages));
            assert_eq!(found(listed.pages.by_ref().take(found_before)).len(), found_before);
            let error = listed.pages.next().expect("no end").err().expect("refused").to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    const KEYS: [&str; 7] = ["d/a.jpg", "d/b.jpg", "d/x-1.tar", "d/x-2.tar", "d/x-3/c.tar", "e.tar", "f"];

    #[test]
    fn a_bucket_is_listed_page_by_page_as_it_is_asked() {
        let mut all = listing(&KEYS, 2, "", "", false);
        assert!(all.pages.next().is_some());
        assert_eq!(all.count.load(Ordering::Relaxed), 1);
        assert_eq!(found(all.pages), KEYS[1..]);
        assert_eq!(all.count.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_bucket_is_asked_for_the_literal_start_of_a_glob_only() {
        let listed = listing(&KEYS, 2, "d/x-", "d/", true);
        assert_eq!(found(listed.pages), ["x-1.tar", "x-2.tar"]);
        assert_eq!(listed.count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn keys_that_cannot_be_addressed_are_passed_over_and_told() {
        let many: Vec<String> = (0..3000).map(|n| format!("n/{n:04}.jpg")).collect();
        let odd = [
            "a/../x.jpg",
            "a/../y.jpg",
            "m//a.jpg",
            "m//b/c.jpg",
            "n/1500.jpg/./",
            "n/1500.jpg/./z",
            "o\n.jpg",
        ];
        let mut keys: Vec<&str> = many.iter().map(String::as_str).chain(odd).collect();
        keys.push("z.jpg");
        let listed = listing(&keys, 1000, "", "", false);
        let mut expected: Vec<String> = many.clone();
        expected.splice(0..0, ["[a/../]".to_owned(), "[m//]".to_owned()]);
        expected.insert(2 + 1501, "[n/1500.jpg/./]".to_owned());
        expected.extend([r"[o\x0A.jpg]".to_owned(), "z.jpg".to_owned()]);
        assert_eq!(found(listed.pages), expected);
        let pages = listed.count.load(Ordering::Relaxed);
        assert!(pages < 100, "{pages} pages");
    }

    #[test]
    fn a_store_that_does_not_list_from_a_key_on_ends_with_an_error_that_names_the_key() {
        let mut listed = listing(&["a.jpg", "b//x.jpg", "c.jpg"], 1000, "", "", false);
        let keys = ["a.jpg", "b//x.jpg", "c.jpg"].map(str::to_owned).into();
        listed.pages.store =
            Arc::new(FewAPage { keys, page_keys: 1000, pages: listed.count.clone(), knows_offsets: false });
        assert_eq!(found(listed.pages.by_ref().take(2)), ["a.jpg", "[b//]"]);
        let error = listed.pages.next().expect("no end").err().expect("the same key again").to_string();
        assert!(error.contains("b//x.jpg"), "{error}");
    }
}
