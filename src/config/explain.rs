//! Explains what is wrong with a pipeline file, in the README's terms rather than the parser's.
//!
//! - A message names the full key, its value, and what is expected.
//! - No message contains the name of a type, ours or the parser's.

use serde_path_to_error::{Path, Segment};
use toml::Value;

use crate::error::ConfigError;

/// Line and column, from 1, where a text is not valid TOML, and the reason.
pub(super) fn syntax(text: &str, error: &toml::de::Error) -> (usize, usize, String) {
    let at = error.span().map_or(text.len(), |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let column = 1 + String::from_utf8_lossy(&before[line_start..]).chars().count();
    let message = match error.message() {
        message if is_jargon(message) => "a value is out of range".to_owned(),
        message => message.replace('`', "\"").replace('\n', ", "),
    };
    (line, column, message)
}

/// The error for the value at `path` of `table`, from the parser's `message`.
pub(super) fn explain(table: &toml::Table, path: &Path, message: &str) -> ConfigError {
    let key = path.to_string();
    let key = if key == "." { String::new() } else { key };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return unknown_key(&key, rest);
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        let field = field.trim_matches('`');
        let key = if key.is_empty() { field.to_owned() } else { format!("{key}.{field}") };
        let example = example(&key).map(|example| format!("; for example {example}")).unwrap_or_default();
        return ConfigError::invalid(key, format!("is missing{example}"));
    }
    let found = value_at(table, path);
    let message = match (message.split_once("expected "), found) {
        (Some((what, expected)), found) if what.starts_with("invalid length") => match found {
            Some(Value::Array(list)) if expected.starts_with("an array") => {
                format!("has {} entries, expected {}", list.len(), number_in(expected))
            }
            found => format!("{}, expected {}", is_value(found), expected_value(&key, expected)),
        },
        (Some((_, expected)), found) => {
            format!("{}, expected {}", is_value(found), expected_value(&key, expected))
        }
        (None, found) => match message.rsplit_once("untagged enum ").and_then(|(_, name)| choices(name)) {
            Some(choices) => format!("{}, expected {choices}", is_value(found)),
            None if is_jargon(message) => format!("{} and cannot be used", is_value(found)),
            None => message.replace('`', "\""),
        },
    };
    ConfigError::invalid(if key.is_empty() { "pipeline file".to_owned() } else { key }, message)
}

/// The error if a section is not a table: the parser would take the entries of a list for its values.
pub(super) fn misplaced_section(table: &toml::Table, sections: &[&str]) -> Option<ConfigError> {
    let misplaced = |name: &&&str| table.get(**name).is_some_and(|value| !value.is_table());
    sections.iter().find(misplaced).map(|name| {
        let message = format!("{}, expected a section [{name}]", is_value(table.get(*name)));
        ConfigError::invalid(*name, message)
    })
}

/// The error for an unknown key, with the nearest known one. `listed` is the parser's list: the unknown key, then the
/// known ones, each in backticks.
fn unknown_key(path: &str, listed: &str) -> ConfigError {
    let mut names = listed.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    let nearest = names
        .map(|known| (strsim::damerau_levenshtein(known, unknown), known))
        .min()
        .map(|(_, known)| known.to_owned());
    let parent = path.strip_suffix(unknown).unwrap_or(path).trim_matches('.');
    let key = if parent.is_empty() { unknown.to_owned() } else { format!("{parent}.{unknown}") };
    ConfigError::UnknownKey { key, nearest }
}

fn value_at<'a>(table: &'a toml::Table, path: &Path) -> Option<&'a Value> {
    let mut segments = path.iter();
    let mut value = match segments.next()? {
        Segment::Map { key } => table.get(key)?,
        _ => return None,
    };
    for segment in segments {
        value = match segment {
            Segment::Map { key } => value.get(key)?,
            Segment::Seq { index } => value.get(*index)?,
            _ => return Some(value),
        };
    }
    Some(value)
}

/// A value as a predicate of its key: `is 3`.
fn is_value(value: Option<&Value>) -> String {
    match value {
        None => "is something else".to_owned(),
        Some(Value::String(text)) => format!("is {text:?}"),
        Some(Value::Array(_)) => "is a list".to_owned(),
        Some(Value::Table(_)) => "is a table".to_owned(),
        Some(number) => format!("is {number}"),
    }
}

