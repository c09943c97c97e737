//! Parquet: one column of encoded images.
//!
//! Comes in: a file that can be read by ranges. Goes out: one record for each row.
//!
//! - The image is a binary column, or Hugging Face's struct with a binary child `bytes` and a
//!   string child `path`. Only the leaf columns needed are read.
//! - Rows are decoded [`BATCH_ROWS`] at a time, row group after row group. The Parquet format
//!   makes a page the smallest unit that can be unpacked, so a shard holds one page of images at
//!   a time, of at most `max_page_bytes`, and a dictionary page beside it.
//! - A dictionary may repeat a large value without end: what comes of a file is held to [`MAX_RATIO`], as
//!   with compressed files. Its footer is held to [`MAX_FOOTER_BYTES`], and read through before the library
//!   makes room for what it announces.
//! - Types follow the Parquet schema alone; the Arrow schema that some writers embed would only
//!   bring more names for the same bytes.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use ::parquet::basic::Compression;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use ::parquet::file::reader::ChunkReader;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;

use crate::error::ReadError;
use crate::items::{RawRecord, Rejected, Status};

use super::compression::{FREE_BYTES, MAX_RATIO};
use super::format::{ReadOptions, image_content, too_large};
use super::parquet_pages::{CheckedPages, skip_struct};

/// Rows decoded at once. They are copied out of their page, so a batch costs as much memory again
/// as its images, which may be one of a whole page each time. A call of the library for each image takes
/// microseconds, and decoding it milliseconds.
const BATCH_ROWS: usize = 1;

/// Longest footer, bytes: that of some 100,000 column chunks, which a file of images does not have.
const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// The image column where no `image_key` is given and there are several.
const DEFAULT_IMAGE_COLUMN: &str = "image";

/// Children of Hugging Face's image struct.
const STRUCT_BYTES: &str = "bytes";
const STRUCT_PATH: &str = "path";

/// The rows of one file.
pub(super) struct ParquetRecords {
    batches: ParquetRecordBatchReader,
    columns: Columns,
    batch: Option<Batch>,
    chunks: Vec<Range<u64>>,
    max_image_bytes: u64,
    next_index: u64,
    file_bytes: u64,
    /// Of images, so far.
    unpacked_bytes: u64,
}

/// Which columns to read, by name.
struct Columns {
    image: String,
    /// Whether the image is a struct, and whether that has a path.
    nested: Option<Nested>,
    id: Option<String>,
}

struct Nested {
    has_path: bool,
}

/// Some rows, their columns found and ids turned into text.
struct Batch {
    /// Binary; null where there is no image.
    images: ArrayRef,
    /// Validity of the struct around the images.
    outer: Option<ArrayRef>,
    /// Strings.
    ids: Option<ArrayRef>,
    rows: usize,
    next_row: usize,
}

impl ParquetRecords {
    /// Read the footer of `reader` and find the columns.
    pub fn open<R: ChunkReader + 'static>(reader: R, options: &ReadOptions) -> Result<Self, ReadError> {
        guarded(|| {
            let file_bytes = reader.len();
            check_footer(&reader).map_err(|error| corrupt("footer", &error))?;
            let reader = CheckedPages::new(reader, options.max_page_bytes);
            let skip_arrow = ArrowReaderOptions::new()
                .with_skip_arrow_metadata(true)
                .with_page_index_policy(PageIndexPolicy::Skip);
            let metadata =
                ArrowReaderMetadata::load(&reader, skip_arrow).map_err(|error| corrupt("footer", &error))?;
            let columns = Columns::find(metadata.schema(), options).map_err(ReadError::Corrupt)?;
            let leaves = columns.leaves(metadata.metadata());
            let chunks = column_chunks(metadata.metadata(), &leaves);
            reader.check_inside(chunks.clone()).map_err(|error| corrupt("footer", &error))?;
            let chunks = chunks.into_iter().map(|(chunk, _)| chunk).collect();
            let mask = ProjectionMask::leaves(metadata.parquet_schema(), leaves);
            let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata)
                .with_projection(mask)
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|error| corrupt("footer", &error))?;
            let max_image_bytes = options.max_image_bytes;
            let (next_index, unpacked_bytes) = (0, 0);
            Ok(Self {
                batches,
                columns,
                batch: None,
                chunks,
                max_image_bytes,
                next_index,
                file_bytes,
                unpacked_bytes,
            })
        })
    }

    /// Where the columns that will be read lie in the file.
    pub fn column_chunks(&self) -> Vec<Range<u64>> {
        self.chunks.clone()
    }

    /// The next row; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        loop {
            if let Some(batch) = &mut self.batch
                && batch.next_row < batch.rows
            {
                let row = batch.next_row;
                batch.next_row += 1;
                let index = self.next_index;
                self.next_index += 1;
                return Ok(Some(batch.record(row, index, self.max_image_bytes)));
            }
            let (batches, columns) = (&mut self.batches, &self.columns);
            let place = format!("row {}", self.next_index);
            self.batch = guarded(|| match batches.next() {
                Some(Ok(batch)) => columns.batch(&batch).map(Some),
                Some(Err(error)) => Err(corrupt(&place, &error)),
                None => Ok(None),
            })?;
            let Some(batch) = &self.batch else { return Ok(None) };
            self.unpacked_bytes += batch.images.as_binary::<i32>().value_data().len() as u64;
            if self.unpacked_bytes > FREE_BYTES && self.unpacked_bytes / MAX_RATIO > self.file_bytes {
                return Err(ReadError::Corrupt(format!(
                    "row {}: {} bytes unpack to {} and more, limit is {MAX_RATIO} times as much",
                    self.next_index, self.file_bytes, self.unpacked_bytes
                )));
            }
        }
    }
}

