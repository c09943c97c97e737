use std::ops::Range;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::*;
use crate::commit::attempts::{AttemptNote, Notes};
use crate::commit::claim::claim;
use crate::commit::finish::{Decided, remove_strays};
use crate::commit::state::{OutputState, observe};
use crate::commit::takeover::remove_parts_of_other_runs;
use crate::commit::testing::{Hooked, in_memory, record, store_part};
use crate::commit::upload::publish;

const PARTS: [&str; 2] =
    ["predictions/part-000007-0123456789ab.parquet", "batches/part-000000-000000-000000.parquet"];

fn begin(output: &Output, run_id: &str) -> String {
    claim(output, &record(run_id), &AttemptNote::begun(0, 1)).expect("begun").record.run_id
}

#[test]
fn a_run_is_removed_and_another_begins() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    overwrite(&output, &record("first")).expect("nothing to remove");
    assert!(matches!(observe(&output).expect("a state"), OutputState::Vacant));
    assert_eq!(begin(&output, "first"), "first");
    PARTS.iter().for_each(|name| drop(store_part(&output, "first", name, &[])));
    output.create("_staging/0123456789abcdef", b"rows".to_vec()).expect("stored");
    overwrite(&output, &record("second")).expect("removed");
    let left = OutputListing::read(&output).expect("a listing");
    assert_eq!(left, OutputListing { has_record: true, ..OutputListing::default() });
    assert_eq!(begin(&output, "third"), "second");
    clear(&output, &record("second")).expect("removed");
    assert_eq!(OutputListing::read(&output).expect("a listing"), OutputListing::default());
}

#[test]
fn parts_without_a_record_are_removed() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    output.create(PARTS[0], b"rows".to_vec()).expect("stored");
    let refused = claim(&output, &record("first"), &AttemptNote::begun(0, 1)).expect_err("occupied");
    assert!(matches!(&refused, SinkError::Occupied { what, .. } if what == PARTS[0]), "{refused}");
    overwrite(&output, &record("first")).expect("removed");
    assert_eq!(begin(&output, "second"), "first");
}

#[test]
fn an_output_with_a_foreign_object_is_not_removed() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    begin(&output, "first");
    output.create("predictions/theirs.csv", b"x".to_vec()).expect("stored");
    let before = OutputListing::read(&output).expect("a listing");
    let refused = overwrite(&output, &record("second")).expect_err("occupied").to_string();
    assert!(refused.contains("predictions/theirs.csv"), "{refused}");
    assert_eq!(OutputListing::read(&output).expect("a listing"), before);
}

#[test]
fn an_interrupted_removal_is_completed_by_the_same_run_and_by_overwrite_only() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    let interrupted = || {
        output.create(PARTS[0], b"rows".to_vec()).expect("stored");
        let removing = RunRecord { removing: Some("first".to_owned()), ..record("second") };
        output.replace(RUN, json(&removing)).expect("stored");
        assert!(matches!(observe(&output).expect("a state"), OutputState::Removing(_)));
        check_current(&output, "second").expect_err("it has not begun");
    };
    interrupted();
    let other = RunRecord { determinants: serde_json::json!({ "width": 8 }), ..record("third") };
    let refused = claim(&output, &other, &AttemptNote::begun(0, 1)).expect_err("another run").to_string();
    assert!(refused.contains("width") && refused.contains("--overwrite"), "{refused}");
    assert_eq!(begin(&output, "fourth"), "fourth");
    assert_eq!(OutputListing::read(&output).expect("a listing").predictions.len(), 0);
    interrupted();
    overwrite(&output, &other).expect("removed");
    assert_eq!(OutputListing::read(&output).expect("a listing").predictions.len(), 0);
    check_current(&output, "third").expect("it may begin");
}

#[test]
fn of_two_removals_the_one_whose_record_was_replaced_stops() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    begin(&output, "first");
    store_part(&output, "first", PARTS[0], &[]);
    let other = RunRecord { removing: Some("first".to_owned()), ..record("theirs") };
    output.replace(RUN, json(&other)).expect("stored");
    let names: Vec<_> = PARTS.iter().map(|&name| name.to_owned()).collect();
    let stopped = remove_all(&output, &record("mine"), &names).expect_err("another removes it");
    assert!(matches!(stopped, SinkError::OtherRun { .. }), "{stopped}");
    assert_eq!(OutputListing::read(&output).expect("a listing").predictions.len(), 1);
}

/// An output that calls `act` at one `moment`, before or after a request, and the same output without the call.
fn hooked(
    runtime: &tokio::runtime::Runtime,
    moment: u64,
    act: impl Fn(&Output) + Send + Sync + 'static,
) -> (Output, Output) {
    let (sent, received) = std::sync::mpsc::channel::<Output>();
    let received = std::sync::Mutex::new(received);
    let store = Hooked::new(InMemory::new(), false, move |now| {
        if now == moment {
            act(&received.lock().expect("no panic").recv().expect("an output"));
        }
        Ok(())
    });
    let at = |store| Output::new(store, "a".into(), "a".to_owned(), None, runtime.handle().clone());
    let plain = at(Arc::clone(&store.inner) as Arc<dyn ObjectStore>);
    sent.send(plain.clone()).expect("received later");
    (at(Arc::new(store)), plain)
}

