//! Looking objects up by name, because a listing may lag.
//!
//! - A store returns an object by name as soon as its creation is acknowledged. A listing may be older: some stores
//!   index late, and some caches answer for them.
//! - So no decision about the end of a run relies on an object being absent from a listing. The names of marks, parts
//!   and notes are known, and those that the listing lacks are looked up. If the listing is complete, that takes no
//!   request.

use std::collections::HashSet;

use super::attempts::Notes;
use super::listing::{ObjectEntry, OutputListing};
use super::names::{AttemptName, MarkName, ObjectName, run_tag, shard_index};
use super::output::{Output, REQUESTS};
use crate::error::SinkError;
use crate::report::PartReport;

/// How many missing or changed objects an error names.
const NAMED: usize = 5;

impl OutputListing {
    /// The first of `workers` that share the run `run_id` that has not finished its share.
    pub(super) fn first_unmarked(
        &self,
        output: &Output,
        workers: u32,
        run_id: &str,
    ) -> Result<Option<u32>, SinkError> {
        let mark = |worker| MarkName { worker, workers, run: run_tag(run_id) };
        let unlisted: Vec<_> = (0..workers).map(mark).filter(|mark| !self.marks.contains(mark)).collect();
        // while others are still running, one of the first is missing: no need to look all of them up
        for some in unlisted.chunks(REQUESTS) {
            let names: Vec<_> = some.iter().map(|mark| ObjectName::Mark(mark.clone()).to_string()).collect();
            let sizes = output.sizes_of(&names)?;
            if let Some((mark, _)) = some.iter().zip(sizes).find(|(_, size)| size.is_none()) {
                return Ok(Some(mark.worker));
            }
        }
        Ok(None)
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

    /// Add attempts at the run `run_id` that the listing may lack: all up to `last_known`, and later ones whose notes
    /// exist.
    pub(super) fn add_unlisted_attempts(
        &mut self,
        output: &Output,
        run_id: &str,
        last_known: Option<u32>,
    ) -> Result<(), SinkError> {
        let known = last_known.into_iter().flat_map(|last| 0..=last);
        self.attempts.extend(known.map(|number| AttemptName::new(number, run_id)));
        let mut next = AttemptName::new(self.next_attempt(run_id), run_id);
        while output.sizes_of(&[ObjectName::Attempt(next.clone()).to_string()])?[0].is_some() {
            self.attempts.insert(next.clone());
            next.number += 1;
        }
        Ok(())
    }

    /// The number after that of the last listed attempt at the run `run_id`.
    pub(super) fn next_attempt(&self, run_id: &str) -> u32 {
        let run = run_tag(run_id);
        let numbers = self.attempts.iter().filter(|attempt| attempt.run == run).map(|attempt| attempt.number);
        numbers.max().map_or(0, |last| last + 1)
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

    /// Check that the objects `reported` exist and have the reported sizes. An object that is listed with that size is
    /// not looked up.
    ///
    /// # Errors
    /// Those of the store, and [`SinkError::Incomplete`], which describes the first of the others.
    pub(super) fn check_reported<'a>(
        &self,
        output: &Output,
        reported: impl Iterator<Item = &'a PartReport>,
    ) -> Result<(), SinkError> {
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
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(SinkError::Incomplete { uri: output.uri().to_owned(), wrong })
        }
    }
}
