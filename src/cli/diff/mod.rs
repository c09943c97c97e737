//! `sluice diff A B`: how two outputs of the same images differ.
//!
//! - Shards are paired by identity, else by name, also below another folder. The rows of a pair are read side by side,
//!   so two large outputs take little memory; only rows without a partner are held.
//! - Status, best class and scores are compared. Reasons are not, since they are prose.

mod matching;
mod row;

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use sluice::commit::{Output, StoredManifest};
use sluice::error::Error;
use sluice::items::{ObjectRef, Status};
use sluice::sink::PREDICTIONS;
use sluice::store::Stores;

use super::exit;
use super::parts::{Batches, open, parts};
use super::print::{print, print_json};
use super::storage::storage_runtime;
use matching::{Matched, Side, Waiting, match_all, moved};
use row::{COLUMNS, Row};

/// Parse `--tolerance`.
fn tolerance(text: &str) -> Result<f32, &'static str> {
    match text.parse() {
        Ok(number) if number >= 0.0 => Ok(number),
        _ => Err("expected a number, 0 or more"),
    }
}

/// Arguments of `sluice diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Output folder of a run.
    a: String,
    /// Output folder of another run over the same images.
    b: String,
    /// Largest difference between two scores that counts as equal.
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, value_parser = tolerance)]
    tolerance: f32,
    /// Ignore images that are in one output only, as after runs with --limit.
    #[arg(long)]
    common: bool,
    /// List the first N images that differ.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The result of a comparison.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Differences {
    records_in_both: u64,
    only_in_a: u64,
    only_in_b: u64,
    other_status: u64,
    other_top_class: u64,
    /// Records of the same status and best class whose scores differ by more than the tolerance.
    other_scores: u64,
    /// `null` in JSON if only one of two scores is a number.
    max_difference: f32,
    /// The first records that differ, in the order in which they were found.
    rows: Vec<Differing>,
}

/// How a record differs.
#[derive(Debug, PartialEq, Serialize)]
struct Differing {
    image_id: String,
    key_a: Option<String>,
    key_b: Option<String>,
    difference: String,
}

/// What counts as a difference, and how many are listed.
#[derive(Debug, Clone, Copy)]
struct Rules {
    tolerance: f32,
    listed: usize,
}

/// Compare, and print the differences; exits with 5 if there are any.
pub fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let runtime = storage_runtime()?;
    let stores = Stores::new(runtime.handle().clone());
    let (a, b) = (named_parts(&stores, &args.a)?, named_parts(&stores, &args.b)?);
    let rules = Rules { tolerance: args.tolerance, listed: args.rows };
    let mut found = Differences::default();
    let (mut rest_a, mut rest_b) = (Vec::new(), Vec::new());
    for (a, b) in pair_parts(&stores, (&args.a, a), (&args.b, b))? {
        let mut waiting = Waiting::default();
        let (mut rows_a, mut rows_b) = (Rows::of(&stores, a.as_ref())?, Rows::of(&stores, b.as_ref())?);
        loop {
            let next = (rows_a.next().transpose()?, rows_b.next().transpose()?);
            if let (None, None) = next {
                break;
            }
            for (side, row) in [(Side::A, next.0), (Side::B, next.1)] {
                if let Some((a, b)) = row.and_then(|row| waiting.add(side, row)) {
                    found.compare(&a, &b, rules);
                }
            }
        }
        let (a, b) = waiting.rest();
        rest_a.extend(a);
        rest_b.extend(b);
    }
    found.add_unpaired(match_all(rest_a, rest_b), rules);
    let same = found.are_none(args.tolerance, args.common);
    if args.json {
        let mut object = serde_json::json!(found);
        object["same"] = same.into();
        object["tolerance"] = args.tolerance.into();
        print_json(&object)?;
    } else {
        print(&found.lines().join("\n"))?;
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(exit::TOO_MANY_ERRORS) })
}

/// Predictions parts by file name, which contains the shard's place and identity.
fn named_parts(stores: &Stores, out: &str) -> Result<BTreeMap<String, ObjectRef>, Error> {
    let out = out.trim_end_matches('/');
    let named = |part: ObjectRef| (part.uri.rsplit('/').next().unwrap_or_default().to_owned(), part);
    Ok(parts(stores, &format!("{out}/predictions"), false)?.into_iter().map(named).collect())
}

type Parts = BTreeMap<String, ObjectRef>;
type Pair = (Option<ObjectRef>, Option<ObjectRef>);