#[test]
fn a_removal_that_was_taken_over_while_suspended_leaves_the_new_run_alone() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut taken_over = 0;
    for moment in 0..60 {
        let (slow, plain) = hooked(&runtime, moment, |output| {
            // the removal may have ended by then
            if matches!(observe(output).expect("a state"), OutputState::Removing(_)) {
                assert_eq!(begin(output, "third"), "third");
                store_part(output, "third", PARTS[0], &[]);
            }
        });
        plain.create(RUN, json(&record("first"))).expect("created");
        plain.create(PARTS[1], b"rows".to_vec()).expect("created");
        plain.create("_staging/0123456789abcdef", b"rows".to_vec()).expect("stored");
        let done = overwrite(&slow, &record("second"));
        let now = observe(&plain).expect("a state");
        let listing = OutputListing::read(&plain).expect("a listing");
        match now {
            OutputState::Unfinished(now) if now.run_id == "third" => {
                let stopped = done.expect_err("another one has taken it over");
                assert!(matches!(stopped, SinkError::OtherRun { .. }), "{stopped}");
                assert_eq!(listing.predictions.len(), 1, "moment {moment}");
                taken_over += 1;
            }
            OutputState::Unfinished(now) => {
                done.expect("nobody has disturbed it");
                assert_eq!((now.run_id.as_str(), listing.predictions.len()), ("second", 0));
            }
            other => panic!("moment {moment}: {other:?}"),
        }
    }
    assert!(taken_over > 15, "{taken_over} moments");
}

#[test]
fn of_two_attempts_that_complete_a_removal_the_slower_one_joins_the_run_of_the_other() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for moment in 0..60 {
        let (sent, other) = std::sync::mpsc::channel();
        let (slow, plain) = hooked(&runtime, moment, move |output| {
            let run_id = begin(output, "third");
            store_part(output, &run_id, PARTS[0], &[]);
            sent.send(run_id).expect("received later");
        });
        let removing = RunRecord { removing: Some("first".to_owned()), ..record("second") };
        plain.create(RUN, json(&removing)).expect("created");
        plain.create("_staging/0123456789abcdef", b"rows".to_vec()).expect("stored");
        let begun = begin(&slow, "fourth");
        check_current(&plain, &begun).expect("the run that it has begun or joined");
        if let Ok(other) = other.try_recv() {
            assert_eq!(begun, other, "moment {moment}");
            assert_eq!(OutputListing::read(&plain).expect("a listing").predictions.len(), 1);
        }
    }
}

#[test]
fn an_attempt_at_a_removed_run_publishes_nothing() {
    use std::io::Write;

    use crate::commit::upload::Upload;

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    begin(&output, "first");
    let mut upload = Upload::start(&output, "first");
    upload.write_all(b"rows").expect("a buffer takes anything");
    overwrite(&output, &record("second")).expect("removed");
    let stopped = upload.finish(PARTS[0]).wait().expect_err("its run was removed");
    assert!(matches!(stopped, SinkError::OtherRun { .. }), "{stopped}");
    let stopped = publish(&output, "first", SUCCESS, b"hash").expect_err("its run was removed");
    assert!(matches!(stopped, SinkError::OtherRun { .. }), "{stopped}");
    let left = OutputListing::read(&output).expect("a listing");
    assert_eq!(left, OutputListing { has_record: true, ..OutputListing::default() });
}

#[test]
fn a_part_of_a_removed_run_is_replaced_and_a_part_of_this_run_is_kept() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    for name in PARTS {
        begin(&output, "mine");
        // as if the store had executed its request after the removal
        let theirs = crate::commit::testing::part("theirs", &[]);
        output.create(name, theirs).expect("stored");
        let mine = store_part(&output, "mine", name, &[]);
        assert!(!mine.was_there, "a part of another run is in the way of {name}");
        assert_eq!(output.digest(name).expect("stored").sha256, mine.sha256);
        assert!(store_part(&output, "mine", name, &[]).was_there);
    }
}

#[test]
fn parts_of_a_removed_run_are_removed_when_an_attempt_begins() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let output = in_memory(&runtime);
    begin(&output, "mine");
    store_part(&output, "mine", "predictions/part-000003-0123456789ab.parquet", &[]);
    let theirs = crate::commit::testing::part("theirs", &[]);
    for name in
        ["predictions/part-000007-0123456789ab.parquet", "predictions/part-000003-ba9876543210.parquet"]
    {
        output.create(name, theirs.clone()).expect("stored");
    }
    let claim = claim(&output, &record("mine"), &AttemptNote::begun(0, 1)).expect("mine");
    assert_eq!(claim.listing.predictions.keys().collect::<Vec<_>>(), [&3]);
    assert_eq!(claim.listing.duplicates, [""; 0]);
}

