//! The keys of a bucket below a prefix, in the order in which the bucket lists them.
//!
//! Input: a bucket and a prefix. Output: one [`ListedKey`] after another. Pages are fetched as they are needed.
//!
//! - One page is held at any time.
//! - A listing whose keys do not ascend is refused ([`Ascending`]): it could list objects twice, or never end.
//! - A key that `object_store` cannot address makes its whole page fail. The page is then requested in ever smaller
//!   pieces, down to that key, which is skipped together with all keys that begin with the same unusable part.

use std::collections::HashSet;
use std::sync::Arc;

use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::{self, Path};

use crate::error::{SourceError, StorageError};

use super::ascending::Ascending;
use super::escape::escaped;
use super::listing_entries::{MendEntries, UNKNOWN_BYTES};
use super::location::{Location, StoreKind};
use super::retry::again;
use super::stores::Stores;
use super::version::version_of;

/// Keys in a full page of every store.
const FULL_PAGE: usize = 1000;

/// The most pages in a row without a key. Stores send such pages where many objects were removed.
const MAX_EMPTY_PAGES: usize = 10_000;

/// One step of a listing.
pub(crate) enum ListedKey {
    Object {
        key: String,
        size_bytes: Option<u64>,
        version: Option<String>,
        /// Whether this is the folder marker `key/`, an empty object, and not the object `key`.
        is_folder_marker: bool,
    },
    /// A key that no request can address, or the unusable part at the start of several keys, [`escaped`].
    Unaddressable(String),
}

/// Keys of a bucket, page by page.
pub(crate) struct KeyPages {
    stores: Stores,
    store: Arc<dyn PaginatedListStore>,
    /// The input, for errors.
    uri: String,
    prefix: String,
    /// Whether only keys without a further slash after the prefix are listed.
    only_direct: bool,
    page: std::vec::IntoIter<ObjectMeta>,
    /// Where the next page begins; `None` after the last.
    next: Option<Place>,
    size: PageSize,
    /// The last key that was skipped. No key up to it is returned again.
    last_skipped: Option<String>,
    order: Ascending,
    /// Tokens since the last page that held a key.
    empty_since: HashSet<String>,
}

/// Where a page begins.
#[derive(Clone, Default)]
struct Place {
    token: Option<String>,
    /// The key after which the page begins, if a key was skipped.
    after: Option<String>,
}

/// Number of keys to request in one page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageSize {
    /// As many as the store gives.
    Full,
    /// Fewer and fewer, until a page of a single key fails.
    Narrowing(usize),
    /// More and more again, since other unusable keys may follow the skipped one.
    Widening(usize),
}

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

impl KeyPages {
    /// List the keys that begin with `prefix` in the bucket of `location`; `None` if the store cannot be listed. `uri`
    /// names the input in errors.
    pub fn new(
        stores: &Stores,
        location: &Location,
        uri: &str,
        prefix: String,
        only_direct: bool,
    ) -> Option<Self> {
        let store = location.pages.clone()?;
        Some(Self::of_store(stores.clone(), store, uri, prefix, only_direct))
    }

    fn of_store(
        stores: Stores,
        store: Arc<dyn PaginatedListStore>,
        uri: &str,
        prefix: String,
        only_direct: bool,
    ) -> Self {
        Self {
            stores,
            store,
            uri: uri.to_owned(),
            prefix,
            only_direct,
            page: Vec::new().into_iter(),
            next: Some(Place::default()),
            size: PageSize::Full,
            last_skipped: None,
            order: Ascending::default(),
            empty_since: HashSet::new(),
        }
    }

