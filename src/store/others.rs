//! Whether a store gives other objects, where one of them has failed and may be at fault alone.
//!
//! - Those asked for are the object that was read last, and some beside the failed one: what is read together with it, or
//!   the first ones in its folder.
//! - What is not given within [`ASKED_WITHIN`] is not given. A store that gives too little ([`Proof`]) counts as one that
//!   fails.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use object_store::GetOptions;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;

use crate::error::wrong_checksum;

use super::answer_length::ObjectRead;
use super::http_checks::ObjectCrc32c;
use super::outage::AskedOnce;
use super::stores::Location;

/// How long others are asked for: some tries for a store that refuses one request in a while.
const ASKED_WITHIN: Duration = Duration::from_secs(10);

/// Objects asked for, besides the one that was read last.
const ASKED_FOR: usize = 8;

/// How much of an object is taken for all of it: most images, and enough to tell a connection that breaks.
const BEGINNING_BYTES: u64 = 1 << 20;

/// The object that was read last from a store.
#[derive(Clone, Default)]
pub(crate) struct LastRead(Arc<Mutex<Option<Path>>>);

impl LastRead {
    pub fn set(&self, path: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.clone());
    }

    fn get(&self) -> Option<Path> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What has to be given for a store to be sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The beginning of one of the others.
    One,
    /// The beginnings of most of them, each asked for once: of a store that fails now and then some objects come, too.
    Most,
    /// All of one of them, with the checksum that its store tells.
    Checked,
}

/// Whether the store of `failed` gives others. `beside` are paths of others in that store.
pub(super) async fn gives_others(failed: &Location, beside: Vec<Path>, proof: Proof) -> bool {
    let (mut asked, mut given) = (0, 0);
    let ask = async {
        let beside = if beside.is_empty() { listed_beside(failed).await } else { beside };
        let others = failed.last_read.get().into_iter().chain(beside.into_iter().take(ASKED_FOR));
        let others: HashSet<_> = others.filter(|other| *other != failed.path).collect();
        asked = others.len();
        // all at once: some may be in the same trouble, and be waited for
        let answers = others.into_iter().map(|other| is_given(failed, other, proof));
        let mut answers = stream::iter(answers).buffer_unordered(ASKED_FOR + 1);
        while let Some(is_given) = answers.next().await {
            given += usize::from(is_given);
            if proof != Proof::Most && is_given {
                break;
            }
        }
    };
    // what has not come by then is not given
    let _ = tokio::time::timeout(ASKED_WITHIN, ask).await;
    if proof == Proof::Most { 2 * given > asked } else { given > 0 }
}

/// Whether an object comes. All of it is asked for: not every server gives a part.
async fn is_given(failed: &Location, path: Path, proof: Proof) -> bool {
    let mut extensions = ObjectRead { most_bytes: BEGINNING_BYTES }.extensions();
    if proof == Proof::Most {
        extensions.insert(AskedOnce);
    }
    let whole = GetOptions { extensions, ..GetOptions::default() };
    let Ok(answer) = failed.store.get_opts(&path, whole).await else { return false };
    let told = answer.extensions.get::<ObjectCrc32c>().copied();
    let (mut pieces, mut bytes, mut crc32c) = (answer.into_stream(), 0, 0);
    while proof == Proof::Checked || bytes < BEGINNING_BYTES {
        match pieces.next().await {
            Some(Ok(piece)) => {
                bytes += piece.len() as u64;
                crc32c = crc32c::crc32c_append(crc32c, &piece);
            }
            Some(Err(_)) => return false,
            None => break,
        }
    }
    proof != Proof::Checked || told == Some(ObjectCrc32c(crc32c))
}

/// Whether all bytes of the object come with the checksum `found` once more. What is garbled on its way is garbled in
/// another way each time.
pub(super) async fn comes_again_as(location: &Location, found: u32) -> bool {
    let extensions = ObjectRead { most_bytes: u64::MAX }.extensions();
    let whole = GetOptions { extensions, ..GetOptions::default() };
    let Ok(answer) = location.store.get_opts(&location.path, whole).await else { return false };
    let (mut pieces, mut crc32c) = (answer.into_stream(), 0);
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => crc32c = crc32c::crc32c_append(crc32c, &piece),
            // all has come by then
            Err(error) if wrong_checksum(&error).is_some() => break,
            Err(_) => return false,
        }
    }
    crc32c == found
}

/// The first objects in the folder of `failed`; none where its store cannot be listed.
async fn listed_beside(failed: &Location) -> Vec<Path> {
    let Some(pages) = failed.pages() else { return Vec::new() };
    let key = failed.path.as_ref();
    let folder = key.rfind('/').map(|slash| &key[..=slash]);
    let options = PaginatedListOptions { max_keys: Some(ASKED_FOR + 1), ..PaginatedListOptions::default() };
    let listed = pages.list_paginated(folder, options).await;
    listed.map_or_else(
        |_| Vec::new(),
        |page| page.result.objects.into_iter().map(|meta| meta.location).collect(),
    )
}
