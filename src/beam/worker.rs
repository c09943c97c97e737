//! A worker: takes a runner's instructions, and runs each bundle on a thread of its own.
//!
//! - Any number of bundles run at once. A limit would hang runners that start all stages together.
//! - An instruction about a bundle that has not begun, or has ended, gets an empty answer, never an error.
//! - When the control stream ends, all bundles are asked to stop, and then all streams are closed, since the runner
//!   waits for that.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::bundle::Bundle;
use super::bundle_state::BundleState;
use super::connection::{WorkerChannel, WorkerId, answer};
use super::data::DataStreams;
use super::failure::Failure;
use super::functions::Context;
use super::graph::Graph;
use super::monitoring::{Monitoring, ShortIds};
use super::proto::fn_execution::beam_fn_control_client::BeamFnControlClient;
use super::proto::fn_execution::instruction_request::Request;
use super::proto::fn_execution::instruction_response::Response;
use super::proto::fn_execution::process_bundle_split_response::ChannelSplit;
use super::proto::fn_execution::{
    Elements, FinalizeBundleResponse, GetProcessBundleDescriptorRequest, HarnessMonitoringInfosResponse,
    InstructionRequest, InstructionResponse, MonitoringInfosMetadataResponse, ProcessBundleDescriptor,
    ProcessBundleProgressResponse, ProcessBundleRequest, ProcessBundleResponse, ProcessBundleSplitRequest,
    ProcessBundleSplitResponse, RegisterResponse, SampleDataResponse,
};
use super::proto::pipeline::Coder;
use super::service_error::words;
use crate::flow::lock;

#[cfg(test)]
mod tests;

/// How long to wait until a runner has read the last answers of a worker that ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A worker of one runner.
pub struct Worker {
    control: BeamFnControlClient<WorkerChannel>,
    data: DataStreams,
    context: Arc<Context>,
    /// Descriptors by their ids, which are unique for one runner only.
    descriptors: tokio::sync::Mutex<HashMap<String, Arc<Descriptor>>>,
    /// Bundles in progress.
    bundles: Mutex<HashMap<String, Arc<BundleState>>>,
    short_ids: Option<ShortIds>,
    /// Whether the worker is ending.
    stopping: watch::Sender<bool>,
    responses: mpsc::UnboundedSender<InstructionResponse>,
}

/// A descriptor as the worker uses it.
struct Descriptor {
    graph: Arc<Graph>,
    coders: Arc<HashMap<String, Coder>>,
    /// The first unsupported transform, if any. Its bundles fail once their data streams are open.
    unknown: Option<String>,
}

/// The control service of a runner.
pub struct Control {
    pub address: String,
    pub channel: Channel,
}