impl Columns {
    fn find(schema: &Schema, options: &ReadOptions) -> Result<Self, String> {
        let names = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        let image = match &options.image_key {
            Some(key) => {
                let field = schema.field_with_name(key);
                let field = field.map_err(|_| format!("no column {key}; the file has: {}", names()))?;
                if !is_image(field.data_type()) {
                    return Err(format!(
                        "column {key} is {}, expected binary or a struct with binary {STRUCT_BYTES}",
                        field.data_type()
                    ));
                }
                field
            }
            None => {
                let candidates: Vec<_> =
                    schema.fields().iter().filter(|field| is_image(field.data_type())).collect();
                let named = candidates.iter().copied().find(|field| field.name() == DEFAULT_IMAGE_COLUMN);
                match (named, &candidates[..]) {
                    (Some(field), _) => field,
                    (None, &[field]) => field,
                    (None, []) => return Err(format!("no column of images; the file has: {}", names())),
                    (None, _) => {
                        let names: Vec<_> = candidates.iter().map(|field| field.name().as_str()).collect();
                        let names = names.join(", ");
                        return Err(format!("several columns may hold the images ({names}); set image_key"));
                    }
                }
            }
        };
        if let Some(key) = &options.id_key {
            let field = schema.field_with_name(key);
            let field = field.map_err(|_| format!("no column {key}; the file has: {}", names()))?;
            if !is_id(field.data_type()) {
                let kind = field.data_type();
                return Err(format!("column {key} is {kind}, expected a string or an integer"));
            }
        }
        let nested = match image.data_type() {
            DataType::Struct(children) => {
                let path = children.iter().find(|child| child.name() == STRUCT_PATH);
                Some(Nested { has_path: path.is_some_and(|path| path.data_type() == &DataType::Utf8) })
            }
            _ => None,
        };
        Ok(Self { image: image.name().clone(), nested, id: options.id_key.clone() })
    }

    /// Leaf columns of the file, by number.
    fn leaves(&self, metadata: &ParquetMetaData) -> Vec<usize> {
        let mut wanted: Vec<Vec<&str>> = Vec::new();
        match &self.nested {
            Some(nested) => {
                wanted.push(vec![&self.image, STRUCT_BYTES]);
                if nested.has_path && self.id.is_none() {
                    wanted.push(vec![&self.image, STRUCT_PATH]);
                }
            }
            None => wanted.push(vec![&self.image]),
        }
        wanted.extend(self.id.as_deref().map(|id| vec![id]));
        let columns = metadata.file_metadata().schema_descr().columns();
        let is_wanted = |parts: &[String]| wanted.iter().any(|path| path.iter().eq(parts.iter()));
        (0..columns.len()).filter(|&leaf| is_wanted(columns[leaf].path().parts())).collect()
    }

