//! Reading the parts of other attempts before a manifest lists them.
//!
//! - A part whose footer names another run was left by an attempt at a removed run. It is removed, see [`super`].
//! - A part whose bytes differ from its note is damaged. The next attempt removes the damaged parts of its share and
//!   scores their shards again.
//! - If no note lists a part, because its attempt was killed first, its footer is trusted, which has a checksum of the
//!   rows. The same is true of a part that a later attempt has stored in place of a damaged one.
//! - Two reads must agree before a part counts as damaged, or as what its footer says: the store's answer may have been
//!   wrong, and nothing covers the footer.

use std::sync::Arc;

use object_store::{Error, ObjectMeta};

use super::attempts::{AttemptNote, Notes};
use super::fence::{LEFT_BEHIND, is_of_another_run};
use super::listing::{ObjectEntry, OutputListing};
use super::names::{AttemptName, ObjectName};
use super::output::Output;
use super::record::check_current;
use super::resume::Share;
use super::state::observe;
use super::stored_part::{NO_PART, READS, no_part, read_object};
use crate::error::SinkError;
use crate::report::PartReport;
use crate::store::retry::again;

/// Parts of other attempts, by whether they are intact.
#[derive(Debug, Default)]
pub struct TakenOver {
    pub sound: Vec<PartReport>,
    pub damaged: Vec<DamagedPart>,
}

/// A part that is not what its attempt stored.
#[derive(Debug)]
pub struct DamagedPart {
    /// Path below the output.
    pub name: String,
    /// The version that was read. `None` if the part no longer existed.
    meta: Option<ObjectMeta>,
}

/// The result of reading a part once.
#[derive(PartialEq)]
enum Found {
    /// It is what a note says.
    Noted(PartReport),
    /// No note lists it with these bytes. Its footer says this.
    Unnoted(PartReport),
    Damaged,
    /// It is not a part, for this reason, and may be somebody's own file.
    NoPart(String),
    Missing,
}

/// Read the listed `parts`, and compare them with `notes`.
///
/// # Errors
/// Those of the store, and when an object that no note lists is not a part of the run `run_id`.
pub(crate) fn take_over<'a>(
    output: &Output,
    parts: impl Iterator<Item = &'a ObjectEntry>,
    notes: &Notes,
    run_id: &str,
) -> Result<TakenOver, SinkError> {
    let look = |part: &'a ObjectEntry| async move {
        let mut last = None;
        for _ in 0..READS {
            let (found, meta) = look_at(output, part, notes, run_id).await?;
            let is_certain = matches!(found, Found::Noted(_) | Found::Missing);
            if is_certain || last.as_ref() == Some(&found) {
                return Ok((part, found, meta));
            }
            last = Some(found);
        }
        Err(no_part(output.uri_of(&part.name), "each read returns other bytes"))
    };
    let mut taken = TakenOver::default();
    for (part, found, meta) in output.all(parts.map(look))? {
        match found {
            Found::Noted(report) | Found::Unnoted(report) => taken.sound.push(report),
            Found::NoPart(what) => return Err(no_part(output.uri_of(&part.name), &what)),
            Found::Damaged | Found::Missing => {
                taken.damaged.push(DamagedPart { name: part.name.clone(), meta });
            }
        }
    }
    Ok(taken)
}

/// Read a part once. Returns the version that was read, too, if it exists.
async fn look_at(
    output: &Output,
    part: &ObjectEntry,
    notes: &Notes,
    run_id: &str,
) -> Result<(Found, Option<ObjectMeta>), SinkError> {
    let said = notes.said_of(&part.name);
    let (store, path) = (Arc::clone(output.store()), output.path_of(&part.name));
    // in a task of its own, because hashing keeps a core busy
    let reading = output.runtime().spawn(async move { again(|| read_object(&store, &path)).await });
    let read = reading.await.unwrap_or_else(|source| Err(Error::JoinError { source }));
    let object = match read {
        Ok(object) => object,
        Err(Error::NotFound { .. }) => return Ok((Found::Missing, None)),
        Err(error) => return Err(output.failed(&part.name, error)),
    };
    let meta = Some(object.meta.clone());
    let is_this = |said: &&PartReport| said.bytes == object.bytes && said.sha256 == object.sha256;
    if let Some(said) = said.iter().find(is_this) {
        return Ok((Found::Noted(said.clone()), meta));
    }
    // what is left of a copy that the store accepted and never carried out
    if object.bytes == 0 {
        return Ok((Found::Damaged, meta));
    }
    let (report, is_damaged) = match object.part(output.store()).await {
        Ok(stored) => {
            let is_damaged = stored.is_damaged;
            (stored.report(part.name.clone(), run_id), is_damaged)
        }
        Err(Error::Generic { store: NO_PART, source }) => (Err(source.to_string()), false),
        Err(error) => return Err(output.failed(&part.name, error)),
    };
    let is_batches = matches!(ObjectName::parse(&part.name), Some(ObjectName::Batches { .. }));
    let found = match report {
        Ok(_) if is_damaged => Found::Damaged,
        Ok(report) if said.is_empty() || is_stored_again(output, &report, said, run_id).await? => {
            Found::Unnoted(report)
        }
        // an unreadable batches part counts as damaged
        Err(what) if said.is_empty() && !is_batches => Found::NoPart(what),
        _ => Found::Damaged,
    };
    Ok((found, meta))
}

