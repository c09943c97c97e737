//! The data, in flow order.
//!
//! `ShardRef → EncodedImage → DecodedImage | Rejected → Batch → Inferred → PartReport`
//!
//! - Every record of a shard becomes exactly one prediction row, scored or rejected.
//! - Shards travel one after another from the source to the sink, in the order of their calls, and records in the order
//!   of their shard. Only the decode stage works on several records at once, and it puts them back in order.
//! - What a stage passes on for a shard begins with a start and ends with an end or a cut.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use crate::error::{EngineError, Error, SinkError};
use crate::flow::{Account, Filler, Permit, Receiver};
use crate::skipped::Skipped;

mod call;
mod record;
mod shard;

pub use call::{Allowance, Call, CallOptions, CrashNotes, Cut, Kept, Resume, Scored, Segment, Ticket};
pub use record::{ImageFormat, ImageHeader, RawRecord, Rejected, Status};
pub use shard::{ManifestEntry, ObjectRef, ShardContent, ShardFormat, ShardRef};

/// One record on its way to the decode stage.
#[derive(Debug)]
pub struct EncodedImage {
    /// The signal of a native decoder's crash on this record in an earlier attempt. The record is not decoded again.
    pub crashed: Option<i32>,
    /// The shard it belongs to.
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    /// Its `image_id` in the output.
    pub image_id: String,
    /// Full name of the archive's member that holds the image.
    pub member: Option<String>,
    /// The encoded image, or why there is none.
    pub content: Result<Bytes, Rejected>,
    /// Counts the bytes against the read-ahead budget until they are decoded.
    pub permit: Permit,
}