    fn batch(&self, batch: &RecordBatch) -> Result<Batch, ReadError> {
        let column = |name: &str| {
            let found = batch.column_by_name(name).cloned();
            found.ok_or_else(|| ReadError::Corrupt(format!("column {name} is not where the footer says")))
        };
        let image = column(&self.image)?;
        let mut path = None;
        let (images, outer) = match image.as_struct_opt() {
            Some(parts) => {
                path = parts.column_by_name(STRUCT_PATH).cloned();
                let bytes = parts.column_by_name(STRUCT_BYTES).cloned();
                let missing = || ReadError::Corrupt(format!("{}.{STRUCT_BYTES} is missing", self.image));
                (bytes.ok_or_else(missing)?, Some(image))
            }
            None => (image, None),
        };
        let ids = match &self.id {
            Some(name) => Some(column(name)?),
            None => path,
        };
        let ids = ids.map(|ids| arrow::compute::cast(&ids, &DataType::Utf8)).transpose();
        let ids = ids.map_err(|error| corrupt("id column", &error))?;
        if images.as_binary_opt::<i32>().is_none() {
            return Err(ReadError::Corrupt(format!("column {} is not binary", self.image)));
        }
        Ok(Batch { images, outer, ids, rows: batch.num_rows(), next_row: 0 })
    }
}

impl Batch {
    fn record(&self, row: usize, index: u64, max_image_bytes: u64) -> RawRecord {
        let id = self.ids.as_ref().filter(|ids| ids.is_valid(row));
        let id = id.map(|ids| ids.as_string::<i32>().value(row)).filter(|id| !id.is_empty());
        let image_id = id.map_or_else(|| index.to_string(), str::to_owned);
        let outer_is_null = self.outer.as_ref().is_some_and(|outer| outer.is_null(row));
        let content = if outer_is_null || self.images.is_null(row) {
            Err(Rejected::new(Status::MissingImage, "the image is null"))
        } else {
            let value = self.images.as_binary::<i32>().value(row);
            if value.len() as u64 > max_image_bytes {
                Err(too_large(value.len() as u64, max_image_bytes))
            } else {
                // a slice would keep all images of the batch alive for as long as this one
                image_content(Bytes::copy_from_slice(value), max_image_bytes)
            }
        };
        RawRecord { image_id, content }
    }
}

fn is_image(kind: &DataType) -> bool {
    match kind {
        DataType::Binary => true,
        DataType::Struct(children) => children
            .iter()
            .any(|child| child.name() == STRUCT_BYTES && child.data_type() == &DataType::Binary),
        _ => false,
    }
}

fn is_id(kind: &DataType) -> bool {
    kind.is_integer() || matches!(kind, DataType::Utf8)
}

/// Where the pages of these columns lie, and how they are packed.
fn column_chunks(metadata: &ParquetMetaData, leaves: &[usize]) -> Vec<(Range<u64>, Compression)> {
    let mut chunks = Vec::new();
    for group in metadata.row_groups() {
        for &leaf in leaves {
            if let Some(column) = group.columns().get(leaf) {
                let (start, length) = column.byte_range();
                chunks.push((start..start.saturating_add(length), column.compression()));
            }
        }
    }
    chunks
}

/// That the footer is no longer than it may be, and that what it announces is there: the library makes room
/// for lists by their announced length.
fn check_footer<R: ChunkReader>(reader: &R) -> Result<(), ParquetError> {
    const TAIL_BYTES: u64 = 8;
    // what is too short or no Parquet the library reports itself
    let Some(tail) = reader.len().checked_sub(TAIL_BYTES) else { return Ok(()) };
    let bytes = reader.get_bytes(tail, TAIL_BYTES as usize)?;
    let Some((length, b"PAR1")) = bytes.split_first_chunk::<4>() else { return Ok(()) };
    let length = u64::from(u32::from_le_bytes(*length));
    if length > MAX_FOOTER_BYTES {
        return Err(ParquetError::General(format!("it is {length} bytes, limit is {MAX_FOOTER_BYTES}")));
    }
    let Some(start) = tail.checked_sub(length) else { return Ok(()) };
    let footer = reader.get_bytes(start, length as usize)?;
    skip_struct(&footer).map_err(|error| ParquetError::External(Box::new(error)))
}

fn corrupt(place: &str, error: &dyn std::error::Error) -> ReadError {
    ReadError::Corrupt(format!("{place}: {error}"))
}