/// Whether a part that differs from its reports in the notes was stored by another attempt. That attempt may have begun
/// after the notes were read, so its own note is looked up by name. If the number in the footer is damaged, no such
/// note exists.
async fn is_stored_again(
    output: &Output,
    report: &PartReport,
    said: &[PartReport],
    run_id: &str,
) -> Result<bool, SinkError> {
    let Some(attempt) = report.attempt.filter(|_| said.iter().all(|said| said.attempt != report.attempt))
    else {
        return Ok(false);
    };
    let note = output.get(&ObjectName::Attempt(AttemptName::new(attempt, run_id)).to_string()).await?;
    Ok(note.is_some_and(|bytes| AttemptNote::parse(&bytes).is_ok()))
}

/// Remove those of `parts` that another run than `run_id` has published, and return `listing` without them. Parts that
/// `notes` list are of this run.
///
/// # Errors
/// Those of the store, and [`SinkError::OtherRun`].
pub(super) fn remove_parts_of_other_runs(
    output: &Output,
    listing: OutputListing,
    parts: Vec<ObjectEntry>,
    notes: &Notes,
    run_id: &str,
) -> Result<OutputListing, SinkError> {
    let unknown: Vec<_> = parts.into_iter().filter(|part| !notes.know(part)).collect();
    let looking = unknown.into_iter().map(|part| async {
        let Some(meta) = output.version(&part.name).await? else { return Ok(None) };
        let is_theirs = is_of_another_run(output, run_id, &meta).await?;
        Ok::<_, SinkError>(is_theirs.then_some((part.name, meta)))
    });
    let theirs: Vec<_> = output.all(looking)?.into_iter().flatten().collect();
    if theirs.is_empty() {
        return Ok(listing);
    }
    check_current(output, run_id)?;
    for (_, meta) in &theirs {
        output.runtime().block_on(output.remove_version(meta, LEFT_BEHIND))?;
    }
    // not listed again: objects that have appeared since may be of another run
    Ok(listing.without(&theirs.into_iter().map(|(name, _)| name).collect()))
}

/// Remove the `damaged` parts of `share`, and return `listing` without them: when their shards are scored again, they
/// are stored under the same names. The mark of the worker is removed first. Once the parts of the run are decided, all
/// of them stay.
pub(crate) fn without_damaged(
    output: &Output,
    listing: OutputListing,
    damaged: &[DamagedPart],
    share: Share,
    run_id: &str,
) -> Result<OutputListing, SinkError> {
    if damaged.is_empty() || observe(output)?.manifest_of(run_id).is_some() {
        return Ok(listing);
    }
    output.remove(&[ObjectName::Mark(share.mark(run_id)).to_string()])?;
    remove_damaged(output, damaged, run_id, "removing a damaged part: its shard is scored again")?;
    Ok(listing.without(&damaged.iter().map(|part| part.name.clone()).collect()))
}

