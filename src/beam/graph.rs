//! What a bundle does, from the runner's descriptor: sources, functions, sinks, and which feeds which.
//!
//! Runners send only these to a worker: sources and sinks, which are ends of data streams, and our own functions. Any
//! other transform is an error that names it.

use std::collections::HashMap;

use prost::Message;

use super::payload::Payload;
use super::proto::fn_execution::{ProcessBundleDescriptor, RemoteGrpcPort};
use super::proto::pipeline::{PTransform, ParDoPayload};
use super::urns;

/// The transforms of a bundle.
#[derive(Debug)]
pub struct Graph {
    pub sources: Vec<Source>,
    pub nodes: Vec<Node>,
    /// Places in `nodes` of those that take the elements of a collection.
    consumers: HashMap<String, Vec<usize>>,
}

/// Where elements enter.
#[derive(Debug)]
pub struct Source {
    pub transform: String,
    pub port: Port,
    /// The collection that the elements make.
    pub output: String,
}

/// The runner's end of a data stream.
#[derive(Debug)]
pub struct Port {
    pub address: String,
    pub coder: String,
}

/// A transform that takes elements.
#[derive(Debug)]
pub struct Node {
    pub transform: String,
    pub work: Work,
    /// The collection that it makes, if any.
    pub output: Option<String>,
}

/// What a transform does with an element.
#[derive(Debug)]
pub enum Work {
    /// Send it to the runner.
    Sink(Port),
    Function(Function),
    /// Pass it on.
    Flatten,
}

/// One of our functions.
#[derive(Debug)]
pub enum Function {
    /// The message to [`Function::ListGiven`] that it can start, for one element of any content.
    Start,
    /// The message to [`Function::ListGiven`] with a URI, for an element that is one.
    Key,
    /// The shards of the pipeline file's input, for one element of any content.
    List(Payload),
    /// The shards of an input whose URIs are a group.
    ListGiven(Payload),
    /// The pairs of a group.
    Ungroup,
    /// The report of a shard.
    Score(Payload),
    /// Finish the run, given all reports.
    Finish(Payload),
    /// The report of a shard as a string.
    Report,
}

impl Graph {
    /// The graph of `descriptor`, and a message that names the first unsupported transform, if any. The graph has the
    /// others.
    pub fn new(descriptor: &ProcessBundleDescriptor) -> (Self, Option<String>) {
        let mut graph = Self { sources: Vec::new(), nodes: Vec::new(), consumers: HashMap::new() };
        let mut transforms: Vec<_> = descriptor.transforms.iter().collect();
        // a fixed order makes runs alike
        transforms.sort_by_key(|(id, _)| *id);
        let mut unknown = None;
        for (id, transform) in transforms {
            if let Err(message) = graph.add(id, transform) {
                unknown.get_or_insert_with(|| format!("transform {id:?}: {message}"));
            }
        }
        (graph, unknown)
    }

    /// Places of the nodes that take the elements of `collection`. A collection without consumers is dropped.
    pub fn consumers(&self, collection: &str) -> &[usize] {
        self.consumers.get(collection).map_or(&[], Vec::as_slice)
    }

    /// The addresses of all ports, each once.
    pub fn addresses(&self) -> Vec<&str> {
        let sinks = self.nodes.iter().filter_map(|node| match &node.work {
            Work::Sink(port) => Some(port),
            _ => None,
        });
        let ports = self.sources.iter().map(|source| &source.port).chain(sinks);
        let mut addresses: Vec<_> = ports.map(|port| port.address.as_str()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn add(&mut self, id: &str, transform: &PTransform) -> Result<(), String> {
        let spec = transform.spec.as_ref().ok_or("it has no spec")?;
        let output = transform.outputs.values().next().cloned();
        let work = match spec.urn.as_str() {
            urns::SOURCE => {
                let output = output.ok_or("a source has an output")?;
                let port = Port::decode(&spec.payload)?;
                self.sources.push(Source { transform: id.to_owned(), port, output });
                return Ok(());
            }
            urns::SINK => Work::Sink(Port::decode(&spec.payload)?),
            urns::FLATTEN => Work::Flatten,
            urns::PAR_DO => Work::Function(Function::decode(&spec.payload)?),
            other => return Err(format!("sluice does not implement {other:?}")),
        };
        if transform.outputs.len() > 1 {
            return Err(format!("it has {} outputs; sluice's functions have one", transform.outputs.len()));
        }
        let place = self.nodes.len();
        self.nodes.push(Node { transform: id.to_owned(), work, output });
        for collection in transform.inputs.values() {
            self.consumers.entry(collection.clone()).or_default().push(place);
        }
        Ok(())
    }
}

impl Port {
    fn decode(payload: &[u8]) -> Result<Self, String> {
        let port = RemoteGrpcPort::decode(payload).map_err(|error| format!("its port: {error}"))?;
        let address = super::connection::address(&port.api_service_descriptor);
        Ok(Self { address: address.ok_or("its port has no address")?, coder: port.coder_id })
    }
}

impl Function {
    fn decode(payload: &[u8]) -> Result<Self, String> {
        let par_do = ParDoPayload::decode(payload).map_err(|error| format!("its payload: {error}"))?;
        let function = par_do.do_fn.ok_or("it has no function")?;
        let payload = || Payload::decode(&function.payload);
        match function.urn.as_str() {
            urns::START => Ok(Self::Start),
            urns::KEY => Ok(Self::Key),
            urns::LIST => payload().map(Self::List),
            urns::LIST_GIVEN => payload().map(Self::ListGiven),
            urns::UNGROUP => Ok(Self::Ungroup),
            urns::SCORE => payload().map(Self::Score),
            urns::FINISH => payload().map(Self::Finish),
            urns::REPORT => Ok(Self::Report),
            other => Err(format!("sluice does not implement the function {other:?}")),
        }
    }
}