/// Run a worker until the runner or `stop` ends it.
///
/// # Errors
/// If the runner rejects the worker, or the connection breaks.
pub async fn run(
    id: WorkerId,
    control: Control,
    capabilities: &[String],
    context: Arc<Context>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let (responses, waiting) = mpsc::unbounded_channel();
    let address = control.address.clone();
    let opened = tokio::select! {
        opened = open(&id, control, waiting) => opened?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let (client, mut requests) = opened;
    let worker = Arc::new(Worker {
        control: client,
        data: DataStreams::new(id),
        context,
        descriptors: tokio::sync::Mutex::default(),
        bundles: Mutex::default(),
        short_ids: ShortIds::if_declared(capabilities),
        stopping: watch::Sender::new(false),
        responses,
    });
    tracing::info!(control = address, "the worker is ready");
    let mut running = JoinSet::new();
    let ended = loop {
        let request = tokio::select! {
            request = requests.message() => request,
            ended = worker.data.ended() => break ended,
            _ = stop.wait_for(|stop| *stop) => break Ok(()),
        };
        // bundles that have ended
        while running.try_join_next().is_some() {}
        match request {
            Ok(Some(request)) => worker.take(request, &mut running),
            Ok(None) => break Ok(()),
            Err(error) => break Err(format!("the control stream to {address} broke: {error}")),
        }
    };
    worker.stopping.send_replace(true);
    worker.bundles().values().for_each(|bundle| bundle.stop.drain());
    while running.join_next().await.is_some() {}
    let worker = Arc::into_inner(worker).expect("all tasks that had the worker have ended");
    let Worker { data, responses, .. } = worker;
    // close the control stream before the data streams: if a data stream ends first, Python's runner reports that as
    // the failure, and reads no answer
    drop(responses);
    let closed = async { while let Ok(Some(_)) = requests.message().await {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, closed).await;
    data.close().await;
    ended
}

/// Open the control stream. Some runners answer only with the first instruction.
async fn open(
    id: &WorkerId,
    control: Control,
    responses: mpsc::UnboundedReceiver<InstructionResponse>,
) -> Result<(BeamFnControlClient<WorkerChannel>, Streaming<InstructionRequest>), String> {
    let Control { address, channel } = control;
    let mut client = BeamFnControlClient::with_interceptor(channel, id.clone())
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let opened = client.control(UnboundedReceiverStream::new(responses)).await;
    let opened = opened
        .map_err(|error| format!("the control service at {address} rejected the call: {}", words(&error)))?;
    Ok((client, opened.into_inner()))
}

/// The result of `work`. A panic is a failure.
async fn caught<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let result = AssertUnwindSafe(work).catch_unwind().await;
    result.unwrap_or_else(|panic| Err(Failure::panicked(panic.as_ref())))
}

impl Worker {
    fn bundles(&self) -> MutexGuard<'_, HashMap<String, Arc<BundleState>>> {
        lock(&self.bundles)
    }

    /// Take an instruction. Bundles are added to `running`, all others are answered at once.
    fn take(self: &Arc<Self>, request: InstructionRequest, running: &mut JoinSet<()>) {
        let InstructionRequest { instruction_id: id, request } = request;
        let response = match request {
            Some(Request::ProcessBundle(request)) => {
                // known before its task begins: the runner may ask for its progress at once
                let state = Arc::<BundleState>::default();
                self.bundles().insert(id.clone(), Arc::clone(&state));
                let worker = Arc::clone(self);
                running.spawn(async move {
                    // the runner waits for an answer, whatever happens here
                    let result = caught(worker.process(&id, request, &state)).await;
                    worker.bundles().remove(&id);
                    worker.data.end(&id);
                    worker.answer(id, result.map(Response::ProcessBundle));
                });
                return;
            }
            Some(Request::ProcessBundleProgress(request)) => {
                let state = self.bundles().get(&request.instruction_id).cloned();
                let reported = state.map(|state| {
                    state.count_report();
                    Monitoring::of(&state).reported(self.short_ids.as_ref())
                });
                let (monitoring_infos, monitoring_data) = reported.unwrap_or_default();
                let progress =
                    ProcessBundleProgressResponse { monitoring_infos, monitoring_data, ..Default::default() };
                Ok(Response::ProcessBundleProgress(progress))
            }
            Some(Request::ProcessBundleSplit(request)) => {
                Ok(Response::ProcessBundleSplit(self.split(&request)))
            }
            Some(Request::MonitoringInfos(request)) => {
                let known = self.short_ids.as_ref();
                let monitoring_info =
                    known.map(|ids| ids.resolve(&request.monitoring_info_id)).unwrap_or_default();
                Ok(Response::MonitoringInfos(MonitoringInfosMetadataResponse { monitoring_info }))
            }
            Some(Request::FinalizeBundle(_)) => Ok(Response::FinalizeBundle(FinalizeBundleResponse {})),
            Some(Request::HarnessMonitoringInfos(_)) => {
                Ok(Response::HarnessMonitoringInfos(HarnessMonitoringInfosResponse::default()))
            }
            Some(Request::SampleData(_)) => Ok(Response::SampleData(SampleDataResponse::default())),
            Some(Request::Register(_)) => Ok(Response::Register(RegisterResponse {})),
            None => Err(Failure::unsupported("sluice does not know this instruction")),
        };
        self.answer(id, response);
    }

    fn answer(&self, instruction_id: String, response: Result<Response, Failure>) {
        let (response, error) = match response {
            Ok(response) => (Some(response), String::new()),
            Err(failure) => {
                tracing::error!(instruction = instruction_id, "{failure}");
                (None, failure.to_text())
            }
        };
        // a runner that has gone needs no answer
        let _ = self.responses.send(InstructionResponse { instruction_id, error, response });
    }

    /// Process a bundle.
    async fn process(
        self: &Arc<Self>,
        id: &str,
        request: ProcessBundleRequest,
        state: &Arc<BundleState>,
    ) -> Result<ProcessBundleResponse, Failure> {
        let mut stopping = self.stopping.subscribe();
        let (descriptor, streams) = tokio::select! {
            prepared = self.prepare(&request.process_bundle_descriptor_id) => prepared?,
            _ = stopping.wait_for(|stopping| *stopping) => return Err(Failure::stopped()),
        };
        if let Some(unknown) = &descriptor.unknown {
            return Err(Failure::unsupported(unknown));
        }
        let inputs = descriptor.graph.sources.iter().map(|source| self.data.receiver(id, &source.transform));
        let bundle = Bundle {
            instruction: id.to_owned(),
            graph: Arc::clone(&descriptor.graph),
            coders: Arc::clone(&descriptor.coders),
            state: Arc::clone(state),
            inputs: inputs.collect(),
            streams,
            context: Arc::clone(&self.context),
            stopping,
        };
        let (done, ended) = tokio::sync::oneshot::channel();
        let run = move || {
            let result = catch_unwind(AssertUnwindSafe(|| bundle.run()));
            // the worker waits for this
            let _ = done.send(result.unwrap_or_else(|panic| Err(Failure::panicked(panic.as_ref()))));
        };
        let started = std::thread::Builder::new().name("beam-bundle".to_owned()).spawn(run);
        started.map_err(|error| format!("cannot start a thread: {error}"))?;
        ended.await.map_err(|_| "the thread of the bundle has ended".to_owned())??;
        let (monitoring_infos, monitoring_data) = Monitoring::of(state).reported(self.short_ids.as_ref());
        Ok(ProcessBundleResponse { monitoring_infos, monitoring_data, ..Default::default() })
    }

    /// The descriptor `id`, and the data streams that it needs, by address.
    async fn prepare(
        &self,
        id: &str,
    ) -> Result<(Arc<Descriptor>, HashMap<String, mpsc::Sender<Elements>>), String> {
        let descriptor = self.descriptor(id).await?;
        let mut streams = HashMap::new();
        for address in descriptor.graph.addresses() {
            streams.insert(address.to_owned(), self.data.sender(address).await?);
        }
        Ok((descriptor, streams))
    }

    /// The descriptor `id`, from the runner or as it was received before.
    async fn descriptor(&self, id: &str) -> Result<Arc<Descriptor>, String> {
        // the lock is held while the descriptor is fetched, so that it is fetched once
        let mut descriptors = self.descriptors.lock().await;
        if let Some(known) = descriptors.get(id) {
            return Ok(Arc::clone(known));
        }
        let request = GetProcessBundleDescriptorRequest { process_bundle_descriptor_id: id.to_owned() };
        let mut control = self.control.clone();
        let asked = control.get_process_bundle_descriptor(request);
        let descriptor = answer("control service", asked).await;
        let descriptor = descriptor.map_err(|error| format!("the descriptor of the bundle: {error}"))?;
        let descriptor = Arc::new(Descriptor::new(descriptor));
        descriptors.insert(id.to_owned(), Arc::clone(&descriptor));
        Ok(descriptor)
    }

    /// Split a bundle. The answer is empty if the bundle is not running or has nothing to give away.
    fn split(&self, request: &ProcessBundleSplitRequest) -> ProcessBundleSplitResponse {
        let state = self.bundles().get(&request.instruction_id).cloned();
        let split = state.and_then(|state| {
            let (transform_id, desired) = request.desired_splits.iter().next()?;
            let (fraction, total) = (desired.fraction_of_remainder, desired.estimated_input_elements);
            if state.source().as_ref() != Some(transform_id) {
                return None;
            }
            let first_residual_element = state.split(fraction, total, &desired.allowed_split_points)?;
            let last_primary_element = first_residual_element - 1;
            Some(ChannelSplit {
                transform_id: transform_id.clone(),
                last_primary_element,
                first_residual_element,
            })
        });
        ProcessBundleSplitResponse { channel_splits: split.into_iter().collect(), ..Default::default() }
    }
}

impl Descriptor {
    fn new(descriptor: ProcessBundleDescriptor) -> Self {
        let (graph, unknown) = Graph::new(&descriptor);
        Self { graph: Arc::new(graph), coders: Arc::new(descriptor.coders), unknown }
    }
}
