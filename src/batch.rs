//! The batch stage: exactly `batch_size` rows into the engine, always.
//!
//! Input: decoded images, rejected records, and starts and ends of shards, in order. Output: batches in the same
//! order, each with the entries that arrived between its rows.
//!
//! - Batches fill across shards. A batch becomes due, although rows are missing, when no record is on its way, or when
//!   a shard that has ended would wait too long for the records of others (`ENDED_SHARD_WAITS`). It leaves, padded with
//!   zeros, as soon as an engine is free: until then it keeps filling here instead of waiting in the queue.
//! - A batch also leaves when too many entries wait in it ([`MAX_WAITING_ENTRIES`]).
//! - An entry leaves in the batch that was open when it arrived, which keeps the order. Entries before the first row of
//!   a batch do not wait for a row.
//! - Buffers come from a pool that the engine has made, and go back to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::flow::{Arrival, Disconnected, Receiver, Sender, Slot, StageMeter, slot};
use crate::items::{Batch, BatchBuffer, BatchJob, BatchShape, Decoded, Entry, Inferred, Pixels, PixelsMut};

/// Entries that may wait in one batch for its rows. Only a flood of rejected records reaches this. An entry takes some
/// 300 bytes, 2 kB with the longest id and reason, so this bounds the flood to about 20 MB, 130 MB at worst, at the
/// cost of one padded batch each time.
pub const MAX_WAITING_ENTRIES: usize = 65_536;

/// Longest wait of a shard that has ended for the records of other shards to fill its last batch. A store that is
/// merely slow delivers within it; one that hangs must not hold up the answer to another caller.
const ENDED_SHARD_WAITS: Duration = Duration::from_secs(2);

/// Collects entries into batches. Pure: buffers are passed in, batches come out.
#[derive(Debug)]
pub struct Batcher {
    shape: BatchShape,
    next_id: u64,
    entries: Vec<Entry>,
    pixels: Option<Box<dyn BatchBuffer>>,
    rows: usize,
    /// When the first shard with its end in this batch began to wait.
    holds_end_since: Option<Instant>,
    /// Whether no record is on its way that could fill this batch.
    is_flushed: bool,
}

impl Batcher {
    /// An empty batcher for batches of this shape.
    pub fn new(shape: BatchShape) -> Self {
        Self {
            shape,
            next_id: 0,
            entries: Vec::new(),
            pixels: None,
            rows: 0,
            holds_end_since: None,
            is_flushed: false,
        }
    }

    /// Whether taking `item` needs a buffer for a new batch.
    pub fn needs_buffer(&self, item: &Decoded) -> bool {
        self.pixels.is_none() && matches!(item, Decoded::Image(_))
    }

    /// Take one item, and return the batch that it completes, if any. `buffer` is for the pixels of a new batch: it has
    /// this batcher's shape and any contents, and is required if [`Self::needs_buffer`] says so.
    ///
    /// # Panics
    /// If a row has another length or element type than the shape says: the decoder and the
    /// engine were set up from different plans. If a buffer is needed and missing.
    pub fn push(&mut self, item: Decoded, buffer: Option<Box<dyn BatchBuffer>>) -> Option<Batch> {
        let entry = match item {
            Decoded::Image(image) => {
                self.pixels = self.pixels.take().or(buffer);
                let pixels = self.pixels.as_mut().expect("a new batch comes with a buffer");
                copy_row(&image.pixels, pixels.pixels_mut(), self.rows, self.shape.row_elements);
                self.rows += 1;
                Entry::Scored(image.meta)
            }
            Decoded::Rejected(meta, rejected) => Entry::Rejected(meta, rejected),
            Decoded::ShardStart(call) => {
                // its records may fill the batch, and another flush follows them
                self.is_flushed = false;
                Entry::ShardStart(call)
            }
            Decoded::Panicked(error) => Entry::Panicked(error),
            Decoded::ShardEnd(end) => Entry::ShardEnd(end),
            Decoded::ShardCut(cut) => Entry::ShardCut(cut),
            Decoded::StoreBatches(stored) => {
                // does not wait for the rows of the open batch
                let entries = vec![Entry::StoreBatches(stored)];
                return Some(Batch { id: None, pixels: None, rows: 0, entries, sealed_at: Instant::now() });
            }
            Decoded::Flush => {
                self.is_flushed = self.rows > 0;
                return if self.is_flushed { None } else { self.flush() };
            }
        };
        if matches!(entry, Entry::ShardEnd(_) | Entry::ShardCut(_)) {
            self.holds_end_since.get_or_insert_with(Instant::now);
        }
        self.entries.push(entry);
        let full = self.rows == self.shape.batch_size;
        // entries without any row leave in groups of `batch_size`
        let idle = self.rows == 0 && self.entries.len() >= self.shape.batch_size;
        (full || idle || self.entries.len() >= MAX_WAITING_ENTRIES).then(|| self.seal())
    }

