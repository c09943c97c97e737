//! What is left of a run that was removed, by attempts at it that were still alive.
//!
//! - `_run.json` says whose an output is. An attempt at another run stops as soon as it looks there, which it
//!   does at each checkpoint and before it finishes; until then it may store parts under names that
//!   the new run needs, for names depend on the input alone.
//! - Such a part is told by the run in its footer. Whoever is in its way removes it, once `_run.json` has
//!   said that the output is his own.
//! - A store removes by name, and in the meantime another attempt may have put this run's own part there. So
//!   an object is removed by one attempt only, who creates a token for that very version of it first: nothing
//!   else can take its place before it is gone. If he dies in between, another may try after a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

use super::attempts::Notes;
use super::finish::{StoredManifest, sha256_of};
use super::footer::RUN_ID;
use super::listing::{ObjectEntry, OutputListing};
use super::output::{MANIFEST, Output, SUCCESS, random_name};
use super::record::{RUN, RunRecord};
use super::stored_part::{NO_PART, READS, read_footer};
use super::upload::holds;
use crate::error::{SinkError, StorageError};
use crate::plan::hex;
use crate::report::Outcome;
use crate::store::retry::{self, again};

/// Folder of tokens, below the output.
pub(super) const DISPLACED: &str = "_displaced";

/// How often, and how long apart, it is looked whether something is gone at last.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Age of a token whose holder is taken for dead: far longer than any store is asked to remove an object.
const TOKEN_LIVES: TimeDelta = TimeDelta::minutes(15);

/// Why an object of another run is removed.
const LEFT_BEHIND: &str = "removing what a run has left that was removed before";

/// A run, and the output that is its own.
#[derive(Debug, Clone)]
pub struct Fence {
    run_id: String,
    root: Path,
}

impl Fence {
    pub fn new(run_id: &str, root: Path) -> Self {
        Self { run_id: run_id.to_owned(), root }
    }

