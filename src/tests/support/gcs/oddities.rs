//! Objects and listings as some servers send them, and no standard asks for.

use std::io::{self, Write};
use std::net::TcpStream;

use super::http::{HttpAnswer, HttpRequest};

/// How one object is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is stored as gzip: sent so to whoever accepts that, otherwise unpacked, in chunks and whole whatever was
    /// asked for. As Google does it.
    Gzip,
    /// The same by a server that unpacks in any case.
    AlwaysUnpacked,
    /// Stored as gzip, and sent so in any case. As S3 does it.
    Labelled,
    /// In chunks, without a length.
    Chunked,
    /// HEAD is not known.
    NoHead,
    /// Longer than it says, without end.
    Endless,
    /// In an archive.
    Archived,
    /// Nobody but a browser gets it.
    NotAcceptable,
    /// With this status, and this code in its words.
    Refused(u16, &'static str),
    /// There is nothing, and that is no error.
    NoContent,
    /// It is elsewhere, which is here.
    Redirected,
    /// Its checksum is another one.
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
                // of a range there is too little to unpack
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
            // what is known of it is at hand
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

/// How a bucket is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingOddity {
    /// Every page is the first one.
    Again,
    /// Every key is there twice.
    Twice,
    /// From the last key to the first.
    Backwards,
    /// Every page says that it is not the last, and not where the next one begins.
    NoToken,
    /// Pages after the first are an error, of status 200.
    LaterError,
    /// Pages after the first are for browsers.
    LaterHtml,
    /// Pages are as long as ever, however few keys were asked for.
    FullPages,
    /// Of each page's first key this element has this content, or is not there.
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

    /// What is sent in the place of a page.
    pub fn replacement(self, request: &HttpRequest) -> Option<HttpAnswer> {
        request.parameter("continuation-token")?;
        match self {
            Self::LaterError => Some(HttpAnswer { status: 200, ..super::error(500, "InternalError") }),
            Self::LaterHtml => Some(HttpAnswer::xml(200, "<html><body>Log in</body></html>".to_owned())),
            _ => None,
        }
    }
}

/// `key` with other content in the element of that name, or without it.
fn with_element(key: &str, name: &str, content: Option<&str>) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (before, rest) = key.split_once(&open).expect("the element");
    let (_, behind) = rest.split_once(&close).expect("its end");
    let element = content.map_or(String::new(), |content| open + content + &close);
    format!("{before}{element}{behind}")
}

/// Send the body of `answer`, then more and more of it, until the client has gone.
pub fn send_without_end(answer: &HttpAnswer, stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&answer.head(0))?;
    let piece = [&b"10000\r\n"[..], &[7; 1 << 16], b"\r\n"].concat();
    loop {
        stream.write_all(&piece)?;
    }
}
