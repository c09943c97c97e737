//! Every fault at every request of a run, one at a time.

use std::fs;

use crate::Torture;
use crate::gcs::{Fault, Gcs, Logged, Step, faults};
use crate::support::*;
use crate::trial::{Place, Trial};

/// Outcomes of runs with injected faults.
#[derive(Default)]
struct Outcomes {
    identical: u64,
    resumed: u64,
    /// The fault had no effect: it changes a body or a checksum that the answer did not have.
    unchanged: u64,
    /// The run ended before the request that was to fail.
    unreached: u64,
    failures: Vec<String>,
    /// Whether a refused token may stop a run: a part of an upload is not sent again with a new token.
    tokens_stop: bool,
}

impl Torture {
    /// Every fault at every request of a run, one at a time.
    pub fn faults(&mut self) {
        let bench = Bench::new();
        write_tar(&bench.path("in/a.tar"), &images(0, 5));
        write_parquet(&bench.path("in/b.parquet"), &images(10, 5));
        write_tfrecord(&bench.path("in/c.tfrecord"), &images(20, 5));
        for (id, bytes) in images(30, 3) {
            fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
        }
        let trial = with_short_timeouts(bench);
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        // the order of requests varies between runs, so a number stands for a moment rather than a request
        let requests = gcs.requests() + 2;
        for fault in faults::ALL {
            let mut outcomes = Outcomes::default();
            for number in 0..requests {
                gcs.schedule([(number, fault)]);
                outcomes.run(&trial, gcs, &format!("{number}-{}", self.rows.len()));
            }
            outcomes.report(self, format!("{fault:?} at each of {requests} requests"));
        }
        self.faults_of_large_parts();
    }

    /// Every fault at each step that publishes a part too large for one request.
    fn faults_of_large_parts(&mut self) {
        let bench = Bench::new();
        // incompressible names
        let long = images(0, 12_000).into_iter().enumerate();
        let long: Vec<_> = long.map(|(seed, (_, bytes))| (noise(seed as u64 + 1), bytes)).collect();
        write_tfrecord(&bench.path("in/long.tfrecord"), &long);
        let mut trial = with_short_timeouts(bench);
        // no checkpoints, so that no segments are uploaded
        trial.settings.push("output.checkpoint_seconds=1000".to_owned());
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        for step in Step::ALL {
            let mut outcomes = Outcomes { tokens_stop: true, ..Outcomes::default() };
            for fault in faults::ALL {
                gcs.aim(step, fault);
                outcomes.run(
                    &trial,
                    gcs,
                    &format!("{step:?}-{fault:?}").replace([' ', '{', '}', '(', ')', ':'], ""),
                );
            }
            assert_eq!(outcomes.unreached, 0, "a run had no step {step:?}");
            outcomes.report(self, format!("each fault at {step:?} of a 12 MB part"));
        }
    }
}

/// A trial over the bench's folder `in`, uploaded to a bucket, with short timeouts.
fn with_short_timeouts(bench: Bench) -> Trial {
    let settings = ["storage.timeout_seconds=2", "storage.retry_seconds=6", "output.checkpoint_seconds=0.01"];
    Trial::with(bench, Place::Gcs(Gcs::start()), settings.map(str::to_owned).to_vec())
}

impl Outcomes {
    /// Run with the fault that is scheduled in `gcs`. If it stops the run, resume the run without it.
    fn run(&mut self, trial: &Trial, gcs: &Gcs, out: &str) {
        let output = trial.command(out, &[]).output().expect("starts");
        let hit = gcs.log().into_iter().find(|request| request.fault.is_some());
        gcs.schedule([]);
        let before = self.failures.len();
        match output.status.code() {
            Some(0) => {}
            Some(code)
                if hit.as_ref().and_then(expected_code) == Some(code) && self.may_stop(hit.as_ref()) =>
            {
                let again = trial.command(out, &[]).output().expect("starts");
                if again.status.code() != Some(0) {
                    self.failures.push(format!(
                        "{hit:?}: resumed with {:?} {}",
                        again.status,
                        stderr(&again)
                    ));
                }
            }
            other => self.failures.push(format!("{hit:?}: {other:?} {}", stderr(&output))),
        }
        self.failures.extend(trial.fault_in(out).map(|fault| format!("{hit:?}: {fault}")));
        let count = match (&hit, output.status.code()) {
            _ if self.failures.len() > before => return,
            (None, _) => &mut self.unreached,
            (Some(hit), _) if !hit.changed => &mut self.unchanged,
            (_, Some(0)) => &mut self.identical,
            _ => &mut self.resumed,
        };
        *count += 1;
    }

    /// Whether a run may stop because of the fault that occurred.
    fn may_stop(&self, hit: Option<&Logged>) -> bool {
        let fault = hit.and_then(|hit| hit.fault);
        fault.is_some_and(|fault| fault.may_stop() || self.tokens_stop && fault == Fault::Status(401))
    }

    fn report(self, torture: &mut Torture, what: String) {
        let Self { identical, resumed, unchanged, unreached, failures, .. } = self;
        failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
        let mut figure = format!(
            "{identical} identical at once, {resumed} stopped with the right code and identical once resumed, {} failures",
            failures.len()
        );
        if unchanged + unreached > 0 {
            figure.push_str(&format!(
                "; without effect: {unchanged} on answers that the fault does not change, {unreached} after the end of the run"
            ));
        }
        torture.row(what, figure, failures.is_empty() && identical + resumed > 0);
    }
}

/// The exit code of a run that stops because this request failed: 3 for the input, 6 for the output.
fn expected_code(hit: &Logged) -> Option<i32> {
    let bucket = hit.target.trim_start_matches('/').split(['/', '?']).next();
    match bucket {
        Some("input") => Some(3),
        Some("bucket") => Some(6),
        _ => None,
    }
}
