use super::*;
use crate::items::ShardFormat;
use crate::source::records::guarded;
use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, Encoding};
use ::parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use arrow_array::{
    ArrayRef, BinaryArray, Int64Array, LargeBinaryArray, RecordBatch, StringArray, StructArray,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};
use proptest::prelude::*;

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
    let mut reader = ParquetRecords::open(file, options, None)?;
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
    let expected: Vec<_> =
        (0..23).map(|n| RawRecord::new(n.to_string(), Ok(format!("image {n}").into()))).collect();
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
fn a_missing_or_wrong_column_is_named_in_the_error() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let one = file(vec![("a", text.clone()), ("b", images(1))]);
    let two = file(vec![("a", images(1)), ("b", images(1))]);
    let none = file(vec![("a", text)]);
    let cases = [
        (
            &one,
            keys(Some("picture"), None),
            "input.image_key is picture, which is no column of the file; it has: a (string), b (binary)",
        ),
        (
            &one,
            keys(Some("a"), None),
            "input.image_key is a, which is text, not the bytes of images; addresses of images can be scored as a manifest",
        ),
        (
            &one,
            keys(None, Some("key")),
            "input.id_key is key, which is no column of the file; it has: a (string), b (binary)",
        ),
        (&one, keys(None, Some("b")), "input.id_key names the column b, which holds the images"),
        (&two, options(), "several columns may hold the images: set input.image_key to one of a, b"),
        (&none, options(), "no column holds images as bytes; the file has: a (string)"),
    ];
    for (shard, options, expected) in cases {
        let error = read(shard.clone(), &options).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn null_empty_and_too_large_images_are_rejected_and_the_next_one_is_read() {
    let long = vec![1; 1001];
    let column: ArrayRef =
        Arc::new(BinaryArray::from_opt_vec(vec![None, Some(b""), Some(&long), Some(b"ok")]));
    let found = read(file(vec![("image", column)]), &options()).expect("whole");
    let found: Vec<_> = found.into_iter().map(|r| r.content.err().map(|e| e.status)).collect();
    let expected = [Some(Status::MissingImage), Some(Status::Empty), Some(Status::TooLarge), None];
    assert_eq!(found, expected);
}

#[test]
fn damage_in_a_page_keeps_the_rows_before_it() {
    let shard = file(vec![("image", images(23))]);
    let needle = b"image 15";
    let at = shard.windows(needle.len()).position(|window| window == needle).expect("stored plainly");
    // overwrite the bytes before the image, which begins its page: the page's header and Snappy's length
    let mut damaged = shard.to_vec();
    damaged[at - 20..at].fill(0xff);
    let mut reader = ParquetRecords::open(Bytes::from(damaged), &options(), None).expect("footer");
    let mut whole = 0;
    while let Ok(Some(_)) = reader.next_record() {
        whole += 1;
    }
    assert!((8..=15).contains(&whole), "{whole}");
}

#[test]
fn a_file_that_is_not_parquet_is_corrupt() {
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", &[b'x'; 500]] {
        assert!(matches!(read(Bytes::from_static(bytes), &options()), Err(ReadError::Corrupt(_))));
    }
}

fn encoded(column: ArrayRef, properties: WriterPropertiesBuilder) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable([("image", column, true)]).expect("batch");
    let properties = properties.set_statistics_enabled(EnabledStatistics::None).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
    writer.write(&batch).expect("write");
    writer.into_inner().expect("close")
}

#[test]
fn delta_encoded_images_are_read_with_every_codec() {
    let images: Vec<_> = (0..300).map(|n| (n % 7 > 0).then(|| format!("image {n}").repeat(n % 50))).collect();
    let expected: Vec<_> = images.iter().map(|i| i.clone().map(Bytes::from)).collect();
    for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        for codec in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::ZSTD(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let properties = WriterProperties::builder()
                    .set_dictionary_enabled(false)
                    .set_encoding(encoding)
                    .set_compression(codec)
                    .set_writer_version(version)
                    .set_data_page_row_count_limit(100)
                    .set_write_batch_size(50);
                let column: ArrayRef = Arc::new(images.iter().map(Option::as_ref).collect::<BinaryArray>());
                let found = read(encoded(column, properties).into(), &options()).expect("whole");
                let found: Vec<_> = found.into_iter().map(|record| record.content).collect();
                for (found, expected) in found.iter().zip(&expected) {
                    match (found, expected) {
                        (Ok(found), Some(expected)) => assert_eq!(found, expected),
                        (Err(reason), Some(expected)) if expected.is_empty() => {
                            assert_eq!(reason.status, Status::Empty);
                        }
                        (reason, _) => {
                            let reason = reason.as_ref().expect_err("null");
                            assert_eq!(reason.status, Status::MissingImage);
                        }
                    }
                }
                assert_eq!(found.len(), expected.len(), "{encoding} {codec} {version:?}");
            }
        }
    }
}

#[test]
fn a_page_cannot_claim_more_delta_encoded_lengths_than_values() {
    const VALUES: usize = 1 << 14;
    for (encoding, lists) in [(Encoding::DELTA_LENGTH_BYTE_ARRAY, 1), (Encoding::DELTA_BYTE_ARRAY, 2)] {
        for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            let properties = WriterProperties::builder()
                .set_dictionary_enabled(false)
                .set_encoding(encoding)
                .set_compression(codec);
            let column: ArrayRef = Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n(b"", VALUES)));
            let mut file = encoded(column, properties);
            assert_eq!(read(file.clone().into(), &options()).expect("whole").len(), VALUES);
            let count = [0x80, 0x80, 0x01, 0x00];
            let at: Vec<_> =
                (0..file.len() - 4).filter(|&at| file[at..at + 4] == count && file[at - 1] == 4).collect();
            for &at in &at[at.len() - at.len().min(lists)..] {
                file[at..at + 3].copy_from_slice(&[0xff, 0xff, 0x7f]);
            }
            let error = read(file.into(), &options()).expect_err("more lengths than values").to_string();
            assert!(error.contains("a page of 16384 values holds 2097151 lengths"), "{codec} {error}");
        }
    }
}