    /// Fetch the next page, or find an unaddressable key instead; `None` after the last page.
    fn fetch_page(&mut self) -> Option<Result<Option<ListedKey>, SourceError>> {
        let place = self.next.take()?;
        let mut extensions = http::Extensions::new();
        extensions.insert(MendEntries);
        let options = PaginatedListOptions {
            delimiter: self.only_direct.then_some("/".into()),
            page_token: place.token.clone(),
            offset: place.after.clone(),
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
                self.next = token.map(|token| Place { token: Some(token), after: None });
                self.size = self.size.after_success();
                return Some(Ok(None));
            }
            Err(error) => error,
        };
        let bad = unaddressable_key(&error).map(unusable_start);
        // a store that ignores the offset would return the same key forever
        let Some(bad) = bad.filter(|bad| self.last_skipped.as_ref().is_none_or(|last| last < bad)) else {
            return Some(Err(StorageError { uri: self.uri.clone(), source: error }.into()));
        };
        let keys = self.size.max_keys().unwrap_or(FULL_PAGE);
        if keys > 1 {
            self.size = PageSize::Narrowing(keys / 2);
            self.next = Some(place);
            return Some(Ok(None));
        }
        // the highest character sorts after all keys with the same start
        let after = if bad.ends_with('/') { format!("{bad}{}", char::MAX) } else { bad.clone() };
        self.next = Some(Place { token: None, after: Some(after.clone()) });
        self.size = PageSize::Widening(1);
        self.last_skipped = Some(after);
        Some(Ok(Some(ListedKey::Unaddressable(escaped(bad.as_bytes())))))
    }

    fn refused(&self, what: &str) -> SourceError {
        let message = format!("the store's listing cannot be used: {what}");
        SourceError::Uri { uri: self.uri.clone(), message }
    }
}

