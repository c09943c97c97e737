//! One bundle: elements from its sources through our functions to its sinks, on a thread of its own.
//!
//! - Several shards of a bundle are scored at once, and the shards of all bundles share batches. Beam does not
//!   depend on the order of the outputs.
//! - Every sink sends exactly one end-of-data message, even if it has no element.
//! - The runner may reclaim elements that the bundle has not started ([`BundleState::split`]).

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvError, Sender, bounded, select, unbounded};
use tokio::sync::{mpsc, watch};

use super::bundle_state::BundleState;
use super::coders::{Element, ElementCoder, ElementDecoder, Value, encode_element};
use super::data::Piece;
use super::failure::Failure;
use super::functions::{ALL, Context, ScoredShard};
use super::graph::{Function, Graph, Work};
use super::messages::ShardReport;
use super::payload::Payload;
use super::proto::fn_execution::{Elements, elements};
use super::proto::pipeline;
use super::scorers::SharedScorer;
use super::uris::{start_message, uri_message};
use crate::items::CallOptions;

/// Shards of one bundle that are scored at once. The scorer reads a few shards ahead, so more would only wait.
const SHARDS_AT_ONCE: usize = 4;

/// Bytes of a message to the runner, after which it is sent.
const MESSAGE_BYTES: usize = 1 << 20;

/// What a bundle needs.
pub struct Bundle {
    pub instruction: String,
    pub graph: Arc<Graph>,
    pub coders: Arc<HashMap<String, pipeline::Coder>>,
    pub state: Arc<BundleState>,
    /// The input of each source of the graph.
    pub inputs: Vec<Receiver<Piece>>,
    /// The data streams by address.
    pub streams: HashMap<String, mpsc::Sender<Elements>>,
    pub context: Arc<Context>,
    /// Whether the worker is ending.
    pub stopping: watch::Receiver<bool>,
}

/// A shard that was scored: the place of the node, the header of its element, and the result.
type Scored = (usize, Bytes, Result<ScoredShard, Failure>);

/// A shard to score: the place of the node, the header of its element, and the message.
type ToScore = (usize, Bytes, Bytes);

impl Bundle {
    /// Process all elements. Blocks.
    ///
    /// # Errors
    /// The first failure. The outputs are incomplete then, and the runner drops them.
    pub fn run(self) -> Result<(), Failure> {
        thread::scope(|scope| {
            let (to_score, next) = bounded::<ToScore>(0);
            let (scored_tx, scored) = unbounded::<Scored>();
            let mut running = Running::new(&self, to_score, scored)?;
            let is_scoring = self.graph.nodes.iter().any(|node| as_score(&node.work).is_some());
            for number in 0..if is_scoring { SHARDS_AT_ONCE } else { 0 } {
                let (next, scored, bundle) = (next.clone(), scored_tx.clone(), &self);
                let name = format!("beam-score-{number}");
                let started = thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, move || bundle.score(&next, &scored));
                started.map_err(|error| format!("cannot start a thread: {error}"))?;
            }
            drop((next, scored_tx));
            let read = running.read_all();
            self.state.end_input();
            if read.is_err() {
                // the other shards of this bundle end early
                self.state.stop.drain();
            }
            read?;
            // so that a manifest made after this bundle lists them
            for scorer in std::mem::take(&mut running.scorers) {
                if !self.context.store_batches(&scorer, &self.state.stop)? {
                    return Err(Failure::stopped());
                }
            }
            running.end()
        })
    }

    fn score(&self, next: &Receiver<ToScore>, scored: &Sender<Scored>) {
        for (place, header, message) in next {
            let node = &self.graph.nodes[place];
            let payload = as_score(&node.work).expect("only shards to score are sent here");
            let batches = Arc::clone(&self.state.scored_by(&node.transform).batches);
            let stop = self.state.stop.clone();
            let options = CallOptions { stop, batches, ..CallOptions::default() };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.context.score(payload, &message, options)
            }));
            let result = result.unwrap_or_else(|panic| Err(Failure::panicked(panic.as_ref())));
            // a bundle that has failed reads no further results
            let _ = scored.send((place, header, result));
        }
    }
}

fn as_score(work: &Work) -> Option<&Payload> {
    match work {
        Work::Function(Function::Score(payload)) => Some(payload),
        _ => None,
    }
}

/// A bundle while it is running.
struct Running<'a> {
    bundle: &'a Bundle,
    sources: Vec<ElementCoder>,
    /// The outputs of the sinks, by place of the node.
    sinks: HashMap<usize, Sink>,
    to_score: Sender<ToScore>,
    scored: Receiver<Scored>,
    /// Shards that are being scored.
    in_flight: usize,
    /// The scorers that have scored shards of this bundle.
    scorers: Vec<Arc<SharedScorer>>,
}

/// The output of one sink.
struct Sink {
    transform: String,
    coder: ElementCoder,
    stream: mpsc::Sender<Elements>,
    buffer: Vec<u8>,
}