/// What is expected of the value of `key`, from the parser's term for it.
fn expected_value(key: &str, expected: &str) -> String {
    let words = match expected.trim() {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "path string" => "a path",
        "a sequence" => "a list",
        expected if expected.starts_with("an array of length ") => {
            return format!("a list of {} numbers", number_in(expected));
        }
        expected if expected.starts_with("struct ") || expected.starts_with("struct") => {
            return match example(key) {
                Some(example) if example.starts_with('{') => format!("a table such as {example}"),
                _ if key.is_empty() => "sections of keys".to_owned(),
                _ => format!("a section [{key}]"),
            };
        }
        expected if expected.contains('`') => return one_of(expected),
        "string only" => "a string",
        expected if is_jargon(expected) => "another kind of value",
        expected => expected,
    };
    words.to_owned()
}

/// `a, b or c`, from the parser's "one of `a`, `b`, `c`".
fn one_of(listed: &str) -> String {
    let words: Vec<_> = listed.split('`').skip(1).step_by(2).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "another word".to_owned(),
    }
}

/// The choices for an untagged enum.
fn choices(name: &str) -> Option<&'static str> {
    match name {
        "OneOrMany" => Some("a URI or a list of URIs, each a string"),
        "Devices" => Some("\"all\" or a list of GPU numbers such as [0, 1]"),
        "LabelsSection" => Some("a list of class names, or the path of a file with one per line"),
        _ => None,
    }
}

fn example(key: &str) -> Option<&'static str> {
    match key {
        "name" => Some("name = \"safety\""),
        "preprocess" => Some("[preprocess] with resize = { width = 224, height = 224 }"),
        "preprocess.resize" | "preprocess.crop" => Some("{ width = 224, height = 224 }"),
        "model" => Some("[model] with path = \"model.onnx\""),
        "model.path" => Some("path = \"model.onnx\""),
        _ => None,
    }
}

/// The first number in `text`.
fn number_in(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty()).unwrap_or("another number")
}

