//! `_checkpoints/`: rows of unfinished shards.
//!
//! - A segment is a Parquet file like a part, of the records from one position to another. Its name has the shard, its
//!   version, the attempt and the run, so no two attempts write the same segment, and segments of a removed run are
//!   ignored.
//! - A shard is resumed after the longest chain of segments from its first record on. When the shard ends, its part is
//!   assembled from the segments, and they are removed.

use std::collections::{BTreeMap, HashMap};

use super::names::{ObjectName, PartName, SegmentName, run_tag};
pub use crate::items::Segment;

impl Segment {
    /// The segment that `attempt` at the run `run_id` stores of the shard whose part is called `part`.
    ///
    /// # Panics
    /// If `part` is not the name of a part.
    pub fn new(part: &str, from: u64, to: u64, attempt: u32, run_id: &str) -> Self {
        let part = PartName::parse(part).expect("it is the name of a part");
        Self::named(SegmentName { part, from, to, attempt, run: run_tag(run_id) })
    }

    fn named(name: SegmentName) -> Self {
        let SegmentName { from, to, attempt, run, .. } = name.clone();
        Self { name: ObjectName::Segment(name).to_string(), from, to, attempt, run }
    }

    /// Parse the name of a segment. Returns the name of its part, too.
    fn parse(name: &str) -> Option<(String, Self)> {
        match ObjectName::parse(name) {
            Some(ObjectName::Segment(name)) => Some((name.part.to_string(), Self::named(name))),
            _ => None,
        }
    }
}

/// The segments of an output, by the names of their parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoints(HashMap<String, BTreeMap<u64, Segment>>);

impl Checkpoints {
    /// The segments of the run `run_id` among the objects `names`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>, run_id: &str) -> Self {
        let (mut found, run) = (Self::default(), run_tag(run_id));
        let segments = names.into_iter().filter_map(|name| Segment::parse(name));
        for (part, segment) in segments.filter(|(_, segment)| segment.run == run) {
            let segments = found.0.entry(part).or_default();
            // of two that begin at the same record, the longer one
            if segments.get(&segment.from).is_none_or(|other| other.to < segment.to) {
                segments.insert(segment.from, segment);
            }
        }
        found
    }

    /// The segments of `part` from the shard's first record on, without a gap.
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

    /// Drop a segment of `part`.
    pub(super) fn forget(&mut self, part: &str, segment: &Segment) {
        if let Some(segments) = self.0.get_mut(part) {
            segments.remove(&segment.from);
        }
    }

    /// Number of records in that chain.
    pub fn records(&self, part: &str) -> u64 {
        self.chain(part).last().map_or(0, |segment| segment.to)
    }

    /// Names of the parts that have segments.
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
    fn a_shard_is_resumed_where_its_segments_end() {
        for (segments, records) in [
            (&[][..], 0),
            (&[(0, 10, 0), (10, 25, 0)], 25),
            // the segment in between is missing
            (&[(0, 10, 0), (25, 30, 0)], 10),
            (&[(5, 10, 0)], 0),
            // two attempts took checkpoints at different records
            (&[(0, 10, 0), (0, 12, 1), (10, 20, 0), (12, 15, 1)], 15),
        ] {
            assert_eq!(checkpoints(segments).records(PART), records, "{segments:?}");
        }
        assert_eq!(checkpoints(&[(0, 10, 0)]).records("predictions/part-000004-0123456789ab.parquet"), 0);
    }

    #[test]
    fn segments_of_another_run_are_ignored() {
        let name = Segment::new(PART, 0, 10, 0, "another run").name;
        assert_eq!(Checkpoints::of(std::slice::from_ref(&name), "run"), Checkpoints::default());
        assert_eq!(Checkpoints::of(&[name], "another run").records(PART), 10);
    }
}
