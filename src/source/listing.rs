//! From input URIs to shards.
//!
//! Input: the inputs of a plan. Output: [`ShardList`], the shards in input order, found as they are needed.
//!
//! - Shards come in the order of the inputs, and within an input in the order of full names (local folders are sorted
//!   one at a time; buckets list in this order themselves). The order is the same in every run.
//! - Memory holds the names of one local folder and its parents, or one page of a bucket's keys, and the objects of one
//!   unfinished virtual shard.
//! - Loose images are grouped into virtual shards of `files_per_shard`. A virtual shard never mixes inputs and never
//!   spans a container or manifest between its images. Companions of images are examined when they are read. They join
//!   the next images, or form a shard of their own when there are many or the input ends.
//! - Every object that is found is either taken or counted.
//! - Shard names are unique. A container's name is its URI. A virtual shard's name is the URI of its first image, `+`
//!   and its number of images by name (`gs://b/cat.jpg+1000`), or of its companions if it has no images. A manifest's
//!   shards are named by its URI, `#` and the line of the first entry, `+` and the number of entries
//!   (`list.txt#1+1000`). An object that two inputs match belongs to the first of them.

use std::collections::VecDeque;
use std::io::BufReader;

use crate::config::{InputFormat, InputSection};
use crate::error::SourceError;
use crate::items::{ManifestEntry, ObjectRef, ShardContent, ShardFormat, ShardRef};
use crate::shown::without_secrets;

use super::classify::Classifier;
use super::companions;
use super::compression::decompressed;
use super::found::{Found, Listed, Names};
use super::input::{Earlier, Input, refuse_repeated};
use super::manifest::ManifestEntries;
use super::names::names;
use super::naming::{self, Rule};
use super::skips::{SkipWarnings, Skips};
use crate::store::{Object, StoreKind, Stores, escaped};

/// The most companions in a virtual shard, for each image that it may hold.
const SIDECARS_PER_IMAGE: usize = 4;

/// Companions that are examined together.
const EXAMINED_AT_ONCE: usize = 32;

/// List the shards of `uris`, read as `input` says. Inputs without glob characters are looked up at once, so that a
/// typo is found before any work starts. Nothing is listed yet.
///
/// # Errors
/// [`SourceError::Uri`] for an input that cannot be understood or is given twice,
/// [`SourceError::Storage`] for one that is missing or denied. Iterating can fail in the same
/// ways, and with [`SourceError::NoInput`] for an input that holds nothing to score.
pub fn list_shards(stores: &Stores, uris: &[String], input: &InputSection) -> Result<ShardList, SourceError> {
    let inputs = uris.iter().map(|uri| Input::find(stores, uri)).collect::<Result<Vec<_>, _>>()?;
    refuse_repeated(&inputs)?;
    Ok(ShardList {
        stores: stores.clone(),
        classifier: Classifier { stores: stores.clone(), format: input.format },
        files_per_shard: input.files_per_shard,
        allow_empty: input.allow_empty,
        has_keys: input.image_key.is_some() || input.id_key.is_some(),
        inputs,
        position: 0,
        earlier: Earlier::default(),
        names: None,
        manifest: None,
        loose: Vec::new(),
        loose_images: 0,
        ready: VecDeque::new(),
        next_index: 0,
        tally: Tally::default(),
        skips: Skips::default(),
        warnings: Some(SkipWarnings::default()),
        ended: false,
    })
}

/// Streams the shards of a run in input order. Ends after the first `Err`.
///
/// Blocks on the store, so it must not be used inside an async task.
pub struct ShardList {
    stores: Stores,
    classifier: Classifier,
    files_per_shard: usize,
    allow_empty: bool,
    /// Whether the first loose image causes a warning that the plan's keys do not apply to it.
    has_keys: bool,
    inputs: Vec<Input>,
    /// The input being listed.
    position: usize,
    earlier: Earlier,
    /// The names of that input; `None` before its listing starts.
    names: Option<Names>,
    /// The manifest that is being read, if any.
    manifest: Option<Manifest>,
    /// Objects of the virtual shard that is being assembled, and how many of them are images by name.
    loose: Vec<ManifestEntry>,
    loose_images: usize,
    /// Shards that were found and not yet returned, such as a virtual shard and the container that ended it.
    ready: VecDeque<ShardRef>,
    next_index: u64,
    tally: Tally,
    /// Objects that are in no shard, of all inputs.
    skips: Skips,
    /// `None` for a quiet list.
    warnings: Option<SkipWarnings>,
    ended: bool,
}

/// Counts of the objects of one input.
#[derive(Default)]
struct Tally {
    /// Containers, images and lines of manifests.
    taken: u64,
    /// Companions of images in shards.
    sidecars: u64,
    repeated: u64,
    manifests: u64,
    skips: Skips,
}

struct Manifest {
    object: Object,
    entries: ManifestEntries<BufReader<Box<dyn std::io::Read + Send>>>,
}

