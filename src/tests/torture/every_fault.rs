//! Every fault at every request of a run, one at a time.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::Torture;
use crate::gcs::{Fault, Gcs, Logged, Step, faults};
use crate::support::*;
use crate::trial::{Place, Trial};

/// What came of some runs that a fault was meant for.
#[derive(Default)]
struct Came {
    identical: u64,
    resumed: u64,
    /// The fault changed nothing: it is about a body, and the answer had none.
    unchanged: u64,
    /// The run was over before the request that was to fail.
    unreached: u64,
    failures: Vec<String>,
    /// Whether a token that is refused may stop a run: a part of an upload is not sent again with another one.
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
        let trial = impatient(bench);
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        // requests come in another order each time, so that a number is a moment and not a request
        let requests = gcs.requests() + 2;
        for fault in faults::ALL {
            let mut came = Came::default();
            for number in 0..requests {
                gcs.schedule([(number, fault)]);
                came.run(&trial, gcs, &format!("{number}-{}", self.rows.len()));
            }
            came.tell(self, format!("{fault:?} at each of {requests} requests"));
        }
        self.faults_of_large_parts();
    }

    /// The same at each step by which a part is published that is too large for one request.
    fn faults_of_large_parts(&mut self) {
        let bench = Bench::new();
        // names that no codec makes shorter
        let long = images(0, 12_000).into_iter().enumerate();
        let long: Vec<_> = long.map(|(seed, (_, bytes))| (noise(seed as u64 + 1), bytes)).collect();
        write_tfrecord(&bench.path("in/long.tfrecord"), &long);
        let mut trial = impatient(bench);
        // one part, not segments of one
        trial.settings.push("output.checkpoint_seconds=1000".to_owned());
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        for step in Step::ALL {
            let mut came = Came { tokens_stop: true, ..Came::default() };
            for fault in faults::ALL {
                gcs.aim(step, fault);
                came.run(
                    &trial,
                    gcs,
                    &format!("{step:?}-{fault:?}").replace([' ', '{', '}', '(', ')', ':'], ""),
                );
            }
            assert_eq!(came.unreached, 0, "a run without the step {step:?}");
            came.tell(self, format!("each fault at {step:?} of a part of 12 MB"));
        }
    }
}

/// A bench's folder `in` in a bucket, and runs that do not wait long for it.
fn impatient(bench: Bench) -> Trial {
    let place = Place::Gcs(Gcs::start());
    place.load(&bench, "in");
    let settings = ["storage.timeout_seconds=2", "storage.retry_seconds=6", "output.checkpoint_seconds=0.01"];
    let settings = settings.map(str::to_owned).to_vec();
    let mut trial = Trial { bench, place, settings, expected: BTreeMap::new(), took: Duration::ZERO };
    if let Place::Gcs(gcs) = &trial.place {
        gcs.schedule([]);
    }
    assert_code(&trial.command("one-go", &[]).output().expect("starts"), 0);
    trial.expected = trial.rows("one-go");
    trial
}

impl Came {
    /// Run with the fault that `gcs` has been told, and once more if it stops.
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
        self.failures.extend(trial.faults_of(out).map(|fault| format!("{hit:?}: {fault}")));
        let count = match (&hit, output.status.code()) {
            _ if self.failures.len() > before => return,
            (None, _) => &mut self.unreached,
            (Some(hit), _) if !hit.changed => &mut self.unchanged,
            (_, Some(0)) => &mut self.identical,
            _ => &mut self.resumed,
        };
        *count += 1;
    }

    /// Whether the fault that was hit is one that a run may stop for.
    fn may_stop(&self, hit: Option<&Logged>) -> bool {
        let fault = hit.and_then(|hit| hit.fault);
        fault.is_some_and(|fault| fault.may_stop() || self.tokens_stop && fault == Fault::Status(401))
    }

    fn tell(self, torture: &mut Torture, what: String) {
        let Self { identical, resumed, unchanged, unreached, failures, .. } = self;
        failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
        let mut figure = format!(
            "{identical} identical at once, {resumed} stopped with the right code and resumed identical, {} failures",
            failures.len()
        );
        if unchanged + unreached > 0 {
            figure.push_str(&format!(
                "; of no effect: {unchanged} on answers without a body, {unreached} behind the run's end"
            ));
        }
        torture.row(what, figure, failures.is_empty() && identical + resumed > 0);
    }
}

/// The code of a run that stops for want of this request: the input's, or the output's.
fn expected_code(hit: &Logged) -> Option<i32> {
    let bucket = hit.target.trim_start_matches('/').split(['/', '?']).next();
    match bucket {
        Some("input") => Some(3),
        Some("bucket") => Some(6),
        _ => None,
    }
}
