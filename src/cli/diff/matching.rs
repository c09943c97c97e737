//! Matches the records of two outputs.
//!
//! - Rows of paired shards are matched by `image_id`; rows that share an id, in their order.
//! - The remaining rows, for example of repacked shards, are matched by `image_id` over the whole outputs. Ids that may
//!   only be positions within a shard are not used for that if several rows share one.
//! - If the two inputs are in different folders, addresses are compared without the folders.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::row::Row;

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// Rows without a partner so far, by id: at most as many as one side is ahead of the other.
#[derive(Debug, Default)]
pub struct Waiting {
    a: HashMap<String, VecDeque<Row>>,
    b: HashMap<String, VecDeque<Row>>,
}

impl Waiting {
    /// Add `row`; returns the pair that it completes, A's row first.
    pub fn add(&mut self, side: Side, row: Row) -> Option<(Row, Row)> {
        let (own, others) = match side {
            Side::A => (&mut self.a, &mut self.b),
            Side::B => (&mut self.b, &mut self.a),
        };
        if let Some(waiting) = others.get_mut(&row.image_id)
            && let Some(other) = waiting.pop_front()
        {
            if waiting.is_empty() {
                others.remove(&row.image_id);
            }
            return Some(match side {
                Side::A => (row, other),
                Side::B => (other, row),
            });
        }
        own.entry(row.image_id.clone()).or_default().push_back(row);
        None
    }

    /// The rows of both sides without a partner, in any order.
    pub fn rest(self) -> (Vec<Row>, Vec<Row>) {
        let rows = |side: HashMap<String, VecDeque<Row>>| side.into_values().flatten().collect();
        (rows(self.a), rows(self.b))
    }
}

/// Pairs, and rows without a partner, in the order of keys.
#[derive(Debug, Default, PartialEq)]
pub struct Matched {
    pub pairs: Vec<(Row, Row)>,
    pub only_a: Vec<Row>,
    pub only_b: Vec<Row>,
}

/// Match rows of whole outputs. Rows are not matched by an id that one side has more often than the other.
pub fn match_all(a: Vec<Row>, b: Vec<Row>) -> Matched {
    let mut matched = Matched::default();
    let mut tagged = Tagged::default();
    let numbers_are_names = [&a, &b].into_iter().all(|rows| numbers_are_unique(rows));
    for (side, rows) in [(Side::A, a), (Side::B, b)] {
        for row in rows {
            let tag = (numbers_are_names || row.is_named()).then(|| row.image_id.clone());
            tagged.add(side, tag, row);
        }
    }
    let (mut a, mut b) = tagged.pair(&mut matched.pairs);
    // one common address shows that the folders are the same
    let same_folders = matched.pairs.iter().any(|(row, _)| row.image_id.contains('/'));
    let ids = |rows: &[Row]| rows.iter().map(|row| row.image_id.clone()).collect::<Vec<_>>();
    if !same_folders && let Some((folder_a, folder_b)) = moved(&ids(&a), &ids(&b)) {
        let mut tagged = Tagged::default();
        for (side, rows, folder) in [(Side::A, a, folder_a), (Side::B, b, folder_b)] {
            for row in rows {
                let tag = row.image_id.strip_prefix(&folder).map(str::to_owned);
                tagged.add(side, tag, row);
            }
        }
        (a, b) = tagged.pair(&mut matched.pairs);
    }
    let by_key = |x: &Row, y: &Row| place(x).cmp(&place(y));
    a.sort_by(by_key);
    b.sort_by(by_key);
    matched.pairs.sort_by(|x, y| by_key(&x.0, &y.0));
    Matched { only_a: a, only_b: b, ..matched }
}

/// Whether each id that may be a position in a shard belongs to a single row.
fn numbers_are_unique(rows: &[Row]) -> bool {
    let mut seen = HashSet::new();
    rows.iter().filter(|row| !row.is_named()).all(|row| seen.insert(&row.image_id))
}

/// Shard and position of a row.
fn place(row: &Row) -> (&str, i64) {
    (row.key.rsplit_once('#').map_or(row.key.as_str(), |(shard, _)| shard), row.record_index)
}

