//! One object of a store: ranged reads and a reader that runs ahead.
//!
//! Comes in: a [`Location`] with the size and version that the listing or a look-up told. Goes
//! out: bytes of that version, or the storage error.
//!
//! - Every request is conditional on the version where one is known, so an object that is
//!   replaced while it is read is an error and never a mixture. A web server may not know conditions, or
//!   give no version that can be one: what its answers say of the object is compared as well.
//! - A failed read is remembered in the object. Readers of formats only see an `io::Error` and
//!   may wrap it as they like; [`Object::take_fault`] then tells a store that failed from data
//!   that is damaged.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Buf, Bytes};
use object_store::GetOptions;
use tokio::task::JoinHandle;

use super::retry::again;
use crate::error::StorageError;

use super::answer_length::{LengthUnknown, ObjectRead};
use super::http_checks::ObjectCrc32c;
use super::ranges_seen::RangesSeen;
use super::stores::{Location, Stores};
use super::version::{check_unchanged, condition, version_of};

/// One ranged read of [`ObjectReader`], bytes. At 30 ms for a request's first byte and some
/// 100 MB/s for its stream, it takes 50 ms.
const READ_BYTES: u64 = 2 << 20;

/// Ranged reads under way besides the one being consumed: at 50 ms each, three of them bring more
/// than one stream's 100 MB/s. An open shard so holds at most 8 MiB of raw bytes, however many are
/// read ahead.
const READS_IN_FLIGHT: usize = 3;

/// What one reader holds of an object's bytes.
pub(crate) const BYTES_IN_FLIGHT: u64 = (READS_IN_FLIGHT as u64 + 1) * READ_BYTES;

/// A readable object of known size. Cheap to clone; clones share the memory of a failed read.
#[derive(Clone)]
pub struct Object {
    inner: Arc<Inner>,
}

struct Inner {
    location: Location,
    stores: Stores,
    size_bytes: u64,
    version: Option<String>,
    /// What its first answer said of it where nothing was known before.
    told: OnceLock<Option<String>>,
    fault: Mutex<Option<StorageError>>,
    /// What has come of it, where its store tells a checksum.
    seen: Mutex<(Option<ObjectCrc32c>, RangesSeen)>,
}

impl Object {
    pub(crate) fn new(location: Location, stores: Stores, size_bytes: u64, version: Option<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                location,
                stores,
                size_bytes,
                version,
                told: OnceLock::new(),
                fault: Mutex::default(),
                seen: Mutex::default(),
            }),
        }
    }

    pub fn uri(&self) -> &str {
        &self.inner.location.uri
    }

    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// Entity tag that reads are conditional on, where the store gives one.
    pub fn version(&self) -> Option<&str> {
        self.inner.version.as_deref()
    }

    /// Read `range`, which must lie inside the object, and wait for it.
    pub fn read_range(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let location = &self.inner.location;
        let fetched = self.inner.stores.wait(location.kind, fetch(self.clone(), range));
        fetched.map(|fetched| self.see(fetched)).map_err(|source| location.error(source))
    }

    /// Take note of what has come.
    fn see(&self, fetched: Fetched) -> Bytes {
        if let Some(crc32c) = fetched.object_crc32c {
            let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0 = Some(crc32c);
            seen.1.add(fetched.range, &fetched.bytes);
        }
        fetched.bytes
    }

    /// Whether what has come are the bytes that are stored, as far as the store tells a checksum and
    /// comparing is worth it; always if the object looks `damaged`.
    pub(crate) fn check(&self, damaged: bool) -> Result<(), StorageError> {
        let seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(ObjectCrc32c(expected)), ranges) = seen else { return Ok(()) };
        let fetch = |range: Range<u64>| {
            let mut crc32c = 0;
            for start in range.clone().step_by(READ_BYTES as usize) {
                let piece = self.read_range(start..(start + READ_BYTES).min(range.end))?;
                crc32c = crc32c::crc32c_append(crc32c, &piece);
            }
            Ok(crc32c)
        };
        ranges.check(self.size_bytes(), expected, damaged, fetch)?.map_err(|wrong| {
            let source = object_store::Error::Generic { store: "read", source: wrong.into() };
            self.inner.location.error(source)
        })
    }

    /// Read the object from its start to its end.
    pub fn reader(&self) -> ObjectReader {
        ObjectReader {
            object: self.clone(),
            current: Bytes::new(),
            in_flight: VecDeque::with_capacity(READS_IN_FLIGHT),
            next_offset: 0,
        }
    }

    /// The first storage error that a reader of this object met, once.
    pub fn take_fault(&self) -> Option<StorageError> {
        self.inner.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Remember `error` for [`Object::take_fault`] and give readers something to stop at.
    pub(crate) fn fault(&self, error: StorageError) -> io::Error {
        let stop = io::Error::other(error.to_string());
        self.inner.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        stop
    }

    fn options(&self, range: Range<u64>) -> object_store::Result<GetOptions> {
        // without a range a server that knows none can serve small objects
        let whole = range == (0..self.inner.size_bytes);
        Ok(GetOptions {
            range: (!whole).then(|| range.clone().into()),
            if_match: condition(self.version())?,
            extensions: ObjectRead { most_bytes: range.end - range.start }.extensions(),
            ..GetOptions::default()
        })
    }

    /// What is wrong with the object alone, in words, where reading it has failed with `error`; `None` when it is the
    /// store that fails.
    pub(crate) fn trouble_of(&self, error: &object_store::Error) -> Option<String> {
        self.inner.stores.trouble_of(&self.inner.location, std::iter::empty(), error)
    }

    fn spawn(&self, range: Range<u64>) -> JoinHandle<object_store::Result<Fetched>> {
        self.inner.stores.runtime().spawn(fetch(self.clone(), range))
    }
}

