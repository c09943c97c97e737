//! The data streams of a worker: elements from the runner to bundles, and back.
//!
//! - One stream serves all bundles of an address. It is opened before anything else of the bundle may fail, because
//!   some runners wait minutes for it before they report an error.
//! - Data of a bundle may arrive before the request to process it. It is kept until then. Data of a bundle that has
//!   ended is dropped.
//! - The reader of a stream never waits for a bundle, so a slow bundle does not delay the others. Only
//!   descriptions of shards are queued.
//! - When a stream ends, bundles that still need it fail, and the worker ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::connection::{WorkerId, connect};
use super::proto::fn_execution::beam_fn_data_client::BeamFnDataClient;
use super::proto::fn_execution::{Elements, elements};
use crate::flow::lock;

/// Messages that may wait to be sent on one stream.
const MESSAGES_WAITING: usize = 8;

/// Bundles that have ended and whose late data is recognised.
const ENDED_BUNDLES: usize = 1000;

/// A piece of a bundle's input.
#[derive(Debug)]
pub enum Piece {
    Data(Vec<u8>),
    /// No further data follows.
    Last,
}

/// The streams of one worker.
pub struct DataStreams {
    worker: WorkerId,
    inbox: Arc<Inbox>,
    /// Senders by address. Held while a stream is being opened, so that there is one for each address.
    senders: tokio::sync::Mutex<HashMap<String, mpsc::Sender<Elements>>>,
    /// Set when a stream ends, with the reason if bundles still needed it.
    ended: watch::Sender<Option<Option<String>>>,
}

impl DataStreams {
    pub fn new(worker: WorkerId) -> Self {
        let ended = watch::Sender::new(None);
        Self { worker, inbox: Arc::default(), senders: tokio::sync::Mutex::default(), ended }
    }

    /// The sender of the stream to `address`, which is opened if need be.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub async fn sender(&self, address: &str) -> Result<mpsc::Sender<Elements>, String> {
        let mut senders = self.senders.lock().await;
        if let Some(sender) = senders.get(address).filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let channel = connect("data service", address).await?;
        let mut client = BeamFnDataClient::with_interceptor(channel, self.worker.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let (sender, waiting) = mpsc::channel(MESSAGES_WAITING);
        let (inbox, named) = (Arc::clone(&self.inbox), address.to_owned());
        let ended = self.ended.clone();
        // some runners answer only when there is data
        tokio::spawn(async move {
            let end = match client.data(ReceiverStream::new(waiting)).await {
                Ok(stream) => read(stream.into_inner(), &inbox).await,
                Err(error) => error.to_string(),
            };
            // bundles that wait for input fail
            let reason = inbox.disconnect().then(|| format!("the data stream to {named} ended early: {end}"));
            ended.send_replace(Some(reason));
        });
        senders.insert(address.to_owned(), sender.clone());
        Ok(sender)
    }

    /// Wait until a stream ends. A worker is of no use without it.
    ///
    /// # Errors
    /// If bundles needed it.
    pub async fn ended(&self) -> Result<(), String> {
        let mut ended = self.ended.subscribe();
        // this struct holds the sender
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.flatten().map_or(Ok(()), Err)
    }

    /// The input of one source of a bundle.
    pub fn receiver(&self, instruction: &str, transform: &str) -> Receiver<Piece> {
        self.inbox.receiver(instruction, transform)
    }

    /// Drop what has arrived for a bundle that has ended, and what still arrives.
    pub fn end(&self, instruction: &str) {
        self.inbox.end(instruction);
    }

    /// End all streams: the runner waits for that.
    pub async fn close(&self) {
        self.senders.lock().await.clear();
    }
}

