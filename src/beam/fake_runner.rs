//! A runner for tests: the services that a worker connects to, and bundles that a test sends.

use std::collections::HashMap;
use std::future::pending;
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::{mpsc as stream, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::proto::fn_execution::beam_fn_control_server::{BeamFnControl, BeamFnControlServer};
use super::proto::fn_execution::beam_fn_data_server::{BeamFnData, BeamFnDataServer};
use super::proto::fn_execution::instruction_request::Request as Instruction;
use super::proto::fn_execution::provision_service_server::{ProvisionService, ProvisionServiceServer};
use super::proto::fn_execution::*;
use super::proto::job_management::artifact_retrieval_service_server::{
    ArtifactRetrievalService, ArtifactRetrievalServiceServer,
};
use super::proto::job_management::*;
use super::proto::pipeline::*;
use super::urns;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens when an artifact is asked for.
#[derive(Debug, Clone)]
pub enum Artifact {
    /// It is sent in two pieces.
    Content(Vec<u8>),
    /// Its first byte is sent, and then nothing.
    Stalls,
}

/// A runner.
pub struct FakeRunner {
    pub address: String,
    services: Services,
    connected: Receiver<ControlStream>,
    received: Receiver<elements::Data>,
}

/// The runner's end of a control stream.
pub struct ControlStream {
    /// The id in the worker's headers.
    pub worker: String,
    instructions: stream::UnboundedSender<Result<InstructionRequest, Status>>,
    responses: Receiver<InstructionResponse>,
}

type Outgoing = stream::UnboundedSender<Result<Elements, Status>>;

#[derive(Clone)]
struct Services {
    address: String,
    descriptors: Arc<Mutex<HashMap<String, ProcessBundleDescriptor>>>,
    artifacts: Arc<Mutex<HashMap<String, Artifact>>>,
    provisions: bool,
    logging: std::option::Option<String>,
    connected: Sender<ControlStream>,
    /// The runner's ends of the data streams.
    data: Arc<Mutex<Vec<Outgoing>>>,
    data_streams: watch::Sender<usize>,
    received: Sender<elements::Data>,
    reads_data: bool,
}

/// An address where nobody listens.
pub fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// What a runner fails to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// It never answers the question for its addresses.
    pub no_provision: bool,
    /// Nobody listens where its logging service should be.
    pub no_logging: bool,
    /// It never reads what workers send as data.
    pub no_reading: bool,
}

impl FakeRunner {
    pub fn start(runtime: &Handle) -> Self {
        Self::with(runtime, Faults::default())
    }

    pub fn with(runtime: &Handle, faults: Faults) -> Self {
        let _inside = runtime.enter();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let (connected_tx, connected) = channel();
        let (received_tx, received) = channel();
        let services = Services {
            address: address.clone(),
            descriptors: Arc::default(),
            artifacts: Arc::default(),
            provisions: !faults.no_provision,
            logging: faults.no_logging.then(closed_port),
            connected: connected_tx,
            data: Arc::default(),
            data_streams: watch::Sender::new(0),
            received: received_tx,
            reads_data: !faults.no_reading,
        };
        let data = BeamFnDataServer::new(services.clone()).max_decoding_message_size(usize::MAX);
        let server = Server::builder()
            .add_service(BeamFnControlServer::new(services.clone()))
            .add_service(data.max_encoding_message_size(usize::MAX))
            .add_service(ProvisionServiceServer::new(services.clone()))
            .add_service(ArtifactRetrievalServiceServer::new(services.clone()));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, services, connected, received }
    }

    pub fn describe(&self, id: &str, descriptor: ProcessBundleDescriptor) {
        self.services.descriptors.lock().expect("a lock").insert(id.to_owned(), descriptor);
    }

    pub fn offer(&self, name: &str, artifact: Artifact) -> ArtifactInformation {
        self.services.artifacts.lock().expect("a lock").insert(name.to_owned(), artifact);
        let role_payload = ArtifactStagingToRolePayload { staged_name: name.to_owned() }.encode_to_vec();
        ArtifactInformation { role_urn: urns::STAGING_TO.to_owned(), role_payload, ..Default::default() }
    }

    /// The next worker that asks for instructions.
    pub fn worker(&self) -> ControlStream {
        self.connected.recv_timeout(PATIENCE).expect("a worker connects")
    }

    /// Send input of a bundle, once its worker has opened a data stream.
    pub fn feed(&self, runtime: &Handle, data: elements::Data) {
        self.wait_for_data_stream(runtime);
        let elements = Elements { data: vec![data], timers: Vec::new() };
        self.services.data.lock().expect("a lock")[0].send(Ok(elements)).expect("an open stream");
    }

    /// Wait until a worker has opened a data stream.
    pub fn wait_for_data_stream(&self, runtime: &Handle) {
        let opened = async {
            let mut streams = self.services.data_streams.subscribe();
            tokio::time::timeout(PATIENCE, streams.wait_for(|streams| *streams > 0)).await.map(drop)
        };
        runtime.block_on(opened).expect("the worker opens a data stream");
    }

    /// Data streams that workers have opened.
    pub fn data_streams(&self) -> usize {
        *self.services.data_streams.borrow()
    }

    /// End all data streams.
    pub fn close_data(&self) {
        self.services.data.lock().expect("a lock").clear();
    }

    /// The outputs of a bundle with `sinks` sinks, by sink.
    pub fn outputs(&self, instruction: &str, sinks: usize) -> HashMap<String, Vec<u8>> {
        let (mut outputs, mut ended) = (HashMap::<String, Vec<u8>>::new(), 0);
        while ended < sinks {
            let data = self.received.recv_timeout(PATIENCE).expect("output of the bundle");
            assert_eq!(data.instruction_id, instruction);
            outputs.entry(data.transform_id).or_default().extend(data.data);
            ended += usize::from(data.is_last);
        }
        outputs
    }
}

