//! `_crashes/`: records on which a native decoder or a shard's reader has taken an attempt down.
//!
//! - One object for each, created by the attempt in its last moments. Its name says of which shard, in
//!   which version, at which record, with which signal and in which run, and whether the reader crashed; what
//!   is in it is for people.
//! - The next attempt rejects the record without decoding it, or ends the shard before it, so each crash costs
//!   one attempt at most.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::checkpoints::run_tag;
use super::names::part_name;
use super::output::{Output, json};
use crate::crash::Crash;
use crate::error::SinkError;
use crate::items::CrashNotes;
use crate::report::rfc3339;

/// Folder of notes, below the output.
pub(super) const CRASHES: &str = "_crashes";

/// What is in a note.
#[derive(Serialize)]
struct Note<'a> {
    shard: &'a str,
    record_index: u64,
    /// Absent if the shard's reader crashed.
    image_id: Option<&'a str>,
    signal: i32,
    sluice_version: &'static str,
    /// RFC 3339, UTC.
    noted_at: String,
}

/// What the name of a reader's note begins with.
const OF_READER: &str = "reader-";

/// Folder of the crash notes of a part.
pub(super) fn crash_folder(part: &str) -> String {
    let stem = part.trim_start_matches("predictions/").trim_end_matches(".parquet");
    format!("{CRASHES}/{stem}")
}

fn note_name(part: &str, crash: &Crash, run_id: &str) -> String {
    let Crash { record_index, signal, .. } = crash;
    let of = if crash.image_id.is_none() { OF_READER } else { "" };
    format!("{}/{of}{record_index:010}-{signal}-{}.json", crash_folder(part), run_tag(run_id))
}

/// The records of an output's notes, by the names of the parts they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crashes(HashMap<String, CrashNotes>);

impl Crashes {
    /// Of the objects with these names, those of the run `run_id`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>, run_id: &str) -> Self {
        let (mut found, run) = (Self::default(), run_tag(run_id));
        for name in names.into_iter().filter_map(|name| Name::parse(name)).filter(|name| name.run == run) {
            let notes = found.0.entry(name.part).or_default();
            let crash = (name.record_index, name.signal);
            if name.of_reader {
                notes.reader = Some(notes.reader.map_or(crash, |other| other.min(crash)));
            } else {
                notes.decoder.insert(name.record_index, name.signal);
            }
        }
        found
    }

    /// Crashes in the shard whose part is to be called `part`.
    pub fn in_shard(&self, part: &str) -> CrashNotes {
        self.0.get(part).cloned().unwrap_or_default()
    }
}

/// What the name of a note says.
struct Name<'a> {
    part: String,
    of_reader: bool,
    record_index: u64,
    signal: i32,
    run: &'a str,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (stem, file) = name.strip_prefix(CRASHES)?.strip_prefix('/')?.split_once('/')?;
        let reader = file.strip_prefix(OF_READER);
        let mut fields = reader.unwrap_or(file).strip_suffix(".json")?.splitn(3, '-');
        Some(Self {
            part: format!("predictions/{stem}.parquet"),
            of_reader: reader.is_some(),
            record_index: fields.next()?.parse().ok()?,
            signal: fields.next()?.parse().ok()?,
            run: fields.next()?,
        })
    }
}

impl Output {
    /// Note for the next attempt at the run that lies here that a decoder or a reader has crashed.
    pub fn note_crash(&self, crash: &Crash, run_id: &str) -> Result<(), SinkError> {
        let Crash { shard, record_index, image_id, signal } = crash;
        let note = Note {
            shard: &shard.name,
            record_index: *record_index,
            image_id: image_id.as_deref(),
            signal: *signal,
            sluice_version: env!("CARGO_PKG_VERSION"),
            noted_at: rfc3339(SystemTime::now()),
        };
        self.create(&note_name(&part_name(shard), crash, run_id), json(&note)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ShardContent, ShardFormat, ShardRef};
    use std::sync::Arc;

    #[test]
    fn a_notes_name_says_which_record_it_is_of() {
        let part = "predictions/part-000003-0123456789ab.parquet";
        let content = ShardContent::Objects(Vec::new());
        let shard = Arc::new(ShardRef::new(3, "a.tar", ShardFormat::Webdataset, content));
        let note = |record_index, image_id: Option<&str>| {
            let image_id = image_id.map(str::to_owned);
            let crash = Crash { shard: Arc::clone(&shard), record_index, image_id, signal: 11 };
            note_name(part, &crash, "run")
        };
        let odd = ["_crashes/x".to_owned(), "_crashes/part-0/a-b-c.json".to_owned()];
        let notes = [note(17, Some("a")), note(40, None), note(30, None), note(50, None)];
        let names = [&notes[..], &odd].concat();
        assert_eq!(Crashes::of(&names, "another run"), Crashes::default());
        let crashes = Crashes::of(&names, "run");
        let expected = CrashNotes { decoder: [(17, 11)].into(), reader: Some((30, 11)) };
        assert_eq!(crashes.in_shard(part), expected);
        assert_eq!(crashes.in_shard("predictions/part-000003-ba9876543210.parquet"), CrashNotes::default());
    }
}
