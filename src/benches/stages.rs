//! Measures decoding and inference separately.
//!
//! `cargo bench --bench stages -- --pipeline FILE --images DIR` prints one JSON object of images/s. `scripts/bench.sh`
//! compares the figures with those of the whole job and of the peers; it measures a few figures at a time, in short
//! rounds, so that compared figures are measured side by side.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use rayon::prelude::*;
use sluice::config::{Overrides, PipelineFile, PreprocessSection};
use sluice::decode::{Decoder, Scratch};
use sluice::engine::{Engine, OnnxRuntime};
use sluice::items::{BatchBuffer, PixelElement, Pixels};
use sluice::plan::Plan;

/// The same allocator as the binary's, because the two are compared.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    pipeline: PathBuf,
    /// Folder of encoded images.
    #[arg(long)]
    images: PathBuf,
    /// Figures to measure; all if left out.
    #[arg(long, value_enum)]
    figures: Vec<Figure>,
    /// Number of rounds, of which each figure is the median.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Minimum length of a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Figure {
    /// Decode, resize and normalise on one thread.
    DecodeOneThread,
    /// The same with `scaled_decode`.
    DecodeOneThreadScaled,
    /// Decode, resize and normalise on all cores.
    DecodeAllThreads,
    /// The model alone, on full batches.
    Inference,
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
    let clock = Clock { rounds: args.rounds, round: Duration::from_secs_f64(args.seconds) };
    let wanted = if args.figures.is_empty() { Figure::value_variants() } else { &args.figures };
    let mut rates = serde_json::Map::new();
    for &figure in wanted {
        let rate = match figure {
            Figure::DecodeOneThread => decode_rate(&full, &images, 1, clock)?,
            Figure::DecodeOneThreadScaled => decode_rate(&scaled, &images, 1, clock)?,
            Figure::DecodeAllThreads => decode_rate(&full, &images, threads, clock)?,
            Figure::Inference => inference_rate(&plan, &images, clock)?,
        };
        let name = figure.to_possible_value().expect("no figure is hidden").get_name().to_owned();
        rates.insert(name, rate.into());
    }
    println!("{}", serde_json::Value::Object(rates));
    Ok(())
}

/// Most images to read: enough for variety, and about a second of work.
const MAX_IMAGES: usize = 128;

fn read_images(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    paths.truncate(MAX_IMAGES);
    let images: Vec<_> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    anyhow::ensure!(!images.is_empty(), "{} contains no file", folder.display());
    Ok(images)
}

/// Median images/s of decode, resize and normalise on `threads` threads.
fn decode_rate(
    preprocess: &PreprocessSection,
    images: &[Vec<u8>],
    threads: usize,
    clock: Clock,
) -> anyhow::Result<f64> {
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
    Ok(clock.median_rate(pass))
}

/// Median images/s of the engine on a batch of real images.
fn inference_rate(plan: &Plan, images: &[Vec<u8>], clock: Clock) -> anyhow::Result<f64> {
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
    Ok(clock.median_rate(|| {
        black_box(engine.infer(batch.pixels(), plan.engine.batch_size)).expect("bench batch runs");
        plan.engine.batch_size
    }))
}

/// Number and length of the rounds of a measurement.
#[derive(Debug, Clone, Copy)]
struct Clock {
    rounds: usize,
    round: Duration,
}

impl Clock {
    /// Median images/s of `pass`, which returns the number of images it has processed.
    fn median_rate(self, mut pass: impl FnMut() -> usize) -> f64 {
        pass();
        let mut rates: Vec<f64> = (0..self.rounds.max(1))
            .map(|_| {
                let (start, mut done) = (Instant::now(), 0);
                while start.elapsed() < self.round {
                    done += pass();
                }
                done as f64 / start.elapsed().as_secs_f64()
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}
