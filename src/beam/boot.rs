//! Starting workers: for one runner that has started this process, or as a pool that runners ask for workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::artifacts::{Artifacts, Fetched, Offer};
use super::connection::{WorkerId, address, answer, connect};
use super::failure::Failure;
use super::functions::Context;
use super::logging::Logging;
use super::proto::fn_execution::beam_fn_external_worker_pool_server::{
    BeamFnExternalWorkerPool, BeamFnExternalWorkerPoolServer,
};
use super::proto::fn_execution::provision_service_client::ProvisionServiceClient;
use super::proto::fn_execution::{
    GetProvisionInfoRequest, ProvisionInfo, StartWorkerRequest, StartWorkerResponse, StopWorkerRequest,
    StopWorkerResponse,
};
use super::scorers::Scorers;
use super::serving::serve_until;
use super::worker::{self, Control};

/// How long a runner that asks a pool for a worker waits until its services can be reached.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What all workers of a process share.
#[derive(Clone)]
pub struct Process {
    runtime: Handle,
    scorers: Arc<Scorers>,
    fetched: Arc<Fetched>,
}

/// The addresses of a runner's services, from the flags of a worker or from the request to start one. Those that the
/// provision service returns take precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Provision service, which returns the other addresses.
    pub provision: Option<String>,
    /// Control service.
    pub control: Option<String>,
    /// Artifact service.
    pub artifact: Option<String>,
    /// Logging service.
    pub logging: Option<String>,
}

/// A worker that has not asked for instructions yet.
struct Begun {
    id: WorkerId,
    control: Control,
    /// What the runner supports.
    capabilities: Vec<String>,
    logging: Option<Logging>,
    context: Context,
}

impl Process {
    /// A process without workers. `runtime` drives all requests.
    pub fn new(runtime: Handle) -> Self {
        Self { scorers: Arc::new(Scorers::new(runtime.clone())), fetched: Arc::default(), runtime }
    }

    /// Run one worker until its runner or `stop` ends it.
    ///
    /// # Errors
    /// If the runner cannot be reached, or the connection breaks.
    pub async fn worker(
        &self,
        id: &str,
        endpoints: Endpoints,
        stop: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let mut stopped = stop.clone();
        let begun = tokio::select! {
            begun = self.begin(id, endpoints) => begun?,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        Self::run(begun, stop).await
    }

    /// Run a worker that is connected to its runner.
    async fn run(begun: Begun, stop: watch::Receiver<bool>) -> Result<(), String> {
        let Begun { id, control, capabilities, logging, context } = begun;
        let context = Arc::new(context);
        let ended = worker::run(id, control, &capabilities, Arc::clone(&context), stop).await;
        if let Some(logging) = logging {
            logging.close().await;
        }
        // ending attempts blocks
        let dropped = tokio::task::spawn_blocking(move || drop(context)).await;
        dropped.map_err(|error| error.to_string()).and(ended)
    }

    /// What a worker needs before it asks for instructions.
    async fn begin(&self, id: &str, endpoints: Endpoints) -> Result<Begun, String> {
        let id = WorkerId::new(id)?;
        let info = match &endpoints.provision {
            Some(address) => provision(address, &id).await?,
            None => ProvisionInfo::default(),
        };
        let control = address(&info.control_endpoint).or(endpoints.control);
        let control = control.ok_or("the runner has named no control service")?;
        let control = Control { channel: connect("control service", &control).await?, address: control };
        let logging = match address(&info.logging_endpoint).or(endpoints.logging) {
            // without it, errors still reach the runner as answers
            Some(address) => Logging::open(&address, id.clone())
                .await
                .inspect_err(|error| tracing::warn!(error, "the runner does not get the log"))
                .ok(),
            None => None,
        };
        let artifacts = Artifacts::new(Offer {
            worker: id.clone(),
            runtime: self.runtime.clone(),
            address: address(&info.artifact_endpoint).or(endpoints.artifact),
            offered: info.dependencies,
            fetched: Arc::clone(&self.fetched),
        });
        let context = Context::new(self.runtime.clone(), self.scorers.for_worker(), artifacts);
        Ok(Begun { id, control, capabilities: info.runner_capabilities, logging, context })
    }

    /// Serve a pool of workers until `stop`. `ready` gets the address when the pool accepts connections.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn pool(
        &self,
        address: &str,
        stop: watch::Receiver<bool>,
        ready: impl FnOnce(std::net::SocketAddr),
    ) -> Result<(), String> {
        let workers = Workers { process: self.clone(), stop: stop.clone(), running: Arc::default() };
        let running = Arc::clone(&workers.running);
        let router = Server::builder().add_service(BeamFnExternalWorkerPoolServer::new(workers));
        let served = serve_until(stop, "pool", address, router, ready).await;
        let mut running = std::mem::take(&mut *running.lock().await);
        // the caller bounds how long a stop may take
        while running.join_next().await.is_some() {}
        served
    }
}

