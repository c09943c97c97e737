//! Web servers as object stores: `HttpStore`, also for addresses that no path of an object store can hold.
//!
//! - `object_store` builds addresses from paths. A path has no query, `%2F` in it becomes a slash, and `%2B` a plus
//!   sign. An address with any of these becomes a path of one segment: a mark, then the address as written.
//! - Such a path can only be read; it is never a folder.

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use http::uri::PathAndQuery;
use object_store::http::HttpStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::{Position, Url};

use super::escape::unaddressable;

/// Begins a path that holds an address as written. Names do not contain private-use characters.
const MARK: char = '\u{e000}';

/// Codes that a path loses: `object_store` decodes them and encodes them differently.
const LOST: [&str; 4] = ["%2f", "%2b", "%3b", "%ee%80%80"];

/// The path that represents `url`, or the reason why none can.
pub(super) fn path_of(url: &Url) -> std::result::Result<Path, String> {
    let name = url.path().to_ascii_lowercase();
    if url.query().is_none() && !LOST.iter().any(|code| name.contains(code)) {
        return Path::from_url_path(url.path()).map_err(|error| unaddressable(&error));
    }
    let written = &url[Position::BeforePath..Position::AfterQuery];
    written.parse::<PathAndQuery>().map_err(|error| format!("cannot be asked for: {error}"))?;
    let segment = format!("{MARK}{}", written.replace('%', "%25").replace('/', "%2F"));
    Path::parse(segment).map_err(|error| unaddressable(&error))
}

/// Marks a request that is sent to this address instead of its path.
#[derive(Debug, Clone)]
pub(super) struct AsWritten(pub PathAndQuery);

/// The address that `path` holds as written, if it holds one.
fn as_written(path: &Path) -> Option<AsWritten> {
    let written = path.as_ref().strip_prefix(MARK)?.replace("%2F", "/").replace("%25", "%");
    written.parse().ok().map(AsWritten)
}

/// Whether `path` holds an address as written, which can only be read.
pub(super) fn is_as_written(path: &Path) -> bool {
    path.as_ref().starts_with(MARK)
}

/// One web server.
#[derive(Debug)]
pub(super) struct WebServer(pub HttpStore);

impl fmt::Display for WebServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for WebServer {
    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        let Some(written) = as_written(location) else { return self.0.get_opts(location, options).await };
        // messages of `object_store` name this path, without the query
        let shown = Path::from_url_path(written.0.path()).unwrap_or_default();
        options.extensions.insert(written);
        self.0.get_opts(&shown, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(url: &str) -> Path {
        path_of(&Url::parse(url).expect(url)).expect(url)
    }

    #[test]
    fn an_address_that_a_path_would_change_is_kept_as_written() {
        for written in [
            "/a.jpg?",
            "/a.jpg?x=1&y=%2F/z//%25",
            "/?id=5",
            "/a%2Fb.jpg",
            "/a%2bb%20c.jpg",
            "/a.jpg?X-Amz-Credential=A%2F2026%2Fs3&X-Amz-Signature=0f",
            "/%EE%80%80a.jpg",
        ] {
            let kept = as_written(&path(&format!("https://h{written}"))).expect(written);
            assert_eq!(kept.0.as_str(), written);
        }
    }

    #[test]
    fn every_other_address_becomes_its_path() {
        for (url, expected) in [("https://h/a%20b.jpg", "a b.jpg"), ("https://h/a%3Fb.jpg", "a?b.jpg")] {
            assert_eq!(path(url).as_ref(), expected);
            assert!(!is_as_written(&path(url)));
        }
    }
}