    /// How long this batch may still wait for rows: zero if it is due, `None` if nothing waits for it.
    pub fn patience(&self) -> Option<Duration> {
        match self.holds_end_since {
            _ if self.is_flushed => Some(Duration::ZERO),
            since => since.map(|since| ENDED_SHARD_WAITS.saturating_sub(since.elapsed())),
        }
    }

    /// The batch so far, if it has entries.
    pub fn flush(&mut self) -> Option<Batch> {
        (!self.entries.is_empty()).then(|| self.seal())
    }

    fn seal(&mut self) -> Batch {
        (self.holds_end_since, self.is_flushed) = (None, false);
        let rows = std::mem::take(&mut self.rows);
        let id = (rows > 0).then_some(self.next_id);
        self.next_id += u64::from(rows > 0);
        let mut pixels = self.pixels.take();
        let used = rows * self.shape.row_elements;
        match pixels.as_mut().map(|pixels| pixels.pixels_mut()) {
            Some(PixelsMut::U8(pixels)) => pixels[used..].fill(0),
            Some(PixelsMut::F32(pixels)) => pixels[used..].fill(0.0),
            None => {}
        }
        let entries = std::mem::take(&mut self.entries);
        Batch { id, pixels, rows, entries, sealed_at: Instant::now() }
    }
}

fn copy_row(row: &Pixels, batch: PixelsMut<'_>, index: usize, row_elements: usize) {
    let place = index * row_elements..(index + 1) * row_elements;
    match (row, batch) {
        (Pixels::U8(row), PixelsMut::U8(batch)) => batch[place].copy_from_slice(row),
        (Pixels::F32(row), PixelsMut::F32(batch)) => batch[place].copy_from_slice(row),
        _ => panic!("a decoded row and the batch buffer have different element types"),
    }
}

/// The buffers of all batches. Those that are missing are in batches on their way through the engines.
pub struct BufferPool {
    at_hand: Vec<Box<dyn BatchBuffer>>,
    returned: crossbeam_channel::Receiver<Box<dyn BatchBuffer>>,
    /// All buffers.
    total: usize,
    engines: usize,
}

impl BufferPool {
    /// A pool of `buffers` for this number of engines, which return used ones through `returned`.
    pub fn new(
        buffers: Vec<Box<dyn BatchBuffer>>,
        returned: crossbeam_channel::Receiver<Box<dyn BatchBuffer>>,
        engines: usize,
    ) -> Self {
        Self { total: buffers.len(), at_hand: buffers, returned, engines }
    }

    /// A buffer. Waits until an engine returns one, if none is at hand.
    fn take(&mut self) -> Result<Box<dyn BatchBuffer>, Disconnected> {
        self.at_hand.pop().map_or_else(|| self.returned.recv().map_err(|_| Disconnected), Ok)
    }

    /// Whether an engine would begin at once with the batch being filled, which holds one buffer.
    fn has_free_engine(&mut self) -> bool {
        self.at_hand.extend(self.returned.try_iter());
        let on_their_way = self.total - self.at_hand.len() - 1;
        on_their_way < self.engines
    }
}

