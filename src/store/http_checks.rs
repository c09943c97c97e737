//! Checks and bounds every request to a server and every answer.
//!
//! - The bytes of a whole answer are compared with Google's checksum. The checksum of an object of which a range was
//!   requested is passed on ([`ObjectCrc32c`]) to the reader of all ranges.
//! - A request that creates an object if it is absent is repeated if its answer was lost; the repetition finds the
//!   object that the first request created. `object_store` repeats only the methods that HTTP calls safe.
//! - No more of an answer is read than its length, and no more of an error than its message.
//! - An invalid modification date is dropped.
//! - A page of a listing is verified ([`Listing`]), and an invalid entry does not spoil the listing of an input.
//! - An object arrives as it is stored: without `Accept-Encoding: gzip`, Google decompresses what `gsutil -z`
//!   compressed and sends it without a length.
//! - A web server without listings is distinguished from one that fails at the moment, and from an empty folder
//!   ([`NoListing`]).
//! - Requests to a server that has never answered are given up early ([`NoAnswer`]), and so are those to a web server
//!   that has failed for long ([`Outage`]).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body::{Body, Frame};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

use crate::error::{NoAnswer, NoListing, WrongChecksum};
use crate::flow::lock;

use super::answer_length::{ObjectRead, bounded, limited_text};
use super::error_bodies::reduced;
use super::listing_answers::Listing;
use super::listing_entries::MendEntries;
use super::outage::{GivenUp, Outage, SingleTry};
use super::web::AsWritten;

/// Checksum of a whole object (CRC-32C, Castagnoli), as its store states it in the answer to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObjectCrc32c(pub u32);

/// Makes clients that check requests and answers. A store has one for its objects, and another one for its credentials
/// if they come from a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckedConnector {
    /// How long requests to a server that has never answered are repeated.
    pub first_answer_within: Duration,
    /// How long a server may fail before each further request is made only once; `None` for no limit.
    pub give_up_after: Option<Duration>,
    /// The `Accept-Encoding` of requests for objects; `None` for stores that send objects as stored, and whose requests
    /// are signed.
    pub accept_encoding: Option<&'static str>,
}

impl HttpConnector for CheckedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Checked::new(ReqwestConnector::default().connect(options)?, *self)))
    }
}

#[derive(Debug)]
struct Checked {
    inner: HttpClient,
    connector: CheckedConnector,
    has_answered: AtomicBool,
    /// When a request first failed to reach the server.
    unreached_since: OnceLock<Instant>,
    outage: Outage,
    /// Objects whose complete answer had another checksum.
    wrong: WrongAnswers,
}

/// The key is path and query of the request.
type WrongAnswers = Arc<Mutex<HashMap<String, WrongChecksum>>>;

/// Limit of the remembered objects, far above the number that is read at once. At the limit all are forgotten.
const MAX_WRONG_ANSWERS: usize = 256;

impl Checked {
    fn new(inner: HttpClient, connector: CheckedConnector) -> Self {
        let (has_answered, unreached_since) = (AtomicBool::new(false), OnceLock::new());
        let outage = Outage::new(connector.give_up_after);
        Self { inner, connector, has_answered, unreached_since, outage, wrong: WrongAnswers::default() }
    }

    /// `error`, or one that is not repeated if the server has failed for too long.
    fn given_up(&self, error: HttpError) -> HttpError {
        let is_temporary = matches!(
            error.kind(),
            HttpErrorKind::Connect
                | HttpErrorKind::Request
                | HttpErrorKind::Timeout
                | HttpErrorKind::Interrupted
        );
        match is_temporary.then(|| self.outage.failed_at(Instant::now())).flatten() {
            Some(lasting) => {
                let error = GivenUp { seconds: lasting.as_secs(), last: error.to_string() };
                HttpError::new(HttpErrorKind::Unknown, error)
            }
            None => error,
        }
    }

    /// `source`, or an error that `object_store` does not repeat if the server could not be reached for too long.
    fn no_answer(&self, uri: &Uri, source: HttpError) -> HttpError {
        let is_unreached = matches!(source.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout);
        if !is_unreached || self.has_answered.load(Relaxed) {
            return source;
        }
        match self.unreached_since.get() {
            Some(since) if since.elapsed() >= self.connector.first_answer_within => {
                let host = uri.host().unwrap_or_default().to_owned();
                let error = NoAnswer { host, advice: credentials_advice(uri.path()), source };
                HttpError::new(HttpErrorKind::Unknown, error)
            }
            Some(_) => source,
            None => {
                self.unreached_since.get_or_init(Instant::now);
                source
            }
        }
    }
}

