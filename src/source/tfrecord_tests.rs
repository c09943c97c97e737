use super::super::compression::decompressed;
use super::super::compression::tests::gzip;
use super::super::example::schema::{BytesList, Example, Feature, Features, Int64List};
use super::super::records::{Records, records};
use super::*;
use proptest::prelude::*;
use prost::Message;

pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = length.to_vec();
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(data);
    frame.extend(masked_crc(data).to_le_bytes());
    frame
}

fn bytes_feature(value: &[u8]) -> Feature {
    let list = BytesList { value: vec![Bytes::copy_from_slice(value)] };
    Feature { bytes_list: Some(list), ..Feature::default() }
}

fn example(features: Vec<(&str, Feature)>) -> Vec<u8> {
    let feature = features.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Example { features: Some(Features { feature }) }.encode_to_vec()
}

pub(crate) fn image_record(id: &str, image: &[u8]) -> Vec<u8> {
    frame(&example(vec![("image/encoded", bytes_feature(image)), ("image/id", bytes_feature(id.as_bytes()))]))
}

fn options() -> ReadOptions {
    ReadOptions { image_key: None, id_key: None, max_image_bytes: 1000, max_page_bytes: 1 << 20 }
}

fn read_with(bytes: &[u8], options: ReadOptions) -> Vec<Result<RawRecord, ReadError>> {
    let mut reader = TfRecords::new(bytes, options);
    let mut all = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Some(record)) => all.push(Ok(record)),
            Ok(None) => return all,
            Err(error) => {
                all.push(Err(error));
                return all;
            }
        }
    }
}

fn read(bytes: &[u8]) -> Vec<Result<RawRecord, ReadError>> {
    read_with(bytes, options())
}

fn status(record: &Result<RawRecord, ReadError>) -> Status {
    match record {
        Ok(RawRecord { content: Ok(_), .. }) => Status::Ok,
        Ok(RawRecord { content: Err(rejected), .. }) => rejected.status,
        Err(error) => panic!("shard error: {error}"),
    }
}

#[test]
fn an_empty_id_feature_is_ignored() {
    let data = example(vec![
        ("image/encoded", bytes_feature(b"image")),
        ("image/id", bytes_feature(b"")),
        ("image/filename", bytes_feature(b"a.jpg")),
    ]);
    let found = read(&frame(&data));
    assert_eq!(found[0].as_ref().expect("whole").image_id, "a.jpg");
}

#[test]
fn an_image_does_not_keep_a_much_larger_record_in_memory() {
    let record = |others: usize| {
        let mask = vec![1; others];
        let data = example(vec![("image/encoded", bytes_feature(&[7; 800])), ("mask", bytes_feature(&mask))]);
        let data = Bytes::from(data);
        let record = TfRecords::new(&[][..], options()).parse(0, data.clone());
        let image = record.content.expect("an image");
        assert_eq!(image, vec![7; 800]);
        data.as_ptr_range().contains(&image.as_ptr())
    };
    assert!(record(10), "the image shares the memory of a small record");
    assert!(!record(10_000));
}

#[test]
fn records_come_in_order_with_their_ids() {
    let ids = Int64List { value: vec![42] };
    let number = Feature { int64_list: Some(ids), ..Feature::default() };
    let shard = [
        image_record("a", b"one"),
        frame(&example(vec![("image/encoded", bytes_feature(b"two")), ("image/id", number)])),
        frame(&example(vec![("image/encoded", bytes_feature(b"three"))])),
        frame(&example(vec![
            ("image/encoded", bytes_feature(b"four")),
            ("image/filename", bytes_feature(b"d.jpg")),
        ])),
    ];
    let found = read(&shard.concat());
    let found: Vec<_> = found.into_iter().map(|r| r.expect("record")).collect();
    let ids: Vec<_> = found.iter().map(|r| r.image_id.as_str()).collect();
    assert_eq!(ids, ["a", "42", "2", "d.jpg"]);
    let images: Vec<_> = found.iter().map(|r| r.content.clone().expect("image")).collect();
    assert_eq!(images, ["one", "two", "three", "four"]);
}

#[test]
fn the_image_and_id_features_can_be_configured() {
    let shard = frame(&example(vec![("jpeg", bytes_feature(b"x")), ("name", bytes_feature(b"n"))]));
    let named = ReadOptions {
        image_key: Some("jpeg".to_owned()),
        id_key: Some("name".to_owned()),
        max_image_bytes: 10,
        ..options()
    };
    let found = read_with(&shard, named).remove(0).expect("record");
    assert_eq!(found, RawRecord::new("n", Ok(Bytes::from_static(b"x"))));
}

