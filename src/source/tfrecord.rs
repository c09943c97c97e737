//! TFRecord: framed `tf.Example` messages with checksums.
//!
//! Input: the uncompressed bytes of a shard. Output: one record for each frame.
//!
//! ```text
//! u64 length, u32 masked CRC32C of the length, data, u32 masked CRC32C of the data
//! ```
//! All little-endian, see `tensorflow/core/lib/io/record_writer.h`.
//!
//! - After a length with a checksum mismatch the start of the next frame is unknown, so the shard ends there. A
//!   checksum mismatch of the data costs only its own record.
//! - A frame longer than any acceptable image is skipped and never held.

use std::io::Read;

use bytes::Bytes;

use crate::error::ReadError;
use crate::items::{RawRecord, Rejected, Status};
use crate::sniff::{self, masked_crc};

use super::example::{self, Found, Value};
use super::records::{ReadOptions, image_content};
use super::stream::Stream;

/// Bytes of a frame before its data.
const HEADER_BYTES: usize = 12;

/// Bytes of a frame after its data.
const FOOTER_BYTES: u64 = 4;

/// Bytes that a record may hold besides its image (labels, boxes, captions). A longer one is rejected without being
/// parsed.
const RECORD_SLACK_BYTES: u64 = 1 << 20;

/// The image feature if no `image_key` is given: the one that TensorFlow's own dataset scripts write.
const DEFAULT_IMAGE_KEY: &str = "image/encoded";

/// The id features if no `id_key` is given. The first one that is present counts.
const DEFAULT_ID_KEYS: [&str; 2] = ["image/id", "image/filename"];

/// Feature names in a message about a missing image feature: enough to notice a typo.
const NAMES_SHOWN: usize = 12;

/// The records of one shard.
pub(super) struct TfRecords<R> {
    stream: Stream<R>,
    options: ReadOptions,
    next_index: u64,
    /// Whether a missing id feature was reported.
    reported_missing_id: bool,
}

impl<R: Read> TfRecords<R> {
    pub fn new(reader: R, options: ReadOptions) -> Self {
        Self { stream: Stream::new(reader), options, next_index: 0, reported_missing_id: false }
    }

    /// The next record; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        let start = self.stream.offset();
        let index = self.next_index;
        let corrupt = |what: &str| ReadError::Corrupt(format!("record {index} at byte {start}: {what}"));
        let failed = |error: std::io::Error| corrupt(&error.to_string());

        let mut header = [0; HEADER_BYTES];
        match self.stream.fill(&mut header).map_err(failed)? {
            0 => return Ok(None),
            HEADER_BYTES => {}
            _ => return Err(corrupt("the file ends inside the record's header")),
        }
        let Some(length) = checked_length(&header) else {
            let mut head = header.to_vec();
            if index == 0 {
                head.extend(self.stream.read_bytes(sniff::HEAD_BYTES as u64).map_err(failed)?);
            }
            // a damaged TFRecord file has images inside, too
            return Err(match sniff::name(&head).filter(|name| !sniff::is_image_inside(name)) {
                Some(name) if index == 0 => ReadError::Corrupt(format!("not a TFRecord file: it is {name}")),
                _ => corrupt(
                    "the checksum of the record's length does not hold, so the next record cannot be found",
                ),
            });
        };
        self.next_index += 1;

        let limit = self.options.max_image_bytes.saturating_add(RECORD_SLACK_BYTES);
        if length > limit {
            let rest = length.saturating_add(FOOTER_BYTES);
            if self.stream.skip(rest).map_err(failed)? < rest {
                return Err(corrupt(&format!("the file ends inside the record's {length} bytes")));
            }
            let message = format!("record is {length} bytes, limit is {limit} bytes");
            return Ok(Some(rejected(index, Rejected::new(Status::TooLarge, message))));
        }

