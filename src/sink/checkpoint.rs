//! `_checkpoints/`: rows of a shard that has not ended yet.
//!
//! - A segment is a Parquet file like a part, of the records from one position to another. Its name
//!   says of which shard, in which version, and by which attempt, so that no two attempts write the same
//!   one.
//! - Whoever goes on with the shard takes the longest run of segments from its first record on; when the
//!   shard ends, its part is put together from them. Then they go.

use std::collections::{BTreeMap, HashMap};

/// Folder of segments, below the output.
pub(super) const CHECKPOINTS: &str = "_checkpoints";

/// Rows of some records of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Path below the output.
    pub name: String,
    /// Position in the shard of its first record.
    pub from: u64,
    /// Position behind its last record.
    pub to: u64,
}

impl Segment {
    /// The segment that `attempt` stores of the shard whose part is to be called `part`.
    pub fn new(part: &str, from: u64, to: u64, attempt: u32) -> Self {
        let stem = part.trim_start_matches("predictions/").trim_end_matches(".parquet");
        Self { name: format!("{CHECKPOINTS}/{stem}/{from:010}-{to:010}-{attempt:06}.parquet"), from, to }
    }

    /// The segment of that name, and the part it is for.
    fn parse(name: &str) -> Option<(String, Self)> {
        let (stem, file) = name.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?.split_once('/')?;
        let mut numbers = file.strip_suffix(".parquet")?.splitn(3, '-');
        let (from, to) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let part = format!("predictions/{stem}.parquet");
        (from < to).then(|| (part, Self { name: name.to_owned(), from, to }))
    }
}

/// The segments of an output, by the names of the parts they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoints(HashMap<String, BTreeMap<u64, Segment>>);

impl Checkpoints {
    /// Of the objects with these names.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>) -> Self {
        let mut found = Self::default();
        for (part, segment) in names.into_iter().filter_map(|name| Segment::parse(name)) {
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
        let name = |&(from, to, attempt): &(u64, u64, u32)| Segment::new(PART, from, to, attempt).name;
        Checkpoints::of(&segments.iter().map(name).collect::<Vec<_>>())
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
    fn names_that_are_none_are_passed_over() {
        let names =
            ["_checkpoints/x", "_checkpoints/part-0/1-2.txt", "_checkpoints/part-0/7-7-0.parquet", "a"];
        assert_eq!(Checkpoints::of(&names.map(str::to_owned)), Checkpoints::default());
    }
}
