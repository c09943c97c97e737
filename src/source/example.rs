//! `tf.Example` as far as an image shard needs it: the first value of a few features.
//!
//! Input: one message. Output: the requested features, or what is wrong with the message.
//!
//! Field numbers follow `tensorflow/core/example/{example,feature}.proto`.
//!
//! - The message is scanned, not decoded into objects: a feature may have as many values as bytes. Besides the message,
//!   only the requested features are held.
//! - Values share the message's memory; nothing is copied.
//! - For a feature that occurs several times, the last one and the number of occurrences are returned, as in any
//!   protobuf map.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::store::escaped;

/// `Example.features`, `Features.feature`, and the parts of an entry of that map.
const FEATURES: u32 = 1;
const FEATURE: u32 = 1;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;

/// Fields of `Feature`. `float_list` is skipped.
const BYTES_LIST: u32 = 1;
const INT64_LIST: u32 = 3;

/// A field of `SequenceExample`, whose `context` has the number of `Example.features`.
const FEATURE_LISTS: u32 = 2;

/// The field of both lists that holds their values.
const VALUE: u32 = 1;

/// A description of what is wrong with a message.
type Malformed = String;

/// The first value of a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// The first byte string, and the number of byte strings.
    Bytes(Bytes, u64),
    Integer(i64),
    /// No value, or floats.
    None,
}

impl Value {
    /// The text of an id, with bytes as [`escaped`] writes them.
    pub fn as_text(&self) -> Option<String> {
        match self {
            Self::Bytes(bytes, _) => Some(escaped(bytes)),
            Self::Integer(integer) => Some(integer.to_string()),
            Self::None => None,
        }
    }
}

/// A requested feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub value: Value,
    /// The number of features of this name in the message. `value` is that of the last one.
    pub features: u64,
}

