//! Every fault at every request of a run, one at a time.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::Torture;
use crate::gcs::{Gcs, faults};
use crate::support::*;
use crate::trial::{Place, Trial};

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
        let place = Place::Gcs(Gcs::start());
        place.load(&bench, "in");
        let settings =
            ["storage.timeout_seconds=2", "storage.retry_seconds=6", "output.checkpoint_seconds=0.01"];
        let settings = settings.map(str::to_owned).to_vec();
        let mut trial = Trial { bench, place, settings, expected: BTreeMap::new(), took: Duration::ZERO };
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        gcs.schedule([]);
        assert_code(&trial.command("one-go", &[]).output().expect("starts"), 0);
        // requests come in another order each time, so that a number is a moment and not a request
        let requests = gcs.requests() + 2;
        trial.expected = trial.rows("one-go");
        for fault in faults::ALL {
            let (mut resumed, mut failures) = (0, Vec::new());
            for number in 0..requests {
                let out = format!("{number}-{}", self.rows.len());
                gcs.schedule([(number, fault)]);
                let output = trial.command(&out, &[]).output().expect("starts");
                let hit = gcs.log().into_iter().find(|request| request.fault.is_some());
                gcs.schedule([]);
                match output.status.code() {
                    Some(0) => {}
                    Some(3 | 6) => {
                        resumed += 1;
                        let again = trial.command(&out, &[]).output().expect("starts");
                        if again.status.code() != Some(0) {
                            failures.push(format!(
                                "{hit:?}: resumed with {:?} {}",
                                again.status,
                                stderr(&again)
                            ));
                        }
                    }
                    other => failures.push(format!("{hit:?}: {other:?} {}", stderr(&output))),
                }
                failures.extend(trial.faults_of(&out).map(|fault| format!("{hit:?}: {fault}")));
            }
            failures.iter().for_each(|failure| println!("FAILED {fault:?} {failure}"));
            let figure = format!(
                "{requests} requests: {} identical at once, {resumed} stopped and resumed identical, {} failures",
                requests - resumed - failures.len() as u64,
                failures.len()
            );
            let held = failures.is_empty();
            self.rows.push((format!("{fault:?} at each request"), figure.clone(), held));
            println!("{fault:?}: {figure}");
        }
    }
}