/// Rows of both sides by the tag that matches them.
#[derive(Debug, Default)]
struct Tagged {
    by_tag: HashMap<String, [Vec<Row>; 2]>,
    without: [Vec<Row>; 2],
}

impl Tagged {
    fn add(&mut self, side: Side, tag: Option<String>, row: Row) {
        let rows = match tag {
            Some(tag) => self.by_tag.entry(tag).or_default(),
            None => &mut self.without,
        };
        rows[side as usize].push(row);
    }

    /// Add the pairs to `pairs`, and return the rows without a partner.
    fn pair(self, pairs: &mut Vec<(Row, Row)>) -> (Vec<Row>, Vec<Row>) {
        let [mut only_a, mut only_b] = self.without;
        for [mut a, mut b] in self.by_tag.into_values() {
            if a.len() == b.len() {
                a.sort_by(|x, y| place(x).cmp(&place(y)));
                b.sort_by(|x, y| place(x).cmp(&place(y)));
                pairs.extend(a.into_iter().zip(b));
            } else {
                only_a.append(&mut a);
                only_b.append(&mut b);
            }
        }
        (only_a, only_b)
    }
}

/// The most names with the same last component that one name is compared with.
const MAX_NAMESAKES: usize = 64;

/// The two folders, each with its trailing slash, in which most names of `a` and `b` differ: `/x/` and `/y/z/` for
/// `/x/p/1.jpg` and `/y/z/p/1.jpg`. `None` if no two names have the same end.
pub fn moved(a: &[String], b: &[String]) -> Option<(String, String)> {
    let mut namesakes: HashMap<&str, Vec<&str>> = HashMap::new();
    for name in b {
        if let Some((_, last)) = name.rsplit_once('/') {
            let names = namesakes.entry(last).or_default();
            if names.len() < MAX_NAMESAKES {
                names.push(name);
            }
        }
    }
    let mut votes: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for name in a {
        let Some((_, last)) = name.rsplit_once('/') else { continue };
        let candidates = namesakes.get(last).into_iter().flatten();
        let folders = candidates.map(|other| {
            let shared = shared_end(name, other);
            (&name[..name.len() - shared], &other[..other.len() - shared])
        });
        // the closest namesake; none if two are equally close
        let mut folders: Vec<_> = folders.collect();
        folders.sort_by_key(|(folder, _)| folder.len());
        match folders[..] {
            [] => {}
            [first, second, ..] if first.0.len() == second.0.len() => {}
            [first, ..] => *votes.entry(first).or_default() += 1,
        }
    }
    let most = votes.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
    let (folder_a, folder_b) = most.0;
    (folder_a != folder_b).then(|| (folder_a.to_owned(), folder_b.to_owned()))
}

/// Length in bytes of the trailing path components that two names have in common.
fn shared_end(a: &str, b: &str) -> usize {
    let components = a.rsplit('/').zip(b.rsplit('/')).take_while(|(a, b)| a == b);
    let (mut bytes, mut slashes) = (0, 0);
    for (component, _) in components {
        bytes += component.len();
        slashes += 1;
    }
    // the slash before the first common component belongs to the folder
    (bytes + usize::saturating_sub(slashes, 1)).min(a.len()).min(b.len())
}

#[cfg(test)]
mod tests {
    use super::super::row::Scores;
    use super::*;

    fn row(shard: &str, record_index: i64, image_id: &str) -> Row {
        Row {
            key: format!("{shard}#{record_index}"),
            record_index,
            image_id: image_id.to_owned(),
            status: "ok".to_owned(),
            top_class: None,
            top_label: None,
            scores: Scores::Best(Vec::new()),
        }
    }

    fn keys(matched: &Matched) -> (Vec<(&str, &str)>, Vec<&str>, Vec<&str>) {
        let pairs = matched.pairs.iter().map(|(a, b)| (a.key.as_str(), b.key.as_str())).collect();
        (
            pairs,
            matched.only_a.iter().map(|row| row.key.as_str()).collect(),
            matched.only_b.iter().map(|row| row.key.as_str()).collect(),
        )
    }

