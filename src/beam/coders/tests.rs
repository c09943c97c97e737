//! Round trips, damaged data, and coders of descriptors.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::coder::{Coder, CoderError, Window};
use super::decode::Problem;
use super::decode::{Context, decode_whole};
use super::elements::DecodeError;
use super::encode::encode;
use super::value::FIRST_HEADER;
use super::*;
use crate::beam::{proto::pipeline, urns};

fn kv(key: Coder, value: Coder) -> Coder {
    Coder::Kv(key.into(), value.into())
}

fn iterable(item: Coder) -> Coder {
    Coder::Iterable(item.into())
}

fn global(value: Coder) -> ElementCoder {
    ElementCoder { value: value.into(), window: Window::Global }
}

fn bytes(text: &'static str) -> Value {
    Value::Bytes(Bytes::from_static(text.as_bytes()))
}

fn pair(key: Value, value: Value) -> Value {
    Value::Pair(key.into(), value.into())
}

/// The bytes of one element with [`FIRST_HEADER`].
fn element(value: &[u8]) -> Vec<u8> {
    [&FIRST_HEADER, value].concat()
}

/// All elements of a stream that arrives in `pieces`.
fn decode_pieces<'a>(
    coder: &ElementCoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Element>, Result<(), DecodeError>) {
    let mut decoder = ElementDecoder::new(coder.clone());
    let mut elements = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_element() {
                Ok(Some(element)) => elements.push(element),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_element(), Err(error.clone()), "the error repeats");
                    return (elements, Err(error));
                }
            }
        }
    }
    (elements, decoder.finish())
}

fn decode_all(coder: &ElementCoder, data: &[u8]) -> Result<Vec<Element>, DecodeError> {
    let (elements, end) = decode_pieces(coder, [data]);
    end.map(|()| elements)
}

fn problem_of(coder: Coder, value: &[u8]) -> Problem {
    decode_all(&global(coder), &element(value)).expect_err("invalid").problem
}

#[test]
fn the_first_header_is_the_minimum_timestamp_in_the_global_window() {
    let timestamp_ms = (i64::MIN / 1000).cast_unsigned() ^ 1 << 63;
    let header = [&timestamp_ms.to_be_bytes()[..], &1_i32.to_be_bytes(), &[0x0f]].concat();
    assert_eq!(FIRST_HEADER[..], header);
}

#[test]
fn the_header_passes_through_verbatim() {
    let coder = global(Coder::Bytes);
    for (pane, varints) in [(0x07, &[][..]), (0x1f, &[0xac, 0x02]), (0x26, &[0x01, 0x80, 0x01])] {
        let header = [&[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, pane], varints].concat();
        let data = [&header[..], b"\x02ab"].concat();
        let elements = decode_all(&coder, &data).expect("sound");
        assert_eq!(elements, [Element { header: header.into(), value: bytes("ab") }]);
        let mut out = Vec::new();
        encode_element(&elements[0].header, &elements[0].value, &coder, &mut out).expect("fits");
        assert_eq!(out, data);
    }
    let coder = ElementCoder { window: Window::Interval, ..coder };
    let data = b"12345678\0\0\0\x02endofwin\x85\x01endofwin\x00\x0f\x00";
    let elements = decode_all(&coder, data).expect("sound");
    assert_eq!(elements, [Element { header: Bytes::from_static(&data[..32]), value: bytes("") }]);
}

#[test]
fn an_element_may_arrive_in_any_pieces() {
    let coder =
        global(kv(Coder::String, iterable(kv(Coder::Varint, Coder::LengthPrefix(Coder::Bytes.into())))));
    let items = (0..5).map(|n| pair(Value::Varint(-n), bytes("report"))).collect();
    let value = pair(Value::String("schlüssel".to_owned()), Value::Iterable(items));
    let mut data = Vec::new();
    for _ in 0..3 {
        encode_element(&FIRST_HEADER, &value, &coder, &mut data).expect("fits");
    }
    // the same iterable in chunks
    let chunked = element(b"\x01k\xff\xff\xff\xff\x02\x01\x01a\x02\x01b\x01\x03\x01c\x00");
    data.extend(chunked);

    let whole = decode_all(&coder, &data).expect("sound");
    assert_eq!(whole.len(), 4);
    let found = [(1, "a"), (2, "b"), (3, "c")].map(|(n, text)| pair(Value::Varint(n), bytes(text)));
    assert_eq!(whole[3].value, pair(Value::String("k".to_owned()), Value::Iterable(found.into())));
    for split in 0..=data.len() {
        let (first, second) = data.split_at(split);
        assert_eq!(decode_pieces(&coder, [first, second]), (whole.clone(), Ok(())), "split at {split}");
    }
    assert_eq!(decode_pieces(&coder, data.chunks(1)), (whole, Ok(())));
}