/// Some bytes of an object.
struct Fetched {
    range: Range<u64>,
    bytes: Bytes,
    /// Of the whole object, where the store told it.
    object_crc32c: Option<ObjectCrc32c>,
}

async fn fetch(object: Object, range: Range<u64>) -> object_store::Result<Fetched> {
    let Inner { location, size_bytes, .. } = &*object.inner;
    let ask = || async {
        let answer = location.store.get_opts(&location.path, object.options(range.clone())?).await?;
        let told = || version_of(location.kind, &answer.meta);
        let version = object.version().or_else(|| object.inner.told.get_or_init(told).as_deref());
        let is_sized = answer.extensions.get::<LengthUnknown>().is_none();
        check_unchanged(location.kind, &answer.meta, is_sized.then_some(*size_bytes), version)?;
        let object_crc32c = answer.extensions.get().copied();
        let bytes = answer.bytes().await?;
        let expected = range.end - range.start;
        if bytes.len() as u64 != expected {
            let message = format!("{} bytes came for the {expected} at {}", bytes.len(), range.start);
            return Err(object_store::Error::Generic { store: "read", source: message.into() });
        }
        location.last_read.set(&location.path);
        Ok(Fetched { range: range.clone(), bytes, object_crc32c })
    };
    again(ask).await
}

/// Reads an object front to back with requests running ahead on the runtime.
///
/// Must be read on a thread that is not an async task.
pub struct ObjectReader {
    object: Object,
    /// What has arrived and is not consumed yet.
    current: Bytes,
    /// In order of offset.
    in_flight: VecDeque<JoinHandle<object_store::Result<Fetched>>>,
    /// Where the next request starts.
    next_offset: u64,
}

impl ObjectReader {
    fn request_ahead(&mut self) {
        while self.in_flight.len() < READS_IN_FLIGHT && self.next_offset < self.object.size_bytes() {
            let end = (self.next_offset + READ_BYTES).min(self.object.size_bytes());
            self.in_flight.push_back(self.object.spawn(self.next_offset..end));
            self.next_offset = end;
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.current.is_empty() {
            self.request_ahead();
            let Some(task) = self.in_flight.pop_front() else { return Ok(0) };
            let inner = &self.object.inner;
            let fetched = inner.stores.runtime().block_on(task).unwrap_or_else(|error| Err(error.into()));
            let fetched = fetched.map_err(|source| self.object.fault(inner.location.error(source)))?;
            self.current = self.object.see(fetched);
            self.request_ahead();
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Drop for ObjectReader {
    /// A reader given up early must not go on downloading.
    fn drop(&mut self) {
        for task in &self.in_flight {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stores::tests::local_stores;
    use super::*;
    use crate::items::ObjectRef;

    fn object_of(bytes: &[u8]) -> (tokio::runtime::Runtime, tempfile::NamedTempFile, Object) {
        let (runtime, stores) = local_stores();
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), bytes).expect("write");
        let uri = file.path().to_str().expect("UTF-8").to_owned();
        let object = stores.open(&ObjectRef { uri, size_bytes: None, version: None }).expect("open");
        (runtime, file, object)
    }

    #[test]
    fn a_reader_yields_every_byte_in_order_across_requests() {
        let bytes: Vec<u8> = (0..5 * READ_BYTES + 12_345).map(|n| ((n * 31) >> 7) as u8).collect();
        let (_runtime, _file, object) = object_of(&bytes);
        let mut read = Vec::new();
        object.reader().read_to_end(&mut read).expect("read");
        assert!(read == bytes);
        assert!(object.take_fault().is_none());
    }

    #[test]
    fn an_object_replaced_while_it_is_read_is_a_fault() {
        // more than is under way once the first bytes have come
        let bytes = vec![7; (READS_IN_FLIGHT + 2) * READ_BYTES as usize];
        let (_runtime, file, object) = object_of(&bytes);
        let mut reader = object.reader();
        let mut first = [0; 10];
        reader.read_exact(&mut first).expect("first bytes");
        std::fs::write(file.path(), b"something else").expect("replace");
        // the store sees another version, or fewer bytes than were promised
        io::copy(&mut reader, &mut io::sink()).expect_err("replaced");
        assert!(object.take_fault().is_some());
        assert!(object.take_fault().is_none(), "a fault is taken once");
    }

    #[test]
    fn an_empty_object_has_no_bytes_and_no_fault() {
        let (_runtime, _file, object) = object_of(b"");
        assert_eq!(object.size_bytes(), 0);
        assert_eq!(io::copy(&mut object.reader(), &mut io::sink()).expect("empty"), 0);
    }
}
