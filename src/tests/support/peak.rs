//! Compares the peak memory of a run with the bound that sluice prints for it.
//!
//! - The bound is the sum of the fields of `memory_bound_bytes`, which `sluice check` prints. It excludes the model,
//!   so the memory of a run over a few small images is added to it.
//! - Linux records the peak of each process as `VmHWM`, which only grows. Samples of it miss only what a process
//!   allocates between the last sample and its end.

use std::fs::{self, File};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{Bench, assert_code, images, stderr, stdout, write_tar};

/// Time between two samples. A process that allocates a gigabyte per second allocates a megabyte in that time.
const SAMPLE_EVERY: Duration = Duration::from_millis(1);

/// Run `command` to its end. Returns its output, and its peak resident memory in bytes.
pub fn peak_of(command: &mut Command) -> (Output, u64) {
    let folder = tempfile::tempdir().expect("temp folder");
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let file = |path| Stdio::from(File::create(path).expect("a file"));
    let mut child = command.stdout(file(&out)).stderr(file(&err)).spawn().expect("the binary starts");
    let mut peak_bytes = 0;
    let status = loop {
        peak_bytes = peak_so_far(&child).unwrap_or(peak_bytes);
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        std::thread::park_timeout(SAMPLE_EVERY);
    };
    let [stdout, stderr] = [out, err].map(|path| fs::read(path).expect("its output"));
    assert!(peak_bytes > 0, "no sample of the process was taken");
    (Output { status, stdout, stderr }, peak_bytes)
}

/// Peak resident memory so far, in bytes; `None` once the process has ended.
fn peak_so_far(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

/// The bound that `sluice check` prints for a run with these arguments, in bytes.
pub fn bound_of(bench: &Bench, args: &[&str]) -> u64 {
    let checked = bench.command("check", "unused", args).output().expect("the binary starts");
    assert_code(&checked, 0);
    let plan: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let bound = plan["memory_bound_bytes"].as_object().expect("an object").values();
    bound.map(|bytes| bytes.as_u64().expect("a number of bytes")).sum()
}

/// Peak memory of a run over a few small images with the same model, in bytes.
fn peak_without_load() -> u64 {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 8));
    let (output, peak_bytes) = peak_of(&mut bench.command("run", "out", &[]));
    assert_code(&output, 0);
    peak_bytes
}

/// Run `sluice run` over the folder `in`, and assert that its peak memory stays within the printed bound plus the peak
/// of a run over a few small images.
pub fn run_within_bound(bench: &Bench, out: &str, args: &[&str]) -> Output {
    let bound_bytes = bound_of(bench, args);
    let (output, peak_bytes) = peak_of(&mut bench.command("run", out, args));
    let allowed_bytes = peak_without_load() + bound_bytes;
    println!("{out}: {} of {} MiB", peak_bytes >> 20, allowed_bytes >> 20);
    assert!(
        peak_bytes <= allowed_bytes,
        "{out}: {} MiB resident, bound is {} MiB\n{}{}",
        peak_bytes >> 20,
        allowed_bytes >> 20,
        stdout(&output),
        stderr(&output)
    );
    output
}