impl<'a> Running<'a> {
    fn new(bundle: &'a Bundle, to_score: Sender<ToScore>, scored: Receiver<Scored>) -> Result<Self, Failure> {
        let coder = |id: &str| ElementCoder::resolve(&bundle.coders, id).map_err(unfit);
        let sources = bundle.graph.sources.iter().map(|source| coder(&source.port.coder));
        let sources = sources.collect::<Result<_, _>>()?;
        let mut sinks = HashMap::new();
        for (place, node) in bundle.graph.nodes.iter().enumerate() {
            let Work::Sink(port) = &node.work else { continue };
            let stream =
                bundle.streams.get(&port.address).ok_or_else(|| "a sink has no stream".to_owned())?.clone();
            let coder = coder(&port.coder)?;
            sinks
                .insert(place, Sink { transform: node.transform.clone(), coder, stream, buffer: Vec::new() });
        }
        let functions = bundle.graph.nodes.iter().filter(|node| matches!(node.work, Work::Function(_)));
        bundle.state.start(functions.map(|node| node.transform.clone()).collect());
        Ok(Self { bundle, sources, sinks, to_score, scored, in_flight: 0, scorers: Vec::new() })
    }

    /// Process the elements of all sources, and wait for all shards.
    fn read_all(&mut self) -> Result<(), Failure> {
        for number in 0..self.sources.len() {
            self.read(number)?;
        }
        self.take_until_fewer_than(1)
    }

    /// Take results until fewer than `shards` are being scored.
    fn take_until_fewer_than(&mut self, shards: usize) -> Result<(), Failure> {
        while self.in_flight >= shards {
            self.take(self.scored.recv())?;
        }
        Ok(())
    }

    /// Process the elements of one source.
    fn read(&mut self, number: usize) -> Result<(), Failure> {
        let (input, source) = (&self.bundle.inputs[number], &self.bundle.graph.sources[number]);
        let collection = &source.output;
        let never = crossbeam_channel::never();
        let mut decoder = ElementDecoder::new(self.sources[number].clone());
        // with several sources, a split of one would cut off the others
        if self.sources.len() == 1 {
            self.bundle.state.read_from(&source.transform);
        }
        loop {
            self.take_until_fewer_than(SHARDS_AT_ONCE)?;
            if let Some(element) = decoder.next_element().map_err(unfit)? {
                if !self.bundle.state.advance() {
                    return Ok(());
                }
                self.process(collection, element)?;
                continue;
            }
            let stop = self.bundle.state.stop.asked();
            // without shards in flight there may be no thread that scores
            let scored = if self.in_flight > 0 { &self.scored } else { &never };
            let piece = select! {
                recv(input) -> piece => piece,
                recv(scored) -> result => {
                    self.take(result)?;
                    continue;
                }
                recv(stop) -> _ => return Err(Failure::stopped()),
            };
            match piece {
                Ok(Piece::Data(data)) => decoder.push(&data),
                Ok(Piece::Last) => return decoder.finish().map_err(unfit),
                Err(RecvError) => {
                    return Err("the data stream ended before the input of the bundle".to_owned().into());
                }
            }
        }
    }

    /// Take a result.
    fn take(&mut self, scored: Result<Scored, RecvError>) -> Result<(), Failure> {
        let (place, header, result) = scored.map_err(|_| "the threads that score have ended".to_owned())?;
        self.in_flight -= 1;
        let ScoredShard { message, rows, scorer, load_time } = result?;
        if let Some(scorer) = scorer
            && !self.scorers.iter().any(|known| Arc::ptr_eq(known, &scorer))
        {
            self.scorers.push(scorer);
        }
        let by_transform = self.bundle.state.scored_by(&self.bundle.graph.nodes[place].transform);
        by_transform.add_rows(&rows);
        if let Some(time) = load_time {
            by_transform.add_load(time);
        }
        self.emit(place, header, pair_of(ALL, &message))
    }

    /// Pass an element of a collection to all that take it.
    fn process(&mut self, collection: &str, element: Element) -> Result<(), Failure> {
        if self.bundle.state.stop.is_draining() {
            return Err(Failure::stopped());
        }
        self.bundle.state.count(collection);
        let bundle = self.bundle;
        let Some((&last, others)) = bundle.graph.consumers(collection).split_last() else { return Ok(()) };
        for &place in others {
            self.work(place, element.clone())?;
        }
        self.work(last, element)
    }

    fn emit(&mut self, place: usize, header: Bytes, value: Value) -> Result<(), Failure> {
        match &self.bundle.graph.nodes[place].output {
            Some(output) => self.process(output, Element { header, value }),
            None => Ok(()),
        }
    }

