//! `_crashes/`: records on which a native decoder or a shard's reader crashed the process.
//!
//! - One object for each crash, created by the process before it dies. Its name has the shard, its version, the record,
//!   the signal, the run, and whether the reader crashed. Its content is for people.
//! - The next attempt rejects the record without decoding it, or ends the shard before it, so each crash costs at most
//!   one attempt.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::names::{CrashName, ObjectName, PartName, run_tag};
use super::output::{Output, json};
use crate::crash::Crash;
use crate::error::SinkError;
use crate::items::CrashNotes;
use crate::report::rfc3339;

/// The content of a note.
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

fn note_name(crash: &Crash, run_id: &str) -> String {
    ObjectName::Crash(CrashName {
        part: PartName::of(&crash.shard),
        of_reader: crash.image_id.is_none(),
        record_index: crash.record_index,
        signal: crash.signal,
        run: run_tag(run_id),
    })
    .to_string()
}

/// Crashed records, by the names of the parts they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crashes(HashMap<String, CrashNotes>);

impl Crashes {
    /// The crashes of the run `run_id` among the objects `names`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>, run_id: &str) -> Self {
        let (mut found, run) = (Self::default(), run_tag(run_id));
        for name in names {
            let Some(ObjectName::Crash(name)) = ObjectName::parse(name) else { continue };
            if name.run != run {
                continue;
            }
            let notes = found.0.entry(name.part.to_string()).or_default();
            if name.of_reader {
                let crash = (name.record_index, name.signal);
                notes.reader = Some(notes.reader.map_or(crash, |other| other.min(crash)));
            } else {
                notes.decoder.insert(name.record_index, name.signal);
            }
        }
        found
    }

    /// Crashes in the shard whose part is called `part`.
    pub fn in_shard(&self, part: &str) -> CrashNotes {
        self.0.get(part).cloned().unwrap_or_default()
    }
}

/// Note for the next attempt at the run `run_id` that a decoder or a reader has crashed.
pub fn note_crash(output: &Output, crash: &Crash, run_id: &str) -> Result<(), SinkError> {
    let Crash { shard, record_index, image_id, signal } = crash;
    let note = Note {
        shard: &shard.name,
        record_index: *record_index,
        image_id: image_id.as_deref(),
        signal: *signal,
        sluice_version: env!("CARGO_PKG_VERSION"),
        noted_at: rfc3339(SystemTime::now()),
    };
    output.create(&note_name(crash, run_id), json(&note)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ShardContent, ShardFormat, ShardRef};
    use std::sync::Arc;

    #[test]
    fn the_name_of_a_note_identifies_the_record() {
        let content = ShardContent::Objects(Vec::new());
        let shard = Arc::new(ShardRef::new(3, "a.tar", ShardFormat::Webdataset, content));
        let part = PartName::of(&shard).to_string();
        let note = |record_index, image_id: Option<&str>| {
            let image_id = image_id.map(str::to_owned);
            let crash = Crash { shard: Arc::clone(&shard), record_index, image_id, signal: 11 };
            note_name(&crash, "run")
        };
        let odd = ["_crashes/x".to_owned(), "_crashes/part-0/a-b-c.json".to_owned()];
        let notes = [note(17, Some("a")), note(40, None), note(30, None), note(50, None)];
        let names = [&notes[..], &odd].concat();
        assert_eq!(Crashes::of(&names, "another run"), Crashes::default());
        let crashes = Crashes::of(&names, "run");
        let expected = CrashNotes { decoder: [(17, 11)].into(), reader: Some((30, 11)) };
        assert_eq!(crashes.in_shard(&part), expected);
        assert_eq!(crashes.in_shard("predictions/part-000003-ba9876543210.parquet"), CrashNotes::default());
    }
}
