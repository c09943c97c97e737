//! `_crashes/`: records on which a native decoder has taken an attempt down.
//!
//! - One object for each, created by the attempt in its last moments. Its name says of which shard, in
//!   which version, at which record, with which signal and in which run; what is in it is for people.
//! - The next attempt rejects the record without decoding it, so each crash costs one attempt at most.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde::Serialize;

use super::checkpoint::run_tag;
use super::output::{Output, json};
use super::stored::part_name;
use crate::decode::Crash;
use crate::error::SinkError;
use crate::report::rfc3339;

/// Folder of notes, below the output.
pub(super) const CRASHES: &str = "_crashes";

/// What is in a note.
#[derive(Serialize)]
struct Note<'a> {
    shard: &'a str,
    record_index: u64,
    image_id: &'a str,
    signal: i32,
    sluice_version: &'static str,
    /// RFC 3339, UTC.
    noted_at: String,
}

fn note_name(part: &str, record_index: u64, signal: i32, run_id: &str) -> String {
    let stem = part.trim_start_matches("predictions/").trim_end_matches(".parquet");
    format!("{CRASHES}/{stem}/{record_index:010}-{signal}-{}.json", run_tag(run_id))
}

/// The records of an output's notes, by the names of the parts they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crashes(HashMap<String, BTreeMap<u64, i32>>);

impl Crashes {
    /// Of the objects with these names, those of the run `run_id`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>, run_id: &str) -> Self {
        let (mut found, run) = (Self::default(), run_tag(run_id));
        for (part, record_index, signal, of) in names.into_iter().filter_map(|name| parse(name)) {
            if of == run {
                found.0.entry(part).or_default().insert(record_index, signal);
            }
        }
        found
    }

    /// Signals by the records of the shard whose part is to be called `part`.
    pub fn in_shard(&self, part: &str) -> BTreeMap<u64, i32> {
        self.0.get(part).cloned().unwrap_or_default()
    }
}

fn parse(name: &str) -> Option<(String, u64, i32, &str)> {
    let (stem, file) = name.strip_prefix(CRASHES)?.strip_prefix('/')?.split_once('/')?;
    let mut fields = file.strip_suffix(".json")?.splitn(3, '-');
    let (record_index, signal) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((format!("predictions/{stem}.parquet"), record_index, signal, fields.next()?))
}

impl Output {
    /// Note for the next attempt at the run that lies here that a decoder has crashed.
    pub fn note_crash(&self, crash: &Crash, run_id: &str) -> Result<(), SinkError> {
        let Crash { shard, record_index, image_id, signal } = crash;
        let note = Note {
            shard: &shard.name,
            record_index: *record_index,
            image_id,
            signal: *signal,
            sluice_version: env!("CARGO_PKG_VERSION"),
            noted_at: rfc3339(SystemTime::now()),
        };
        self.create(&note_name(&part_name(shard), *record_index, *signal, run_id), json(&note)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notes_name_says_which_record_it_is_of() {
        let part = "predictions/part-000003-0123456789ab.parquet";
        let note = note_name(part, 17, 11, "run");
        let names = [note, "_crashes/x".to_owned(), "_crashes/part-0/a-b-c.json".to_owned()];
        assert_eq!(Crashes::of(&names, "another run"), Crashes::default());
        let crashes = Crashes::of(&names, "run");
        assert_eq!(crashes.in_shard(part), [(17, 11)].into());
        assert!(crashes.in_shard("predictions/part-000003-ba9876543210.parquet").is_empty());
    }
}