/// Remove `damaged` parts, and warn `why`. Once the parts of the run are decided, they stay.
pub(super) fn remove_damaged(
    output: &Output,
    damaged: &[DamagedPart],
    run_id: &str,
    why: &str,
) -> Result<(), SinkError> {
    for meta in damaged.iter().filter_map(|part| part.meta.as_ref()) {
        check_current(output, run_id)?;
        if observe(output)?.manifest_of(run_id).is_some() {
            break;
        }
        output.runtime().block_on(output.remove_version(meta, why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::commit::claim::claim;
    use crate::commit::footer::{ATTEMPT, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY};
    use crate::commit::stored_part::read_part;
    use crate::commit::testing::{Hooked, record, store_part};

    const PART: &str = "predictions/part-000000-0123456789ab.parquet";

    /// Store a part of `attempt`, and return its report.
    fn store(output: &Output, run_id: &str, attempt: &str) -> PartReport {
        let footer = [
            (ATTEMPT, attempt),
            (SHARD, "a.tar"),
            (SHARD_IDENTITY, "0123456789abcdef"),
            (SHARD_FORMAT, "webdataset"),
            (ROWS_BY_STATUS, "{}"),
        ];
        assert!(!store_part(output, run_id, PART, &footer).was_there);
        read_part(output, PART, run_id).expect("sound")
    }

    fn replace(output: &Output, bytes: Vec<u8>) {
        output.replace(PART, bytes).expect("stored");
    }

    #[test]
    fn one_wrong_read_does_not_count() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (sent, received) = std::sync::mpsc::channel::<(Output, Vec<u8>)>();
        let received = std::sync::Mutex::new(received);
        let store = Hooked::new(InMemory::new(), false, move |now| {
            // before the first read of the part, and after it
            if now == 0 || now == 4 {
                let (output, bytes) = received.lock().expect("no panic").recv().expect("what to store");
                output.replace(PART, bytes).expect("stored");
            }
            Ok(())
        });
        let at = |store| Output::new(store, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let plain = at(Arc::clone(&store.inner) as _);
        claim(&plain, &record("mine"), &AttemptNote::begun(0, 1)).expect("an empty output");
        let part = self::store(&plain, "mine", "0");
        let bytes = plain.read(PART).expect("stored").to_vec();
        // in the footer, whose bytes no checksum covers: the name of the shard
        let mut wrong = bytes.clone();
        let shard = wrong.windows(5).position(|window| window == b"a.tar").expect("the shard's name");
        wrong[shard] = b'b';
        let listing = OutputListing::read(&plain).expect("a list");
        sent.send((plain.clone(), wrong)).expect("received later");
        sent.send((plain.clone(), bytes)).expect("received later");
        let parts = listing.predictions.values();
        let taken = take_over(&at(Arc::new(store)), parts, &Notes::default(), "mine").expect("ours");
        assert_eq!((taken.sound, taken.damaged.len()), (vec![part], 0));
    }

    #[test]
    fn a_part_is_taken_over_if_it_is_what_was_noted_or_what_a_later_attempt_has_stored() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let memory = Arc::new(InMemory::new());
        let output = Output::new(memory, Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let begin = || claim(&output, &record("mine"), &AttemptNote::begun(0, 1)).expect("this run's").note;
        let note = begin();
        let first = store(&output, "mine", "0");
        let bytes = output.read(PART).expect("stored").to_vec();
        let taken = || {
            let listing = OutputListing::read(&output).expect("a list");
            let notes = Notes::read(&output, &listing, "mine", None).expect("readable");
            let taken = take_over(&output, listing.predictions.values(), &notes, "mine").expect("ours");
            assert_eq!(taken.sound.len() + taken.damaged.len(), 1);
            (taken.sound.into_iter().next(), taken.damaged)
        };
        // no note lists it
        assert_eq!(taken().0.as_ref(), Some(&first));
        let mut rotten = bytes.clone();
        // without rows, all before the footer is the format's four letters
        rotten[2] ^= 1;
        replace(&output, rotten);
        assert_eq!(taken().0, None);
        replace(&output, bytes.clone());
        AttemptNote { parts: vec![first.clone()], ..note }.store(&output).expect("stored");
        assert_eq!(taken().0.as_ref(), Some(&first));

        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 1;
            replace(&output, rotten);
            assert_eq!(taken().0, None, "byte {at}");
        }
        replace(&output, bytes[..bytes.len() / 2].to_vec());
        let (sound, damaged) = taken();
        assert_eq!(sound, None);

        let listing = OutputListing::read(&output).expect("a list");
        let left = without_damaged(&output, listing, &damaged, Share::default(), "mine").expect("removed");
        assert_eq!(left.predictions.len(), 0);
        let before = Notes::read(&output, &OutputListing::read(&output).expect("a list"), "mine", None)
            .expect("readable");
        assert_eq!(begin().attempt, 1);
        let second = store(&output, "mine", "1");
        assert!(second != first);
        assert_eq!(taken().0.as_ref(), Some(&second));
        // the part is sound also to an attempt that read the notes before this one began
        let listing = OutputListing::read(&output).expect("a list");
        let seen = take_over(&output, listing.predictions.values(), &before, "mine").expect("ours");
        assert_eq!((seen.sound, seen.damaged.len()), (vec![second], 0));
        // an unreadable batches part without a note does not block the run
        let name = "batches/part-000000-000000-000000.parquet";
        output.create(name, b"PAR1 rotten PAR1".to_vec()).expect("stored");
        let listing = OutputListing::read(&output).expect("a list");
        let seen = take_over(&output, listing.batches.iter(), &before, "mine").expect("readable");
        assert_eq!((seen.sound.len(), seen.damaged.len()), (0, 1));
        remove_damaged(&output, &seen.damaged, "mine", "removing a damaged part").expect("removed");
        assert_eq!(OutputListing::read(&output).expect("a list").batches.len(), 0);
    }
}
