//! Attempts that are suspended, and wake up after another attempt has finished their run.

use rustix::process::Signal;

use crate::Torture;
use crate::gcs::Gcs;
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

/// Attempts that wake up, for each place.
const ROUNDS: u64 = 10;

impl Torture {
    /// An attempt is suspended, another one finishes the run, and the first one goes on where it was.
    pub fn zombies(&mut self) {
        for place in [Place::Disk, Place::S3(Server::seaweedfs("bucket")), Place::Gcs(Gcs::start())] {
            let trial = Trial::new(place, &mut self.random);
            let what = format!("attempts that wake up after the end, {}", trial.place.name());
            let (mut woken, mut over, mut failures) = (0, 0, Vec::new());
            while woken < ROUNDS {
                assert!(over < 10 * ROUNDS, "no attempt lives as long as one took");
                let out = format!("out-{woken}-{over}");
                let mut sleeping = trial.command(&out, &[]).spawn().expect("starts");
                std::thread::sleep(trial.took.mul_f64(self.random.below(90) as f64 / 100.0));
                if sleeping.try_wait().expect("a child").is_some() {
                    over += 1;
                    continue;
                }
                send(Signal::STOP, &sleeping);
                let other = trial.command(&out, &[]).output().expect("starts");
                if other.status.code() != Some(0) {
                    failures.push(format!("beside it {:?} {}", other.status.code(), stderr(&other)));
                }
                send(Signal::CONT, &sleeping);
                let output = sleeping.wait_with_output().expect("a child");
                if output.status.code() != Some(0) {
                    failures.push(format!("{:?} {}", output.status.code(), stderr(&output)));
                }
                failures.extend(trial.faults_of(&out));
                woken += 1;
            }
            failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
            let figure = format!("{woken} attempts suspended while they ran, {} failures", failures.len());
            self.row(what, figure, failures.is_empty());
        }
    }
}
