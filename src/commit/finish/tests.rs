use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::*;
use crate::commit::claim::claim;
use crate::commit::footer::{ATTEMPT, ROWS_BY_STATUS, SHARD, SHARD_FORMAT, SHARD_IDENTITY};
use crate::commit::names::{PartName, part_name};
use crate::commit::stored_part::read_part;
use crate::commit::testing::{Hooked, in_memory, record, store_part};
use crate::items::{ShardContent, ShardFormat, ShardRef};

/// A plan that allows an input without a record.
fn plan() -> Plan {
    Plan::for_tests("[input]\nallow_empty = true\n")
}

fn recorded(plan: &Plan) -> RunRecord {
    RunRecord { plan_sha256: plan.hash("model"), determinants: plan.determinants("model"), ..record("run") }
}

fn shard(index: u64) -> ShardRef {
    ShardRef::new(index, format!("{index}.tar"), ShardFormat::Webdataset, ShardContent::Objects(Vec::new()))
}

fn store(output: &Output, shard: &ShardRef) {
    let identity = shard.identity();
    let footer = [
        (ATTEMPT, "0"),
        (SHARD, &shard.name[..]),
        (SHARD_IDENTITY, &identity),
        (SHARD_FORMAT, "webdataset"),
        (ROWS_BY_STATUS, "{}"),
    ];
    assert!(!store_part(output, "run", &part_name(shard), &footer).was_there);
}

#[test]
fn the_mark_of_another_run_does_not_count() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    let share = Share::default();
    output.create(&ObjectName::Mark(share.mark("theirs")).to_string(), b"done".to_vec()).expect("stored");
    let unmarked = |run_id| {
        let listing = OutputListing::read(&output).expect("a listing");
        listing.first_unmarked(&output, 1, run_id).expect("readable")
    };
    assert_eq!((unmarked("ours"), unmarked("theirs")), (Some(0), None));
}

#[test]
fn any_process_may_finish_a_run_twice_late_and_at_the_same_time() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (output, plan) = (in_memory(&runtime), plan());
    let shards = [shard(0), shard(1)];
    let record = recorded(&plan);
    claim(&output, &record, &AttemptNote::begun(0, 1)).expect("an empty output");
    store(&output, &shards[0]);
    let run = Run { plan: &plan, record: &record };
    let finish = || finish(&output, run, Listed::all(&shards, Skipped::default()), Vec::new());
    let early = finish().expect_err("a part is missing");
    assert!(matches!(early, Error::Source(SourceError::Late { place: 1, .. })), "{early}");
    store(&output, &shards[1]);
    let parts = std::thread::scope(|scope| {
        let finishing: Vec<_> = (0..4).map(|_| scope.spawn(finish)).collect();
        let reports = finishing.into_iter().map(|thread| thread.join().expect("no panic"));
        reports.map(|report| report.expect("finished").parts).collect::<Vec<_>>()
    });
    assert!(parts.iter().all(|found| *found == parts[0] && found.len() == 2), "{parts:?}");
    assert!(observe(&output).expect("a state").is_success_of("run"));
    let manifest = output.read(MANIFEST).expect("it exists");
    assert_eq!(finish().expect("again").parts, parts[0]);
    assert_eq!(output.read(MANIFEST).expect("it exists"), manifest);
    let other = RunRecord { run_id: "other".to_owned(), ..record.clone() };
    let run = Run { plan: &plan, record: &other };
    let refused = super::finish(&output, run, Listed::all(&shards, Skipped::default()), Vec::new());
    let refused = refused.expect_err("the output is of another run");
    assert!(matches!(refused, Error::Sink(SinkError::OtherRun { .. })), "{refused}");
}

