//! The fence: a staged object gets its name only in an output that still belongs to its run, whole and once.
//!
//! - `_run.json` is read first. Unless it names the run, the upload ends with [`SinkError::OtherRun`]. For a part,
//!   the manifest is looked for: if the run has been decided without the part, this is an error, too. Then the staged
//!   object is copied to its name, unless that exists. [`super`] explains why a removed or decided run cannot publish.
//! - The staged object is removed when the copy is complete, which Azure may carry out later.
//! - A part of another run under that name is removed, and the copy repeated. A part of this run is left as it is: of
//!   attempts that race one wins.

use object_store::path::Path;
use object_store::{Error, ObjectMeta};

use super::manifest::StoredManifest;
use super::names::{MANIFEST, ObjectName, SUCCESS};
use super::output::Output;
use super::record::check_current_async;
use super::state::{OutputState, final_manifest, observe_run};
use super::stored_part::{run_of_part, shard_of_part};
use crate::error::SinkError;

/// How many times to try to publish an object: each time another attempt may create one under the same name.
const PUBLISHING_TRIES: u32 = 3;

/// The warning when an object of another run is removed.
pub(super) const LEFT_BEHIND: &str = "removing an object of a run that was removed before";

/// Give a staged object its name, unless that exists. Returns whether it was done. The staged object is removed, unless
/// the store may still copy it.
pub(super) async fn publish_staged(
    output: &Output,
    run_id: &str,
    staged: &Path,
    name: &str,
) -> Result<bool, SinkError> {
    let published = copy_staged(output, run_id, staged, name).await;
    // without its source, a copy that was accepted would fail and leave an empty object
    if output.copying.wait.is_none() || !matches!(published, Err(SinkError::Storage(_))) {
        output.delete_staged(staged).await;
    }
    published
}

async fn copy_staged(output: &Output, run_id: &str, staged: &Path, name: &str) -> Result<bool, SinkError> {
    for _ in 0..PUBLISHING_TRIES {
        check_wanted(output, run_id, staged, name).await?;
        // a copy that failed may still have created the object
        let copied = copy_once(output, run_id, staged, name).await;
        if let Err(error) = check_wanted(output, run_id, staged, name).await {
            withdraw(output, run_id, name).await?;
            return Err(error);
        }
        match copied? {
            Copied::Created => return Ok(true),
            Copied::WasThere => return Ok(false),
            Copied::Theirs(theirs) => output.remove_version(&theirs, LEFT_BEHIND).await?,
            Copied::Vanished => {}
        }
    }
    let message =
        "objects of another run keep appearing in its place; stop the process that writes them".to_owned();
    Err(SinkError::Uri { uri: output.uri_of(name), message })
}

/// The result of one copy.
enum Copied {
    Created,
    /// An object of this run, or one whose run is not known.
    WasThere,
    /// An object of another run has the name.
    Theirs(ObjectMeta),
    /// An object had the name, and has been removed since.
    Vanished,
}

async fn copy_once(output: &Output, run_id: &str, staged: &Path, name: &str) -> Result<Copied, SinkError> {
    match output.copy_new(staged, &output.path_of(name)).await {
        Ok(true) => return Ok(Copied::Created),
        Ok(false) => {}
        // an attempt that has finished the run removes the staged objects of all others
        Err(Error::NotFound { .. }) if output.version(name).await?.is_some() => {}
        Err(source) => return Err(output.failed(name, source)),
    }
    // read before the record, so that no object of a run that has begun since is removed
    match output.version(name).await? {
        None => Ok(Copied::Vanished),
        Some(meta) if is_of_another_run(output, run_id, &meta).await? => Ok(Copied::Theirs(meta)),
        Some(_) => Ok(Copied::WasThere),
    }
}

/// Check that the output still belongs to the run `run_id`, and that its manifest, if it is final, lists the part
/// `name`, which is `staged`.
async fn check_wanted(output: &Output, run_id: &str, staged: &Path, name: &str) -> Result<(), SinkError> {
    if !is_part(name) {
        return check_current_async(output, run_id).await;
    }
    match final_manifest(output, run_id).await? {
        Some(manifest) if !manifest.lists(name) => {
            let shard = shard_of_part(output, staged).await.unwrap_or_else(|| name.to_owned());
            let message = format!("{shard}: it was added after the run finished");
            Err(SinkError::Uri { uri: output.uri().to_owned(), message })
        }
        _ => Ok(()),
    }
}

