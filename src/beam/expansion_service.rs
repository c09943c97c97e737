//! Serves the transform for other SDKs: expands it, and hands out the files that its workers need.
//!
//! - An SDK uses the same address for both. It fetches the files when it builds its pipeline, and stages them with its
//!   job.
//! - Only files of transforms that this process has expanded are handed out.
//! - An invalid request gets a response with its `error` set, as SDKs expect.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};

use super::chunks::chunks;
use super::environment::Environment;
use super::expansion::expand;
use super::payload::StagedFile;
use super::proto::expansion::expansion_service_server::{
    ExpansionService as Expansion, ExpansionServiceServer,
};
use super::proto::expansion::{
    DiscoverSchemaTransformRequest, DiscoverSchemaTransformResponse, ExpansionRequest, ExpansionResponse,
};
use super::proto::job_management::artifact_retrieval_service_server::{
    ArtifactRetrievalService, ArtifactRetrievalServiceServer,
};
use super::proto::job_management::{
    GetArtifactRequest, GetArtifactResponse, ResolveArtifactsRequest, ResolveArtifactsResponse,
};
use super::serving::serve_until;
use super::staged::file_of;
use crate::flow::lock;

/// The expansion service.
pub struct ExpansionService {
    environment: Environment,
}

impl ExpansionService {
    /// A service of transforms whose workers run in `environment`.
    pub fn new(environment: Environment) -> Self {
        Self { environment }
    }

    /// Serve until `stop`. `ready` gets the address when the service accepts connections.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn serve(
        self,
        address: &str,
        stop: watch::Receiver<bool>,
        ready: impl FnOnce(SocketAddr),
    ) -> Result<(), String> {
        let handler = Handler { environment: Arc::new(self.environment), files: Arc::default() };
        let expansion = ExpansionServiceServer::new(handler.clone());
        let expansion = expansion.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
        let router = Server::builder()
            .add_service(expansion)
            .add_service(ArtifactRetrievalServiceServer::new(handler));
        serve_until(stop, "expansion service", address, router, ready).await
    }
}

/// Answers requests.
#[derive(Clone)]
struct Handler {
    environment: Arc<Environment>,
    /// The files of all transforms that were expanded.
    files: Arc<Mutex<Vec<StagedFile>>>,
}

impl Handler {
    fn files(&self) -> MutexGuard<'_, Vec<StagedFile>> {
        lock(&self.files)
    }

    fn expand(&self, request: ExpansionRequest) -> ExpansionResponse {
        let name = request.transform.as_ref().map(|transform| transform.unique_name.clone());
        match expand(request, &self.environment) {
            Ok((response, files)) => {
                tracing::info!(name, "expanded a transform");
                let mut known = self.files();
                let new: Vec<_> = files.into_iter().filter(|file| !known.contains(file)).collect();
                known.extend(new);
                response
            }
            Err(error) => {
                tracing::warn!(name, %error, "refused a transform");
                ExpansionResponse { error: error.to_string(), ..ExpansionResponse::default() }
            }
        }
    }
}

#[async_trait]
impl Expansion for Handler {
    async fn expand(
        &self,
        request: Request<ExpansionRequest>,
    ) -> Result<Response<ExpansionResponse>, Status> {
        let (handler, request) = (self.clone(), request.into_inner());
        let expanded = tokio::task::spawn_blocking(move || handler.expand(request)).await;
        expanded.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    /// There are no transforms with a schema.
    async fn discover_schema_transform(
        &self,
        _: Request<DiscoverSchemaTransformRequest>,
    ) -> Result<Response<DiscoverSchemaTransformResponse>, Status> {
        Ok(Response::new(DiscoverSchemaTransformResponse::default()))
    }
}

#[async_trait]
impl ArtifactRetrievalService for Handler {
    /// Returns the artifacts unchanged: only this service can read the files of this host.
    async fn resolve_artifacts(
        &self,
        request: Request<ResolveArtifactsRequest>,
    ) -> Result<Response<ResolveArtifactsResponse>, Status> {
        let replacements = request.into_inner().artifacts;
        Ok(Response::new(ResolveArtifactsResponse { replacements }))
    }

    type GetArtifactStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<GetArtifactResponse, Status>> + Send>>;

    async fn get_artifact(
        &self,
        request: Request<GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let artifact = request.into_inner().artifact.unwrap_or_default();
        let unknown = |asked| Status::not_found(format!("{asked:?} is not a file of an expanded transform"));
        let file = file_of(&artifact, &self.files()).cloned().map_err(unknown)?;
        let pieces = ReceiverStream::new(chunks(file.path.clone())).map(move |piece| match piece {
            Ok(data) => Ok(GetArtifactResponse { data }),
            Err(error) => Err(Status::unavailable(format!("cannot read {}: {error}", file.path.display()))),
        });
        Ok(Response::new(Box::pin(pieces)))
    }
}