#[test]
fn a_run_with_a_limit_is_finished_once_it_has_that_many_rows_or_all_shards() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (plan, shards) = (plan(), [shard(0), shard(1)]);
    for limit in [0, 5] {
        let output = in_memory(&runtime);
        let record = RunRecord { limit: Some(limit), ..recorded(&plan) };
        claim(&output, &record, &AttemptNote::begun(0, 1)).expect("an empty output");
        store(&output, &shards[0]);
        let run = Run { plan: &plan, record: &record };
        let finish = || finish(&output, run, Listed::all(&shards, Skipped::default()), Vec::new());
        if limit > 0 {
            let early = finish().expect_err("there are no rows yet");
            assert!(matches!(early, Error::Source(SourceError::Late { place: 1, .. })), "{early}");
            store(&output, &shards[1]);
        }
        assert_eq!(finish().expect("all rows are there").parts.len(), if limit > 0 { 2 } else { 1 });
    }
}

#[test]
fn a_process_without_an_attempt_removes_an_empty_run_whose_whole_input_was_scored() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (output, mut plan) = (in_memory(&runtime), plan());
    plan.input.allow_empty = false;
    let record = recorded(&plan);
    claim(&output, &record, &AttemptNote::begun(0, 1)).expect("an empty output");
    store(&output, &shard(0));
    let run = Run { plan: &plan, record: &record };
    let refused = finish(&output, run, Listed::all(&[shard(0)], Skipped::default()), Vec::new());
    let refused = refused.expect_err("no row");
    assert!(matches!(refused, Error::Source(SourceError::NoInput { .. })), "{refused}");
    assert!(matches!(observe(&output).expect("a state"), OutputState::Vacant));
}

/// Publish a part of a shard that the attempt which finishes the run has not listed. The run is finished at one
/// `moment` of that. Returns whether the moment came.
fn finished_meanwhile(runtime: &tokio::runtime::Runtime, moment: u64, in_steps: bool) -> bool {
    let (sent, received) = std::sync::mpsc::channel::<Output>();
    let received = std::sync::Mutex::new(received);
    let plan = plan();
    let record = recorded(&plan);
    let finish = {
        let (plan, record) = (plan.clone(), record.clone());
        move |output: &Output| {
            let listed = Listed::all(&[shard(0)], Skipped::default());
            finish(output, Run { plan: &plan, record: &record }, listed, Vec::new())
        }
    };
    let finishing = finish.clone();
    let store = Hooked::new(InMemory::new(), in_steps, move |now| {
        if now == moment {
            // a part that was published before the end belongs to another input
            drop(finishing(&received.lock().expect("no panic").recv().expect("an output")));
        }
        Ok(())
    });
    let at = |store| Output::new(store, "a".into(), "a".to_owned(), None, runtime.handle().clone());
    let plain = at(Arc::clone(&store.inner) as Arc<dyn ObjectStore>);
    claim(&plain, &record, &AttemptNote::begun(0, 1)).expect("an empty output");
    self::store(&plain, &shard(0));
    sent.send(plain.clone()).expect("received later");
    let hooked = at(Arc::new(store));
    let name = part_name(&shard(1));
    let published = publish(&hooked, "run", &name, &crate::commit::testing::part("run", &[]));
    let has_come =
        sent.send(plain.clone()).is_ok() && plain.read_if_any(SUCCESS).expect("readable").is_some();
    let listing = OutputListing::read(&plain).expect("a listing");
    let case = format!("moment {moment}, in steps {in_steps}: {published:?}");
    if has_come {
        assert_eq!(listing.predictions.len(), 1, "{case}");
        published.expect_err("the run has finished without it");
    } else {
        assert_eq!(listing.predictions.len(), 2, "{case}");
    }
    has_come
}

#[test]
fn a_part_that_the_manifest_does_not_list_does_not_stay_after_the_end_of_the_run() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for in_steps in [false, true] {
        let come = (0..40).filter(|&moment| finished_meanwhile(&runtime, moment, in_steps)).count();
        assert!(come > 5, "{come} moments");
    }
}

