//! What travels between a bucket and this process, checked.
//!
//! - Google's checksum of a whole answer is compared with its bytes; that of an object of which a range
//!   was asked for is handed on ([`ObjectCrc32c`]), for whoever reads all ranges.
//! - A request that creates something if there is nothing is repeated when its answer was lost: it then
//!   finds what it has made. `object_store` repeats only what HTTP calls safe.
//! - S3 refuses such a request with 409 while another one for the same name is under way, which may still
//!   fail: that is not "there already", but to be tried again.
//! - Of the body of a refusal its code and message are kept. S3 repeats in it what was sent and signed,
//!   session tokens among it, and `object_store` shows all of it; and some servers send pages.
//! - A metadata server that cannot be reached is asked [`METADATA_TRIES`] times, not for minutes: most
//!   machines have none, and are to hear soon that credentials are missing.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

use crate::error::WrongChecksum;

/// Checksum of a whole object (CRC-32C, Castagnoli), as its store told it beside a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ObjectCrc32c(pub u32);

/// Times that a metadata server is connected to in vain by one client. One that is there but has not started
/// yet, as on a new node, comes within this many growing pauses.
const METADATA_TRIES: u32 = 8;

/// The most that is read of the body of a refusal, bytes.
const REFUSAL_BYTES: usize = 64 << 10;

/// The most that is kept of it where it has no code and no message, characters.
const REFUSAL_SHOWN: usize = 300;

/// Makes clients that check.
#[derive(Debug)]
pub(super) struct CheckedConnector;

impl HttpConnector for CheckedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Checked { client, metadata_failures: AtomicU32::new(0) }))
    }
}

#[derive(Debug)]
struct Checked {
    client: HttpClient,
    /// Requests in a row that reached no metadata server.
    metadata_failures: AtomicU32,
}

impl Checked {
    /// The answer to a request for credentials of this machine. An error of the last kind is not repeated.
    async fn ask_metadata_server(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        match self.client.execute(request).await {
            Err(error) => {
                let failures = self.metadata_failures.fetch_add(1, Relaxed) + 1;
                if failures < METADATA_TRIES {
                    return Err(error);
                }
                Err(HttpError::new(HttpErrorKind::Unknown, NoCredentials { host, source: error }))
            }
            answered => {
                self.metadata_failures.store(0, Relaxed);
                answered
            }
        }
    }
}

/// Nothing in the environment says who we are, and there is no machine to ask.
#[derive(Debug, thiserror::Error)]
#[error(
    "no credentials: the environment holds none (GOOGLE_APPLICATION_CREDENTIALS for gs, AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY for s3, AZURE_STORAGE_ACCOUNT_KEY for az), and the metadata server {host} cannot be reached"
)]
struct NoCredentials {
    host: String,
    source: HttpError,
}

#[async_trait::async_trait]
impl HttpService for Checked {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (is_get, may_repeat) = (request.method() == Method::GET, creates(&request));
        if asks_metadata_server(&request) {
            return self.ask_metadata_server(request).await;
        }
        let mut response = self.client.execute(request).await.map_err(|error| match error.kind() {
            HttpErrorKind::Timeout | HttpErrorKind::Interrupted | HttpErrorKind::Unknown if may_repeat => {
                HttpError::new(HttpErrorKind::Request, error)
            }
            _ => error,
        })?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let (mut head, body) = response.into_parts();
            if may_repeat && status == StatusCode::CONFLICT {
                head.status = StatusCode::SERVICE_UNAVAILABLE;
            }
            head.headers.remove(http::header::CONTENT_LENGTH);
            let said = what_is_said(&beginning(body).await);
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::from(said)));
        }
        if is_get && let Some(expected) = stored_crc32c(response.headers()) {
            response.extensions_mut().insert(ObjectCrc32c(expected));
            if response.status() == StatusCode::OK {
                let (head, inner) = response.into_parts();
                let body = CheckedBody { inner, found: 0, expected, ended: false };
                response = HttpResponse::from_parts(head, HttpResponseBody::new(body));
            }
        }
        Ok(response)
    }
}

/// Whether the request is for credentials or facts of this machine, at whatever address: those of Google, Amazon
/// and Azure have each a path of their own.
fn asks_metadata_server(request: &HttpRequest) -> bool {
    let paths = ["/computeMetadata/", "/latest/api/token", "/latest/meta-data/", "/metadata/identity/"];
    let is_local = request.uri().scheme_str() == Some("http");
    is_local && paths.iter().any(|path| request.uri().path().starts_with(path))
}

/// The first bytes of a body, as far as they come.
async fn beginning(mut body: HttpResponseBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < REFUSAL_BYTES {
        match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                bytes.extend_from_slice(&data[..data.len().min(REFUSAL_BYTES - bytes.len())]);
            }
            Some(Err(_)) | None => break,
        }
    }
    bytes
}

