//! Attempts that are suspended, and continue after another attempt has finished their run.

use rustix::process::Signal;

use crate::Torture;
use crate::gcs::Gcs;
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

/// Suspended attempts for each place.
const ROUNDS: u64 = 10;

impl Torture {
    /// An attempt is suspended, another one finishes the run, and the first one continues.
    pub fn zombies(&mut self) {
        for place in [Place::Disk, Place::S3(Server::seaweedfs("bucket")), Place::Gcs(Gcs::start())] {
            let trial = Trial::new(place, &mut self.random);
            let what = format!("attempts that continue after their run has finished, {}", trial.place.name());
            let (mut continued, mut too_short, mut failures) = (0, 0, Vec::new());
            while continued < ROUNDS {
                assert!(too_short < 10 * ROUNDS, "attempts end before they can be suspended");
                let out = format!("out-{continued}-{too_short}");
                let mut suspended = trial.command(&out, &[]).spawn().expect("starts");
                std::thread::sleep(trial.took.mul_f64(self.random.below(90) as f64 / 100.0));
                if suspended.try_wait().expect("a child").is_some() {
                    too_short += 1;
                    continue;
                }
                send(Signal::STOP, &suspended);
                let other = trial.command(&out, &[]).output().expect("starts");
                if other.status.code() != Some(0) {
                    failures.push(format!("the other attempt: {:?} {}", other.status.code(), stderr(&other)));
                }
                send(Signal::CONT, &suspended);
                let output = suspended.wait_with_output().expect("a child");
                if output.status.code() != Some(0) {
                    failures.push(format!(
                        "the suspended attempt: {:?} {}",
                        output.status.code(),
                        stderr(&output)
                    ));
                }
                failures.extend(trial.fault_in(&out));
                continued += 1;
            }
            failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
            let figure = format!("{continued} attempts suspended and continued, {} failures", failures.len());
            self.row(what, figure, failures.is_empty());
        }
    }
}
