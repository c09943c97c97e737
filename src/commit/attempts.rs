//! `_attempts/NNNNNN-RUN.json`: the note of one attempt at a run.
//!
//! - It is created before anything is scored, which gives the attempt its number. Only the attempt itself replaces it,
//!   at checkpoints.
//! - It lists the parts that the attempt has stored, with their hashes, so that other attempts can check them. If an
//!   attempt was killed before it noted a part, the part's footer is trusted.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::listing::{ObjectEntry, OutputListing};
use super::manifest::StoredManifest;
use super::names::{AttemptName, ObjectName, run_tag, shard_index};
use super::output::{Output, json, random_name, sha256_of};
use super::stored_part::read_part_async;
use crate::error::SinkError;
use crate::report::{Outcome, PartReport, rfc3339};

/// One attempt at a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptNote {
    /// Number of the attempt, from 0, over all workers.
    pub attempt: u32,
    /// Distinguishes this note from one that another attempt creates under the same name at the same time.
    #[serde(default)]
    pub nonce: String,
    /// Id of the run.
    pub run_id: String,
    /// Number of the worker.
    pub shard_index: u32,
    /// Workers that share the run.
    pub num_shards: u32,
    /// Version of sluice that wrote it.
    pub sluice_version: String,
    /// Hardware that may decide the last bits of a score: one engine or several, and the processor's instruction set.
    #[serde(default)]
    pub runs_on: Vec<String>,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC: when the note was last written.
    pub updated_at: String,
    /// How the attempt ended. `None` while it runs, and if it was killed.
    pub outcome: Option<Outcome>,
    /// Rows of `parts`.
    pub rows: u64,
    /// Predictions parts that it has stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartReport>,
    /// Batches parts that it has stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<PartReport>,
    /// SHA-256 of the other fields as JSON, in lower-case hexadecimal, because the lists of parts are trusted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

impl AttemptNote {
    /// The note of an attempt that begins now, by worker `shard_index` of `num_shards`. Its number and run are set
    /// later.
    pub fn begun(shard_index: u32, num_shards: u32) -> Self {
        let now = rfc3339(SystemTime::now());
        Self {
            attempt: 0,
            nonce: random_name(),
            run_id: String::new(),
            shard_index,
            num_shards,
            sluice_version: env!("CARGO_PKG_VERSION").to_owned(),
            runs_on: Vec::new(),
            started_at: now.clone(),
            updated_at: now,
            outcome: None,
            rows: 0,
            parts: Vec::new(),
            batches: Vec::new(),
            sha256: String::new(),
        }
    }

    /// Replace the stored note with this one.
    pub fn store(&self, output: &Output) -> Result<(), SinkError> {
        output.replace(&self.name(), self.to_json())
    }

    /// Name of the note.
    pub fn name(&self) -> String {
        ObjectName::Attempt(AttemptName::new(self.attempt, &self.run_id)).to_string()
    }

    /// The note without its lists of parts.
    pub fn in_short(&self) -> Self {
        Self { parts: Vec::new(), batches: Vec::new(), sha256: String::new(), ..self.clone() }
    }

    /// The note as it is stored, with its checksum.
    pub(super) fn to_json(&self) -> Vec<u8> {
        json(&Self { sha256: self.checksum(), ..self.clone() })
    }

    /// Parse a stored note, and check its checksum.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let note: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if note.sha256 == note.checksum() { Ok(note) } else { Err("checksum mismatch".to_owned()) }
    }

    fn checksum(&self) -> String {
        let bare = Self { sha256: String::new(), ..self.clone() };
        sha256_of(&json(&bare))
    }
}

/// The notes of a run, and its manifest if the run failed.
#[derive(Debug, Default)]
pub struct Notes {
    /// Notes of the attempts, by number, without their predictions parts.
    pub attempts: Vec<AttemptNote>,
    /// The reports of each part, by name: one, unless a later attempt has stored the part again.
    parts: HashMap<String, Vec<PartReport>>,
}