/// Whether `text` has terms of the parser that mean nothing to the author of the file.
fn is_jargon(text: &str) -> bool {
    [
        "struct",
        "enum",
        "variant",
        "i128",
        "u128",
        "usize",
        "overflowed",
        "newtype",
        "tuple",
        "valid TOML value",
    ]
    .iter()
    .any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use toml::{Table, Value};

    use super::super::{Devices, LabelsSection, OneOrMany, PipelineFile, Size};

    fn load(table: Table) -> Result<PipelineFile, String> {
        PipelineFile::from_table(table).map_err(|error| error.to_string())
    }

    /// A file that sets every key.
    fn everything() -> Table {
        let text = r#"
            name = "t"
            [preprocess]
            resize = { width = 8, height = 8 }
            [model]
            path = "m.onnx"
        "#;
        let mut file = load(text.parse().expect("TOML")).expect("valid");
        file.input.uri = OneOrMany::One("in".to_owned());
        file.input.image_key = Some("image".to_owned());
        file.input.id_key = Some("id".to_owned());
        file.preprocess.crop = Some(Size { width: 8, height: 8 });
        file.preprocess.background = Some([1, 2, 3]);
        file.preprocess.jpeg_round_trip = Some(75);
        file.model.labels = Some(LabelsSection::Inline(vec!["a".to_owned()]));
        file.engine.devices = Devices::List(vec![0]);
        Table::try_from(&file).expect("a table")
    }

    /// Paths of every value, sections and entries of lists included.
    fn paths(at: &[String], value: &Value, found: &mut Vec<Vec<String>>) {
        let below: Vec<(String, &Value)> = match value {
            Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
            Value::Array(list) => list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
            _ => Vec::new(),
        };
        for (key, value) in below {
            let path = [at, &[key]].concat();
            found.push(path.clone());
            paths(&path, value, found);
        }
    }

    fn place<'a>(value: &'a mut Value, path: &[String]) -> &'a mut Value {
        path.iter().fold(value, |value, key| match value {
            Value::Table(table) => table.get_mut(key).expect("a key"),
            Value::Array(list) => &mut list[key.parse::<usize>().expect("an index")],
            _ => panic!("{key} goes through a plain value"),
        })
    }

    fn assert_plain(message: &str, what: &str) {
        for jargon in
            ["struct", "enum", "variant", "usize", "u32", "f64", "untagged", "`", "overflow", "field", "::"]
        {
            assert!(!message.contains(jargon), "{what}: {message}");
        }
    }

    #[test]
    fn no_error_about_a_wrong_value_contains_a_term_of_the_parser() {
        let whole = Value::Table(everything());
        let mut all = Vec::new();
        paths(&[], &whole, &mut all);
        assert!(all.len() > 40, "{all:?}");
        let wrong = [
            Value::String("what?".to_owned()),
            Value::Integer(-3),
            Value::Integer(i64::MAX),
            Value::Float(2.5),
            Value::Boolean(true),
            Value::Array(Vec::new()),
            Value::Array(vec![Value::Boolean(true); 5]),
            Value::Table(Table::new()),
            Value::Table(Table::from_iter([("a".to_owned(), Value::Integer(1))])),
            Value::Datetime("1979-05-27".parse().expect("a date")),
        ];
        let mut refused = 0;
        for path in &all {
            for value in &wrong {
                let mut table = whole.clone();
                *place(&mut table, path) = value.clone();
                let Value::Table(table) = table else { unreachable!("it began as one") };
                if let Err(message) = load(table) {
                    refused += 1;
                    assert_plain(&message, &format!("{path:?} = {value}"));
                    let last = path.iter().rfind(|key| key.parse::<usize>().is_err()).expect("a key");
                    assert!(message.contains(last.as_str()), "{path:?} = {value}: {message}");
                }
            }
        }
        assert!(refused > 300, "{refused}");
    }

    #[test]
    fn a_missing_key_is_named() {
        for (section, key, message) in [
            ("", "name", "name: is missing; for example name = \"safety\""),
            ("", "model", "model: is missing; for example [model] with path = \"model.onnx\""),
            (
                "preprocess",
                "resize",
                "preprocess.resize: is missing; for example { width = 224, height = 224 }",
            ),
            ("model", "path", "model.path: is missing; for example path = \"model.onnx\""),
        ] {
            let mut table = everything();
            let section = match section {
                "" => &mut table,
                section => table[section].as_table_mut().expect("a section"),
            };
            section.remove(key);
            assert_eq!(load(table).expect_err(key), message);
        }
    }

    #[test]
    fn a_wrong_value_is_shown_with_the_expected_one() {
        for (path, value, message) in [
            (
                "preprocess.resize",
                "3",
                "preprocess.resize: is 3, expected a table such as { width = 224, height = 224 }",
            ),
            ("preprocess.mean", "[1, 2]", "preprocess.mean: has 2 entries, expected 3"),
            (
                "preprocess.resize.width",
                "-1",
                "preprocess.resize.width: is -1, expected a whole number from 0 to 4294967295",
            ),
            (
                "preprocess.background",
                "[1, 2, 300]",
                "preprocess.background[2]: is 300, expected a whole number from 0 to 255",
            ),
            ("engine.kind", "'trt'", "engine.kind: is \"trt\", expected onnxruntime or tensorrt"),
            (
                "engine.devices",
                "'some'",
                "engine.devices: is \"some\", expected \"all\" or a list of GPU numbers such as [0, 1]",
            ),
            ("input.uri", "[1]", "input.uri: is a list, expected a URI or a list of URIs, each a string"),
            ("engine.batch_size", "2.5", "engine.batch_size: is 2.5, expected a whole number, 0 or more"),
            ("preprocess.layout", "3", "preprocess.layout: is 3, expected a string"),
            ("engine.tf32", "1", "engine.tf32: is 1, expected true or false"),
            ("engine", "[]", "engine: is a list, expected a section [engine]"),
        ] {
            let mut table = everything();
            super::super::apply_set(&mut table, &format!("{path}={value}")).expect("a path");
            assert_eq!(load(table).expect_err(path), message);
        }
    }

    #[test]
    fn a_syntax_error_has_its_line_and_column() {
        for (text, line, column, words) in [
            ("name = \n", 1, 8, "expected"),
            ("name = 'a'\nname = 'b'\n", 2, 1, "duplicate key"),
            ("a = 'ü'\n[b\n", 2, 3, "expected \"]\""),
            ("[a]\nwidth = 99999999999999999999\n", 2, 9, "a value is out of range"),
        ] {
            let error = toml::from_str::<Table>(text).expect_err(text);
            let found = super::syntax(text, &error);
            assert_eq!((found.0, found.1), (line, column), "{text:?}: {found:?}");
            assert!(found.2.contains(words) && !found.2.contains('\n'), "{found:?}");
        }
    }
}
