//! Unusual responses of some servers, for objects and for listings.

use std::io::{self, Write};
use std::net::TcpStream;

use super::http::{HttpAnswer, HttpRequest};

/// How the server responds to requests for one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is stored with `Content-Encoding: gzip`, and sent compressed to clients that accept it. For other clients it
    /// is decompressed and sent in chunks, completely even if a range was requested. As in Google Cloud Storage.
    Gzip,
    /// As `Gzip`, but it is always decompressed.
    AlwaysUnpacked,
    /// It is stored with `Content-Encoding: gzip`, and always sent compressed. As in S3.
    Labelled,
    /// It is sent in chunks, without a length.
    Chunked,
    /// HEAD is not supported.
    NoHead,
    /// It is longer than stated, and never ends.
    Endless,
    /// It is in an archive storage class.
    Archived,
    /// It is answered with 406: no representation matches the request's `Accept` header.
    NotAcceptable,
    /// It is refused with this status and error code.
    Refused(u16, &'static str),
    /// It is answered with status 204, without content.
    NoContent,
    /// It redirects to itself.
    Redirected,
    /// Its checksum does not match.
    OtherChecksum,
}

impl Oddity {
    pub fn change(self, mut answer: HttpAnswer, request: &HttpRequest) -> HttpAnswer {
        let accepts_gzip =
            request.header("accept-encoding").is_some_and(|accepted| accepted.contains("gzip"));
        let is_head = request.method == "HEAD";
        match self {
            Self::Labelled => answer.with("Content-Encoding", "gzip"),
            Self::Gzip if accepts_gzip => {
                answer.with("Content-Encoding", "gzip").with("x-goog-stored-content-encoding", "gzip")
            }
            Self::Gzip | Self::AlwaysUnpacked => {
                answer.status = 200;
                answer.headers.retain(|(name, _)| !matches!(*name, "Content-Length" | "Content-Range"));
                // a range may be truncated gzip data
                let mut unpacked = Vec::new();
                let mut packed = flate2::read::GzDecoder::new(&answer.body[..]);
                let _ = io::Read::read_to_end(&mut packed, &mut unpacked);
                answer.body = unpacked;
                answer.with("x-goog-stored-content-encoding", "gzip").with("Transfer-Encoding", "chunked")
            }
            Self::Chunked => {
                answer.headers.retain(|(name, _)| *name != "Content-Length");
                answer.with("Transfer-Encoding", "chunked")
            }
            Self::NoHead if is_head => HttpAnswer::new(405),
            Self::NoHead => answer,
            Self::Endless => {
                let length = answer.body.len();
                answer.with("Content-Length", length).with("Transfer-Encoding", "chunked")
            }
            // the metadata of an archived object is available
            Self::Archived if is_head => answer,
            Self::Archived => super::error(403, "InvalidObjectState"),
            Self::NotAcceptable => super::error(406, "NotAcceptable"),
            Self::Refused(status, _) if is_head => HttpAnswer::new(status),
            Self::Refused(status, code) => super::error(status, code),
            Self::NoContent => HttpAnswer::new(204),
            Self::OtherChecksum => {
                answer.headers.retain(|(name, _)| *name != "x-goog-hash");
                answer.with("x-goog-hash", "crc32c=AAAAAA==")
            }
            Self::Redirected => HttpAnswer::new(302).with("Location", &request.target),
        }
    }
}

/// How the server lists a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingOddity {
    /// Every page repeats the first one.
    Again,
    /// Every key is listed twice.
    Twice,
    /// Keys are in descending order.
    Backwards,
    /// Every page says that it is truncated, but has no token for the next one.
    NoToken,
    /// Pages after the first are an error with status 200.
    LaterError,
    /// Pages after the first are HTML.
    LaterHtml,
    /// Pages are full, even if fewer keys were requested.
    FullPages,
    /// In each page, this element of the first key has this content, or is missing.
    FirstHas(&'static str, Option<&'static str>),
}

impl ListingOddity {
    pub fn change(self, page: &mut String, last: &mut Option<String>, more: &mut bool) {
        let mut keys: Vec<_> = page.split_inclusive("</Contents>").map(str::to_owned).collect();
        match self {
            Self::Again => (*last, *more) = (Some(String::new() + " "), true),
            Self::Twice => keys = keys.iter().flat_map(|key| [key.clone(), key.clone()]).collect(),
            Self::Backwards => keys.reverse(),
            Self::NoToken => (*last, *more) = (None, true),
            Self::FirstHas(name, content) => {
                if let Some(first) = keys.first_mut() {
                    *first = with_element(first, name, content);
                }
            }
            Self::LaterError | Self::LaterHtml | Self::FullPages => {}
        }
        *page = keys.concat();
    }

    /// The answer that is sent instead of a page.
    pub fn replacement(self, request: &HttpRequest) -> Option<HttpAnswer> {
        request.parameter("continuation-token")?;
        match self {
            Self::LaterError => Some(HttpAnswer { status: 200, ..super::error(500, "InternalError") }),
            Self::LaterHtml => Some(HttpAnswer::xml(200, "<html><body>Log in</body></html>".to_owned())),
            _ => None,
        }
    }
}

/// Replace or remove the element `name` of `key`.
fn with_element(key: &str, name: &str, content: Option<&str>) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (before, rest) = key.split_once(&open).expect("the element");
    let (_, after) = rest.split_once(&close).expect("its end");
    let element = content.map_or(String::new(), |content| open + content + &close);
    format!("{before}{element}{after}")
}

/// Send `answer` with an endless body, until the client closes the connection.
pub fn send_without_end(answer: &HttpAnswer, stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&answer.head(0))?;
    let piece = [&b"10000\r\n"[..], &[7; 1 << 16], b"\r\n"].concat();
    loop {
        stream.write_all(&piece)?;
    }
}