/// Read a stream to its end. Returns why it ended.
async fn read(mut stream: Streaming<Elements>, inbox: &Inbox) -> String {
    loop {
        match stream.message().await {
            Ok(Some(elements)) => elements.data.into_iter().for_each(|data| inbox.deliver(data)),
            Ok(None) => return "the runner has closed it".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Data that has arrived, by bundle and source.
#[derive(Default)]
struct Inbox(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    inputs: HashMap<String, HashMap<String, Input>>,
    ended: VecDeque<String>,
    ended_set: HashSet<String>,
    /// Whether a stream has ended: no further data arrives.
    is_over: bool,
}

struct Input {
    pieces: Sender<Piece>,
    /// Until the bundle takes it.
    receiver: Option<Receiver<Piece>>,
}

impl Default for Input {
    fn default() -> Self {
        let (pieces, receiver) = unbounded();
        Self { pieces, receiver: Some(receiver) }
    }
}

impl Arrived {
    fn input(&mut self, instruction: &str, transform: &str) -> &mut Input {
        let inputs = self.inputs.entry(instruction.to_owned()).or_default();
        inputs.entry(transform.to_owned()).or_default()
    }
}

impl Inbox {
    fn arrived(&self) -> std::sync::MutexGuard<'_, Arrived> {
        lock(&self.0)
    }

    fn deliver(&self, data: elements::Data) {
        let elements::Data { instruction_id, transform_id, data, is_last } = data;
        let mut arrived = self.arrived();
        if arrived.ended_set.contains(&instruction_id) {
            return;
        }
        let input = arrived.input(&instruction_id, &transform_id);
        // the bundle may have ended early
        if !data.is_empty() {
            let _ = input.pieces.send(Piece::Data(data));
        }
        if is_last {
            let _ = input.pieces.send(Piece::Last);
        }
    }

    fn receiver(&self, instruction: &str, transform: &str) -> Receiver<Piece> {
        let mut arrived = self.arrived();
        let is_over = arrived.is_over;
        let receiver = arrived.input(instruction, transform).receiver.take();
        // each source has one reader
        receiver.filter(|_| !is_over).unwrap_or_else(|| unbounded().1)
    }

    fn end(&self, instruction: &str) {
        let mut arrived = self.arrived();
        arrived.inputs.remove(instruction);
        if arrived.ended_set.insert(instruction.to_owned()) {
            arrived.ended.push_back(instruction.to_owned());
        }
        if arrived.ended.len() > ENDED_BUNDLES
            && let Some(oldest) = arrived.ended.pop_front()
        {
            arrived.ended_set.remove(&oldest);
        }
    }

    /// Disconnect all inputs. Returns whether there were any.
    fn disconnect(&self) -> bool {
        let mut arrived = self.arrived();
        arrived.is_over = true;
        !std::mem::take(&mut arrived.inputs).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(instruction: &str, bytes: &[u8], is_last: bool) -> elements::Data {
        let (instruction_id, transform_id) = (instruction.to_owned(), "read".to_owned());
        elements::Data { instruction_id, transform_id, data: bytes.to_vec(), is_last }
    }

    #[test]
    fn data_that_arrives_before_its_bundle_is_kept_and_data_that_arrives_after_it_is_dropped() {
        let inbox = Inbox::default();
        inbox.deliver(data("1", b"a", false));
        let input = inbox.receiver("1", "read");
        inbox.deliver(data("1", b"b", true));
        let pieces: Vec<_> = input.try_iter().collect();
        assert!(
            matches!(&pieces[..], [Piece::Data(a), Piece::Data(b), Piece::Last] if a == b"a" && b == b"b")
        );
        inbox.end("1");
        inbox.deliver(data("1", b"c", true));
        assert!(inbox.arrived().inputs.is_empty());
        assert!(!inbox.disconnect());
    }

    #[test]
    fn a_stream_that_ends_ends_the_inputs_of_its_bundles() {
        let inbox = Inbox::default();
        let input = inbox.receiver("1", "read");
        assert!(inbox.disconnect());
        input.recv().expect_err("disconnected");
        inbox.receiver("2", "read").recv().expect_err("no stream is left");
    }

    #[test]
    fn only_the_last_bundles_are_remembered() {
        let inbox = Inbox::default();
        (0..3 * ENDED_BUNDLES).for_each(|number| inbox.end(&number.to_string()));
        let arrived = inbox.arrived();
        assert_eq!((arrived.ended.len(), arrived.ended_set.len()), (ENDED_BUNDLES, ENDED_BUNDLES));
        assert!(arrived.ended_set.contains(&(3 * ENDED_BUNDLES - 1).to_string()));
    }
}
