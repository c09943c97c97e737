//! Google Cloud Storage in this process: its XML API as far as `object_store` uses it, and faults on a
//! schedule.
//!
//! - Requests are numbered from 0 in the order of their arrival; a schedule says which of them fail, and
//!   how.
//! - Objects live in memory. Names are listed in the order of their bytes, in pages.
#![allow(dead_code, reason = "each test binary uses some of it")]

mod azure;
pub mod faults;
mod http;
mod lies;
mod oddities;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

pub use faults::Fault;
use http::{HttpAnswer, HttpRequest, decoded, escaped};
pub use oddities::{ListingOddity, Oddity};

/// A server; dropped, it takes no further connection.
pub struct Gcs {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

/// One request that has arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged {
    pub number: u64,
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub authorization: Option<String>,
    pub fault: Option<Fault>,
    /// Whether the fault has made a difference to what was sent.
    pub changed: bool,
}

/// What a request is for, as far as faults are aimed at it: the steps by which a large object is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    BeginUpload,
    UploadPart,
    CompleteUpload,
    Copy,
    RemoveStaged,
}

impl Step {
    pub const ALL: [Self; 5] =
        [Self::BeginUpload, Self::UploadPart, Self::CompleteUpload, Self::Copy, Self::RemoveStaged];

    fn of(request: &HttpRequest) -> Option<Self> {
        let upload = request.parameter("uploadId").is_some();
        match request.method.as_str() {
            "POST" if upload => Some(Self::CompleteUpload),
            "POST" => Some(Self::BeginUpload),
            "PUT" if upload => Some(Self::UploadPart),
            "PUT" if request.header("x-goog-copy-source").is_some() => Some(Self::Copy),
            "DELETE" if request.path.contains("/_staging/") => Some(Self::RemoveStaged),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    requests: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By bucket and key.
    objects: BTreeMap<(String, String), Stored>,
    uploads: HashMap<String, BTreeMap<u32, Vec<u8>>>,
    generations: u64,
    page_size: Option<usize>,
    gone: Vec<String>,
    read_only: Vec<String>,
    listing: Option<Synthetic>,
    tokens: Option<Tokens>,
    /// By bucket.
    old_listings: HashMap<String, lies::OldListing>,
    /// Part of the names of objects whose creation is answered as if it had failed.
    lost_answers: Option<String>,
    faults: HashMap<u64, Fault>,
    /// By bucket and key.
    odd: HashMap<(String, String), Oddity>,
    odd_listing: Option<ListingOddity>,
    /// For the next request of that step.
    aimed: Option<(Step, Fault)>,
    log: Vec<Logged>,
}

#[derive(Clone)]
struct Stored {
    bytes: Arc<Vec<u8>>,
    generation: u64,
}

/// A bucket of names that nobody has stored: each leads to the same bytes.
struct Synthetic {
    bucket: String,
    names: u64,
    image: Stored,
}

/// Access tokens as a metadata server hands them out: the latest is good for so many requests.
struct Tokens {
    requests_each: u64,
    issued: u64,
    left: u64,
    refused: u64,
}

impl Gcs {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stopped.load(SeqCst) {
                    break;
                }
                let (Ok(stream), serving) = (stream, Arc::clone(&serving)) else { continue };
                // a client that goes away in the middle is none of our business
                std::thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Self { shared, address }
    }

    /// For `STORAGE_EMULATOR_HOST`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no request has panicked")
    }

    pub fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.state().store(bucket, key, bytes);
    }

    pub fn get(&self, bucket: &str, key: &str) -> Option<Arc<Vec<u8>>> {
        self.state().object(bucket, key).map(|stored| stored.bytes)
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.state().objects.keys().filter(|(of, _)| of == bucket).map(|(_, key)| key.clone()).collect()
    }

    /// Store every file below `folder`, by its path from there.
    pub fn load_folder(&self, bucket: &str, folder: &Path) {
        for (name, bytes) in files(folder, folder) {
            self.put(bucket, &name, bytes);
        }
    }

    /// Write the objects that begin with `prefix` to files below `folder`, by the rest of their names.
    pub fn save_folder(&self, bucket: &str, prefix: &str, folder: &Path) {
        for key in self.keys(bucket) {
            if let Some(name) = key.strip_prefix(prefix) {
                let path = folder.join(name);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
                std::fs::write(path, &*self.get(bucket, &key).expect("it was listed")).expect("a file");
            }
        }
    }

    /// From now on this object is served oddly.
    pub fn serve_oddly(&self, bucket: &str, key: &str, oddity: Oddity) {
        self.state().odd.insert((bucket.to_owned(), key.to_owned()), oddity);
    }

    /// From now on every object that the bucket holds is served oddly.
    pub fn serve_all_oddly(&self, bucket: &str, oddity: Oddity) {
        for key in self.keys(bucket) {
            self.serve_oddly(bucket, &key, oddity);
        }
    }

    /// From now on all objects are served as before.
    pub fn serve_as_usual(&self) {
        self.state().odd.clear();
    }

    /// From now on every bucket is listed oddly, or as before.
    pub fn list_oddly(&self, oddity: Option<ListingOddity>) {
        self.state().odd_listing = oddity;
    }

    pub fn remove(&self, bucket: &str, key: &str) {
        self.state().objects.remove(&(bucket.to_owned(), key.to_owned()));
    }

    /// From now on nobody has heard of the bucket, or all is as it was.
    pub fn set_gone(&self, bucket: &str, gone: bool) {
        set(&mut self.state().gone, bucket, gone);
    }

    /// From now on nothing can be written, or all is as it was.
    pub fn set_read_only(&self, bucket: &str, read_only: bool) {
        set(&mut self.state().read_only, bucket, read_only);
    }

    pub fn set_page_size(&self, names: usize) {
        self.state().page_size = Some(names);
    }

    /// Let `bucket` hold `names` images, all of them `image`.
    pub fn synthesise(&self, bucket: &str, names: u64, image: Vec<u8>) {
        let image = Stored { bytes: Arc::new(image), generation: 1 };
        self.state().listing = Some(Synthetic { bucket: bucket.to_owned(), names, image });
    }

    /// From now on only who shows a token is served; each is soon worn out. The server is its own
    /// metadata server.
    pub fn require_tokens(&self, requests_each: u64) {
        self.state().tokens = Some(Tokens { requests_each, issued: 0, left: 0, refused: 0 });
    }

    /// Tokens handed out so far, and requests refused for want of one that is good.
    pub fn tokens(&self) -> (u64, u64) {
        self.state().tokens.as_ref().map_or((0, 0), |tokens| (tokens.issued, tokens.refused))
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// Count requests from 0 again, and let these of them fail.
    pub fn schedule(&self, faults: impl IntoIterator<Item = (u64, Fault)>) {
        let mut state = self.state();
        state.faults = faults.into_iter().collect();
        state.aimed = None;
        state.log.clear();
        self.shared.requests.store(0, SeqCst);
    }

    /// Let the next request of that step fail.
    pub fn aim(&self, step: Step, fault: Fault) {
        self.schedule([]);
        self.state().aimed = Some((step, fault));
    }

    /// What has arrived since the schedule began.
    pub fn log(&self) -> Vec<Logged> {
        self.state().log.clone()
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        // wake the listener up
        let _ = TcpStream::connect(self.address);
    }
}

