//! Beam's own examples of its encodings, which its Python package contains.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value as Json;

use super::coder::{Coder, CoderError, Window};
use super::decode::Problem;
use super::decode::{Context, decode_whole};
use super::encode::encode;
use super::*;
use crate::beam::{proto::pipeline, urns};

/// Prints the file as JSON.
const TO_JSON: &str = "
import importlib.util, json, pathlib, yaml
package = pathlib.Path(importlib.util.find_spec('apache_beam').origin).parent
text = (package / 'portability/api/standard_coders.yaml').read_text(encoding='utf-8')
print(json.dumps(list(yaml.safe_load_all(text))))
";

/// Examples of one coder.
#[derive(Debug, Deserialize)]
struct Section {
    coder: Spec,
    /// Both contexts if it is missing.
    nested: Option<bool>,
    /// Values by encoded bytes, one character a byte.
    examples: BTreeMap<String, Json>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    urn: String,
    #[serde(default)]
    components: Vec<Spec>,
    #[serde(default)]
    non_deterministic: bool,
}

impl Section {
    fn contexts(&self) -> &'static [Context] {
        match self.nested {
            Some(true) => &[Context::Nested],
            Some(false) => &[Context::Outer],
            None => &[Context::Nested, Context::Outer],
        }
    }
}

fn sections() -> Vec<Section> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/beam/python/bin/python");
    let output =
        Command::new(&python).args(["-c", TO_JSON]).output().expect("scripts/setup.sh --with beam-python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the sections of the file")
}

/// Add the coder and its components to `coders`.
fn describe(spec: &Spec, coders: &mut HashMap<String, pipeline::Coder>) -> String {
    let component_coder_ids = spec.components.iter().map(|spec| describe(spec, coders)).collect();
    let id = format!("c{}", coders.len());
    let function = pipeline::FunctionSpec { urn: spec.urn.clone(), payload: Vec::new() };
    coders.insert(id.clone(), pipeline::Coder { spec: Some(function), component_coder_ids });
    id
}

/// The bytes that the characters of a text stand for.
fn latin_1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).expect("a character of one byte")).collect()
}

fn varint(number: i64) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&Value::Varint(number), &Coder::Varint, Context::Outer, &mut out).expect("an integer");
    out
}

/// A timestamp in milliseconds.
fn timestamp(json: &Json) -> [u8; 8] {
    (json.as_i64().expect("milliseconds").cast_unsigned() ^ 1 << 63).to_be_bytes()
}

fn window(json: &Json, window: Window) -> Vec<u8> {
    match window {
        Window::Global => Vec::new(),
        Window::Interval => {
            [&timestamp(&json["end"])[..], &varint(json["span"].as_i64().expect("milliseconds"))].concat()
        }
    }
}

/// The value that `json` describes.
fn value(json: &Json, coder: &Coder) -> Value {
    match coder {
        Coder::Bytes => Value::Bytes(latin_1(json.as_str().expect("a text")).into()),
        Coder::String => Value::String(json.as_str().expect("a text").to_owned()),
        Coder::Varint => Value::Varint(json.as_i64().expect("an integer")),
        Coder::Kv(key, of) => Value::Pair(value(&json["key"], key).into(), value(&json["value"], of).into()),
        Coder::Iterable(item) => {
            Value::Iterable(json.as_array().expect("a list").iter().map(|json| value(json, item)).collect())
        }
        Coder::LengthPrefix(inner) => value(json, inner),
        Coder::Nullable(_) if json.is_null() => Value::Optional(None),
        Coder::Nullable(inner) => Value::Optional(Some(value(json, inner).into())),
        Coder::Window(kind) => Value::Bytes(window(json, *kind).into()),
    }
}

/// The header that `json` describes.
fn header(json: &Json, kind: Window) -> Bytes {
    let pane = serde_json::json!({
        "is_first": true, "is_last": true, "timing": "UNKNOWN", "index": 0, "on_time_index": 0,
    });
    assert_eq!(json["pane"], pane);
    let windows = json["windows"].as_array().expect("a list");
    let count = i32::try_from(windows.len()).expect("few windows").to_be_bytes();
    let mut header = [&timestamp(&json["timestamp"])[..], &count].concat();
    header.extend(windows.iter().flat_map(|json| window(json, kind)));
    header.push(0x0f);
    header.into()
}

fn check_value(section: &Section, coder: &Arc<Coder>, context: Context, encoded: &[u8], json: &Json) {
    let value = value(json, coder);
    assert_eq!(decode_whole(coder, context, encoded), Ok(value.clone()), "{encoded:?}");
    if !section.coder.non_deterministic {
        let mut out = Vec::new();
        encode(&value, coder, context, &mut out).expect("the value fits");
        assert_eq!(out, encoded, "{value:?}");
    }
}

fn check_element(coder: &ElementCoder, encoded: &[u8], json: &Json) {
    let element = Element { header: header(json, coder.window), value: value(&json["value"], &coder.value) };
    let mut decoder = ElementDecoder::new(coder.clone());
    decoder.push(encoded);
    assert_eq!(decoder.next_element(), Ok(Some(element.clone())));
    assert_eq!(decoder.finish(), Ok(()));
    let mut out = Vec::new();
    encode_element(&element.header, &element.value, coder, &mut out).expect("the value fits");
    assert_eq!(out, encoded);
}

#[test]
#[ignore = "needs scripts/setup.sh --with beam-python"]
fn the_examples_of_beam_are_decoded_and_encoded() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut state_backed = 0;
    let mut unsupported = BTreeSet::new();
    let sections = sections();
    for section in &sections {
        let mut coders = HashMap::new();
        let id = describe(&section.coder, &mut coders);
        let urn = section.coder.urn.as_str();
        if urn == urns::WINDOWED_VALUE {
            let coder = ElementCoder::resolve(&coders, &id).expect("supported");
            for (encoded, json) in &section.examples {
                check_element(&coder, &latin_1(encoded), json);
                *seen.entry(urn).or_default() += 1;
            }
            continue;
        }
        let coder = match Coder::resolve(&coders, &id) {
            Ok(coder) => Arc::new(coder),
            Err(CoderError::Unsupported { urn, .. }) => {
                unsupported.insert(urn);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        for &context in section.contexts() {
            for (encoded, json) in &section.examples {
                let encoded = latin_1(encoded);
                if encoded.ends_with(b"Suffix") {
                    assert_eq!(decode_whole(&coder, context, &encoded), Err(Problem::StateBacked));
                    state_backed += 1;
                } else {
                    check_value(section, &coder, context, &encoded, json);
                    *seen.entry(urn).or_default() += 1;
                }
            }
        }
    }

    let expected = [
        (urns::BYTES, 5),
        (urns::STRING, 9),
        (urns::VARINT, 14),
        (urns::KV, 8),
        (urns::ITERABLE, 22),
        (urns::STATE_BACKED_ITERABLE, 24),
        (urns::NULLABLE, 3),
        (urns::GLOBAL_WINDOW, 2),
        (urns::INTERVAL_WINDOW, 8),
        (urns::WINDOWED_VALUE, 3),
    ];
    assert_eq!(seen, BTreeMap::from(expected));
    assert_eq!(state_backed, 8);
    let others = ["bool", "custom_window", "double", "param_windowed_value", "row", "sharded_key", "timer"];
    assert_eq!(unsupported, BTreeSet::from(others.map(|name| format!("beam:coder:{name}:v1"))));
}
