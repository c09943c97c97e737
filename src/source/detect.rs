//! Recognises the format of an object by its first bytes.
//!
//! Input: up to [`SNIFF_BYTES`] bytes. Output: a format, or `None` if no reader here understands the bytes. Names
//! are judged in `naming`.
//!
//! - Magic numbers are those of the formats' own specifications.

use std::io::Read;

use crate::items::ShardFormat;
use crate::sniff::{image_format, is_parquet, is_tfrecord, is_zlib};

use super::compression::{Compression, decompressed, decompressed_records};
use super::members;

/// The number of first bytes that [`by_bytes`] needs. A zstd frame yields nothing until its first block, of up to 128
/// KiB, is complete.
pub const SNIFF_BYTES: u64 = 256 << 10;

/// The format of an object by its magic number or, for a format without one, by a checksum. A manifest has neither.
pub fn by_bytes(head: &[u8]) -> Option<ShardFormat> {
    if is_parquet(head) {
        return Some(ShardFormat::Parquet);
    }
    if image_format(head).is_some() {
        return Some(ShardFormat::Files);
    }
    let mut start = Vec::new();
    if Compression::of(head) == Compression::None {
        start.extend_from_slice(&head[..head.len().min(members::BLOCK_BYTES)]);
    } else if let Ok(content) = decompressed(head) {
        // an error only means that the head ends inside the compressed stream
        let _ = content.take(members::BLOCK_BYTES as u64).read_to_end(&mut start);
    }
    if !is_tfrecord(&start) && is_zlib(&start) {
        let packed = std::mem::take(&mut start);
        if let Ok(content) = decompressed_records(&packed[..], |_| false) {
            let _ = content.take(members::BLOCK_BYTES as u64).read_to_end(&mut start);
        }
    }
    if members::is_header(&start) {
        Some(ShardFormat::Webdataset)
    } else if is_tfrecord(&start) {
        Some(ShardFormat::Tfrecord)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::tests::{gzip, zlib, zstd};
    use super::super::{tfrecord, webdataset};
    use super::*;

    #[test]
    fn formats_are_recognised_by_first_bytes() {
        let tar = webdataset::tests::archive(&[("a.jpg", b"x")]);
        let tfrecord = tfrecord::tests::frame(&[7; 1000]);
        assert_eq!(by_bytes(b"PAR1...."), Some(ShardFormat::Parquet));
        assert_eq!(by_bytes(&zlib(&tfrecord)), Some(ShardFormat::Tfrecord));
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
        fn detection_never_panics_on_random_bytes(head in proptest::collection::vec(proptest::num::u8::ANY, 0..700)) {
            let _ = by_bytes(&head);
            let _ = by_bytes(&[&[0x1f, 0x8b, 8], &head[..]].concat());
            let _ = by_bytes(&[&[0x28, 0xb5, 0x2f, 0xfd], &head[..]].concat());
        }
    }
}
