//! Peak memory of a run, held against the bound that sluice prints for it.
//!
//! - The bound is what `sluice check` prints as `memory_bound_bytes`: the sum of its fields. It is memory beside the
//!   model, so what a run over a few small images takes is allowed on top of it.
//! - Linux keeps the peak of each process as `VmHWM`. It only grows, so a sample of it misses nothing but what a
//!   process takes between the last sample and its end.

use std::fs::{self, File};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{Bench, assert_code, images, stderr, stdout, write_tar};

/// Between two samples. A process that takes a gigabyte a second takes a megabyte meanwhile.
const SAMPLE_EVERY: Duration = Duration::from_millis(1);

/// Run `command` to its end; what it wrote, and its peak of resident memory in bytes.
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
    let [stdout, stderr] = [out, err].map(|path| fs::read(path).expect("what it wrote"));
    assert!(peak_bytes > 0, "no sample of the process was taken");
    (Output { status, stdout, stderr }, peak_bytes)
}

/// None once the process has ended.
fn peak_so_far(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

/// What `sluice check` prints as the bound of a run with these arguments, bytes.
pub fn bound_of(bench: &Bench, args: &[&str]) -> u64 {
    let checked = bench.command("check", "unused", args).output().expect("the binary starts");
    assert_code(&checked, 0);
    let plan: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let bound = plan["memory_bound_bytes"].as_object().expect("an object").values();
    bound.map(|bytes| bytes.as_u64().expect("a number of bytes")).sum()
}

/// Peak of a run over a few small images with the same model, bytes.
fn peak_without_load() -> u64 {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 8));
    let (output, peak_bytes) = peak_of(&mut bench.command("run", "out", &[]));
    assert_code(&output, 0);
    peak_bytes
}

/// `sluice run` over what lies in `in`. Its peak stays below the printed bound, beside what any run takes.
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
