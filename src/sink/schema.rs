//! The schemas of the two tables, and how their files are encoded.
//!
//! - A schema is the same in every part of every run of one schema version.
//! - Only types that BigQuery, Spark, DuckDB and pandas all read: no unsigned integers, no
//!   float16, no dictionary or view arrays, UTC timestamps in microseconds, lists of three levels.

use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// Rows of a row group, and its encoded bytes: enough for readers to skip by statistics and to read in parallel, few
/// enough that a writer's buffer stays small compared with the pixel queues.
const ROW_GROUP_ROWS: usize = 131_072;
pub const ROW_GROUP_BYTES: usize = 16 << 20;

/// `predictions/part-*.parquet`: one row per input record.
pub static PREDICTIONS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |name: &str, item: DataType| Field::new_list(name, Field::new("element", item, false), true);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("shard", DataType::Utf8, false),
        Field::new("record_index", DataType::Int64, false),
        Field::new("image_id", DataType::Utf8, false),
        Field::new("member", DataType::Utf8, true),
        Field::new("status", DataType::Utf8, false),
        Field::new("error", DataType::Utf8, true),
        Field::new("top1_index", DataType::Int32, true),
        Field::new("top1_label", DataType::Utf8, true),
        Field::new("top1_score", DataType::Float32, true),
        list("scores", DataType::Float32),
        list("scores_index", DataType::Int32),
        Field::new("width", DataType::Int32, true),
        Field::new("height", DataType::Int32, true),
        Field::new("format", DataType::Utf8, true),
        Field::new("image_bytes", DataType::Int64, false),
        Field::new("batch_id", DataType::Int64, true),
        Field::new("model_sha256", DataType::Utf8, false),
        Field::new("run_id", DataType::Utf8, false),
    ]))
});

/// `batches/part-*.parquet`: one row per batch.
pub static BATCHES: LazyLock<SchemaRef> = LazyLock::new(|| {
    let utc_microseconds = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("run_id", DataType::Utf8, false),
        Field::new("worker", DataType::Utf8, false),
        Field::new("batch_id", DataType::Int64, false),
        Field::new("rows", DataType::Int32, false),
        Field::new("batch_size", DataType::Int32, false),
        Field::new("queue_ms", DataType::Float64, false),
        Field::new("h2d_ms", DataType::Float64, false),
        Field::new("compute_ms", DataType::Float64, false),
        Field::new("d2h_ms", DataType::Float64, false),
        Field::new("latency_ms", DataType::Float64, false),
        Field::new("started_at", utc_microseconds, false),
        Field::new("warmup", DataType::Boolean, false),
    ]))
});

/// Encoding of both kinds of file, with `footer` as key-value metadata.
pub fn writer_properties(footer: &[(&str, &str)]) -> WriterProperties {
    let footer = footer.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        // values seldom repeat: a dictionary would be built and discarded
        .set_column_dictionary_enabled(ColumnPath::from("key"), false)
        .set_column_dictionary_enabled(ColumnPath::from("scores.list.element"), false)
        .set_created_by(concat!("sluice version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(footer.collect()))
        .build()
}
