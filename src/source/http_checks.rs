//! What travels between a bucket and this process, checked.
//!
//! - Google's checksum of a whole answer is compared with its bytes; that of an object of which a range
//!   was asked for is handed on ([`ObjectCrc32c`]), for whoever reads all ranges.
//! - A request that creates something if there is nothing is repeated when its answer was lost: it then
//!   finds what it has made. `object_store` repeats only what HTTP calls safe.

use std::pin::Pin;
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

/// Makes clients that check.
#[derive(Debug)]
pub(super) struct CheckedConnector;

impl HttpConnector for CheckedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Checked(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Checked(HttpClient);

#[async_trait::async_trait]
impl HttpService for Checked {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (is_get, may_repeat) = (request.method() == Method::GET, creates(&request));
        let mut response = self.0.execute(request).await.map_err(|error| match error.kind() {
            HttpErrorKind::Timeout | HttpErrorKind::Interrupted | HttpErrorKind::Unknown if may_repeat => {
                HttpError::new(HttpErrorKind::Request, error)
            }
            _ => error,
        })?;
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

/// Whether the request makes something only where there is nothing, begins an upload, or removes.
fn creates(request: &HttpRequest) -> bool {
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
