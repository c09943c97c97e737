//! Stops, at each step of a job.

use super::*;

#[test]
fn a_stop_cancels_the_job_and_waits_for_its_end_only_for_a_while() {
    let mut bench = Bench::new();
    let stop = bench.stop.clone();
    let work = Box::new(move || stop.drain());
    let script = Script::of(vec![state(State::Running)], Then::StayOpen);
    let (fake, submitted) = bench.submit(Script { work, state: Some(State::Cancelling), ..script });
    let Ok(Submitted::Cancelled { state: said, output }) = submitted else { panic!("{submitted:?}") };
    assert_eq!((said, fake.count("cancel")), ("CANCELLING", 1));
    assert!(output.contains("is empty"), "{output}");
}

#[test]
fn a_cancelled_job_that_has_finished_its_output_is_finished() {
    for end in [State::Done, State::Cancelled] {
        let mut bench = Bench::new();
        let (stop, finish) = (bench.stop.clone(), bench.finisher(Outcome::Succeeded));
        let work = Box::new(move || {
            stop.drain();
            finish();
        });
        let script = Script::of(vec![state(State::Running)], Then::StayOpen);
        let (fake, submitted) = bench.submit(Script { work, state: Some(end), ..script });
        assert_eq!(finished(submitted).rows, 4);
        assert_eq!(fake.count("cancel"), 1);
    }
}

#[test]
fn a_stop_before_the_start_submits_nothing() {
    let mut bench = Bench::new();
    bench.stop.drain();
    let (fake, submitted) = bench.submit(Script::of(done(), Then::Close));
    assert!(matches!(submitted, Ok(Submitted::Cancelled { state: "", .. })), "{submitted:?}");
    assert_eq!((fake.count("prepare"), fake.count("run")), (0, 0));
}

#[test]
fn a_stop_is_heard_while_the_job_is_prepared_and_its_files_are_staged() {
    for call in ["prepare", "staging"] {
        let mut bench = Bench::new();
        let stop_at = Some((call, bench.stop.clone()));
        let (fake, address) =
            bench.serve(Script { unanswered: call, stop_at, ..Script::of(done(), Then::Close) });
        let mut submission = bench.submission(&address);
        submission.limits.answer = NEVER;
        let submitted = bench.follow(submission);
        let Ok(Submitted::Cancelled { state: "", output }) = submitted else {
            panic!("{call}: {submitted:?}")
        };
        assert!(output.contains("is empty"), "{output}");
        assert_eq!((fake.count(call), fake.count("run"), fake.count("cancel")), (1, 0, 0));
    }
}

#[test]
fn a_stop_cancels_a_job_whose_id_comes_later() {
    let mut bench = Bench::new();
    let stop_at = Some(("run", bench.stop.clone()));
    let script = Script::of(vec![state(State::Running)], Then::StayOpen);
    let (fake, address) = bench.serve(Script { stop_at, state: Some(State::Cancelled), ..script });
    let mut submission = bench.submission(&address);
    submission.limits.id = NEVER;
    let submitted = bench.follow(submission);
    assert!(matches!(submitted, Ok(Submitted::Cancelled { state: "CANCELLED", .. })), "{submitted:?}");
    assert_eq!(fake.count("cancel"), 1);
}

#[test]
fn a_job_that_is_stopped_and_has_no_id_may_run() {
    let mut bench = Bench::new();
    let stop_at = Some(("run", bench.stop.clone()));
    let script = Script { unanswered: "run", stop_at, ..Script::of(done(), Then::Close) };
    let (fake, address) = bench.serve(script);
    let mut submission = bench.submission(&address);
    submission.limits.answer = NEVER;
    let submitted = bench.follow(submission);
    // not "the job was not started"
    assert!(matches!(submitted, Ok(Submitted::Cancelled { state: "UNSPECIFIED", .. })), "{submitted:?}");
    assert_eq!((fake.count("run"), fake.count("cancel")), (1, 0));
}

#[test]
fn a_stopped_job_is_cancelled_although_its_runner_calls_it_failed() {
    let stopped = Failure::stopped().to_text();
    let other = Failure { code: 3, retry: Retry::Never, message: "input denied".to_owned() };
    let cases = [(Some(stopped), true), (None, true), (Some(other.to_text()), false)];
    for (error, is_cancelled) in cases {
        let mut bench = Bench::new();
        let stop = bench.stop.clone();
        let work = Box::new(move || stop.drain());
        let error = error.map(|text| message(Level::JobMessageError, &text));
        let events = error.into_iter().chain([state(State::Failed)]).collect();
        // the first stream breaks, so that the job is cancelled before its end is known
        let streams = vec![(vec![state(State::Running)], Then::Close), (events, Then::Close)];
        let script = Script::of(Vec::new(), Then::Close);
        let (fake, submitted) = bench.submit(Script { work, streams, ..script });
        assert_eq!(fake.count("cancel"), 1);
        match submitted {
            Ok(Submitted::Cancelled { state: "FAILED", .. }) => assert!(is_cancelled),
            Err(SubmitError::Worker(failure)) => assert!(!is_cancelled && failure == other, "{failure}"),
            submitted => panic!("{submitted:?}"),
        }
    }
}
