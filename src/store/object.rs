//! One object of a store: ranged reads, and a reader that fetches ahead.
//!
//! Input: an [`ObjectRef`] with the size and version that the listing or a look-up gave. Output: bytes of that
//! version, or the storage error.
//!
//! - Every request is conditional on the version if one is known, so an object that is replaced during a read is an
//!   error, and never a mixture of two versions. A web server may ignore conditions, or state no version that can be a
//!   condition; its answers are therefore also compared with the known size and version.
//! - The object remembers the error of a failed read. Readers of formats see only an `io::Error` and may wrap it as
//!   they like; [`Object::take_error`] then distinguishes a failing store from damaged data.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Buf, Bytes};
use object_store::GetOptions;
use tokio::task::JoinHandle;

use super::retry::again;
use crate::error::{SourceError, StorageError};
use crate::flow::lock;
use crate::items::ObjectRef;

use super::answer_length::{LengthUnknown, ObjectRead};
use super::http_checks::ObjectCrc32c;
use super::location::{Location, StoreKind};
use super::ranges_seen::RangesSeen;
use super::stores::Stores;
use super::version::{check_unchanged, condition, version_of};

/// One ranged read of [`ObjectReader`], bytes. At 30 ms for a request's first byte and some
/// 100 MB/s for its stream, it takes 50 ms.
const READ_BYTES: u64 = 2 << 20;

/// Ranged reads in flight in addition to the one being consumed: at 50 ms each, three of them are faster than one
/// stream's 100 MB/s. An open shard therefore holds at most 8 MiB of raw bytes, however many shards are read ahead.
const READS_IN_FLIGHT: usize = 3;

/// The most bytes of an object that one reader holds.
pub(crate) const BYTES_IN_FLIGHT: u64 = (READS_IN_FLIGHT as u64 + 1) * READ_BYTES;

/// A readable object of known size. Cheap to clone; clones share the remembered error of a failed read.
#[derive(Clone)]
pub struct Object {
    inner: Arc<Inner>,
}

struct Inner {
    location: Location,
    stores: Stores,
    size_bytes: u64,
    version: Option<String>,
    /// The version in the first answer, if none was known before.
    first_version: OnceLock<Option<String>>,
    /// The first error of a reader.
    error: Mutex<Option<StorageError>>,
    /// The ranges that have arrived, if the store states a checksum.
    seen: Mutex<(Option<ObjectCrc32c>, RangesSeen)>,
}

impl Object {
    /// Make `object` readable. Looks the object up if the listing gave no size; on the local disk, where a look-up is
    /// cheap, also if it gave no version.
    ///
    /// # Errors
    /// Those of [`Stores::resolve`] and [`Stores::head`].
    pub fn open(stores: &Stores, object: &ObjectRef) -> Result<Self, SourceError> {
        let location = stores.resolve(&object.uri)?;
        let (size_bytes, version) = match object.size_bytes {
            Some(size) if location.kind != StoreKind::Local || object.version.is_some() => {
                (size, object.version.clone())
            }
            _ => {
                let found = stores.head(&location)?;
                (found.size_bytes.unwrap_or(0), found.version)
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                location,
                stores: stores.clone(),
                size_bytes,
                version,
                first_version: OnceLock::new(),
                error: Mutex::default(),
                seen: Mutex::default(),
            }),
        })
    }

    /// The URI of the object.
    pub fn uri(&self) -> &str {
        &self.inner.location.uri
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// The entity tag that reads are conditional on, if the store gives one.
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
        fetched.map(|fetched| self.record_arrival(fetched)).map_err(|source| location.error(source))
    }

    /// Record the checksum of the bytes that have arrived.
    fn record_arrival(&self, fetched: Fetched) -> Bytes {
        if let Some(crc32c) = fetched.object_crc32c {
            let mut seen = lock(&self.inner.seen);
            seen.0 = Some(crc32c);
            seen.1.add(fetched.range, &fetched.bytes);
        }
        fetched.bytes
    }

    /// Compare the bytes that have arrived with the checksum that the store states, if it states one and the comparison
    /// is cheap or the object looks `damaged`.
    ///
    /// # Errors
    /// A checksum mismatch, and those of reads.
    pub(crate) fn check(&self, damaged: bool) -> Result<(), StorageError> {
        let seen = lock(&self.inner.seen).clone();
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

    /// Takes the first storage error of a reader of this object. A second call returns `None`.
    pub fn take_error(&self) -> Option<StorageError> {
        lock(&self.inner.error).take()
    }

    /// Remember `error` for [`Object::take_error`]. Returns an error for the reader to stop at.
    pub(crate) fn remember(&self, error: StorageError) -> io::Error {
        let stop = io::Error::other(error.to_string());
        lock(&self.inner.error).get_or_insert(error);
        stop
    }

    fn options(&self, range: Range<u64>) -> object_store::Result<GetOptions> {
        // a server without ranges can serve small objects if the request has none
        let whole = range == (0..self.inner.size_bytes);
        Ok(GetOptions {
            range: (!whole).then(|| range.clone().into()),
            if_match: condition(self.version())?,
            extensions: ObjectRead { most_bytes: range.end - range.start }.extensions(),
            ..GetOptions::default()
        })
    }

    /// The fault of the object itself, after a read failed with `error`; `None` if the store is at fault.
    pub(crate) fn find_fault(&self, error: &object_store::Error) -> Option<String> {
        self.inner.stores.find_object_fault(&self.inner.location, std::iter::empty(), error)
    }

    fn spawn(&self, range: Range<u64>) -> JoinHandle<object_store::Result<Fetched>> {
        self.inner.stores.runtime().spawn(fetch(self.clone(), range))
    }
}

