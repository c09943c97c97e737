//! Manifests: a list of loose images.
//!
//! Input: lines of text, one URI each, or JSONL objects with `uri` and optionally `id`; both
//! may be mixed. Blank lines are skipped, and so are comments, which begin with `#` and a space; comments are counted.
//! Output: entries, one at a time, each with its line number.
//!
//! - `#1.jpg` is a name, not a comment.
//! - A relative URI starts at the manifest's own folder.
//! - A line that cannot be parsed ends the listing with an error that names it: a manifest is the operator's file, not
//!   data.

use std::fmt;
use std::io::{BufRead, Read};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::SourceError;
use crate::items::{ManifestEntry, ObjectRef};
use crate::shown::{looks_like_uri, without_secrets};

use super::naming;
use super::skips::Skips;
use crate::store::escaped;

/// Longest line, bytes: several times the longest object name of any store, and short enough that
/// a file that is not text is refused before it is read into memory.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The entries of one manifest.
pub(super) struct ManifestEntries<R> {
    reader: R,
    uri: String,
    /// Where comments are counted.
    skips: Skips,
    line: Vec<u8>,
    line_number: u64,
}

impl<R: BufRead> ManifestEntries<R> {
    /// `uri` is the URI of the manifest itself.
    pub fn new(reader: R, uri: String, skips: Skips) -> Self {
        Self { reader, uri, skips, line: Vec::new(), line_number: 0 }
    }

    /// The next entry and its line number, from 1; `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<(u64, ManifestEntry)>, SourceError> {
        loop {
            self.line.clear();
            let limited = self.reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.line);
            self.line_number += 1;
            if limited.map_err(|error| self.error(&error.to_string()))? == 0 {
                return Ok(None);
            }
            if self.line.len() as u64 > LINE_BYTES_MAX {
                return Err(self.error(&format!("is longer than {LINE_BYTES_MAX} bytes")));
            }
            let text = std::str::from_utf8(&self.line).map_err(|_| self.error("is not UTF-8"))?;
            let text = text.trim_start_matches('\u{feff}').trim();
            if is_comment(text) {
                self.skips.add(naming::COMMENT, text);
            } else if !text.is_empty() {
                return self.entry(text).map(|entry| Some((self.line_number, entry)));
            }
        }
    }

    fn entry(&self, text: &str) -> Result<ManifestEntry, SourceError> {
        let (uri, id) = if text.starts_with('{') { self.json(text)? } else { (text.to_owned(), None) };
        if uri.is_empty() {
            return Err(self.error("has an empty uri"));
        }
        let uri = self.absolute(uri);
        let image_id = id.unwrap_or_else(|| escaped(without_secrets(&uri).as_bytes()));
        Ok(ManifestEntry::new(ObjectRef { uri, size_bytes: None, version: None }, image_id))
    }

    /// `uri` and `id` of a JSON object; other fields are ignored.
    fn json(&self, text: &str) -> Result<(String, Option<String>), SourceError> {
        let Fields(line) = serde_json::from_str(text).map_err(|error| {
            self.error(&format!("is not a valid JSON object (column {})", error.column()))
        })?;
        for key in ["uri", "id"] {
            if line.iter().filter(|(name, _)| name == key).count() > 1 {
                return Err(self.error(&format!("has more than one {key}")));
            }
        }
        let value = |key| {
            let (_, raw) = line.iter().find(|(name, _)| name == key)?;
            Some((raw.get(), raw.get().as_bytes()[0]))
        };
        let string =
            |raw| serde_json::from_str(raw).map_err(|_| self.error("holds a string that is not Unicode"));
        let uri = match value("uri") {
            Some((raw, b'"')) => string(raw)?,
            Some(_) => return Err(self.error("has a uri that is not a string")),
            None => return Err(self.error("has no uri")),
        };
        let id = match value("id") {
            None | Some((_, b'n')) => None,
            Some((raw, b'"')) => Some(string(raw)?),
            Some((_, b'[' | b'{')) => {
                return Err(self.error("has an id that is neither a string nor a number"));
            }
            // as written: ids may have more digits than any number type holds
            Some((number_or_bool, _)) => Some(number_or_bool.to_owned()),
        };
        Ok((uri, id))
    }

    fn absolute(&self, uri: String) -> String {
        if uri.starts_with('/') || uri.contains("://") || looks_like_uri(&uri) {
            return uri;
        }
        let folder = naming::without_query(&self.uri).rfind('/').map_or("", |slash| &self.uri[..=slash]);
        format!("{folder}{uri}")
    }

    fn error(&self, message: &str) -> SourceError {
        SourceError::Uri { uri: self.uri.clone(), message: format!("line {} {message}", self.line_number) }
    }
}

