//! Connections to a runner's services.
//!
//! - Every request carries the worker's id, which some runners need to find the worker.
//! - Messages may have any length: runners send up to 10 MB, more than the usual limit of 4 MiB.
//! - TCP keepalive detects a host that has vanished. HTTP/2 pings are not used: servers in Java close connections that
//!   ping more often than every five minutes.

use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::proto::pipeline::ApiServiceDescriptor;
use super::service_error::{add_causes, words};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait for the answer to a call that a runner answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// TCP keepalive: the idle time before the first probe, the interval between probes, and how many may go unanswered.
/// A host that has vanished is noticed within a minute.
pub const ALIVE_IDLE: Duration = Duration::from_secs(25);
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const ALIVE_RETRIES: u32 = 3;

/// A connection on which requests carry the worker's id.
pub type WorkerChannel = InterceptedService<Channel, WorkerId>;

/// The id that a runner has given to a worker. It is unique for one runner only.
#[derive(Debug, Clone)]
pub struct WorkerId(MetadataValue<Ascii>);

impl WorkerId {
    /// The id `text`. Prism quotes it in some environments.
    ///
    /// # Errors
    /// If it cannot be sent in a header.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim_matches(['\'', '"']);
        MetadataValue::try_from(text).map(Self).map_err(|_| format!("the worker id {text:?} is not valid"))
    }
}

impl Interceptor for WorkerId {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("worker_id", self.0.clone());
        Ok(request)
    }
}

/// Connect to `address`, which is `host:port`.
///
/// # Errors
/// A message that names the service and its address.
pub async fn connect(service: &str, address: &str) -> Result<Channel, String> {
    let failed = |error: &dyn std::error::Error| {
        let mut message = format!("cannot connect to the {service} at {address}: {error}");
        add_causes(&mut message, error.source());
        message
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&error))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Some(ALIVE_IDLE))
        .tcp_keepalive_interval(Some(ALIVE_INTERVAL))
        .tcp_keepalive_retries(Some(ALIVE_RETRIES));
    endpoint.connect().await.map_err(|error| failed(&error))
}

/// The answer of `service` to a call.
///
/// # Errors
/// If the service rejects the call, or does not answer for [`ANSWER_TIMEOUT`].
pub async fn answer<T>(
    service: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    let answer = timeout(ANSWER_TIMEOUT, call).await;
    let answer =
        answer.map_err(|_| format!("the {service} has not answered for {} s", ANSWER_TIMEOUT.as_secs()))?;
    Ok(answer.map_err(|error| format!("the {service} rejected the call: {}", words(&error)))?.into_inner())
}

/// The address of a service, if the runner has named one.
pub fn address(service: &Option<ApiServiceDescriptor>) -> Option<String> {
    service.as_ref().map(|service| service.url.clone()).filter(|url| !url.is_empty())
}