#[async_trait::async_trait]
impl HttpService for Checked {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(AsWritten(written)) = request.extensions().get().cloned() {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(written);
            *request.uri_mut() =
                Uri::from_parts(parts).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        }
        let read = request.extensions().get::<ObjectRead>().copied();
        let is_single_try = request.extensions().get::<SingleTry>().is_some();
        let is_to_be_mended = request.extensions().get::<MendEntries>().is_some();
        if let Some(encoding) = self.connector.accept_encoding.filter(|_| read.is_some()) {
            request.headers_mut().insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        }
        let (is_get, may_repeat) = (request.method() == Method::GET, is_repeatable(&request));
        let lists_folder = request.method().as_str() == "PROPFIND";
        let uri = request.uri().clone();
        if is_get && requests_nothing(request.headers()) {
            // the entry stays: others may be reading the same object
            let wrong = lock(&self.wrong).get(&address(&uri)).copied();
            let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(match wrong {
                Some(wrong) => HttpError::new(HttpErrorKind::Decode, wrong),
                None => HttpError::new(HttpErrorKind::Decode, broken()),
            });
        }
        let requests_all = is_get && !request.headers().contains_key(http::header::RANGE);
        let answer = self.inner.execute(request).await.map_err(|error| self.no_answer(&uri, error));
        let answer = answer.map_err(|error| self.given_up(error));
        let mut response = answer.map_err(|error| match error.kind() {
            HttpErrorKind::Timeout | HttpErrorKind::Interrupted | HttpErrorKind::Unknown
                if may_repeat && !is_no_answer(&error) =>
            {
                HttpError::new(HttpErrorKind::Request, error)
            }
            _ if is_single_try => HttpError::new(HttpErrorKind::Unknown, error),
            _ => error,
        })?;
        self.has_answered.store(true, Relaxed);
        let status = response.status();
        if is_single_try && is_temporary(status) {
            let error = std::io::Error::other(status.to_string());
            return Err(HttpError::new(HttpErrorKind::Unknown, error));
        }
        if lists_folder && is_unknown_method(status) {
            // `object_store` would repeat the request, or take the answer for an empty folder
            return Err(HttpError::new(HttpErrorKind::Unknown, NoListing { status }));
        }
        if is_temporary(status) {
            if let Some(lasting) = self.outage.failed_at(Instant::now()) {
                let error = GivenUp { seconds: lasting.as_secs(), last: status.to_string() };
                return Err(HttpError::new(HttpErrorKind::Unknown, error));
            }
        } else {
            self.outage.ended();
        }
        if status.is_client_error() || status.is_server_error() {
            let (head, body) = response.into_parts();
            let text = reduced(body).await + credentials_advice(uri.path());
            return Ok(HttpResponse::from_parts(head, text.into()));
        }
        if response.headers().get(http::header::LAST_MODIFIED).is_some_and(|date| !is_date(date)) {
            response.headers_mut().remove(http::header::LAST_MODIFIED);
        }
        if is_get && let Some(expected) = stored_crc32c(response.headers()) {
            response.extensions_mut().insert(ObjectCrc32c(expected));
            if status == StatusCode::OK {
                let wrong = Arc::clone(&self.wrong);
                let object = address(&uri);
                let body = |inner| CheckedBody { inner, found: 0, expected, object, wrong, ended: false };
                response = response.map(|inner| HttpResponseBody::new(body(inner)));
            }
        }
        if !is_get {
            return Ok(limited_text(response));
        }
        if requests_all && status == StatusCode::PARTIAL_CONTENT {
            let part = std::io::Error::other("its server sent a part of it where all of it was asked for");
            return Err(HttpError::new(HttpErrorKind::Decode, part));
        }
        let listing = Listing::of(&uri).filter(|_| read.is_none());
        let response = bounded(response, read, listing.is_some()).await?;
        match listing {
            Some(listing) if status.is_success() => listing.checked(response, is_to_be_mended).await,
            _ => Ok(response),
        }
    }
}

/// Path and query.
fn address(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(String::new, ToString::to_string)
}