#[test]
fn the_reason_for_a_missing_image_feature_names_the_other_features() {
    let shard = frame(&example(vec![("b", bytes_feature(b"x")), ("a", bytes_feature(b"n"))]));
    let found = read(&shard).remove(0).expect("record");
    let reason = found.content.expect_err("no image");
    assert_eq!(reason.status, Status::MissingImage);
    assert_eq!(
        reason.error,
        "no feature image/encoded; the record has: a, b; input.image_key names the image's"
    );
}

#[test]
fn a_record_without_features_has_that_as_its_reason() {
    for data in [example(Vec::new()), Vec::new()] {
        let reason = read(&frame(&data)).remove(0).expect("record").content.expect_err("no image");
        assert_eq!(reason.status, Status::MissingImage);
        assert_eq!(reason.error, "no feature image/encoded: the record has no features");
    }
}

#[test]
fn a_repeated_image_feature_makes_its_record_corrupt() {
    let entries = [
        example(vec![("image/encoded", bytes_feature(b"one")), ("image/id", bytes_feature(b"a"))]),
        example(vec![("image/encoded", bytes_feature(b"two"))]),
    ];
    let label =
        [example(vec![("label", bytes_feature(b"1"))]), example(vec![("label", bytes_feature(b"2"))])];
    let shard = [frame(&entries.concat()), frame(&[&label.concat()[..], &entries[0]].concat())];
    let found = read(&shard.concat());
    let first = found[0].as_ref().expect("a record");
    assert_eq!(first.image_id, "a");
    let reason = first.content.as_ref().expect_err("two images");
    assert_eq!(reason.error, "the record has 2 features image/encoded, expected one");
    // other features may be repeated
    assert_eq!((reason.status, status(&found[1])), (Status::CorruptRecord, Status::Ok));
}

#[test]
fn ids_that_are_not_utf_8_stay_distinct() {
    let names: [&[u8]; 5] =
        [b"caf\xe9.jpg", b"caf\xe8.jpg", br"caf\xE8.jpg", b"a\nb.jpg", "\u{e9}.jpg".as_bytes()];
    let shard = names.map(|name| {
        frame(&example(vec![("image/encoded", bytes_feature(b"x")), ("image/filename", bytes_feature(name))]))
    });
    let found = read(&shard.concat());
    let ids: Vec<_> = found.iter().map(|record| record.as_ref().expect("record").image_id.as_str()).collect();
    assert_eq!(ids, [r"caf\xE9.jpg", r"caf\xE8.jpg", r"caf\x5CxE8.jpg", r"a\x0Ab.jpg", "\u{e9}.jpg"]);
}

#[test]
fn several_images_in_one_record_make_it_corrupt() {
    let list = BytesList { value: vec!["one".into(), "two".into(), "".into()] };
    let several = Feature { bytes_list: Some(list), ..Feature::default() };
    let shard = [
        frame(&example(vec![("image/encoded", several), ("image/id", bytes_feature(b"a"))])),
        image_record("b", b"four"),
    ];
    let found = read(&shard.concat());
    let first = found[0].as_ref().expect("a record");
    assert_eq!(first.image_id, "a");
    let reason = first.content.as_ref().expect_err("several");
    assert_eq!(reason.error, "feature image/encoded holds 3 values, expected one image");
    assert_eq!((reason.status, status(&found[1])), (Status::CorruptRecord, Status::Ok));
}

#[test]
fn a_file_of_another_kind_is_named() {
    for (bytes, name) in
        [(&b"<html><body>not found</body></html>"[..], "HTML"), (b"PAR1 and so on, and so on", "Parquet")]
    {
        let error = read(bytes).remove(0).expect_err("no records").to_string();
        assert!(error.starts_with("not a TFRecord file: it is ") && error.contains(name), "{error}");
    }
}

#[test]
fn a_sequence_example_is_named() {
    let context = example(vec![("length", bytes_feature(b"2"))]);
    let lists = [&context[..], &[0x12, 2, 0x0a, 0]].concat();
    let found = read(&frame(&lists)).remove(0).expect("record");
    let reason = found.content.expect_err("no image");
    assert_eq!(reason.status, Status::MissingImage);
    assert!(reason.error.contains("is a tf.SequenceExample, only tf.Example is read"), "{}", reason.error);
}

#[test]
fn images_in_a_feature_list_are_not_ignored() {
    let context = example(vec![("image/encoded", bytes_feature(b"image"))]);
    let list = |name: &str| {
        let entry = [&[0x0a, name.len() as u8][..], name.as_bytes(), &[0x12, 0]].concat();
        let map = [&[0x0a, entry.len() as u8][..], &entry].concat();
        [&context[..], &[0x12, map.len() as u8], &map].concat()
    };
    let found = read(&[frame(&list("image/encoded")), frame(&list("audio"))].concat());
    let reason = found[0].as_ref().expect("a record").content.as_ref().expect_err("several");
    assert_eq!(reason.status, Status::CorruptRecord);
    assert!(reason.error.contains("tf.SequenceExample with a list image/encoded"), "{}", reason.error);
    assert_eq!(status(&found[1]), Status::Ok);
}

