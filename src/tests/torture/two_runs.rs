//! Attempts at two runs with the same output. The old attempt is suspended or alive when `--overwrite` starts the new
//! run.
//!
//! - The input of the new run is the same, or has another version of one shard, or lacks the last half of the files.
//! - While `_SUCCESS` exists, and after the old attempt has ended, `predictions/` has exactly the parts that the new
//!   run's manifest lists.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use crate::Torture;
use crate::gcs::Gcs;
use crate::servers::Server;
use crate::support::*;
use crate::trial::{Place, Trial};

/// `--kills` divided by this is the number of rounds for each place and kind of old attempt.
const KILLS_PER_ROUND: u64 = 20;

/// How the input of the new run differs from that of the old one.
#[derive(Debug, Clone, Copy)]
enum Change {
    Nothing,
    OneShard,
    FewerShards,
}

const CHANGES: [Change; 3] = [Change::Nothing, Change::OneShard, Change::FewerShards];

impl Torture {
    /// Remove runs beside live and suspended attempts at them.
    pub fn two_runs(&mut self) {
        let rounds = (self.kills / KILLS_PER_ROUND).max(1);
        for place in [Place::Disk, Place::S3(Server::seaweedfs("bucket")), Place::Gcs(Gcs::start())] {
            let trial = Trial::new(place, &mut self.random);
            for suspended in [true, false] {
                let kind = if suspended { "a suspended" } else { "a live" };
                let what = format!("runs removed beside {kind} attempt, {}", trial.place.name());
                let mut outcomes = Outcomes::default();
                let mut too_short = 0;
                while outcomes.removed < rounds {
                    assert!(too_short < 20 * rounds, "attempts end before their run can be removed");
                    let out = format!("{suspended}-{}-{too_short}", outcomes.removed);
                    let mut old = trial.command(&out, &[]).spawn().expect("starts");
                    // an attempt that has not read `_run.json` yet would join the new run
                    let has_begun = || trial.place.read(&trial.bench, &format!("{out}/_run.json")).is_some();
                    while !has_begun() && old.try_wait().expect("a child").is_none() {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(trial.took.mul_f64(self.random.below(60) as f64 / 100.0));
                    if old.try_wait().expect("a child").is_some() {
                        too_short += 1;
                        continue;
                    }
                    if suspended {
                        send(Signal::STOP, &old);
                    }
                    outcomes.replace(&trial, &out, old, CHANGES[outcomes.removed as usize % CHANGES.len()]);
                }
                outcomes.report(self, what);
            }
        }
        self.at_each_request();
    }

    /// Suspend the old attempt at each request of a run: the server has carried the request out, but not answered it.
    fn at_each_request(&mut self) {
        let bench = Bench::new();
        for (name, first) in [("a", 0), ("b", 10), ("c", 20)] {
            write_tar(&bench.path(&format!("in/{name}.tar")), &images(first, 5));
        }
        let trial = Trial::with_input(bench, Place::Gcs(Gcs::start()));
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        let mut outcomes = Outcomes::default();
        let step = (200 / self.kills.max(1)).max(1);
        'requests: for number in (0..).step_by(step as usize) {
            let changes =
                if step == 1 { &CHANGES[..] } else { &CHANGES[number as usize / step as usize % 3..][..1] };
            for &change in changes {
                let out = format!("at-{number}-{change:?}");
                let pid = Arc::new(OnceLock::new());
                let (stopped, is_stopped) = mpsc::channel();
                gcs.schedule([]);
                let stop = Arc::clone(&pid);
                gcs.call_at(
                    number,
                    Box::new(move || {
                        stop_process(*stop.wait());
                        // the receiver is gone if the attempt has ended
                        let _ = stopped.send(());
                    }),
                );
                let mut old = trial.command(&out, &[]).spawn().expect("starts");
                pid.set(old.id()).expect("set once");
                while is_stopped.recv_timeout(Duration::from_millis(5)).is_err() {
                    if old.try_wait().expect("a child").is_some() {
                        break 'requests;
                    }
                }
                outcomes.replace(&trial, &out, old, change);
            }
        }
        outcomes
            .report(self, "runs removed beside an attempt that is suspended at a request, GCS".to_owned());
    }
}

