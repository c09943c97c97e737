//! Reads the image of a row from its shard.
//!
//! Input: an output and the key of one of its rows. Output: the image's bytes as stored.
//!
//! - The shard must be the one that was scored. The name of its part contains a hash of names, sizes and versions. If
//!   the store reports no versions, only the length of the image can be compared.
//! - A shard of loose images is found by listing the run's input again.

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::commit::{
    MANIFEST, Notes, Output, OutputListing, OutputState, RUN, RunRecord, observe, part_name, part_reports,
    shard_index,
};
use crate::config::{InputFormat, InputSection};
use crate::error::{Error, ReadError, SinkError, SourceError};
use crate::items::{ManifestEntry, ObjectRef, ShardContent, ShardFormat, ShardRef, Status};
use crate::report::PartReport;
use crate::source::{ReadOptions, list_shards, open_shard};
use crate::store::{ColumnWindows, Object, Stores};

/// Longest image, bytes. It is above the run's own limit, because a `too_large` row has an image, too.
const MAX_IMAGE_BYTES: u64 = 1 << 31;

/// An image as stored in its shard.
#[derive(Debug)]
pub struct Extracted {
    /// The encoded image.
    pub bytes: Bytes,
    /// Its `image_id` in the output.
    pub image_id: String,
    /// Whether the shard is known to be the one that was scored. Otherwise only its name and the length of the image
    /// are known to be the same.
    pub is_same_version: bool,
}

/// What a row says about its record.
struct Row {
    image_id: String,
    image_bytes: u64,
}

/// The image of the row with the key `key` (`shard#record_index`) in the output at `out`.
///
/// # Errors
/// [`SourceError`] if there is no such row, if its shard cannot be read or has changed, or if the record has no image.
pub fn extract(stores: &Stores, out: &str, key: &str) -> Result<Extracted, Error> {
    let output = Output::open(stores, out).map_err(SinkError::of_reading)?;
    let listing = OutputListing::read(&output).map_err(SinkError::of_reading)?;
    if !listing.has_record {
        let message = "there is no output of a run".to_owned();
        return Err(SourceError::NoInput { uri: out.to_owned(), message }.into());
    }
    let refuse =
        |message: &str| Error::from(SourceError::Uri { uri: key.to_owned(), message: message.to_owned() });
    let (shard, index) = key
        .rsplit_once('#')
        .and_then(|(shard, index)| Some((shard, index.parse::<u64>().ok()?)))
        .ok_or_else(|| refuse("is not a key: expected SHARD#RECORD_INDEX, as in the column key"))?;
    let record: RunRecord = json(&output, RUN)?;
    if record.removing.is_some() {
        let message = "its run is being removed, or its removal was interrupted".to_owned();
        return Err(SourceError::Uri { uri: out.to_owned(), message }.into());
    }
    let notes = Notes::read(&output, &listing, &record.run_id, None)?;
    let parts = part_reports(&output, listing.predictions.values(), &notes, &record.run_id)?;
    let part = parts.into_iter().find(|part| part.shard == shard);
    let part = part.ok_or_else(|| refuse("no part of the output has rows of that shard"))?;
    let row = read_row(stores, &output, &part, index)?.ok_or_else(|| refuse("the output has no such row"))?;
    let (input, inputs) = input_of(&output, &record)?;
    let found = find_shard(stores, &part, &input, &inputs, &row)?;
    let options = ReadOptions { max_image_bytes: MAX_IMAGE_BYTES, ..ReadOptions::from(&input) };
    let bytes = read_record(stores, &found.shard, found.index.unwrap_or(index), &options)
        .map_err(|error| source_error(key, error))?;
    if row.image_bytes > 0 && row.image_bytes != bytes.len() as u64 {
        return Err(refuse(&format!(
            "has changed since it was scored: its image had {} bytes, now {}",
            row.image_bytes,
            bytes.len()
        )));
    }
    Ok(Extracted { bytes, image_id: row.image_id, is_same_version: found.is_same_version })
}

fn json<T: serde::de::DeserializeOwned>(output: &Output, name: &str) -> Result<T, Error> {
    serde_json::from_slice(&output.read(name)?).map_err(|error| {
        let message = format!("cannot be read: {error}");
        SourceError::Uri { uri: output.uri_of(name), message }.into()
    })
}

/// The row of the record at `index`: rows are in the order of records.
fn read_row(stores: &Stores, output: &Output, part: &PartReport, index: u64) -> Result<Option<Row>, Error> {
    let uri = output.uri_of(&part.path);
    let damaged = |message: String| SourceError::Uri { uri: uri.clone(), message };
    let object = ObjectRef { uri: uri.clone(), size_bytes: Some(part.bytes), version: None };
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(Object::open(stores, &object)?))
            .map_err(|error| damaged(error.to_string()))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["image_id", "image_bytes"]);
    let offset = usize::try_from(index).unwrap_or(usize::MAX);
    let rows = builder.with_projection(mask).with_offset(offset).with_limit(1).build();
    let mut rows = rows.map_err(|error| damaged(error.to_string()))?;
    let Some(rows) = rows.next().transpose().map_err(|error| damaged(error.to_string()))? else {
        return Ok(None);
    };
    let ids = rows.column_by_name("image_id").and_then(|ids| ids.as_string_opt::<i32>());
    let lengths = rows.column_by_name("image_bytes").and_then(|bytes| bytes.as_primitive_opt::<Int64Type>());
    let (Some(ids), Some(lengths)) = (ids, lengths) else {
        return Err(damaged("is not a part of an output".to_owned()).into());
    };
    let row = |at| Row { image_id: ids.value(at).to_owned(), image_bytes: lengths.value(at).max(0) as u64 };
    Ok((rows.num_rows() > 0 && ids.is_valid(0)).then(|| row(0)))
}

