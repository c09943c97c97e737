//! An output that attempts at two runs share: the older one is suspended or alive when `--overwrite` begins the newer.
//!
//! - The new run is over the same input, over one with another version of a shard, or over one without its last shards.
//! - After the old attempt has ended `predictions/` has exactly the parts that the new run's manifest lists, and whoever
//!   lists it beside `_SUCCESS` never sees anything else.

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

/// Kills, by default, for each round at random moments in each place.
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
    /// An output that attempts at two runs share.
    pub fn two_runs(&mut self) {
        let rounds = (self.kills / KILLS_PER_ROUND).max(1);
        for place in [Place::Disk, Place::S3(Server::seaweedfs("bucket")), Place::Gcs(Gcs::start())] {
            let trial = Trial::new(place, &mut self.random);
            for suspended in [true, false] {
                let who = if suspended { "a suspended" } else { "a live" };
                let what = format!("runs removed beside {who} attempt, {}", trial.place.name());
                let mut came = Came::default();
                let mut over = 0;
                while came.removed < rounds {
                    assert!(over < 20 * rounds, "no attempt lives as long as one took");
                    let out = format!("{suspended}-{}-{over}", came.removed);
                    let mut old = trial.command(&out, &[]).spawn().expect("starts");
                    // an attempt that has not begun joins the new run
                    let has_begun = || trial.place.read(&trial.bench, &format!("{out}/_run.json")).is_some();
                    while !has_begun() && old.try_wait().expect("a child").is_none() {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(trial.took.mul_f64(self.random.below(60) as f64 / 100.0));
                    if old.try_wait().expect("a child").is_some() {
                        over += 1;
                        continue;
                    }
                    if suspended {
                        send(Signal::STOP, &old);
                    }
                    came.replace(&trial, &out, old, CHANGES[came.removed as usize % CHANGES.len()]);
                }
                came.tell(self, what);
            }
        }
        self.at_each_request();
    }

    /// The old attempt is suspended by the server, which has carried a request out and not answered it yet: at each
    /// request of a run.
    fn at_each_request(&mut self) {
        let bench = Bench::new();
        for (name, first) in [("a", 0), ("b", 10), ("c", 20)] {
            write_tar(&bench.path(&format!("in/{name}.tar")), &images(first, 5));
        }
        let trial = Trial::over(bench, Place::Gcs(Gcs::start()));
        let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
        let mut came = Came::default();
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
                        // nobody waits any more if the run was over
                        let _ = stopped.send(());
                    }),
                );
                let mut old = trial.command(&out, &[]).spawn().expect("starts");
                pid.set(old.id()).expect("it is set once");
                while is_stopped.recv_timeout(Duration::from_millis(5)).is_err() {
                    if old.try_wait().expect("a child").is_some() {
                        break 'requests;
                    }
                }
                came.replace(&trial, &out, old, change);
            }
        }
        came.tell(self, "runs removed beside an attempt that is suspended at a request, GCS".to_owned());
    }
}

/// Suspend a process, and wait until it is.
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

/// What came of some runs that were removed beside an attempt.
#[derive(Default)]
struct Came {
    removed: u64,
    /// Old attempts that stopped because their run was removed.
    stopped: u64,
    /// Listings beside `_SUCCESS`.
    looks: u64,
    failures: Vec<String>,
}

impl Came {
    /// Begin a new run in the place of that of `old`, wake `old` when it has finished, and see what is there then.
    fn replace(&mut self, trial: &Trial, out: &str, old: Child, change: Change) {
        self.removed += 1;
        let before = self.failures.len();
        let changed = Changed::make(trial, change);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(trial, out, &done));
            let new = trial.command(out, &["--overwrite"]).output().expect("starts");
            if new.status.code() != Some(0) {
                self.failures.push(format!("the new run {:?} {}", new.status.code(), stderr(&new)));
            }
            send(Signal::CONT, &old);
            let old = old.wait_with_output().expect("a child");
            match old.status.code() {
                // its run had finished
                Some(0) => {}
                Some(6) => self.stopped += 1,
                // the shard that it was reading has changed
                Some(3) if !matches!(change, Change::Nothing) => self.stopped += 1,
                code => self.failures.push(format!("the removed run {code:?} {}", stderr(&old))),
            }
            done.store(true, SeqCst);
            let (looks, seen) = watching.join().expect("it does not panic");
            self.looks += looks;
            self.failures.extend(seen);
        });
        self.failures.extend(look(trial, out).err());
        match change {
            Change::Nothing => self.failures.extend(trial.faults_of(out)),
            _ => self.failures.extend(trial.verify(out)),
        }
        changed.restore(trial);
        for failure in &mut self.failures[before..] {
            *failure = format!("{out}, {change:?}: {failure}");
        }
    }

    fn tell(self, torture: &mut Torture, what: String) {
        let Self { removed, stopped, looks, failures } = self;
        failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
        let figure = format!(
            "{removed} runs removed, {stopped} old attempts stopped by that, {looks} listings beside _SUCCESS, {} failures",
            failures.len()
        );
        torture.row(what, figure, failures.is_empty() && stopped > 0 && looks > 0);
    }
}

/// Files of the input that were changed, as they were.
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
                // the bytes are the same, the version is not
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

/// Look at the output until `done`: how often there was a finished run, and what was wrong with one.
fn watch(trial: &Trial, out: &str, done: &AtomicBool) -> (u64, Option<String>) {
    let mut looks = 0;
    while !done.load(SeqCst) {
        match look(trial, out) {
            Ok(is_finished) => looks += u64::from(is_finished),
            Err(wrong) => return (looks, Some(format!("beside _SUCCESS: {wrong}"))),
        }
        std::thread::yield_now();
    }
    (looks, None)
}

/// Whether a run has finished here; if so, that `predictions/` has exactly the parts of its manifest.
fn look(trial: &Trial, out: &str) -> Result<bool, String> {
    let read = |name: &str| trial.place.read(&trial.bench, &format!("{out}/{name}"));
    let Some(success) = read("_SUCCESS") else { return Ok(false) };
    let found: BTreeSet<_> =
        trial.place.names(&trial.bench, &format!("{out}/predictions")).into_iter().collect();
    let (manifest, now) = (read("_manifest.json"), read("_SUCCESS"));
    // the run was removed meanwhile
    let (Some(manifest), true) = (manifest, now.as_ref() == Some(&success)) else { return Ok(false) };
    let hash: String = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    if success != format!("{hash}\n").as_bytes() {
        return Err("_SUCCESS names another manifest".to_owned());
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
        Err(format!("the manifest lists {listed:?}, there are {found:?}"))
    }
}