impl Iterator for ShardList {
    type Item = Result<ShardRef, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(shard) = self.ready.pop_front() {
                return Some(Ok(shard));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.step() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

impl ShardList {
    /// Process one more object, or finish an input.
    fn step(&mut self) -> Result<(), SourceError> {
        if self.manifest.is_some() {
            return self.step_manifest();
        }
        let Some(input) = self.inputs.get(self.position) else {
            self.ended = true;
            return Ok(());
        };
        let names = self.names.get_or_insert_with(|| names(&self.stores, input));
        match names.next() {
            Some(listed) => self.take(listed?),
            None => self.finish_input(),
        }
    }

    fn take(&mut self, listed: Listed) -> Result<(), SourceError> {
        match listed {
            Listed::Skipped(kind, name) => {
                self.skip(kind, &name);
                Ok(())
            }
            Listed::Named(object) => {
                let id = self.inputs[self.position].location.id();
                // a folder takes a list as a companion only, so an input may still name it as a manifest
                let is_list =
                    naming::is_manifest(&object.uri) && self.classifier.format != InputFormat::Manifest;
                if self
                    .earlier
                    .took(&self.inputs, &id, |input, name| !is_list && self.classifier.takes(input, name))
                {
                    self.tally.repeated += 1;
                    return Ok(());
                }
                let rule = self.classifier.named(&object)?;
                // ids are stored, and URLs may carry signatures
                let image_id = escaped(without_secrets(&object.uri).as_bytes());
                self.add(rule, ManifestEntry::new(object, image_id))
            }
            Listed::Found(found) => self.take_found(found),
        }
    }

    fn take_found(&mut self, found: Found) -> Result<(), SourceError> {
        let Found { name, path, size_bytes, version, is_folder_marker } = found;
        let input = &self.inputs[self.position];
        if !input.matches(&name) {
            return Ok(());
        }
        if is_folder_marker {
            self.skip(naming::FOLDER_MARKER, &name);
            return Ok(());
        }
        let uri = input.base_uri() + &name;
        let rule = match self.classifier.listed(input, &name) {
            // an unaddressable file can still be read as one image
            Rule::Container(_) | Rule::Manifest if path.is_some() => Rule::Image,
            rule => naming::of_size(rule, &name, size_bytes.unwrap_or(u64::MAX)),
        };
        if let Rule::Skip(kind) = rule {
            self.skip(kind, &name);
            return Ok(());
        }
        let id = input.base_id() + &name;
        if self.earlier.took(&self.inputs, &id, |input, name| self.classifier.takes(input, name)) {
            self.tally.repeated += 1;
            return Ok(());
        }
        let is_bucket = input.location.kind == StoreKind::Bucket;
        if is_bucket && size_bytes == Some(0) && self.classifier.is_folder_marker(&uri)? {
            self.skip(naming::FOLDER_MARKER, &name);
            return Ok(());
        }
        let object = ObjectRef { uri: uri.clone(), size_bytes, version };
        self.add(rule, ManifestEntry { path, ..ManifestEntry::new(object, uri) })
    }

    fn skip(&mut self, kind: &str, name: &str) {
        self.tally.skips.add(kind, name);
        self.skips.add(kind, name);
    }

    /// The same list without warnings, for a second listing.
    pub fn quiet(self) -> Self {
        Self { warnings: None, ..self }
    }

    /// Objects found so far that are in no shard; complete once the list has ended.
    pub fn skips(&self) -> Skips {
        self.skips.clone()
    }

    fn add(&mut self, rule: Rule, entry: ManifestEntry) -> Result<(), SourceError> {
        match rule {
            Rule::Image => {
                self.tally.taken += 1;
                self.loose_images += 1;
                self.warn_of_keys(&entry.object.uri);
                self.add_loose(entry);
            }
            Rule::Sidecar(kind) => {
                self.tally.sidecars += 1;
                self.add_loose(ManifestEntry { sidecar: Some(kind.into()), ..entry });
            }
            Rule::Container(format) => {
                self.tally.taken += 1;
                self.flush_images();
                let object = self.versioned(entry.object)?;
                self.push(object.uri.clone(), format, ShardContent::Container(object));
            }
            Rule::Manifest => {
                self.flush_images();
                self.tally.manifests += 1;
                self.manifest = Some(Manifest::open(&self.stores, &entry.object, self.skips.clone())?);
            }
            Rule::Skip(kind) => self.skip(kind, &entry.object.uri),
        }
        Ok(())
    }

    fn add_loose(&mut self, entry: ManifestEntry) {
        self.loose.push(entry);
        let sidecars = self.loose.len() - self.loose_images;
        if self.loose_images == self.files_per_shard
            || sidecars >= SIDECARS_PER_IMAGE.saturating_mul(self.files_per_shard)
        {
            self.flush_loose();
        }
    }

    /// Warn once that the keys of the plan do not apply to loose images such as `uri`.
    fn warn_of_keys(&mut self, uri: &str) {
        if std::mem::take(&mut self.has_keys) && self.warnings.is_some() {
            tracing::warn!(uri, "input.image_key and input.id_key do not apply to loose images");
        }
    }

    /// Look up the version of a local container whose listing gave none. Containers are few enough for that.
    fn versioned(&self, object: ObjectRef) -> Result<ObjectRef, SourceError> {
        if object.version.is_some() {
            return Ok(object);
        }
        let location = self.stores.resolve(&object.uri)?;
        if location.kind != StoreKind::Local {
            return Ok(object);
        }
        Ok(self.stores.head(&location)?)
    }

    /// Read the entries of one virtual shard from a manifest.
    fn step_manifest(&mut self) -> Result<(), SourceError> {
        let Some(manifest) = &mut self.manifest else { return Ok(()) };
        let mut first_line = None;
        let mut entries = Vec::new();
        while entries.len() < self.files_per_shard {
            let Some((line, entry)) = manifest.next_entry()? else { break };
            first_line.get_or_insert(line);
            entries.push(entry);
        }
        self.tally.taken += entries.len() as u64;
        match first_line {
            Some(line) => {
                let name = format!("{}#{line}+{}", manifest.object.uri(), entries.len());
                self.push(name, ShardFormat::Files, ShardContent::Objects(entries));
            }
            None => self.manifest = None,
        }
        Ok(())
    }

    /// End the virtual shard before a container; companions without an image wait for the next images.
    fn flush_images(&mut self) {
        if self.loose_images > 0 {
            self.flush_loose();
        }
    }

    fn flush_loose(&mut self) {
        let (images, entries) = (std::mem::take(&mut self.loose_images), std::mem::take(&mut self.loose));
        let first = entries.iter().find(|entry| entry.sidecar.is_none()).or(entries.first());
        if let Some(first) = first {
            let count = if images > 0 { images } else { entries.len() };
            let name = format!("{}+{count}", first.object.uri);
            self.push(name, ShardFormat::Files, ShardContent::Objects(entries));
        }
    }

    fn push(&mut self, name: String, format: ShardFormat, content: ShardContent) {
        // names are stored, and URLs may carry signatures
        let name = without_secrets(&name);
        self.ready.push_back(ShardRef::new(self.next_index, name, format, content));
        self.next_index += 1;
    }

    fn finish_input(&mut self) -> Result<(), SourceError> {
        let uri = self.inputs[self.position].uri.clone();
        if self.tally.taken + self.tally.repeated == 0 && self.tally.sidecars == self.loose.len() as u64 {
            self.examine_sidecars()?;
        }
        self.flush_loose();
        let tally = std::mem::take(&mut self.tally);
        if let Some(warnings) = &self.warnings {
            warnings.warn(&uri, &tally.skips);
        }
        if tally.taken + tally.sidecars + tally.repeated == 0 {
            if !self.allow_empty {
                return Err(SourceError::NoInput { uri, message: tally.to_string() });
            }
            if self.warnings.is_some() {
                tracing::warn!(input = uri, found = %tally, "input holds nothing to score, which is allowed");
            }
        } else if tally.repeated > 0 && self.warnings.is_some() {
            tracing::warn!(input = uri, repeated = tally.repeated, "skipped objects of earlier inputs");
        }
        self.earlier.add(&self.inputs, self.position);
        self.names = None;
        self.position += 1;
        Ok(())
    }

    /// Examine the companions of an input that has nothing else, so that an input without an image is reported before a
    /// run begins.
    fn examine_sidecars(&mut self) -> Result<(), SourceError> {
        for entries in self.loose.chunks(EXAMINED_AT_ONCE) {
            if companions::are_records(&self.stores, entries)?.contains(&true) {
                return Ok(());
            }
        }
        for ManifestEntry { object, sidecar, .. } in std::mem::take(&mut self.loose) {
            self.skip(sidecar.as_deref().unwrap_or(naming::NO_EXTENSION), &object.uri);
        }
        self.tally.sidecars = 0;
        Ok(())
    }
}

/// The contents of an input without images.
impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.manifests > 0 {
            return f.write_str("the manifest names no image");
        }
        let skipped = self.skips.counts();
        if skipped.is_empty() {
            return f.write_str("nothing matches");
        }
        write!(f, "skipped {} that are not images: {skipped}", skipped.total())?;
        if ["txt", "jsonl", "ndjson"].iter().any(|kind| skipped.of(kind) > 0) {
            f.write_str(
                " (to score a list of images, name it as an input or set input.format = \"manifest\")",
            )?;
        }
        Ok(())
    }
}

impl Manifest {
    fn open(stores: &Stores, object: &ObjectRef, skips: Skips) -> Result<Self, SourceError> {
        let opened = Object::open(stores, object)?;
        let content = decompressed(opened.reader()).map_err(|error| match opened.take_error() {
            Some(fault) => SourceError::Storage(fault),
            None => SourceError::Uri { uri: object.uri.clone(), message: error.to_string() },
        })?;
        let entries = ManifestEntries::new(BufReader::new(content), object.uri.clone(), skips);
        Ok(Self { object: opened, entries })
    }

    fn next_entry(&mut self) -> Result<Option<(u64, ManifestEntry)>, SourceError> {
        let entry = self.entries.next_entry();
        entry.map_err(|error| self.object.take_error().map_or(error, SourceError::Storage))
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
