//! Reads the Parquet files of an output.
//!
//! - A file that is not a part of an output is an error that says why.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::KeyValue;
use sluice::config::{InputFormat, InputSection};
use sluice::error::{Error, SourceError, parquet_words};
use sluice::items::{ObjectRef, ShardContent};
use sluice::skipped::Skipped;
use sluice::source::list_shards;
use sluice::store::{ColumnWindows, Object, Stores};

/// The Parquet files of one folder, in order. `may_be_empty` says whether a folder without files is not an error.
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

/// Selected columns of one part, in batches of rows. Ends after the first error.
pub struct Batches {
    uri: String,
    reader: Option<ParquetRecordBatchReader>,
    footer: Vec<KeyValue>,
}

/// Open `part` and select `columns`, which must have the types of `schema`.
pub fn open(stores: &Stores, part: &ObjectRef, schema: &Schema, columns: &[&str]) -> Result<Batches, Error> {
    let object = Object::open(stores, part)?;
    let opened = caught(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(ColumnWindows::new(object))
            .map_err(|error| parquet_words(&error))?;
        for &column in columns {
            check_column(builder.schema(), schema, column)?;
        }
        let footer = builder.metadata().file_metadata().key_value_metadata().cloned();
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        let reader = builder.with_projection(mask).build().map_err(|error| parquet_words(&error))?;
        Ok((reader, footer.unwrap_or_default()))
    });
    let (reader, footer) = opened.map_err(|message| damaged(&part.uri, message))?;
    Ok(Batches { uri: part.uri.clone(), reader: Some(reader), footer })
}

impl Batches {
    /// The footer's value for `key`.
    pub fn footer(&self, key: &str) -> Option<&str> {
        self.footer.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.as_deref())
    }

    /// What the part's shard contains besides records.
    pub fn skipped(&self) -> Result<Skipped, Error> {
        let counts = self.footer("sluice.skipped").map_or(Ok(Skipped::default()), serde_json::from_str);
        counts.map_err(|_| damaged(&self.uri, "its footer does not count what was skipped".to_owned()))
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = self.reader.take()?;
        match caught(|| {
            Ok(reader.next().transpose().map_err(|error| parquet_words(&error))?.map(|rows| (rows, reader)))
        }) {
            Ok(None) => None,
            Ok(Some((rows, reader))) => {
                self.reader = Some(reader);
                Some(Ok(rows))
            }
            Err(message) => Some(Err(damaged(&self.uri, message))),
        }
    }
}

/// Call `read`, with panics as errors: the Parquet library panics on some files.
fn caught<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // what a panic leaves half done is dropped
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it cannot be read as Parquet".to_owned()))
}

fn damaged(uri: &str, message: String) -> Error {
    SourceError::Uri { uri: uri.to_owned(), message: format!("is not a part of an output: {message}") }.into()
}

fn check_column(found: &Schema, expected: &Schema, name: &str) -> Result<(), String> {
    let expected = expected.field_with_name(name).map_err(|error| parquet_words(&error))?;
    let found = found.field_with_name(name).map_err(|_| format!("it has no column {name}"))?;
    let is_same = match (found.data_type(), expected.data_type()) {
        (DataType::List(found), DataType::List(expected)) => found.data_type() == expected.data_type(),
        (found, expected) => found == expected,
    };
    let types =
        || format!("its column {name} is of type {}, not {}", found.data_type(), expected.data_type());
    if is_same { Ok(()) } else { Err(types()) }
}
