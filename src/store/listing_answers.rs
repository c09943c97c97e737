//! Verifies the answer to a listing before `object_store` reads it.
//!
//! `object_store` takes the elements that it recognises from any XML. An error, or a document of another kind, has no
//! keys and no token, so it would end the listing like a last page: keys would be lost silently.
//!
//! - The root element is that of a listing, and it is closed.
//! - A truncated page of S3 has the token of the next page.
//! - A page holds no more keys than were requested; otherwise the key that made a page fail could not be found.
//! - Invalid dates and sizes are replaced in the listing of an input ([`super::listing_entries`]).

use bytes::Bytes;
use http::Uri;
use object_store::client::{HttpError, HttpErrorKind, HttpResponse};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::error_bodies::words;
use super::listing_entries::{Mending, OF_AZURE, OF_S3};

/// Longest name of an element in a message, characters.
const MAX_NAME_CHARS: usize = 40;

/// A request for a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listing {
    api: Api,
    max_keys: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    /// The API of S3, which Google also implements.
    S3,
    Azure,
}

/// Why an answer is not a page of a listing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum WrongPage {
    #[error("the server's listing is an error: {0}")]
    Error(String),
    #[error("the server's answer is not a listing: its root element is {found:?} instead of {expected}")]
    OtherRoot { found: String, expected: &'static str },
    #[error("the server's answer is not a listing: it is not XML, or cut short")]
    NoXml,
    #[error("the server's listing continues but does not say where")]
    NoToken,
    #[error("the server's listing holds {found} names in a page for which {max_keys} were requested")]
    TooMany { found: usize, max_keys: usize },
}

impl Listing {
    /// The listing that a GET of `uri` requests; `None` if it requests something else.
    pub fn of(uri: &Uri) -> Option<Self> {
        let pairs = || uri.query().unwrap_or_default().split('&');
        let api = pairs().find_map(|pair| match pair {
            "comp=list" => Some(Api::Azure),
            _ => pair.starts_with("list-type=").then_some(Api::S3),
        })?;
        let name = if api == Api::Azure { "maxresults=" } else { "max-keys=" };
        let max_keys = pairs().find_map(|pair| pair.strip_prefix(name)?.parse().ok());
        Some(Self { api, max_keys })
    }

    /// A successful `response` if it is a page of the listing, with its entries mended if requested.
    ///
    /// # Errors
    /// A temporary failure ([`HttpErrorKind::Interrupted`]) if the page is an error: a server cannot change the status
    /// after it has begun to answer. [`HttpErrorKind::Decode`] for any other wrong page, or the error that ended the
    /// answer.
    pub async fn checked(
        self,
        response: HttpResponse,
        is_to_be_mended: bool,
    ) -> Result<HttpResponse, HttpError> {
        let (head, body) = response.into_parts();
        let body = body.bytes().await?;
        match self.check(&body) {
            Ok(mending) if is_to_be_mended => Ok(HttpResponse::from_parts(head, mending.mended(body).into())),
            Ok(_) => Ok(HttpResponse::from_parts(head, body.into())),
            Err(error @ WrongPage::Error(_)) => Err(HttpError::new(HttpErrorKind::Interrupted, error)),
            Err(error) => Err(HttpError::new(HttpErrorKind::Decode, error)),
        }
    }

