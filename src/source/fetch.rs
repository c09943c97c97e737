//! Fetching one loose image.
//!
//! Input: an entry of a virtual shard and its location. Output: the bytes of the object, or why there are none.
//!
//! - The answer's headers give the size. Its bytes are read only when there is room for them, or when the entry is the
//!   first in line ([`Gate`]).
//! - If the headers give no size, the object is read up to the size limit.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::GetOptions;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::error::WrongChecksum;
use crate::items::ManifestEntry;
use crate::sniff::is_image;
use crate::store::retry::again;
use crate::store::{
    Encoding, Location, ObjectCrc32c, ObjectRead, OddFile, SentUnpacked, StoreKind, check_unchanged,
    condition, stated_size, version_of,
};

use super::companions::{self, HEAD_BYTES};

/// The outcome of a request for an image.
pub(super) enum Fetched {
    /// The bytes, with the room that they take if they were fetched ahead.
    Bytes(Bytes, Encoding, Option<OwnedSemaphorePermit>),
    TooLarge {
        image_bytes: u64,
    },
    /// The server stated no length, and the object is longer than an image may be.
    Endless,
    /// A companion of images that is not an image itself.
    NoImage,
}

/// Delays the bytes of an image after its headers, which give its size.
pub(super) struct Gate {
    pub room: Arc<Semaphore>,
    pub turn: Arc<Notify>,
}

impl Gate {
    /// Wait for room for `bytes`, or for the image's turn. Without the turn, the first image in line could wait for
    /// room that only later images hold.
    async fn pass(self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            room = self.room.acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)) => room.ok(),
            () = self.turn.notified() => None,
        }
    }
}

/// Fetch the image at `location`.
pub(super) async fn fetch(
    location: Location,
    entry: ManifestEntry,
    max_image_bytes: u64,
    gate: Gate,
) -> object_store::Result<Fetched> {
    if entry.sidecar.is_some() && !companions::begins_as_image(&location, &entry.object).await? {
        return Ok(Fetched::NoImage);
    }
    let (Location { kind, store, path, last_read, .. }, known) = (location, entry.object);
    let options = GetOptions {
        if_match: condition(known.version.as_deref())?,
        extensions: ObjectRead { most_bytes: max_image_bytes }.extensions(),
        ..GetOptions::default()
    };
    // the first request to a web server is not repeated: a manifest may name any number of servers
    let ask = || async {
        let answer = store.get_opts(&path, options.clone()).await?;
        let size = stated_size(&answer).and(known.size_bytes);
        check_unchanged(kind, &answer.meta, size, known.version.as_deref())?;
        Ok(answer)
    };
    let answer = if kind == StoreKind::Http { ask().await? } else { again(ask).await? };
    let (size, version) = (stated_size(&answer), version_of(kind, &answer.meta));
    if let Some(image_bytes) = size.filter(|size| *size > max_image_bytes) {
        return Ok(Fetched::TooLarge { image_bytes });
    }
    let room = gate.pass(size.unwrap_or(max_image_bytes)).await;
    // the answer above has waited for room, so it is read first; if it proves wrong, the object is requested again
    let mut first = Some(answer);
    let fetched = again(|| {
        let answer = first.take();
        let (store, path, options, version) = (&store, &path, &options, version.as_deref());
        async move {
            let answer = match answer {
                Some(answer) => answer,
                None => store.get_opts(path, options.clone()).await?,
            };
            check_unchanged(kind, &answer.meta, stated_size(&answer).and(size), version)?;
            let is_sent_as_stored = answer.extensions.get::<SentUnpacked>().is_none();
            let expected = stated_size(&answer).or(known.size_bytes.filter(|_| is_sent_as_stored));
            let stored = answer.extensions.get().copied();
            let encoding = Encoding::of(&answer.attributes);
            let bytes = answer.bytes().await?;
            if bytes.len() as u64 > max_image_bytes && expected.is_none() {
                return Ok(None);
            }
            if let Some(expected) = expected
                && bytes.len() as u64 != expected
            {
                let message = format!("{} bytes came of {expected}", bytes.len());
                return Err(object_store::Error::Generic { store: "read", source: message.into() });
            }
            verify_checksum(&bytes, stored)?;
            Ok(Some((bytes, encoding)))
        }
    });
    Ok(match fetched.await? {
        Some((bytes, encoding)) => {
            last_read.set(&path);
            Fetched::Bytes(bytes, encoding, room)
        }
        None => Fetched::Endless,
    })
}

/// Fetch an image from a file whose name no store can address.
pub(super) async fn fetch_file(
    path: PathBuf,
    entry: ManifestEntry,
    max_image_bytes: u64,
    gate: Gate,
) -> object_store::Result<Fetched> {
    let is_companion = entry.sidecar.is_some();
    let file = Arc::new(OddFile { path, uri: entry.object.uri });
    let size = {
        let (file, version) = (Arc::clone(&file), entry.object.version);
        // the size; `None` for a companion that is no image
        move || -> object_store::Result<_> {
            if is_companion && !is_image(&file.head(HEAD_BYTES)?) {
                return Ok(None);
            }
            file.size_of_version(version.as_deref()).map(Some)
        }
    };
    let Some(image_bytes) = spawn_blocking(size).await?? else { return Ok(Fetched::NoImage) };
    if image_bytes > max_image_bytes {
        return Ok(Fetched::TooLarge { image_bytes });
    }
    let room = gate.pass(image_bytes).await;
    let bytes = spawn_blocking(move || file.read(image_bytes)).await??;
    Ok(Fetched::Bytes(bytes, Encoding::default(), room))
}

/// Compare an image with the checksum that its store states. If the connection broke, the rest arrived as a second
/// answer, and nothing else verifies that both parts belong together.
fn verify_checksum(bytes: &Bytes, stored: Option<ObjectCrc32c>) -> object_store::Result<()> {
    let Some(ObjectCrc32c(expected)) = stored else { return Ok(()) };
    let found = crc32c::crc32c(bytes);
    if found == expected {
        return Ok(());
    }
    let source = WrongChecksum { found, expected }.into();
    Err(object_store::Error::Generic { store: "read", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_compared_with_the_checksum_of_its_object() {
        let bytes = Bytes::from_static(b"123456789");
        assert!(verify_checksum(&bytes, None).is_ok());
        assert!(verify_checksum(&bytes, Some(ObjectCrc32c(0xe306_9283))).is_ok());
        let error = verify_checksum(&bytes, Some(ObjectCrc32c(0xe306_9284))).expect_err("another");
        assert!(matches!(error, object_store::Error::Generic { .. }), "the error must be retryable: {error}");
    }
}