fn set(buckets: &mut Vec<String>, bucket: &str, there: bool) {
    buckets.retain(|known| known != bucket);
    if there {
        buckets.push(bucket.to_owned());
    }
}

fn files(root: &Path, folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            let name = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").to_owned();
            found.push((name, std::fs::read(&path).expect("a file")));
        }
    }
    found
}

impl Shared {
    /// Answer the requests of one connection.
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = HttpRequest::read(&mut reader)? {
            if self.stopped.load(SeqCst) {
                return Ok(());
            }
            let number = self.requests.fetch_add(1, SeqCst);
            let mut state = self.state.lock().expect("no request has panicked");
            let step = Step::of(&request);
            let aimed = state.aimed.take_if(|(at, _)| Some(*at) == step).map(|(_, fault)| fault);
            let fault = state.faults.get(&number).copied().or(aimed);
            let carried_out = fault.is_none_or(Fault::is_carried_out);
            let answer = if carried_out { state.answer(&request) } else { HttpAnswer::new(200) };
            let odd = state.oddity(&request);
            state.log.push(Logged {
                number,
                method: request.method.clone(),
                target: request.target.clone(),
                authorization: request.header("authorization").map(str::to_owned),
                fault,
                changed: fault.is_some_and(|fault| fault.changes(&answer)),
            });
            drop(state);
            match fault {
                None if odd == Some(Oddity::Endless) => {
                    return oddities::send_without_end(&answer, &mut writer);
                }
                None => answer.write(&mut writer)?,
                Some(fault) => {
                    if !fault.send(&answer, &mut writer)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl Tokens {
    /// A new token, or what a request gets whose token is not good any more.
    fn answer(&mut self, request: &HttpRequest) -> Option<HttpAnswer> {
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
    fn store(&mut self, bucket: &str, key: &str, bytes: Vec<u8>) -> Stored {
        self.generations += 1;
        let stored = Stored { bytes: Arc::new(bytes), generation: self.generations };
        self.objects.insert((bucket.to_owned(), key.to_owned()), stored.clone());
        stored
    }

    fn object(&self, bucket: &str, key: &str) -> Option<Stored> {
        let synthetic = self.listing.as_ref().filter(|listing| listing.bucket == bucket);
        if let Some(listing) = synthetic {
            return Some(listing.image.clone());
        }
        self.objects.get(&(bucket.to_owned(), key.to_owned())).cloned()
    }

    fn oddity(&self, request: &HttpRequest) -> Option<Oddity> {
        let (bucket, key) = request.path.split_once('/')?;
        self.odd.get(&(bucket.to_owned(), key.to_owned())).copied()
    }

    fn answer(&mut self, request: &HttpRequest) -> HttpAnswer {
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
        let there = self.object(bucket, key).map_or(0, |stored| stored.generation);
        let wanted = request.header("x-goog-if-generation-match");
        if wanted.is_some_and(|wanted| wanted != there.to_string()) {
            return error(412, "PreconditionFailed");
        }
        let bytes = match request.header("x-goog-copy-source") {
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
    fn names<'a>(
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
    fn etag(&self) -> String {
        format!("\"{:016x}\"", self.generation)
    }
}

fn error(status: u16, code: &str) -> HttpAnswer {
    HttpAnswer::xml(status, format!("<?xml version='1.0'?><Error><Code>{code}</Code></Error>"))
}

/// What a Range header asks of so many bytes; `None` if there is nothing of it.
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

/// RFC 4648, as checksums are written in headers.
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