impl ControlStream {
    /// Send an instruction. One that the worker does not know arrives as none.
    pub fn send(&self, instruction: &str, request: impl Into<std::option::Option<Instruction>>) {
        let request = InstructionRequest { instruction_id: instruction.to_owned(), request: request.into() };
        self.instructions.send(Ok(request)).expect("an open stream");
    }

    /// Begin a bundle.
    pub fn process(&self, instruction: &str, descriptor: &str) {
        let process_bundle_descriptor_id = descriptor.to_owned();
        let request = ProcessBundleRequest { process_bundle_descriptor_id, ..Default::default() };
        self.send(instruction, Instruction::ProcessBundle(request));
    }

    /// The worker's next response.
    pub fn response(&self) -> InstructionResponse {
        self.responses.recv_timeout(PATIENCE).expect("a response")
    }

    /// Wait until the worker has closed its side. Returns the responses until then.
    pub fn ended(&self) -> Vec<InstructionResponse> {
        let mut responses = Vec::new();
        loop {
            match self.responses.recv_timeout(PATIENCE) {
                Ok(response) => responses.push(response),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return responses,
                Err(timeout) => panic!("the worker does not end: {timeout}"),
            }
        }
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[async_trait]
impl BeamFnControl for Services {
    type ControlStream = UnboundedReceiverStream<Result<InstructionRequest, Status>>;

    async fn control(
        &self,
        request: Request<Streaming<InstructionResponse>>,
    ) -> Answered<Self::ControlStream> {
        let worker = request.metadata().get("worker_id").expect("an id");
        let worker = worker.to_str().expect("text").to_owned();
        let (instructions, receiver) = stream::unbounded_channel();
        let (sender, responses) = channel();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(response)) = incoming.message().await {
                // a test may not read responses
                let _ = sender.send(response);
            }
        });
        let _ = self.connected.send(ControlStream { worker, instructions, responses });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn get_process_bundle_descriptor(
        &self,
        request: Request<GetProcessBundleDescriptorRequest>,
    ) -> Answered<ProcessBundleDescriptor> {
        let id = request.into_inner().process_bundle_descriptor_id;
        let known = self.descriptors.lock().expect("a lock").get(&id).cloned();
        known.map(Response::new).ok_or_else(|| Status::not_found("no such descriptor"))
    }
}

#[async_trait]
impl BeamFnData for Services {
    type DataStream = UnboundedReceiverStream<Result<Elements, Status>>;

