//! `_checkpoints/`: rows of a shard that has not ended yet.
//!
//! - A segment is a Parquet file like a part, of the records from one position to another. Its name
//!   says of which shard, in which version, and by which attempt at which run, so that no two attempts
//!   write the same one, and what is left of a run that was removed is not taken for this one's.
//! - Whoever goes on with the shard takes the longest run of segments from its first record on; when the
//!   shard ends, its part is put together from them. Then they go.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

pub use crate::items::Segment;
use crate::plan::hex;

/// Folder of segments, below the output.
pub(super) const CHECKPOINTS: &str = "_checkpoints";

/// What tells the segments of one run from those of another, and its notes of crashes.
pub(super) fn run_tag(run_id: &str) -> String {
    hex(&Sha256::digest(run_id))[..8].to_owned()
}

/// Folder of the segments of a part.
pub(super) fn checkpoint_folder(part: &str) -> String {
    let stem = part.trim_start_matches("predictions/").trim_end_matches(".parquet");
    format!("{CHECKPOINTS}/{stem}")
}

impl Segment {
    /// The segment that `attempt` at the run `run_id` stores of the shard whose part is to be called
    /// `part`.
    pub fn new(part: &str, from: u64, to: u64, attempt: u32, run_id: &str) -> Self {
        let run = run_tag(run_id);
        let name = format!("{}/{from:010}-{to:010}-{attempt:06}-{run}.parquet", checkpoint_folder(part));
        Self { name, from, to, attempt, run }
    }

    /// The segment of that name, and the part it is for.
    pub fn parse(name: &str) -> Option<(String, Self)> {
        let (stem, file) = name.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?.split_once('/')?;
        let mut fields = file.strip_suffix(".parquet")?.splitn(4, '-');
        let (from, to) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (attempt, run) = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
        let part = format!("predictions/{stem}.parquet");
        (from < to).then(|| (part, Self { name: name.to_owned(), from, to, attempt, run }))
    }
}

/// The segments of an output, by the names of the parts they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoints(HashMap<String, BTreeMap<u64, Segment>>);

impl Checkpoints {
    /// Of the objects with these names, those of the run `run_id`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>, run_id: &str) -> Self {
        let (mut found, run) = (Self::default(), run_tag(run_id));
        let segments = names.into_iter().filter_map(|name| Segment::parse(name));
        for (part, segment) in segments.filter(|(_, segment)| segment.run == run) {
            let segments = found.0.entry(part).or_default();
            // of two that begin together the longer one
            if segments.get(&segment.from).is_none_or(|other| other.to < segment.to) {
                segments.insert(segment.from, segment);
            }
        }
        found
    }

    /// Segments without a gap from the shard's first record on.
    pub fn chain(&self, part: &str) -> Vec<Segment> {
        let Some(segments) = self.0.get(part) else { return Vec::new() };
        let mut chain = Vec::new();
        let mut at = 0;
        while let Some(segment) = segments.get(&at) {
            at = segment.to;
            chain.push(segment.clone());
        }
        chain
    }

    /// Do without a segment of `part`.
    pub fn forget(&mut self, part: &str, segment: &Segment) {
        if let Some(segments) = self.0.get_mut(part) {
            segments.remove(&segment.from);
        }
    }

    /// Records of the shard that are in such segments.
    pub fn records(&self, part: &str) -> u64 {
        self.chain(part).last().map_or(0, |segment| segment.to)
    }

    /// Names of the parts that are not whole yet.
    pub fn parts(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = "predictions/part-000003-0123456789ab.parquet";

    fn checkpoints(segments: &[(u64, u64, u32)]) -> Checkpoints {
        let name = |&(from, to, attempt): &(u64, u64, u32)| Segment::new(PART, from, to, attempt, "run").name;
        Checkpoints::of(&segments.iter().map(name).collect::<Vec<_>>(), "run")
    }

    #[test]
    fn a_shard_is_gone_on_with_where_its_segments_end() {
        for (segments, records) in [
            (&[][..], 0),
            (&[(0, 10, 0), (10, 25, 0)], 25),
            // the second one has not come
            (&[(0, 10, 0), (25, 30, 0)], 10),
            (&[(5, 10, 0)], 0),
            // two attempts have gone different ways
            (&[(0, 10, 0), (0, 12, 1), (10, 20, 0), (12, 15, 1)], 15),
        ] {
            assert_eq!(checkpoints(segments).records(PART), records, "{segments:?}");
        }
        assert_eq!(checkpoints(&[(0, 10, 0)]).records("predictions/part-000004-0123456789ab.parquet"), 0);
    }

    #[test]
    fn what_another_run_has_left_is_not_gone_on_from() {
        let name = Segment::new(PART, 0, 10, 0, "another run").name;
        assert_eq!(Checkpoints::of(std::slice::from_ref(&name), "run"), Checkpoints::default());
        assert_eq!(Checkpoints::of(&[name], "another run").records(PART), 10);
    }

    #[test]
    fn names_that_are_none_are_passed_over() {
        let names =
            ["_checkpoints/x", "_checkpoints/part-0/1-2.txt", "_checkpoints/part-0/7-7-0-a.parquet", "a"];
        assert!(names.iter().all(|name| Segment::parse(name).is_none()));
    }
}