impl Iterator for KeyPages {
    type Item = Result<ListedKey, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for meta in self.page.by_ref() {
                let key = meta.location.as_ref();
                if self.last_skipped.as_ref().is_some_and(|last| key <= last.as_str()) {
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
                return Some(Ok(ListedKey::Object {
                    key: key.to_owned(),
                    size_bytes: (meta.size != UNKNOWN_BYTES).then_some(meta.size),
                    version: version_of(StoreKind::Bucket, &meta),
                    is_folder_marker,
                }));
            }
            match self.fetch_page()? {
                Ok(None) => {}
                Ok(Some(unaddressable)) => return Some(Ok(unaddressable)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The key that made a page fail.
fn unaddressable_key(error: &object_store::Error) -> Option<&str> {
    match error {
        object_store::Error::InvalidPath {
            source: path::Error::EmptySegment { path } | path::Error::BadSegment { path, .. },
        } => Some(path),
        _ => None,
    }
}

/// The start of an unaddressable `key`, up to a slash, that makes all keys with this start unaddressable; else the key.
fn unusable_start(key: &str) -> String {
    let folders = key.match_indices('/').map(|(slash, _)| &key[..=slash]);
    let bad = folders.into_iter().find(|folder| Path::parse(folder).is_err());
    bad.unwrap_or(key).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::list::PaginatedListResult;
    use object_store::{ListResult, ObjectStoreExt};

    use super::super::stores::tests::local_stores;
    use super::*;

    /// A bucket in memory that lists `page_keys` keys a page and counts the pages.
    struct FewAPage {
        keys: BTreeSet<String>,
        page_keys: usize,
        pages: Arc<AtomicUsize>,
        /// Whether the bucket applies offsets.
        applies_offsets: bool,
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
            let offset = options.offset.filter(|_| self.applies_offsets).map(|key| key + "\0");
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
        pages: KeyPages,
        count: Arc<AtomicUsize>,
        _runtime: tokio::runtime::Runtime,
    }

    fn listing(keys: &[&str], page_keys: usize, prefix: &str, only_direct: bool) -> Listing {
        let (runtime, stores) = local_stores();
        let count = Arc::new(AtomicUsize::new(0));
        let keys = keys.iter().map(|&key| key.to_owned()).collect();
        let store = FewAPage { keys, page_keys, pages: count.clone(), applies_offsets: true };
        let pages = KeyPages::of_store(stores, Arc::new(store), "gs://b/", prefix.to_owned(), only_direct);
        Listing { pages, count, _runtime: runtime }
    }

    /// Keys found, with unaddressable ones in brackets.
    fn found(pages: impl Iterator<Item = Result<ListedKey, SourceError>>) -> Vec<String> {
        pages
            .map(|listed| match listed.expect("listed") {
                ListedKey::Object { key, .. } => key,
                ListedKey::Unaddressable(key) => format!("[{key}]"),
            })
            .collect()
    }

    /// A store with one answer for each token.
    struct Scripted(Vec<(Option<&'static str>, &'static [&'static str], &'static str)>);

    #[async_trait::async_trait]
    impl PaginatedListStore for Scripted {
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
    fn a_listing_whose_pages_form_a_loop_ends_with_an_error() {
        for (pages, found_before, expected) in [
            (vec![(None, &["a", "b"][..], "1"), (Some("1"), &["b", "c"], "")], 2, "\"b\" twice"),
            (
                vec![(None, &["a", "b"][..], "1"), (Some("1"), &["c"], "2"), (Some("2"), &["a"], "")],
                3,
                "\"a\" after",
            ),
            (vec![(None, &["a"][..], "1"), (Some("1"), &["b"], "1")], 2, "\"b\" twice"),
            (vec![(None, &["a"][..], "1"), (Some("1"), &[], "1")], 1, "lead back"),
            (vec![(None, &["a"][..], "1"), (Some("1"), &[], "2"), (Some("2"), &[], "1")], 1, "lead back"),
        ] {
            let mut listed = listing(&[], 1, "", false);
            listed.pages.store = Arc::new(Scripted(pages));
            assert_eq!(found(listed.pages.by_ref().take(found_before)).len(), found_before);
            let error = listed.pages.next().expect("no end").err().expect("refused").to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    const KEYS: [&str; 7] = ["d/a.jpg", "d/b.jpg", "d/x-1.tar", "d/x-2.tar", "d/x-3/c.tar", "e.tar", "f"];

    #[test]
    fn pages_are_fetched_as_they_are_needed() {
        let mut all = listing(&KEYS, 2, "", false);
        assert!(all.pages.next().is_some());
        assert_eq!(all.count.load(Ordering::Relaxed), 1);
        assert_eq!(found(all.pages), KEYS[1..]);
        assert_eq!(all.count.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn only_keys_below_the_prefix_are_requested() {
        let listed = listing(&KEYS, 2, "d/x-", true);
        assert_eq!(found(listed.pages), ["d/x-1.tar", "d/x-2.tar"]);
        assert_eq!(listed.count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn unaddressable_keys_are_skipped_and_reported() {
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
        let listed = listing(&keys, 1000, "", false);
        let mut expected: Vec<String> = many.clone();
        expected.splice(0..0, ["[a/../]".to_owned(), "[m//]".to_owned()]);
        expected.insert(2 + 1501, "[n/1500.jpg/./]".to_owned());
        expected.extend([r"[o\x0A.jpg]".to_owned(), "z.jpg".to_owned()]);
        assert_eq!(found(listed.pages), expected);
        let pages = listed.count.load(Ordering::Relaxed);
        assert!(pages < 100, "{pages} pages");
    }

    #[test]
    fn a_store_that_ignores_offsets_ends_with_an_error_that_names_the_key() {
        let mut listed = listing(&["a.jpg", "b//x.jpg", "c.jpg"], 1000, "", false);
        let keys = ["a.jpg", "b//x.jpg", "c.jpg"].map(str::to_owned).into();
        listed.pages.store =
            Arc::new(FewAPage { keys, page_keys: 1000, pages: listed.count.clone(), applies_offsets: false });
        assert_eq!(found(listed.pages.by_ref().take(2)), ["a.jpg", "[b//]"]);
        let error = listed.pages.next().expect("no end").err().expect("the same key again").to_string();
        assert!(error.contains("b//x.jpg"), "{error}");
    }
}
