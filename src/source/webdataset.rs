//! WebDataset: a tar archive whose images are the records.
//!
//! Input: the uncompressed bytes of an archive. Output: one record for each image, or with an image key one for
//! each sample.
//!
//! - [`naming::member`] decides by name what is a record; companions of images (`.json`, `.txt`, `.cls`) are records
//!   only if they begin like images. Other members are counted.
//! - The id is the member's name without a leading `./` and without its last extension. If another member already has
//!   that id, as with `a.jpg` before `a.png`, the id is the whole name. If that is taken as well, by a member of the
//!   same name, the first free number of `#2`, `#3`, … is appended.
//! - With an image key, consecutive members whose names agree up to the first dot form a sample, as in WebDataset. The
//!   image key is the text after that dot (`jpg`, `seg.png`), or several in order of preference (`jpg;png`). The id is
//!   the common part of the names.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::io::Read;

use bytes::Bytes;

use crate::error::ReadError;
use crate::items::{RawRecord, Rejected, Status};
use crate::sniff::is_image;

use super::companions::HEAD_BYTES;
use super::members::{Member, Members};
use super::naming::{self, Rule};
use super::records::{ReadOptions, image_content, too_large};
use super::skips::Skips;

/// Ids of one archive that are remembered, some 16 bytes each. In an archive with more images, later ids are compared
/// with these only.
const IDS_REMEMBERED: usize = 1 << 18;

/// The most bytes that the remembered ids take. Their tables take the most while they grow.
pub(super) const IDS_BYTES: u64 = 32 * IDS_REMEMBERED as u64;

/// Members of a sample that a message names if none of them is the image.
const NAMES_SHOWN: usize = 12;

/// Characters of each of these names.
const SUFFIX_SHOWN: usize = 60;

/// Shown for a member whose name is only the sample's key.
const NO_SUFFIX: &str = "(no extension)";

/// The images of one archive.
pub(super) struct TarRecords<R> {
    members: Members<R>,
    max_image_bytes: u64,
    skips: Skips,
    ids: Ids,
    /// The extensions of the image among a sample's members; `None` if each image is a record.
    key: Option<ImageKey>,
    sample: Option<Sample>,
    /// A member of the next sample.
    returned: Option<Member>,
    /// Why the archive ends after the sample.
    failed: Option<ReadError>,
}

/// Extensions in order of preference, in lower case.
struct ImageKey(Vec<String>);

/// A sample whose members are arriving.
struct Sample {
    key: String,
    /// The best image so far: its rank (0 is best), its member's name, and its content.
    image: Option<(usize, String, Result<Bytes, Rejected>)>,
    /// The first of the other members, by the text after the sample's key.
    others: Vec<String>,
}

impl<R: Read> TarRecords<R> {
    pub fn new(reader: R, options: &ReadOptions, skips: Skips) -> Self {
        Self {
            members: Members::new(reader),
            max_image_bytes: options.max_image_bytes,
            skips,
            ids: Ids::default(),
            key: options.image_key.as_deref().map(ImageKey::new),
            sample: None,
            returned: None,
            failed: None,
        }
    }