impl Notes {
    fn of(mut attempts: Vec<AttemptNote>, manifest: Option<StoredManifest>) -> Self {
        let mut parts: HashMap<String, Vec<PartReport>> = HashMap::new();
        let noted = attempts.iter_mut().flat_map(|note| {
            let batches = note.batches.clone();
            std::mem::take(&mut note.parts).into_iter().chain(batches)
        });
        let listed =
            manifest.into_iter().flat_map(|manifest| manifest.parts.into_iter().chain(manifest.batches));
        for part in noted.chain(listed) {
            let said = parts.entry(part.path.clone()).or_default();
            if !said.contains(&part) {
                said.push(part);
            }
        }
        Self { attempts, parts }
    }

    /// All reports of the part `name`.
    pub fn said_of(&self, name: &str) -> &[PartReport] {
        self.parts.get(name).map_or(&[], Vec::as_slice)
    }

    /// The report of a listed part, if there is exactly one and its size matches.
    fn of_part(&self, entry: &ObjectEntry) -> Option<&PartReport> {
        match self.said_of(&entry.name) {
            [said] if said.bytes == entry.bytes => Some(said),
            _ => None,
        }
    }

    /// Whether a note lists that part.
    pub fn know(&self, entry: &ObjectEntry) -> bool {
        self.of_part(entry).is_some()
    }

    /// Read the notes of all attempts at the run `run_id`. If the run has a `failed` manifest, its reports are added.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read(
        output: &Output,
        listing: &OutputListing,
        run_id: &str,
        failed: Option<StoredManifest>,
    ) -> Result<Self, SinkError> {
        let read = |attempt: &AttemptName| {
            let name = ObjectName::Attempt(attempt.clone()).to_string();
            async move {
                let note: Option<AttemptNote> = output.get(&name).await?.and_then(|bytes| {
                    let note = AttemptNote::parse(&bytes);
                    note.inspect_err(|error| tracing::warn!(name, %error, "a note cannot be read")).ok()
                });
                Ok::<_, SinkError>(note)
            }
        };
        let run = run_tag(run_id);
        let notes = output.all(listing.attempts.iter().filter(|attempt| attempt.run == run).map(read))?;
        Ok(Self::of(notes.into_iter().flatten().collect(), failed))
    }
}

/// Reports of parts: from a note if one lists the part, otherwise from the part's footer. For display only: before a
/// manifest lists a part, [`super::takeover`] reads it.
pub(crate) fn part_reports<'a>(
    output: &Output,
    entries: impl Iterator<Item = &'a ObjectEntry>,
    notes: &Notes,
    run_id: &str,
) -> Result<Vec<PartReport>, SinkError> {
    let (mut reports, mut unknown) = (Vec::new(), Vec::new());
    for entry in entries {
        match notes.of_part(entry) {
            Some(noted) => reports.push(noted.clone()),
            None => unknown.push(entry.name.clone()),
        }
    }
    reports.extend(output.all(unknown.iter().map(|name| read_part_async(output, name, run_id)))?);
    reports.sort_by(|a, b| (shard_index(&a.path), &a.path).cmp(&(shard_index(&b.path), &b.path)));
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_with_any_byte_changed_is_not_believed() {
        let part = PartReport { path: "a".to_owned(), rows: Some(3), bytes: 7, ..PartReport::default() };
        let note = AttemptNote { parts: vec![part], rows: 3, ..AttemptNote::begun(1, 2) };
        let stored = note.to_json();
        let read = AttemptNote::parse(&stored).expect("as it was stored");
        assert_eq!(AttemptNote { sha256: String::new(), ..read }, note);
        for at in 0..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            // a change between tokens may leave the same JSON
            if let Ok(read) = AttemptNote::parse(&changed) {
                assert_eq!(AttemptNote { sha256: String::new(), ..read }, note, "byte {at}");
            }
            // all but the line's end
            assert_eq!(AttemptNote::parse(&stored[..at]).is_err(), at + 1 < stored.len(), "{at} bytes");
        }
    }
}