/// Ask the runner where its services are, and what it supports.
async fn provision(address: &str, id: &WorkerId) -> Result<ProvisionInfo, String> {
    let channel = connect("provision service", address).await?;
    let mut client = ProvisionServiceClient::with_interceptor(channel, id.clone())
        // it has the options of the pipeline, which may be long
        .max_decoding_message_size(usize::MAX);
    let service = format!("provision service at {address}");
    let info = answer(&service, client.get_provision_info(GetProvisionInfoRequest {})).await?;
    Ok(info.info.unwrap_or_default())
}

/// Whether Prism has given a worker this id, which begins with the id of the job: `job-001[…]_…`.
fn is_of_prism(worker_id: &str) -> bool {
    worker_id.trim_start_matches(['\'', '"']).strip_prefix("job-").is_some_and(|rest| rest.contains('['))
}

/// The workers of a pool. A worker ends with its control stream, never by its id: different runners may use equal ids.
struct Workers {
    process: Process,
    stop: watch::Receiver<bool>,
    running: Arc<tokio::sync::Mutex<tokio::task::JoinSet<()>>>,
}

#[tonic::async_trait]
impl BeamFnExternalWorkerPool for Workers {
    async fn start_worker(
        &self,
        request: Request<StartWorkerRequest>,
    ) -> Result<Response<StartWorkerResponse>, Status> {
        let StartWorkerRequest {
            worker_id,
            control_endpoint,
            logging_endpoint,
            artifact_endpoint,
            provision_endpoint,
            ..
        } = request.into_inner();
        let endpoints = Endpoints {
            provision: address(&provision_endpoint),
            control: address(&control_endpoint),
            artifact: address(&artifact_endpoint),
            logging: address(&logging_endpoint),
        };
        tracing::info!(worker_id, ?endpoints, "starting a worker");
        let mut stop = self.stop.clone();
        let begun = tokio::select! {
            begun = timeout(BEGIN_TIMEOUT, self.process.begin(&worker_id, endpoints)) => {
                begun.unwrap_or_else(|_| Err("the runner's services do not answer".to_owned()))
            }
            _ = stop.wait_for(|stop| *stop) => Err("the pool was asked to stop".to_owned()),
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(worker_id, error, "a worker cannot start");
                let failure = Failure::from(format!("the worker of a pool cannot start: {error}"));
                // an error would end Prism itself; without one, it fails the job after a minute
                let error = if is_of_prism(&worker_id) { String::new() } else { failure.to_text() };
                return Ok(Response::new(StartWorkerResponse { error }));
            }
        };
        let mut running = self.running.lock().await;
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            match Process::run(begun, stop).await {
                Ok(()) => tracing::info!(worker_id, "a worker has ended"),
                Err(error) => tracing::error!(worker_id, error, "a worker has failed"),
            }
        });
        Ok(Response::new(StartWorkerResponse::default()))
    }

    async fn stop_worker(
        &self,
        _: Request<StopWorkerRequest>,
    ) -> Result<Response<StopWorkerResponse>, Status> {
        Ok(Response::new(StopWorkerResponse::default()))
    }
}