/// Some bytes of an object.
struct Fetched {
    range: Range<u64>,
    bytes: Bytes,
    /// The checksum of the whole object, if the store states it.
    object_crc32c: Option<ObjectCrc32c>,
}

async fn fetch(object: Object, range: Range<u64>) -> object_store::Result<Fetched> {
    let Inner { location, size_bytes, .. } = &*object.inner;
    let request = || async {
        let answer = location.store.get_opts(&location.path, object.options(range.clone())?).await?;
        let first = || version_of(location.kind, &answer.meta);
        let version = object.version().or_else(|| object.inner.first_version.get_or_init(first).as_deref());
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
    again(request).await
}

/// Reads an object front to back while the runtime fetches the ranges ahead.
///
/// Must not be read inside an async task.
pub struct ObjectReader {
    object: Object,
    /// Bytes that have arrived and are not consumed yet.
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
            let fetched = fetched.map_err(|source| self.object.remember(inner.location.error(source)))?;
            self.current = self.object.record_arrival(fetched);
            self.request_ahead();
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Drop for ObjectReader {
    /// An abandoned reader must stop downloading.
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

    fn object_of(bytes: &[u8]) -> (tokio::runtime::Runtime, tempfile::NamedTempFile, Object) {
        let (runtime, stores) = local_stores();
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), bytes).expect("write");
        let uri = file.path().to_str().expect("UTF-8").to_owned();
        let object =
            Object::open(&stores, &ObjectRef { uri, size_bytes: None, version: None }).expect("open");
        (runtime, file, object)
    }

    #[test]
    fn a_reader_yields_every_byte_in_order_across_requests() {
        let bytes: Vec<u8> = (0..5 * READ_BYTES + 12_345).map(|n| ((n * 31) >> 7) as u8).collect();
        let (_runtime, _file, object) = object_of(&bytes);
        let mut read = Vec::new();
        object.reader().read_to_end(&mut read).expect("read");
        assert!(read == bytes);
        assert!(object.take_error().is_none());
    }

    #[test]
    fn an_object_replaced_while_it_is_read_is_an_error() {
        // more bytes than are in flight after the first ones have arrived
        let bytes = vec![7; (READS_IN_FLIGHT + 2) * READ_BYTES as usize];
        let (_runtime, file, object) = object_of(&bytes);
        let mut reader = object.reader();
        let mut first = [0; 10];
        reader.read_exact(&mut first).expect("first bytes");
        std::fs::write(file.path(), b"something else").expect("replace");
        // the store sees another version, or fewer bytes than were promised
        io::copy(&mut reader, &mut io::sink()).expect_err("replaced");
        assert!(object.take_error().is_some());
        assert!(object.take_error().is_none(), "an error is taken once");
    }

    #[test]
    fn an_empty_object_has_no_bytes_and_no_error() {
        let (_runtime, _file, object) = object_of(b"");
        assert_eq!(object.size_bytes(), 0);
        assert_eq!(io::copy(&mut object.reader(), &mut io::sink()).expect("empty"), 0);
    }
}