/// Run a step of the `parquet` crate, which still meets some damaged files with a panic. After an
/// error nothing of the file is used again, so no broken invariant is seen.
fn guarded<T>(step: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
        Err(ReadError::Corrupt(
            "the file is damaged in a way that the Parquet library cannot report".to_owned(),
        ))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ::parquet::arrow::ArrowWriter;
    use ::parquet::basic::Encoding;
    use ::parquet::file::properties::{WriterProperties, WriterVersion};
    use arrow::array::{BinaryArray, Int64Array, LargeBinaryArray, StringArray, StructArray};
    use arrow::buffer::NullBuffer;
    use arrow::datatypes::Field;
    use proptest::prelude::*;
    use std::sync::Arc;

    pub(crate) fn file(columns: Vec<(&str, ArrayRef)>) -> Bytes {
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )
        .expect("batch");
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(5))
            .set_compression(Compression::SNAPPY)
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
        writer.write(&batch).expect("write");
        writer.into_inner().expect("close").into()
    }

    fn options() -> ReadOptions {
        ReadOptions { image_key: None, id_key: None, max_image_bytes: 1000, max_page_bytes: 1 << 20 }
    }

    fn keys(image: Option<&str>, id: Option<&str>) -> ReadOptions {
        ReadOptions { image_key: image.map(str::to_owned), id_key: id.map(str::to_owned), ..options() }
    }

    fn read(file: Bytes, options: &ReadOptions) -> Result<Vec<RawRecord>, ReadError> {
        let mut reader = ParquetRecords::open(file, options)?;
        let mut found = Vec::new();
        while let Some(record) = reader.next_record()? {
            found.push(record);
        }
        Ok(found)
    }

    fn images(count: usize) -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values((0..count).map(|n| format!("image {n}"))))
    }

    fn hugging_face() -> ArrayRef {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![Some(b"one"), None, Some(b"three")]));
        let path: ArrayRef = Arc::new(StringArray::from(vec![Some("a.jpg"), Some("b.jpg"), None]));
        let fields = vec![
            Arc::new(Field::new("bytes", DataType::Binary, true)),
            Arc::new(Field::new("path", DataType::Utf8, true)),
        ];
        let nulls = NullBuffer::from(vec![true, true, true]);
        Arc::new(StructArray::new(fields.into(), vec![bytes, path], Some(nulls)))
    }

    #[test]
    fn rows_come_in_order_across_batches_and_row_groups() {
        let found = read(file(vec![("image", images(23))]), &options()).expect("whole");
        let expected: Vec<_> = (0..23)
            .map(|n| RawRecord { image_id: n.to_string(), content: Ok(format!("image {n}").into()) })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn hugging_face_structs_give_bytes_and_path() {
        let label: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let found = read(file(vec![("label", label), ("image", hugging_face())]), &options()).expect("whole");
        let ids: Vec<_> = found.iter().map(|r| r.image_id.as_str()).collect();
        assert_eq!(ids, ["a.jpg", "b.jpg", "2"]);
        assert_eq!(found[0].content, Ok(Bytes::from_static(b"one")));
        assert_eq!(found[1].content.as_ref().expect_err("null").status, Status::MissingImage);
    }

    #[test]
    fn ids_come_from_string_and_integer_columns() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        let number: ArrayRef = Arc::new(Int64Array::from(vec![7, -8]));
        let shard = file(vec![("t", text), ("n", number), ("image", images(2))]);
        for (key, expected) in [("t", ["x", "1"]), ("n", ["7", "-8"])] {
            let found = read(shard.clone(), &keys(None, Some(key))).expect("whole");
            let ids: Vec<_> = found.iter().map(|r| r.image_id.as_str()).collect();
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn the_only_binary_column_is_found_under_any_name_and_arrow_type() {
        let large: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(["x"]));
        let found = read(file(vec![("jpeg", large)]), &options()).expect("whole");
        assert_eq!(found[0].content, Ok(Bytes::from_static(b"x")));
    }

    #[test]
    fn columns_that_are_missing_or_wrong_are_named_with_what_there_is() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let one = file(vec![("a", text.clone()), ("b", images(1))]);
        let two = file(vec![("a", images(1)), ("b", images(1))]);
        let none = file(vec![("a", text)]);
        let cases = [
            (&one, keys(Some("picture"), None), "no column picture; the file has: a, b"),
            (&one, keys(Some("a"), None), "column a is Utf8, expected binary or a struct with binary bytes"),
            (&one, keys(None, Some("key")), "no column key; the file has: a, b"),
            (&one, keys(None, Some("b")), "column b is Binary, expected a string or an integer"),
            (&two, options(), "several columns may hold the images (a, b); set image_key"),
            (&none, options(), "no column of images; the file has: a"),
        ];
        for (shard, options, expected) in cases {
            let error = read(shard.clone(), &options).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn null_empty_and_too_large_images_are_rejected_and_the_next_one_read() {
        let long = vec![1; 1001];
        let column: ArrayRef =
            Arc::new(BinaryArray::from_opt_vec(vec![None, Some(b""), Some(&long), Some(b"ok")]));
        let found = read(file(vec![("image", column)]), &options()).expect("whole");
        let found: Vec<_> = found.into_iter().map(|r| r.content.err().map(|e| e.status)).collect();
        let expected = [Some(Status::MissingImage), Some(Status::Empty), Some(Status::TooLarge), None];
        assert_eq!(found, expected);
    }

    #[test]
    fn damage_in_a_page_keeps_the_rows_before() {
        let shard = file(vec![("image", images(23))]);
        let needle = b"image 15";
        let at = shard.windows(needle.len()).position(|window| window == needle).expect("stored plainly");
        // the compressed length that starts the page no longer fits its content
        let mut damaged = shard.to_vec();
        damaged[at - 20..at].fill(0xff);
        let mut reader = ParquetRecords::open(Bytes::from(damaged), &options()).expect("footer");
        let mut whole = 0;
        while let Ok(Some(_)) = reader.next_record() {
            whole += 1;
        }
        assert!((8..=15).contains(&whole), "{whole}");
    }

    /// A file of one column, written with `properties`.
    fn written(column: ArrayRef, properties: WriterProperties) -> Bytes {
        let batch = RecordBatch::try_from_iter([("image", column)]).expect("batch");
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
        writer.write(&batch).expect("write");
        writer.into_inner().expect("close").into()
    }

    #[test]
    fn pages_whose_memory_cannot_be_limited_are_refused() {
        for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let properties = WriterProperties::builder()
                    .set_dictionary_enabled(false)
                    .set_writer_version(version)
                    .set_encoding(encoding);
                let error = read(written(images(3), properties.build()), &options()).expect_err("refused");
                assert!(error.to_string().contains(&format!("encoded as {encoding}")), "{error}");
            }
        }
    }

    #[test]
    fn a_value_that_is_repeated_without_end_ends_the_shard() {
        let value = vec![7_u8; 1 << 20];
        let column = BinaryArray::from_iter_values((0..1500).map(|_| &value));
        let properties = WriterProperties::builder().set_dictionary_page_size_limit(4 << 20);
        let shard = written(Arc::new(column), properties.build());
        assert!(shard.len() < 3 << 20, "{}", shard.len());
        let options = ReadOptions { max_page_bytes: 1 << 30, ..options() };
        let mut reader = ParquetRecords::open(shard, &options).expect("footer");
        let mut rows = 0;
        let error = loop {
            match reader.next_record() {
                Ok(Some(_)) => rows += 1,
                Ok(None) => panic!("all {rows} rows were read"),
                Err(error) => break error,
            }
        };
        assert!(rows >= 1000 && error.to_string().contains("limit is 200 times"), "{rows}: {error}");
    }

    #[test]
    fn a_footer_that_announces_more_than_it_has_is_refused_before_room_is_made() {
        let ends = |footer: &[u8], length: u32| {
            Bytes::from([b"PAR1", footer, &length.to_le_bytes(), b"PAR1"].concat())
        };
        // field 1, a list of 2^31 - 1 truth values
        let list = [0x19, 0xf2, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
        let error = check_footer(&ends(&list, 8)).expect_err("a list without its elements");
        assert!(error.to_string().contains("unexpected end of file"), "{error}");
        let mut long = vec![0; (MAX_FOOTER_BYTES + 1) as usize];
        long.extend(((MAX_FOOTER_BYTES + 1) as u32).to_le_bytes());
        long.extend(b"PAR1");
        let error = check_footer(&Bytes::from(long)).expect_err("too long");
        assert!(error.to_string().contains("limit is 67108864"), "{error}");
        check_footer(&file(vec![("image", images(2))])).expect("well formed");
    }

    #[test]
    fn what_is_no_parquet_file_is_corrupt() {
        for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", &[b'x'; 500]] {
            assert!(matches!(read(Bytes::from_static(bytes), &options()), Err(ReadError::Corrupt(_))));
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let length = bytes.len() as u32;
            let footer = [&b"PAR1"[..], &bytes, &length.to_le_bytes(), b"PAR1"].concat();
            prop_assert!(read(Bytes::from(bytes), &options()).is_err());
            let _ = read(Bytes::from(footer), &options());
        }

        #[test]
        fn changed_bytes_never_panic(at in 0_usize..100_000, flip in 1_u8.., cut in any::<bool>()) {
            let mut shard = file(vec![("image", images(12)), ("hf", images(12))]).to_vec();
            let at = at % shard.len();
            shard[at] ^= flip;
            if cut {
                shard.remove(at);
            }
            let _ = read(Bytes::from(shard), &options());
        }
    }
}
