//! Loose images: one object, one record.
//!
//! Input: the entries of a virtual shard. Output: one record for each, in order. Companions that do not begin like
//! images are counted instead.
//!
//! - Only a companion's first bytes show whether it is a record. A resumed shard is therefore walked from its first
//!   entry, but entries that are records by name are skipped without being read.
//! - A fault of one object (missing, denied, replaced since it was listed, an impossible name, refused while its bucket
//!   serves others) is the reason of its record. A bucket or disk that fails ends the shard. A manifest may name any
//!   number of web servers, so an error of one of them is the reason of its record only.
//! - An object over the size limit is recognised by its headers and not downloaded. If they state no size, it is
//!   downloaded up to the limit.
//! - An object with a Content-Encoding, such as `gsutil -z` sets, is decompressed, also up to the limit.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::error::{ReadError, SourceError, StorageError, lacks_open_files};
use crate::items::{ManifestEntry, RawRecord, Rejected, Status};
use crate::store::retry::cause;

use super::companions;
use super::fetch::{Fetched, Gate, fetch, fetch_file};
use super::records::{image_content, too_large};
use super::skips::Skips;
use crate::store::{StoreKind, Stores, longer_than, object_fault};

/// Requests in flight. Each is a round trip of some 50 ms to a bucket, so 32 make about 600 images a second for each
/// shard that is read; fewer saturate a local disk.
pub(crate) const REQUESTS_IN_FLIGHT: usize = 32;

/// Bytes that may be in flight or waiting for their turn: 32 photos of 2 MiB. The next image in line is always fetched,
/// so a shard holds at most this and one more image.
pub(super) const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// The images of one virtual shard.
pub(super) struct FileRecords {
    stores: Stores,
    entries: std::vec::IntoIter<ManifestEntry>,
    /// Requests in the order of the entries. The caller waits for the first one.
    in_flight: VecDeque<InFlight>,
    /// Bytes that may still be fetched ahead.
    room: Arc<Semaphore>,
    max_image_bytes: u64,
    skips: Skips,
    /// Records to skip before the first one is read.
    to_skip: u64,
}

struct InFlight {
    entry: ManifestEntry,
    kind: Option<StoreKind>,
    /// Notified when the entry is first in line and need not wait for room.
    turn: Arc<Notify>,
    answer: Answer,
}

enum Answer {
    Coming(JoinHandle<object_store::Result<Fetched>>),
    /// Rejected without a request.
    Rejected(Rejected),
    /// The store could not be set up.
    Failed(StorageError),
}

/// An entry and what it holds; `None` for a companion that is not an image.
type Settled = (ManifestEntry, Option<Result<Bytes, Rejected>>);

impl FileRecords {
    /// The records of `entries` from `first_record` on. Skipped entries are counted from the first entry on.
    pub fn new(
        stores: Stores,
        entries: Vec<ManifestEntry>,
        first_record: u64,
        max_image_bytes: u64,
        skips: Skips,
    ) -> Self {
        let entries = entries.into_iter();
        let room = Arc::new(Semaphore::new(BYTES_IN_FLIGHT as usize));
        let to_skip = first_record;
        Self { stores, entries, in_flight: VecDeque::new(), room, max_image_bytes, skips, to_skip }
    }