/// A page with too few values ends a row group early, and the library would then pair images with the ids of other
/// rows.
#[test]
fn a_page_with_a_wrong_number_of_values_never_mixes_up_ids() {
    let whole = |rows: usize| {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("image {n}"))));
        let columns = [("id", ids, true), ("image", images(rows), true)];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("batch");
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(5))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
        writer.write(&batch).expect("write");
        writer.into_inner().expect("close")
    };
    let file = whole(10);
    // in a page header: field 5, a struct, whose field 1 is the number of values, zigzag-coded
    let pages: Vec<_> = (0..file.len() - 3).filter(|&at| file[at..at + 3] == [0x2c, 0x15, 5 << 1]).collect();
    assert_eq!(pages.len(), 4, "two columns in two row groups");
    for at in pages {
        for values in [0, 1, 4, 6] {
            let mut file = file.clone();
            file[at + 2] = values << 1;
            let mut reader =
                ParquetRecords::open(Bytes::from(file), &keys(None, Some("id")), None).expect("footer");
            while let Ok(record) = reader.next_record() {
                let record = record.unwrap_or_else(|| panic!("{values} values for 5 rows, at byte {at}"));
                assert_eq!(record.content, Ok(Bytes::from(record.image_id)), "its own id");
            }
        }
    }
}

/// pyarrow wrote the fixture, with `write_page_checksum`.
#[test]
fn the_checksum_of_a_page_is_verified() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/parquet/page_checksum.parquet");
    let mut file = std::fs::read(fixture).expect("the fixture");
    let found = read(file.clone().into(), &options()).expect("whole");
    assert_eq!(found[1].content, Ok(Bytes::from_static(b"the second image")));
    let at = file.windows(6).position(|bytes| bytes == b"second").expect("an image");
    file[at] ^= 1;
    let error = read(file.into(), &options()).expect_err("damaged").to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn copies_of_dictionary_values_are_limited_by_the_size_of_the_file() {
    let column: ArrayRef = Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n([7; 900], 10_000)));
    let file = Bytes::from(encoded(column, WriterProperties::builder()));
    assert!(file.len() < 10_000, "{} bytes", file.len());
    assert_eq!(read(file.clone(), &options()).expect("within the free limit").len(), 10_000);
    let mut reader = ParquetRecords::open(file, &options(), None).expect("footer");
    reader.produced_bytes = FREE_BYTES;
    let message = loop {
        match reader.next_record() {
            Ok(record) => drop(record.expect("stopped before its end")),
            Err(error) => break error.to_string(),
        }
    };
    assert!(message.contains("limit is 200 times as much"), "{message}");
}

#[test]
fn the_number_of_rows_is_limited_by_the_size_of_the_file() {
    let column: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![None; 100_000]));
    let file = Bytes::from(encoded(column, WriterProperties::builder()));
    assert!(file.len() < 1000, "{} bytes", file.len());
    assert_eq!(read(file.clone(), &options()).expect("within the free limit").len(), 100_000);
    let mut reader = ParquetRecords::open(file, &options(), None).expect("footer");
    assert_eq!(reader.max_rows, FREE_ROWS);
    reader.max_rows = 99_999;
    let mut found = 0;
    let message = loop {
        match reader.next_record() {
            Ok(record) => found += record.map(|_| 1).expect("stopped before its end"),
            Err(error) => break error.to_string(),
        }
    };
    assert_eq!(found, 99_999);
    assert!(message.contains("holds 100000 rows, limit is 99999: a million, or one for"), "{message}");
}

#[test]
fn a_footer_that_cannot_be_read_safely_is_refused() {
    let whole = file(vec![("image", images(3))]).to_vec();
    let of = |footer: &[u8], length: u32| {
        let bytes = [&b"PAR1"[..], footer, &length.to_le_bytes(), b"PAR1"].concat();
        read(bytes.into(), &options()).expect_err("no footer").to_string()
    };
    assert!(of(b"", 1 << 30).contains("footer: it is 1073741824 bytes, limit is"));
    assert!(of(b"short", 1000).contains("footer: it is 1000 bytes, the file 17"));
    // field 30: two billion booleans, which the library skips without reading a byte
    let list = [0x09, 60, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
    assert!(of(&list, list.len() as u32).contains("a list of truth values"));
    let encrypted = [&whole[..whole.len() - 4], b"PARE"].concat();
    let error = read(encrypted.into(), &options()).expect_err("encrypted").to_string();
    assert!(error.contains("footer: it is encrypted"), "{error}");
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let length = bytes.len() as u32;
        let footer = [&b"PAR1"[..], &bytes, &length.to_le_bytes(), b"PAR1"].concat();
        prop_assert!(read(Bytes::from(bytes), &options()).is_err());
        let _ = read(Bytes::from(footer), &options());
    }

    #[test]
    fn changed_bytes_end_in_records_or_damage(at in 0_usize..100_000, flip in 1_u8.., cut in any::<bool>()) {
        let mut shard = file(vec![("image", images(12)), ("hf", images(12))]).to_vec();
        let at = at % shard.len();
        shard[at] ^= flip;
        if cut {
            shard.remove(at);
        }
        // the library panics on some of them
        let read = guarded(ShardFormat::Parquet, || read(Bytes::from(shard), &options()));
        prop_assert!(!matches!(read, Err(ReadError::Storage(_))));
    }
}
