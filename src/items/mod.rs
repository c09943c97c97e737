//! The data in order of travel.
//!
//! `ShardRef → EncodedImage → DecodedImage | Rejected → Batch → Inferred → PartReport`
//!
//! - Every record of a shard becomes exactly one prediction row, scored or rejected.
//! - Shards travel one after another from the source to the sink, in the order of their calls, and records in the order
//!   of their shard. Only the decode stage works on several records at once, and it puts them back in order.
//! - What a stage hands on for a shard begins with its start and ends with its end or its cut.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Error};
use crate::flow::{Account, Filler, Permit, Receiver};
use crate::shown::message_without_secrets;
use crate::skipped::Skipped;

mod call;
mod shard;

pub use call::{Allowance, Call, CallOptions, CrashNotes, Kept, Resume, Scored, Segment, Ticket};
pub use shard::{ManifestEntry, ObjectRef, ShardContent, ShardFormat, ShardRef};

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
    /// The container is damaged here, or holds something else than one image: a checksum mismatch, a member cut
    /// short, several images in one record.
    CorruptRecord,
    /// The object named by a listing or a manifest is gone or may not be read.
    ReadError,
    /// The model's scores of the image are not all finite numbers.
    InvalidScore,
}

impl Status {
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
    /// What the header told before the image was given up.
    pub header: Option<ImageHeader>,
}

impl Rejected {
    /// `error` is stored: without the secrets of addresses, and with control characters spelled out.
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
    /// Full name of the archive's member that holds the image.
    pub member: Option<String>,
    pub content: Result<Bytes, Rejected>,
}

impl RawRecord {
    /// A record that is no member of an archive.
    pub fn new(image_id: impl Into<String>, content: Result<Bytes, Rejected>) -> Self {
        Self { image_id: image_id.into(), member: None, content }
    }
}

/// One record on its way to the decode stage.
#[derive(Debug)]
pub struct EncodedImage {
    /// The signal by which a native decoder crashed on it in an earlier attempt: it is not decoded again.
    pub crashed: Option<i32>,
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    pub image_id: String,
    pub member: Option<String>,
    pub content: Result<Bytes, Rejected>,
    /// Keeps the bytes on the read-ahead budget until they are decoded.
    pub permit: Permit,
}

/// What the sink needs of a record besides its scores.
#[derive(Debug, Clone)]
pub struct RecordMeta {
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    pub image_id: String,
    /// Full name of the archive's member that holds the image.
    pub member: Option<String>,
    /// Length of the encoded image; 0 where there is none.
    pub image_bytes: u64,
    pub header: Option<ImageHeader>,
}

/// Pixels of one image, or of one whole batch on the heap, in the element type the engine asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// Resized and cropped, not normalised.
    U8(Vec<u8>),
    /// Resized, cropped and normalised: `(pixel * scale - mean) / std`.
    F32(Vec<f32>),
}

/// Pixels to read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelsRef<'a> {
    U8(&'a [u8]),
    F32(&'a [f32]),
}

impl<'a> PixelsRef<'a> {
    /// The RGB bytes of a batch whose engine asked for them.
    pub(crate) fn rgb(self) -> Result<&'a [u8], String> {
        match self {
            Self::U8(rgb) => Ok(rgb),
            Self::F32(_) => Err("the batch holds floats, expected RGB bytes".to_owned()),
        }
    }
}

/// Pixels to write.
#[derive(Debug, PartialEq)]
pub enum PixelsMut<'a> {
    U8(&'a mut [u8]),
    F32(&'a mut [f32]),
}

/// Memory for the pixels of one batch. Its engine chooses it: the heap, or pinned memory that a
/// device reads at full speed.
pub trait BatchBuffer: std::fmt::Debug + Send {
    fn pixels(&self) -> PixelsRef<'_>;
    fn pixels_mut(&mut self) -> PixelsMut<'_>;
}

impl BatchBuffer for Pixels {
    fn pixels(&self) -> PixelsRef<'_> {
        match self {
            Self::U8(pixels) => PixelsRef::U8(pixels),
            Self::F32(pixels) => PixelsRef::F32(pixels),
        }
    }

    fn pixels_mut(&mut self) -> PixelsMut<'_> {
        match self {
            Self::U8(pixels) => PixelsMut::U8(pixels),
            Self::F32(pixels) => PixelsMut::F32(pixels),
        }
    }
}

/// The end of one shard, in its place behind the shard's last record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardEnd {
    /// Records seen, rejected ones included.
    pub records: u64,
    /// Why the shard ended early, with an unknown number of records lost; `None` if it was whole.
    pub damage: Option<String>,
    /// What it holds that is no record; nothing where a limit has ended it.
    pub skipped: Skipped,
}

/// What a shard's reader hands to the decode stage.
#[derive(Debug)]
pub enum ShardItem {
    Record(EncodedImage),
    /// Always last, unless the shard failed.
    End(ShardEnd),
    /// The shard cannot be read: always last.
    Failed(Error),
}

/// What leaves the decode stage, in order.
#[derive(Debug)]
pub enum Decoded {
    ShardStart(Arc<Call>),
    Image(DecodedImage),
    Rejected(RecordMeta, Rejected),
    /// The decoder panicked on a record of the shard.
    Panicked(Error),
    ShardEnd(ShardEnd),
    ShardCut(Cut),
    /// No record is on its way: a batch that has begun waits for nothing.
    Flush,
}

