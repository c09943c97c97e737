//! The buckets of the fake server, and its answer to each request.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::http::{HttpAnswer, HttpRequest, decoded, escaped};
use super::{Call, Fault, ListingOddity, Logged, Oddity, Step, old_listings};

#[derive(Default)]
pub(super) struct State {
    /// By bucket and key.
    pub(super) objects: BTreeMap<(String, String), Stored>,
    pub(super) uploads: HashMap<String, BTreeMap<u32, Vec<u8>>>,
    pub(super) generations: u64,
    pub(super) page_size: Option<usize>,
    pub(super) gone: Vec<String>,
    pub(super) read_only: Vec<String>,
    pub(super) listing: Option<Synthetic>,
    pub(super) tokens: Option<Tokens>,
    /// By bucket.
    pub(super) old_listings: HashMap<String, old_listings::OldListing>,
    /// Part of the names of objects whose creation is carried out but answered with 503.
    pub(super) lost_answers: Option<String>,
    pub(super) faults: HashMap<u64, Fault>,
    /// By bucket and key.
    pub(super) odd: HashMap<(String, String), Oddity>,
    pub(super) odd_listing: Option<ListingOddity>,
    /// The fault of the next request of this step.
    pub(super) aimed: Option<(Step, Fault)>,
    /// Called after the request with this number has been carried out, before it is answered.
    pub(super) call: Option<(u64, Call)>,
    pub(super) log: Vec<Logged>,
}

#[derive(Clone)]
pub(super) struct Stored {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) generation: u64,
}

/// A bucket whose names are generated. All of its objects have the same content.
pub(super) struct Synthetic {
    pub(super) bucket: String,
    pub(super) names: u64,
    pub(super) image: Stored,
}

/// Access tokens, issued as by a metadata server. Only the latest is valid, for `requests_each` requests.
pub(super) struct Tokens {
    pub(super) requests_each: u64,
    pub(super) issued: u64,
    pub(super) left: u64,
    pub(super) refused: u64,
}

impl Tokens {
    /// A new token, or the refusal of a request without a valid token. `None` if the request may proceed.
    pub(super) fn answer(&mut self, request: &HttpRequest) -> Option<HttpAnswer> {
        if request.path == "computeMetadata/v1/instance/service-accounts/default/token" {
            (self.issued, self.left) = (self.issued + 1, self.requests_each);
            let token =
                format!(r#"{{"access_token":"token-{}","expires_in":1,"token_type":"Bearer"}}"#, self.issued);
            let answer = HttpAnswer::new(200).with("Content-Type", "application/json");
            return Some(HttpAnswer { body: token.into_bytes(), ..answer });
        }
        let is_latest = request.header("authorization") == Some(&format!("Bearer token-{}", self.issued));
        if !is_latest || self.left == 0 {
            self.refused += 1;
            return Some(error(401, "AuthenticationRequired"));
        }
        self.left -= 1;
        None
    }
}

impl State {
    pub(super) fn store(&mut self, bucket: &str, key: &str, bytes: Vec<u8>) -> Stored {
        self.generations += 1;
        let stored = Stored { bytes: Arc::new(bytes), generation: self.generations };
        self.objects.insert((bucket.to_owned(), key.to_owned()), stored.clone());
        stored
    }

    pub(super) fn object(&self, bucket: &str, key: &str) -> Option<Stored> {
        let synthetic = self.listing.as_ref().filter(|listing| listing.bucket == bucket);
        if let Some(listing) = synthetic {
            return Some(listing.image.clone());
        }
        self.objects.get(&(bucket.to_owned(), key.to_owned())).cloned()
    }

    pub(super) fn oddity(&self, request: &HttpRequest) -> Option<Oddity> {
        let (bucket, key) = request.path.split_once('/')?;
        self.odd.get(&(bucket.to_owned(), key.to_owned())).copied()
    }

