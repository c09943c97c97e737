//! Stages files: a job service asks for each artifact, and gets it in chunks.
//!
//! - The connection is ours, but the requests come from the service: we answer until it has no more of them.
//! - Only files of the job are handed out, whatever the service asks for.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc::{Sender, channel};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::chunks::chunks;
use super::payload::StagedFile;
use super::proto::job_management::artifact_request_wrapper::Request;
use super::proto::job_management::artifact_response_wrapper::Response;
use super::proto::job_management::artifact_staging_service_client::ArtifactStagingServiceClient;
use super::proto::job_management::{
    ArtifactResponseWrapper, GetArtifactResponse, ResolveArtifactsRequest, ResolveArtifactsResponse,
};
use super::proto::pipeline::ArtifactInformation;
use super::service_error::{ServiceError, no_answer, status_error};
use super::staged::file_of;

/// Answers on their way: one is made while another is sent.
const ANSWERS: usize = 2;

/// What the step is called in messages.
const STEP: &str = "the staging of files";

/// Hand `files` to the staging service behind `channel`. `token` is that of the prepared job. `patience` is the longest
/// time without progress.
///
/// # Errors
/// If the service asks for anything else, refuses a file, or makes no progress.
pub async fn stage(
    channel_to: Channel,
    token: &str,
    files: &[StagedFile],
    patience: Duration,
) -> Result<(), ServiceError> {
    let mut client = ArtifactStagingServiceClient::new(channel_to).max_decoding_message_size(usize::MAX);
    let (answers, outbound) = channel(ANSWERS);
    let hello = ArtifactResponseWrapper { staging_token: token.to_owned(), ..Default::default() };
    send(&answers, hello, patience).await?;
    let call = client.reverse_artifact_retrieval_service(ReceiverStream::new(outbound));
    let call = timeout(patience, call).await.map_err(|_| no_answer(STEP, patience))?;
    let mut requests = call.map_err(|status| status_error(STEP, &status))?.into_inner();
    loop {
        let request = timeout(patience, requests.message()).await.map_err(|_| no_answer(STEP, patience))?;
        match request.map_err(|status| status_error(STEP, &status))? {
            // the service has all it wants
            None => return Ok(()),
            Some(wrapper) => match wrapper.request {
                Some(Request::ResolveArtifact(ResolveArtifactsRequest { artifacts, .. })) => {
                    // they are files of this machine, which only we can read: none can be replaced
                    let resolved = ResolveArtifactsResponse { replacements: artifacts };
                    send(&answers, last(Response::ResolveArtifactResponse(resolved)), patience).await?;
                }
                Some(Request::GetArtifact(get)) => {
                    let path = path_of(&get.artifact.unwrap_or_default(), files)?;
                    send_file(&answers, path, patience).await?;
                }
                None => return Err(refused("it asks for something unknown".to_owned())),
            },
        }
    }
}

/// The path of an artifact, if it is one of `files`.
fn path_of(artifact: &ArtifactInformation, files: &[StagedFile]) -> Result<PathBuf, ServiceError> {
    let unknown = |asked| refused(format!("it asks for {asked:?}, which is no file of the job"));
    file_of(artifact, files).map(|file| file.path.clone()).map_err(unknown)
}

/// Send the file in chunks, and then a message that ends it. That one has no data: Prism ignores its data.
async fn send_file(
    answers: &Sender<ArtifactResponseWrapper>,
    path: PathBuf,
    patience: Duration,
) -> Result<(), ServiceError> {
    let unreadable = |error: std::io::Error| refused(format!("cannot read {}: {error}", path.display()));
    let chunk = |data| Response::GetArtifactResponse(GetArtifactResponse { data });
    let mut pieces = chunks(path.clone());
    while let Some(piece) = pieces.recv().await {
        let piece = chunk(piece.map_err(unreadable)?);
        send(answers, ArtifactResponseWrapper { is_last: false, ..last(piece) }, patience).await?;
    }
    send(answers, last(chunk(Vec::new())), patience).await
}

/// A message that ends the answer to one request.
fn last(response: Response) -> ArtifactResponseWrapper {
    ArtifactResponseWrapper { is_last: true, response: Some(response), ..Default::default() }
}

async fn send(
    answers: &Sender<ArtifactResponseWrapper>,
    answer: ArtifactResponseWrapper,
    patience: Duration,
) -> Result<(), ServiceError> {
    let sent = timeout(patience, answers.send(answer)).await.map_err(|_| no_answer(STEP, patience))?;
    let gone = || Status::unavailable("the staging service closed the connection before it had all files");
    sent.map_err(|_| status_error(STEP, &gone()))
}

fn refused(message: String) -> ServiceError {
    ServiceError::Refused { step: STEP, message }
}