/// Pairs of parts of the same shard, and parts without a partner.
fn pair_parts(stores: &Stores, a: (&str, Parts), b: (&str, Parts)) -> Result<Vec<Pair>, Error> {
    let ((out_a, mut a), (out_b, mut b)) = (a, b);
    let mut pairs = Vec::new();
    for name in a.keys().cloned().collect::<Vec<_>>() {
        if let Some(other) = b.remove(&name) {
            pairs.push((a.remove(&name), Some(other)));
        }
    }
    let mut a = by_shard(stores, out_a, a)?;
    let mut b = by_shard(stores, out_b, b)?;
    let mut take_pairs = |a: &mut Parts, b: &mut Parts, folders: (&str, &str)| {
        for shard in a.keys().cloned().collect::<Vec<_>>() {
            let Some(end) = shard.strip_prefix(folders.0) else { continue };
            if let Some(other) = b.remove(&format!("{}{end}", folders.1)) {
                pairs.push((a.remove(&shard), Some(other)));
            }
        }
    };
    take_pairs(&mut a, &mut b, ("", ""));
    let names = |parts: &Parts| parts.keys().cloned().collect::<Vec<_>>();
    if let Some((folder_a, folder_b)) = moved(&names(&a), &names(&b)) {
        take_pairs(&mut a, &mut b, (&folder_a, &folder_b));
    }
    pairs.extend(a.into_values().map(|part| (Some(part), None)));
    pairs.extend(b.into_values().map(|part| (None, Some(part))));
    Ok(pairs)
}

/// Parts by the name of their shard. The manifest has the names; without one, each footer is read.
fn by_shard(stores: &Stores, out: &str, parts: Parts) -> Result<Parts, Error> {
    if parts.is_empty() {
        return Ok(parts);
    }
    let output = Output::open(stores, out.trim_end_matches('/'))?;
    let listed = StoredManifest::read(&output).map(|manifest| manifest.parts).unwrap_or_default();
    let listed: HashMap<_, _> = listed.into_iter().map(|part| (part.path, part.shard)).collect();
    let mut named = Parts::new();
    for (name, part) in parts {
        let shard = match listed.get(&format!("predictions/{name}")) {
            Some(shard) => shard.clone(),
            None => {
                open(stores, &part, &PREDICTIONS, &[])?.footer("sluice.shard").unwrap_or(&name).to_owned()
            }
        };
        // a shard has one part; if an unfinished output has two, each is compared under its own name
        let shard = if named.contains_key(&shard) { name } else { shard };
        named.insert(shard, part);
    }
    Ok(named)
}

/// The rows of a part; no rows without a part.
struct Rows {
    batches: Option<Batches>,
    rows: std::vec::IntoIter<Row>,
}

impl Rows {
    fn of(stores: &Stores, part: Option<&ObjectRef>) -> Result<Self, Error> {
        let batches = part.map(|part| open(stores, part, &PREDICTIONS, &COLUMNS)).transpose()?;
        Ok(Self { batches, rows: Vec::new().into_iter() })
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            match self.batches.as_mut()?.next()? {
                Err(error) => return Some(Err(error)),
                Ok(batch) => {
                    let rows: Vec<_> = (0..batch.num_rows()).map(|row| Row::of(&batch, row)).collect();
                    self.rows = rows.into_iter();
                }
            }
        }
    }
}

impl Differences {
    /// Compare the rows of one image.
    fn compare(&mut self, a: &Row, b: &Row, rules: Rules) {
        self.records_in_both += 1;
        if a.status != b.status {
            self.other_status += 1;
            self.list(rules, a, b, || format!("status {} in A, {} in B", a.status, b.status));
            return;
        }
        if a.status != Status::Ok.as_str() {
            return;
        }
        let by = a.scores.difference(&b.scores);
        self.max_difference = self.max_difference.max(by);
        if a.top_class != b.top_class {
            self.other_top_class += 1;
            self.list(rules, a, b, || format!("{} in A, {} in B, scores differ by {by:e}", a.top(), b.top()));
        } else if by > rules.tolerance {
            self.other_scores += 1;
            self.list(rules, a, b, || format!("scores differ by {by:e}"));
        }
    }

    fn list(&mut self, rules: Rules, a: &Row, b: &Row, difference: impl FnOnce() -> String) {
        if self.rows.len() < rules.listed {
            let (key_a, key_b) = (Some(a.key.clone()), Some(b.key.clone()));
            let image_id = a.image_id.clone();
            self.rows.push(Differing { image_id, key_a, key_b, difference: difference() });
        }
    }

    /// Add the rows that had no partner within a pair of shards.
    fn add_unpaired(&mut self, matched: Matched, rules: Rules) {
        matched.pairs.iter().for_each(|(a, b)| self.compare(a, b, rules));
        self.only_in_a += matched.only_a.len() as u64;
        self.only_in_b += matched.only_b.len() as u64;
        let sides = [(Side::A, matched.only_a), (Side::B, matched.only_b)];
        for (side, row) in
            sides.into_iter().flat_map(|(side, rows)| rows.into_iter().map(move |row| (side, row)))
        {
            if self.rows.len() >= rules.listed {
                return;
            }
            let Row { image_id, key, .. } = row;
            let (key_a, key_b, difference) = match side {
                Side::A => (Some(key), None, "in A only"),
                Side::B => (None, Some(key), "in B only"),
            };
            self.rows.push(Differing { image_id, key_a, key_b, difference: difference.to_owned() });
        }
    }

