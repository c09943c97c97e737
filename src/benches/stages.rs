//! What each half of the work costs alone: decoding, and running the model.
//!
//! `cargo bench --bench stages -- --pipeline FILE --images DIR` prints one JSON object of
//! images/s. `scripts/bench.sh` compares them with the whole job and with the peers.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use rayon::prelude::*;
use sluice::config::{Overrides, PipelineFile, PreprocessSection};
use sluice::decode::{Decoder, Scratch};
use sluice::engine::{Engine, OnnxRuntime};
use sluice::items::{PixelElement, Pixels};
use sluice::plan::Plan;

/// Each figure is the median of this many rounds, each at least this long.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    pipeline: PathBuf,
    /// Folder of encoded images.
    #[arg(long)]
    images: PathBuf,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let overrides =
        Overrides { inputs: vec!["unused".into()], output: Some("unused".into()), ..Overrides::default() };
    let plan = Plan::check(PipelineFile::load(&args.pipeline, &overrides)?)?;
    let images = read_images(&args.images)?;
    let threads = std::thread::available_parallelism()?.get();

    let full = PreprocessSection { scaled_decode: false, ..plan.preprocess.clone() };
    let scaled = PreprocessSection { scaled_decode: true, ..plan.preprocess.clone() };
    let figures = serde_json::json!({
        "threads": threads,
        "images": images.len(),
        "decode_1_thread": decode_rate(&full, &images, 1)?,
        "decode_1_thread_scaled": decode_rate(&scaled, &images, 1)?,
        "decode_all_threads": decode_rate(&full, &images, threads)?,
        "inference": inference_rate(&plan, &images)?,
    });
    println!("{figures}");
    Ok(())
}

fn read_images(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let images: Vec<_> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    anyhow::ensure!(!images.is_empty(), "{} holds no file", folder.display());
    Ok(images)
}

/// Median images/s of decode, resize and normalise on `threads` threads.
fn decode_rate(preprocess: &PreprocessSection, images: &[Vec<u8>], threads: usize) -> anyhow::Result<f64> {
    let decoder = Decoder::new(preprocess, u64::MAX, PixelElement::F32);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let pass = || {
        pool.install(|| {
            images.par_iter().for_each_init(Scratch::default, |scratch, bytes| {
                black_box(decoder.decode(bytes, scratch)).expect("bench images decode");
            });
        });
        images.len()
    };
    Ok(median_rate(pass))
}

/// Median images/s of the engine on one batch of real pixels.
fn inference_rate(plan: &Plan, images: &[Vec<u8>]) -> anyhow::Result<f64> {
    let mut engine = OnnxRuntime::load(plan)?;
    let decoder = Decoder::new(&plan.preprocess, u64::MAX, PixelElement::F32);
    let mut batch = Vec::new();
    for bytes in images.iter().cycle().take(plan.engine.batch_size) {
        match decoder.decode(bytes, &mut Scratch::default()) {
            Ok((_, Pixels::F32(pixels))) => batch.extend(pixels),
            other => anyhow::bail!("unexpected decode: {other:?}"),
        }
    }
    let batch = Pixels::F32(batch);
    Ok(median_rate(|| {
        black_box(engine.infer(&batch, plan.engine.batch_size)).expect("bench batch runs");
        plan.engine.batch_size
    }))
}

fn median_rate(mut pass: impl FnMut() -> usize) -> f64 {
    pass();
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < ROUND {
                done += pass();
            }
            done as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[ROUNDS / 2]
}
