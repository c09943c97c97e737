//! The guarantees of every shard format, checked by one suite.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, StringArray};

use super::open::open_shard;
use super::records::{OpenedShard, ReadOptions};
use super::{parquet, tfrecord, webdataset};
use crate::error::ReadError;
use crate::items::{ManifestEntry, ObjectRef, RawRecord, ShardContent, ShardFormat, ShardRef, Status};
use crate::store::local_stores;

type Image = (String, Vec<u8>);

/// A length in bytes that no machine can allocate.
const CLAIM: u64 = 1 << 50;

/// A shard format under test: how it stores images and how it fails.
trait Format {
    const FORMAT: ShardFormat;
    /// Whether a fault ends the shard. If not, it costs one record.
    const FAULT_ENDS_SHARD: bool = true;
    /// Sound records of ten that are left before a fault that ends the shard.
    const SOUND: usize = 0;
    /// The kind under which the companion of [`Format::with_companion`] is counted; `None` for a format without
    /// companions.
    const COMPANION: Option<&str> = None;

    /// A shard of `images` in `folder`.
    fn write(folder: &Path, images: &[Image]) -> ShardRef;
    /// Damage a shard that [`Format::write`] made.
    fn damage(shard: &ShardRef);
    /// A shard that claims to hold [`CLAIM`] bytes, or at least more bytes than its file has.
    fn claiming(folder: &Path) -> ShardRef;
    /// A shard of `images` and, if the format has companions, one that is not a record.
    fn with_companion(folder: &Path, images: &[Image]) -> ShardRef {
        Self::write(folder, images)
    }
}

fn container(format: ShardFormat, folder: &Path, bytes: &[u8]) -> ShardRef {
    let path = folder.join(format.as_str());
    std::fs::write(&path, bytes).expect("write");
    let uri = path.to_str().expect("UTF-8").to_owned();
    let object = ObjectRef { uri: uri.clone(), size_bytes: None, version: None };
    ShardRef::new(0, uri, format, ShardContent::Container(object))
}

/// The files of a shard.
fn paths(shard: &ShardRef) -> Vec<PathBuf> {
    match &shard.content {
        ShardContent::Container(object) => vec![PathBuf::from(&object.uri)],
        ShardContent::Objects(entries) => {
            entries.iter().map(|entry| PathBuf::from(&entry.object.uri)).collect()
        }
    }
}

/// Cut the file of a container to two thirds of its length.
fn cut(shard: &ShardRef) {
    let path = &paths(shard)[0];
    let bytes = std::fs::read(path).expect("read");
    std::fs::write(path, &bytes[..bytes.len() * 2 / 3]).expect("write");
}

struct Tfrecord;

impl Format for Tfrecord {
    const FORMAT: ShardFormat = ShardFormat::Tfrecord;
    const SOUND: usize = 6;

    fn write(folder: &Path, images: &[Image]) -> ShardRef {
        let records = images.iter().flat_map(|(id, bytes)| tfrecord::tests::image_record(id, bytes));
        container(Self::FORMAT, folder, &records.collect::<Vec<_>>())
    }

    fn damage(shard: &ShardRef) {
        cut(shard);
    }

    fn claiming(folder: &Path) -> ShardRef {
        let length = CLAIM.to_le_bytes();
        let header = [&length[..], &crate::sniff::masked_crc(&length).to_le_bytes()].concat();
        container(Self::FORMAT, folder, &header)
    }
}

struct Webdataset;

impl Format for Webdataset {
    const FORMAT: ShardFormat = ShardFormat::Webdataset;
    const SOUND: usize = 6;
    const COMPANION: Option<&str> = Some("json");

    fn write(folder: &Path, images: &[Image]) -> ShardRef {
        let names: Vec<_> = images.iter().map(|(id, _)| format!("{id}.jpg")).collect();
        let members: Vec<_> =
            names.iter().zip(images).map(|(name, (_, bytes))| (&name[..], &bytes[..])).collect();
        container(Self::FORMAT, folder, &webdataset::tests::archive(&members))
    }

    fn damage(shard: &ShardRef) {
        cut(shard);
    }

    fn claiming(folder: &Path) -> ShardRef {
        let mut header = tar::Header::new_gnu();
        header.set_path("a.jpg").expect("a path");
        header.set_size(CLAIM);
        header.set_cksum();
        container(Self::FORMAT, folder, header.as_bytes())
    }