    /// The next record; `None` at the end of the archive.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        if self.key.is_some() {
            return self.next_sample();
        }
        while let Some(member) = self.members.next_member()? {
            if let Some(content) = self.read_or_skip(&member)? {
                let image_id = self.ids.of_member(&member.name);
                return Ok(Some(RawRecord { image_id, member: Some(member.name), content }));
            }
        }
        Ok(None)
    }

    /// The content of `member` if it is a record; otherwise it is skipped and counted.
    fn read_or_skip(&mut self, member: &Member) -> Result<Option<Result<Bytes, Rejected>>, ReadError> {
        let kind = match self.rule(member) {
            None => return self.members.skip_rest(member, 0).map(|()| None),
            Some(Rule::Image | Rule::Container(_) | Rule::Manifest) => {
                return self.image(member, Vec::new()).map(Some);
            }
            Some(Rule::Skip(kind)) => kind,
            Some(Rule::Sidecar(kind)) => {
                let head = self.members.head(member, HEAD_BYTES)?;
                if is_image(&head) {
                    return self.image(member, head).map(Some);
                }
                self.skips.add(kind, &member.name);
                return self.members.skip_rest(member, head.len() as u64).map(|()| None);
            }
        };
        self.skips.add(kind, &member.name);
        self.members.skip_rest(member, 0).map(|()| None)
    }

    /// The rule for `member`; `None` for folders, which hold no data.
    fn rule(&self, member: &Member) -> Option<Rule> {
        if member.is_folder() {
            return None;
        }
        if !member.is_file() {
            return Some(Rule::Skip(naming::SPECIAL));
        }
        Some(match naming::member(&member.name) {
            Rule::Sidecar(kind) if member.is_link() => Rule::Skip(kind),
            rule if member.is_link() => rule,
            rule => naming::of_size(rule, &member.name, member.size),
        })
    }

    /// The content of the image `member`, of which `head` is already read.
    fn image(&mut self, member: &Member, head: Vec<u8>) -> Result<Result<Bytes, Rejected>, ReadError> {
        let reason = if member.is_link() {
            Some(Rejected::new(Status::MissingImage, "member is a link and holds no image"))
        } else if member.sparse {
            Some(Rejected::new(Status::CorruptRecord, "member is stored sparsely, which is not supported"))
        } else if member.size > self.max_image_bytes {
            Some(too_large(member.size, self.max_image_bytes))
        } else {
            None
        };
        if let Some(reason) = reason {
            self.members.skip_rest(member, head.len() as u64)?;
            return Ok(Err(reason));
        }
        let bytes = self.members.rest(member, head)?;
        Ok(image_content(Bytes::from(bytes), self.max_image_bytes))
    }

    /// The record of the next sample.
    fn next_sample(&mut self) -> Result<Option<RawRecord>, ReadError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            match self.next_of_sample() {
                Ok(true) => {}
                Ok(false) => return Ok(self.sample.take().map(|sample| self.finish(sample))),
                // a sample with an image is a record; without one, the image may be in the damaged part
                Err(error) => match self.sample.take().filter(|sample| sample.image.is_some()) {
                    None => return Err(error),
                    Some(sample) => {
                        self.failed = Some(error);
                        return Ok(Some(self.finish(sample)));
                    }
                },
            }
        }
    }

    /// Add the next member to the sample. Returns `false` if the sample is complete.
    fn next_of_sample(&mut self) -> Result<bool, ReadError> {
        let member = match self.returned.take() {
            Some(member) => member,
            None => match self.members.next_member()? {
                None => return Ok(false),
                Some(member) => member,
            },
        };
        let hidden = match self.rule(&member) {
            None => {
                self.members.skip_rest(&member, 0)?;
                return Ok(true);
            }
            Some(Rule::Skip(kind @ (naming::HIDDEN | naming::SPECIAL))) => Some(kind),
            Some(_) => None,
        };
        if let Some(kind) = hidden {
            self.skips.add(kind, &member.name);
            self.members.skip_rest(&member, 0)?;
            return Ok(true);
        }
        let (key, suffix) = sample_key(&member.name);
        if self.sample.as_ref().is_some_and(|sample| sample.key != key) {
            self.returned = Some(member);
            return Ok(false);
        }
        let (key, suffix) = (key.to_owned(), suffix.to_owned());
        self.take(&key, &suffix, member)?;
        Ok(true)
    }

    fn take(&mut self, key: &str, suffix: &str, member: Member) -> Result<(), ReadError> {
        let sample = self.sample.get_or_insert_with(|| Sample::new(key));
        let rank = self.key.as_ref().and_then(|key| key.rank(suffix));
        let best = sample.image.as_ref().map_or(usize::MAX, |(rank, _, _)| *rank);
        match rank.filter(|&rank| rank < best) {
            Some(rank) => {
                // the image that it replaces is dropped first: one image is held at a time
                if let Some((_, name, _)) = sample.image.take() {
                    self.skips.add(naming::OTHER_IMAGE, &name);
                }
                let content = self.image(&member, Vec::new())?;
                if let Some(sample) = &mut self.sample {
                    sample.image = Some((rank, member.name, content));
                }
            }
            None => {
                if sample.others.len() <= NAMES_SHOWN {
                    let shown = if suffix.is_empty() { NO_SUFFIX } else { suffix };
                    sample.others.push(shown.chars().take(SUFFIX_SHOWN).collect());
                }
                let kind = match naming::member(&member.name) {
                    Rule::Sidecar(kind) | Rule::Skip(kind) => kind,
                    Rule::Image | Rule::Container(_) | Rule::Manifest => naming::OTHER_IMAGE,
                };
                self.skips.add(kind, &member.name);
                self.members.skip_rest(&member, 0)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, sample: Sample) -> RawRecord {
        let Sample { key, image, mut others } = sample;
        if let Some((_, name, content)) = image {
            let image_id = self.ids.of_sample(&key, &name);
            return RawRecord { image_id, member: Some(name), content };
        }
        let wanted = self.key.as_ref().map(|key| key.0.join(" or ")).unwrap_or_default();
        if others.len() > NAMES_SHOWN {
            others.truncate(NAMES_SHOWN);
            others.push("…".to_owned());
        }
        let message = format!(
            "the sample has no member {wanted}, which input.image_key names; it has: {}",
            others.join(", ")
        );
        RawRecord::new(self.ids.of_sample(&key, &key), Err(Rejected::new(Status::MissingImage, message)))
    }
}

impl Sample {
    fn new(key: &str) -> Self {
        Self { key: key.to_owned(), image: None, others: Vec::new() }
    }
}

impl ImageKey {
    fn new(text: &str) -> Self {
        let keys = text.split(';').map(|key| key.trim().trim_start_matches('.').to_lowercase());
        Self(keys.filter(|key| !key.is_empty()).collect())
    }

    /// The rank of a member with `suffix` after its sample's key; 0 is best.
    fn rank(&self, suffix: &str) -> Option<usize> {
        let suffix = suffix.to_lowercase();
        self.0.iter().position(|key| *key == suffix)
    }
}

/// The ids taken so far, by their hashes. If two ids share a hash, the later one only loses its short form.
#[derive(Default)]
struct Ids {
    taken: HashSet<u64>,
    /// The last number that was appended to a name, by the hash of the name.
    numbers: HashMap<u64, u64>,
}

impl Ids {
    fn of_member(&mut self, name: &str) -> String {
        let name = plain(name);
        let base = name.rfind('/').map_or(0, |slash| slash + 1);
        let end = name[base..].rfind('.').map_or(name.len(), |dot| base + dot);
        self.of_sample(&name[..end], name)
    }

    /// `short` if it is free, else `name` if it is free, else `name` with a number.
    fn of_sample(&mut self, short: &str, name: &str) -> String {
        let name = plain(name);
        if self.take(short) {
            return short.to_owned();
        }
        if self.take(name) {
            return name.to_owned();
        }
        let hash = hash(name);
        let mut number = self.numbers.get(&hash).copied().unwrap_or(1);
        loop {
            number += 1;
            let id = format!("{name}#{number}");
            // once the table is full, no id is certain to be free, and a search might never end
            if self.take(&id) || !self.has_room() {
                if self.has_room() || self.numbers.contains_key(&hash) {
                    self.numbers.insert(hash, number);
                }
                return id;
            }
        }
    }

    /// Take `id`. Returns whether it was free.
    fn take(&mut self, id: &str) -> bool {
        let hash = hash(id);
        if self.has_room() { self.taken.insert(hash) } else { !self.taken.contains(&hash) }
    }

    fn has_room(&self) -> bool {
        self.taken.len() + self.numbers.len() < IDS_REMEMBERED
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// A member's name without a leading `./`.
fn plain(name: &str) -> &str {
    name.trim_start_matches("./")
}

/// The key of a member's sample, as in WebDataset, and the rest of its name: `./dir/a.seg.png` gives `dir/a` and
/// `seg.png`.
fn sample_key(name: &str) -> (&str, &str) {
    let name = plain(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[base..].find('.') {
        Some(dot) => (&name[..base + dot], &name[base + dot + 1..]),
        None => (name, ""),
    }
}

#[cfg(test)]
#[path = "webdataset_tests.rs"]
pub(super) mod tests;
