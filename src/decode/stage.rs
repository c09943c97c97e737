//! The decode stage: records in, tensor rows out, in parallel on rayon and in order.
//!
//! Input: shard streams in the order of their calls. Output: one slot for each record and each mark of a shard,
//! reserved in order before the work is spawned.
//!
//! - The queue of slots bounds the work in flight. The dispatching thread waits for room there; a rayon thread never
//!   waits for anything.
//! - Encoded bytes go back to the read-ahead budget as soon as they are decoded.
//! - A record on which a native decoder crashed before is rejected, not decoded again. A panic outside the codecs fails
//!   its shard and no other.
//! - A call that asks to stop, or has used up its allowance, gets no further records.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::crash::{AtWork, Work, signal_name};
use crate::error::{Error, panic_message};
use crate::flow::{Arrivals, Disconnected, Halt, Receiver, Sender, Slot, StageMeter, lock, slot};
use crate::items::{
    Call, Cut, Decoded, DecodedImage, EncodedImage, Feed, RecordMeta, Rejected, Scored, ShardEnd, ShardItem,
    ShardStream, Status,
};

use super::{Decoder, Scratch};

/// The id of an image on which the stage panics, outside of what [`Decoder::decode`] catches.
#[cfg(test)]
pub(crate) const PANICKING_ID: &str = "panics";

/// The state that all decode tasks share.
struct Shared {
    decoder: Decoder,
    /// One for each thread of the pool, so a lock is never contended.
    scratch: Vec<Mutex<Scratch>>,
    meter: Arc<StageMeter>,
}

/// The threads that decode. With `behind_engine` they get only the cores that inference leaves idle. Otherwise decoding
/// could delay one thread of an inference, and all its other threads would wait for that one.
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

/// Lower the priority of this thread. Priorities affect speed but no result, so a failure is only logged.
fn lower_priority() {
    // on other systems `nice` applies to the whole process
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "decode threads keep their priority");
    }
}

/// The largest niceness: if inference and decoding compete for a core, decoding gets a seventieth of it. Programs in
/// other sessions or containers are not affected, because the scheduler compares niceness only within a group.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// Decode the records of all streams, one shard after another, until the source or the receiver of `out` disconnects.
///
/// `arrivals` counts the shards that are expected. When none is left, a [`Decoded::Flush`] follows.
pub fn run(
    streams: &Receiver<Feed<ShardStream>>,
    out: &Sender<Slot<Decoded>>,
    decoder: Decoder,
    pool: &ThreadPool,
    arrivals: &Arrivals,
    meter: &Arc<StageMeter>,
) -> Result<(), Disconnected> {
    let scratch = (0..pool.current_num_threads()).map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { decoder, scratch, meter: Arc::clone(meter) });
    let send = |decoded| out.send(Slot::filled(decoded));
    while let Some(feed) = streams.recv() {
        let is_last = match feed {
            Feed::Flush => true,
            Feed::StoreBatches(stored) => {
                send(Decoded::StoreBatches(stored))?;
                false
            }
            Feed::Shard(stream) => {
                match is_wanted(&stream.call) {
                    false => stream.call.answer(Ok(Scored::NotBegun)),
                    true => {
                        send(Decoded::ShardStart(Arc::clone(&stream.call)))?;
                        stream.account.make_current();
                        send(match dispatch(&stream, out, &shared, pool)? {
                            Ok(end) => Decoded::ShardEnd(end),
                            Err(cut) => {
                                // the error takes a while to reach the caller; until then no other shard begins
                                stream.call.failed(&cut);
                                Decoded::ShardCut(cut)
                            }
                        })?;
                    }
                }
                drop(stream);
                arrivals.done()
            }
        };
        if is_last {
            send(Decoded::Flush)?;
        }
    }
    Ok(())
}

/// Whether any record of the call is wanted.
fn is_wanted(call: &Call) -> bool {
    let is_used_up = call.options.allowance.as_ref().is_some_and(|allowance| allowance.left() == 0);
    call.begin() && !call.options.stop.is_draining() && !is_used_up
}

