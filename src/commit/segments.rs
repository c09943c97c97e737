//! Reading segments back.
//!
//! - A segment is checked before its shard is resumed after it: it must have one row for each record that its name
//!   covers, in order. A damaged segment is removed, and its records are scored again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{RecordBatch, StringArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::body::Body;
use super::checkpoints::{Checkpoints, Segment};
use super::footer::BODY;
use super::names::shard_index;
use super::output::Output;
use crate::error::SinkError;
use crate::items::Status;
use crate::report::Tally;

/// Bytes of rows that are decoded from a segment at once.
pub(crate) const READ_BYTES: usize = 8 << 20;

/// Pass the rows of `file`, which has the content of `segment`, to `take`, and count them by status.
///
/// # Errors
/// Damage of the file, turned into an error by `damaged`, and the errors of `take`.
pub(crate) fn read_segment<E>(
    file: Bytes,
    segment: &Segment,
    damaged: impl Fn(String) -> E,
    mut take: impl FnMut(&RecordBatch) -> Result<(), E>,
) -> Result<Tally, E> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone());
    let builder = builder.map_err(|error| damaged(error.to_string()))?;
    let pairs = builder.metadata().file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    let body = pairs.iter().find(|pair| pair.key == BODY).and_then(|pair| pair.value.as_deref());
    if !body.is_some_and(|body| Body::is_of(body, &file)) {
        return Err(damaged("its rows do not match the checksum in its footer".to_owned()));
    }
    // limited by bytes: a row may have the scores of a hundred thousand classes
    let groups = builder.metadata().row_groups().iter();
    let most =
        groups.map(|group| group.total_byte_size().max(0) / group.num_rows().max(1)).max().unwrap_or(0);
    let at_once = (READ_BYTES as i64 / most.max(1)).clamp(1, 1024) as usize;
    let rows = builder.with_batch_size(at_once).build().map_err(|error| damaged(error.to_string()))?;
    let mut count = RowCount::from(segment.from);
    for rows in rows {
        let rows = rows.map_err(|error| damaged(error.to_string()))?;
        count.add(&rows).map_err(&damaged)?;
        take(&rows)?;
    }
    if count.next != segment.to {
        return Err(damaged(format!("it ends at record {}, its name says {}", count.next, segment.to)));
    }
    Ok(count.tally)
}

/// Counts the rows of a part or a segment by status. There must be one for each record, in order.
pub(super) struct RowCount {
    /// The record whose row comes next.
    pub next: u64,
    pub tally: Tally,
}

impl RowCount {
    /// Count from the record `next` on.
    pub fn from(next: u64) -> Self {
        Self { next, tally: Tally::default() }
    }

    /// Count `rows`.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<(), String> {
        let indices =
            rows.column_by_name("record_index").and_then(|indices| indices.as_primitive_opt::<Int64Type>());
        let indices = indices.ok_or("it has no column record_index of numbers")?;
        for (status, &index) in text(rows, "status")?.iter().zip(indices.values()) {
            if u64::try_from(index) != Ok(self.next) {
                return Err(format!("it has record {index} in the place of record {}", self.next));
            }
            let known =
                status.and_then(|status| Status::ALL.into_iter().find(|known| known.as_str() == status));
            let known =
                known.ok_or_else(|| format!("it has a row of status {}", status.unwrap_or("null")))?;
            self.tally.count(known);
            self.next += 1;
        }
        Ok(())
    }
}

/// The column `name`, which has text.
pub(super) fn text<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| format!("it has no column {name} of strings"))
}

/// Remove the damaged segments of the shards that a worker `takes`, and return `checkpoints` without them.
///
/// # Errors
/// Those of the store.
pub(crate) fn sound_checkpoints(
    output: &Output,
    mut checkpoints: Checkpoints,
    takes: impl Fn(u64) -> bool,
) -> Result<Checkpoints, SinkError> {
    let parts: Vec<_> = checkpoints.parts().cloned().collect();
    for part in parts.iter().filter(|part| shard_index(part).is_some_and(&takes)) {
        for segment in checkpoints.chain(part) {
            let Some(file) = output.read_if_any(&segment.name)? else {
                // another attempt has finished the shard
                checkpoints.forget(part, &segment);
                break;
            };
            let read = || read_segment(file, &segment, |what| what, |_| Ok(()));
            // the Parquet library meets some damaged files with a panic
            let read = catch_unwind(AssertUnwindSafe(read));
            let read = read.unwrap_or_else(|_| Err("the Parquet library cannot read it".to_owned()));
            if let Err(what) = read {
                let checkpoint = &segment.name;
                tracing::warn!(checkpoint, what, "a checkpoint is damaged: its records are scored again");
                output.remove(std::slice::from_ref(&segment.name))?;
                checkpoints.forget(part, &segment);
                break;
            }
        }
    }
    Ok(checkpoints)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::Int64Array;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::KeyValue;

    use super::*;

    const PART: &str = "predictions/part-000003-0123456789ab.parquet";

    fn file(records: std::ops::Range<i64>) -> Vec<u8> {
        let statuses = StringArray::from_iter_values(records.clone().map(|_| "ok"));
        let indices = Int64Array::from_iter_values(records);
        let columns = [("record_index", Arc::new(indices) as _), ("status", Arc::new(statuses) as _)];
        let rows = RecordBatch::try_from_iter(columns).expect("columns");
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), None).expect("a writer");
        writer.write(&rows).expect("rows");
        writer.flush().expect("a row group");
        writer.sync().expect("to memory");
        let body = Body::of(writer.inner()).to_string();
        writer.append_key_value_metadata(KeyValue::new(BODY.to_owned(), body));
        writer.close().expect("a footer");
        file
    }

    #[test]
    fn a_shard_is_not_resumed_behind_a_damaged_segment() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let sound = file(10..20);
        let cut = sound[..sound.len() / 2].to_vec();
        let changed = |at: usize| {
            let mut changed = sound.clone();
            changed[at] ^= 1;
            changed
        };
        for (second, records) in [
            (sound.clone(), 30),
            (cut, 10),
            (changed(sound.len() - 1), 10),
            (changed(30), 10),
            (changed(60), 10),
            (file(10..19), 10),
            (file(11..21), 10),
            (b"PAR1".to_vec(), 10),
            (Vec::new(), 10),
        ] {
            let root = Path::from("out");
            let store = Arc::new(InMemory::new());
            let output = Output::new(store, root, "out".to_owned(), None, runtime.handle().clone());
            let mut names = Vec::new();
            for (from, to, bytes) in [(0, 10, file(0..10)), (10, 20, second), (20, 30, file(20..30))] {
                let name = Segment::new(PART, from, to, 0, "run").name;
                assert!(output.create(&name, bytes).expect("stored"));
                names.push(name);
            }
            let checkpoints = || Checkpoints::of(&names, "run");
            let left = sound_checkpoints(&output, checkpoints(), |index| index == 3).expect("readable");
            assert_eq!(left.records(PART), records);
            let is_there = output.read_if_any(&names[1]).expect("readable").is_some();
            assert_eq!(is_there, records == 30, "a damaged segment is removed");
            // segments of other workers' shards are not read
            let left = sound_checkpoints(&output, checkpoints(), |index| index == 4).expect("readable");
            assert_eq!(left.records(PART), 30);
        }
    }
}