    /// The next image; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        self.skip_stored()?;
        loop {
            self.request_ahead();
            let Some(waiting) = self.in_flight.pop_front() else { return Ok(None) };
            let (entry, content) = self.settle(waiting)?;
            self.request_ahead();
            match (content, &entry.sidecar) {
                (None, Some(kind)) => self.skips.add(kind, &entry.object.uri),
                (content, _) => {
                    let content = content.unwrap_or_else(|| Err(unreadable(&entry, "it is no image")));
                    return Ok(Some(RawRecord::new(entry.image_id, content)));
                }
            }
        }
    }

    /// Skip the records that checkpoints hold.
    fn skip_stored(&mut self) -> Result<(), ReadError> {
        while self.to_skip > 0 {
            let next: Vec<_> = self.entries.as_slice().iter().take(REQUESTS_IN_FLIGHT).cloned().collect();
            if next.is_empty() {
                let message = "it holds fewer images than a checkpoint has rows of it";
                return Err(ReadError::Corrupt(message.to_owned()));
            }
            let are_records = companions::are_records(&self.stores, &next)?;
            for (entry, is_record) in next.into_iter().zip(are_records) {
                match entry.sidecar {
                    _ if self.to_skip == 0 => break,
                    Some(kind) if !is_record => self.skips.add(&kind, &entry.object.uri),
                    _ => self.to_skip -= 1,
                }
                self.entries.next();
            }
        }
        Ok(())
    }

    /// Wait for the answer for an entry.
    fn settle(&self, waiting: InFlight) -> Result<Settled, ReadError> {
        let InFlight { entry, kind, turn, answer } = waiting;
        turn.notify_one();
        let task = match answer {
            Answer::Rejected(rejected) => return Ok((entry, Some(Err(rejected)))),
            Answer::Failed(error) => return Err(error.into()),
            Answer::Coming(task) => task,
        };
        let content = match self.stores.runtime().block_on(task).unwrap_or_else(|error| Err(error.into())) {
            Ok(Fetched::NoImage) => None,
            Ok(Fetched::Bytes(bytes, encoding, room)) => {
                drop(room);
                let unpacked = encoding.unpacked(bytes, self.max_image_bytes);
                Some(unpacked.and_then(|bytes| image_content(bytes, self.max_image_bytes)))
            }
            Ok(Fetched::Endless) => Some(Err(longer_than(self.max_image_bytes))),
            Ok(Fetched::TooLarge { image_bytes }) => Some(Err(too_large(image_bytes, self.max_image_bytes))),
            Err(source) => match object_fault(&source, &entry.object, kind) {
                Some(what) => Some(Err(unreadable(&entry, &what))),
                None if kind == Some(StoreKind::Http) && !lacks_open_files(&source) => {
                    Some(Err(unreadable(&entry, &cause(&source))))
                }
                None => match self.fault_of(&entry, &source) {
                    Some(what) => Some(Err(unreadable(&entry, &what))),
                    None => return Err(StorageError { uri: entry.object.uri, source }.into()),
                },
            },
        };
        Ok((entry, content))
    }

    fn fault_of(&self, entry: &ManifestEntry, error: &object_store::Error) -> Option<String> {
        let location = self.stores.resolve(&entry.object.uri).ok()?;
        let beside = self.in_flight.iter().map(|other| other.entry.object.uri.as_str());
        self.stores.find_object_fault(&location, beside, error)
    }

    fn request_ahead(&mut self) {
        while self.in_flight.len() < REQUESTS_IN_FLIGHT {
            let Some(entry) = self.entries.next() else { return };
            let request = self.request(entry);
            self.in_flight.push_back(request);
        }
    }

    fn request(&self, entry: ManifestEntry) -> InFlight {
        let turn = Arc::new(Notify::new());
        let settled = |entry, answer| InFlight { entry, kind: None, turn: Arc::new(Notify::new()), answer };
        if let Some(size) = entry.object.size_bytes
            && size > self.max_image_bytes
            && entry.sidecar.is_none()
        {
            return settled(entry, Answer::Rejected(too_large(size, self.max_image_bytes)));
        }
        let gate = Gate { room: Arc::clone(&self.room), turn: Arc::clone(&turn) };
        let runtime = self.stores.runtime();
        if let Some(path) = entry.path.clone() {
            let fetch = fetch_file(path, entry.clone(), self.max_image_bytes, gate);
            let answer = Answer::Coming(runtime.spawn(fetch));
            return InFlight { entry, kind: Some(StoreKind::Local), turn, answer };
        }
        let location = match self.stores.resolve(&entry.object.uri) {
            Ok(location) => location,
            Err(SourceError::Storage(error)) => return settled(entry, Answer::Failed(error)),
            // stores cannot address every name that a file may have
            Err(_) if is_local_file(&entry.object.uri) => {
                let path = PathBuf::from(&entry.object.uri);
                let fetch = fetch_file(path, entry.clone(), self.max_image_bytes, gate);
                let answer = Answer::Coming(runtime.spawn(fetch));
                return InFlight { entry, kind: Some(StoreKind::Local), turn, answer };
            }
            Err(error) => {
                let rejected = Rejected::new(Status::ReadError, error.to_string());
                return settled(entry, Answer::Rejected(rejected));
            }
        };
        let kind = Some(location.kind);
        let fetch = fetch(location, entry.clone(), self.max_image_bytes, gate);
        let answer = Answer::Coming(runtime.spawn(fetch));
        InFlight { entry, kind, turn, answer }
    }
}

impl Drop for FileRecords {
    /// A shard that is abandoned must not continue to download.
    fn drop(&mut self) {
        for waiting in &self.in_flight {
            if let Answer::Coming(task) = &waiting.answer {
                task.abort();
            }
        }
    }
}

/// Whether `uri` is the path of a file with control characters in its name.
fn is_local_file(uri: &str) -> bool {
    uri.contains(char::is_control) && !uri.contains("://") && std::path::Path::new(uri).is_file()
}

