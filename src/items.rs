//! The data in order of travel.
//!
//! `ShardRef → EncodedImage → DecodedImage | Rejected → Batch → Inferred → ShardReport`
//!
//! - Every record of a shard becomes exactly one prediction row, scored or rejected.
//! - Records travel in input order from the source to the sink; only the decode stage works
//!   on several at once, and it puts them back in order.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How the records of a shard are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardFormat {
    /// TFRecord framing of `tf.Example` messages, possibly gzipped as a whole.
    Tfrecord,
    /// A tar archive whose image members are the records; gzip and zstd are recognised.
    Webdataset,
    /// A Parquet file with one column of encoded images.
    Parquet,
    /// A run of loose image objects cut out of a listing.
    Files,
}

impl ShardFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tfrecord => "tfrecord",
            Self::Webdataset => "webdataset",
            Self::Parquet => "parquet",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for ShardFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object of a store as the listing saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// Full URI as an analyst would write it: `gs://bucket/a.tar`, `/data/a.tar`, `https://…`.
    pub uri: String,
    /// Size in bytes; `None` for manifest entries, which are not asked for before they are read.
    pub size_bytes: Option<u64>,
    /// Entity tag or generation at listing time, where the store gives one.
    pub version: Option<String>,
}

/// What a shard is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardContent {
    /// One object that holds all records (TFRecord, tar, Parquet).
    Container(ObjectRef),
    /// Loose objects, one record each, in listing or manifest order.
    Objects(Vec<ManifestEntry>),
}

/// One loose image: where it is and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEntry {
    pub object: ObjectRef,
    /// Identifier for the `image_id` column; the URI where the manifest names none.
    pub image_id: String,
}

/// One unit of input and of output: its rows make one predictions part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRef {
    /// Position in the input order of the run, from 0.
    pub index: u64,
    /// Unique in the run: the object's URI, or the first object's URI and a count for loose files.
    pub name: String,
    pub format: ShardFormat,
    pub content: ShardContent,
}

/// Why a record has no scores, as the `status` column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Scored.
    Ok,
    /// The bytes are not an image this build can decode, or are cut short or damaged.
    DecodeError,
    /// Over the limit of pixels or bytes; judged on the header, before any allocation.
    TooLarge,
    /// The record's image is zero bytes long.
    Empty,
    /// The record carries no image at all: a null cell, an absent feature.
    MissingImage,
    /// The container is damaged here: a checksum mismatch, a member cut short.
    CorruptRecord,
    /// The object named by a listing or a manifest is gone or may not be read.
    ReadError,
}

impl Status {
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::DecodeError,
        Self::TooLarge,
        Self::Empty,
        Self::MissingImage,
        Self::CorruptRecord,
        Self::ReadError,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::DecodeError => "decode_error",
            Self::TooLarge => "too_large",
            Self::Empty => "empty",
            Self::MissingImage => "missing_image",
            Self::CorruptRecord => "corrupt_record",
            Self::ReadError => "read_error",
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
    /// What the header told before the image was given up.
    pub header: Option<ImageHeader>,
}

impl Rejected {
    pub fn new(status: Status, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), header: None }
    }
}

/// Codec of an image, as the `format` column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    Jpeg,
    Png,
    Webp,
    Gif,
    Bmp,
    Tiff,
}

impl ImageFormat {
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
    pub content: Result<Bytes, Rejected>,
}

/// One record on its way to the decode stage.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    pub image_id: String,
    pub content: Result<Bytes, Rejected>,
}

/// What the sink needs of a record besides its scores.
#[derive(Debug, Clone)]
pub struct RecordMeta {
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    pub image_id: String,
    /// Length of the encoded image; 0 where there is none.
    pub image_bytes: u64,
    pub header: Option<ImageHeader>,
}

/// Pixels of one image, or of one whole batch, in the element type the engine asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// Resized and cropped, channel order and layout applied, not normalised.
    U8(Vec<u8>),
    /// Resized, cropped and normalised: `(pixel * scale - mean) / std`.
    F32(Vec<f32>),
}
