//! An input of ten million objects.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::Torture;
use crate::gcs::Gcs;
use crate::support::*;

impl Torture {
    /// Measure the time until the first part, and the memory of the listing.
    pub fn listing(&mut self) {
        const NAMES: u64 = 10_000_000;
        let (bench, gcs) = (Bench::new(), Gcs::start());
        gcs.synthesise("names", NAMES, png(1));
        let command = |out: &str, args: &[&str]| {
            let output = bench.path(out).display().to_string();
            let mut command = bench.command("run", &output, &[&["--input", "gs://names"], args].concat());
            command.env("STORAGE_EMULATOR_HOST", gcs.url()).stdout(Stdio::null()).stderr(Stdio::piped());
            command
        };
        let start = Instant::now();
        let mut running = command("first", &["--set", "input.files_per_shard=32"]).spawn().expect("starts");
        let part = bench.path("first/predictions");
        while parts(&part).is_empty() && start.elapsed() < Duration::from_secs(60) {
            assert!(running.try_wait().expect("a child").is_none(), "the run ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        let first = start.elapsed();
        running.kill().expect("the child is there");
        running.wait().expect("a child");
        let figure = format!("first part after {:.2} s, including loading the model", first.as_secs_f64());
        self.row("10 million names, start of scoring", figure, first < Duration::from_secs(5));

        // a worker that lists all names and scores few of them
        let args = ["--shard-index", "0", "--num-shards", "2500"];
        let mut running = command("listed", &args).spawn().expect("starts");
        let (start, mut samples) = (Instant::now(), Vec::new());
        while running.try_wait().expect("a child").is_none() {
            if let Some(bytes) = resident_bytes(running.id()) {
                samples.push(bytes);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let output = running.wait_with_output().expect("a child");
        let mib = |bytes: u64| bytes >> 20;
        let part = |from: usize, to: usize| {
            let some = &samples[samples.len() * from / 100..samples.len() * to / 100];
            some.iter().copied().max().unwrap_or_default()
        };
        let (early, late) = (part(10, 30), part(80, 100));
        let figure = format!(
            "listed in {:.0} s; resident at most {} MiB between 10% and 30% of that time, {} MiB after 80%",
            start.elapsed().as_secs_f64(),
            mib(early),
            mib(late)
        );
        let held = output.status.success() && late < early + (24 << 20);
        if !output.status.success() {
            println!("FAILED {}", stderr(&output));
        }
        self.row("10 million names, memory", figure, held);
    }
}

/// Resident memory of a process, in bytes.
fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