/// Finish a run at whose `moment` another attempt publishes the part `name`. Returns whether the moment came.
fn published_meanwhile(runtime: &tokio::runtime::Runtime, moment: u64, name: &str) -> bool {
    let (sent, received) = std::sync::mpsc::channel::<Output>();
    let received = std::sync::Mutex::new(received);
    let has_come = Arc::new(AtomicBool::new(false));
    let came = Arc::clone(&has_come);
    let published = name.to_owned();
    let store = Hooked::new(InMemory::new(), false, move |now| {
        let output = received.lock().expect("no panic").recv().expect("an output for each moment");
        if now == moment {
            came.store(true, SeqCst);
            // refused once the parts of the run are decided
            let part = crate::commit::testing::part("run", &[]);
            drop(publish(&output, "run", &published, &part));
        }
        if output.read_if_any(SUCCESS).expect("readable").is_some() {
            let (listing, manifest) = (OutputListing::read(&output), StoredManifest::read(&output));
            let StoredManifest { parts, batches, .. } = manifest.expect("a manifest");
            let strays = listing.expect("a listing").parts_beside(&parts, &batches);
            assert_eq!(strays, [""; 0], "moment {moment}, seen at {now}");
        }
        Ok(())
    });
    let at = |store| Output::new(store, "a".into(), "a".to_owned(), None, runtime.handle().clone());
    let plain = at(Arc::clone(&store.inner) as Arc<dyn ObjectStore>);
    let (plan, listed) = (plan(), Listed::all(&[shard(0)], Skipped::default()));
    let record = recorded(&plan);
    claim(&plain, &record, &AttemptNote::begun(0, 1)).expect("an empty output");
    self::store(&plain, &shard(0));
    (0..1000).for_each(|_| sent.send(plain.clone()).expect("received later"));
    let finished = finish(&at(Arc::new(store)), Run { plan: &plan, record: &record }, listed, Vec::new());
    match finished {
        Ok(_) => assert!(observe(&plain).expect("a state").is_success_of("run"), "moment {moment}"),
        // the part of another shard was published before the parts were decided
        Err(error) => assert!(matches!(error, Error::Source(SourceError::Changed { .. })), "{error}"),
    }
    has_come.load(SeqCst)
}

#[test]
fn success_never_appears_beside_a_part_that_the_manifest_does_not_list() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let batches = ObjectName::Batches { worker: 0, attempt: 7, number: 0 };
    // the attempt that finishes the run has not listed that shard
    for name in [part_name(&shard(1)), batches.to_string()] {
        let moments = (0..).take_while(|&moment| published_meanwhile(&runtime, moment, &name)).count();
        assert!(moments > 40, "{moments} moments");
    }
}

#[test]
fn an_attempt_completes_a_sealed_run_whatever_strays_are_left() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    let record = recorded(&plan());
    let begin = || claim(&output, &record, &AttemptNote::begun(0, 1)).expect("this run's").listing;
    begin();
    store(&output, &shard(0));
    let (plan, listed) = (plan(), Listed::all(&[shard(0)], Skipped::default()));
    finish(&output, Run { plan: &plan, record: &record }, listed, Vec::new()).expect("finished");
    // as if the attempt had been killed before it removed strays
    output.remove(&[SUCCESS.to_owned()]).expect("removed");
    let other_version = PartName { identity: 7, ..PartName::of(&shard(0)) };
    let batches = ObjectName::Batches { worker: 0, attempt: 7, number: 0 };
    for stray in [part_name(&shard(1)), other_version.to_string(), batches.to_string()] {
        output.create(&stray, crate::commit::testing::part("run", &[])).expect("stored");
    }
    let sealed = observe(&output).expect("a state");
    assert!(matches!(sealed, OutputState::Sealed(..)), "{sealed:?}");
    let listing = begin();
    assert_eq!((listing.predictions.len(), listing.duplicates.len(), listing.batches.len()), (1, 0, 0));
    assert!(observe(&output).expect("a state").is_success_of("run"));
}

