//! Replaces invalid and missing dates and sizes in a page of a listing.
//!
//! Because of a single one, `object_store` refuses the whole page, and the input cannot be listed. An input needs no
//! dates, and the size of an object can be looked up when it is read.
//!
//! - Only listings of inputs are mended ([`MendEntries`]): the dates in listings of outputs are used.
//! - An invalid date becomes the start of Unix time, an invalid size [`UNKNOWN_BYTES`].

use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime, Utc};

/// Marks a request for a listing whose dates do not matter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MendEntries;

/// The size of an object whose size the listing does not state.
pub(crate) const UNKNOWN_BYTES: u64 = u64::MAX;

/// An element of each entry that `object_store` requires.
struct Field {
    name: &'static str,
    is_sound: fn(&str) -> bool,
    replacement: &'static str,
}

const SIZE: &str = "18446744073709551615";

/// The path of the entries of a page, and their fields.
pub(super) struct Entries {
    path: &'static [&'static str],
    fields: [Field; 2],
}

/// The entries of S3 and Google.
pub(super) const OF_S3: Entries = Entries {
    path: &["ListBucketResult", "Contents"],
    fields: [
        Field {
            name: "LastModified",
            is_sound: |text| text.parse::<DateTime<Utc>>().is_ok(),
            replacement: "1970-01-01T00:00:00Z",
        },
        Field { name: "Size", is_sound: |text| text.parse::<u64>().is_ok(), replacement: SIZE },
    ],
};

pub(super) const OF_AZURE: Entries = Entries {
    path: &["EnumerationResults", "Blobs", "Blob", "Properties"],
    fields: [
        Field {
            name: "Last-Modified",
            is_sound: |text| NaiveDateTime::parse_from_str(text, "%a, %d %h %Y %T GMT").is_ok(),
            replacement: "Thu, 01 Jan 1970 00:00:00 GMT",
        },
        Field { name: "Content-Length", is_sound: |text| text.parse::<u64>().is_ok(), replacement: SIZE },
    ],
};

/// The edits of a page, collected while it is parsed. Positions are offsets in its bytes.
pub(super) struct Mending {
    entries: Entries,
    /// Which fields the current entry has had so far.
    seen: [bool; 2],
    /// The field that is being parsed, and the offset at which its text begins.
    open: Option<(usize, usize)>,
    text: Vec<u8>,
    edits: Vec<(Range<usize>, String)>,
}

impl Mending {
    pub fn new(entries: Entries) -> Self {
        Self { entries, seen: [false; 2], open: None, text: Vec::new(), edits: Vec::new() }
    }

    fn is_entry(&self, path: &[String]) -> bool {
        path.iter().eq(self.entries.path)
    }

    fn field(&self, path: &[String]) -> Option<usize> {
        let (name, within) = path.split_last()?;
        let field = self.entries.fields.iter().position(|field| field.name == name)?;
        self.is_entry(within).then_some(field)
    }

    /// The last element of `path` begins; its content starts at `content`.
    pub fn begins(&mut self, path: &[String], content: usize) {
        if self.is_entry(path) {
            self.seen = [false; 2];
        } else if let Some(field) = self.field(path) {
            self.seen[field] = true;
            self.open = Some((field, content));
            self.text.clear();
        }
    }

    pub fn text(&mut self, text: &[u8]) {
        if self.open.is_some() {
            self.text.extend_from_slice(text);
        }
    }

    /// The last element of `path` ends; its content ended at `content`.
    pub fn ends(&mut self, path: &[String], content: usize) {
        let fields = &self.entries.fields;
        if self.is_entry(path) {
            let missing = fields.iter().zip(self.seen).filter(|(_, seen)| !seen);
            let missing: String = missing.map(|(field, _)| field.element()).collect();
            if !missing.is_empty() {
                self.edits.push((content..content, missing));
            }
        } else if let (Some(field), Some((open, start))) = (self.field(path), self.open)
            && field == open
        {
            let Field { is_sound, replacement, .. } = fields[field];
            if !std::str::from_utf8(&self.text).is_ok_and(is_sound) {
                self.edits.push((start..content, replacement.to_owned()));
            }
            self.open = None;
        }
    }

    /// The last element of `path` is empty; `at` is its position.
    pub fn empty(&mut self, path: &[String], at: Range<usize>) {
        if let Some(field) = self.field(path) {
            self.seen[field] = true;
            self.edits.push((at, self.entries.fields[field].element()));
        }
    }

    /// The page with all edits applied.
    pub fn mended(self, page: Bytes) -> Bytes {
        if self.edits.is_empty() {
            return page;
        }
        let (mut mended, mut at) = (Vec::with_capacity(page.len()), 0);
        for (range, replacement) in self.edits {
            mended.extend_from_slice(&page[at..range.start]);
            mended.extend_from_slice(replacement.as_bytes());
            at = range.end;
        }
        mended.extend_from_slice(&page[at..]);
        mended.into()
    }
}

impl Field {
    fn element(&self) -> String {
        format!("<{0}>{1}</{0}>", self.name, self.replacement)
    }
}
