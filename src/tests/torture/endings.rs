//! Outdated listings, lost answers, runs with too many errors, and shards with bit rot, each combined with SIGKILL at
//! random moments.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::Torture;
use crate::gcs::Gcs;
use crate::kills::kill_after;
use crate::support::*;
use crate::trial::{Place, Trial};

/// Outputs for each claim.
const ROUNDS: u64 = 12;

/// Number of records in the input of [`half_bad`].
const HALF_BAD_RECORDS: u32 = 4000;

impl Torture {
    pub fn endings(&mut self) {
        self.old_listings();
        self.lost_answers();
        for place in [Place::Disk, Place::Gcs(Gcs::start())] {
            self.too_many_errors(place);
        }
        self.damaged_shards();
    }

    /// Run `out`, killing it at a random moment with a probability of one half, until it is not killed. Returns how
    /// often it was killed, and how it ended.
    fn with_kills(&mut self, trial: &Trial, out: &str, args: &[&str]) -> (u64, Output) {
        let mut killed = 0;
        while self.random.below(2) == 0 {
            let delay = trial.took.mul_f64(self.random.below(1000) as f64 / 900.0);
            killed += u64::from(kill_after(trial.command(out, args), delay));
        }
        (killed, trial.command(out, args).output().expect("starts"))
    }

    /// Listings of the output bucket are outdated, and are updated rarely or never.
    fn old_listings(&mut self) {
        let trial = Trial::new(Place::Gcs(Gcs::start()), &mut self.random);
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        let (mut killed, mut failures) = (0, Vec::new());
        for round in 0..ROUNDS {
            let out = format!("old-{round}");
            let listings = if round % 3 == 0 { u64::MAX } else { 1 + self.random.below(6) };
            gcs.set_old_listings("bucket", listings);
            let workers = 1 + self.random.below(3);
            for worker in 0..workers {
                let (index, of) = (worker.to_string(), workers.to_string());
                let (kills, ended) =
                    self.with_kills(&trial, &out, &["--shard-index", &index, "--num-shards", &of]);
                killed += kills;
                if ended.status.code() != Some(0) {
                    failures.push(format!("{listings} listings: {:?} {}", ended.status, stderr(&ended)));
                }
            }
            failures.extend(trial.fault_in(&out));
        }
        gcs.set_new_listings();
        self.report("outdated listings, 1 to 3 workers", killed, failures);
    }

    /// Every creation of one kind of object is carried out and answered with 503.
    fn lost_answers(&mut self) {
        let trial = Trial::new(Place::Gcs(Gcs::start()), &mut self.random);
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        let (mut killed, mut failures) = (0, Vec::new());
        for (number, name) in [
            "/_run.json",
            "/_attempts/",
            "/_checkpoints/",
            "/predictions/",
            "/batches/",
            "/_workers/",
            "/_manifest.json",
            "/_SUCCESS",
            "/",
        ]
        .into_iter()
        .enumerate()
        {
            let out = format!("lost-{number}");
            gcs.lose_answers(&format!("{out}{name}"));
            // each creation is repeated after a pause
            let options = ["--set", "output.checkpoint_seconds=0.5"];
            let (kills, ended) = self.with_kills(&trial, &out, &options);
            killed += kills;
            if ended.status.code() != Some(0) {
                failures.push(format!("{name}: {:?} {}", ended.status, stderr(&ended)));
            }
            failures.extend(trial.fault_in(&out));
        }
        self.report("lost answers to all creations of each kind", killed, failures);
    }

