//! The Parquet files of an output, read back.

use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sluice::config::{InputFormat, InputSection};
use sluice::error::{Error, SourceError};
use sluice::items::{ObjectRef, ShardContent};
use sluice::source::{ColumnWindows, Stores, list_shards};

/// The Parquet files of one folder, in order; it `may_be_empty` where a run had nothing to write.
pub fn parts(stores: &Stores, folder: &str, may_be_empty: bool) -> Result<Vec<ObjectRef>, Error> {
    let input = InputSection { format: InputFormat::Parquet, ..InputSection::default() };
    let files = format!("{folder}/*.parquet");
    let shards = list_shards(stores, std::slice::from_ref(&files), &input)
        .and_then(|shards| shards.collect::<Result<Vec<_>, _>>());
    let shards = match shards {
        Err(SourceError::NoInput { .. }) if may_be_empty => Vec::new(),
        Err(SourceError::Storage(error)) if may_be_empty && error.is_not_found() => Vec::new(),
        shards => shards?,
    };
    let object = |content| match content {
        ShardContent::Container(object) => Some(object),
        ShardContent::Objects(_) => None,
    };
    Ok(shards.into_iter().filter_map(|shard| object(shard.content)).collect())
}

/// Hand the named columns of one part to `take`, some rows at a time.
pub fn read(
    stores: &Stores,
    part: &ObjectRef,
    columns: &[&str],
    mut take: impl FnMut(&RecordBatch),
) -> Result<(), Error> {
    let object = stores.open(part)?;
    let damaged = |message: String| SourceError::Uri { uri: part.uri.clone(), message };
    let builder = ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(object))
        .map_err(|error| damaged(error.to_string()))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    for rows in builder.with_projection(mask).build().map_err(|error| damaged(error.to_string()))? {
        let rows = rows.map_err(|error| damaged(error.to_string()))?;
        if let Some(column) = columns.iter().find(|column| rows.column_by_name(column).is_none()) {
            return Err(damaged(format!("has no column {column}, so it is no part of an output")).into());
        }
        take(&rows);
    }
    Ok(())
}