/// The run's input section and URIs, as far as the output has them: a manifest has both, the record of an unfinished
/// run only the keys that determine rows.
fn input_of(output: &Output, record: &RunRecord) -> Result<(InputSection, Vec<String>), Error> {
    use OutputState::{Failed, Sealed, Succeeded};
    if matches!(observe(output)?, Failed(..) | Sealed(..) | Succeeded(..)) {
        let manifest: Value = json(output, MANIFEST)?;
        let plan = &manifest["plan"];
        let input = serde_json::from_value(plan["input"].clone());
        let inputs = serde_json::from_value(plan["inputs"].clone());
        if let (Ok(input), Ok(inputs)) = (input, inputs) {
            return Ok((input, inputs));
        }
    }
    let mut input = InputSection::default();
    let text = |key: &str| record.determinants[key].as_str().map(str::to_owned);
    (input.image_key, input.id_key) = (text("image_key"), text("id_key"));
    if let Ok(format) = serde_json::from_value::<InputFormat>(record.determinants["format"].clone()) {
        input.format = format;
    }
    if let Some(bytes) = record.determinants["max_page_bytes"].as_u64() {
        input.max_page_bytes = bytes;
    }
    Ok((input, Vec::new()))
}

/// A shard to read.
struct Found {
    shard: ShardRef,
    /// Position of the record in it, if not the row's.
    index: Option<u64>,
    is_same_version: bool,
}

/// The shard of `part`, as its store has it now.
fn find_shard(
    stores: &Stores,
    part: &PartReport,
    input: &InputSection,
    inputs: &[String],
    row: &Row,
) -> Result<Found, Error> {
    let changed = |message: &str| {
        Error::from(SourceError::Uri { uri: part.shard.clone(), message: message.to_owned() })
    };
    let place = shard_index(&part.path).unwrap_or_default();
    let format = part.format.unwrap_or(ShardFormat::Files);
    let shard = |content| ShardRef::new(place, &part.shard, format, content);
    if format != ShardFormat::Files {
        let object = stores.head(&stores.resolve(&part.shard)?).map_err(SourceError::from)?;
        let is_same_version = object.version.is_some();
        let shard = shard(ShardContent::Container(object));
        if part_name(&shard) != part.path {
            return Err(changed("has changed since it was scored, or is another file"));
        }
        return Ok(Found { shard, index: None, is_same_version });
    }
    // standard input can be read only once
    if inputs.is_empty() || inputs.iter().any(|input| input == "-") {
        let object = ObjectRef { uri: row.image_id.clone(), size_bytes: None, version: None };
        let entries = vec![ManifestEntry::new(object, row.image_id.clone())];
        return Ok(Found {
            shard: shard(ShardContent::Objects(entries)),
            index: Some(0),
            is_same_version: false,
        });
    }
    for listed in list_shards(stores, inputs, input)?.quiet() {
        let listed = listed?;
        if listed.index == place {
            if part_name(&listed) != part.path {
                return Err(changed(
                    "has changed since it was scored: the listing has other images in its place",
                ));
            }
            let is_same_version = match &listed.content {
                ShardContent::Objects(entries) => entries.iter().all(|entry| entry.object.version.is_some()),
                ShardContent::Container(_) => true,
            };
            return Ok(Found { shard: listed, index: None, is_same_version });
        }
    }
    Err(changed("is no longer in the input"))
}

/// The image of the record `index` of `shard`.
fn read_record(
    stores: &Stores,
    shard: &ShardRef,
    index: u64,
    options: &ReadOptions,
) -> Result<Bytes, ReadError> {
    let opened = open_shard(stores, shard, index, options)?;
    let mut records = opened.records.skip(usize::try_from(index - opened.first_record).unwrap_or(usize::MAX));
    match records.next().transpose()? {
        None => Err(ReadError::Corrupt("it has fewer records than the output has rows".to_owned())),
        Some(record) => record.content.map_err(|rejected| {
            let what = match rejected.status {
                Status::MissingImage | Status::Empty => "it has no image",
                _ => "its image cannot be read",
            };
            ReadError::Corrupt(format!("{what}: {}", rejected.error))
        }),
    }
}

fn source_error(key: &str, error: ReadError) -> Error {
    match error {
        ReadError::Storage(error) => SourceError::Storage(error).into(),
        error => SourceError::Uri { uri: key.to_owned(), message: error.to_string() }.into(),
    }
}