    /// Half of the records are not images: attempts with a low limit exit with 5, attempts with a high limit with 0,
    /// in any order.
    fn too_many_errors(&mut self, place: Place) {
        let name = place.name();
        let trial = half_bad(place);
        let (mut killed, mut failures) = (0, Vec::new());
        for round in 0..ROUNDS {
            let out = format!("bad-{round}");
            for strict in 0..self.random.below(3) {
                let (kills, ended) = self.with_kills(&trial, &out, &[]);
                killed += kills;
                if ended.status.code() != Some(5) {
                    failures.push(format!("strict {strict}: {:?} {}", ended.status, stderr(&ended)));
                }
                failures.extend(trial.fault_in(&out));
            }
            // two concurrent attempts, one with the low limit and one with the high limit
            let strict = trial.command(&out, &[]).spawn().expect("starts");
            let (kills, ended) = self.with_kills(&trial, &out, &ALLOWED);
            killed += kills;
            let strict = strict.wait_with_output().expect("a child");
            if ended.status.code() != Some(0) || !matches!(strict.status.code(), Some(0 | 5)) {
                failures.push(format!(
                    "high limit: {:?} {}, low limit: {:?} {}",
                    ended.status,
                    stderr(&ended),
                    strict.status,
                    stderr(&strict)
                ));
            }
            failures.extend(trial.fault_in(&out));
            let again = trial.command(&out, &[]).output().expect("starts");
            if again.status.code() != Some(0) || !stdout(&again).contains("done before") {
                failures.push(format!("after the run had succeeded: {:?} {}", again.status, stderr(&again)));
            }
        }
        self.report(&format!("too many errors for a low limit, then a high one, {name}"), killed, failures);
    }

    /// A shard is damaged after some of its rows were stored in segments. Its time and size stay the same.
    fn damaged_shards(&mut self) {
        let (mut resumed, mut failures) = (0, Vec::new());
        for round in 0..ROUNDS {
            let bench = Bench::new();
            let records = 4000;
            let shard = bench.path("in/a.tfrecord");
            write_tfrecord(&shard, &images(0, records));
            let settings = vec!["output.checkpoint_seconds=0.02".to_owned()];
            let trial = Trial {
                bench,
                place: Place::Disk,
                settings,
                expected: BTreeMap::new(),
                took: Duration::ZERO,
            };
            let start = Instant::now();
            assert_code(&trial.command("whole", &[]).output().expect("starts"), 0);
            let took = start.elapsed();
            let delay = took.mul_f64((20 + self.random.below(70)) as f64 / 100.0);
            // a shard whose part is finished is not read again
            if !kill_after(trial.command("out", &[]), delay) || !whole_parts(&trial.bench).is_empty() {
                continue;
            }
            // a damaged length hides all later records
            let starts = tfrecord_starts(&shard);
            corrupt(&shard, starts[self.random.below(starts.len() as u64) as usize], b"rot");
            let code = |out: &str| {
                let output = trial.command(out, &[]).output().expect("starts");
                (output.status.code(), stderr(&output))
            };
            let ((resumed_code, log), (uninterrupted_code, _)) = (code("out"), code("uninterrupted"));
            if resumed_code != Some(5) || uninterrupted_code != Some(5) || log.contains("panicked") {
                failures.push(format!(
                    "round {round}: {resumed_code:?}, uninterrupted {uninterrupted_code:?} {log}"
                ));
                continue;
            }
            let (rows, expected) = (trial.rows("out"), trial.rows("uninterrupted"));
            if rows != expected {
                failures.push(format!(
                    "round {round}: {} rows, uninterrupted {}",
                    rows.len(),
                    expected.len()
                ));
            }
            resumed += 1;
        }
        self.report("shards damaged after checkpoints", resumed, failures);
    }

    fn report(&mut self, what: &str, killed: u64, failures: Vec<String>) {
        failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
        let figure = format!("{killed} kills, {} failures", failures.len());
        self.row(what, figure, failures.is_empty() && killed > 0);
    }
}

const ALLOWED: [&str; 2] = ["--set", "output.max_error_rate=0.5"];

/// A trial over four shards in which every other record is not an image.
fn half_bad(place: Place) -> Trial {
    let bench = Bench::new();
    for shard in 0..4 {
        let mut records = images(shard * HALF_BAD_RECORDS, HALF_BAD_RECORDS / 4);
        records.iter_mut().step_by(2).for_each(|(_, bytes)| *bytes = b"no image".to_vec());
        write_tar(&bench.path(&format!("in/{shard}.tar")), &records);
    }
    place.load(&bench, "in");
    let settings = vec!["output.checkpoint_seconds=0.05".to_owned()];
    let mut trial = Trial { bench, place, settings, expected: BTreeMap::new(), took: Duration::ZERO };
    let start = Instant::now();
    assert_code(&trial.command("uninterrupted", &ALLOWED).output().expect("starts"), 0);
    trial.took = start.elapsed();
    trial.expected = trial.rows("uninterrupted");
    trial
}