/// The objects that the attempt at the removed run publishes: a part that the new run has, too, a part that it does not
/// have, and the end of a run.
const OLD: [&str; 4] = [PARTS[0], "predictions/part-000008-0123456789ab.parquet", MANIFEST, SUCCESS];

/// Begin `second`, publish its part, and finish it.
fn replace_and_finish(output: &Output, steps: Range<usize>) {
    let manifest = || manifest("second", &[PARTS[0]]);
    for step in steps {
        match step {
            0 => overwrite(output, &record("second")).expect("removed"),
            1 => assert_eq!(begin(output, "third"), "second"),
            2 => drop(store_part(output, "second", PARTS[0], &[])),
            3 => {
                let listing = OutputListing::read(output).expect("a listing");
                let parts = listing.predictions.values().cloned().collect();
                remove_parts_of_other_runs(output, listing, parts, &Notes::default(), "second")
                    .map(drop)
                    .expect("removed");
                assert!(publish(output, "second", MANIFEST, &manifest()).expect("published"));
            }
            4 => {
                let part = output.digest(PARTS[0]).expect("stored");
                let decided = Decided { predictions: &[part], batches: &[] };
                remove_strays(output, "second", decided).expect("removed");
            }
            _ => {
                let sha256 = crate::commit::output::sha256_of(&manifest());
                crate::commit::finish::publish_success(output, "second", &sha256, true).expect("published");
            }
        }
    }
}

fn manifest(run_id: &str, parts: &[&str]) -> Vec<u8> {
    let part = |path: &str| serde_json::json!({ "path": path, "bytes": 0, "sha256": "" });
    let manifest = serde_json::json!({
        "run_id": run_id, "finished_at": "", "plan_sha256": "", "model_sha256": "", "limit": null,
        "summary": {"outcome": "succeeded", "rows": 0, "rows_by_status": {}},
        "parts": parts.iter().map(|path| part(path)).collect::<Vec<_>>(), "batches": [], "record": part(""),
    });
    json(&manifest)
}

/// An attempt is suspended before or after one of its requests, and its run is removed. Another run takes as many
/// `steps` before the attempt wakes, and finishes afterwards.
fn woken(runtime: &tokio::runtime::Runtime, moment: u64, in_steps: bool, steps: usize) -> bool {
    let memory = InMemory::new();
    let (sent, received) = std::sync::mpsc::channel::<Output>();
    let received = std::sync::Mutex::new(received);
    let store = Hooked::new(memory, in_steps, move |now| {
        if now == moment {
            let output = received.lock().expect("no panic").recv().expect("an output");
            replace_and_finish(&output, 0..steps);
        }
        Ok(())
    });
    let at = |store| Output::new(store, "a".into(), "a".to_owned(), None, runtime.handle().clone());
    let plain = at(Arc::clone(&store.inner) as Arc<dyn ObjectStore>);
    plain.create(RUN, json(&record("first"))).expect("created");
    sent.send(plain.clone()).expect("received later");
    let hooked = at(Arc::new(store));
    let mut ends = Vec::new();
    for name in OLD {
        let content = match name {
            MANIFEST => manifest("first", &OLD[..2]),
            SUCCESS => b"hash".to_vec(),
            _ => crate::commit::testing::part("first", &[]),
        };
        ends.push(publish(&hooked, "first", name, &content));
    }
    // the hook has received the output if the moment came
    let has_come = sent.send(plain.clone()).is_ok()
        && check_current(&plain, "first").is_err_and(|error| matches!(error, SinkError::OtherRun { .. }));
    if !has_come {
        return false;
    }
    for end in ends {
        assert!(end.as_ref().is_ok() || matches!(end, Err(SinkError::OtherRun { .. })), "{end:?}");
    }
    replace_and_finish(&plain, steps..6);
    let listing = OutputListing::read(&plain).expect("a listing");
    let case = format!("moment {moment}, in steps {in_steps}, {steps} steps");
    let parts: Vec<_> = listing.predictions.values().map(|part| part.name.as_str()).collect();
    assert_eq!((parts, listing.duplicates), (vec![PARTS[0]], vec![]), "{case}");
    let sha256 = crate::commit::output::sha256_of(&crate::commit::testing::part("second", &[]));
    assert_eq!(plain.digest(PARTS[0]).expect("stored").sha256, sha256, "{case}");
    let state = observe(&plain).expect("a state");
    assert!(state.is_success_of("second"), "{case}: {state:?}");
    true
}

#[test]
fn an_attempt_at_a_removed_run_leaves_nothing_whenever_it_wakes() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for in_steps in [false, true] {
        for steps in 1..=6 {
            let moments = (0..).take_while(|&moment| woken(&runtime, moment, in_steps, steps)).count();
            assert!(moments > 30, "{moments} moments");
        }
    }
}
