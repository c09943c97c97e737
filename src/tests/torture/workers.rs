//! Workers that share an output. Two of them have the same index.

use std::process::Child;

use crate::Torture;
use crate::gcs::Gcs;
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

impl Torture {
    /// Workers share an output. One of them is killed, and then started twice.
    pub fn workers(&mut self) {
        for (num_shards, place) in [
            (2, Place::Disk),
            (4, Place::Disk),
            (2, Place::S3(Server::seaweedfs("bucket"))),
            (4, Place::Gcs(Gcs::start())),
        ] {
            let trial = Trial::new(place, &mut self.random);
            let what = format!("{num_shards} workers, one of them started twice, {}", trial.place.name());
            let (mut killed, mut failures) = (0, Vec::new());
            let rounds = 5;
            for round in 0..rounds {
                let out = format!("out-{round}");
                let command = |index: u32| {
                    let (index, of) = (index.to_string(), num_shards.to_string());
                    trial.command(&out, &["--shard-index", &index, "--num-shards", &of])
                };
                let victim_index = self.random.below(num_shards.into()) as u32;
                let delay = trial.took.mul_f64(self.random.below(80) as f64 / 100.0);
                let mut victim = command(victim_index).spawn().expect("starts");
                let others = (0..num_shards).filter(|&index| index != victim_index);
                let mut workers: Vec<Child> =
                    others.map(|index| command(index).spawn().expect("starts")).collect();
                std::thread::sleep(delay);
                killed += u32::from(victim.try_wait().expect("a child").is_none());
                victim.kill().expect("a child");
                victim.wait().expect("a child");
                workers.extend([victim_index; 2].map(|index| command(index).spawn().expect("starts")));
                for worker in workers {
                    let output = worker.wait_with_output().expect("a child");
                    if output.status.code() != Some(0) {
                        failures.push(format!("{:?} {}", output.status.code(), stderr(&output)));
                    }
                }
                failures.extend(trial.fault_in(&out));
            }
            failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
            let figure = format!(
                "{rounds} rounds, a worker killed while it ran in {killed} of them: one _SUCCESS each, {} failures",
                failures.len()
            );
            self.row(what, figure, failures.is_empty() && killed > 0);
        }
    }
}