/// Code and message of a refusal, in the XML of S3, GCS and Azure or the JSON of GCS and token servers; the
/// beginning of anything else.
fn what_is_said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    if text.contains("<Error") {
        let said = ["Code", "Message"].into_iter().filter_map(element).collect::<Vec<_>>();
        return if said.is_empty() { "an error without a code".to_owned() } else { said.join(": ") };
    }
    if let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) {
        let error = &json["error"];
        let said = [&error["message"], error, &json["error_description"], &json["message"]];
        let said: Vec<_> = said.into_iter().filter_map(|value| value.as_str()).collect();
        return if said.is_empty() { "an error without a message".to_owned() } else { said.join(": ") };
    }
    text.chars().take(REFUSAL_SHOWN).collect::<String>().trim().to_owned()
}

/// Whether the request makes something only where there is nothing, begins an upload, or removes.
fn creates(request: &HttpRequest) -> bool {
    let is = |name: &str, value: &str| request.headers().get(name).is_some_and(|found| found == value);
    let query = request.uri().query().unwrap_or_default();
    let begins_upload = query.split('&').any(|pair| matches!(pair, "uploads" | "uploads="));
    match *request.method() {
        Method::PUT => is("x-goog-if-generation-match", "0") || is("if-none-match", "*"),
        Method::POST => begins_upload || is("if-none-match", "*"),
        Method::DELETE => true,
        _ => false,
    }
}

/// The checksum of the object as it is stored; `None` where it is sent otherwise, unpacked on the way.
fn stored_crc32c(headers: &HeaderMap) -> Option<u32> {
    let stored = headers.get("x-goog-stored-content-encoding");
    if stored.is_some_and(|encoding| encoding != "identity") {
        return None;
    }
    let hashes = headers.get_all("x-goog-hash").into_iter().filter_map(|value| value.to_str().ok());
    let crc32c =
        hashes.flat_map(|value| value.split(',')).find_map(|hash| hash.trim().strip_prefix("crc32c="))?;
    big_endian_of_base64(crc32c)
}

/// Four bytes in base64 (RFC 4648): six digits that count, and padding.
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
    // 36 bits, of which the last four pad
    u32::try_from(bits >> 4).ok()
}

/// An answer whose end is an error if its bytes are not those that the store has.
struct CheckedBody {
    inner: HttpResponseBody,
    found: u32,
    expected: u32,
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
    fn a_refusal_is_told_without_what_was_sent() {
        for (body, said) in [
            (
                "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>no match</Message>\
                 <AWSAccessKeyId>secret</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:secret</CanonicalRequest>\
                 </Error>",
                "SignatureDoesNotMatch: no match",
            ),
            ("<Error><Token-0>secret</Token-0></Error>", "an error without a code"),
            (r#"{"error": {"code": 403, "message": "no access", "token": "secret"}}"#, "no access"),
            (r#"{"error": "invalid_grant", "error_description": "expired"}"#, "invalid_grant: expired"),
            (r#"{"access_token": "secret"}"#, "an error without a message"),
            ("Not here.\n", "Not here."),
        ] {
            assert_eq!(what_is_said(body.as_bytes()), said);
        }
        assert_eq!(what_is_said(&[b'x'; 1000]).len(), REFUSAL_SHOWN);
    }

    #[test]
    fn a_metadata_server_that_is_not_there_is_given_up_soon_and_told_with_what_to_set() {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let options = ClientOptions::new().with_allow_http(true);
        let client = CheckedConnector.connect(&options).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let ask = |path: &str| {
            let uri = format!("http://127.0.0.1:{port}{path}");
            let request = http::Request::get(uri).body(Bytes::new().into()).expect("a request");
            runtime.block_on(client.execute(request)).expect_err("nobody listens")
        };
        let token = "/computeMetadata/v1/instance/service-accounts/default/token";
        for _ in 1..METADATA_TRIES {
            assert_eq!(ask(token).kind(), HttpErrorKind::Connect, "it is repeated");
        }
        let given_up = ask(token);
        assert_eq!(given_up.kind(), HttpErrorKind::Unknown, "it is not repeated");
        assert!(format!("{given_up:?}").contains("NoCredentials"), "{given_up:?}");
        assert_eq!(ask("/bucket/object").kind(), HttpErrorKind::Connect);
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
        assert_eq!(stored_crc32c(&headers(&[crc, ("x-goog-stored-content-encoding", "gzip")])), None);
        assert_eq!(stored_crc32c(&headers(&[("x-goog-hash", "crc32c=AAAA")])), None);
    }
}
