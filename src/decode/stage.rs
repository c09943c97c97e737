//! The decode stage: records in, tensor rows out, in parallel on rayon and in input order.
//!
//! Comes in: shard streams in input order. Goes out: one slot a record or shard mark, reserved in
//! input order before the work is spawned.
//!
//! - The queue of slots is the bound of the work in flight; the dispatching thread waits for room
//!   there, a rayon thread never waits for anything.
//! - Encoded bytes are given back to the read-ahead budget as soon as they are decoded, and a
//!   stream is told when its turn has come.
//! - A record on which a native decoder has crashed before is rejected, not tried again.
//! - Once a drain is asked for, no further record is taken.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::crash::{AtWork, Work, signal_name};
use crate::flow::{Halt, Receiver, Sender, Slot, StageMeter, StopSignal, slot};
use crate::items::{
    Decoded, DecodedImage, EncodedImage, RecordMeta, Rejected, ShardEnd, ShardItem, ShardStream, Status,
};

use super::{Decoder, Scratch};

/// What all decode tasks share.
struct Shared {
    decoder: Decoder,
    /// One for each thread of the pool, so a lock is never contended.
    scratch: Vec<Mutex<Scratch>>,
    meter: Arc<StageMeter>,
}

/// Threads to decode on. With `behind_engine` they only get the cores that inference leaves:
/// batches are then decoded between two inferences rather than during one, where they would hold
/// up one of its threads and the others would wait for that one.
pub fn thread_pool(threads: usize, behind_engine: bool) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("decode-{index}"))
        .start_handler(move |_| {
            if behind_engine {
                lower_priority();
            }
        })
        .build()
}

/// A lower priority for this thread. It saves time and changes no result, so a system that
/// refuses loses nothing else.
fn lower_priority() {
    // elsewhere `nice` is for the whole process
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(BEHIND) {
        tracing::debug!(%error, "decode threads keep their priority");
    }
}

/// Steps of niceness, as many as there are: where both want a core decoding gets a seventieth of it.
/// Programs in other sessions or containers are not affected, for niceness counts among neighbours.
#[cfg(target_os = "linux")]
const BEHIND: i32 = 19;

/// Why the stage took no further record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No more arrived, or a neighbour is gone.
    Dry,
    /// As many were taken as were wanted.
    Limited,
    /// A drain was asked for while there may have been more.
    Drained,
}

/// Decode everything that arrives, at most `limit` records, until the source ends, the receiver
/// of `out` hangs up, or `stop` asks for a drain.
pub fn run(
    streams: &Receiver<ShardStream>,
    out: &Sender<Slot<Decoded>>,
    decoder: Decoder,
    pool: &ThreadPool,
    limit: Option<u64>,
    stop: &StopSignal,
    meter: &Arc<StageMeter>,
) -> Ending {
    let scratch = (0..pool.current_num_threads()).map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { decoder, scratch, meter: Arc::clone(meter) });
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        let stream = match streams.recv_unless(stop) {
            Ok(_) if stop.is_draining() => return Ending::Drained,
            Ok(stream) => stream,
            Err(halt) => return halt.into(),
        };
        if out.send(Slot::filled(Decoded::ShardStart(Arc::clone(&stream.shard)))).is_err() {
            return Ending::Dry;
        }
        stream.account.make_current();
        let mut taken = stream.shard.resume_at;
        let end = loop {
            if left == 0 {
                break ShardEnd { records: taken, ..ShardEnd::default() };
            }
            let image = match stream.items.recv_unless(stop) {
                Ok(ShardItem::End(end)) => break end,
                Ok(ShardItem::Record(_)) if stop.is_draining() => return Ending::Drained,
                Ok(ShardItem::Record(image)) => image,
                // a stream that ends without its mark: the source failed and says why itself
                Err(halt) => return halt.into(),
            };
            let (filler, reserved) = slot();
            if out.send(reserved).is_err() {
                return Ending::Dry;
            }
            let shared = Arc::clone(&shared);
            pool.spawn(move || filler.fill(shared.meter.busy(|| shared.decode(image))));
            (left, taken) = (left - 1, taken + 1);
        };
        if out.send(Slot::filled(Decoded::ShardEnd(end))).is_err() {
            return Ending::Dry;
        }
    }
    Ending::Limited
}

impl From<Halt> for Ending {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Ended => Self::Dry,
            Halt::Stopped => Self::Drained,
        }
    }
}

impl Shared {
    fn decode(&self, image: EncodedImage) -> Decoded {
        let EncodedImage { shard, record_index, image_id, member, content, permit } = image;
        let image_bytes = content.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let mut meta = RecordMeta { shard, record_index, image_id, member, image_bytes, header: None };
        let outcome = content.and_then(|bytes| {
            if let Some(&signal) = meta.shard.crashed.decoder.get(&record_index) {
                let error = format!("a native decoder crashed on it before ({})", signal_name(signal));
                return Err(Rejected::new(Status::DecodeError, error));
            }
            let thread = rayon::current_thread_index().unwrap_or_default();
            // a decoder that panicked left its scratch behind fresh, so poison means nothing here
            let mut scratch = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let work = Work::Decoding(&meta);
            let _at_work = AtWork::on(&work);
            self.decoder.decode(&bytes, &mut scratch)
        });
        drop(permit);
        self.meter.add_items(1);
        match outcome {
            Ok((header, pixels)) => {
                meta.header = Some(header);
                Decoded::Image(DecodedImage { meta, pixels })
            }
            Err(rejected) => {
                meta.header = rejected.header;
                Decoded::Rejected(meta, rejected)
            }
        }
    }
}