    fn with_companion(folder: &Path, images: &[Image]) -> ShardRef {
        let names: Vec<_> = images.iter().map(|(id, _)| format!("{id}.jpg")).collect();
        let mut members: Vec<_> =
            names.iter().zip(images).map(|(name, (_, bytes))| (&name[..], &bytes[..])).collect();
        members.insert(1, ("caption.json", b"{}"));
        container(Self::FORMAT, folder, &webdataset::tests::archive(&members))
    }
}

struct Parquet;

impl Format for Parquet {
    const FORMAT: ShardFormat = ShardFormat::Parquet;

    fn write(folder: &Path, images: &[Image]) -> ShardRef {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|(id, _)| id)));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|(_, bytes)| bytes)));
        container(Self::FORMAT, folder, &parquet::tests::file(vec![("id", ids), ("image", bytes)]))
    }

    /// The cut removes the footer, without which no record can be read.
    fn damage(shard: &ShardRef) {
        cut(shard);
    }

    fn claiming(folder: &Path) -> ShardRef {
        container(
            Self::FORMAT,
            folder,
            &[b"PAR1", &[0; 100][..], &0x7fff_fff0_u32.to_le_bytes(), b"PAR1"].concat(),
        )
    }
}

struct Files;

impl Files {
    fn shard(entries: Vec<ManifestEntry>) -> ShardRef {
        ShardRef::new(0, "files", ShardFormat::Files, ShardContent::Objects(entries))
    }

    fn entry(folder: &Path, name: &str, bytes: &[u8], id: &str) -> ManifestEntry {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("write");
        let uri = path.to_str().expect("UTF-8").to_owned();
        ManifestEntry::new(ObjectRef { uri, size_bytes: None, version: None }, id.to_owned())
    }

    fn entries(folder: &Path, images: &[Image]) -> Vec<ManifestEntry> {
        images.iter().map(|(id, bytes)| Self::entry(folder, &format!("{id}.jpg"), bytes, id)).collect()
    }
}

impl Format for Files {
    const FORMAT: ShardFormat = ShardFormat::Files;
    const FAULT_ENDS_SHARD: bool = false;
    const COMPANION: Option<&str> = Some("json");

    fn write(folder: &Path, images: &[Image]) -> ShardRef {
        Self::shard(Self::entries(folder, images))
    }

    fn damage(shard: &ShardRef) {
        std::fs::remove_file(&paths(shard)[2]).expect("remove");
    }

    fn claiming(folder: &Path) -> ShardRef {
        let mut entry = Self::entry(folder, "a.jpg", b"short", "a");
        entry.object.size_bytes = Some(CLAIM);
        Self::shard(vec![entry])
    }

    fn with_companion(folder: &Path, images: &[Image]) -> ShardRef {
        let mut entries = Self::entries(folder, images);
        let companion = Self::entry(folder, "caption.json", b"{}", "caption");
        entries.insert(1, ManifestEntry { sidecar: Some("json".into()), ..companion });
        Self::shard(entries)
    }
}

fn options() -> ReadOptions {
    ReadOptions {
        image_key: None,
        id_key: Some("id".to_owned()),
        max_image_bytes: 8 << 20,
        max_page_bytes: 64 << 20,
    }
}

/// `count` incompressible images of `bytes` bytes each.
fn images(count: u64, bytes: u64) -> Vec<Image> {
    let noise = |seed: u64| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..bytes).map(next).collect()
    };
    (1..=count).map(|n| (format!("image-{n:02}"), noise(n))).collect()
}

/// The bytes of each image, or the status of its record.
fn contents(records: &[RawRecord]) -> Vec<Result<Vec<u8>, Status>> {
    let content = |record: &RawRecord| record.content.clone().map(|bytes| bytes.to_vec());
    records.iter().map(|record| content(record).map_err(|rejected| rejected.status)).collect()
}

