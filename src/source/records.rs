//! The parts that the readers of all shard formats share: records, options, and the end of a reader.
//!
//! - A reader ends after its first error.
//! - A panic inside a format's reader is damage of the shard.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use crate::config::InputSection;
use crate::error::{ReadError, panic_message};
use crate::items::{RawRecord, Rejected, ShardFormat, Status};

use super::skips::Skips;

/// Records of one shard in order. Ends after the first `Err`.
pub type Records = Box<dyn Iterator<Item = Result<RawRecord, ReadError>> + Send>;

/// A shard being read.
pub struct OpenedShard {
    /// Position in the shard of the first of `records`, at or before the requested record.
    pub first_record: u64,
    /// Its records in order.
    pub records: Records,
    /// What the reader skips; complete once `records` has ended.
    pub skips: Skips,
}

/// The settings of a plan that the readers of all formats need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// TFRecord feature, Parquet column or extension of tar members with the encoded image.
    pub image_key: Option<String>,
    /// TFRecord feature or Parquet column with the image's id.
    pub id_key: Option<String>,
    /// Longest encoded image, bytes; a longer one is [`Status::TooLarge`] and not held.
    pub max_image_bytes: u64,
    /// Longest page of a Parquet file, bytes, packed or not; a file with a longer one ends there.
    pub max_page_bytes: u64,
}

impl From<&InputSection> for ReadOptions {
    fn from(input: &InputSection) -> Self {
        Self {
            image_key: input.image_key.clone(),
            id_key: input.id_key.clone(),
            max_image_bytes: input.max_image_bytes,
            max_page_bytes: input.max_page_bytes,
        }
    }
}

/// Run a step of a format's reader. A panic, most likely in a library, is damage of the shard. The reader is not used
/// again, so nothing sees the state that the panic left behind.
pub(super) fn guarded<T>(
    format: ShardFormat,
    step: impl FnOnce() -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let message = panic_message(panic.as_ref());
        Err(ReadError::Corrupt(format!("the {format} reader panicked: {message}")))
    })
}

/// The records that `next` returns, until it returns `None` or fails.
pub(super) fn records(
    mut next: impl FnMut() -> Result<Option<RawRecord>, ReadError> + Send + 'static,
) -> Records {
    let mut ended = false;
    Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let item = next().transpose();
        ended = !matches!(item, Some(Ok(_)));
        item
    }))
}

/// The bytes of an image as the content of a record. Empty and too long images are rejected here for all formats.
pub(super) fn image_content(bytes: Bytes, max_image_bytes: u64) -> Result<Bytes, Rejected> {
    if bytes.is_empty() {
        return Err(Rejected::new(Status::Empty, "image is 0 bytes"));
    }
    if bytes.len() as u64 > max_image_bytes {
        return Err(too_large(bytes.len() as u64, max_image_bytes));
    }
    Ok(bytes)
}

pub(super) fn too_large(image_bytes: u64, max_image_bytes: u64) -> Rejected {
    let message = format!("image is {image_bytes} bytes, limit is {max_image_bytes} bytes");
    Rejected::new(Status::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_ends_after_its_first_error() {
        let mut calls = 0;
        let mut all = records(move || {
            calls += 1;
            if calls == 2 { Err(ReadError::Corrupt("broken".to_owned())) } else { Ok(Some(record())) }
        });
        assert!(all.next().expect("first").is_ok());
        assert!(all.next().expect("second").is_err());
        assert!(all.next().is_none());
        assert!(all.next().is_none());
    }

    fn record() -> RawRecord {
        RawRecord::new("x", Ok(Bytes::from_static(b"x")))
    }

    #[test]
    fn a_panic_in_a_reader_is_damage_of_the_shard() {
        let mut calls = 0;
        let mut all = records(move || {
            guarded(ShardFormat::Webdataset, || {
                calls += 1;
                assert!(calls < 2, "index {calls} of 1");
                Ok(Some(record()))
            })
        });
        assert!(all.next().expect("first").is_ok());
        let error = all.next().expect("second").expect_err("a panic").to_string();
        assert_eq!(error, "the webdataset reader panicked: index 2 of 1");
        assert!(all.next().is_none());
    }
}
