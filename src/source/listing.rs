//! From input URIs to shards.
//!
//! Comes in: the inputs of a plan. Goes out: [`ShardList`], the shards in input order, found as
//! they are asked for.
//!
//! - Order is that of the inputs, and inside one that of the full names (local folders are sorted
//!   one at a time; buckets list in this order by themselves). It is the same in every run.
//! - Held at any time: one local folder's names or one page of a bucket's, and the images of one
//!   unfinished virtual shard.
//! - Loose images are cut into virtual shards of `files_per_shard`. One never mixes inputs nor
//!   spans a container or manifest between its images.
//! - Shard names are unique: a container's is its URI, a virtual shard's is its first image's URI,
//!   `+` and its number of images (`gs://b/cat.jpg+1000`), a manifest's is the manifest's URI, `#`
//!   and its first entry's line, `+` and its number of entries (`list.txt#1+1000`). An object that
//!   two inputs match belongs to the first.

use std::collections::VecDeque;
use std::io::BufReader;

use crate::config::{InputFormat, InputSection};
use crate::error::SourceError;
use crate::items::{ManifestEntry, ObjectRef, ShardContent, ShardFormat, ShardRef};

use super::compression::decompressed;
use super::detect::{ObjectKind, SNIFF_BYTES, by_bytes, by_name};
use super::input::{Earlier, Input, refuse_repeated};
use super::manifest::ManifestEntries;
use super::names::{Listed, Names, names};
use super::object::Object;
use super::store::{StoreKind, Stores};

/// List the shards of `uris`, read as `input` says. Inputs without glob characters are looked up now, so that a typo is
/// found before any work is done; nothing is listed yet.
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
        format: input.format,
        files_per_shard: input.files_per_shard,
        inputs,
        position: 0,
        earlier: Earlier::default(),
        names: None,
        manifest: None,
        loose: Vec::new(),
        ready: VecDeque::new(),
        next_index: 0,
        tally: Tally::default(),
        ended: false,
    })
}

/// Streams the shards of a run in input order. Ends after the first `Err`.
///
/// Blocks on the store; must be used on a thread that is not an async task.
pub struct ShardList {
    stores: Stores,
    format: InputFormat,
    files_per_shard: usize,
    inputs: Vec<Input>,
    /// The input being listed.
    position: usize,
    earlier: Earlier,
    /// What that input finds; `None` before it is begun.
    names: Option<Names>,
    /// A manifest met among them, being read.
    manifest: Option<Manifest>,
    /// Images of the virtual shard being put together.
    loose: Vec<ManifestEntry>,
    /// Shards found and not yet handed out: a virtual shard and the container that ended it.
    ready: VecDeque<ShardRef>,
    next_index: u64,
    tally: Tally,
    ended: bool,
}