fn unreadable(entry: &ManifestEntry, what: &str) -> Rejected {
    Rejected::new(Status::ReadError, format!("{}: {what}", entry.object.uri))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StorageSection;
    use crate::items::ObjectRef;
    use crate::store::local_stores;

    fn entry(uri: String, size_bytes: Option<u64>, version: Option<&str>) -> ManifestEntry {
        let version = version.map(str::to_owned);
        let object = ObjectRef { uri: uri.clone(), size_bytes, version };
        ManifestEntry::new(object, uri)
    }

    fn read(stores: &Stores, entries: Vec<ManifestEntry>, max: u64) -> Vec<RawRecord> {
        let mut reader = FileRecords::new(stores.clone(), entries, 0, max, Skips::default());
        let mut found = Vec::new();
        while let Some(record) = reader.next_record().expect("no storage error") {
            found.push(record);
        }
        found
    }

    #[test]
    fn images_come_in_the_order_of_their_entries() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let names: Vec<_> = (0..200).rev().map(|n| format!("{}/{n}.jpg", folder.path().display())).collect();
        for name in &names {
            std::fs::write(name, name).expect("write");
        }
        let entries = names.iter().map(|name| entry(name.clone(), None, None)).collect();
        let found = read(&stores, entries, 1000);
        assert_eq!(found.len(), 200);
        for (record, name) in found.iter().zip(&names) {
            assert_eq!(record.image_id, *name);
            assert_eq!(record.content, Ok(Bytes::from(name.clone())));
        }
    }

    #[test]
    fn a_fault_of_one_object_is_the_reason_of_its_record() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| format!("{}/{name}", folder.path().display());
        std::fs::write(at("ok.jpg"), b"image").expect("write");
        std::fs::write(at("empty.jpg"), b"").expect("write");
        std::fs::write(at("long.jpg"), [1; 11]).expect("write");
        std::fs::create_dir(at("folder.jpg")).expect("folder");
        let entries = vec![
            entry(at("missing.jpg"), Some(5), None),
            entry(at("empty.jpg"), None, None),
            entry(at("long.jpg"), None, None),
            entry(at("long.jpg"), Some(11), None),
            entry(at("folder.jpg"), None, None),
            entry(at("ok.jpg/inside.jpg"), None, None),
            entry(at(&"x".repeat(300)), None, None),
            entry("nowhere://x/y.jpg".to_owned(), None, None),
            entry(at("ok.jpg"), Some(5), Some("an older version")),
            entry(at("ok.jpg"), Some(4), None),
            entry(at("ok.jpg"), Some(5), None),
        ];
        let found = read(&stores, entries, 10);
        let statuses: Vec<_> =
            found.iter().map(|r| r.content.as_ref().map_or_else(|e| e.status, |_| Status::Ok)).collect();
        let mut expected = vec![Status::ReadError, Status::Empty, Status::TooLarge, Status::TooLarge];
        expected.extend([Status::ReadError; 6]);
        expected.push(Status::Ok);
        assert_eq!(statuses, expected, "{found:?}");
        let message = &found[0].content.as_ref().expect_err("missing").error;
        assert_eq!(*message, format!("{}: not found", at("missing.jpg")));
    }

    #[test]
    fn images_wait_for_room_and_the_first_in_line_does_not() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let names: Vec<_> = (0..9).map(|n| format!("{}/{n}.jpg", folder.path().display())).collect();
        for name in &names {
            std::fs::write(name, [7; 10]).expect("write");
        }
        // room for none, for one and a half, for all
        for room in [5, 15, 1000] {
            let entries = names.iter().map(|name| entry(name.clone(), None, None)).collect();
            let mut reader = FileRecords::new(stores.clone(), entries, 0, 10, Skips::default());
            reader.room = Arc::new(Semaphore::new(room));
            for name in &names {
                let record = reader.next_record().expect("no storage error").expect("a record");
                assert_eq!((&record.image_id, record.content), (name, Ok(Bytes::from_static(&[7; 10]))));
            }
            assert_eq!(reader.room.available_permits(), room, "all room is given back");
        }
    }

    #[test]
    fn a_web_server_that_does_not_answer_costs_only_its_records() {
        let (runtime, _) = local_stores();
        let storage = StorageSection { retry_seconds: 0.2, ..StorageSection::default() };
        let stores = Stores::with(runtime.handle().clone(), storage);
        let folder = tempfile::tempdir().expect("folder");
        let here = format!("{}/a.jpg", folder.path().display());
        std::fs::write(&here, b"image").expect("write");
        // a name that never resolves, by RFC 2606
        let entries =
            vec![entry("https://nobody.invalid/a.jpg".to_owned(), None, None), entry(here, None, None)];
        let found = read(&stores, entries, 10);
        assert_eq!(found[0].content.as_ref().expect_err("no server").status, Status::ReadError);
        assert_eq!(found[1].content, Ok(Bytes::from_static(b"image")));
    }
}
