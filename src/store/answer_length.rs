//! How long an answer may be, and how long it is where its server does not say.
//!
//! - Of an answer no more is taken than it announces, and one byte that tells whoever reads it that something is
//!   wrong. A body in chunks may go on for ever, whatever length stands above it.
//! - `object_store` takes no answer without a length. Common servers send such: in chunks, or until the connection
//!   ends. Whoever reads an object says how much they would take ([`ObjectRead`]), gets that as the length, and is told
//!   that it is none ([`LengthUnknown`]). Any other answer of that kind is small, and is read whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body, Frame};
use object_store::GetResult;
use object_store::client::{HttpError, HttpErrorKind, HttpResponse, HttpResponseBody};

/// Longest answer that is not an object, bytes: a page of a thousand names, each of 1,024 characters that XML writes
/// as six, is a tenth of it.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Marks a request for an object: no more than so many bytes of it are of use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectRead {
    pub most_bytes: u64,
}

/// Marks an answer whose server did not say how long it is: the length that it seems to have is no more than the
/// most that its reader would take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LengthUnknown;

/// Marks an answer whose server has unpacked what it stores: neither the length nor the checksum of the stored object is
/// its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SentUnpacked;

impl ObjectRead {
    /// To be sent along with a request.
    pub fn extensions(self) -> http::Extensions {
        let mut extensions = http::Extensions::new();
        extensions.insert(self);
        extensions
    }
}

/// The answer to a GET, its body bounded, with a length where it had none.
pub(super) async fn bounded(
    mut response: HttpResponse,
    read: Option<ObjectRead>,
    is_listing: bool,
) -> Result<HttpResponse, HttpError> {
    let told = number(response.headers(), CONTENT_LENGTH.as_str());
    let of_range = response.status() == StatusCode::PARTIAL_CONTENT;
    let announced = of_range.then(|| announced_bytes(response.headers())).flatten().or(told);
    if is_unpacked(response.headers()) {
        response.extensions_mut().insert(SentUnpacked);
    }
    match (announced, read) {
        (Some(length), _) => {
            if told.is_none() {
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

/// `response`, which is no object, with no more of its body than any such answer has.
pub(super) fn limited_words(response: HttpResponse) -> HttpResponse {
    limited(response, ANSWER_BYTES_MAX)
}

/// The encoding in which the object was sent, if it is none that its server has chosen.
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

/// Length of the range that an answer says it is.
fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, last) = range.trim().strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

/// The beginning of an answer.
struct LimitedBody {
    inner: HttpResponseBody,
    /// Bytes that may yet come.
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

/// How long the answer says that it is.
pub(crate) fn told_size(answer: &GetResult) -> Option<u64> {
    answer.extensions.get::<LengthUnknown>().is_none().then_some(answer.meta.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of an answer of 1,000 bytes: its length as told, its bytes, and whether the length is none.
    fn taken(
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
    fn an_answer_is_cut_behind_what_it_announces() {
        let told = |text: &str| text.to_owned();
        let range = |range| vec![("content-range", range)];
        assert_eq!(taken(206, &range("bytes 10-19/5000"), None).expect("cut"), (told("10"), 11, false));
        assert_eq!(
            taken(206, &range("bytes 10-1009/5000"), None).expect("whole"),
            (told("1000"), 1000, false)
        );
        let both = [("content-length", "10"), ("transfer-encoding", "chunked")];
        assert_eq!(taken(200, &both, Some(5000)).expect("cut"), (told("10"), 11, false));
    }

    #[test]
    fn an_answer_of_unknown_length_is_taken_as_far_as_it_is_of_use() {
        assert_eq!(taken(200, &[], Some(5000)).expect("whole"), ("5001".to_owned(), 1000, true));
        assert_eq!(taken(200, &[], Some(10)).expect("cut"), ("11".to_owned(), 11, true));
        assert_eq!(taken(200, &[], None).expect("read"), ("1000".to_owned(), 1000, false));
    }

    #[test]
    fn what_google_has_unpacked_is_told_from_what_it_sends_as_it_is_stored() {
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