/// What became of the names of one input.
#[derive(Default)]
struct Tally {
    taken: u64,
    hidden: u64,
    unknown: u64,
    first_unknown: Option<String>,
    unreadable: u64,
    repeated: u64,
    manifests: u64,
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
    /// Look at one more object, or finish an input.
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
        let input = &self.inputs[self.position];
        match listed {
            Listed::Unreadable(name) => {
                tracing::debug!(input = input.uri, name, "skipped a name that cannot be addressed");
                self.tally.unreadable += 1;
                Ok(())
            }
            Listed::Named(object) => {
                let id = input.location.id();
                let listed_kind = self.listed_kind(&object.uri).is_some();
                if self.earlier.took(&self.inputs, &id, listed_kind) {
                    self.tally.repeated += 1;
                    return Ok(());
                }
                let kind = self.named_kind(&object)?;
                self.add(kind, object)
            }
            Listed::Found(found) => {
                if !input.matches(&found.name) {
                    return Ok(());
                }
                if input.hides(&found.name) {
                    self.tally.hidden += 1;
                    return Ok(());
                }
                let Some(kind) = self.listed_kind(&found.name) else {
                    let base = found.name.rsplit('/').next().unwrap_or(&found.name);
                    if found.size_bytes == Some(0) && !base.contains('.') {
                        // as a rule made to show a folder; there is nothing in it to score in any case
                        return Ok(());
                    }
                    tracing::debug!(input = input.uri, name = found.name, "skipped a name of unknown type");
                    self.tally.unknown += 1;
                    self.tally.first_unknown.get_or_insert(found.name);
                    return Ok(());
                };
                if self.earlier.took(&self.inputs, &(input.base_id() + &found.name), true) {
                    self.tally.repeated += 1;
                    return Ok(());
                }
                let uri = input.base_uri() + &found.name;
                let is_bucket = input.location.kind == StoreKind::Bucket;
                if is_bucket && found.size_bytes == Some(0) && self.is_folder_marker(&uri)? {
                    return Ok(());
                }
                self.add(kind, ObjectRef { uri, size_bytes: found.size_bytes, version: found.version })
            }
        }
    }

    /// Whether an object of no bytes that was listed as `uri` is not there by this name: consoles make an
    /// object `folder/` to show an empty folder, and it is listed without its slash.
    fn is_folder_marker(&self, uri: &str) -> Result<bool, SourceError> {
        match self.stores.head(&self.stores.resolve(uri)?) {
            Ok(_) => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// What to do with an object that was found by listing, by its name.
    fn listed_kind(&self, name: &str) -> Option<ObjectKind> {
        match self.format {
            // a text file in a folder of images is a caption or a readme, not a list
            InputFormat::Auto => by_name(name).filter(|kind| *kind != ObjectKind::Manifest),
            InputFormat::Tfrecord => Some(ObjectKind::Shard(ShardFormat::Tfrecord)),
            InputFormat::Webdataset => Some(ObjectKind::Shard(ShardFormat::Webdataset)),
            InputFormat::Parquet => Some(ObjectKind::Shard(ShardFormat::Parquet)),
            InputFormat::Files => Some(ObjectKind::Shard(ShardFormat::Files)),
            InputFormat::Manifest => Some(ObjectKind::Manifest),
        }
    }

    /// What to do with an object that an input names: its name decides, then its first bytes.
    fn named_kind(&self, object: &ObjectRef) -> Result<ObjectKind, SourceError> {
        let by_name = self.listed_kind(&object.uri).or_else(|| by_name(&object.uri));
        if let Some(kind) = by_name {
            return Ok(kind);
        }
        let opened = self.stores.open(object)?;
        let head = opened.read_range(0..opened.size_bytes().min(SNIFF_BYTES))?;
        by_bytes(&head).map(ObjectKind::Shard).ok_or_else(|| SourceError::Uri {
            uri: object.uri.clone(),
            message: "neither its name nor its first bytes tell its format; set input.format".to_owned(),
        })
    }

    fn add(&mut self, kind: ObjectKind, object: ObjectRef) -> Result<(), SourceError> {
        match kind {
            ObjectKind::Shard(ShardFormat::Files) => {
                self.tally.taken += 1;
                self.loose.push(ManifestEntry { image_id: object.uri.clone(), object });
                if self.loose.len() == self.files_per_shard {
                    self.flush_loose();
                }
            }
            ObjectKind::Shard(format) => {
                self.tally.taken += 1;
                self.flush_loose();
                let object = self.versioned(object)?;
                self.push(object.uri.clone(), format, ShardContent::Container(object));
            }
            ObjectKind::Manifest => {
                self.flush_loose();
                self.tally.manifests += 1;
                self.manifest = Some(Manifest::open(&self.stores, &object)?);
            }
        }
        Ok(())
    }

    /// A walk of folders tells no versions. Containers are few enough to be asked for theirs.
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

    /// Read as much of a manifest as makes one virtual shard.
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

    fn flush_loose(&mut self) {
        let entries = std::mem::take(&mut self.loose);
        if let Some(first) = entries.first() {
            let name = format!("{}+{}", first.object.uri, entries.len());
            self.push(name, ShardFormat::Files, ShardContent::Objects(entries));
        }
    }

    fn push(&mut self, name: String, format: ShardFormat, content: ShardContent) {
        self.ready.push_back(ShardRef {
            index: self.next_index,
            name,
            format,
            content,
            resume_at: 0,
            crashed: Default::default(),
        });
        self.next_index += 1;
    }

    fn finish_input(&mut self) -> Result<(), SourceError> {
        self.flush_loose();
        let uri = self.inputs[self.position].uri.clone();
        let tally = std::mem::take(&mut self.tally);
        if tally.taken + tally.repeated == 0 {
            return Err(SourceError::NoInput { uri, message: tally.to_string() });
        }
        if tally.unknown + tally.unreadable + tally.repeated > 0 {
            tracing::warn!(
                input = uri,
                unknown = tally.unknown,
                first_unknown = tally.first_unknown,
                unreadable = tally.unreadable,
                repeated = tally.repeated,
                "skipped names of unknown type, names that cannot be addressed and objects of earlier inputs"
            );
        }
        self.earlier.add(&self.inputs, self.position);
        self.names = None;
        self.position += 1;
        Ok(())
    }
}

/// What was found instead of something to score.
impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.manifests > 0 {
            return f.write_str("the manifest names no image");
        }
        if self.hidden + self.unknown + self.unreadable == 0 {
            return f.write_str("nothing matches");
        }
        let mut comma = "";
        if let Some(first) = &self.first_unknown {
            write!(f, "{} of unknown type, such as {first} (set input.format?)", self.unknown)?;
            comma = ", ";
        }
        for (count, what) in
            [(self.hidden, "hidden"), (self.unreadable, "with names that cannot be addressed")]
        {
            if count > 0 {
                write!(f, "{comma}{count} {what}")?;
                comma = ", ";
            }
        }
        Ok(())
    }
}

impl Manifest {
    fn open(stores: &Stores, object: &ObjectRef) -> Result<Self, SourceError> {
        let opened = stores.open(object)?;
        let content = decompressed(opened.reader()).map_err(|error| match opened.take_fault() {
            Some(fault) => SourceError::Storage(fault),
            None => SourceError::Uri { uri: object.uri.clone(), message: error.to_string() },
        })?;
        let entries = ManifestEntries::new(BufReader::new(content), object.uri.clone());
        Ok(Self { object: opened, entries })
    }

    fn next_entry(&mut self) -> Result<Option<(u64, ManifestEntry)>, SourceError> {
        let entry = self.entries.next_entry();
        entry.map_err(|error| self.object.take_fault().map_or(error, SourceError::Storage))
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
