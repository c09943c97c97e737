//! Loose images: one object, one record.
//!
//! Comes in: the entries of a virtual shard. Goes out: one record for each, in their order.
//!
//! - What is wrong with one object (gone, denied, replaced since it was listed, named impossibly)
//!   is that record's reason; a store that fails ends the shard.
//! - An object over the size limit is told by its headers and not downloaded.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};
use tokio::task::JoinHandle;

use crate::error::{ReadError, SourceError, StorageError};
use crate::items::{ManifestEntry, RawRecord, Rejected, Status};

use super::format::{image_content, too_large};
use super::object::strong_tag;
use super::store::Stores;

/// Requests under way. Each is a round trip of some 50 ms to a bucket, so 32 make about 600 images
/// a second for each shard that is read; a local disk is busy with fewer.
const REQUESTS_IN_FLIGHT: usize = 32;

/// Bytes that may be under way or waiting for their turn: as much as 32 photos of 2 MiB. The next
/// image in line is always fetched, so the most a shard holds is this and one image more.
pub const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// What an object of unknown size, as a manifest lists them, counts for.
const ASSUMED_BYTES: u64 = BYTES_IN_FLIGHT / REQUESTS_IN_FLIGHT as u64;

/// The images of one virtual shard.
pub(super) struct FileRecords {
    stores: Stores,
    entries: std::vec::IntoIter<ManifestEntry>,
    /// Entries in order, the first one being waited for.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    max_image_bytes: u64,
}

struct InFlight {
    entry: ManifestEntry,
    counted_bytes: u64,
    answer: Answer,
}

enum Answer {
    Coming(JoinHandle<object_store::Result<Fetched>>),
    /// Settled without asking the store.
    Rejected(Rejected),
    /// The store could not even be set up.
    Failed(StorageError),
}

enum Fetched {
    Bytes(Bytes),
    TooLarge { image_bytes: u64 },
}

impl FileRecords {
    pub fn new(stores: Stores, entries: Vec<ManifestEntry>, max_image_bytes: u64) -> Self {
        let entries = entries.into_iter();
        Self { stores, entries, in_flight: VecDeque::new(), in_flight_bytes: 0, max_image_bytes }
    }

    /// The next image; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        self.request_ahead();
        let Some(InFlight { entry, counted_bytes, answer }) = self.in_flight.pop_front() else {
            return Ok(None);
        };
        self.in_flight_bytes -= counted_bytes;
        let content = match answer {
            Answer::Rejected(rejected) => Err(rejected),
            Answer::Failed(error) => return Err(error.into()),
            Answer::Coming(task) => {
                let fetched = self.stores.runtime().block_on(task).unwrap_or_else(|error| Err(error.into()));
                match fetched {
                    Ok(Fetched::Bytes(bytes)) => image_content(bytes, self.max_image_bytes),
                    Ok(Fetched::TooLarge { image_bytes }) => {
                        Err(too_large(image_bytes, self.max_image_bytes))
                    }
                    Err(source) => match object_fault(&source) {
                        Some(what) => Err(unreadable(&entry, what)),
                        None => return Err(StorageError { uri: entry.object.uri, source }.into()),
                    },
                }
            }
        };
        self.request_ahead();
        Ok(Some(RawRecord { image_id: entry.image_id, content }))
    }

    fn request_ahead(&mut self) {
        while self.in_flight.len() < REQUESTS_IN_FLIGHT {
            let Some(next) = self.entries.as_slice().first() else { return };
            let size = next.object.size_bytes.unwrap_or(ASSUMED_BYTES).min(self.max_image_bytes);
            if !self.in_flight.is_empty() && self.in_flight_bytes + size > BYTES_IN_FLIGHT {
                return;
            }
            let Some(entry) = self.entries.next() else { return };
            let answer = self.request(&entry);
            self.in_flight_bytes += size;
            self.in_flight.push_back(InFlight { entry, counted_bytes: size, answer });
        }
    }

    fn request(&self, entry: &ManifestEntry) -> Answer {
        if let Some(size) = entry.object.size_bytes
            && size > self.max_image_bytes
        {
            return Answer::Rejected(too_large(size, self.max_image_bytes));
        }
        let location = match self.stores.resolve(&entry.object.uri) {
            Ok(location) => location,
            Err(SourceError::Storage(error)) => return Answer::Failed(error),
            Err(error) => {
                return Answer::Rejected(Rejected::new(Status::ReadError, error.to_string()));
            }
        };
        let options = GetOptions {
            if_match: entry.object.version.as_deref().and_then(strong_tag),
            ..GetOptions::default()
        };
        let fetch = fetch(location.store, location.path, options, self.max_image_bytes);
        Answer::Coming(self.stores.runtime().spawn(fetch))
    }
}

