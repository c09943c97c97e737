//! A record of a shard: its image as a reader yields it, or why it gets no scores.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::shown::message_without_secrets;

/// The status of a row, as the `status` column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Scored.
    Ok,
    /// The bytes are not an image this build can decode, or are cut short or damaged.
    DecodeError,
    /// Over the limit of pixels or bytes; found before memory is allocated for it.
    TooLarge,
    /// The record's image is zero bytes long.
    Empty,
    /// The record carries no image at all: a null cell, an absent feature.
    MissingImage,
    /// The container is damaged here, or contains something other than one image: a checksum mismatch, a member cut
    /// short, several images in one record.
    CorruptRecord,
    /// The object named by a listing or a manifest is gone, or access to it is denied.
    ReadError,
    /// The model's scores of the image are not all finite numbers.
    InvalidScore,
}

impl Status {
    /// Every status, in the order in which reports list them.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::DecodeError,
        Self::TooLarge,
        Self::Empty,
        Self::MissingImage,
        Self::CorruptRecord,
        Self::ReadError,
        Self::InvalidScore,
    ];

    /// As columns and reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::DecodeError => "decode_error",
            Self::TooLarge => "too_large",
            Self::Empty => "empty",
            Self::MissingImage => "missing_image",
            Self::CorruptRecord => "corrupt_record",
            Self::ReadError => "read_error",
            Self::InvalidScore => "invalid_score",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record that gets no scores, and why. Bad input is data, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Never [`Status::Ok`].
    pub status: Status,
    /// One lower-case sentence that names the thing and the limit.
    pub error: String,
    /// The header, if it was read before the image was rejected.
    pub header: Option<ImageHeader>,
}

impl Rejected {
    /// A rejection with `error`, without the secrets of addresses and with control characters escaped.
    pub fn new(status: Status, error: impl Into<String>) -> Self {
        let mut error = error.into();
        if let Cow::Owned(shown) = message_without_secrets(&error) {
            error = shown;
        }
        if error.contains(char::is_control) {
            let spelled =
                |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
            error = error.chars().map(spelled).collect();
        }
        Self { status, error, header: None }
    }
}

/// Codec of an image, as the `format` column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG; only the default image of an animated one.
    Png,
    /// WebP, lossy or lossless; only the first frame of an animation.
    Webp,
    /// GIF; only the first frame of an animation.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF or BigTIFF; only the first of several images.
    Tiff,
}

impl ImageFormat {
    /// As columns and reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }
}

/// What the header of an image says, before orientation is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The codec.
    pub format: ImageFormat,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// One record as a shard reader yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Member stem, id feature, id column or URI; the record's index where the format has no name.
    pub image_id: String,
    /// Full name of the archive's member that holds the image.
    pub member: Option<String>,
    /// The encoded image, or why there is none.
    pub content: Result<Bytes, Rejected>,
}

impl RawRecord {
    /// A record that is no member of an archive.
    pub fn new(image_id: impl Into<String>, content: Result<Bytes, Rejected>) -> Self {
        Self { image_id: image_id.into(), member: None, content }
    }
}