/// Whether `object_store` can parse the date: it refuses an object with an invalid date, but not one without.
fn is_date(header: &HeaderValue) -> bool {
    header.to_str().is_ok_and(|date| chrono::DateTime::parse_from_rfc2822(date).is_ok())
}

/// Whether `object_store` repeats a request for this answer.
fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Whether servers answer an unknown method with this status.
fn is_unknown_method(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

fn is_no_answer(error: &HttpError) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<NoAnswer>())
}

/// Advice about a credentials server that failed, which the path of the request identifies.
fn credentials_advice(path: &str) -> &'static str {
    if path.starts_with("/computeMetadata/") {
        "; outside Google Cloud, set GOOGLE_APPLICATION_CREDENTIALS to the path of a key file"
    } else if path.starts_with("/latest/api/token") || path.starts_with("/latest/meta-data/") {
        "; outside AWS, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    } else if path.starts_with("/metadata/identity/") {
        "; outside Azure, set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or the variables of a \
         service principal"
    } else {
        ""
    }
}

/// Whether the range begins after its end. `object_store` requests such a range to resume an answer that was complete
/// but ended with an error.
fn requests_nothing(headers: &HeaderMap) -> bool {
    let range = headers.get(http::header::RANGE).and_then(|range| range.to_str().ok());
    let bounds = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let number = |text: &str| text.parse::<u64>().ok();
    bounds.and_then(|(first, last)| Some(number(first)? > number(last)?)).unwrap_or(false)
}

/// Whether the request can be repeated safely: it creates an object only if it is absent, begins an upload, or deletes.
fn is_repeatable(request: &HttpRequest) -> bool {
    let is = |name: &str, value: &str| request.headers().get(name).is_some_and(|found| found == value);
    let query = request.uri().query().unwrap_or_default();
    let begins_upload = query.split('&').any(|pair| matches!(pair, "uploads" | "uploads="));
    match *request.method() {
        Method::PUT => is("x-goog-if-generation-match", "0") || is("if-none-match", "*"),
        Method::POST => begins_upload,
        Method::DELETE => true,
        _ => false,
    }
}

/// The checksum of the stored object; `None` if the server decompressed the answer.
fn stored_crc32c(headers: &HeaderMap) -> Option<u32> {
    let stored = headers.get("x-goog-stored-content-encoding").filter(|encoding| *encoding != "identity");
    if stored != headers.get(http::header::CONTENT_ENCODING) {
        return None;
    }
    let hashes = headers.get_all("x-goog-hash").into_iter().filter_map(|value| value.to_str().ok());
    let crc32c =
        hashes.flat_map(|value| value.split(',')).find_map(|hash| hash.trim().strip_prefix("crc32c="))?;
    big_endian_of_base64(crc32c)
}

/// Four bytes in base64 (RFC 4648): six significant digits and padding.
fn big_endian_of_base64(text: &str) -> Option<u32> {
    let digits = text.strip_suffix("==").filter(|digits| digits.len() == 6)?;
    let mut bits = 0_u64;
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(value);
    }
    // of the 36 bits, the last four are padding
    u32::try_from(bits >> 4).ok()
}

/// The body of an answer; it ends with an error if its checksum does not match.
struct CheckedBody {
    inner: HttpResponseBody,
    found: u32,
    expected: u32,
    /// The object's key in `wrong`.
    object: String,
    wrong: WrongAnswers,
    ended: bool,
}