#[test]
fn a_feature_of_another_type_is_a_missing_image() {
    let list = Int64List { value: vec![1] };
    let number = Feature { int64_list: Some(list), ..Feature::default() };
    let found = read(&frame(&example(vec![("image/encoded", number)])));
    assert_eq!(status(&found[0]), Status::MissingImage);
}

#[test]
fn an_image_of_zero_bytes_is_empty_and_a_long_one_is_too_large() {
    let shard = [image_record("e", b""), image_record("l", &[1; 1001]), image_record("o", &[1; 1000])];
    let found = read(&shard.concat());
    let found: Vec<_> = found.iter().map(status).collect();
    assert_eq!(found, [Status::Empty, Status::TooLarge, Status::Ok]);
}

#[test]
fn a_record_longer_than_any_image_is_skipped_and_the_next_one_is_read() {
    let shard = [frame(&vec![0; 3 << 20]), image_record("next", b"image")].concat();
    let found = read(&shard);
    assert_eq!(status(&found[0]), Status::TooLarge);
    assert_eq!(found[1].as_ref().expect("record").image_id, "next");
}

#[test]
fn damaged_data_costs_only_its_own_record() {
    let first = image_record("a", b"one");
    let mut shard = [first, image_record("b", b"two")].concat();
    shard[HEADER_BYTES + 3] ^= 1;
    let found = read(&shard);
    assert_eq!(status(&found[0]), Status::CorruptRecord);
    assert_eq!(found[1].as_ref().expect("record").image_id, "b");
    assert_eq!(found.len(), 2);
}

#[test]
fn a_damaged_length_ends_the_shard_and_says_where() {
    let first = image_record("a", b"one");
    let mut shard = [first.clone(), image_record("b", b"two"), image_record("c", b"three")].concat();
    shard[first.len()] ^= 1;
    let found = read(&shard);
    assert_eq!(found.len(), 2);
    assert_eq!(status(&found[0]), Status::Ok);
    let message = found[1].as_ref().expect_err("corrupt").to_string();
    assert!(message.starts_with(&format!("record 1 at byte {}: the checksum", first.len())), "{message}");
}

#[test]
fn a_cut_shard_keeps_its_complete_records() {
    let first = image_record("a", b"one");
    let shard = [first.clone(), image_record("b", b"two")].concat();
    for cut in [first.len() + 5, first.len() + HEADER_BYTES + 1, shard.len() - 1] {
        let found = read(&shard[..cut]);
        assert_eq!(found.len(), 2, "cut at {cut}");
        assert_eq!(status(&found[0]), Status::Ok);
        let message = found[1].as_ref().expect_err("cut").to_string();
        assert!(message.contains("the file ends inside the record's"), "{message}");
    }
}

#[test]
fn a_record_that_is_not_an_example_is_corrupt() {
    let shard = [frame(&[0xff; 20]), image_record("b", b"two")].concat();
    let found = read(&shard);
    assert_eq!(status(&found[0]), Status::CorruptRecord);
    assert_eq!(status(&found[1]), Status::Ok);
}

#[test]
fn records_before_a_cut_in_a_gzip_stream_are_read() {
    let shard: Vec<u8> =
        (0..200_u32).flat_map(|n| image_record("x", &n.wrapping_mul(2_654_435_761).to_le_bytes())).collect();
    let packed = gzip(&shard);
    let packed = packed[..packed.len() / 2].to_vec();
    let content = decompressed(std::io::Cursor::new(packed)).expect("head");
    let mut reader = TfRecords::new(content, options());
    let found: Records = records(move || reader.next_record());
    let found: Vec<_> = found.collect();
    assert!(found.len() > 10, "{}", found.len());
    assert!(found.last().expect("some").is_err());
    assert!(found[..found.len() - 1].iter().all(Result::is_ok));
}

#[test]
fn images_share_the_memory_of_their_record() {
    let data = Bytes::from(example(vec![("image/encoded", bytes_feature(&[9; 500]))]));
    let range = data.as_ptr_range();
    let record = TfRecords::new(&b""[..], options()).parse(0, data);
    assert!(range.contains(&record.content.expect("image").as_ptr()));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read(&bytes);
        read(&frame(&bytes));
    }

    #[test]
    fn a_changed_byte_causes_no_panic_and_no_extra_record(at in 0_usize..10_000, flip in 1_u8..) {
        let mut shard: Vec<u8> = (0..5).flat_map(|n| image_record("x", &[n; 30])).collect();
        let at = at % shard.len();
        shard[at] ^= flip;
        let found = read(&shard);
        prop_assert!(found.len() <= 5);
        let all_whole = found.iter().all(|record| matches!(record, Ok(RawRecord { content: Ok(_), .. })));
        prop_assert!(!all_whole);
    }
}