/// What the sink needs to know of a record besides its scores.
#[derive(Debug, Clone)]
pub struct RecordMeta {
    /// The shard it belongs to.
    pub shard: Arc<ShardRef>,
    /// Position in the shard, from 0.
    pub record_index: u64,
    /// Its `image_id` in the output.
    pub image_id: String,
    /// Full name of the archive's member that holds the image.
    pub member: Option<String>,
    /// Length of the encoded image; 0 if there is none.
    pub image_bytes: u64,
    /// The image's header, if it was read.
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
    /// Not normalised.
    U8(&'a [u8]),
    /// Normalised.
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
    /// Not normalised.
    U8(&'a mut [u8]),
    /// Normalised.
    F32(&'a mut [f32]),
}

/// Memory for the pixels of one batch. The engine chooses the kind: heap memory, or pinned memory that a device reads
/// at full speed.
pub trait BatchBuffer: std::fmt::Debug + Send {
    /// All of its pixels.
    fn pixels(&self) -> PixelsRef<'_>;
    /// All of its pixels, to be written.
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

/// The end of a shard. It follows the shard's last record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardEnd {
    /// Records seen, rejected ones included.
    pub records: u64,
    /// Why the shard ended early, with an unknown number of records lost; `None` if it was complete.
    pub damage: Option<String>,
    /// What the shard contains besides records; empty if a limit ended it.
    pub skipped: Skipped,
}

/// What a shard's reader hands to the decode stage.
#[derive(Debug)]
pub enum ShardItem {
    /// The next record, in the shard's order.
    Record(EncodedImage),
    /// Always last, unless the shard failed.
    End(ShardEnd),
    /// The shard cannot be read: always last.
    Failed(Error),
}

/// What leaves the decode stage, in order.
#[derive(Debug)]
pub enum Decoded {
    /// A shard begins: what follows belongs to it.
    ShardStart(Arc<Call>),
    /// A record whose image was decoded.
    Image(DecodedImage),
    /// A record that gets no scores, and why.
    Rejected(RecordMeta, Rejected),
    /// The decoder panicked on a record of the shard.
    Panicked(Error),
    /// The shard has no further record.
    ShardEnd(ShardEnd),
    /// The shard stops before its end.
    ShardCut(Cut),
    /// No record is on its way, so the open batch leaves.
    Flush,
    /// See [`Feed::StoreBatches`].
    StoreBatches(BatchesStored),
}

/// One image ready to be put into a batch.
#[derive(Debug)]
pub struct DecodedImage {
    /// The record it belongs to.
    pub meta: RecordMeta,
    /// One row of the batch.
    pub pixels: Pixels,
}

/// One item on its way to the sink, in order.
#[derive(Debug)]
pub enum Entry {
    /// A shard begins: what follows belongs to it.
    ShardStart(Arc<Call>),
    /// Its scores are the next row of the batch.
    Scored(RecordMeta),
    /// A record that gets no scores, and why.
    Rejected(RecordMeta, Rejected),
    /// The decoder panicked on a record of the shard.
    Panicked(Error),
    /// The shard has no further record.
    ShardEnd(ShardEnd),
    /// The shard stops before its end.
    ShardCut(Cut),
    /// See [`Feed::StoreBatches`].
    StoreBatches(BatchesStored),
}

/// What goes into an engine, and the entries that travel with it.
#[derive(Debug)]
pub struct Batch {
    /// Number of the batch in this process, from 0; `None` where there is nothing to score.
    pub id: Option<u64>,
    /// `batch_size` rows: `rows` images, then zeros; `None` where there is nothing to score.
    pub pixels: Option<Box<dyn BatchBuffer>>,
    /// Images in the batch, each with an [`Entry::Scored`] among the entries.
    pub rows: usize,
    /// What travels with the rows, in input order.
    pub entries: Vec<Entry>,
    /// When the batch was complete.
    pub sealed_at: Instant,
}

/// What comes out of an engine.
#[derive(Debug)]
pub struct Inferred {
    /// What travels with the rows, in input order.
    pub entries: Vec<Entry>,
    /// `None` where there was nothing to score.
    pub outcome: Result<Option<Outcome>, BatchFailure>,
}

/// Why a batch has no scores. Every shard that has a row in it fails.
#[derive(Debug, Clone)]
pub struct BatchFailure {
    /// Number of the batch in this process, from 0.
    pub batch_id: u64,
    /// The engine's own message.
    pub message: String,
    /// Whether the engine panicked, on this batch or on one before it.
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

/// Scores and times of one batch.
#[derive(Debug)]
pub struct Outcome {
    /// Number of the batch in this process, from 0; negative for a warm-up.
    pub batch_id: i64,
    /// Images in the batch, without padding.
    pub rows: usize,
    /// `rows × classes` in row order; padding is already cut off.
    pub scores: Vec<f32>,
    /// Its times.
    pub timing: BatchTiming,
    /// Ordinal of the GPU that ran it.
    pub device: Option<usize>,
}

/// Times of one batch, in trtexec's terms. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchTiming {
    /// From completion until an engine took the batch.
    pub queue_ms: f64,
    /// Host to device copy; 0 where the model runs on the CPU.
    pub h2d_ms: f64,
    /// Time in the model.
    pub compute_ms: f64,
    /// Device to host copy; 0 where the model runs on the CPU.
    pub d2h_ms: f64,
    /// When the engine took the batch.
    pub started_at: SystemTime,
    /// Whether this was a warm-up: a run on zeros before the first batch, to load and specialise kernels.
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
    /// The call that the shard belongs to.
    pub call: Arc<Call>,
    /// Its records in order, then its end.
    pub items: Receiver<ShardItem>,
    /// The account of the shard's records in the byte budget; closed on drop, so that the reader ends.
    pub account: Account,
}

/// What callers hand to the source stage, and the source stage to the decode stage.
#[derive(Debug)]
pub enum Feed<T> {
    /// The next shard.
    Shard(T),
    /// No further shard is expected soon.
    Flush,
    /// Store a batches part with all batches so far.
    StoreBatches(BatchesStored),
}

/// Where the result of [`Feed::StoreBatches`] goes.
pub type BatchesStored = crossbeam_channel::Sender<Result<(), SinkError>>;

impl Drop for ShardStream {
    fn drop(&mut self) {
        self.account.close();
    }
}

/// The element type of a row of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelElement {
    /// RGB bytes, height × width × 3: the engine applies colour order, layout and normalisation.
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
    /// What each element is.
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

/// A batch on its way into an engine, and the slot for its result.
pub type BatchJob = (Batch, Filler<Inferred>);
