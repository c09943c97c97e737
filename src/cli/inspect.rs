//! `sluice inspect SHARD`: what a shard contains, and what is wrong with it.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use sluice::config::{InputSection, PreprocessSection};
use sluice::decode::{Decoder, Scratch};
use sluice::error::{Error, ReadError, SourceError};
use sluice::items::{PixelElement, RawRecord, Rejected, ShardRef};
use sluice::skipped::Skipped;
use sluice::source::{ReadOptions, list_shards, open_shard};
use sluice::store::Stores;

use super::exit;
use super::print::{print, print_json};
use super::storage::storage_runtime;
use super::summary::skipped;

/// Arguments of `sluice inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Shard, folder or glob.
    shard: String,
    /// TFRecord feature or Parquet column with the encoded image.
    #[arg(long, value_name = "NAME")]
    image_key: Option<String>,
    /// TFRecord feature or Parquet column with the image's id.
    #[arg(long, value_name = "NAME")]
    id_key: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Read and decode every record of the shards; exits with 5 if a record is bad or a shard is damaged.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let input = InputSection {
        image_key: args.image_key.clone(),
        id_key: args.id_key.clone(),
        ..InputSection::default()
    };
    let runtime = storage_runtime()?;
    let stores = Stores::new(runtime.handle().clone());
    let (mut all_good, mut objects) = (true, Vec::new());
    for shard in list_shards(&stores, std::slice::from_ref(&args.shard), &input).map_err(Error::from)? {
        let shard = shard.map_err(Error::from)?;
        let findings = inspect(&stores, &shard, &input).map_err(Error::from)?;
        if args.json {
            objects.push(findings.object(&shard));
        } else {
            print(&findings.lines(&shard).join("\n"))?;
        }
        all_good &= findings.first_bad.is_none() && findings.damage.is_none();
    }
    if args.json {
        print_json(&json!({ "all_good": all_good, "shards": objects }))?;
    }
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::from(exit::TOO_MANY_ERRORS) })
}

#[derive(Debug, Default)]
struct Findings {
    records: u64,
    bad: u64,
    /// Index, id and reason.
    first_bad: Option<(u64, String, Rejected)>,
    damage: Option<String>,
    skipped: Skipped,
    /// Lengths of the encoded images.
    sizes_bytes: Vec<u64>,
}

fn inspect(stores: &Stores, shard: &ShardRef, input: &InputSection) -> Result<Findings, SourceError> {
    let decoder = Decoder::new(&PreprocessSection::smallest(), input.max_image_bytes, PixelElement::U8);
    let mut scratch = Scratch::default();
    let mut findings = Findings::default();
    let (records, skips) = match open_shard(stores, shard, 0, &ReadOptions::from(input)) {
        Ok(opened) => (opened.records, opened.skips),
        Err(ReadError::Corrupt(reason)) => return Ok(Findings { damage: Some(reason), ..findings }),
        Err(ReadError::Config(message)) => return Err(SourceError::Uri { uri: shard.name.clone(), message }),
        Err(ReadError::Storage(error)) => return Err(error.into()),
    };
    for record in records {
        match record {
            Ok(RawRecord { image_id, content, .. }) => {
                findings.sizes_bytes.extend(content.as_ref().ok().map(|bytes| bytes.len() as u64));
                let decoded = content.and_then(|bytes| decoder.decode(&bytes, &mut scratch).map(|_| ()));
                if let Err(rejected) = decoded {
                    findings.bad += 1;
                    findings.first_bad.get_or_insert((findings.records, image_id, rejected));
                }
                findings.records += 1;
            }
            Err(ReadError::Corrupt(reason) | ReadError::Config(reason)) => findings.damage = Some(reason),
            Err(ReadError::Storage(error)) => return Err(error.into()),
        }
    }
    findings.skipped = skips.counts();
    Ok(findings)
}

impl Findings {
    /// Smallest, median and largest length of the encoded images.
    fn sizes_bytes(&self) -> Option<[u64; 3]> {
        let mut sizes = self.sizes_bytes.clone();
        sizes.sort_unstable();
        Some([*sizes.first()?, sizes[sizes.len() / 2], *sizes.last()?])
    }

    /// The findings as JSON.
    fn object(&self, shard: &ShardRef) -> Value {
        let first_bad = self.first_bad.as_ref().map(|(index, id, rejected)| {
            json!({
                "record_index": index,
                "image_id": id,
                "status": rejected.status.as_str(),
                "error": rejected.error,
            })
        });
        let sizes = self.sizes_bytes().map(|[min, med, max]| json!({ "min": min, "med": med, "max": max }));
        json!({
            "shard": shard.name,
            "format": shard.format.to_string(),
            "records": self.records,
            "bad_records": self.bad,
            "first_bad": first_bad,
            "image_bytes": sizes,
            "skipped": self.skipped,
            "damage": self.damage,
        })
    }

    fn lines(&self, shard: &ShardRef) -> Vec<String> {
        let mut lines = vec![
            shard.name.clone(),
            format!("  format   {}", shard.format),
            format!("  records  {}, {} of them bad", self.records, self.bad),
        ];
        if let Some([min, med, max]) = self.sizes_bytes() {
            lines.push(format!("  image    bytes: min {min}, med {med}, max {max}"));
        }
        lines.extend(skipped(&self.skipped).map(|skipped| format!("  skipped  {skipped}")));
        if let Some((index, id, rejected)) = &self.first_bad {
            lines.push(format!(
                "  bad      first is record {index} ({id}): {}: {}",
                rejected.status, rejected.error
            ));
        }
        if let Some(damage) = &self.damage {
            lines.push(format!("  damaged  after record {}: {damage}", self.records));
        }
        lines
    }
}
