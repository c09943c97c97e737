//! Jobs that fail, and job services that do.

use super::*;

#[test]
fn a_done_job_without_a_manifest_is_an_error() {
    let mut bench = Bench::new();
    let (_, submitted) = bench.submit(Script::of(done(), Then::Close));
    let error = submitted.expect_err("no output");
    assert!(matches!(error, SubmitError::NotDone { .. }), "{error:?}");
    assert!(error.to_string().contains("is empty, as seen from here"), "{error}");
}

#[test]
fn the_error_of_a_worker_is_found_even_behind_the_state() {
    let failure = Failure { code: 3, retry: Retry::Never, message: "input denied".to_owned() };
    let trace = format!("java.lang.RuntimeException: {}\n\tat x.y", failure.to_text());
    let error = message(Level::JobMessageError, &trace);
    let orders = [vec![error.clone(), state(State::Failed)], vec![state(State::Failed), error]];
    for events in orders {
        let (_, submitted) = Bench::new().submit(Script::of(events, Then::Close));
        match submitted.expect_err("failed") {
            SubmitError::Worker(found) => assert_eq!(found, failure),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_failure_with_another_error_behind_it_says_so() {
    let failure = Failure { code: 3, retry: Retry::Never, message: "input denied".to_owned() };
    let (told, error) = (failure.to_text(), "java.io.IOException: worker is gone\n\tat x.y");
    let texts = [told.as_str(), error].map(|text| message(Level::JobMessageError, text));
    let [told, error] = &texts;
    let basic = message(Level::JobMessageBasic, "going down");
    let cases = [
        (
            vec![told, error],
            Some("another one, so a later attempt may have failed for another reason: java.io"),
        ),
        (vec![error, told, &basic], None),
        (vec![told, error, told], None),
    ];
    for (messages, expected) in cases {
        let events = messages.into_iter().cloned().chain([state(State::Failed)]).collect();
        let (_, submitted) = Bench::new().submit(Script::of(events, Then::Close));
        let Err(SubmitError::Worker(found)) = submitted else { panic!("{submitted:?}") };
        assert_eq!((found.code, found.retry), (3, Retry::Never));
        match expected {
            Some(expected) => assert!(found.message.contains(expected), "{found}"),
            None => assert_eq!(found, failure),
        }
    }
}

#[test]
fn a_job_that_fails_after_its_run_was_finished_has_succeeded() {
    let failure = Failure { code: 1, retry: Retry::Again, message: "late".to_owned() };
    let error = message(Level::JobMessageError, &failure.to_text());
    for events in [vec![error, state(State::Failed)], vec![state(State::Failed)]] {
        for (outcome, has_succeeded) in [(Outcome::Succeeded, true), (Outcome::TooManyErrors, false)] {
            let mut bench = Bench::new();
            let work = Box::new(bench.finisher(outcome));
            let (_, submitted) = bench.submit(Script { work, ..Script::of(events.clone(), Then::Close) });
            assert_eq!(submitted.is_ok(), has_succeeded, "{submitted:?}");
        }
    }
}

#[test]
fn a_failure_without_the_words_of_a_worker_says_what_the_runner_says() {
    let (_, silent) = Bench::new().submit(Script::of(vec![state(State::Failed)], Then::Close));
    let silent = silent.expect_err("failed").to_string();
    assert!(silent.contains("ended as FAILED; the runner gives no reason"), "{silent}");
    let python = "Traceback (most recent call last):\n  File \"a.py\"\nE: no env\n  'beam:env:external:v1'\n";
    let texts = [
        ("no slots\n\tat x.y", "ended as FAILED: no slots; the output"),
        (
            python,
            "ended as FAILED: E: no env 'beam:env:external:v1'; it seems that the runner does not support",
        ),
    ];
    for (text, expected) in texts {
        let told = vec![message(Level::JobMessageError, text), state(State::Failed)];
        let (_, told) = Bench::new().submit(Script::of(told, Then::Close));
        let told = told.expect_err("failed");
        assert!(told.to_string().contains(expected), "{told}");
        assert_eq!(told.retry(), Retry::Again);
    }
}

#[test]
fn a_service_that_is_gone_is_reported_with_what_the_output_has() {
    let gone = || Script { state: None, ..Script::of(vec![state(State::Running)], Then::Break) };
    let mut bench = Bench::new();
    let (_, submitted) = bench.submit(gone());
    let error = submitted.expect_err("lost");
    assert!(matches!(error, SubmitError::Service { error: ServiceError::Lost { .. }, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("may still run the job job-7; the output"), "{text}");
    let work = Box::new(bench.finisher(Outcome::Succeeded));
    let (_, submitted) = bench.submit(Script { work, ..gone() });
    assert_eq!(finished(submitted).rows, 4, "the output was finished before");
}

#[test]
fn an_endpoint_that_is_no_job_service_is_an_error_that_says_so() {
    let mut bench = Bench::new();
    let closed = address(&listener()).to_string();
    let error = bench.refused(&closed);
    assert!(matches!(&error, ServiceError::Unreachable { endpoint, .. } if *endpoint == closed), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");

    let staging_only = Staging(bench.serve(Script::of(Vec::new(), Then::Close)).0);
    let server = Server::builder().add_service(ArtifactStagingServiceServer::new(staging_only));
    let other_service = bench.listen(|incoming| server.serve_with_incoming(incoming));
    let error = bench.refused(&other_service);
    assert!(matches!(error, ServiceError::NotAJobService { .. }), "{error:?}");

    let web = listener();
    let web_address = address(&web).to_string();
    std::thread::spawn(move || {
        for connection in web.incoming() {
            let mut connection = connection.expect("a connection");
            // the preface of HTTP/2 is 24 bytes
            connection.read_exact(&mut [0; 24]).expect("a preface");
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").expect("written");
        }
    });
    let error = bench.refused(&web_address);
    assert!(matches!(error, ServiceError::NotAJobService { .. }), "{error:?}");
}

#[test]
fn a_service_that_never_answers_is_given_up() {
    let mut bench = Bench::new();
    let (_, hanging) = bench.serve(Script { unanswered: "prepare", ..Script::of(Vec::new(), Then::Close) });
    // connections to it are accepted by the system, and by nobody else
    let silent = listener();
    for address in [hanging, address(&silent).to_string()] {
        let error = bench.refused(&address);
        assert!(matches!(error, ServiceError::NoAnswer { .. }), "{error:?}");
        assert!(error.to_string().contains("during the preparation of the job"), "{error}");
    }
}

#[test]
fn a_job_whose_start_is_not_answered_may_run() {
    let mut bench = Bench::new();
    let (_, address) = bench.serve(Script { unanswered: "run", ..Script::of(done(), Then::Close) });
    let mut submission = bench.submission(&address);
    submission.limits.answer = Duration::from_millis(300);
    let error = bench.follow(submission).expect_err("no answer");
    assert!(matches!(&error, SubmitError::Service { error: ServiceError::NoAnswer { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("during the start of the job; the job may run: see"), "{error}");
    assert!(error.to_string().contains("is empty, as seen from here"), "{error}");
}

#[test]
fn a_command_that_a_runner_cannot_start_is_named() {
    let mut bench = Bench::new();
    let java = "java.io.IOException: error=2, No such file or directory";
    let events = vec![message(Level::JobMessageError, java), state(State::Failed)];
    let (_, address) = bench.serve(Script::of(events, Then::Close));
    let mut submission = bench.submission(&address);
    submission.options.environment =
        Environment::Process { command: "/opt/sluice".into(), variables: Vec::new() };
    let error = bench.follow(submission).expect_err("no worker").to_string();
    assert!(error.contains(java) && error.contains("its workers are started as /opt/sluice"), "{error}");
}

#[test]
fn a_job_whose_processes_cannot_start_is_cancelled() {
    let script = || Script::of(vec![state(State::Running)], Then::StayOpen);
    let process = || Environment::Process { command: "/nonexistent".into(), variables: Vec::new() };
    let mut bench = Bench::new();
    let (fake, address) = bench.serve(script());
    let mut submission = bench.submission(&address);
    submission.options.environment = process();
    let error = bench.follow(submission).expect_err("no worker");
    assert!(matches!(&error, SubmitError::Service { error: ServiceError::NoWorker { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("is empty, as seen from here"), "{error}");
    assert_eq!(fake.count("cancel"), 1);

    // a worker that has begun and has no row yet
    let streams = || vec![(vec![state(State::Running)], Then::StayOpen)];
    let (fake, address) = bench.serve(Script { is_alive: true, streams: streams(), ..script() });
    let mut submission = bench.submission(&address);
    submission.options.environment = process();
    // its end comes later than the limit for the first sign
    let (stop, asked) = (bench.stop.clone(), Arc::clone(&fake));
    std::thread::spawn(move || {
        while asked.count("state") < 12 {
            std::thread::yield_now();
        }
        stop.drain();
    });
    let submitted = bench.follow(submission);
    assert!(matches!(submitted, Ok(Submitted::Cancelled { .. })), "{submitted:?}");
}

#[test]
fn a_job_whose_workers_have_died_unnoticed_is_cancelled() {
    let mut bench = Bench::new();
    let metrics = Some(MetricResults { attempted: vec![counter("bundles", 1)], committed: Vec::new() });
    let script = Script::of(vec![state(State::Running)], Then::StayOpen);
    let (fake, submitted) = bench.submit(Script { metrics, ..script });
    let error = submitted.expect_err("no worker");
    assert!(
        matches!(&error, SubmitError::Service { error: ServiceError::LostWorker { .. }, .. }),
        "{error:?}"
    );
    assert_eq!(fake.count("cancel"), 1);
}