    async fn data(&self, request: Request<Streaming<Elements>>) -> Answered<Self::DataStream> {
        let (sender, receiver) = stream::unbounded_channel();
        self.data.lock().expect("a lock").push(sender);
        let (mut incoming, received, reads) = (request.into_inner(), self.received.clone(), self.reads_data);
        tokio::spawn(async move {
            if !reads {
                pending::<()>().await;
            }
            while let Ok(Some(elements)) = incoming.message().await {
                elements.data.into_iter().for_each(|data| drop(received.send(data)));
            }
        });
        self.data_streams.send_modify(|streams| *streams += 1);
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

#[async_trait]
impl ProvisionService for Services {
    async fn get_provision_info(
        &self,
        _: Request<GetProvisionInfoRequest>,
    ) -> Answered<GetProvisionInfoResponse> {
        if !self.provisions {
            pending::<()>().await;
        }
        let service = |url: &String| ApiServiceDescriptor { url: url.clone(), authentication: None };
        let info = ProvisionInfo {
            control_endpoint: Some(service(&self.address)),
            logging_endpoint: self.logging.as_ref().map(service),
            ..Default::default()
        };
        Ok(Response::new(GetProvisionInfoResponse { info: Some(info) }))
    }
}

#[async_trait]
impl ArtifactRetrievalService for Services {
    type GetArtifactStream = UnboundedReceiverStream<Result<GetArtifactResponse, Status>>;

    async fn resolve_artifacts(
        &self,
        _: Request<ResolveArtifactsRequest>,
    ) -> Answered<ResolveArtifactsResponse> {
        Err(Status::unimplemented("resolve"))
    }

    async fn get_artifact(&self, request: Request<GetArtifactRequest>) -> Answered<Self::GetArtifactStream> {
        let role = request.into_inner().artifact.unwrap_or_default().role_payload;
        let name = ArtifactStagingToRolePayload::decode(&role[..]).expect("a name").staged_name;
        let artifact = self.artifacts.lock().expect("a lock").get(&name).cloned();
        let artifact = artifact.ok_or_else(|| Status::not_found("no such artifact"))?;
        let (sender, receiver) = stream::unbounded_channel();
        let send = |data: &[u8]| drop(sender.send(Ok(GetArtifactResponse { data: data.to_vec() })));
        match artifact {
            Artifact::Content(content) => {
                let (first, second) = content.split_at(content.len() / 2);
                send(first);
                send(second);
            }
            Artifact::Stalls => {
                send(b"x");
                tokio::spawn(async move {
                    let _open = sender;
                    pending::<()>().await;
                });
            }
        }
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

/// Sends pieces of input to `transform`.
pub fn data(instruction: &str, transform: &str, data: Vec<u8>, is_last: bool) -> elements::Data {
    let (instruction_id, transform_id) = (instruction.to_owned(), transform.to_owned());
    elements::Data { instruction_id, transform_id, data, is_last }
}

/// A descriptor whose sources `in-0`, `in-1` … and sink `out` are at `address`, with `middle` between them. Its
/// elements are bytes.
pub fn descriptor(address: &str, sources: usize, middle: PTransform) -> ProcessBundleDescriptor {
    let port = |coder: &str| {
        let here = ApiServiceDescriptor { url: address.to_owned(), authentication: None };
        let port = RemoteGrpcPort { api_service_descriptor: Some(here), coder_id: coder.to_owned() };
        port.encode_to_vec()
    };
    let spec = |urn: &str, payload| Some(FunctionSpec { urn: urn.to_owned(), payload });
    let one = |collection: &str| HashMap::from([("x".to_owned(), collection.to_owned())]);
    let mut transforms = HashMap::new();
    for number in 0..sources {
        let source = PTransform {
            spec: spec(urns::SOURCE, port("windowed")),
            outputs: one(&format!("read-{number}")),
            ..Default::default()
        };
        transforms.insert(format!("in-{number}"), source);
    }
    let inputs = (0..sources).map(|number| (number.to_string(), format!("read-{number}"))).collect();
    transforms.insert("middle".to_owned(), PTransform { inputs, outputs: one("done"), ..middle });
    let sink =
        PTransform { spec: spec(urns::SINK, port("windowed")), inputs: one("done"), ..Default::default() };
    transforms.insert("out".to_owned(), sink);
    let coder = |urn: &str, components: &[&str]| Coder {
        spec: spec(urn, Vec::new()),
        component_coder_ids: components.iter().map(|&component| component.to_owned()).collect(),
    };
    let coders = [
        ("bytes", coder(urns::BYTES, &[])),
        ("window", coder(urns::GLOBAL_WINDOW, &[])),
        ("windowed", coder(urns::WINDOWED_VALUE, &["bytes", "window"])),
    ];
    let coders = coders.map(|(id, coder)| (id.to_owned(), coder)).into();
    ProcessBundleDescriptor { transforms, coders, ..Default::default() }
}

/// A transform that passes elements on.
pub fn flatten() -> PTransform {
    PTransform {
        spec: Some(FunctionSpec { urn: urns::FLATTEN.to_owned(), payload: Vec::new() }),
        ..Default::default()
    }
}

/// A transform with a function.
pub fn function(urn: &str, payload: Vec<u8>) -> PTransform {
    let do_fn = Some(FunctionSpec { urn: urn.to_owned(), payload });
    let payload = ParDoPayload { do_fn, ..Default::default() }.encode_to_vec();
    PTransform { spec: Some(FunctionSpec { urn: urns::PAR_DO.to_owned(), payload }), ..Default::default() }
}

/// An encoded element of bytes.
pub fn element(value: &[u8]) -> Vec<u8> {
    // the minimum timestamp, one global window, no firing
    let mut element = vec![0x7f, 0xdf, 0x3b, 0x64, 0x5a, 0x1c, 0xac, 0x09, 0, 0, 0, 1, 0x0f];
    prost::encoding::encode_varint(value.len() as u64, &mut element);
    element.extend_from_slice(value);
    element
}
