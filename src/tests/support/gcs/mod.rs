//! A fake Google Cloud Storage in this process: the part of its XML API that `object_store` uses, with injected faults.
//!
//! - Requests are numbered from 0 in the order of their arrival. A schedule maps numbers to faults.
//! - Objects are kept in memory. Listings are sorted by bytes, and come in pages.
#![allow(dead_code, reason = "each test binary uses some of it")]

mod azure;
mod bucket;
pub mod faults;
mod http;
mod oddities;
mod old_listings;

use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use bucket::{State, Stored, Synthetic, Tokens, error};
pub use faults::Fault;
use http::{HttpAnswer, HttpRequest};
pub use oddities::{ListingOddity, Oddity};

/// A server. It accepts no further connection once it is dropped.
pub struct Gcs {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

/// A request that the server has received.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged {
    pub number: u64,
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub authorization: Option<String>,
    pub fault: Option<Fault>,
    /// Whether the fault changed the answer.
    pub changed: bool,
}

/// A step in publishing a large object, at which a fault can be aimed.
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

/// A function that the server calls before it answers a request.
pub type Call = Box<dyn FnOnce() + Send>;

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
                // a client may close the connection at any time
                std::thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Self { shared, address }
    }

    /// The value of `STORAGE_EMULATOR_HOST`.
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

    /// Store every file below `folder`, with its relative path as the key.
    pub fn load_folder(&self, bucket: &str, folder: &Path) {
        for (name, bytes) in files(folder, folder) {
            self.put(bucket, &name, bytes);
        }
    }

    /// Write the objects whose keys begin with `prefix` to files below `folder`, named after the rest of the key.
    pub fn save_folder(&self, bucket: &str, prefix: &str, folder: &Path) {
        for key in self.keys(bucket) {
            if let Some(name) = key.strip_prefix(prefix) {
                let path = folder.join(name);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
                std::fs::write(path, &*self.get(bucket, &key).expect("a listed object")).expect("a file");
            }
        }
    }

    /// From now on, this object is served with the oddity.
    pub fn serve_oddly(&self, bucket: &str, key: &str, oddity: Oddity) {
        self.state().odd.insert((bucket.to_owned(), key.to_owned()), oddity);
    }

    /// From now on, every object that the bucket holds at this moment is served with the oddity.
    pub fn serve_all_oddly(&self, bucket: &str, oddity: Oddity) {
        for key in self.keys(bucket) {
            self.serve_oddly(bucket, &key, oddity);
        }
    }

    /// From now on, all objects are served normally.
    pub fn serve_as_usual(&self) {
        self.state().odd.clear();
    }

    /// From now on, every bucket is listed with the oddity, or normally if there is none.
    pub fn list_oddly(&self, oddity: Option<ListingOddity>) {
        self.state().odd_listing = oddity;
    }

    pub fn remove(&self, bucket: &str, key: &str) {
        self.state().objects.remove(&(bucket.to_owned(), key.to_owned()));
    }

    /// From now on, the bucket does not exist, or exists again.
    pub fn set_gone(&self, bucket: &str, gone: bool) {
        set(&mut self.state().gone, bucket, gone);
    }

    /// From now on, writes to the bucket are denied, or allowed again.
    pub fn set_read_only(&self, bucket: &str, read_only: bool) {
        set(&mut self.state().read_only, bucket, read_only);
    }

    pub fn set_page_size(&self, names: usize) {
        self.state().page_size = Some(names);
    }

    /// Let `bucket` list `names` objects. The content of each is `image`.
    pub fn synthesise(&self, bucket: &str, names: u64, image: Vec<u8>) {
        let image = Stored { bytes: Arc::new(image), generation: 1 };
        self.state().listing = Some(Synthetic { bucket: bucket.to_owned(), names, image });
    }

    /// From now on, requests need an access token. A token is valid for `requests_each` requests. The server issues
    /// tokens as a metadata server does.
    pub fn require_tokens(&self, requests_each: u64) {
        self.state().tokens = Some(Tokens { requests_each, issued: 0, left: 0, refused: 0 });
    }

    /// The number of tokens issued so far, and of requests refused for lack of a valid token.
    pub fn tokens(&self) -> (u64, u64) {
        self.state().tokens.as_ref().map_or((0, 0), |tokens| (tokens.issued, tokens.refused))
    }

    /// Requests since the schedule began.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// Clear the log, count requests from 0 again, and inject these faults.
    pub fn schedule(&self, faults: impl IntoIterator<Item = (u64, Fault)>) {
        let mut state = self.state();
        state.faults = faults.into_iter().collect();
        state.aimed = None;
        state.call = None;
        state.log.clear();
        self.shared.requests.store(0, SeqCst);
    }

    /// Clear the schedule, and inject a fault into the next request of this step.
    pub fn aim(&self, step: Step, fault: Fault) {
        self.schedule([]);
        self.state().aimed = Some((step, fault));
    }

    /// Call `call` after the request with this number has been carried out, and before it is answered.
    pub fn call_at(&self, number: u64, call: Call) {
        self.state().call = Some((number, call));
    }

    /// Requests that were received since the schedule began.
    pub fn log(&self) -> Vec<Logged> {
        self.state().log.clone()
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        // one more connection ends the loop of the listener
        let _ = TcpStream::connect(self.address);
    }
}

fn set(buckets: &mut Vec<String>, bucket: &str, contained: bool) {
    buckets.retain(|known| known != bucket);
    if contained {
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
            let call = state.call.take_if(|(at, _)| *at == number);
            drop(state);
            if let Some((_, call)) = call {
                call();
            }
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