    pub(super) fn answer(&mut self, request: &HttpRequest) -> HttpAnswer {
        if let Some(answer) = self.tokens.as_mut().and_then(|tokens| tokens.answer(request)) {
            return answer;
        }
        let (bucket, key) = request.path.split_once('/').unwrap_or((&request.path, ""));
        let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
        if self.gone.iter().any(|gone| gone == bucket) {
            return error(404, "NoSuchBucket");
        }
        if !is_read && self.read_only.iter().any(|read_only| read_only == bucket) {
            return error(403, "AccessDenied");
        }
        let upload = request.parameter("uploadId");
        match (request.method.as_str(), upload) {
            ("GET", _) if key.is_empty() && request.parameter("comp") == Some("list") => {
                self.list_azure(bucket, request)
            }
            ("GET", _) if key.is_empty() => {
                self.age_listing(bucket);
                self.list(bucket, request)
            }
            ("GET" | "HEAD", _) => {
                let answer = self.read(bucket, key, request);
                match self.oddity(request) {
                    Some(oddity) => oddity.change(answer, request),
                    None => answer,
                }
            }
            ("POST", None) => {
                self.generations += 1;
                let id = format!("upload-{}", self.generations);
                self.uploads.insert(id.clone(), BTreeMap::new());
                let body = format!(
                    "<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key>\
                     <UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
                    escaped(key)
                );
                HttpAnswer::xml(200, body)
            }
            ("PUT", Some(id)) => {
                let part = request.parameter("partNumber").and_then(|number| number.parse().ok());
                let (Some(parts), Some(part)) = (self.uploads.get_mut(id), part) else {
                    return error(404, "NoSuchUpload");
                };
                parts.insert(part, request.body.clone());
                HttpAnswer::new(200).with("ETag", format!("\"{part}-{}\"", request.body.len()))
            }
            ("POST", Some(id)) => {
                let Some(parts) = self.uploads.remove(id) else { return error(404, "NoSuchUpload") };
                let stored = self.store(bucket, key, parts.into_values().flatten().collect());
                let body = format!(
                    "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
                    stored.etag()
                );
                HttpAnswer::xml(200, body).with("x-goog-generation", stored.generation)
            }
            ("DELETE", Some(id)) => {
                self.uploads.remove(id);
                HttpAnswer::new(204)
            }
            ("DELETE", None) => match self.objects.remove(&(bucket.to_owned(), key.to_owned())) {
                Some(_) => HttpAnswer::new(204),
                None => error(404, "NoSuchKey"),
            },
            ("PUT", None) => {
                let answer = self.write(bucket, key, request);
                self.lost(request, answer)
            }
            _ => error(405, "MethodNotAllowed"),
        }
    }

    /// A put, or a copy from another object.
    fn write(&mut self, bucket: &str, key: &str, request: &HttpRequest) -> HttpAnswer {
        // 0 if there is no such object
        let generation = self.object(bucket, key).map_or(0, |stored| stored.generation);
        let wanted = request.header("x-goog-if-generation-match");
        if wanted.is_some_and(|wanted| wanted != generation.to_string()) {
            return error(412, "PreconditionFailed");
        }
        // Azure's conditional creation
        if request.header("if-none-match") == Some("*") && generation > 0 {
            return error(409, "BlobAlreadyExists");
        }
        // Azure names the source by its URL
        let azure_source = request.header("x-ms-copy-source").and_then(|url| url.splitn(4, '/').nth(3));
        let azure_source = azure_source.map(|path| path.split('?').next().unwrap_or_default());
        let bytes = match request.header("x-goog-copy-source").or(azure_source) {
            None => request.body.clone(),
            Some(source) => {
                let (from, name) = source.split_once('/').unwrap_or((source, ""));
                match self.object(from, &decoded(name)) {
                    None => return error(404, "NoSuchKey"),
                    Some(source) => source.bytes.to_vec(),
                }
            }
        };
        let stored = self.store(bucket, key, bytes);
        HttpAnswer::new(200).with("ETag", stored.etag()).with("x-goog-generation", stored.generation)
    }

    fn read(&self, bucket: &str, key: &str, request: &HttpRequest) -> HttpAnswer {
        let Some(stored) = self.object(bucket, key) else { return error(404, "NoSuchKey") };
        if request.header("if-match").is_some_and(|tag| tag != stored.etag()) {
            return error(412, "PreconditionFailed");
        }
        let size = stored.bytes.len();
        let crc = base64(&crc32c::crc32c(&stored.bytes).to_be_bytes());
        let answer = |status, body: &[u8]| {
            let answer = HttpAnswer::new(status)
                .with("ETag", stored.etag())
                .with("x-goog-generation", stored.generation)
                .with("x-goog-hash", format!("crc32c={crc}"))
                .with("Last-Modified", "Mon, 23 Nov 2026 00:00:00 GMT");
            HttpAnswer { body: body.to_vec(), ..answer }
        };
        if request.method == "HEAD" {
            return answer(200, &[]).with("Content-Length", size);
        }
        match request.header("range").map(|range| byte_range(range, size)) {
            None => answer(200, &stored.bytes),
            Some(None) => error(416, "InvalidRange"),
            Some(Some(range)) => {
                let content = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                answer(206, &stored.bytes[range]).with("Content-Range", content)
            }
        }
    }