/// Whether a line is a comment: `# …`, `#` alone or `## …`.
fn is_comment(line: &str) -> bool {
    line.starts_with('#') && line.trim_start_matches('#').chars().next().is_none_or(char::is_whitespace)
}

/// The fields of a JSON object as written, repeated ones included.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Vec<(u64, String, String)>, SourceError> {
        let mut entries = ManifestEntries::new(text, "gs://b/lists/today.txt".to_owned(), Skips::default());
        let mut found = Vec::new();
        while let Some((line, entry)) = entries.next_entry()? {
            found.push((line, entry.object.uri, entry.image_id));
        }
        Ok(found)
    }

    #[test]
    fn lines_of_text_and_json_become_entries() {
        let text = "\u{feff}# photos\n\na b.jpg\r\ns3://x/y.png\n/data/z.gif\n\
                    {\"uri\": \"c.jpg\", \"id\": \"C\", \"label\": 3}\n{\"uri\":\"d.jpg\",\"id\":7}\n{\"uri\":\"e.jpg\"}";
        let found = read(text.as_bytes()).expect("valid");
        let expected = [
            (3, "gs://b/lists/a b.jpg", "gs://b/lists/a b.jpg"),
            (4, "s3://x/y.png", "s3://x/y.png"),
            (5, "/data/z.gif", "/data/z.gif"),
            (6, "gs://b/lists/c.jpg", "C"),
            (7, "gs://b/lists/d.jpg", "7"),
            (8, "gs://b/lists/e.jpg", "gs://b/lists/e.jpg"),
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(n, uri, id)| (n, uri.to_owned(), id.to_owned())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ids_are_kept_as_they_are_written() {
        let text = "{\"uri\":\"a\",\"id\":18446744073709551615}\n{\"uri\":\"b\",\"id\":-7}\n{\"uri\":\"c\",\"id\":null}\n\
                    {\"uri\":\"d\",\"id\":true}\n{\"uri\":\"e\",\"id\":\"01\"}";
        let ids: Vec<_> = read(text.as_bytes()).expect("valid").into_iter().map(|(_, _, id)| id).collect();
        assert_eq!(ids, ["18446744073709551615", "-7", "gs://b/lists/c", "true", "01"]);
    }

    #[test]
    fn a_comment_begins_with_a_hash_and_a_blank_and_is_counted() {
        let text = "# one\n#1.jpg\n#\n## two\n#\tthree\n##.jpg\n";
        let skips = Skips::default();
        let mut entries = ManifestEntries::new(text.as_bytes(), "l/a.txt".to_owned(), skips.clone());
        let next = |entries: &mut ManifestEntries<_>| {
            entries.next_entry().expect("valid").map(|(line, entry)| (line, entry.object.uri))
        };
        assert_eq!(next(&mut entries), Some((2, "l/#1.jpg".to_owned())));
        assert_eq!(next(&mut entries), Some((6, "l/##.jpg".to_owned())));
        assert_eq!(next(&mut entries), None);
        assert_eq!(skips.counts().of(naming::COMMENT), 4);
    }

    #[test]
    fn a_line_that_cannot_be_understood_is_named() {
        let long = [b"a.jpg\n".to_vec(), vec![b'x'; 70_000]].concat();
        let cases: [(&[u8], &str); 10] = [
            (b"a.jpg\n{\"url\": \"b.jpg\"}", "line 2 has no uri"),
            (b"{\"uri\": \"a.jpg\", \"uri\": \"b.jpg\"}", "line 1 has more than one uri"),
            (b"{\"uri\": \"a.jpg\", \"id\": 1, \"id\": 1}", "line 1 has more than one id"),
            (b"{\"uri\": 7}", "line 1 has a uri that is not a string"),
            (b"{\"uri\": \"\\ud800\"}", "line 1 holds a string that is not Unicode"),
            (b"{\"uri\": \"a\", \"id\": []}", "an id that is neither a string nor a number"),
            (b"a.jpg\n\n{oops", "line 3 is not a valid JSON object (column "),
            (b"a.jpg\n\xff\xfe", "line 2 is not UTF-8"),
            (b"{\"uri\": \"\"}", "line 1 has an empty uri"),
            (&long, "line 2 is longer than 65536 bytes"),
        ];
        for (text, expected) in cases {
            let message = read(text).expect_err(expected).to_string();
            assert!(message.starts_with("input gs://b/lists/today.txt: "), "{message}");
            assert!(message.contains(expected), "{message}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&text);
        }
    }
}