/// Run the stage until its input ends.
///
/// # Errors
/// [`Disconnected`] if a neighbour ended first. The neighbour reports why.
pub fn run(
    input: &Receiver<Slot<Decoded>>,
    to_engine: &Sender<BatchJob>,
    to_sink: &Sender<Slot<Inferred>>,
    mut buffers: BufferPool,
    shape: BatchShape,
    meter: &Arc<StageMeter>,
) -> Result<(), Disconnected> {
    let mut batcher = Batcher::new(shape);
    let hand_on = |batch: Batch| {
        let Batch { id: Some(_), .. } = &batch else {
            return to_sink.send(Slot::filled(Inferred { entries: batch.entries, outcome: Ok(None) }));
        };
        meter.add_items(1);
        let (filler, reserved) = slot();
        to_sink.send(reserved)?;
        to_engine.send((batch, filler))
    };
    loop {
        let slot = match batcher.patience() {
            None => input.recv(),
            Some(Duration::ZERO) if batcher.rows == 0 || buffers.has_free_engine() => {
                batcher.flush().map_or(Ok(()), hand_on)?;
                continue;
            }
            Some(Duration::ZERO) => match input.recv_or(&buffers.returned) {
                Arrival::Item(slot) => Some(slot),
                Arrival::Other(buffer) => {
                    buffers.at_hand.push(buffer);
                    continue;
                }
                Arrival::Ended => None,
            },
            Some(patience) => match input.recv_timeout(patience) {
                Ok(slot) => Some(slot),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => continue,
            },
        };
        let Some(slot) = slot else { break };
        let decoded = slot.wait(meter).ok_or(Disconnected)?;
        let buffer = batcher.needs_buffer(&decoded).then(|| buffers.take()).transpose()?;
        if let Some(batch) = meter.busy(|| batcher.push(decoded, buffer)) {
            hand_on(batch)?;
        }
    }
    batcher.flush().map_or(Ok(()), hand_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{
        Call, CallOptions, DecodedImage, PixelElement, PixelsRef, RecordMeta, Rejected, Resume, ShardContent,
        ShardEnd, ShardFormat, ShardRef, Status,
    };
    use proptest::prelude::*;

    fn shard(index: u64) -> Arc<ShardRef> {
        let content = ShardContent::Objects(Vec::new());
        Arc::new(ShardRef::new(index, format!("s{index}"), ShardFormat::Files, content))
    }

    fn meta(shard: &Arc<ShardRef>, record_index: u64) -> RecordMeta {
        let image_id = record_index.to_string();
        RecordMeta {
            shard: Arc::clone(shard),
            record_index,
            image_id,
            member: None,
            image_bytes: 1,
            header: None,
        }
    }

    /// A name that tells the kind and the origin of an entry.
    fn name(entry: &Entry) -> String {
        match entry {
            Entry::ShardStart(call) => format!("start {}", call.shard.name),
            Entry::Scored(meta) => format!("ok {}#{}", meta.shard.name, meta.record_index),
            Entry::Rejected(meta, _) => format!("bad {}#{}", meta.shard.name, meta.record_index),
            Entry::ShardEnd(end) => format!("end {}", end.records),
            Entry::Panicked(error) => format!("panicked {error}"),
            Entry::ShardCut(_) => "cut".to_owned(),
            Entry::StoreBatches(_) => "store batches".to_owned(),
        }
    }

    proptest! {
        /// No record is lost, doubled or reordered; every batch but the last is full; each row holds its own image's
        /// pixels and the padding is zero.
        #[test]
        fn batching_keeps_every_record_once_and_in_order(
            shards in prop::collection::vec(prop::collection::vec(any::<bool>(), 0..40), 0..12),
            batch_size in 1usize..9,
        ) {
            let shape = BatchShape { batch_size, row_elements: 2, element: PixelElement::U8 };
            let mut batcher = Batcher::new(shape);
            let (mut expected, mut batches) = (Vec::new(), Vec::new());
            let mut serial = 0u8;
            for (index, records) in shards.iter().enumerate() {
                let shard = shard(index as u64);
                let (call, _ticket) = Call::new((*shard).clone(), Resume::default(), CallOptions::default());
                let mut items = vec![Decoded::ShardStart(call)];
                expected.push(format!("start s{index}"));
                for (record, &good) in records.iter().enumerate() {
                    let meta = meta(&shard, record as u64);
                    expected.push(format!("{} s{index}#{record}", if good { "ok" } else { "bad" }));
                    items.push(if good {
                        serial = serial.wrapping_add(1);
                        Decoded::Image(DecodedImage { meta, pixels: Pixels::U8(vec![serial; 2]) })
                    } else {
                        Decoded::Rejected(meta, Rejected::new(Status::Empty, "empty"))
                    });
                }
                items.push(Decoded::ShardEnd(ShardEnd { records: records.len() as u64, ..ShardEnd::default() }));
                expected.push(format!("end {}", records.len()));
                // stale contents of a used buffer must not show
                batches.extend(items.into_iter().filter_map(|item| {
                    batcher.push(item, Some(Box::new(Pixels::U8(vec![255; batch_size * 2]))))
                }));
            }
            batches.extend(batcher.flush());

            let names: Vec<_> = batches.iter().flat_map(|batch| batch.entries.iter().map(name)).collect();
            prop_assert_eq!(names, expected);

            let scored: Vec<_> = batches.iter().filter(|batch| batch.id.is_some()).collect();
            let mut serial = 0u8;
            for (id, batch) in scored.iter().enumerate() {
                prop_assert_eq!(batch.id, Some(id as u64));
                prop_assert!(batch.rows == batch_size || id + 1 == scored.len());
                let rows = batch.entries.iter().filter(|entry| matches!(entry, Entry::Scored(_))).count();
                prop_assert_eq!(rows, batch.rows);
                let Some(PixelsRef::U8(pixels)) = batch.pixels.as_ref().map(|pixels| pixels.pixels()) else {
                    panic!("element type changed")
                };
                prop_assert_eq!(pixels.len(), batch_size * 2);
                for (row, pixels) in pixels.chunks(2).enumerate() {
                    let value = if row < batch.rows { serial = serial.wrapping_add(1); serial } else { 0 };
                    prop_assert_eq!(pixels, &[value; 2][..]);
                }
            }
        }
    }

    #[test]
    fn an_engine_is_free_while_fewer_batches_are_on_their_way_than_there_are_engines() {
        let shape = BatchShape { batch_size: 1, row_elements: 1, element: PixelElement::U8 };
        let buffers = (0..4).map(|_| Box::new(shape.zeros()) as Box<dyn BatchBuffer>).collect();
        let (used, returned) = crossbeam_channel::unbounded();
        let mut pool = BufferPool::new(buffers, returned, 2);
        let mut taken = Vec::new();
        let free: Vec<_> = (0..4)
            .map(|_| {
                taken.push(pool.take().expect("at hand"));
                pool.has_free_engine()
            })
            .collect();
        assert_eq!(free, [true, true, false, false]);
        let is_free_after_return = taken.drain(..2).map(|buffer| {
            used.send(buffer).expect("a receiver");
            pool.has_free_engine()
        });
        assert_eq!(is_free_after_return.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_flood_of_rejected_records_does_not_wait_for_rows_that_never_come() {
        let shape = BatchShape { batch_size: 4, row_elements: 1, element: PixelElement::F32 };
        let mut batcher = Batcher::new(shape);
        let shard = shard(0);
        let image = DecodedImage { meta: meta(&shard, 0), pixels: Pixels::F32(vec![1.0]) };
        assert!(batcher.push(Decoded::Image(image), Some(Box::new(shape.zeros()))).is_none());
        let sealed = (1..=MAX_WAITING_ENTRIES as u64).find_map(|record| {
            let rejected = Rejected::new(Status::Empty, "empty");
            batcher.push(Decoded::Rejected(meta(&shard, record), rejected), None)
        });
        let batch = sealed.expect("sealed at the bound");
        assert_eq!((batch.rows, batch.entries.len()), (1, MAX_WAITING_ENTRIES));
        let pixels = batch.pixels.expect("there is a row");
        assert_eq!(pixels.pixels(), PixelsRef::F32(&[1.0, 0.0, 0.0, 0.0]));
    }
}