    /// Remove the part at `path`, if another run has left it there; whether it is gone.
    pub async fn displace(&self, store: &Arc<dyn ObjectStore>, path: &Path) -> object_store::Result<bool> {
        let look = again(|| async {
            let meta = store.head(path).await?;
            Ok((run_of(store, path, meta.size).await?, meta))
        });
        match look.await {
            Ok((Some(theirs), meta)) if theirs != self.run_id => {
                if self.is_valid(store).await? {
                    self.remove_once(store, &meta, None, LEFT_BEHIND).await
                } else {
                    Ok(false)
                }
            }
            // what says no run, or is no part, is told when it is looked at
            Ok(_) | Err(object_store::Error::Generic { store: NO_PART, .. }) => Ok(false),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Remove that version of a part, which is damaged as `why` says, if the output is still this run's; whether it
    /// is gone.
    pub async fn remove_damaged(
        &self,
        store: &Arc<dyn ObjectStore>,
        meta: &ObjectMeta,
        why: &str,
    ) -> object_store::Result<bool> {
        if self.is_valid(store).await? { self.remove_once(store, meta, None, why).await } else { Ok(false) }
    }

    /// Remove `before`, then that version of an object, unless another attempt does, and warn `why`; whether it is
    /// gone.
    async fn remove_once(
        &self,
        store: &Arc<dyn ObjectStore>,
        meta: &ObjectMeta,
        before: Option<&Path>,
        why: &str,
    ) -> object_store::Result<bool> {
        let version = format!("{} {:?} {:?} {}", meta.location, meta.e_tag, meta.version, meta.last_modified);
        let version = hex(&Sha256::digest(version));
        let token = |number: u32| self.root.clone().join(DISPLACED).join(format!("{version}-{number}"));
        let is_there = || async {
            match again(|| store.head(&meta.location)).await {
                Ok(now) => Ok(now.e_tag == meta.e_tag && now.last_modified == meta.last_modified),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let mut number = 0;
        let is_holder = loop {
            let token = token(number);
            // the content is this holder's alone, also among attempts at one run
            let content = Bytes::from(format!("{} {}", self.run_id, random_name()));
            if retry::create(store, &token, content.clone().into()).await?
                || holds(store, &token, &content).await?
            {
                break true;
            }
            match again(|| store.head(&token)).await {
                Ok(held) if Utc::now() - held.last_modified > TOKEN_LIVES => number += 1,
                // whoever finishes a run removes tokens
                Ok(_) | Err(object_store::Error::NotFound { .. }) => break false,
                Err(error) => return Err(error),
            }
        };
        let mut failed = None;
        for look in 0..LOOKS {
            if !is_there().await? {
                return Ok(true);
            }
            if is_holder {
                if look == 0 {
                    tracing::warn!(name = meta.location.filename().unwrap_or_default(), "{why}");
                }
                for path in before.into_iter().chain([&meta.location]) {
                    match store.delete(path).await {
                        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => failed = Some(error),
                    }
                }
                if failed.is_none() {
                    return Ok(true);
                }
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        failed.map_or(Ok(false), Err)
    }

    /// Whether the output is still this run's.
    async fn is_valid(&self, store: &Arc<dyn ObjectStore>) -> object_store::Result<bool> {
        let path = self.root.clone().join(RUN);
        match again(|| async { store.get(&path).await?.bytes().await }).await {
            Ok(bytes) => {
                Ok(serde_json::from_slice(&bytes).is_ok_and(|record: RunRecord| record.run_id == self.run_id))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What `_SUCCESS` holds.
pub fn success_of(manifest_sha256: &str) -> Vec<u8> {
    format!("{manifest_sha256}\n").into_bytes()
}

/// The run that a part of `bytes` says it is of; `None` if it does not say.
async fn run_of(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
) -> object_store::Result<Option<String>> {
    let footer = read_footer(store, path, bytes).await?;
    let pairs = footer.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    Ok(pairs.iter().find(|pair| pair.key == RUN_ID).and_then(|pair| pair.value.clone()))
}

impl Output {
    /// The fence of the run `run_id`.
    pub(super) fn fence(&self, run_id: &str) -> Fence {
        Fence::new(run_id, self.root().clone())
    }

    /// `listing` without what another run than `run_id` has left among `parts`, which is removed. What `notes`
    /// know is this run's.
    pub(crate) fn without_others(
        &self,
        listing: OutputListing,
        parts: Vec<ObjectEntry>,
        notes: &Notes,
        run_id: &str,
    ) -> Result<OutputListing, SinkError> {
        let fence = self.fence(run_id);
        let unknown: Vec<_> = parts.into_iter().filter(|part| !notes.know(part)).collect();
        let displacing = futures_util::stream::iter(unknown).map(|part| {
            let (fence, path) = (&fence, self.path_of(&part.name));
            async move {
                match fence.displace(self.store(), &path).await {
                    Ok(gone) => Ok(gone.then_some(part.name)),
                    Err(source) => Err(StorageError { uri: self.uri_of(&part.name), source }),
                }
            }
        });
        let displaced: Vec<_> = self.runtime().block_on(displacing.buffered(READS).try_collect())?;
        // not listed again: what has come since is not known to be this run's
        Ok(listing.without(&displaced.into_iter().flatten().collect()))
    }

    /// Remove the manifest of another run than `run_id`, and the `_SUCCESS` beside it.
    pub(crate) fn remove_foreign_manifest(&self, run_id: &str) -> Result<(), SinkError> {
        self.remove_manifest_if(run_id, |theirs| theirs.run_id != run_id, true).map(drop)
    }

    /// Remove the manifest of the run `run_id`, which is not the one any more that lies here.
    pub(crate) fn take_manifest_back(&self, run_id: &str) -> Result<(), SinkError> {
        self.remove_manifest_if(run_id, |theirs| theirs.run_id == run_id, false).map(drop)
    }

    /// Remove the manifest of the run `run_id` that says "too many errors", so that another one can be created;
    /// whether it is gone. One that says "succeeded" stays: `_SUCCESS` may be about to name it.
    pub(crate) fn remove_failed_manifest(&self, run_id: &str) -> Result<bool, SinkError> {
        let is_failed =
            |said: &StoredManifest| said.run_id == run_id && said.summary.outcome == Outcome::TooManyErrors;
        self.remove_manifest_if(run_id, is_failed, true)
    }

    /// Remove `_SUCCESS` and the manifest, if it is one that `is_wrong`; with `fenced` only if the output is the run
    /// `run_id`'s. Returns whether no such manifest is there any more.
    fn remove_manifest_if(
        &self,
        run_id: &str,
        is_wrong: impl Fn(&StoredManifest) -> bool,
        fenced: bool,
    ) -> Result<bool, SinkError> {
        let (fence, path, success) = (self.fence(run_id), self.path_of(MANIFEST), self.path_of(SUCCESS));
        let removing = async {
            let look = again(|| async {
                let meta = self.store().head(&path).await?;
                Ok((self.store().get(&path).await?.bytes().await?, meta))
            });
            let (bytes, meta) = match look.await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(true),
                Err(error) => return Err(error),
            };
            // what cannot be read is told when it is to be replaced
            let manifest: Option<StoredManifest> = serde_json::from_slice(&bytes).ok();
            if manifest.is_none_or(|manifest| !is_wrong(&manifest)) {
                return Ok(true);
            }
            if fenced && !fence.is_valid(self.store()).await? {
                return Ok(false);
            }
            // there is no `_SUCCESS` but its own before the next manifest
            fence.remove_once(self.store(), &meta, Some(&success), LEFT_BEHIND).await
        };
        let removed = self.runtime().block_on(removing);
        removed.map_err(|source| StorageError { uri: self.uri_of(MANIFEST), source }.into())
    }

    /// Create `_SUCCESS`, which holds the hash of the manifest of the run `run_id`. Whoever has `created` that manifest
    /// replaces the `_SUCCESS` of another run, which was removed while an attempt at it was still alive.
    ///
    /// # Errors
    /// Those of the store, [`SinkError::OtherRun`] when the output is not that run's any more, and
    /// [`SinkError::Uri`] when the manifest was there before, and `_SUCCESS` names another one: one of the two has
    /// changed since.
    pub(crate) fn succeed(
        &self,
        run_id: &str,
        manifest_sha256: &str,
        created: bool,
    ) -> Result<(), SinkError> {
        let content = success_of(manifest_sha256);
        if self.create(SUCCESS, content.clone())? {
            return Ok(());
        }
        self.refuse_another(run_id)?;
        // an attempt that was suspended may find that its manifest was removed by hand and made again
        let is_there = || Ok::<_, SinkError>(sha256_of(&self.read(MANIFEST)?) == manifest_sha256);
        if !created || !is_there()? {
            let message = format!(
                "names another manifest than {MANIFEST}; remove both and run again: what is scored stays as it is"
            );
            return Err(SinkError::Uri { uri: self.uri_of(SUCCESS), message });
        }
        tracing::warn!("replacing the {SUCCESS} of another run, which was removed before");
        self.replace(SUCCESS, content)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::local::LocalFileSystem;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use serde_json::json;

    use super::*;
    use crate::commit::attempts::AttemptNote;
    use crate::commit::testing::store_part;
    use crate::commit::upload::Stored;

    const PARTS: [&str; 2] =
        ["predictions/part-000007-0123456789ab.parquet", "batches/part-000000-000000-000000.parquet"];

    fn record(run_id: &str) -> RunRecord {
        RunRecord {
            schema_version: "1".to_owned(),
            sluice_version: "0.1.0".to_owned(),
            run_id: run_id.to_owned(),
            started_at: "2026-11-25T00:00:00Z".to_owned(),
            plan_sha256: String::new(),
            limit: None,
            determinants: json!({}),
        }
    }

    fn store(output: &Output, run_id: &str, name: &str) -> Stored {
        store_part(output, run_id, name, &[])
    }

    /// Outputs in a store and on a disk, of the run `mine`.
    fn outputs(check: impl Fn(&Output)) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let folder = tempfile::tempdir().expect("folder");
        let disk = LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let stores: [(Arc<dyn ObjectStore>, _); 2] =
            [(Arc::new(InMemory::new()), None), (Arc::new(disk), Some(folder.path().join("a")))];
        for (store, local) in stores {
            let output = Output::new(store, Path::from("a"), "a".to_owned(), local, runtime.handle().clone());
            output.claim(&record("mine"), &AttemptNote::begun(0, 1), false).expect("an empty output");
            check(&output);
        }
    }

    #[test]
    fn a_part_of_a_run_that_was_removed_gives_way_and_no_other() {
        outputs(|output| {
            for name in PARTS {
                assert!(!store(output, "theirs", name).was_there);
                let mine = store(output, "mine", name);
                assert!(!mine.was_there, "theirs was in the way of {name}");
                assert_eq!(output.digest(name).expect("stored").sha256, mine.sha256);
                // the output is not theirs, and mine is there already
                assert!(store(output, "theirs", name).was_there);
                assert!(store(output, "mine", name).was_there);
                assert_eq!(output.digest(name).expect("stored").sha256, mine.sha256);
            }
        });
    }

    #[test]
    fn what_a_removed_run_has_left_is_removed_when_it_is_found() {
        outputs(|output| {
            store(output, "mine", "predictions/part-000003-0123456789ab.parquet");
            for name in PARTS {
                store(output, "theirs", name);
            }
            let doubled = "predictions/part-000003-ba9876543210.parquet";
            store(output, "theirs", doubled);
            finish(output, "theirs");
            assert!(!output.is_finished("mine").expect("readable"), "it is theirs");
            let claim = output.claim(&record("mine"), &AttemptNote::begun(0, 1), false).expect("mine");
            assert_eq!(claim.listing.predictions.keys().collect::<Vec<_>>(), [&3]);
            assert_eq!(claim.listing.duplicates, [""; 0]);
            // who finishes the run sees to all the rest
            let batches = claim.listing.batches.clone();
            assert_eq!(batches.len(), 1);
            let left = output.without_others(claim.listing, batches, &claim.notes, "mine").expect("mine");
            assert_eq!(left.batches, []);
            let left = output.list().expect("a list");
            assert!(left.begun && !left.listed && !left.finished);
            finish(output, "mine");
            assert!(output.was_finished("mine") && !output.was_finished("theirs"));
            output.take_manifest_back("theirs").expect("not theirs");
            assert!(output.was_finished("mine"));
            output.take_manifest_back("mine").expect("mine");
            assert!(!output.was_finished("mine") && !output.list().expect("a list").listed);
        });
    }

    /// Of several that find the same part in the way one removes it; nobody removes what came in its place.
    #[test]
    fn what_took_a_removed_parts_place_is_not_removed() {
        outputs(|output| {
            store(output, "theirs", PARTS[0]);
            let (fence, path) = (output.fence("mine"), output.path_of(PARTS[0]));
            let seen = output.runtime().block_on(output.store().head(&path)).expect("theirs");
            let mine = store(output, "mine", PARTS[0]);
            assert!(!mine.was_there);
            // somebody who had looked before
            let gone = output.runtime().block_on(fence.remove_once(output.store(), &seen, None, LEFT_BEHIND));
            assert!(gone.expect("it was removed"));
            assert_eq!(output.digest(PARTS[0]).expect("stored").sha256, mine.sha256);
            output.tidy(&output.list().expect("a list").passing().collect::<Vec<_>>()).expect("removed");
            let gone = output.runtime().block_on(fence.remove_once(output.store(), &seen, None, LEFT_BEHIND));
            assert!(gone.expect("it was removed"));
            assert_eq!(output.digest(PARTS[0]).expect("stored").sha256, mine.sha256);
        });
    }

    fn finish(output: &Output, run_id: &str) {
        let manifest = manifest(run_id);
        output.create(MANIFEST, manifest.clone()).expect("stored");
        let sha256 = hex(&Sha256::digest(manifest));
        match output.succeed(run_id, &sha256, true) {
            Ok(()) => {}
            // the output is another's, whose `_SUCCESS` is not touched
            Err(error) => assert!(matches!(error, SinkError::OtherRun { .. }), "{error}"),
        }
    }

    fn manifest(run_id: &str) -> Vec<u8> {
        let part = json!({"path": "", "shard": "", "bytes": 0, "sha256": ""});
        let summary = json!({"outcome": "succeeded", "rows": 0, "rows_by_status": {}});
        let manifest = json!({
            "run_id": run_id, "finished_at": "", "plan_sha256": "", "model_sha256": "", "limit": null,
            "summary": summary, "parts": [], "batches": [], "record": part,
        });
        manifest.to_string().into_bytes()
    }
}