/// Remove the object `name`, which was published while its run was removed, or finished without it. It is removed only
/// if no other attempt would: if the manifest of the output's current run is final and does not list it, or if the
/// output has no run. Otherwise that run removes it when it publishes this name, or before it publishes `_SUCCESS`.
async fn withdraw(output: &Output, run_id: &str, name: &str) -> Result<(), SinkError> {
    // read before the state: if the current run has an object of this name, that is the version read here
    let Some(meta) = output.version(name).await? else { return Ok(()) };
    let state = observe_run(output).await?;
    let is_unlisted = match state.as_ref().map(OutputState::decided) {
        Some(decided) => decided.is_some_and(|(_, manifest)| !manifest.lists(name)),
        None => true,
    };
    let is_stray = if is_part(name) {
        is_unlisted && run_of_part(output, &meta).await?.as_deref() == Some(run_id)
    } else {
        name == SUCCESS && !matches!(state, Some(OutputState::Succeeded(..)))
    };
    if is_stray { output.remove_version(&meta, LEFT_BEHIND).await } else { Ok(()) }
}

fn is_part(name: &str) -> bool {
    matches!(ObjectName::parse(name), Some(ObjectName::Part(_) | ObjectName::Batches { .. }))
}

/// Whether another run than `run_id` has published that version of an object.
pub(super) async fn is_of_another_run(
    output: &Output,
    run_id: &str,
    meta: &ObjectMeta,
) -> Result<bool, SinkError> {
    let theirs = match output.name_of(&meta.location) {
        name if name == MANIFEST => {
            let manifest = output.get(MANIFEST).await?;
            let manifest = manifest.and_then(|bytes| serde_json::from_slice::<StoredManifest>(&bytes).ok());
            manifest.map(|manifest| manifest.run_id)
        }
        name if is_part(&name) => run_of_part(output, meta).await?,
        _ => None,
    };
    Ok(theirs.is_some_and(|theirs| theirs != run_id))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use object_store::memory::InMemory;

    use super::*;
    use crate::commit::attempts::AttemptNote;
    use crate::commit::claim::claim;
    use crate::commit::testing::{Hooked, record};
    use crate::commit::upload::publish;
    use crate::error::Retry;

    const NAME: &str = "predictions/part-000007-0123456789ab.parquet";

    fn begun(output: Output) -> Output {
        claim(&output, &record("run"), &AttemptNote::begun(0, 1)).expect("an empty output");
        output
    }

    /// Publish a part on S3, with `act` between the last two requests of its copy, and `answer` for the last one.
    /// Returns what remains of the part, and what publishing returned.
    fn published_around(
        act: impl Fn(&Output) + Send + Sync + 'static,
        answer: impl Fn() -> object_store::Result<()> + Send + Sync + 'static,
    ) -> (Option<Bytes>, Result<bool, SinkError>) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (sent, received) = std::sync::mpsc::channel::<Output>();
        let received = std::sync::Mutex::new(received);
        // put, the record, the manifest, and the copy's source: a moment before and after each but the last
        let store = Hooked::new(InMemory::new(), true, move |now| {
            match now {
                7 => act(&received.lock().expect("no panic").recv().expect("an output")),
                8 => return answer(),
                _ => {}
            }
            Ok(())
        });
        let at = |store| Output::new(store, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let plain = begun(at(Arc::clone(&store.inner) as _));
        sent.send(plain.clone()).expect("received later");
        let content = crate::commit::testing::part("run", &[]);
        let published = publish(&at(Arc::new(store)), "run", NAME, &content);
        (plain.read_if_any(NAME).expect("readable"), published)
    }

    #[test]
    fn a_part_whose_output_was_vacated_is_removed_also_if_its_copy_fails() {
        let vacate = |output: &Output| {
            output.remove(&[super::super::names::RUN.to_owned()]).expect("removed");
        };
        let denied = || {
            let source = io::Error::from(io::ErrorKind::PermissionDenied).into();
            Err(Error::Generic { store: "test", source })
        };
        for (left, stopped) in [published_around(vacate, || Ok(())), published_around(vacate, denied)] {
            let stopped = stopped.expect_err("its run was removed");
            assert!(matches!(stopped, SinkError::OtherRun { .. }), "{stopped}");
            assert_eq!(left, None);
        }
        let (left, published) = published_around(|_| {}, || Ok(()));
        assert!(left.is_some() && published.expect("published"));
    }

    #[test]
    fn a_part_in_whose_place_there_was_another_one_for_a_moment_is_published() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (sent, received) = std::sync::mpsc::channel::<Output>();
        let received = std::sync::Mutex::new(received);
        let store = Hooked::new(InMemory::new(), false, move |now| {
            let output = || received.lock().expect("no panic").recv().expect("an output");
            match now {
                // before the copy, and after the check that follows it
                6 => assert!(output().create(NAME, b"damaged".to_vec()).expect("created")),
                8 => output().remove(&[NAME.to_owned()]).expect("removed"),
                _ => {}
            }
            Ok(())
        });
        let at = |store| Output::new(store, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let plain = begun(at(Arc::clone(&store.inner) as _));
        (0..2).for_each(|_| sent.send(plain.clone()).expect("received later"));
        let content = crate::commit::testing::part("run", &[]);
        assert!(publish(&at(Arc::new(store)), "run", NAME, &content).expect("published"));
        assert_eq!(plain.read(NAME).expect("it is there"), content);
    }

    /// Publish a part on Azure, where the copy makes an empty object at first. The store completes it before the
    /// request with the moment `complete`, if the staged object still exists. If `is_answered`, the answer to the copy
    /// arrives; otherwise the copy is sent again. Returns what the part holds, what publishing returned, and the number
    /// of staged objects that remain.
    fn published_later(
        is_answered: bool,
        complete: u64,
        wait: Duration,
    ) -> (Bytes, Result<bool, SinkError>, usize) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (sent, received) = std::sync::mpsc::channel::<Output>();
        let received = std::sync::Mutex::new(received);
        // put, the record, the manifest, and the copy: a moment before and after each
        let accepted = if is_answered { 7 } else { 6 };
        let store = Hooked::new(InMemory::new(), false, move |now| {
            let output = || received.lock().expect("no panic").recv().expect("an output");
            if now == accepted {
                output().replace(NAME, Vec::new()).expect("stored");
            } else if now == complete {
                let output = output();
                let listing = crate::commit::listing::OutputListing::read(&output).expect("a listing");
                let content = output.read(listing.staged.first().expect("the source")).expect("readable");
                output.replace(NAME, content.to_vec()).expect("stored");
            }
            Ok(())
        });
        let at = |store| Output::new(store, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let plain = begun(at(Arc::clone(&store.inner) as _));
        (0..2).for_each(|_| sent.send(plain.clone()).expect("received later"));
        let mut output = at(Arc::new(store));
        output.copying.wait = Some(wait);
        let published = publish(&output, "run", NAME, b"rows");
        let listing = crate::commit::listing::OutputListing::read(&plain).expect("a listing");
        (plain.read(NAME).expect("readable"), published, listing.staged.len())
    }

    #[test]
    fn a_part_is_published_when_its_copy_is_complete_and_not_when_it_is_accepted() {
        // three looks find it empty; as many requests would end in the removal of the staged object
        let (part, published, staged) = published_later(true, 14, Duration::from_secs(60));
        assert_eq!((&part[..], staged), (&b"rows"[..], 0));
        assert!(published.expect("published"));
        // the copy is sent again, and its object exists
        let (part, published, staged) = published_later(false, 11, Duration::from_secs(60));
        assert_eq!((&part[..], staged), (&b"rows"[..], 0));
        assert!(!published.expect("published"));
    }

    #[test]
    fn a_copy_that_is_not_completed_in_time_is_an_error_and_keeps_its_source() {
        for is_answered in [true, false] {
            let (part, published, staged) = published_later(is_answered, u64::MAX, Duration::ZERO);
            assert_eq!((part.len(), staged), (0, 1));
            let error = published.expect_err("it is not complete");
            assert!(error.to_string().contains("retry_seconds"), "{error}");
            assert_eq!(error.retry(), Retry::Again);
        }
    }
}