/// Why a shard stopped before its end.
#[derive(Debug)]
pub enum Cut {
    /// Its call asked for it.
    Stopped,
    Failed(Error),
}

/// One image ready to be put into a batch.
#[derive(Debug)]
pub struct DecodedImage {
    pub meta: RecordMeta,
    /// One row of the batch.
    pub pixels: Pixels,
}

/// One thing on its way to the sink, in order.
#[derive(Debug)]
pub enum Entry {
    ShardStart(Arc<Call>),
    /// Its scores are the next row of the batch.
    Scored(RecordMeta),
    Rejected(RecordMeta, Rejected),
    /// The decoder panicked on a record of the shard.
    Panicked(Error),
    ShardEnd(ShardEnd),
    ShardCut(Cut),
}

/// What goes into the engine, and what travels along.
#[derive(Debug)]
pub struct Batch {
    /// Number of the batch in this process, from 0; `None` where there is nothing to score.
    pub id: Option<u64>,
    /// `batch_size` rows: `rows` images, then zeros; `None` where there is nothing to score.
    pub pixels: Option<Box<dyn BatchBuffer>>,
    /// Images in the batch; the entries hold as many [`Entry::Scored`].
    pub rows: usize,
    pub entries: Vec<Entry>,
    /// When the batch was complete.
    pub sealed_at: Instant,
}

/// What comes out of the engine.
#[derive(Debug)]
pub struct Inferred {
    pub entries: Vec<Entry>,
    /// `None` where there was nothing to score.
    pub outcome: Result<Option<Outcome>, BatchFailure>,
}

/// Why a batch has no scores. Every shard that has a row in it fails.
#[derive(Debug, Clone)]
pub struct BatchFailure {
    pub batch_id: u64,
    /// In the engine's own words.
    pub message: String,
    pub panicked: bool,
}

impl From<&BatchFailure> for Error {
    fn from(failure: &BatchFailure) -> Self {
        let BatchFailure { batch_id, message, panicked } = failure.clone();
        match panicked {
            true => Self::StagePanicked { stage: "engine", message },
            false => EngineError::Inference { batch_id, message }.into(),
        }
    }
}

/// Scores of one batch and what they cost.
#[derive(Debug)]
pub struct Outcome {
    pub batch_id: i64,
    pub rows: usize,
    /// `rows × classes` in row order; padding is already cut off.
    pub scores: Vec<f32>,
    pub timing: BatchTiming,
    /// Ordinal of the GPU that ran it.
    pub device: Option<usize>,
}

/// Times of one batch, in trtexec's words. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchTiming {
    /// From complete to taken up by an engine.
    pub queue_ms: f64,
    /// Host to device copy; 0 where the model runs on the CPU.
    pub h2d_ms: f64,
    pub compute_ms: f64,
    /// Device to host copy; 0 where the model runs on the CPU.
    pub d2h_ms: f64,
    /// When the engine took the batch up.
    pub started_at: SystemTime,
    /// Run on zeros before the first batch, to load and specialise kernels.
    pub warmup: bool,
}

impl BatchTiming {
    /// trtexec's latency: copy in, compute, copy out.
    pub fn latency_ms(&self) -> f64 {
        self.h2d_ms + self.compute_ms + self.d2h_ms
    }
}

/// One shard being read ahead: its records arrive here while it waits for its turn.
#[derive(Debug)]
pub struct ShardStream {
    pub call: Arc<Call>,
    pub items: Receiver<ShardItem>,
    /// What the shard's records may hold in memory; closed on drop, so that the reader ends.
    pub account: Account,
}

/// What callers hand to the source stage, and the source stage to the decode stage.
#[derive(Debug)]
pub enum Feed<T> {
    Shard(T),
    /// Nobody is about to bring another shard.
    Flush,
}

impl Drop for ShardStream {
    fn drop(&mut self) {
        self.account.close();
    }
}

/// What a row of pixels is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelElement {
    /// RGB bytes, height × width × 3: colour order, layout and normalisation are the engine's.
    Rgb8,
    /// Bytes in the model's colour order and layout, for a model that takes pixels as they are.
    U8,
    /// Normalised pixels in the model's colour order and layout.
    F32,
}

/// Shape of every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows.
    pub batch_size: usize,
    /// Elements of one row: width × height × 3.
    pub row_elements: usize,
    pub element: PixelElement,
}

impl BatchShape {
    /// Bytes of one batch buffer.
    pub fn bytes(&self) -> u64 {
        let element_bytes = match self.element {
            PixelElement::Rgb8 | PixelElement::U8 => 1,
            PixelElement::F32 => 4,
        };
        (self.batch_size * self.row_elements * element_bytes) as u64
    }

    /// A buffer of zeros for one batch.
    pub fn zeros(&self) -> Pixels {
        let elements = self.batch_size * self.row_elements;
        match self.element {
            PixelElement::Rgb8 | PixelElement::U8 => Pixels::U8(vec![0; elements]),
            PixelElement::F32 => Pixels::F32(vec![0.0; elements]),
        }
    }
}

/// A batch on its way into an engine, with the place its result will take.
pub type BatchJob = (Batch, Filler<Inferred>);
