//! SIGKILL at random moments of random runs.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Torture;
use crate::gcs::{Gcs, faults};
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

impl Torture {
    /// SIGKILL at random moments. Published parts are always complete, and the resumed run equals an uninterrupted one.
    pub fn kills(&mut self) {
        let mut killed = BTreeMap::<&str, (u64, u64, u64)>::new();
        let (mut failures, mut done, mut round) = (Vec::new(), 0, 0);
        while done < self.kills {
            let place = match round % 3 {
                0 => Place::Disk,
                1 => Place::S3(Server::seaweedfs("bucket")),
                _ => Place::Gcs(Gcs::start()),
            };
            round += 1;
            let trial = Trial::new(place, &mut self.random);
            let name = trial.place.name();
            // several runs of the same input, each killed a few times
            for run in 0..5 {
                let out = format!("out-{run}");
                let mut kills = 0;
                while kills == 0 || self.random.below(3) > 0 {
                    self.schedule_faults(&trial.place);
                    let delay = trial.took.mul_f64(self.random.below(1000) as f64 / 900.0);
                    if !kill_after(trial.command(&out, &[]), delay) {
                        break;
                    }
                    kills += 1;
                    failures.extend(trial.unexpected_row(&out).map(|fault| format!("{name}: {fault}")));
                }
                let (failure, again) = self.resume(&trial, &out);
                failures.extend(failure.map(|failure| format!("{name}: {failure}")));
                let sums = killed.entry(name).or_default();
                *sums = (sums.0 + kills, sums.1 + 1, sums.2 + again);
                done += kills;
                println!("{name}: {done} kills, {} failures", failures.len());
            }
        }
        for failure in &failures {
            println!("FAILED {failure}");
        }
        for (name, (kills, runs, stopped)) in killed {
            let failed = failures.iter().filter(|failure| failure.starts_with(name)).count();
            let figure = format!(
                "{kills} kills in {runs} runs, {stopped} stops by faults: {failed} outputs with lost, duplicate or wrong rows"
            );
            self.row(format!("SIGKILL, {name}"), figure, failed == 0);
        }
    }

    /// Run until the output is finished. Injected faults may stop a run, but only with an exit code for which a retry
    /// can help. Returns what is wrong with the output, and how often a run was stopped.
    pub fn resume(&mut self, trial: &Trial, out: &str) -> (Option<String>, u64) {
        let mut again = 0;
        let resumed = loop {
            self.schedule_faults(&trial.place);
            let resumed = trial.command(out, &[]).output().expect("starts");
            if !matches!(resumed.status.code(), Some(3 | 6)) || again == 20 {
                break resumed;
            }
            again += 1;
        };
        if let Place::Gcs(gcs) = &trial.place {
            gcs.schedule([]);
        }
        let failure = match resumed.status.code() {
            Some(0) => trial.fault_in(out),
            code => Some(format!("{code:?} {}", stderr(&resumed))),
        };
        (failure, again)
    }

    /// Inject a random fault into about one in fifty of the next requests.
    pub fn schedule_faults(&mut self, place: &Place) {
        if let Place::Gcs(gcs) = place {
            let mut schedule = Vec::new();
            for number in 0..20_000 {
                if self.random.below(50) == 0 {
                    schedule
                        .push((number, faults::ALL[self.random.below(faults::ALL.len() as u64) as usize]));
                }
            }
            gcs.schedule(schedule);
        }
    }
}

/// Start a run, and kill it after `delay`. Returns whether it was still running then.
pub fn kill_after(mut command: Command, delay: Duration) -> bool {
    let mut child = command.spawn().expect("starts");
    let start = Instant::now();
    while start.elapsed() < delay {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let alive = child.try_wait().expect("a child").is_none();
    child.kill().expect("a child");
    child.wait().expect("a child");
    alive
}
