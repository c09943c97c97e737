//! Looking objects up by name, because a listing may lag.
//!
//! - A store returns an object by name as soon as its creation is acknowledged. A listing may be older: some stores index
//!   late, and some caches answer for them.
//! - So no decision about the end of a run relies on an object being absent from a listing. The names of marks, parts and
//!   notes are known, and those that the listing lacks are looked up. If the listing is complete, that takes no request.

use std::collections::HashSet;

use super::attempts::Notes;
use super::listing::{ObjectEntry, OutputListing};
use super::names::{ObjectName, shard_index};
use super::output::{Output, REQUESTS};
use crate::error::SinkError;
use crate::report::PartReport;

/// How many missing or changed objects an error names.
const NAMED: usize = 5;

impl OutputListing {
    /// The first of `workers` that has not finished its share. Adds marks that are found by name.
    pub(super) fn first_unmarked(&mut self, output: &Output, workers: u32) -> Result<Option<u32>, SinkError> {
        let mut next = 0;
        loop {
            // while others are still running, one of the first is missing: no need to look all of them up
            let is_missing = |worker: &u32| !self.marks.contains(&(*worker, workers));
            let some: Vec<_> = (next..workers).filter(is_missing).take(REQUESTS).collect();
            let Some(&last) = some.last() else { return Ok(None) };
            let names: Vec<_> =
                some.iter().map(|&worker| ObjectName::Mark { worker, workers }.to_string()).collect();
            for (worker, size) in some.into_iter().zip(output.sizes_of(&names)?) {
                if size.is_none() {
                    return Ok(Some(worker));
                }
                self.marks.insert((worker, workers));
            }
            next = last + 1;
        }
    }

    /// Add those of the parts `names` that exist, if no part of the same shard is listed.
    pub(super) fn add_unlisted_parts(
        &mut self,
        output: &Output,
        names: impl Iterator<Item = String>,
    ) -> Result<(), SinkError> {
        let is_unlisted =
            |name: &String| shard_index(name).is_some_and(|index| !self.predictions.contains_key(&index));
        let unlisted: Vec<_> = names.filter(is_unlisted).collect();
        for (name, size) in unlisted.iter().zip(output.sizes_of(&unlisted)?) {
            if let Some(bytes) = size {
                self.add(name, bytes);
            }
        }
        Ok(())
    }

    /// Add attempts that the listing may lack: all up to `last_known`, and later ones whose notes exist.
    pub(super) fn add_unlisted_attempts(
        &mut self,
        output: &Output,
        last_known: Option<u32>,
    ) -> Result<(), SinkError> {
        self.attempts.extend(last_known.into_iter().flat_map(|last| 0..=last));
        let mut next = self.attempts.last().map_or(0, |&last| last + 1);
        while output.sizes_of(&[ObjectName::Attempt(next).to_string()])?[0].is_some() {
            self.attempts.insert(next);
            next += 1;
        }
        Ok(())
    }

    /// Add the batches parts that `notes` list and that exist.
    pub(super) fn add_unlisted_batches(&mut self, output: &Output, notes: &Notes) -> Result<(), SinkError> {
        let listed: HashSet<_> = self.batches.iter().map(|entry| &entry.name).collect();
        let noted = notes.attempts.iter().flat_map(|note| &note.batches).map(|part| &part.path);
        let unlisted: Vec<_> = noted.filter(|path| !listed.contains(path)).cloned().collect();
        for (name, size) in unlisted.iter().zip(output.sizes_of(&unlisted)?) {
            self.batches.extend(size.map(|bytes| ObjectEntry { name: name.clone(), bytes }));
        }
        Ok(())
    }

    /// Describe the first of the objects `reported` that are missing or have another size. An object that is listed with
    /// its reported size is not looked up.
    pub(super) fn not_as_reported<'a>(
        &self,
        output: &Output,
        reported: impl Iterator<Item = &'a PartReport>,
    ) -> Result<Vec<String>, SinkError> {
        let listed = self.predictions.values().chain(&self.batches);
        let listed: HashSet<_> = listed.map(|entry| (entry.name.as_str(), entry.bytes)).collect();
        let doubtful: Vec<_> = reported.filter(|part| !listed.contains(&(&part.path, part.bytes))).collect();
        let mut wrong = Vec::new();
        for some in doubtful.chunks(REQUESTS) {
            let names: Vec<_> = some.iter().map(|part| part.path.clone()).collect();
            for (part, size) in some.iter().zip(output.sizes_of(&names)?) {
                match size {
                    None => wrong.push(format!("{} is missing", part.path)),
                    Some(bytes) if bytes == part.bytes => {}
                    Some(bytes) => {
                        wrong.push(format!("{} has {bytes} bytes, it had {}", part.path, part.bytes));
                    }
                }
            }
            if wrong.len() >= NAMED {
                break;
            }
        }
        wrong.truncate(NAMED);
        Ok(wrong)
    }
}