impl Drop for FileRecords {
    /// A shard given up early must not go on downloading.
    fn drop(&mut self) {
        for waiting in &self.in_flight {
            if let Answer::Coming(task) = &waiting.answer {
                task.abort();
            }
        }
    }
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    path: Path,
    options: GetOptions,
    max_image_bytes: u64,
) -> object_store::Result<Fetched> {
    let answer = store.get_opts(&path, options).await?;
    if answer.meta.size > max_image_bytes {
        return Ok(Fetched::TooLarge { image_bytes: answer.meta.size });
    }
    Ok(Fetched::Bytes(answer.bytes().await?))
}

fn unreadable(entry: &ManifestEntry, what: &str) -> Rejected {
    Rejected::new(Status::ReadError, format!("{}: {what}", entry.object.uri))
}

/// What is wrong with this object alone, in words; `None` when it is the store that fails.
fn object_fault(error: &object_store::Error) -> Option<&'static str> {
    match error {
        object_store::Error::NotFound { .. } => return Some("not found"),
        object_store::Error::PermissionDenied { .. } => return Some("permission denied"),
        object_store::Error::Precondition { .. } => return Some("replaced since it was listed"),
        _ => {}
    }
    // the local store wraps what the operating system said
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::PermissionDenied => Some("permission denied"),
                io::ErrorKind::NotADirectory => Some("not found"),
                io::ErrorKind::InvalidFilename => Some("the name is too long or not valid"),
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::local_stores;
    use super::*;
    use crate::items::ObjectRef;

    fn entry(uri: String, size_bytes: Option<u64>, version: Option<&str>) -> ManifestEntry {
        let version = version.map(str::to_owned);
        ManifestEntry { image_id: uri.clone(), object: ObjectRef { uri, size_bytes, version } }
    }

    fn read(stores: &Stores, entries: Vec<ManifestEntry>, max: u64) -> Vec<RawRecord> {
        let mut reader = FileRecords::new(stores.clone(), entries, max);
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
    fn what_is_wrong_with_one_object_is_its_own_reason() {
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
            entry(at("ok.jpg"), Some(5), None),
        ];
        let found = read(&stores, entries, 10);
        let statuses: Vec<_> =
            found.iter().map(|r| r.content.as_ref().map_or_else(|e| e.status, |_| Status::Ok)).collect();
        let mut expected = vec![Status::ReadError, Status::Empty, Status::TooLarge, Status::TooLarge];
        expected.extend([Status::ReadError; 5]);
        expected.push(Status::Ok);
        assert_eq!(statuses, expected, "{found:?}");
        let message = &found[0].content.as_ref().expect_err("missing").error;
        assert_eq!(*message, format!("{}: not found", at("missing.jpg")));
    }

    #[test]
    fn large_images_are_not_fetched_together() {
        let (_runtime, stores) = local_stores();
        let size = BYTES_IN_FLIGHT / 2;
        let entries = (0..9).map(|n| entry(format!("/no/{n}.jpg"), Some(size), None)).collect();
        let mut reader = FileRecords::new(stores, entries, size);
        let mut found = 0;
        while reader.next_record().expect("row").is_some() {
            assert!(reader.in_flight.len() <= 2);
            found += 1;
        }
        assert_eq!(found, 9);
    }
}