    /// Verify a page. Returns the edits that mend it.
    fn check(self, body: &Bytes) -> Result<Mending, WrongPage> {
        let mut reader = Reader::from_reader(&body[..]);
        let mut page = Page::default();
        let mut mending = Mending::new(if self.api == Api::Azure { OF_AZURE } else { OF_S3 });
        let mut path: Vec<String> = Vec::new();
        let at = |reader: &Reader<_>| reader.buffer_position() as usize;
        loop {
            let before = at(&reader);
            match reader.read_event().map_err(|_| WrongPage::NoXml)? {
                Event::Start(start) => {
                    self.enter(&mut page, &mut path, &start, body)?;
                    mending.begins(&path, at(&reader));
                }
                Event::Empty(start) => {
                    self.enter(&mut page, &mut path, &start, body)?;
                    mending.empty(&path, before..at(&reader));
                    path.pop();
                }
                Event::End(_) => {
                    mending.ends(&path, before);
                    path.pop();
                }
                Event::Text(text) => {
                    page.text(&path, &text);
                    mending.text(&text);
                }
                Event::CData(text) => {
                    page.text(&path, &text);
                    mending.text(&text);
                }
                Event::GeneralRef(text) => {
                    page.text(&path, &text);
                    mending.text(&text);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if !page.has_root || !path.is_empty() {
            return Err(WrongPage::NoXml);
        }
        let is_last = matches!(page.truncated.trim_ascii(), b"" | b"false" | b"0");
        if !is_last && page.token.is_empty() {
            return Err(WrongPage::NoToken);
        }
        match self.max_keys {
            Some(max_keys) if page.names > max_keys => {
                Err(WrongPage::TooMany { found: page.names, max_keys })
            }
            _ => Ok(mending),
        }
    }

    /// Enter an element inside those of `path`.
    fn enter(
        self,
        page: &mut Page,
        path: &mut Vec<String>,
        start: &BytesStart<'_>,
        body: &Bytes,
    ) -> Result<(), WrongPage> {
        let name = String::from_utf8_lossy(start.local_name().into_inner()).into_owned();
        if path.is_empty() {
            let expected = match self.api {
                Api::S3 => "ListBucketResult",
                Api::Azure => "EnumerationResults",
            };
            if name == "Error" {
                return Err(WrongPage::Error(words(&String::from_utf8_lossy(body))));
            }
            if name != expected {
                let found = name.chars().take(MAX_NAME_CHARS).collect();
                return Err(WrongPage::OtherRoot { found, expected });
            }
            page.has_root = true;
        }
        let is_name = match (self.api, &path[..]) {
            (Api::S3, [_]) => matches!(&name[..], "Contents" | "CommonPrefixes"),
            (Api::Azure, [_, blobs]) => blobs == "Blobs" && matches!(&name[..], "Blob" | "BlobPrefix"),
            _ => false,
        };
        page.names += usize::from(is_name);
        path.push(name);
        Ok(())
    }
}

/// The parts of a page that describe the page itself.
#[derive(Default)]
struct Page {
    has_root: bool,
    names: usize,
    /// Whether more pages follow, as written.
    truncated: Vec<u8>,
    token: Vec<u8>,
}

impl Page {
    fn text(&mut self, path: &[String], text: &[u8]) {
        let [_, name] = path else { return };
        match &name[..] {
            "IsTruncated" => self.truncated.extend_from_slice(text),
            "NextContinuationToken" => self.token.extend_from_slice(text),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mended page.
    fn mended(query: &str, body: &str) -> Result<String, WrongPage> {
        let uri = format!("http://h/b?{query}").parse().expect("an address");
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mended = Listing::of(&uri).expect("a listing").check(&body)?.mended(body);
        Ok(String::from_utf8(mended.to_vec()).expect("UTF-8"))
    }

    fn check(query: &str, body: &str) -> Result<(), WrongPage> {
        mended(query, body).map(drop)
    }

    fn s3(within: &str) -> String {
        format!("<?xml version='1.0'?>\n<ListBucketResult xmlns='http://x/'>{within}</ListBucketResult>\n")
    }

    const KEYS: &str = "<Contents><Key>a</Key></Contents><Contents><Key>b</Key></Contents>\
                        <CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>";

    #[test]
    fn listings_are_recognised_by_their_address() {
        let of = |uri: &'static str| Listing::of(&Uri::from_static(uri));
        assert_eq!(
            of("http://h/b?list-type=2&max-keys=7"),
            Some(Listing { api: Api::S3, max_keys: Some(7) })
        );
        assert_eq!(
            of("http://h/b?restype=container&comp=list&maxresults=1"),
            Some(Listing { api: Api::Azure, max_keys: Some(1) })
        );
        assert_eq!(of("http://h/b?comp=blocklist"), None);
        assert_eq!(of("http://h/b"), None);
    }

    #[test]
    fn valid_pages_are_accepted() {
        for within in [
            String::new(),
            KEYS.to_owned(),
            format!("<IsTruncated>false</IsTruncated>{KEYS}"),
            "<IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>"
                .to_owned(),
            "<IsTruncated>true</IsTruncated><NextContinuationToken>&lt;</NextContinuationToken>".to_owned(),
            // an element of a key, not of the page
            "<Contents><IsTruncated>true</IsTruncated></Contents>".to_owned(),
        ] {
            assert_eq!(check("list-type=2", &s3(&within)), Ok(()), "{within}");
        }
        assert_eq!(check("list-type=2&max-keys=3", &s3(KEYS)), Ok(()));
        let azure = "<EnumerationResults><Blobs><Blob><Name>a</Name></Blob></Blobs><NextMarker/></EnumerationResults>";
        assert_eq!(check("comp=list&maxresults=1", azure), Ok(()));
        assert_eq!(check("list-type=2", "<ListBucketResult/>"), Ok(()));
    }

    #[test]
    fn only_invalid_dates_and_sizes_are_mended() {
        let (date, size) = ("<LastModified>2026-11-23T00:00:00.000Z</LastModified>", "<Size>12</Size>");
        let (no_date, no_size) =
            ("<LastModified>1970-01-01T00:00:00Z</LastModified>", "<Size>18446744073709551615</Size>");
        for (of_one, expected) in [
            (format!("{date}{size}"), format!("{date}{size}")),
            (format!("<LastModified>yesterday</LastModified>{size}"), format!("{no_date}{size}")),
            (format!("<LastModified/>{size}"), format!("{no_date}{size}")),
            (
                format!("<LastModified>2026-11-23T00:00:00&#90;</LastModified>{size}"),
                format!("{no_date}{size}"),
            ),
            (size.to_owned(), format!("{size}{no_date}")),
            (date.to_owned(), format!("{date}{no_size}")),
            (format!("{date}<Size></Size>"), format!("{date}{no_size}")),
            (format!("<Size>-1</Size>{date}"), format!("{no_size}{date}")),
            (format!("{date}<Size>99999999999999999999</Size>"), format!("{date}{no_size}")),
            (String::new(), format!("{no_date}{no_size}")),
        ] {
            let page = |of_one: &str| {
                let key = |name: &str, rest: &str| format!("<Contents><Key>{name}</Key>{rest}</Contents>\n");
                let sound = format!("<Size>1</Size>{date}");
                s3(&(key("a&amp;b", &sound) + &key("b", of_one) + &key("c", &sound) + "<Size>?</Size>"))
            };
            assert_eq!(mended("list-type=2", &page(&of_one)), Ok(page(&expected)), "{of_one}");
        }
        let azure = |properties: &str| {
            format!(
                "<EnumerationResults><Blobs><Blob><Name>a</Name><Properties>{properties}</Properties></Blob></Blobs>\
                 </EnumerationResults>"
            )
        };
        let date = "<Last-Modified>Mon, 23 Nov 2026 00:00:00 GMT</Last-Modified>";
        let sound = azure(&format!("{date}<Content-Length>1</Content-Length>"));
        assert_eq!(mended("comp=list", &sound), Ok(sound.clone()));
        let expected = "<Last-Modified>Thu, 01 Jan 1970 00:00:00 GMT</Last-Modified>\
                        <Content-Length>18446744073709551615</Content-Length>";
        let odd = azure("<Last-Modified>2026</Last-Modified><Content-Length/>");
        assert_eq!(mended("comp=list", &odd), Ok(azure(expected)));
    }

    #[test]
    fn an_answer_that_is_not_a_page_is_refused() {
        let no_token = s3("<IsTruncated>true</IsTruncated>");
        let empty_token =
            s3("<NextContinuationToken></NextContinuationToken><IsTruncated>true</IsTruncated>");
        let error = "<?xml version='1.0'?><Error><Code>InternalError</Code><Message>try again</Message>\
                     <RequestId>secret</RequestId></Error>";
        let azure = "<EnumerationResults><Blobs><Blob/><BlobPrefix/></Blobs></EnumerationResults>";
        for (query, body, expected) in [
            ("list-type=2", error, "InternalError: try again"),
            ("comp=list", error, "InternalError: try again"),
            ("list-type=2", "<html><body>login</body></html>", "\"html\" instead of ListBucketResult"),
            ("list-type=2", "<!DOCTYPE html><html><br></html>", "\"html\" instead of ListBucketResult"),
            ("list-type=2", "<Foo/>", "\"Foo\" instead of ListBucketResult"),
            ("list-type=2", azure, "\"EnumerationResults\" instead of ListBucketResult"),
            ("comp=list", "<Foo><Blobs/></Foo>", "\"Foo\" instead of EnumerationResults"),
            ("list-type=2", "", "not XML"),
            ("list-type=2", "{\"items\": []}", "not XML"),
            ("list-type=2", "<ListBucketResult><Contents>", "cut short"),
            ("list-type=2", "<ListBucketResult><IsTrunc", "cut short"),
            ("list-type=2", &no_token, "does not say where"),
            ("list-type=2", &empty_token, "does not say where"),
            ("list-type=2&max-keys=2", &s3(KEYS), "3 names in a page for which 2"),
            ("comp=list&maxresults=1", azure, "2 names in a page for which 1"),
        ] {
            let message = check(query, body).expect_err(body).to_string();
            assert!(message.contains(expected) && !message.contains("secret"), "{body}: {message}");
        }
    }
}