        let data = self.stream.read_bytes(length).map_err(failed)?;
        let mut footer = [0; FOOTER_BYTES as usize];
        let whole =
            data.len() as u64 == length && self.stream.fill(&mut footer).map_err(failed)? == footer.len();
        if !whole {
            return Err(corrupt(&format!("the file ends inside the record's {length} bytes")));
        }
        if masked_crc(&data) != u32::from_le_bytes(footer) {
            let message = "the checksum of the record does not hold";
            return Ok(Some(rejected(index, Rejected::new(Status::CorruptRecord, message))));
        }
        Ok(Some(self.parse(index, data.into())))
    }

    fn parse(&mut self, index: u64, data: Bytes) -> RawRecord {
        let key = self.options.image_key.as_deref().unwrap_or(DEFAULT_IMAGE_KEY);
        let id_keys = self.options.id_key.as_deref().map_or(&DEFAULT_ID_KEYS[..], |_| &[]);
        let wanted: Vec<&str> =
            [key].into_iter().chain(self.options.id_key.as_deref()).chain(id_keys.iter().copied()).collect();
        let mut found = match example::features(data.clone(), &wanted) {
            Ok(found) => found.into_iter(),
            Err(error) => {
                let message = format!("the record is not a tf.Example: {error}");
                return rejected(index, Rejected::new(Status::CorruptRecord, message));
            }
        };
        let image = found.next().flatten();
        // writers without an id leave the feature empty
        let id = found.flatten().filter_map(|found| found.value.as_text()).find(|text| !text.is_empty());
        if let (Some(key), None, false) = (&self.options.id_key, &id, self.reported_missing_id) {
            tracing::warn!(
                record = index,
                "no feature {key}, which input.id_key names; the record's index is its id"
            );
            self.reported_missing_id = true;
        }
        let content = match image {
            Some(Found { features, .. }) if features > 1 => {
                let message = format!("the record has {features} features {key}, expected one");
                Err(Rejected::new(Status::CorruptRecord, message))
            }
            Some(Found { value: Value::Bytes(_, count), .. }) if count > 1 => {
                let message = format!("feature {key} holds {count} values, expected one image");
                Err(Rejected::new(Status::CorruptRecord, message))
            }
            Some(Found { value: Value::Bytes(..), .. }) if example::has_feature_list(data.clone(), key) => {
                let message =
                    format!("the record is a tf.SequenceExample with a list {key}, expected one image");
                Err(Rejected::new(Status::CorruptRecord, message))
            }
            Some(Found { value: Value::Bytes(bytes, _), .. }) => {
                image_content(detached(bytes, data.len()), self.options.max_image_bytes)
            }
            Some(Found { value: Value::Integer(_) | Value::None, .. }) => {
                Err(Rejected::new(Status::MissingImage, format!("feature {key} holds no bytes")))
            }
            None => Err(Rejected::new(Status::MissingImage, missing_feature(key, data))),
        };
        RawRecord::new(id.unwrap_or_else(|| index.to_string()), content)
    }
}

/// `image`, a slice of a record of `record_bytes`. It is copied if it would keep much more memory alive than its own.
fn detached(image: Bytes, record_bytes: usize) -> Bytes {
    const SHARE_OF_OTHERS: usize = 8;
    let others = record_bytes - image.len();
    if others > image.len() / SHARE_OF_OTHERS { Bytes::copy_from_slice(&image) } else { image }
}

/// A rejected record without a readable id.
fn rejected(index: u64, reason: Rejected) -> RawRecord {
    RawRecord::new(index.to_string(), Err(reason))
}

fn missing_feature(key: &str, example: Bytes) -> String {
    let (names, more) = example::names(example.clone(), NAMES_SHOWN).unwrap_or_default();
    if example::has_feature_lists(example) {
        return format!("no feature {key}: the record is a tf.SequenceExample, only tf.Example is read");
    }
    if names.is_empty() {
        return format!("no feature {key}: the record has no features");
    }
    let more = if more { ", …" } else { "" };
    format!("no feature {key}; the record has: {}{more}; input.image_key names the image's", names.join(", "))
}

/// The length of the data; `None` if its checksum does not match.
fn checked_length(header: &[u8; HEADER_BYTES]) -> Option<u64> {
    let (length, crc) = header.split_first_chunk()?;
    let crc = u32::from_le_bytes(*crc.first_chunk()?);
    (masked_crc(length) == crc).then(|| u64::from_le_bytes(*length))
}

#[cfg(test)]
#[path = "tfrecord_tests.rs"]
pub(super) mod tests;