    /// One page of a bucket's names.
    fn list(&self, bucket: &str, request: &HttpRequest) -> HttpAnswer {
        if let Some(page) = self.odd_listing.and_then(|oddity| oddity.replacement(request)) {
            return page;
        }
        let prefix = request.parameter("prefix").unwrap_or_default();
        let delimiter = request.parameter("delimiter").filter(|delimiter| !delimiter.is_empty());
        let after = request.parameter("continuation-token").or(request.parameter("start-after"));
        let asked = request.parameter("max-keys").and_then(|keys| keys.parse().ok());
        let asked = asked.filter(|_| self.odd_listing != Some(ListingOddity::FullPages));
        let most = self.page_size.unwrap_or(1000).min(asked.unwrap_or(1000));
        let mut page = String::new();
        let (mut last, mut more) = (None, false);
        let mut folders = Vec::new();
        for (count, (key, stored)) in self.names(bucket, after, prefix).enumerate() {
            if count == most {
                more = true;
                break;
            }
            let folder =
                delimiter.and_then(|d| key[prefix.len()..].find(d).map(|at| &key[..prefix.len() + at + 1]));
            match folder {
                Some(folder) if folders.last().is_some_and(|last: &String| last == folder) => {}
                Some(folder) => folders.push(folder.to_owned()),
                None => {
                    page += &format!(
                        "<Contents><Key>{}</Key><Generation>{}</Generation><LastModified>2026-11-23T00:00:00.000Z\
                         </LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                        escaped(&key),
                        stored.generation,
                        stored.etag(),
                        stored.bytes.len()
                    );
                }
            }
            last = Some(key);
        }
        for folder in folders {
            page += &format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(&folder));
        }
        if let Some(oddity) = self.odd_listing {
            oddity.change(&mut page, &mut last, &mut more);
        }
        let token = last.filter(|_| more).map_or(String::new(), |last| {
            format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&last))
        });
        let body = format!(
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult><IsTruncated>{more}</IsTruncated>{token}{page}\
             </ListBucketResult>"
        );
        HttpAnswer::xml(200, body)
    }

    /// Names after `after` that begin with `prefix`, in order.
    pub(super) fn names<'a>(
        &'a self,
        bucket: &'a str,
        after: Option<&str>,
        prefix: &'a str,
    ) -> Box<dyn Iterator<Item = (String, Stored)> + 'a> {
        if let Some(listing) = self.listing.as_ref().filter(|listing| listing.bucket == bucket) {
            let number = |name: &str| name.trim_end_matches(".png").parse::<u64>().ok();
            let first = after.and_then(number).map_or(0, |last| last + 1);
            let named = |number: u64| (format!("{number:010}.png"), listing.image.clone());
            return Box::new((first..listing.names).map(named));
        }
        let start = (bucket.to_owned(), after.map_or(prefix.to_owned(), |after| format!("{after}\0")));
        let objects = self.old_listings.get(bucket).map_or(&self.objects, |old| &old.shown);
        let named = objects.range(start..).take_while(move |((of, _), _)| of == bucket);
        let named = named.filter(move |((_, key), _)| key.starts_with(prefix));
        Box::new(named.map(|((_, key), stored)| (key.clone(), stored.clone())))
    }
}

impl Stored {
    pub(super) fn etag(&self) -> String {
        format!("\"{:016x}\"", self.generation)
    }
}

pub(super) fn error(status: u16, code: &str) -> HttpAnswer {
    HttpAnswer::xml(status, format!("<?xml version='1.0'?><Error><Code>{code}</Code></Error>"))
}

/// The range of an object of `size` bytes that a Range header requests; `None` if it is empty or invalid.
fn byte_range(header: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => first..size.min(last + 1),
        (Ok(first), Err(_)) => first..size,
        (Err(_), Ok(length)) => size.saturating_sub(length)..size,
        (Err(_), Err(_)) => return None,
    };
    (range.start < range.end).then_some(range)
}

/// Base64 (RFC 4648), in which headers state checksums.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { DIGITS[value as usize] as char } else { '=' });
        }
    }
    text
}
