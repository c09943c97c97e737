//! Manifests: a list of loose images.
//!
//! Comes in: lines of text, one URI each, or JSONL objects with `uri` and optionally `id`; both
//! may be mixed. Blank lines and lines that start with `#` are skipped. Goes out: entries, one at
//! a time, each with its line number.
//!
//! - A relative URI starts at the manifest's own folder.
//! - A line that cannot be understood is an error that names it: a manifest is the operator's
//!   file, not data.

use std::io::{BufRead, Read};

use serde::Deserialize;

use crate::error::SourceError;
use crate::items::{ManifestEntry, ObjectRef};
use crate::shown::{looks_like_uri, without_secrets};

/// Longest line, bytes: several times the longest object name of any store, and short enough that
/// a file that is no text at all is refused before it is taken into memory.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The entries of one manifest.
pub(super) struct ManifestEntries<R> {
    reader: R,
    uri: String,
    line: Vec<u8>,
    line_number: u64,
}

#[derive(Deserialize)]
struct JsonLine {
    uri: String,
    id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(i64),
}

impl<R: BufRead> ManifestEntries<R> {
    /// `uri` is the manifest's own.
    pub fn new(reader: R, uri: String) -> Self {
        Self { reader, uri, line: Vec::new(), line_number: 0 }
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
            if !text.is_empty() && !text.starts_with('#') {
                return self.entry(text).map(|entry| Some((self.line_number, entry)));
            }
        }
    }

    fn entry(&self, text: &str) -> Result<ManifestEntry, SourceError> {
        let (uri, id) = if text.starts_with('{') {
            let line: JsonLine =
                serde_json::from_str(text).map_err(|error| self.error(&error.to_string()))?;
            (line.uri, line.id)
        } else {
            (text.to_owned(), None)
        };
        if uri.is_empty() {
            return Err(self.error("names no uri"));
        }
        let uri = self.absolute(uri);
        let image_id = match id {
            Some(Id::Text(text)) => text,
            Some(Id::Number(number)) => number.to_string(),
            None => without_secrets(&uri).into_owned(),
        };
        Ok(ManifestEntry { object: ObjectRef { uri, size_bytes: None, version: None }, image_id })
    }

    fn absolute(&self, uri: String) -> String {
        if uri.starts_with('/') || uri.contains("://") || looks_like_uri(&uri) {
            return uri;
        }
        let folder = self.uri.rfind('/').map_or("", |slash| &self.uri[..=slash]);
        format!("{folder}{uri}")
    }

    fn error(&self, message: &str) -> SourceError {
        SourceError::Uri { uri: self.uri.clone(), message: format!("line {} {message}", self.line_number) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Vec<(u64, String, String)>, SourceError> {
        let mut entries = ManifestEntries::new(text, "gs://b/lists/today.txt".to_owned());
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
    fn a_line_that_cannot_be_understood_is_named() {
        let long = [b"a.jpg\n".to_vec(), vec![b'x'; 70_000]].concat();
        let cases: [(&[u8], &str); 5] = [
            (b"a.jpg\n{\"url\": \"b.jpg\"}", "line 2 missing field `uri`"),
            (b"a.jpg\n\n{oops", "line 3 "),
            (b"a.jpg\n\xff\xfe", "line 2 is not UTF-8"),
            (b"{\"uri\": \"\"}", "line 1 names no uri"),
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