/// Spawn the decoding of one shard's records. Returns how the shard ended.
fn dispatch(
    stream: &ShardStream,
    out: &Sender<Slot<Decoded>>,
    shared: &Arc<Shared>,
    pool: &ThreadPool,
) -> Result<Result<ShardEnd, Cut>, Disconnected> {
    let Call { resume, options, .. } = &*stream.call;
    let mut taken = resume.rows();
    loop {
        if options.allowance.as_ref().is_some_and(|allowance| allowance.left() == 0) {
            return Ok(limited(stream, taken));
        }
        let image = match stream.items.recv_unless(&options.stop) {
            Ok(ShardItem::End(end)) => return Ok(Ok(end)),
            Ok(ShardItem::Failed(error)) => return Ok(Err(Cut::Failed(error))),
            Ok(ShardItem::Record(image)) if !options.stop.is_draining() && !stream.call.has_failed() => image,
            Ok(ShardItem::Record(_)) | Err(Halt::Stopped) => return Ok(Err(stopped(stream))),
            Err(Halt::Ended) if options.stop.is_draining() => return Ok(Err(Cut::Stopped)),
            Err(Halt::Ended) => {
                let message = "a reader thread ended before its shard".to_owned();
                return Ok(Err(Cut::Failed(Error::StagePanicked { stage: "source", message })));
            }
        };
        options.allowance.iter().for_each(|allowance| allowance.take());
        let (filler, reserved) = slot();
        out.send(reserved)?;
        let shared = Arc::clone(shared);
        pool.spawn(move || filler.fill(shared.meter.busy(|| shared.decode_or_panic(image))));
        taken += 1;
    }
}

/// The cut of a shard of which no further record is wanted. If its reader has found that the bytes read so far are
/// wrong, the error follows the records in the queue.
fn stopped(stream: &ShardStream) -> Cut {
    std::iter::from_fn(|| stream.items.try_recv()).find_map(wrong_bytes).map_or(Cut::Stopped, Cut::Failed)
}

/// The end of a shard of which only `taken` records are wanted. Waits until its reader stops, which may report that the
/// bytes read so far are wrong.
fn limited(stream: &ShardStream, taken: u64) -> Result<ShardEnd, Cut> {
    stream.account.close();
    while let Ok(item) = stream.items.recv_unless(&stream.call.options.stop) {
        if let Some(error) = wrong_bytes(item) {
            return Err(Cut::Failed(error));
        }
    }
    Ok(ShardEnd { records: taken, ..ShardEnd::default() })
}

fn wrong_bytes(item: ShardItem) -> Option<Error> {
    match item {
        ShardItem::Failed(error) if error.is_wrong_checksum() => Some(error),
        _ => None,
    }
}

impl Shared {
    fn decode_or_panic(&self, image: EncodedImage) -> Decoded {
        // `Decoder::decode` replaces the scratch after a panic in a codec, and no other panic modifies it
        catch_unwind(AssertUnwindSafe(|| self.decode(image))).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref()).to_owned();
            Decoded::Panicked(Error::StagePanicked { stage: "decode", message })
        })
    }

    fn decode(&self, image: EncodedImage) -> Decoded {
        let EncodedImage { crashed, shard, record_index, image_id, member, content, permit } = image;
        let image_bytes = content.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let mut meta = RecordMeta { shard, record_index, image_id, member, image_bytes, header: None };
        let outcome = content.and_then(|bytes| {
            if let Some(signal) = crashed {
                let error = format!("a native decoder crashed on it before ({})", signal_name(signal));
                return Err(Rejected::new(Status::DecodeError, error));
            }
            let thread = rayon::current_thread_index().unwrap_or_default();
            // a panic leaves no broken scratch, so poison is ignored
            let mut scratch = lock(&self.scratch[thread]);
            #[cfg(test)]
            assert!(meta.image_id != PANICKING_ID, "the stage panics on this id");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PreprocessSection;
    use crate::flow::{Budget, BudgetLimits};
    use crate::items::{PixelElement, ShardContent, ShardFormat, ShardRef};

    #[test]
    fn a_panic_in_a_decode_task_is_reported_and_releases_its_bytes() {
        let decoder = Decoder::new(&PreprocessSection::smallest(), 1 << 20, PixelElement::U8);
        // a pool of no threads: a task that looks for its scratch panics
        let shared = Shared { decoder, scratch: Vec::new(), meter: Arc::new(StageMeter::new("decode", 1)) };
        let account = Budget::new(BudgetLimits { current_bytes: 10, ahead_bytes: 10 }).account();
        let shard = ShardRef::new(0, "a", ShardFormat::Files, ShardContent::Objects(Vec::new()));
        let image = |permit| EncodedImage {
            crashed: None,
            shard: Arc::new(shard.clone()),
            record_index: 0,
            image_id: "a".to_owned(),
            member: None,
            content: Ok(bytes::Bytes::from_static(b"GIF")),
            permit,
        };
        let decoded = shared.decode_or_panic(image(account.acquire(10).expect("room")));
        match decoded {
            Decoded::Panicked(Error::StagePanicked { stage: "decode", message }) => {
                assert!(message.contains("index out of bounds"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        // this blocks forever if the bytes are still held
        account.acquire(10).expect("room again");
    }
}
