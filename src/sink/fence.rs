//! What is left of a run that was removed, by attempts at it that were still alive.
//!
//! - `_run.json` says whose an output is. An attempt at another run stops as soon as it looks there, which it
//!   does at each checkpoint and before it finishes; until then it may store parts under names that
//!   the new run needs, for names depend on the input alone.
//! - Such a part is told by the run in its footer. Whoever is in its way removes it, once `_run.json` has
//!   said that the output is his own.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::attempt::Notes;
use super::output::{MANIFEST, Output, SUCCESS};
use super::part::RUN_ID;
use super::run_record::{RUN, RunRecord};
use super::stored::{Held, Holdings, READS, read_footer};
use crate::error::{SinkError, StorageError};
use crate::retry::again;

/// The run that creates an object.
#[derive(Debug, Clone)]
pub struct Fence {
    pub run_id: String,
    /// Where its `_run.json` lies.
    pub record: Path,
}

impl Fence {
    /// Remove what lies at `path`, if another run has left it there; whether it was removed.
    pub async fn displace(&self, store: &Arc<dyn ObjectStore>, path: &Path) -> object_store::Result<bool> {
        // what cannot be read is no part, which is told when it is looked at
        let Ok(Some(theirs)) = run_of(store, path).await else { return Ok(false) };
        if theirs == self.run_id || !self.is_valid(store).await? {
            return Ok(false);
        }
        tracing::warn!(%path, run = theirs, "removing a part of another run, which was removed before");
        match again(|| store.delete(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether the output is still this run's.
    async fn is_valid(&self, store: &Arc<dyn ObjectStore>) -> object_store::Result<bool> {
        let record = again(|| async { store.get(&self.record).await?.bytes().await }).await;
        match record {
            Ok(bytes) => {
                Ok(serde_json::from_slice(&bytes).is_ok_and(|record: RunRecord| record.run_id == self.run_id))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The run that a part says it is of; `None` if it does not say.
async fn run_of(store: &Arc<dyn ObjectStore>, path: &Path) -> object_store::Result<Option<String>> {
    let footer = again(|| read_footer(store, path)).await?;
    let pairs = footer.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    Ok(pairs.iter().find(|pair| pair.key == RUN_ID).and_then(|pair| pair.value.clone()))
}

impl Output {
    /// The fence of the run `run_id`, which this output is of.
    pub(super) fn fence(&self, run_id: &str) -> Fence {
        Fence { run_id: run_id.to_owned(), record: self.path_of(RUN) }
    }

    /// `holdings` without the parts of another run than `run_id`, which are removed. Those that `notes` know are
    /// this run's.
    ///
    /// # Errors
    /// Those of the store, and [`SinkError::OtherRun`] when the output is not that run's any more.
    pub(crate) fn without_others(
        &self,
        holdings: Holdings,
        notes: &Notes,
        run_id: &str,
    ) -> Result<Holdings, SinkError> {
        let doubled = holdings.doubled.iter().map(|name| Held { name: name.clone(), bytes: 0 });
        let parts = holdings.predictions.values().chain(&holdings.batches).cloned().chain(doubled);
        let unknown: Vec<_> = parts.filter(|part| !notes.know(part)).map(|part| part.name).collect();
        let look = |name: String| async move {
            let path = self.path_of(&name);
            match run_of(self.store(), &path).await {
                Ok(run) => Ok(run.filter(|run| run != run_id).map(|_| name)),
                // no part, or none any more: told when it is looked at
                Err(object_store::Error::Generic { .. } | object_store::Error::NotFound { .. }) => Ok(None),
                Err(source) => Err(StorageError { uri: self.uri_of(&name), source }),
            }
        };
        let looking = futures_util::stream::iter(unknown).map(look).buffered(READS);
        let others: Vec<_> =
            self.runtime().block_on(looking.try_filter_map(|name| async { Ok(name) }).try_collect())?;
        if others.is_empty() {
            return Ok(holdings);
        }
        self.refuse_another(run_id)?;
        tracing::warn!(
            parts = others.len(),
            first = others[0],
            "removing parts of another run, which was removed before"
        );
        self.remove(&others)?;
        self.holdings()
    }

    /// Whether the run `run_id` is finished where `holdings` lie.
    pub(crate) fn is_finished(&self, holdings: &Holdings, run_id: &str) -> Result<bool, SinkError> {
        Ok(holdings.finished && self.manifest()?.run_id == run_id)
    }

    /// Whether it is finished by now, as far as that can be seen.
    pub(crate) fn was_finished(&self, run_id: &str) -> bool {
        self.holdings().and_then(|holdings| self.is_finished(&holdings, run_id)).unwrap_or(false)
    }

    /// Remove a manifest, and the `_SUCCESS` beside it, of another run than `run_id`.
    ///
    /// # Errors
    /// Those of the store, and [`SinkError::OtherRun`] when the output is not that run's any more.
    pub(crate) fn remove_others_manifest(&self, holdings: &Holdings, run_id: &str) -> Result<(), SinkError> {
        if !holdings.listed && !holdings.finished {
            return Ok(());
        }
        // what cannot be read is told when it is to be replaced
        match self.manifest() {
            Ok(manifest) if manifest.run_id != run_id => {
                self.refuse_another(run_id)?;
                tracing::warn!(
                    run = manifest.run_id,
                    "removing the manifest of another run, which was removed before"
                );
                self.remove_manifest()
            }
            _ => Ok(()),
        }
    }

    /// Remove `_SUCCESS`, then the manifest.
    pub(crate) fn remove_manifest(&self) -> Result<(), SinkError> {
        self.remove(&[SUCCESS.to_owned()])?;
        self.remove(&[MANIFEST.to_owned()])
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
    use crate::sink::AttemptNote;
    use crate::sink::part::PartWriter;
    use crate::sink::schema::BATCHES;
    use crate::sink::upload::Stored;

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
        let part = PartWriter::create(output, run_id, name.to_owned(), &BATCHES, &[]).expect("begun");
        part.finish(&[], output).expect("encoded").wait(output).expect("stored").1
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
            output.create(MANIFEST, manifest("theirs")).expect("stored");
            output.create(SUCCESS, b"theirs".to_vec()).expect("stored");
            let holdings = output.holdings().expect("a list");
            assert!(!output.is_finished(&holdings, "mine").expect("readable"), "it is theirs");
            let claim = output.claim(&record("mine"), &AttemptNote::begun(0, 1), false).expect("mine");
            assert_eq!(claim.holdings.predictions.keys().collect::<Vec<_>>(), [&3]);
            assert_eq!((&claim.holdings.doubled[..], &claim.holdings.batches[..]), (&[][..], &[][..]));
            let left = output.holdings().expect("a list");
            assert!(left.begun && !left.listed && !left.finished);
            output.create(MANIFEST, manifest("mine")).expect("stored");
            output.create(SUCCESS, b"mine".to_vec()).expect("stored");
            assert!(output.was_finished("mine") && !output.was_finished("theirs"));
        });
    }

    fn manifest(run_id: &str) -> Vec<u8> {
        let part = json!({"path": "", "shard": "", "bytes": 0, "sha256": ""});
        let summary = json!({"rows": 0, "rows_by_status": {}});
        let manifest = json!({
            "run_id": run_id, "finished_at": "", "plan_sha256": "", "model_sha256": "", "limit": null,
            "summary": summary, "parts": [], "batches": [], "record": part,
        });
        manifest.to_string().into_bytes()
    }
}