/// Suspend a process, and wait until it has stopped.
fn stop_process(id: u32) {
    let pid = rustix::process::Pid::from_raw(id as i32).expect("an id of a process");
    rustix::process::kill_process(pid, Signal::STOP).expect("a child");
    while let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) {
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        if matches!(state, Some('T' | 'Z')) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Outcomes of runs that were removed beside an attempt.
#[derive(Default)]
struct Outcomes {
    removed: u64,
    /// Old attempts that stopped because their run was removed.
    stopped: u64,
    /// Checks of the output that found a finished run.
    checks: u64,
    failures: Vec<String>,
}

impl Outcomes {
    /// Replace the run of the attempt `old` by a new one. When the new run has finished, continue `old`, and check the
    /// output after `old` has ended.
    fn replace(&mut self, trial: &Trial, out: &str, old: Child, change: Change) {
        self.removed += 1;
        let before = self.failures.len();
        let changed = Changed::make(trial, change);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(trial, out, &done));
            let new = trial.command(out, &["--overwrite"]).output().expect("starts");
            if new.status.code() != Some(0) {
                self.failures.push(format!("the new run {:?} {}", new.status.code(), stderr(&new)));
            }
            send(Signal::CONT, &old);
            let old = old.wait_with_output().expect("a child");
            match old.status.code() {
                // it had finished its run before the removal
                Some(0) => {}
                Some(6) => self.stopped += 1,
                // the shard that it was reading has changed
                Some(3) if !matches!(change, Change::Nothing) => self.stopped += 1,
                code => self.failures.push(format!("the removed run {code:?} {}", stderr(&old))),
            }
            done.store(true, SeqCst);
            let (checks, failure) = watcher.join().expect("the watcher does not panic");
            self.checks += checks;
            self.failures.extend(failure);
        });
        self.failures.extend(check(trial, out).err());
        match change {
            Change::Nothing => self.failures.extend(trial.fault_in(out)),
            _ => self.failures.extend(trial.verify(out)),
        }
        changed.restore(trial);
        for failure in &mut self.failures[before..] {
            *failure = format!("{out}, {change:?}: {failure}");
        }
    }

    fn report(self, torture: &mut Torture, what: String) {
        let Self { removed, stopped, checks, failures } = self;
        failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
        let figure = format!(
            "{removed} runs removed, {stopped} old attempts stopped by that, {checks} checks beside _SUCCESS, {} failures",
            failures.len()
        );
        torture.row(what, figure, failures.is_empty() && stopped > 0 && checks > 0);
    }
}

/// Files of the input that were changed, with their original content.
struct Changed(Vec<(PathBuf, Vec<u8>)>);

impl Changed {
    fn make(trial: &Trial, change: Change) -> Self {
        let files = parts(&trial.bench.path("in"));
        let of = match change {
            Change::Nothing => &[][..],
            Change::OneShard => &files[..1],
            Change::FewerShards => &files[files.len().div_ceil(2)..],
        };
        let changed: Vec<_> = of.iter().map(|file| (file.clone(), fs::read(file).expect("a file"))).collect();
        for (file, bytes) in &changed {
            match change {
                // the same bytes get a new version
                Change::OneShard => trial.place.put_input(file, bytes),
                _ => trial.place.remove_input(file),
            }
        }
        Self(changed)
    }

    fn restore(self, trial: &Trial) {
        for (file, bytes) in self.0 {
            trial.place.put_input(&file, &bytes);
        }
    }
}

/// Check the output until `done`. Returns the number of checks that found a finished run, and the first failure.
fn watch(trial: &Trial, out: &str, done: &AtomicBool) -> (u64, Option<String>) {
    let mut checks = 0;
    while !done.load(SeqCst) {
        match check(trial, out) {
            Ok(is_finished) => checks += u64::from(is_finished),
            Err(failure) => return (checks, Some(format!("beside _SUCCESS: {failure}"))),
        }
        std::thread::yield_now();
    }
    (checks, None)
}

/// Whether the output has a finished run. If so, checks that `predictions/` has exactly the parts of its manifest.
fn check(trial: &Trial, out: &str) -> Result<bool, String> {
    let read = |name: &str| trial.place.read(&trial.bench, &format!("{out}/{name}"));
    let Some(success) = read("_SUCCESS") else { return Ok(false) };
    let found: BTreeSet<_> =
        trial.place.names(&trial.bench, &format!("{out}/predictions")).into_iter().collect();
    let (manifest, success_after) = (read("_manifest.json"), read("_SUCCESS"));
    // the run was removed between the two reads of `_SUCCESS`
    let (Some(manifest), true) = (manifest, success_after.as_ref() == Some(&success)) else {
        return Ok(false);
    };
    let hash: String = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    if success != format!("{hash}\n").as_bytes() {
        return Err("_SUCCESS has the hash of another manifest".to_owned());
    }
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
    let listed = manifest["parts"].as_array().into_iter().flatten();
    let name = |part: &serde_json::Value| {
        part["path"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_owned()
    };
    let listed: BTreeSet<_> = listed.map(name).collect();
    if listed == found {
        Ok(true)
    } else {
        Err(format!("the manifest lists {listed:?}, predictions/ has {found:?}"))
    }
}