    /// Whether the outputs agree and have a record in common.
    fn are_none(&self, tolerance: f32, common: bool) -> bool {
        self.records_in_both > 0
            && self.other_status == 0
            && self.other_top_class == 0
            && self.max_difference <= tolerance
            && (self.only_in_a + self.only_in_b == 0 || common)
    }

    fn differing(&self) -> u64 {
        self.only_in_a + self.only_in_b + self.other_status + self.other_top_class + self.other_scores
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("records in both       {}", self.records_in_both),
            format!("records in A only     {}", self.only_in_a),
            format!("records in B only     {}", self.only_in_b),
            format!("other status          {}", self.other_status),
            format!("other top class       {}", self.other_top_class),
            format!("other scores          {}", self.other_scores),
            format!("largest difference    {:e}", self.max_difference),
        ];
        if !self.rows.is_empty() {
            lines.push("\nrecords that differ".to_owned());
            lines.extend(self.rows.iter().map(|row| {
                let key = row.key_a.as_ref().or(row.key_b.as_ref());
                format!("  {}  {}  {}", key.map_or("", String::as_str), row.image_id, row.difference)
            }));
            if self.differing() > self.rows.len() as u64 {
                lines.push("  and others: --rows lists more".to_owned());
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::row::Scores;
    use super::*;

    const RULES: Rules = Rules { tolerance: 0.1, listed: 10 };

    fn row(key: &str, status: &str, top_class: Option<i32>, scores: &[f32]) -> Row {
        Row {
            key: key.to_owned(),
            record_index: 0,
            image_id: format!("image of {key}"),
            status: status.to_owned(),
            top_class,
            top_label: None,
            scores: Scores::All(scores.to_vec()),
        }
    }

    #[test]
    fn every_kind_of_difference_is_counted_and_listed() {
        let mut found = Differences::default();
        let scored = row("s#0", "ok", Some(1), &[0.25, 0.75]);
        found.compare(&scored, &scored, RULES);
        found.compare(&scored, &row("s#1", "ok", Some(0), &[0.75, 0.25]), RULES);
        found.compare(&scored, &row("s#2", "ok", Some(1), &[0.375, 0.625]), RULES);
        found.compare(&scored, &row("s#3", "ok", Some(1), &[0.3125, 0.6875]), RULES);
        found.compare(&row("s#4", "empty", None, &[]), &row("s#4", "decode_error", None, &[]), RULES);
        let matched = Matched { only_b: vec![row("t#7", "ok", Some(0), &[1.0])], ..Matched::default() };
        found.add_unpaired(matched, RULES);
        let said: Vec<_> = found.rows.iter().map(|row| row.difference.as_str()).collect();
        assert_eq!(
            said,
            [
                "class 1 in A, class 0 in B, scores differ by 5e-1",
                "scores differ by 1.25e-1",
                "status empty in A, decode_error in B",
                "in B only"
            ]
        );
        let counts = (found.records_in_both, found.only_in_a, found.only_in_b);
        assert_eq!(counts, (5, 0, 1));
        let kinds = (found.other_status, found.other_top_class, found.other_scores);
        assert_eq!((kinds, found.max_difference, found.differing()), ((1, 1, 1), 0.5, 4));
        assert!(!found.are_none(1.0, true));
        let mut short = Differences::default();
        short.compare(&scored, &row("s#1", "empty", None, &[]), Rules { listed: 0, ..RULES });
        assert!(short.rows.is_empty() && short.other_status == 1);
    }

    #[test]
    fn an_invalid_score_equals_only_another_invalid_score() {
        let mut found = Differences::default();
        let invalid = row("s#0", "invalid_score", None, &[]);
        found.compare(&invalid, &invalid, RULES);
        assert!(found.are_none(0.0, false));
        found.compare(&invalid, &row("s#0", "ok", Some(0), &[1.0]), RULES);
        assert!(!found.are_none(1e30, true));
    }

    #[test]
    fn outputs_without_a_record_in_common_are_not_the_same() {
        assert!(!Differences::default().are_none(0.0, true));
        let only = Differences { only_in_a: 1, ..Differences::default() };
        assert!(!only.are_none(0.0, true));
        let both = Differences { records_in_both: 1, ..only };
        assert!(both.are_none(0.0, true) && !both.are_none(0.0, false));
    }
}
