//! Scores shards from several threads with one scorer, as a worker of a distributed runner does.
//!
//!     cargo run --example score -- pipelines/photos.toml [--input URI]... [--output URI] [--threads N]
//!
//! Lists the input, scores each shard from one of the threads (2 by default), prints a line for each part, and
//! leaves the run unfinished: `sluice run` with the same pipeline finishes it, and scores what is missing.

use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use clap::Parser;
use sluice::config::{Overrides, PipelineFile};
use sluice::error::Error;
use sluice::items::CallOptions;
use sluice::plan::Plan;
use sluice::scorer::Scorer;
use sluice::source::list_shards;
use sluice::store::Stores;

#[derive(Parser)]
struct Args {
    pipeline: std::path::PathBuf,
    #[arg(long)]
    input: Vec<String>,
    #[arg(long)]
    output: Option<String>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    match score(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}; retry={}", error.retry().as_str());
            ExitCode::FAILURE
        }
    }
}

fn score(args: &Args) -> Result<(), Error> {
    let overrides = Overrides { inputs: args.input.clone(), output: args.output.clone(), set: Vec::new() };
    let plan = Plan::check(PipelineFile::load(&args.pipeline, &overrides)?)?;

    // The stores run on a tokio runtime. Calls that block are made from plain threads, never from its tasks.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stores = Stores::with(runtime.handle().clone(), plan.storage.clone());
    let shards = list_shards(&stores, &plan.inputs, &plan.input)?;

    // Loads the model, warms the engine up, and begins the run, or joins it.
    let scorer = Scorer::new(plan, runtime.handle())?;

    // Each thread takes the next shard when it has scored the one before. Batches fill across the shards of all
    // threads.
    let shards = Mutex::new(shards);
    let next = || shards.lock().expect("no thread panicked").next().transpose();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(shard) = next()? {
                        let part = scorer.score(&shard, CallOptions::default())?;
                        println!("{}: {} rows in {}", shard.name, part.rows.unwrap_or_default(), part.path);
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panicked"))
    })?;

    // Stores the latencies of the batches, and notes what this attempt stored.
    let report = scorer.close()?;
    println!("{} rows, {} batches", report.tally.rows(), report.latency_ms.len());
    Ok(())
}
