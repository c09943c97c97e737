//! Connections to a runner's services.
//!
//! - Every request carries the worker's id, which some runners need to find the worker.
//! - Messages may have any length: runners send up to 10 MB, more than the usual limit of 4 MiB.
//! - No keepalive: servers in Java end connections that ping more often than every five minutes.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::proto::pipeline::ApiServiceDescriptor;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

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
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        message
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&error))?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| failed(&error))
}

/// The address of a service, if the runner has named one.
pub fn address(service: &Option<ApiServiceDescriptor>) -> Option<String> {
    service.as_ref().map(|service| service.url.clone()).filter(|url| !url.is_empty())
}