impl Body for CheckedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.found = crc32c::crc32c_append(self.found, data);
        }
        if frame.is_none() && !self.ended && self.found != self.expected {
            self.ended = true;
            let error = WrongChecksum { found: self.found, expected: self.expected };
            let mut wrong = lock(&self.wrong);
            if wrong.len() >= MAX_WRONG_ANSWERS {
                wrong.clear();
            }
            wrong.insert(self.object.clone(), error);
            return Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Decode, error))));
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn googles_checksum_is_read_from_its_headers() {
        // CRC-32C of "123456789", the check value of the catalogue of parametrised CRC algorithms
        let crc = ("x-goog-hash", "crc32c=4waSgw==");
        assert_eq!(stored_crc32c(&headers(&[crc])), Some(0xe306_9283));
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let md5 = ("x-goog-hash", "md5=JfnnlDI7RTiF9RgfG2JNCw==");
        assert_eq!(stored_crc32c(&headers(&[md5, crc])), Some(0xe306_9283));
        assert_eq!(stored_crc32c(&headers(&[md5])), None);
        let stored = ("x-goog-stored-content-encoding", "gzip");
        assert_eq!(stored_crc32c(&headers(&[crc, stored])), None);
        assert_eq!(stored_crc32c(&headers(&[crc, stored, ("content-encoding", "gzip")])), Some(0xe306_9283));
        assert_eq!(stored_crc32c(&headers(&[("x-goog-hash", "crc32c=AAAA")])), None);
    }

    /// A server with prepared answers.
    #[derive(Debug)]
    struct Scripted(Mutex<Vec<Result<HttpResponse, HttpError>>>);

    #[async_trait::async_trait]
    impl HttpService for Scripted {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.0.lock().expect("no test has panicked").remove(0)
        }
    }

    fn checked(answers: Vec<Result<HttpResponse, HttpError>>) -> Checked {
        let inner = HttpClient::new(Scripted(Mutex::new(answers)));
        let connector = CheckedConnector {
            first_answer_within: Duration::ZERO,
            give_up_after: Some(Duration::from_secs(60)),
            accept_encoding: None,
        };
        Checked::new(inner, connector)
    }

    fn get(url: &str) -> HttpRequest {
        let empty = object_store::client::HttpRequestBody::empty();
        http::Request::get(url).body(empty).expect("a request")
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    #[test]
    fn an_unrequested_part_is_not_an_object() {
        let part = || {
            let body = Bytes::from("part").into();
            Ok(http::Response::builder()
                .status(206)
                .header("Content-Range", "bytes 0-3/9")
                .body(body)
                .expect("one"))
        };
        let server = checked(vec![part(), part()]);
        let error = wait(server.call(get("http://h/a"))).expect_err("a part");
        assert!(format!("{error:?}").contains("a part of it"), "{error:?}");
        let mut of_range = get("http://h/a");
        of_range.headers_mut().insert(http::header::RANGE, HeaderValue::from_static("bytes=0-3"));
        assert_eq!(wait(server.call(of_range)).expect("a part").status(), 206);
    }

    #[test]
    fn only_a_server_that_never_answered_is_given_up_early() {
        let refused = || {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            Err(HttpError::new(HttpErrorKind::Connect, refused))
        };
        let answer = http::Response::new(Bytes::from("well").into());
        let server = checked(vec![refused(), refused(), Ok(answer), refused(), refused()]);
        let url = "http://169.254.169.254/latest/api/token";
        let kind = || wait(server.call(get(url))).map_err(|error| (error.kind(), error.to_string()));
        assert_eq!(kind().expect_err("refused").0, HttpErrorKind::Connect);
        let (given_up, message) = kind().expect_err("refused");
        assert_eq!(given_up, HttpErrorKind::Unknown);
        for word in ["169.254.169.254", "connection refused", "set AWS_ACCESS_KEY_ID"] {
            assert!(message.contains(word), "{message}");
        }
        kind().expect("an answer");
        for _ in 0..2 {
            assert_eq!(kind().expect_err("refused").0, HttpErrorKind::Connect);
        }
    }

    #[test]
    fn an_invalid_date_is_dropped() {
        for (date, kept) in
            [("Mon, 23 Nov 2026 00:00:00 GMT", true), ("yesterday", false), ("", false), ("0", false)]
        {
            let answer = http::Response::builder().header("last-modified", date).header("etag", "\"1\"");
            let server = checked(vec![Ok(answer.body(Bytes::from("well").into()).expect("an answer"))]);
            let answer = wait(server.call(get("http://h/a"))).expect("an answer");
            assert_eq!(answer.headers().contains_key("last-modified"), kept, "{date}");
            assert!(answer.headers().contains_key("etag"));
        }
    }

    #[test]
    fn the_text_of_an_error_does_not_echo_the_request() {
        let body = "<Error><Code>ExpiredToken</Code><Token-0>very-secret</Token-0></Error>";
        let answer = http::Response::builder().status(400).body(Bytes::from(body).into()).expect("an answer");
        let server = checked(vec![Ok(answer)]);
        let body = wait(async { server.call(get("http://h/a")).await?.into_body().bytes().await });
        assert_eq!(&body.expect("a body")[..], b"ExpiredToken");
    }
}
