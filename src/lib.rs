//! sluice: batch image scoring, from shards in a bucket or on a disk to Parquet.
//!
//! # Glossary
//!
//! One word for each thing, in code, messages and pages:
//!
//! - **shard**: one unit of input: a TFRecord, tar or Parquet file, or a list of loose images. Its place in the input
//!   is fixed when it is listed.
//! - **record**: one image of a shard, or the reason why it cannot be read. It is identified by shard and position.
//! - **row**: what the output says about one record: status, best class, scores.
//! - **batch**: exactly `batch_size` images that an engine scores at once, across shards; the last one is padded.
//! - **lane**: one stream of a GPU engine. Two lanes overlap the copies of one batch with the computation of another.
//! - **part**: one Parquet file of the output. A shard's rows make one part of `predictions/`.
//! - **output**: the folder of one run.
//! - **run**: the scoring of one input with one plan into one output, however many processes and tries it takes.
//! - **worker**: one of N processes that share a run. Each scores every N-th shard.
//! - **attempt**: one process's try at a worker's share. A killed attempt is followed by another, which resumes.
//! - **checkpoint**: the moment at which an attempt stores the rows of its unfinished shards.
//! - **segment**: the rows of one unfinished shard that one checkpoint stored.
//! - **manifest**: the list of all parts of a finished run. `_SUCCESS` holds its hash.
//!
//! # The flow of the data
//!
//! Data flows one way, and the modules are named after its stages:
//!
//! 1. [`source`] lists shards and reads their records ahead: TFRecord, tar, Parquet, loose images.
//! 2. [`decode`] turns encoded bytes into tensor rows on a rayon pool.
//! 3. [`batch`] groups rows into batches of exactly `batch_size`, across shards.
//! 4. [`engine`] runs the model on each batch.
//! 5. [`sink`] turns scores into Parquet parts, and [`commit`] publishes them.
//!
//! [`items`] defines the data in flow order, [`flow`] the bounded channels between stages, and [`store`] the object
//! stores that both ends use. Only [`pipeline`] knows all stages. [`scorer`] is the pipeline of one process, and
//! [`job`] scores a whole input with it.
//!
//! # The first call
//!
//! A pipeline file becomes a [`config::PipelineFile`] as written, a [`plan::Plan`] as checked, and a [`job::Job`] that
//! is ready to run. A program that gets its shards one by one makes one [`scorer::Scorer`] instead, and calls it from
//! as many threads as it likes; `src/examples/score.rs` does that (`cargo run --example score`).
//!
//! - Set `ORT_DISABLE_TELEMETRY=1` before the program starts threads. Without it, no model is loaded.
//! - These calls block. Make none of them inside an async task.
//! - Errors say whether a retry helps: [`error::Error::retry`].
//!
//! ```no_run
//! use sluice::config::{Overrides, PipelineFile};
//! use sluice::job::{Job, JobOptions};
//! use sluice::plan::Plan;
//! use sluice::source::list_shards;
//!
//! # fn main() -> Result<(), sluice::error::Error> {
//! # let runtime = tokio::runtime::Runtime::new().expect("runtime");
//! let file = PipelineFile::load("pipelines/photos.toml".as_ref(), &Overrides::default())?;
//! let job = Job::prepare(Plan::check(file)?, runtime.handle(), JobOptions::default())?;
//! let (stores, plan) = (&job.checked().stores, &job.checked().plan);
//! let shards = list_shards(stores, &plan.inputs, &plan.input)?;
//! let report = job.run(shards)?;
//! println!("{} rows at {:.0} images/s", report.summary.rows, report.summary.images_per_second);
//! # Ok(())
//! # }
//! ```
//!
//! # Pages
//!
//! [`docs`] has pages on formats, the output, operations, GPUs, the commit protocol, measurements and development.

pub mod batch;
#[cfg(feature = "beam")]
pub mod beam;
pub mod bench;
pub mod checked;
pub mod commit;
pub mod config;
pub mod crash;
pub mod decode;
pub mod docs;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod exit_code;
pub mod extract;
pub mod flow;
pub mod items;
pub mod job;
pub mod limits;
pub mod pipeline;
pub mod plan;
pub mod progress;
mod regular_file;
pub mod report;
pub mod scorer;
pub mod shown;
pub mod sink;
pub mod skipped;
pub mod sniff;
pub mod source;
pub mod store;