    #[test]
    fn a_new_record_in_the_middle_shifts_nothing() {
        let mut waiting = Waiting::default();
        let a = ["x", "y", "z"];
        let b = ["x", "new", "y", "z"];
        let mut pairs = Vec::new();
        let mut rows_a = (0..).zip(a);
        for (at, id) in (0..).zip(b) {
            pairs.extend(rows_a.next().and_then(|(at, id)| waiting.add(Side::A, row("s", at, id))));
            pairs.extend(waiting.add(Side::B, row("s", at, id)));
        }
        let found: Vec<_> = pairs.iter().map(|(a, b)| (a.key.as_str(), b.key.as_str())).collect();
        assert_eq!(found, [("s#0", "s#0"), ("s#1", "s#2"), ("s#2", "s#3")]);
        let (only_a, only_b) = waiting.rest();
        assert!(only_a.is_empty());
        assert_eq!(only_b.iter().map(|row| row.image_id.as_str()).collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn records_that_share_an_id_are_matched_in_their_order() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.add(Side::A, row("s", 0, "x")), None);
        assert_eq!(waiting.add(Side::A, row("s", 1, "x")), None);
        let first = waiting.add(Side::B, row("t", 0, "x")).expect("a pair");
        let second = waiting.add(Side::B, row("t", 1, "x")).expect("a pair");
        assert_eq!((first.0.key.as_str(), first.1.key.as_str()), ("s#0", "t#0"));
        assert_eq!((second.0.key.as_str(), second.1.key.as_str()), ("s#1", "t#1"));
    }

    #[test]
    fn names_match_across_shards_and_positions_do_not() {
        let a = vec![row("s", 0, "cat"), row("s", 1, "1"), row("s", 2, "twice"), row("s", 3, "twice")];
        let b = vec![row("t", 5, "cat"), row("u", 1, "1"), row("v", 1, "1"), row("t", 6, "twice")];
        let matched = match_all(a, b);
        assert_eq!(
            keys(&matched),
            (vec![("s#0", "t#5")], vec!["s#1", "s#2", "s#3"], vec!["t#6", "u#1", "v#1"])
        );
    }

    #[test]
    fn numbers_that_each_belong_to_one_record_match_like_names() {
        let a = vec![row("s", 0, "0"), row("s", 1, "1"), row("s", 2, "cat")];
        let b = vec![row("t", 0, "0"), row("u", 1, "1"), row("u", 2, "cat")];
        let matched = match_all(a, b);
        assert_eq!(keys(&matched), (vec![("s#0", "t#0"), ("s#1", "u#1"), ("s#2", "u#2")], vec![], vec![]));
    }

    #[test]
    fn images_match_across_folders() {
        let a = ["/data/p/1.jpg", "/data/p/2.jpg", "/data/q/1.jpg", "/data/new.jpg"];
        let b = ["gs://b/day/p/1.jpg", "gs://b/day/p/2.jpg", "gs://b/day/q/1.jpg"];
        let rows = |shard: &str, ids: &[&str]| (0..).zip(ids).map(|(at, id)| row(shard, at, id)).collect();
        let matched = match_all(rows("s", &a), rows("t", &b));
        assert_eq!(
            keys(&matched),
            (vec![("s#0", "t#0"), ("s#1", "t#1"), ("s#2", "t#2")], vec!["s#3"], vec![])
        );
        // images in one folder that share only a file name are different images
        let matched =
            match_all(rows("s", &["/d/p/1.jpg", "/d/x.jpg"]), rows("t", &["/d/q/1.jpg", "/d/x.jpg"]));
        assert_eq!(keys(&matched), (vec![("s#1", "t#1")], vec!["s#0"], vec!["t#0"]));
    }

    #[test]
    fn the_folders_are_those_in_which_most_names_differ() {
        let moved = |a: &[&str], b: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            super::moved(&owned(a), &owned(b))
        };
        let folders = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(moved(&["/x/p/1", "/x/p/2"], &["/y/z/p/1", "/y/z/p/2"]), folders("/x/", "/y/z/"));
        assert_eq!(moved(&["in/1", "in/2"], &["/in/1", "/in/2"]), folders("", "/"));
        assert_eq!(moved(&["/x/1"], &["/y/2"]), None);
        assert_eq!(moved(&["1"], &["1"]), None);
    }
}
