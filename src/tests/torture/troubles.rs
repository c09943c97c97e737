//! Stores that fill up, become read-only or disappear in the middle of a run.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Torture;
use crate::gcs::Gcs;
use crate::support::*;
use crate::trial::{Place, Trial};

impl Torture {
    /// Stores that fill up, become read-only or disappear.
    pub fn troubles(&mut self) {
        self.disk_full();
        for (what, code) in [("output bucket turns read-only", 6), ("input bucket vanishes", 3)] {
            let trial = Trial::new(Place::Gcs(Gcs::start()), &mut self.random);
            let Place::Gcs(gcs) = &trial.place else { unreachable!("it was made above") };
            let mut failures = Vec::new();
            let (mut stopped, rounds) = (0, 6);
            for round in 0..rounds {
                let out = format!("out-{round}");
                let running = trial.command(&out, &[]).spawn().expect("starts");
                std::thread::sleep(trial.took.mul_f64(self.random.below(90) as f64 / 100.0));
                if code == 6 {
                    gcs.set_read_only("bucket", true);
                } else {
                    gcs.set_gone("input", true);
                }
                let before = gcs.log().len();
                let unfinished = gcs.get("bucket", &format!("{out}/_SUCCESS")).is_none();
                let output = running.wait_with_output().expect("a child");
                let asked = gcs.log()[before..].iter().any(|request| request.target.starts_with("/input"));
                // a read-only bucket stops a run that is unfinished; a missing one, a run that still requests input
                let refused = if code == 6 { unfinished } else { asked };
                gcs.set_read_only("bucket", false);
                gcs.set_gone("input", false);
                let names =
                    if code == 6 { ["gs://bucket", "AccessDenied"] } else { ["gs://input", "NoSuchBucket"] };
                match output.status.code() {
                    // the run had ended, or had read its whole input, before the change
                    Some(0) if !refused => {}
                    Some(found)
                        if found == code && names.iter().all(|name| stderr(&output).contains(name)) =>
                    {
                        stopped += 1;
                    }
                    other => failures.push(format!("{other:?} {}", stderr(&output))),
                }
                let seen = trial.rows(&out);
                if seen.iter().any(|(key, row)| trial.expected.get(key) != Some(row)) {
                    failures.push("a wrong or unexpected row".to_owned());
                }
                assert_code(&trial.command(&out, &[]).output().expect("starts"), 0);
                failures.extend(trial.fault_in(&out));
            }
            let figure = format!(
                "{rounds} runs, {stopped} stopped with an error that names bucket and reason, all identical once resumed"
            );
            if stopped == 0 {
                failures.push("no run was stopped".to_owned());
            }
            failures.iter().for_each(|failure| println!("FAILED {what}: {failure}"));
            let held = failures.is_empty();
            self.row(what, if held { figure } else { format!("{} failures", failures.len()) }, held);
        }
    }

    /// A disk with room for half of the output.
    fn disk_full(&mut self) {
        let what = "output disk full";
        let trial = Trial::new(Place::Disk, &mut self.random);
        let mount = trial.bench.path("small");
        fs::create_dir(&mount).expect("a folder");
        let small = |size: &str| {
            let mut command = Command::new("mount");
            let options = format!("{size},mode=0777");
            command.args(["-t", "tmpfs", "-o", &options, "none"]).arg(&mount);
            command.status().is_ok_and(|status| status.success())
        };
        // half of the size of the published parts
        let parts = parts(&trial.bench.path("uninterrupted/predictions"));
        let bytes: u64 = parts.iter().map(|part| part.metadata().expect("a part").len()).sum();
        if !small(&format!("size={}", bytes / 2)) {
            self.row(what, "needs root to mount a small tmpfs", false);
            return;
        }
        let run = || trial.command("small/out", &[]).output().expect("starts");
        let full = run();
        let log = stderr(&full);
        let clear =
            full.status.code() == Some(6) && (log.contains("No space left") || log.contains("os error 28"));
        let whole = trial.rows("small/out").iter().all(|(key, row)| trial.expected.get(key) == Some(row));
        let success = mount.join("out/_SUCCESS").exists();
        let grown = remounted(&mount);
        let resumed = run();
        let fault = trial.fault_in("small/out");
        let _ = Command::new("umount").arg(&mount).status();
        let held = clear && whole && !success && grown && resumed.status.success() && fault.is_none();
        if !held {
            println!(
                "FAILED {what}: {:?} {log} resumed {:?} {} {fault:?}",
                full.status,
                resumed.status,
                stderr(&resumed)
            );
        }
        self.row(
            what,
            "exit code 6 with the reason; parts complete; identical once resumed with more room",
            held,
        );
    }
}

fn remounted(mount: &Path) -> bool {
    let status = Command::new("mount").args(["-o", "remount,size=256m"]).arg(mount).status();
    status.is_ok_and(|status| status.success())
}
