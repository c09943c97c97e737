//! sluice: batch image scoring, from shards in a bucket or on a disk to Parquet.
//!
//! Data walks one way, and the files are named after the way:
//!
//! 1. [`source`] lists shards and reads their records ahead: TFRecord, tar, Parquet, loose images.
//! 2. [`decode`] turns encoded bytes into tensor rows on a rayon pool.
//! 3. [`batch`] groups rows into batches of exactly `batch_size`, across shards.
//! 4. [`engine`] runs the model on each batch.
//! 5. [`sink`] writes one Parquet part per shard, and one row per batch; [`commit`] publishes them.
//!
//! [`items`] holds what travels, [`flow`] the bounded channels it travels through, and
//! [`pipeline`] alone knows all stages. A pipeline file becomes a [`config::PipelineFile`] as
//! written, a [`plan::Plan`] as checked, and a [`job::Job`] that is ready to run:
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
#![deny(unsafe_code)]

pub mod batch;
pub mod bench;
pub mod commit;
pub mod config;
pub mod crash;
pub mod decode;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod extract;
pub mod flow;
pub mod items;
pub mod job;
pub mod limits;
pub mod pipeline;
pub mod plan;
mod regular_file;
pub mod report;
pub mod shown;
pub mod sink;
pub mod skipped;
pub mod sniff;
pub mod source;
pub mod store;
