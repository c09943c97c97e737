//! Tests whether a store serves other objects after one has failed.
//!
//! - It tries the object that was read last, and some neighbours of the failed one: those that are read at the same
//!   time, or the first ones in its folder.
//! - An object that does not arrive within [`PROBE_TIME`] counts as not served. A store that serves too few
//!   ([`Proof`]) counts as failing.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use object_store::GetOptions;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;

use crate::error::wrong_checksum;

use super::answer_length::ObjectRead;
use super::http_checks::ObjectCrc32c;
use super::location::Location;
use super::outage::SingleTry;

/// Time limit of all probes together: a few tries for a store that occasionally refuses a request.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// Objects that are tried in addition to the one that was read last.
const PROBES: usize = 8;

/// Bytes of an object that a probe reads: all of most images, and enough to notice a broken connection.
const PROBE_BYTES: u64 = 1 << 20;

/// The evidence that a store is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The first bytes of one other object.
    One,
    /// The first bytes of most other objects, each requested once: a store that fails occasionally serves some objects,
    /// too.
    Most,
    /// All of one other object, with the checksum that its store states.
    Checked,
}

/// Whether the store of `failed` serves other objects. `beside` are paths of other objects in that store.
pub(super) async fn serves_others(failed: &Location, beside: Vec<Path>, proof: Proof) -> bool {
    let (mut tried, mut served) = (0, 0);
    let probe = async {
        let beside = if beside.is_empty() { listed_beside(failed).await } else { beside };
        let others = failed.last_read.get().into_iter().chain(beside.into_iter().take(PROBES));
        let others: HashSet<_> = others.filter(|other| *other != failed.path).collect();
        tried = others.len();
        // all at once, because some may have the same fault and take long to fail
        let answers = others.into_iter().map(|other| is_served(failed, other, proof));
        let mut answers = stream::iter(answers).buffer_unordered(PROBES + 1);
        while let Some(is_served) = answers.next().await {
            served += usize::from(is_served);
            if proof != Proof::Most && is_served {
                break;
            }
        }
    };
    // an answer that is still missing at the timeout counts as not served
    let _ = tokio::time::timeout(PROBE_TIME, probe).await;
    if proof == Proof::Most { 2 * served > tried } else { served > 0 }
}

/// Whether an object arrives. Requests all of it: not every server serves ranges.
async fn is_served(failed: &Location, path: Path, proof: Proof) -> bool {
    // a checksum is over the whole object
    let most_bytes = if proof == Proof::Checked { u64::MAX } else { PROBE_BYTES };
    let mut extensions = ObjectRead { most_bytes }.extensions();
    if proof == Proof::Most {
        extensions.insert(SingleTry);
    }
    let whole = GetOptions { extensions, ..GetOptions::default() };
    let Ok(answer) = failed.store.get_opts(&path, whole).await else { return false };
    let stated = answer.extensions.get::<ObjectCrc32c>().copied();
    let (mut pieces, mut bytes, mut crc32c) = (answer.into_stream(), 0, 0);
    while proof == Proof::Checked || bytes < PROBE_BYTES {
        match pieces.next().await {
            Some(Ok(piece)) => {
                bytes += piece.len() as u64;
                crc32c = crc32c::crc32c_append(crc32c, &piece);
            }
            Some(Err(_)) => return false,
            None => break,
        }
    }
    proof != Proof::Checked || stated == Some(ObjectCrc32c(crc32c))
}

/// Whether the whole object arrives again with the checksum `found`. Bytes that were corrupted on their way would have
/// another checksum each time.
pub(super) async fn sends_the_same_again(location: &Location, found: u32) -> bool {
    let extensions = ObjectRead { most_bytes: u64::MAX }.extensions();
    let whole = GetOptions { extensions, ..GetOptions::default() };
    let Ok(answer) = location.store.get_opts(&location.path, whole).await else { return false };
    let (mut pieces, mut crc32c) = (answer.into_stream(), 0);
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => crc32c = crc32c::crc32c_append(crc32c, &piece),
            // a checksum error comes after the last byte
            Err(error) if wrong_checksum(&error).is_some() => break,
            Err(_) => return false,
        }
    }
    crc32c == found
}

/// The first objects in the folder of `failed`; none if its store cannot be listed.
async fn listed_beside(failed: &Location) -> Vec<Path> {
    let Some(pages) = &failed.pages else { return Vec::new() };
    let key = failed.path.as_ref();
    let folder = key.rfind('/').map(|slash| &key[..=slash]);
    let options = PaginatedListOptions { max_keys: Some(PROBES + 1), ..PaginatedListOptions::default() };
    let listed = pages.list_paginated(folder, options).await;
    listed.map_or_else(
        |_| Vec::new(),
        |page| page.result.objects.into_iter().map(|meta| meta.location).collect(),
    )
}
