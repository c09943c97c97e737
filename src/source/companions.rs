//! Decides whether a companion of images is an image itself.
//!
//! Input: an object with the name of a label, a caption or another companion. Output: whether its first bytes are
//! those of an image.
//!
//! - A companion that cannot be read counts as an image: its row says why it cannot be read.

use futures_util::StreamExt;
use futures_util::future::join_all;
use object_store::{GetOptions, GetRange};

use crate::error::{SourceError, StorageError};
use crate::items::{ManifestEntry, ObjectRef};
use crate::sniff::{self, is_image};
use crate::store::retry::again;

use crate::store::{
    Encoding, Location, ObjectRead, OddFile, Stores, ambiguous_fault, check_unchanged, condition,
    object_fault, stated_size, unusable_object,
};

/// The number of first bytes that show whether an object is an image.
pub(super) const HEAD_BYTES: u64 = sniff::HEAD_BYTES as u64;

/// Whether each of `entries` is a record. Only companions are read, all of them concurrently.
///
/// # Errors
/// When their store fails.
pub(super) fn are_records(stores: &Stores, entries: &[ManifestEntry]) -> Result<Vec<bool>, StorageError> {
    let examinations = entries.iter().map(|entry| async move {
        if entry.sidecar.is_none() {
            return Ok(true);
        }
        if let Some(path) = &entry.path {
            let file = OddFile { path: path.clone(), uri: entry.object.uri.clone() };
            return Ok(file.head(HEAD_BYTES).map_or(true, |head| is_image(&head)));
        }
        let location = match stores.resolve(&entry.object.uri) {
            Ok(location) => location,
            Err(SourceError::Storage(error)) => return Err(error),
            Err(_) => return Ok(true),
        };
        match begins_as_image(&location, &entry.object).await {
            Err(error)
                if object_fault(&error, &entry.object, Some(location.kind)).is_none()
                    && unusable_object(&error).is_none()
                    && ambiguous_fault(&error).is_none() =>
            {
                Err(location.error(error))
            }
            examined => Ok(examined.unwrap_or(true)),
        }
    });
    stores.runtime().block_on(join_all(examinations)).into_iter().collect()
}

/// Whether the first bytes of an object are those of an image.
pub(super) async fn begins_as_image(location: &Location, known: &ObjectRef) -> object_store::Result<bool> {
    let Location { kind, store, path, .. } = location;
    let end = known.size_bytes.map_or(HEAD_BYTES, |size| size.min(HEAD_BYTES));
    if end == 0 {
        return Ok(false);
    }
    let if_match = condition(known.version.as_deref())?;
    let head = |range: Option<GetRange>| {
        let options = GetOptions {
            range,
            if_match: if_match.clone(),
            extensions: ObjectRead { most_bytes: end }.extensions(),
            ..GetOptions::default()
        };
        async move {
            let answer = store.get_opts(path, options).await?;
            let size = stated_size(&answer).and(known.size_bytes);
            check_unchanged(*kind, &answer.meta, size, known.version.as_deref())?;
            let encoding = Encoding::of(&answer.attributes);
            let (mut bytes, mut pieces) = (Vec::new(), answer.into_stream());
            while let Some(piece) = pieces.next().await.filter(|_| (bytes.len() as u64) < end) {
                bytes.extend_from_slice(&piece?);
            }
            Ok(encoding.head_unpacked(bytes))
        }
    };
    let examined = match again(|| head(Some((0..end).into()))).await {
        // a server without ranges, or one that decompresses what it stores, sends the whole object
        Err(error) if unusable_object(&error).is_some() => again(|| head(None)).await,
        examined => examined,
    };
    // if the first bytes cannot be decompressed, the object counts as an image and its reader decides
    Ok(examined?.is_none_or(|head| is_image(&head)))
}