    fn work(&mut self, place: usize, element: Element) -> Result<(), Failure> {
        let bundle = self.bundle;
        let Element { header, value } = element;
        match &bundle.graph.nodes[place].work {
            Work::Sink(_) => self.send(place, &Element { header, value }),
            Work::Flatten => self.emit(place, header, value),
            Work::Function(Function::Start) => self.emit(place, header, pair_of(ALL, &start_message())),
            Work::Function(Function::Key) => {
                let message = uri_message(as_uri(&value)?);
                self.emit(place, header, pair_of(ALL, &message))
            }
            Work::Function(Function::List(payload)) => bundle
                .context
                .list(payload, |key, value| self.emit(place, header.clone(), pair_of(key, value))),
            Work::Function(Function::ListGiven(payload)) => {
                let messages = messages_of(value)?;
                let emit = |key: &[u8], value: &[u8]| self.emit(place, header.clone(), pair_of(key, value));
                bundle.context.list_given(payload, messages, emit)
            }
            Work::Function(Function::Ungroup) => {
                let (key, values) = as_group(value)?;
                for value in values {
                    self.emit(place, header.clone(), Value::Pair(key.clone(), Box::new(value)))?;
                }
                Ok(())
            }
            Work::Function(Function::Score(_)) => {
                // one list or group may yield many elements, and no other queue bounds them
                self.take_until_fewer_than(SHARDS_AT_ONCE)?;
                let (_, message) = as_pair(value)?;
                let message = as_bytes(*message)?;
                self.in_flight += 1;
                self.to_score
                    .send((place, header, message))
                    .map_err(|_| "the threads that score have ended".to_owned())?;
                Ok(())
            }
            Work::Function(Function::Finish(payload)) => {
                // a large job has many messages: each is dropped once it is decoded
                bundle.context.finish(payload, messages_of(value)?)
            }
            Work::Function(Function::Report) => {
                let (_, message) = as_pair(value)?;
                match ShardReport::json_of(&as_bytes(*message)?)? {
                    Some(report) => self.emit(place, header, Value::String(report)),
                    None => Ok(()),
                }
            }
        }
    }

    /// Send an element to the runner.
    fn send(&mut self, place: usize, element: &Element) -> Result<(), Failure> {
        let sink = self.sinks.get_mut(&place).expect("every sink has an output");
        encode_element(&element.header, &element.value, &sink.coder, &mut sink.buffer).map_err(unfit)?;
        if sink.buffer.len() >= MESSAGE_BYTES { sink.flush(self.bundle, false) } else { Ok(()) }
    }

    /// End all sinks.
    fn end(mut self) -> Result<(), Failure> {
        self.sinks.values_mut().try_for_each(|sink| sink.flush(self.bundle, true))
    }
}

impl Sink {
    /// Send the elements so far, and then, if `is_last`, that no more follow.
    fn flush(&mut self, bundle: &Bundle, is_last: bool) -> Result<(), Failure> {
        let data = |data, is_last| elements::Data {
            instruction_id: bundle.instruction.clone(),
            transform_id: self.transform.clone(),
            data,
            is_last,
        };
        let mut messages = Vec::new();
        if !self.buffer.is_empty() {
            messages.push(data(std::mem::take(&mut self.buffer), false));
        }
        if is_last {
            // on its own: Beam's Python runner drops the data of a last message
            messages.push(data(Vec::new(), true));
        }
        let elements = Elements { data: messages, timers: Vec::new() };
        let mut stopping = bundle.stopping.clone();
        // waits if the runner reads slowly
        let sent = bundle.context.runtime().block_on(async {
            tokio::select! {
                sent = self.stream.send(elements) => Some(sent),
                _ = stopping.wait_for(|stopping| *stopping) => None,
            }
        });
        let sent = sent.ok_or_else(Failure::stopped)?;
        sent.map_err(|_| "the data stream closed before the bundle's output was sent".to_owned().into())
    }
}

/// The failure of a bundle whose elements do not have the coders or the form that our functions need.
fn unfit(error: impl Display) -> Failure {
    Failure::unsupported(error.to_string())
}

fn pair_of(key: &[u8], value: &[u8]) -> Value {
    let bytes = |bytes: &[u8]| Box::new(Value::Bytes(Bytes::copy_from_slice(bytes)));
    Value::Pair(bytes(key), bytes(value))
}

fn as_bytes(value: Value) -> Result<Bytes, Failure> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        other => Err(unfit(format!("an element is {}, expected bytes", other.kind()))),
    }
}

fn as_pair(value: Value) -> Result<(Box<Value>, Box<Value>), Failure> {
    match value {
        Value::Pair(key, value) => Ok((key, value)),
        other => Err(unfit(format!("an element is {}, expected a pair", other.kind()))),
    }
}

fn as_group(value: Value) -> Result<(Box<Value>, Vec<Value>), Failure> {
    let (key, values) = as_pair(value)?;
    match *values {
        Value::Iterable(values) => Ok((key, values)),
        other => Err(unfit(format!("a group is {}, expected an iterable", other.kind()))),
    }
}

/// The messages of a group.
fn messages_of(value: Value) -> Result<impl Iterator<Item = Result<Bytes, Failure>>, Failure> {
    let (_, values) = as_group(value)?;
    Ok(values.into_iter().map(as_bytes))
}

/// A URI as text.
fn as_uri(value: &Value) -> Result<&str, Failure> {
    match value {
        Value::String(uri) => Ok(uri),
        Value::Bytes(bytes) => {
            std::str::from_utf8(bytes).map_err(|error| unfit(format!("a URI is not UTF-8: {error}")))
        }
        other => Err(unfit(format!("a URI is {}, expected a string or bytes", other.kind()))),
    }
}