#[test]
fn a_stream_that_ends_inside_an_element_is_an_error() {
    let coder = global(kv(Coder::Bytes, iterable(Coder::Varint)));
    let data = element(b"\x01k\0\0\0\x02\x07\x08");
    for end in 1..data.len() {
        let (elements, result) = decode_pieces(&coder, [&data[..end]]);
        assert_eq!(elements, [], "end at {end}");
        assert_eq!(result, Err(DecodeError { index: 0, problem: Problem::Ends { bytes: end } }));
    }
    let twice = [&data[..], &data[..4]].concat();
    let (elements, result) = decode_pieces(&coder, [&twice[..]]);
    assert_eq!(elements.len(), 1);
    assert_eq!(
        result.expect_err("a tail").to_string(),
        "element 1 of the data stream: the data ends after 4 bytes of it"
    );
}

#[test]
fn nothing_is_decoded_twice() {
    let mut decoder = ElementDecoder::new(global(iterable(Coder::Varint)));
    decoder.push(&element(b"\0\0\x27\x10"));
    for _ in 0..9999 {
        decoder.push(&[7]);
        assert_eq!(decoder.next_element(), Ok(None));
        assert_eq!(decoder.undecoded_bytes(), 0);
    }
    decoder.push(&[7]);
    let value = Value::Iterable(vec![Value::Varint(7); 10_000]);
    assert_eq!(decoder.next_element().expect("sound").expect("whole").value, value);
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn claims_are_not_allocated() {
    for (coder, claim) in [
        (Coder::Bytes, &b"\xff\xff\xff\xff\x07"[..]),
        (Coder::String, b"\xff\xff\xff\xff\x07"),
        (Coder::LengthPrefix(Coder::Varint.into()), b"\xff\xff\xff\xff\x07"),
        (iterable(Coder::Varint), b"\x7f\xff\xff\xff"),
        (iterable(Coder::Varint), b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ] {
        let mut decoder = ElementDecoder::new(global(coder));
        decoder.push(&element(claim));
        assert_eq!(decoder.next_element(), Ok(None));
        assert!(decoder.allocated_bytes() < 1000, "{} bytes", decoder.allocated_bytes());
    }
}

#[test]
fn the_buffer_does_not_grow_with_the_stream() {
    let mut decoder = ElementDecoder::new(global(Coder::Bytes));
    let element = element(b"\x03abc");
    decoder.push(&element[..4]);
    for _ in 0..10_000 {
        // the end of an element and the start of the next one
        decoder.push(&element[4..]);
        decoder.push(&element[..4]);
        assert_eq!(decoder.next_element().expect("sound").expect("whole").value, bytes("abc"));
        assert_eq!(decoder.next_element(), Ok(None));
    }
    assert!(decoder.allocated_bytes() < 1000, "{} bytes", decoder.allocated_bytes());
}

#[test]
fn damage_is_named() {
    let long = [0xff; 11];
    assert_eq!(problem_of(Coder::Varint, &long), Problem::Varint);
    assert_eq!(problem_of(Coder::Varint, b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02"), Problem::Varint);
    assert_eq!(problem_of(Coder::Bytes, b"\x80\x80\x80\x80\x08"), Problem::Length { length: 1 << 31 });
    let minus_one = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(problem_of(Coder::Bytes, minus_one), Problem::Length { length: -1 });
    assert_eq!(problem_of(Coder::String, b"\x01\xff"), Problem::Utf8);
    assert_eq!(problem_of(iterable(Coder::Bytes), b"\xff\xff\xff\xfe"), Problem::Count { count: -2 });
    let chunk = |count: &[u8]| [b"\xff\xff\xff\xff", count].concat();
    assert_eq!(problem_of(iterable(Coder::Bytes), &chunk(minus_one)), Problem::StateBacked);
    let minus_two = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(problem_of(iterable(Coder::Bytes), &chunk(minus_two)), Problem::Count { count: -2 });
    assert_eq!(problem_of(Coder::Nullable(Coder::Bytes.into()), b"\x02"), Problem::Nullable { byte: 2 });
    let prefixed = Coder::LengthPrefix(Coder::Varint.into());
    assert_eq!(problem_of(prefixed.clone(), b"\x01\x80"), Problem::Short { bytes: 1 });
    assert_eq!(problem_of(prefixed, b"\x03\x80\x01\x00"), Problem::Long { bytes: 1 });

    let damaged = |coder: &ElementCoder, at: usize, byte: u8| {
        let mut data = element(b"\0");
        data[at] = byte;
        decode_all(coder, &data).expect_err("invalid").problem
    };
    let coder = global(Coder::Bytes);
    assert_eq!(damaged(&coder, 12, 0x3f), Problem::Pane { byte: 0x3f });
    assert_eq!(damaged(&coder, 11, 0), Problem::Windows { windows: 0, expected: "1" });
    assert_eq!(damaged(&coder, 8, 0x80), Problem::Windows { windows: i32::MIN + 1, expected: "1" });
    let coder = ElementCoder { window: Window::Interval, ..coder };
    assert_eq!(damaged(&coder, 11, 0), Problem::Windows { windows: 0, expected: "1 or more" });
}

#[test]
fn items_without_bytes_are_limited() {
    let windows = || iterable(kv(Coder::Window(Window::Global), Coder::Window(Window::Global)));
    let item = pair(bytes(""), bytes(""));
    for data in [&b"\0\0\0\x10"[..], b"\xff\xff\xff\xff\x09\x06\x01\x00"] {
        let elements = decode_all(&global(windows()), &element(data)).expect("sound");
        assert_eq!(elements[0].value, Value::Iterable(vec![item.clone(); 16]));
    }
    assert_eq!(problem_of(windows(), b"\0\0\0\x11"), Problem::EmptyItems { count: 17 });
    let chunks = b"\xff\xff\xff\xff\x0a\x06\x01\x00";
    assert_eq!(problem_of(windows(), chunks), Problem::EmptyItems { count: 17 });
    let most = b"\xff\xff\xff\xff\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f";
    assert_eq!(problem_of(windows(), most), Problem::EmptyItems { count: 1 << 63 });

    // items with bytes are not
    for coder in
        [kv(Coder::Window(Window::Global), Coder::Bytes), kv(Coder::Bytes, Coder::Window(Window::Global))]
    {
        let data = [&b"\0\0\0\x11"[..], &[0; 17]].concat();
        let elements = decode_all(&global(iterable(coder)), &element(&data)).expect("sound");
        assert_eq!(elements[0].value, Value::Iterable(vec![item.clone(); 17]));
    }
}

#[test]
fn a_value_that_does_not_fit_its_coder_leaves_the_output_as_it_was() {
    let coder = global(kv(Coder::Bytes, Coder::Window(Window::Global)));
    let mut out = b"before".to_vec();
    for (value, kind) in [
        (pair(bytes("k"), Value::Varint(1)), "an integer"),
        (pair(bytes("k"), bytes("window")), "bytes"),
        (pair(Value::Optional(None), bytes("")), "an optional value"),
        (Value::Iterable(Vec::new()), "an iterable"),
    ] {
        let error = encode_element(&FIRST_HEADER, &value, &coder, &mut out).expect_err("does not fit");
        assert!(
            error.to_string().starts_with(&format!("a value is {kind}, but its coder is beam:")),
            "{error}"
        );
        assert_eq!(out, b"before");
    }
    encode_element(&FIRST_HEADER, &pair(bytes("k"), bytes("")), &coder, &mut out).expect("fits");
    assert_eq!(out, [b"before", &element(b"\x01k")[..]].concat());
}

fn coders(entries: &[(&str, &str, &[&str])]) -> HashMap<String, pipeline::Coder> {
    let coder = |urn: &str, components: &[&str]| pipeline::Coder {
        spec: Some(pipeline::FunctionSpec { urn: urn.to_owned(), payload: Vec::new() }),
        component_coder_ids: components.iter().map(|&id| id.to_owned()).collect(),
    };
    entries.iter().map(|(id, urn, components)| ((*id).to_owned(), coder(urn, components))).collect()
}

#[test]
fn coders_are_resolved_when_they_are_needed() {
    let mut coders = coders(&[
        ("bytes", urns::BYTES, &[]),
        ("text", urns::STRING, &[]),
        ("texts", urns::ITERABLE, &["prefixed"]),
        ("prefixed", urns::LENGTH_PREFIX, &["text"]),
        ("pairs", urns::KV, &["bytes", "texts"]),
        ("window", urns::GLOBAL_WINDOW, &[]),
        ("port", urns::WINDOWED_VALUE, &["pairs", "window"]),
        ("pickled", "beam:coder:pickled_python:v1", &[]),
        ("foreign", urns::KV, &["bytes", "pickled"]),
        ("foreign port", urns::WINDOWED_VALUE, &["foreign", "window"]),
        ("bad window", urns::WINDOWED_VALUE, &["bytes", "text"]),
        ("nested port", urns::WINDOWED_VALUE, &["port", "window"]),
        ("half", urns::KV, &["bytes"]),
        ("list", urns::ITERABLE, &["list"]),
        ("none", urns::NULLABLE, &["gone"]),
    ]);
    coders.insert("no spec".to_owned(), pipeline::Coder::default());
    let value = kv(Coder::Bytes, iterable(Coder::LengthPrefix(Coder::String.into())));
    assert_eq!(ElementCoder::resolve(&coders, "port"), Ok(global(value)));

    let port = |id| ElementCoder::resolve(&coders, id).expect_err("unusable").to_string();
    let value = |id| Coder::resolve(&coders, id).expect_err("unusable").to_string();
    assert_eq!(
        port("foreign port"),
        "coder pickled is beam:coder:pickled_python:v1, which sluice does not support"
    );
    assert_eq!(
        port("bytes"),
        "coder bytes of a data stream is beam:coder:bytes:v1, which sluice does not support"
    );
    assert_eq!(
        port("bad window"),
        "coder text of windows is beam:coder:string_utf8:v1, which sluice does not support"
    );
    assert_eq!(
        port("nested port"),
        "coder port is beam:coder:windowed_value:v1, which sluice supports only as the coder of a data stream"
    );
    assert_eq!(value("half"), "coder half is beam:coder:kv:v1 and has 1 components, expected 2");
    assert_eq!(value("list"), "coder list consists of more than 100 coders, or contains itself");
    assert_eq!(value("none"), "the descriptor has no coder gone");
    assert_eq!(value("no spec"), "coder no spec is without a URN, which sluice does not support");
}

#[test]
fn a_coder_that_is_small_only_as_a_descriptor_is_refused() {
    // each level doubles the coders: 2^40 in all
    let ids: Vec<String> = (0..=40).map(|level| level.to_string()).collect();
    let pairs: Vec<[&str; 2]> = ids[1..].iter().map(|id| [id.as_str(); 2]).collect();
    let mut entries: Vec<(&str, &str, &[&str])> =
        ids.iter().zip(&pairs).map(|(id, pair)| (id.as_str(), urns::KV, &pair[..])).collect();
    entries.push((&ids[40], urns::BYTES, &[]));
    let error = Coder::resolve(&coders(&entries), "0").expect_err("too large");
    assert_eq!(error, CoderError::TooLarge { id: "0".to_owned() });
}

/// Coders with values of theirs.
fn any_coder() -> impl Strategy<Value = Coder> {
    let leaf = prop_oneof![
        Just(Coder::Bytes),
        Just(Coder::String),
        Just(Coder::Varint),
        Just(Coder::Window(Window::Global)),
        Just(Coder::Window(Window::Interval)),
    ];
    leaf.prop_recursive(4, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(key, value)| kv(key, value)),
            inner.clone().prop_map(iterable),
            inner.clone().prop_map(|inner| Coder::LengthPrefix(inner.into())),
            inner.prop_map(|inner| Coder::Nullable(inner.into())),
        ]
    })
}

fn value_of(coder: &Coder) -> BoxedStrategy<Value> {
    match coder {
        Coder::Bytes => any::<Vec<u8>>().prop_map(|bytes| Value::Bytes(bytes.into())).boxed(),
        Coder::String => any::<String>().prop_map(Value::String).boxed(),
        Coder::Varint => any::<i64>().prop_map(Value::Varint).boxed(),
        Coder::Window(Window::Global) => Just(bytes("")).boxed(),
        Coder::Window(Window::Interval) => (any::<[u8; 8]>(), 0..0x80_u8)
            .prop_map(|(end, span)| Value::Bytes([&end[..], &[span]].concat().into()))
            .boxed(),
        Coder::Kv(key, value) => (value_of(key), value_of(value)).prop_map(|(k, v)| pair(k, v)).boxed(),
        Coder::Iterable(item) => {
            proptest::collection::vec(value_of(item), 0..5).prop_map(Value::Iterable).boxed()
        }
        Coder::LengthPrefix(inner) => value_of(inner),
        Coder::Nullable(inner) => proptest::option::of(value_of(inner))
            .prop_map(|value| Value::Optional(value.map(Box::new)))
            .boxed(),
    }
}

fn coder_and_values() -> impl Strategy<Value = (Coder, Vec<Value>)> {
    any_coder().prop_flat_map(|coder| {
        let values = proptest::collection::vec(value_of(&coder), 0..4);
        (Just(coder), values)
    })
}

/// Cut `data` into pieces of these lengths, and a last one.
fn pieces<'a>(mut data: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = data.split_at((*length).min(data.len()));
        pieces.push(piece);
        data = rest;
    }
    pieces.push(data);
    pieces
}

