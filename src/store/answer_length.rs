//! Bounds the length of answers, and gives a length to answers without one.
//!
//! - At most one byte beyond the stated length of an answer is read. That byte shows the reader that the length is
//!   wrong. A chunked body may be endless, whatever length the headers state.
//! - `object_store` refuses answers without a length, which common servers send: chunked, or until the connection
//!   closes. The reader of an object therefore states the most that it accepts ([`ObjectRead`]). The answer gets a
//!   length of one byte more, and a mark that its length is unknown ([`LengthUnknown`]). All other such answers are
//!   small, and are read whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body, Frame};
use object_store::GetResult;
use object_store::client::{HttpError, HttpErrorKind, HttpResponse, HttpResponseBody};

/// Longest answer that is not an object, bytes: a page of a thousand names, each of 1,024 characters that take six
/// bytes in XML, is a tenth of it.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Marks a request for an object: the reader accepts at most this many bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectRead {
    pub most_bytes: u64,
}

/// Marks an answer without a length: the length in its headers is one byte more than its reader accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LengthUnknown;

/// Marks an answer that the server decompressed: the length and the checksum of the stored object are not those of the
/// answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SentUnpacked;

impl ObjectRead {
    /// The mark as extensions of a request.
    pub fn extensions(self) -> http::Extensions {
        let mut extensions = http::Extensions::new();
        extensions.insert(self);
        extensions
    }
}

/// The answer to a GET with a bounded body, and with a length if it had none.
pub(super) async fn bounded(
    mut response: HttpResponse,
    read: Option<ObjectRead>,
    is_listing: bool,
) -> Result<HttpResponse, HttpError> {
    let stated = number(response.headers(), CONTENT_LENGTH.as_str());
    let of_range = response.status() == StatusCode::PARTIAL_CONTENT;
    let announced = of_range.then(|| announced_bytes(response.headers())).flatten().or(stated);
    if is_unpacked(response.headers()) {
        response.extensions_mut().insert(SentUnpacked);
    }
    match (announced, read) {
        (Some(length), _) => {
            if stated.is_none() {
                set_length(response.headers_mut(), length);
            }
            let most = if is_listing { length.min(ANSWER_BYTES_MAX) } else { length };
            Ok(limited(response, most.saturating_add(1)))
        }
        (None, Some(ObjectRead { most_bytes })) => {
            let most = most_bytes.saturating_add(1);
            set_length(response.headers_mut(), most);
            response.extensions_mut().insert(LengthUnknown);
            Ok(limited(response, most))
        }
        (None, None) => {
            let (mut head, body) = response.into_parts();
            let (mut stream, mut bytes) = (body.bytes_stream(), Vec::new());
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
                if bytes.len() as u64 > ANSWER_BYTES_MAX {
                    let message = format!("an answer is longer than {ANSWER_BYTES_MAX} bytes");
                    return Err(HttpError::new(HttpErrorKind::Decode, std::io::Error::other(message)));
                }
            }
            set_length(&mut head.headers, bytes.len() as u64);
            Ok(HttpResponse::from_parts(head, Bytes::from(bytes).into()))
        }
    }
}

/// `response` with no more than the first `left` bytes of its body.
pub(super) fn limited(response: HttpResponse, left: u64) -> HttpResponse {
    response.map(|inner| HttpResponseBody::new(LimitedBody { inner, left }))
}

/// `response`, which is not an object, with at most [`ANSWER_BYTES_MAX`] of its body.
pub(super) fn limited_text(response: HttpResponse) -> HttpResponse {
    limited(response, ANSWER_BYTES_MAX)
}

/// Whether the server decompressed the stored object.
fn is_unpacked(headers: &HeaderMap) -> bool {
    let stored = headers.get("x-goog-stored-content-encoding");
    stored.is_some_and(|stored| stored != "identity" && headers.get(CONTENT_ENCODING) != Some(stored))
}

fn set_length(headers: &mut HeaderMap, length: u64) {
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Length of the range that the headers state.
fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, last) = range.trim().strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

/// The beginning of an answer.
struct LimitedBody {
    inner: HttpResponseBody,
    /// Bytes that are still accepted.
    left: u64,
}

impl Body for LimitedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(mut data) => {
                data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= data.len() as u64;
                Frame::data(data)
            }
            Err(frame) => frame,
        })))
    }
}

/// The size that the answer states; `None` if it is unknown.
pub(crate) fn stated_size(answer: &GetResult) -> Option<u64> {
    answer.extensions.get::<LengthUnknown>().is_none().then_some(answer.meta.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds an answer of 1,000 bytes. Returns its length header, the length of its body, and whether it is marked as
    /// unknown.
    fn bounded_answer(
        status: u16,
        headers: &[(&str, &str)],
        read: Option<u64>,
    ) -> Result<(String, usize, bool), HttpError> {
        let mut answer = http::Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let answer = answer.body(Bytes::from(vec![7; 1000]).into()).expect("an answer");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let read = read.map(|most_bytes| ObjectRead { most_bytes });
            let answer = bounded(answer, read, false).await?;
            let length = answer.headers()[CONTENT_LENGTH].to_str().expect("digits").to_owned();
            let unknown = answer.extensions().get::<LengthUnknown>().is_some();
            Ok((length, answer.into_body().bytes().await?.len(), unknown))
        })
    }

    #[test]
    fn an_answer_is_cut_after_its_stated_length() {
        let text = |length: &str| length.to_owned();
        let range = |range| vec![("content-range", range)];
        assert_eq!(
            bounded_answer(206, &range("bytes 10-19/5000"), None).expect("cut"),
            (text("10"), 11, false)
        );
        assert_eq!(
            bounded_answer(206, &range("bytes 10-1009/5000"), None).expect("whole"),
            (text("1000"), 1000, false)
        );
        let both = [("content-length", "10"), ("transfer-encoding", "chunked")];
        assert_eq!(bounded_answer(200, &both, Some(5000)).expect("cut"), (text("10"), 11, false));
    }

    #[test]
    fn an_answer_of_unknown_length_is_cut_at_the_limit_of_its_reader() {
        assert_eq!(bounded_answer(200, &[], Some(5000)).expect("whole"), ("5001".to_owned(), 1000, true));
        assert_eq!(bounded_answer(200, &[], Some(10)).expect("cut"), ("11".to_owned(), 11, true));
        assert_eq!(bounded_answer(200, &[], None).expect("read"), ("1000".to_owned(), 1000, false));
    }

    #[test]
    fn an_answer_that_google_decompressed_is_recognised() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).parse().expect("a name"), HeaderValue::from_static(value)))
                .collect()
        };
        let stored = ("x-goog-stored-content-encoding", "gzip");
        assert!(is_unpacked(&headers(&[stored])));
        assert!(!is_unpacked(&headers(&[stored, ("content-encoding", "gzip")])));
        assert!(!is_unpacked(&headers(&[("x-goog-stored-content-encoding", "identity")])));
        assert!(!is_unpacked(&headers(&[])));
    }
}
