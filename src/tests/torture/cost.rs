//! Measures the cost of commits, checksums and checkpoints, with a real model on all cores.
//!
//! - Rates are those of whole runs without loading the model: from the first shard to `_SUCCESS`.
//! - Runs over few shards and over many shards of the same images alternate; the median of the ratios counts.
//! - The engine keeps every core busy, so the CPU time of a thread is lost to the run. Its wall time would include
//!   the time in which it waits for a core.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::Torture;
use crate::support::threads::{self, Thread};
use crate::support::*;

const IMAGES: u32 = 2000;
const ROUNDS: usize = 3;

/// Time between two samples of a run's threads. What a thread does after its last sample is not counted.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

/// The cost of a run.
struct Cost {
    images_per_second: f64,
    /// Share of the sink and the store in the CPU time of all threads, including encoding rows, hashing and reading
    /// the input, plus the share of finishing (the manifest and `_SUCCESS`) in the time of the run.
    storing: f64,
}

impl Torture {
    /// Compare few shards with many, and measure the share of the sink and the store.
    pub fn cost(&mut self) {
        let bench = Bench::new();
        let photo = fs::read(Path::new(REPOSITORY).join("fixtures/codecs/baseline.jpg")).expect("a photo");
        let images: Vec<_> = (0..IMAGES).map(|n| (format!("{n:05}"), photo.clone())).collect();
        for (folder, each) in [("few", IMAGES as usize), ("many", 20)] {
            fs::create_dir(bench.path(folder)).expect("a folder");
            for (number, shard) in images.chunks(each).enumerate() {
                write_tfrecord(&bench.path(&format!("{folder}/{number:04}.tfrecord")), shard);
            }
        }
        let (mut ratios, mut storing) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let few = scored(&bench, "few", round);
            let many = scored(&bench, "many", round);
            ratios.push(many.images_per_second / few.images_per_second);
            storing.push(many.storing);
            println!(
                "round {round}: {:.1} and {:.1} images/s, storing {:.4} and {:.4}",
                few.images_per_second, many.images_per_second, few.storing, many.storing
            );
        }
        let (ratio, share) = (median(&mut ratios), median(&mut storing));
        let figure = format!("{ratio:.3} of the images/s of one shard of {IMAGES}; rounds {ratios:.3?}");
        self.row(format!("{} shards of 20 images, open-nsfw", IMAGES / 20), figure, ratio >= 0.9);
        let figure = format!("{:.2}% of the run, a checkpoint every second", share * 100.0);
        self.row(
            "CPU time of the sink and the store: commits, checksums, checkpoints, encoding",
            figure,
            share < 0.02,
        );
    }
}

/// Score the bench's folder `input` with open-nsfw.
fn scored(bench: &Bench, input: &str, round: usize) -> Cost {
    let out = bench.path(&format!("{input}-{round}"));
    let mut run = sluice();
    run.args([
        "run",
        "pipelines/safety.toml",
        "--log-format",
        "json",
        "--set",
        "output.checkpoint_seconds=1",
    ]);
    run.arg("--input").arg(bench.path(input)).arg("--output").arg(&out).current_dir(REPOSITORY);
    let mut running = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut seen = BTreeMap::new();
    while running.try_wait().expect("a child").is_none() {
        seen.extend(threads::of(&running));
        std::thread::sleep(SAMPLE_EVERY);
    }
    let done = running.wait_with_output().expect("a child");
    assert_code(&done, 0);
    let manifest = bench.manifest(out.to_str().expect("UTF-8"));
    let seconds = manifest["summary"]["seconds"].as_f64().expect("a number");
    let finish = finish_time(&stderr(&done)).as_secs_f64();
    let whole = seconds + finish;
    let busy = |names: &[&str]| -> f64 {
        let named = |thread: &&Thread| names.is_empty() || names.contains(&thread.name.as_str());
        seen.values().filter(named).map(|thread| thread.busy.as_secs_f64()).sum()
    };
    assert!(
        busy(&["sink"]) > 0.0 && busy(&["storage"]) > 0.0,
        "no CPU time of the sink or the store: {seen:?}"
    );
    Cost {
        images_per_second: f64::from(IMAGES) / whole,
        storing: busy(&["sink", "storage"]) / busy(&[]) + finish / whole,
    }
}

/// The time from the last row to `_SUCCESS`, from the log.
fn finish_time(log: &str) -> Duration {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut found =
        lines.filter_map(|line| line.pointer("/finish_ms").or(line.pointer("/fields/finish_ms")).cloned());
    let finish_ms = found.next_back().expect("a finished run logs how long finishing took");
    Duration::from_millis(
        finish_ms.as_u64().or_else(|| finish_ms.as_str()?.parse().ok()).expect("milliseconds"),
    )
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