proptest! {
    #[test]
    fn values_survive_encoding_and_pieces(
        (coder, values) in coder_and_values(),
        lengths in proptest::collection::vec(0_usize..40, 0..20),
    ) {
        let coder = global(coder);
        let mut data = Vec::new();
        for value in &values {
            encode_element(&FIRST_HEADER, value, &coder, &mut data).expect("fits");
        }
        let header = Bytes::from_static(&FIRST_HEADER);
        let elements = values.into_iter().map(|value| Element { header: header.clone(), value }).collect();
        prop_assert_eq!(decode_pieces(&coder, pieces(&data, &lengths)), (elements, Ok(())));
    }

    #[test]
    fn values_survive_the_outer_context((coder, values) in coder_and_values()) {
        let coder = Arc::new(coder);
        for value in values {
            let mut data = Vec::new();
            encode(&value, &coder, Context::Outer, &mut data).expect("fits");
            prop_assert_eq!(decode_whole(&coder, Context::Outer, &data), Ok(value));
        }
    }

    #[test]
    fn garbage_is_an_error_and_the_same_one_in_any_pieces(
        (coder, values) in coder_and_values(),
        is_interval in any::<bool>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tail in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(1), Just(0xff)], 0..60),
        lengths in proptest::collection::vec(0_usize..40, 0..20),
    ) {
        let window = if is_interval { Window::Interval } else { Window::Global };
        let coder = ElementCoder { value: coder.into(), window };
        let mut data = Vec::new();
        for value in &values {
            encode_element(&FIRST_HEADER, value, &coder, &mut data).expect("fits");
        }
        data.extend(tail);
        for (index, byte) in damage {
            if !data.is_empty() {
                let at = index.index(data.len());
                data[at] = byte;
            }
        }
        prop_assert_eq!(decode_pieces(&coder, pieces(&data, &lengths)), decode_pieces(&coder, [&data[..]]));
    }
}