#[test]
fn an_empty_run_is_removed_unless_another_attempt_has_found_a_record_or_finished_it() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (allows, mut refuses) = (plan(), plan());
    refuses.input.allow_empty = false;
    for (is_finished, has_more) in [(false, false), (false, true), (true, false)] {
        let (output, record) = (in_memory(&runtime), recorded(&allows));
        let note = claim(&output, &record, &AttemptNote::begun(0, 1)).expect("an empty output").note;
        store(&output, &shard(0));
        let listed = Listed::all(&[shard(0)], Skipped::default());
        let whole = if is_finished {
            let run = Run { plan: &allows, record: &record };
            finish(&output, run, listed.clone(), Vec::new()).expect("it may be empty").parts
        } else {
            vec![read_part(&output, &part_name(&shard(0)), "run").expect("sound")]
        };
        if has_more {
            store(&output, &shard(1));
        }
        let ending = Ending {
            output: &output,
            plan: &refuses,
            record: &record,
            model_sha256: "model".to_owned(),
            engines: Vec::new(),
            share: Share::default(),
            note: Some(note),
            written: OutputReport::default(),
            reused: Vec::new(),
            failed: None,
            skipped_by_listing: Skipped::default(),
            listed,
            wall: Duration::ZERO,
            startup: Duration::ZERO,
            stages: Vec::new(),
        };
        let refused = ending.refuse_empty(&OutputReport { parts: whole, ..OutputReport::default() });
        assert!(matches!(refused, Err(Error::Source(SourceError::NoInput { .. }))), "{refused:?}");
        let is_vacant = matches!(observe(&output).expect("a state"), OutputState::Vacant);
        assert_eq!(is_vacant, !is_finished && !has_more);
    }
}

/// Call `act` on an output of the run `old`, which is replaced with the run `new` at one `moment`. Returns a listing
/// afterwards. The new run has a part and the note of an attempt.
fn replaced_meanwhile(moment: u64, act: impl Fn(&Output) -> Result<(), SinkError>) -> OutputListing {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (sent, received) = std::sync::mpsc::channel::<Output>();
    let received = std::sync::Mutex::new(received);
    let store = Hooked::new(InMemory::new(), false, move |now| {
        if now == moment {
            let output = received.lock().expect("no panic").recv().expect("an output");
            crate::commit::overwrite::overwrite(&output, &record("new")).expect("removed");
            claim(&output, &record("new"), &AttemptNote::begun(0, 1)).expect("begun");
            assert!(!store_part(&output, "new", &part_name(&shard(1)), &[]).was_there);
        }
        Ok(())
    });
    let at = |store| Output::new(store, "a".into(), "a".to_owned(), None, runtime.handle().clone());
    let plain = at(Arc::clone(&store.inner) as Arc<dyn ObjectStore>);
    claim(&plain, &record("old"), &AttemptNote::begun(0, 1)).expect("an empty output");
    store_part(&plain, "old", &part_name(&shard(1)), &[]);
    sent.send(plain.clone()).expect("received later");
    let done = act(&at(Arc::new(store)));
    assert!(done.is_ok() || matches!(done, Err(SinkError::OtherRun { .. })), "{done:?}");
    OutputListing::read(&plain).expect("a listing")
}

#[test]
fn cleaning_up_after_a_run_leaves_the_run_that_replaces_it_alone() {
    // at each moment until a stray is about to be removed
    for moment in 0..9 {
        let none = Decided { predictions: &[], batches: &[] };
        let listing = replaced_meanwhile(moment, |output| remove_strays(output, "old", none).map(drop));
        assert_eq!(listing.predictions.len(), 1, "moment {moment}");
    }
    for moment in 0..4 {
        let listing = replaced_meanwhile(moment, |output| tidy(output, "old", &OutputListing::read(output)?));
        assert_eq!(listing.attempts.len(), 1, "moment {moment}");
    }
}