fn conforms<F: Format>() {
    let (_runtime, stores) = local_stores();
    let open = |shard: &ShardRef, resume_at: u64| open_shard(&stores, shard, resume_at, &options());
    // records up to the first error, and that error; nothing follows an error
    let read = |shard: &ShardRef| -> (Vec<RawRecord>, Option<ReadError>) {
        let mut opened = match open(shard, 0) {
            Ok(opened) => opened,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut found = Vec::new();
        let error = loop {
            match opened.records.next() {
                Some(Ok(record)) => found.push(record),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        assert!(opened.records.next().is_none(), "{}: a reader ends after an error", F::FORMAT);
        (found, error)
    };
    let images = images(10, 2000);
    let expected: Vec<_> = images.iter().map(|(_, bytes)| Ok(bytes.clone())).collect();
    let folder = || tempfile::tempdir().expect("folder");

    // records come in order, with their ids and bytes
    let at = folder();
    let shard = F::write(at.path(), &images);
    let (found, error) = read(&shard);
    assert!(error.is_none(), "{}: {error:?}", F::FORMAT);
    assert_eq!(contents(&found), expected, "{}", F::FORMAT);
    if F::FORMAT != ShardFormat::Tfrecord {
        let stem = |id: &str| id.trim_end_matches(".jpg").to_owned();
        let ids: Vec<_> = found.iter().map(|record| stem(&record.image_id)).collect();
        assert_eq!(ids, images.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), "{}", F::FORMAT);
    }

    // a resumed shard begins at or before the record where it is resumed
    for resume_at in [0, 1, 4, 10] {
        let OpenedShard { first_record, records, .. } = open(&shard, resume_at).expect("open");
        assert!(first_record <= resume_at, "{}: {first_record}", F::FORMAT);
        let rest: Vec<_> = records.map(|record| record.expect("record")).collect();
        assert_eq!(contents(&rest), expected[first_record as usize..], "{} at {resume_at}", F::FORMAT);
    }

    // damage ends the shard with a reason after its sound records, or costs one record
    F::damage(&shard);
    let (found, error) = read(&shard);
    if F::FAULT_ENDS_SHARD {
        assert_eq!(contents(&found), expected[..F::SOUND], "{}", F::FORMAT);
        match error {
            Some(ReadError::Corrupt(reason)) => assert!(!reason.is_empty(), "{}", F::FORMAT),
            other => panic!("{}: {other:?}", F::FORMAT),
        }
    } else {
        let mut damaged = expected.clone();
        damaged[2] = Err(Status::ReadError);
        assert_eq!(contents(&found), damaged, "{}", F::FORMAT);
        assert!(error.is_none(), "{}: {error:?}", F::FORMAT);
    }

    // companions are counted
    let at = folder();
    let shard = F::with_companion(at.path(), &images);
    let mut opened = open(&shard, 0).expect("open");
    let found: Vec<_> = opened.records.by_ref().map(|record| record.expect("record")).collect();
    assert_eq!(contents(&found), expected, "{}", F::FORMAT);
    let skipped = opened.skips.counts();
    assert_eq!(skipped.total(), u64::from(F::COMPANION.is_some()), "{}: {skipped}", F::FORMAT);
    assert_eq!(F::COMPANION.map_or(0, |kind| skipped.of(kind)), skipped.total(), "{}: {skipped}", F::FORMAT);

    // a claimed length is not allocated
    let at = folder();
    let (found, error) = read(&F::claiming(at.path()));
    assert!(found.iter().all(|record| record.content.is_err()), "{}", F::FORMAT);
    assert!(!found.is_empty() || matches!(error, Some(ReadError::Corrupt(_))), "{}: {error:?}", F::FORMAT);

    // a missing container is a storage error, and a missing loose image is its record's reason
    let at = folder();
    let shard = F::write(at.path(), &images);
    paths(&shard).iter().for_each(|path| std::fs::remove_file(path).expect("remove"));
    let (found, error) = read(&shard);
    match error {
        Some(ReadError::Storage(error)) if F::FAULT_ENDS_SHARD => assert!(error.is_not_found(), "{error}"),
        None if !F::FAULT_ENDS_SHARD => assert_eq!(contents(&found), vec![Err(Status::ReadError); 10]),
        other => panic!("{}: {other:?}", F::FORMAT),
    }

    // a container that is replaced while it is read is a storage error, not damage
    if F::FAULT_ENDS_SHARD {
        let at = folder();
        // long enough that the end is not fetched before the first record is consumed
        let shard = F::write(at.path(), &self::images(8, 4 << 20));
        let mut found = open(&shard, 0).expect("open").records;
        found.next().expect("a record").expect("sound");
        std::fs::write(&paths(&shard)[0], b"replaced").expect("replace");
        let error = found.find_map(Result::err).expect("an error after the replacement");
        assert!(matches!(error, ReadError::Storage(_)), "{}: {error}", F::FORMAT);
    }
}

#[test]
fn tfrecord_conforms() {
    conforms::<Tfrecord>();
}

#[test]
fn webdataset_conforms() {
    conforms::<Webdataset>();
}

#[test]
fn parquet_conforms() {
    conforms::<Parquet>();
}

#[test]
fn loose_files_conform() {
    conforms::<Files>();
}
