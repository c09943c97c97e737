//! What an object is, by its name or by its first bytes.
//!
//! Comes in: a name, and where that says nothing, up to [`SNIFF_BYTES`] bytes. Goes out: an
//! [`ObjectKind`], or `None` for what no reader here understands.
//!
//! - Inside a folder only names count: looking into every object would cost a request each.
//! - Magic numbers are those of the formats' own specifications.

use std::io::Read;

use crate::items::ShardFormat;
pub use crate::sniff::image_format;

use super::compression::{Compression, decompressed};
use super::{tfrecord, webdataset};

/// First bytes that [`by_bytes`] wants to see. A zstd frame gives nothing before its first block of
/// up to 128 KiB is whole.
pub const SNIFF_BYTES: u64 = 256 << 10;

/// What to do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// Records in this format; [`ShardFormat::Files`] is one loose image.
    Shard(ShardFormat),
    /// A list of loose images.
    Manifest,
}

/// By the extension, in any case: `.tfrecord` and `.tfrecords` (also followed by a shard number
/// such as `-00000-of-00010`), `.tar`, `.tgz`, `.parquet`, image extensions, and `.txt` and
/// `.jsonl` for manifests; `.gz` and `.zst` may follow.
pub fn by_name(name: &str) -> Option<ObjectKind> {
    let name = name.rsplit('/').next()?.to_ascii_lowercase();
    let name = without_shard_number(&name);
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    let (_, extension) = without_shard_number(plain).rsplit_once('.')?;
    match extension {
        "tfrecord" | "tfrecords" => Some(ObjectKind::Shard(ShardFormat::Tfrecord)),
        "tar" | "tgz" | "tzst" => Some(ObjectKind::Shard(ShardFormat::Webdataset)),
        "parquet" if plain == name => Some(ObjectKind::Shard(ShardFormat::Parquet)),
        "txt" | "jsonl" | "ndjson" => Some(ObjectKind::Manifest),
        _ if plain == name && has_image_extension(name) => Some(ObjectKind::Shard(ShardFormat::Files)),
        _ => None,
    }
}

/// Whether the last extension of `name` is that of an image format we decode, in any case.
pub fn has_image_extension(name: &str) -> bool {
    const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
    name.rsplit_once('.')
        .is_some_and(|(_, extension)| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// By magic numbers and, where a format has none, by checksums. A manifest has neither.
pub fn by_bytes(head: &[u8]) -> Option<ShardFormat> {
    if head.starts_with(b"PAR1") {
        return Some(ShardFormat::Parquet);
    }
    if image_format(head).is_some() {
        return Some(ShardFormat::Files);
    }
    let mut start = Vec::new();
    if Compression::of(head) == Compression::None {
        start.extend_from_slice(&head[..head.len().min(webdataset::BLOCK_BYTES)]);
    } else if let Ok(content) = decompressed(head) {
        // an error only means that the head ends inside the compressed stream
        let _ = content.take(webdataset::BLOCK_BYTES as u64).read_to_end(&mut start);
    }
    if webdataset::is_header(&start) {
        Some(ShardFormat::Webdataset)
    } else if tfrecord::is_header(&start) {
        Some(ShardFormat::Tfrecord)
    } else {
        None
    }
}

/// Cut `-00003-of-00010` off the end.
fn without_shard_number(name: &str) -> &str {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((rest, total)) = name.rsplit_once("-of-") else { return name };
    match rest.rsplit_once('-') {
        Some((stem, shard)) if number(shard) && number(total) => stem,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::tests::{gzip, zstd};
    use super::*;

    #[test]
    fn names_are_told_by_extension_in_any_case() {
        use ObjectKind::{Manifest, Shard};
        let cases = [
            ("gs://b/a.tfrecord", Some(Shard(ShardFormat::Tfrecord))),
            ("a.tfrecords.gz", Some(Shard(ShardFormat::Tfrecord))),
            ("train.tfrecord-00000-of-00010", Some(Shard(ShardFormat::Tfrecord))),
            ("train-00000-of-00010.tfrecord", Some(Shard(ShardFormat::Tfrecord))),
            ("train.tfrecord-00000-of-00010.gz", Some(Shard(ShardFormat::Tfrecord))),
            ("a.tar", Some(Shard(ShardFormat::Webdataset))),
            ("A.TAR.GZ", Some(Shard(ShardFormat::Webdataset))),
            ("a.tgz", Some(Shard(ShardFormat::Webdataset))),
            ("a.tar.zst", Some(Shard(ShardFormat::Webdataset))),
            ("data/train-00000-of-00002.parquet", Some(Shard(ShardFormat::Parquet))),
            ("cat.JPEG", Some(Shard(ShardFormat::Files))),
            ("v1.2/cat.tiff", Some(Shard(ShardFormat::Files))),
            ("list.jsonl", Some(Manifest)),
            ("list.txt.gz", Some(Manifest)),
            ("a.csv", None),
            ("a.parquet.gz", None),
            ("a.jpg.gz", None),
            ("jpg", None),
            ("folder.tar/readme", None),
            ("train-00000-of-00010", None),
        ];
        for (name, expected) in cases {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }

    #[test]
    fn contents_are_told_by_their_first_bytes() {
        let tar = webdataset::tests::archive(&[("a.jpg", b"x")]);
        let tfrecord = tfrecord::tests::frame(&[7; 1000]);
        assert_eq!(by_bytes(b"PAR1...."), Some(ShardFormat::Parquet));
        for pack in [|bytes: &[u8]| bytes.to_vec(), gzip, zstd] {
            assert_eq!(by_bytes(&pack(&tar)), Some(ShardFormat::Webdataset));
            assert_eq!(by_bytes(&pack(&tfrecord)), Some(ShardFormat::Tfrecord));
        }
        assert_eq!(by_bytes(b"\xff\xd8\xff\xe0"), Some(ShardFormat::Files));
        for nothing in [&b""[..], b"hello", &[0; 512]] {
            assert_eq!(by_bytes(nothing), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic_detection(head in proptest::collection::vec(proptest::num::u8::ANY, 0..700)) {
            let _ = by_bytes(&head);
            let _ = by_bytes(&[&[0x1f, 0x8b, 8], &head[..]].concat());
            let _ = by_bytes(&[&[0x28, 0xb5, 0x2f, 0xfd], &head[..]].concat());
        }

        #[test]
        fn random_names_never_panic_detection(name in "\\PC*") {
            let _ = by_name(&name);
        }
    }
}
