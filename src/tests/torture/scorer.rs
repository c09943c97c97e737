//! One scorer that eight threads call, in a process that is killed at random moments.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Torture;
use crate::example::example;
use crate::gcs::Gcs;
use crate::kills::kill_after;
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

/// Outputs in each kind of store.
const OUTPUTS: u32 = 8;

/// The example program with eight threads over the trial's input.
fn scoring(trial: &Trial, out: &str) -> Command {
    let (input, output) = (trial.place.uri(&trial.bench, "in"), trial.place.uri(&trial.bench, out));
    let mut scoring = example(&trial.bench, &input, &output, 8);
    scoring.envs(trial.place.environment()).stdout(Stdio::null()).stderr(Stdio::null());
    scoring
}

impl Torture {
    /// SIGKILL while eight threads score 200 shards with one scorer. `sluice run` then finishes the run, and its rows
    /// are those of an uninterrupted run.
    pub fn scorer(&mut self) {
        for place in [Place::Disk, Place::S3(Server::seaweedfs("bucket")), Place::Gcs(Gcs::start())] {
            let trial = Trial::with_input(self.many_shards(), place);
            let what = format!("SIGKILL, eight threads with one scorer, {}", trial.place.name());
            // the first run may load the program from disk
            let took = (0..2).map(|number| {
                let start = Instant::now();
                let out = format!("uninterrupted-scorer-{number}");
                assert_code(&scoring(&trial, &out).output().expect("starts"), 0);
                start.elapsed()
            });
            let took = took.min().expect("two runs");
            let (mut kills, mut failures, mut stopped) = (0, Vec::new(), 0);
            for output in 0..OUTPUTS {
                let out = format!("out-{output}");
                loop {
                    self.schedule_faults(&trial.place);
                    let scoring = scoring(&trial, &out);
                    let delay = took.mul_f64(self.random.below(1000) as f64 / 1000.0);
                    kills += u32::from(kill_after(scoring, delay));
                    failures.extend(trial.unexpected_row(&out));
                    if self.random.below(2) == 0 {
                        break;
                    }
                }
                let (failure, again) = self.resume(&trial, &out);
                failures.extend(failure);
                stopped += again;
                println!("{what}: {kills} kills, {} failures", failures.len());
            }
            failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
            let failed = failures.len();
            let figure = format!(
                "{kills} kills of {OUTPUTS} outputs of 200 shards, {stopped} runs stopped by faults: {failed} failures"
            );
            self.row(what, figure, failed == 0 && kills > 0);
        }
    }

    /// An input of 200 shards of mixed formats and sizes.
    fn many_shards(&mut self) -> Bench {
        let bench = Bench::new();
        let mut seed = self.random.below(1 << 20) as u32;
        for shard in 0..200 {
            let records = images(seed, self.random.below(24) as u32);
            seed += records.len() as u32;
            let path = |extension| bench.path(&format!("in/{shard:03}.{extension}"));
            match shard % 3 {
                0 => write_tar(&path("tar"), &records),
                1 => write_tfrecord(&path("tfrecord"), &records),
                _ => write_parquet(&path("parquet"), &records),
            }
        }
        bench
    }
}
