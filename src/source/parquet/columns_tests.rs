use arrow_array::types::Int32Type;
use arrow_array::{
    BinaryArray, Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Int8Array, Int64Array,
    ListArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::Field as ArrowField;
use bytes::Bytes;

use super::super::ParquetRecords;
use super::super::tests::file;
use super::*;
use crate::items::{RawRecord, Status};

fn keys(image: Option<&str>, id: Option<&str>) -> ReadOptions {
    let [image_key, id_key] = [image, id].map(|key| key.map(str::to_owned));
    ReadOptions { image_key, id_key, max_image_bytes: 1000, max_page_bytes: 1 << 20 }
}

fn read(file: &Bytes, options: &ReadOptions) -> Result<Vec<RawRecord>, ReadError> {
    let mut reader = ParquetRecords::open(file.clone(), options, None)?;
    std::iter::from_fn(|| reader.next_record().transpose()).collect()
}

fn config_error(shard: &Bytes, options: &ReadOptions) -> String {
    match read(shard, options) {
        Err(ReadError::Config(message)) => message,
        other => panic!("expected a configuration error: {other:?}"),
    }
}

fn ids(shard: &Bytes, options: &ReadOptions) -> Vec<String> {
    read(shard, options).expect("whole").into_iter().map(|record| record.image_id).collect()
}

fn images(count: usize) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values((0..count).map(|n| format!("image {n}"))))
}

fn numbers(values: [i64; 2]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn texts(values: [&str; 2]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn structure(children: Vec<(&str, ArrayRef)>) -> ArrayRef {
    let fields = children.iter().map(|(name, child)| ArrowField::new(*name, child.data_type().clone(), true));
    let (fields, children) =
        (fields.collect(), children.iter().map(|(_, child)| Arc::clone(child)).collect());
    Arc::new(StructArray::new(fields, children, None))
}

/// A column of one row, a list of all `items`.
fn list(items: ArrayRef) -> ArrayRef {
    let field = Arc::new(ArrowField::new("element", items.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths([items.len()]), items, None))
}

#[test]
fn ids_come_from_columns_of_any_scalar_type() {
    let decimal = Decimal128Array::from(vec![1_234, -5]).with_precision_and_scale(10, 2).expect("decimal");
    let dictionary: DictionaryArray<Int32Type> = ["a", "b"].into_iter().collect();
    let fixed = FixedSizeBinaryArray::try_from_iter([[0xab_u8; 4], [1, 2, 3, 4]].into_iter()).expect("fixed");
    let short = FixedSizeBinaryArray::try_from_iter([[1_u8], [2]].into_iter()).expect("fixed");
    let time = TimestampMicrosecondArray::from(vec![1_767_312_000_000_000, 1]).with_timezone("UTC");
    let bytes = BinaryArray::from_vec(vec![b"text", b"\xff\x00"]);
    let shard = file(vec![
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        ("i8", Arc::new(Int8Array::from(vec![-128, 127]))),
        ("date", Arc::new(Date32Array::from(vec![20_000, -1]))),
        ("decimal", Arc::new(decimal)),
        ("dictionary", Arc::new(dictionary)),
        ("fixed", Arc::new(fixed)),
        ("short", Arc::new(short)),
        ("time", Arc::new(time)),
        ("bytes", Arc::new(bytes)),
        ("null", Arc::new(StringArray::from(vec![Some("x"), None]))),
        ("image", images(2)),
    ]);
    for (key, expected) in [
        ("u64", ["18446744073709551615", "0"]),
        ("i8", ["-128", "127"]),
        ("date", ["2024-10-04", "1969-12-31"]),
        ("decimal", ["12.34", "-0.05"]),
        ("dictionary", ["a", "b"]),
        ("fixed", ["abababab", "01020304"]),
        ("short", ["01", "02"]),
        ("time", ["2026-01-02T00:00:00Z", "1970-01-01T00:00:00.000001Z"]),
        ("bytes", ["text", "ff00"]),
        ("null", ["x", "1"]),
    ] {
        assert_eq!(ids(&shard, &keys(Some("image"), Some(key))), expected, "{key}");
    }
}

#[test]
fn a_uuid_is_written_with_hyphens() {
    let bytes: Vec<u8> = (0..16).map(|n| n * 17).collect();
    assert_eq!(uuid(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
}

#[test]
fn columns_inside_structs_are_named_by_their_path() {
    let meta = structure(vec![("id", texts(["x", "y"])), ("width", numbers([1, 2]))]);
    let sample = structure(vec![("jpg", images(2)), ("meta", meta), ("cls", numbers([0, 1]))]);
    let shard = file(vec![("label", numbers([3, 4])), ("sample", sample)]);
    let options = keys(Some("sample.jpg"), Some("sample.meta.id"));
    assert_eq!(ids(&shard, &options), ["x", "y"]);
    assert_eq!(read(&shard, &options).expect("whole")[1].content, Ok(Bytes::from_static(b"image 1")));
    let message = config_error(&shard, &keys(None, None));
    assert!(message.ends_with("set input.image_key, to sample.jpg for example"), "{message}");
    let message = config_error(&shard, &keys(Some("sample.meta"), None));
    assert!(message.contains("which is struct{id, width}, expected binary"), "{message}");
}

#[test]
fn a_name_with_a_dot_in_it_is_found() {
    let inner = structure(vec![("b.c", images(2))]);
    let shard = file(vec![("x.y", images(2)), ("a", inner), ("i.d", texts(["p", "q"]))]);
    for key in ["x.y", "a.b.c"] {
        assert_eq!(ids(&shard, &keys(Some(key), Some("i.d"))), ["p", "q"], "{key}");
    }
}

#[test]
fn lists_of_images_are_refused_with_advice() {
    let path: ArrayRef = Arc::new(StringArray::from(vec!["a.jpg"]));
    let bytes = structure(vec![("bytes", images(1)), ("path", path)]);
    for (items, kind) in [(images(1), "list of binary"), (bytes, "list of struct{bytes, path}")] {
        let shard = file(vec![("images", list(items))]);
        let message = config_error(&shard, &keys(None, None));
        assert!(message.contains(&format!("images is {kind}: a row holds one image")), "{message}");
        let message = config_error(&shard, &keys(Some("images"), None));
        assert!(message.contains(kind) && message.contains("write a row for each item"), "{message}");
    }
    let of_ids = list(Arc::new(Int64Array::from(vec![1])));
    let message = config_error(&file(vec![("ids", of_ids), ("image", images(1))]), &keys(None, Some("ids")));
    assert!(message.starts_with("input.id_key is ids, which is list of int64, expected"), "{message}");
}

#[test]
fn a_record_with_only_a_path_has_that_as_its_reason() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![Some(b"one"), None]));
    let image = structure(vec![("bytes", bytes), ("path", texts(["a.jpg", "b.jpg"]))]);
    let shard = file(vec![("id", numbers([7, 8])), ("image", image)]);
    for (id, expected) in [(None, ["a.jpg", "b.jpg"]), (Some("id"), ["7", "8"])] {
        assert_eq!(ids(&shard, &keys(None, id)), expected);
        let found = read(&shard, &keys(None, id)).expect("whole");
        let reason = found[1].content.as_ref().expect_err("no bytes");
        assert_eq!(reason.status, Status::MissingImage);
        assert!(
            reason.error.starts_with("the record holds the path b.jpg alone, not the image"),
            "{reason:?}"
        );
    }
}