/// The features of `example` with the names `wanted`, in the order of `wanted`.
pub(super) fn features(example: Bytes, wanted: &[&str]) -> Result<Vec<Option<Found>>, Malformed> {
    let mut found: Vec<Option<Found>> = vec![None; wanted.len()];
    each_feature(example, |key, feature, times| {
        for (name, found) in wanted.iter().zip(&mut found) {
            if name.as_bytes() == &key[..] {
                let before = found.as_ref().map_or(0, |found| found.features);
                *found = Some(Found { value: first_value(feature.clone())?, features: before + times });
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// The first `count` names of its features in the order of their bytes, and whether there are more.
pub(super) fn names(example: Bytes, count: usize) -> Result<(Vec<String>, bool), Malformed> {
    let mut names = BTreeSet::new();
    each_feature(example, |key, _, _| {
        names.insert(key);
        if names.len() > count + 1 {
            names.pop_last();
        }
        Ok(())
    })?;
    let more = names.len() > count;
    let names = names.iter().take(count).map(|name| escaped(name));
    Ok((names.collect(), more))
}

/// Whether the message is a `tf.SequenceExample` with lists. Its context is encoded like the features of an example.
pub(super) fn has_feature_lists(mut example: Bytes) -> bool {
    while let Ok(Some(field)) = next_field(&mut example) {
        if matches!(field, Field { tag: FEATURE_LISTS, content: Content::Bytes(_) }) {
            return true;
        }
    }
    false
}

/// Whether the message is a `tf.SequenceExample` with a list of this name.
pub(super) fn has_feature_list(example: Bytes, name: &str) -> bool {
    let mut found = false;
    // damage counts as the end of the lists
    let _ = each_entry(example, FEATURE_LISTS, |key, _, _| {
        found |= key == name.as_bytes();
        Ok(())
    });
    found
}

/// Pass each feature to `take`: its name, its content, and how many contents its map entry has, which should be one.
fn each_feature(
    example: Bytes,
    take: impl FnMut(Bytes, Bytes, u64) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    each_entry(example, FEATURES, take)
}

/// Like [`each_feature`], for the entries of the map in field `field_of_map`: features, or lists of features.
fn each_entry(
    mut example: Bytes,
    field_of_map: u32,
    mut take: impl FnMut(Bytes, Bytes, u64) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while let Some(field) = next_field(&mut example)? {
        let Some(mut features) = field.message(field_of_map)? else { continue };
        while let Some(field) = next_field(&mut features)? {
            let Some(mut entry) = field.message(FEATURE)? else { continue };
            let (mut key, mut value, mut values) = (Bytes::new(), Bytes::new(), 0);
            while let Some(field) = next_field(&mut entry)? {
                if let Some(bytes) = field.message(ENTRY_KEY)? {
                    key = bytes;
                } else if let Some(bytes) = field.message(ENTRY_VALUE)? {
                    value = bytes;
                    values += 1;
                }
            }
            take(key, value, values.max(1))?;
        }
    }
    Ok(())
}

fn first_value(mut feature: Bytes) -> Result<Value, Malformed> {
    let mut found = Value::None;
    while let Some(field) = next_field(&mut feature)? {
        if let Some(mut list) = field.message(BYTES_LIST)? {
            while let Some(field) = next_field(&mut list)? {
                if let Some(bytes) = field.message(VALUE)? {
                    found = match found {
                        Value::Bytes(first, count) => Value::Bytes(first, count + 1),
                        Value::Integer(_) | Value::None => Value::Bytes(bytes, 1),
                    };
                }
            }
        } else if let Some(mut list) = field.message(INT64_LIST)? {
            while let (Some(field), Value::None) = (next_field(&mut list)?, &found) {
                match field {
                    Field { tag: VALUE, content: Content::Integer(integer) } => {
                        found = Value::Integer(integer as i64);
                    }
                    // packed
                    Field { tag: VALUE, content: Content::Bytes(mut packed) } if !packed.is_empty() => {
                        found = Value::Integer(varint(&mut packed)? as i64);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(found)
}

struct Field {
    tag: u32,
    content: Content,
}

enum Content {
    Integer(u64),
    Bytes(Bytes),
    /// Skipped.
    Other,
}

impl Field {
    /// Its bytes if it is the field `tag`, which must be length-delimited.
    fn message(&self, tag: u32) -> Result<Option<Bytes>, Malformed> {
        match &self.content {
            _ if self.tag != tag => Ok(None),
            Content::Bytes(bytes) => Ok(Some(bytes.clone())),
            Content::Integer(_) | Content::Other => Err(format!("field {tag} is of another type")),
        }
    }
}

fn next_field(rest: &mut Bytes) -> Result<Option<Field>, Malformed> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (tag, wire_type) =
        decode_key(rest).map_err(|_| "what should be the number of a field is none".to_owned())?;
    let content = match wire_type {
        WireType::Varint => Content::Integer(varint(rest)?),
        WireType::LengthDelimited => {
            let length = usize::try_from(varint(rest)?).unwrap_or(usize::MAX);
            if length > rest.remaining() {
                return Err(format!("field {tag} is {length} bytes, {} are left", rest.remaining()));
            }
            Content::Bytes(rest.split_to(length))
        }
        _ => {
            let skipped = skip_field(wire_type, tag, rest, DecodeContext::default());
            skipped.map_err(|_| format!("field {tag} is cut short or damaged"))?;
            Content::Other
        }
    };
    Ok(Some(Field { tag, content }))
}

fn varint(rest: &mut Bytes) -> Result<u64, Malformed> {
    decode_varint(rest).map_err(|_| "a number is cut short or too long".to_owned())
}

/// The complete messages, with which tests write what is read here.
#[cfg(test)]
pub(super) mod schema {
    use bytes::Bytes;
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Example {
        #[prost(message, optional, tag = "1")]
        pub features: Option<Features>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Features {
        #[prost(map = "string, message", tag = "1")]
        pub feature: HashMap<String, Feature>,
    }

    /// The lists are a oneof in TensorFlow's schema: a well-formed feature has one of them.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Feature {
        #[prost(message, optional, tag = "1")]
        pub bytes_list: Option<BytesList>,
        #[prost(message, optional, tag = "2")]
        pub float_list: Option<FloatList>,
        #[prost(message, optional, tag = "3")]
        pub int64_list: Option<Int64List>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BytesList {
        #[prost(bytes = "bytes", repeated, tag = "1")]
        pub value: Vec<Bytes>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FloatList {
        #[prost(float, repeated, tag = "1")]
        pub value: Vec<f32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Int64List {
        #[prost(int64, repeated, tag = "1")]
        pub value: Vec<i64>,
    }
}

#[cfg(test)]
mod tests {
    use super::schema::{BytesList, Example, Feature, Features, FloatList, Int64List};
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn example(features: Vec<(String, Feature)>) -> Bytes {
        let feature = features.into_iter().collect();
        Example { features: Some(Features { feature }) }.encode_to_vec().into()
    }

    fn bytes_of(values: Vec<Bytes>) -> Feature {
        Feature { bytes_list: Some(BytesList { value: values }), ..Feature::default() }
    }

    fn integers(values: Vec<i64>) -> Feature {
        Feature { int64_list: Some(Int64List { value: values }), ..Feature::default() }
    }

    /// A feature that occurs once.
    fn once(value: Value) -> Option<Found> {
        Some(Found { value, features: 1 })
    }

    #[test]
    fn the_first_value_of_each_wanted_feature_is_found() {
        let floats = Feature { float_list: Some(FloatList { value: vec![1.0; 9] }), ..Feature::default() };
        let example = example(vec![
            ("image".to_owned(), bytes_of(vec!["one".into(), "two".into()])),
            ("id".to_owned(), integers(vec![-7, 8])),
            ("none".to_owned(), bytes_of(Vec::new())),
            ("floats".to_owned(), floats),
        ]);
        let found = features(example.clone(), &["id", "image", "none", "floats", "missing"]).expect("sound");
        let expected =
            [Value::Integer(-7), Value::Bytes("one".into(), 2), Value::None, Value::None].map(once);
        assert_eq!(found, [&expected[..], &[None]].concat());
        assert_eq!(
            names(example.clone(), 3),
            Ok((["floats", "id", "image"].map(str::to_owned).into(), true))
        );
        assert!(!names(example, 4).expect("sound").1);
        // unpacked integers, a repeated entry, and an entry with two contents
        let one = [0x0a, 11, 0x0a, 9, 0x0a, 1, b'k', 0x12, 4, 0x1a, 2, 0x08, 5];
        let again = [0x0a, 11, 0x0a, 9, 0x0a, 1, b'k', 0x12, 4, 0x1a, 2, 0x08, 6];
        let both = Bytes::from([one, again].concat());
        let twice = Some(Found { value: Value::Integer(6), features: 2 });
        assert_eq!(features(both, &["k"]), Ok(vec![twice.clone()]));
        let two_contents = [
            &[0x0a, 17, 0x0a, 15, 0x0a, 1, b'k'][..],
            &[0x12, 4, 0x1a, 2, 0x08, 5, 0x12, 4, 0x1a, 2, 0x08, 6],
        ]
        .concat();
        assert_eq!(features(two_contents.into(), &["k"]), Ok(vec![twice]));
    }

    #[test]
    fn a_message_that_is_not_an_example_is_malformed() {
        for bytes in [&[0xff_u8; 20][..], &[0x08, 1], &[0x0a, 5, 0x0a], &[0x0a, 2, 0x08, 1], &[0x0b]] {
            features(Bytes::copy_from_slice(bytes), &["a"]).expect_err("malformed");
        }
    }

    proptest! {
        #[test]
        fn values_that_prost_encodes_are_found(
            values in proptest::collection::vec((any::<Option<Vec<u8>>>(), any::<Vec<i64>>()), 0..8),
        ) {
            let feature = |(bytes, integers): &(Option<Vec<u8>>, Vec<i64>)| match bytes {
                Some(bytes) => bytes_of(vec![bytes.clone().into(); 2]),
                None => self::integers(integers.clone()),
            };
            let all: Vec<_> = values.iter().enumerate().map(|(n, v)| (n.to_string(), feature(v))).collect();
            let encoded = example(all.clone());
            for (name, feature) in all {
                let bytes = feature.bytes_list.and_then(|list| list.value.first().cloned()).map(|first| Value::Bytes(first, 2));
                let integer = feature.int64_list.and_then(|list| list.value.first().copied());
                let expected = bytes.or(integer.map(Value::Integer)).unwrap_or(Value::None);
                prop_assert_eq!(features(encoded.clone(), &[&name]), Ok(vec![once(expected)]));
            }
        }
    }
}
