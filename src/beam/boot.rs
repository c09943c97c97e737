//! Starting workers: for one runner that has started this process, or as a pool that runners ask for workers.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::artifacts::{Artifacts, Fetched, Offer};
use super::connection::{WorkerId, address, answer, connect};
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
use super::worker;

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
    /// Address of the control service.
    control: String,
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
        let id = WorkerId::new(id)?;
        let mut stopped = stop.clone();
        let begun = tokio::select! {
            begun = self.begin(&id, endpoints) => begun?,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        let Begun { control, capabilities, logging, context } = begun;
        let context = Arc::new(context);
        let ended = worker::run(id, &control, &capabilities, Arc::clone(&context), stop).await;
        drop(logging);
        // ending attempts blocks
        let dropped = tokio::task::spawn_blocking(move || drop(context)).await;
        dropped.map_err(|error| error.to_string()).and(ended)
    }

    /// What a worker needs before it asks for instructions.
    async fn begin(&self, id: &WorkerId, endpoints: Endpoints) -> Result<Begun, String> {
        let info = match &endpoints.provision {
            Some(address) => provision(address, id).await?,
            None => ProvisionInfo::default(),
        };
        let control = address(&info.control_endpoint).or(endpoints.control);
        let control = control.ok_or("the runner has named no control service")?;
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
        Ok(Begun { control, capabilities: info.runner_capabilities, logging, context })
    }

    /// Serve a pool of workers until `stop`. `ready` gets the address when the pool accepts connections.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn pool(
        &self,
        address: &str,
        mut stop: watch::Receiver<bool>,
        ready: impl FnOnce(std::net::SocketAddr),
    ) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| format!("the pool cannot listen at {address}: {error}");
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| failed(&error))?;
        ready(listener.local_addr().map_err(|error| failed(&error))?);
        let workers = Workers { process: self.clone(), stop: stop.clone(), running: Arc::default() };
        let running = Arc::clone(&workers.running);
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let served = Server::builder()
            .add_service(BeamFnExternalWorkerPoolServer::new(workers))
            .serve_with_incoming_shutdown(tokio_stream::wrappers::TcpListenerStream::new(listener), stopped)
            .await;
        let mut running = std::mem::take(&mut *running.lock().await);
        // the caller bounds how long a stop may take
        while running.join_next().await.is_some() {}
        served.map_err(|error| failed(&error))
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

/// The workers of a pool. A worker ends with its control stream, never by its id: ids of different runners may be equal.
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
        let (process, stop) = (self.process.clone(), self.stop.clone());
        let mut running = self.running.lock().await;
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            match process.worker(&worker_id, endpoints, stop).await {
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
