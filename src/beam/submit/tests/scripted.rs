//! A job service that follows a script, and fetches the files of a job as Prism does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::beam::proto::job_management::artifact_request_wrapper::Request as Asked;
use crate::beam::proto::job_management::artifact_response_wrapper::Response as Answer;
use crate::beam::proto::job_management::artifact_staging_service_server::ArtifactStagingService;
use crate::beam::proto::job_management::job_messages_response::Response as Event;
use crate::beam::proto::job_management::job_service_server::JobService;
use crate::beam::proto::job_management::job_state::Enum as State;
use crate::beam::proto::job_management::*;
use crate::beam::proto::pipeline::{
    ApiServiceDescriptor, ArtifactInformation, ArtifactStagingToRolePayload, MonitoringInfo,
};
use crate::beam::urns;
use crate::flow::StopSignal;

/// What a stream of messages does after its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Close,
    Break,
    StayOpen,
}

/// What the job service does.
pub struct Script {
    /// The events of each stream of messages; the last ones are repeated.
    pub streams: Vec<(Vec<Event>, Then)>,
    /// `None` if it has no answer.
    pub state: Option<State>,
    /// The call that is never answered.
    pub unanswered: &'static str,
    /// The call that asks the submitter to stop when it arrives.
    pub stop_at: Option<(&'static str, StopSignal)>,
    /// What is asked for besides the files of the job.
    pub asks_for: Option<ArtifactInformation>,
    pub metrics: Option<MetricResults>,
    /// Whether a worker reports its progress each time.
    pub is_alive: bool,
    /// What the workers do while the job runs.
    pub work: Box<dyn Fn() + Send + Sync>,
}

impl Script {
    pub fn of(events: Vec<Event>, then: Then) -> Self {
        Self {
            streams: vec![(events, then)],
            state: Some(State::Running),
            unanswered: "",
            stop_at: None,
            asks_for: None,
            metrics: None,
            is_alive: false,
            work: Box::new(|| {}),
        }
    }
}

/// A counter of ours.
pub fn counter(name: &str, value: u8) -> MonitoringInfo {
    let labels = [("NAMESPACE", "sluice"), ("NAME", name)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
    MonitoringInfo { urn: urns::USER_SUM.to_owned(), payload: vec![value], labels, ..Default::default() }
}

/// A job service that follows a script.
pub struct Fake {
    script: Script,
    calls: Mutex<Vec<&'static str>>,
    pub prepared: Mutex<Option<PrepareJobRequest>>,
    /// Staged files by name.
    pub staged: Mutex<HashMap<String, Vec<u8>>>,
    open: Mutex<Vec<Sender<Result<JobMessagesResponse, Status>>>>,
}

impl Fake {
    pub fn new(script: Script) -> Arc<Self> {
        let (prepared, open) = (Mutex::default(), Mutex::default());
        Arc::new(Self { script, calls: Mutex::default(), prepared, staged: Mutex::default(), open })
    }

    /// Take a call. It does not return if it is not to be answered.
    async fn take(&self, call: &'static str) {
        self.calls.lock().expect("a lock").push(call);
        if let Some((stop_at, stop)) = &self.script.stop_at
            && *stop_at == call
        {
            stop.drain();
        }
        if self.script.unanswered == call {
            std::future::pending::<()>().await;
        }
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls.lock().expect("a lock").iter().filter(|seen| **seen == call).count()
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[async_trait]
impl JobService for Fake {
    type GetStateStreamStream = ReceiverStream<Result<JobStateEvent, Status>>;
    type GetMessageStreamStream = ReceiverStream<Result<JobMessagesResponse, Status>>;

    async fn prepare(&self, request: Request<PrepareJobRequest>) -> Answered<PrepareJobResponse> {
        self.take("prepare").await;
        *self.prepared.lock().expect("a lock") = Some(request.into_inner());
        Ok(Response::new(PrepareJobResponse {
            preparation_id: "preparation".to_owned(),
            // empty: the service itself
            artifact_staging_endpoint: Some(ApiServiceDescriptor::default()),
            staging_session_token: "token".to_owned(),
        }))
    }

    async fn run(&self, request: Request<RunJobRequest>) -> Answered<RunJobResponse> {
        self.take("run").await;
        let request = request.into_inner();
        assert_eq!(
            (request.preparation_id.as_str(), request.retrieval_token.as_str()),
            ("preparation", "token")
        );
        (self.script.work)();
        Ok(Response::new(RunJobResponse { job_id: "job-7".to_owned() }))
    }

    async fn get_message_stream(
        &self,
        request: Request<JobMessagesRequest>,
    ) -> Answered<Self::GetMessageStreamStream> {
        assert_eq!(request.into_inner().job_id, "job-7");
        let nth = self.count("stream");
        self.take("stream").await;
        let (events, then) = self.script.streams.get(nth).or(self.script.streams.last()).expect("a stream");
        let (sender, receiver) = channel(events.len() + 2);
        for event in events {
            let event = JobMessagesResponse { response: Some(event.clone()) };
            sender.try_send(Ok(event)).expect("room");
        }
        match then {
            Then::Close => {}
            Then::Break => sender.try_send(Err(Status::unavailable("reset"))).expect("room"),
            Then::StayOpen => self.open.lock().expect("a lock").push(sender),
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_state(&self, _: Request<GetJobStateRequest>) -> Answered<JobStateEvent> {
        self.take("state").await;
        let state = self.script.state.ok_or_else(|| Status::unavailable("going away"))?;
        Ok(Response::new(JobStateEvent { state: state.into(), timestamp: None }))
    }

    async fn cancel(&self, _: Request<CancelJobRequest>) -> Answered<CancelJobResponse> {
        self.take("cancel").await;
        Ok(Response::new(CancelJobResponse { state: State::Cancelling.into() }))
    }

    async fn get_job_metrics(&self, _: Request<GetJobMetricsRequest>) -> Answered<GetJobMetricsResponse> {
        self.take("metrics").await;
        let mut metrics = self.script.metrics.clone();
        if self.script.is_alive {
            let reports = u8::try_from(self.count("metrics")).expect("a short job");
            metrics.get_or_insert_default().attempted.push(counter("progress_reports", reports));
        }
        Ok(Response::new(GetJobMetricsResponse { metrics }))
    }

    async fn get_jobs(&self, _: Request<GetJobsRequest>) -> Answered<GetJobsResponse> {
        Err(Status::unimplemented("jobs"))
    }

    async fn get_pipeline(&self, _: Request<GetJobPipelineRequest>) -> Answered<GetJobPipelineResponse> {
        Err(Status::unimplemented("pipeline"))
    }

    async fn drain(&self, _: Request<DrainJobRequest>) -> Answered<DrainJobResponse> {
        Err(Status::unimplemented("drain"))
    }

    async fn get_state_stream(&self, _: Request<GetJobStateRequest>) -> Answered<Self::GetStateStreamStream> {
        Err(Status::unimplemented("states"))
    }

    async fn describe_pipeline_options(
        &self,
        _: Request<DescribePipelineOptionsRequest>,
    ) -> Answered<DescribePipelineOptionsResponse> {
        Err(Status::unimplemented("options"))
    }
}

#[async_trait]
impl ArtifactStagingService for Staging {
    type ReverseArtifactRetrievalServiceStream = ReceiverStream<Result<ArtifactRequestWrapper, Status>>;

    async fn reverse_artifact_retrieval_service(
        &self,
        request: Request<Streaming<ArtifactResponseWrapper>>,
    ) -> Answered<Self::ReverseArtifactRetrievalServiceStream> {
        self.0.take("staging").await;
        let (requests, receiver) = channel(1);
        let (fake, answers) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move { fetch_all(&fake, answers, requests).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The staging half of the service.
pub struct Staging(pub Arc<Fake>);

/// Ask for every dependency of the job, as a service does.
async fn fetch_all(
    fake: &Fake,
    mut answers: Streaming<ArtifactResponseWrapper>,
    requests: Sender<Result<ArtifactRequestWrapper, Status>>,
) -> Option<()> {
    let hello = answers.message().await.ok()??;
    assert_eq!(hello.staging_token, "token");
    let prepared = fake.prepared.lock().expect("a lock").clone()?;
    let environments = prepared.pipeline?.components?.environments;
    let mut artifacts: Vec<_> = environments.into_values().flat_map(|all| all.dependencies).collect();
    artifacts.extend(fake.script.asks_for.clone());
    let resolve = Asked::ResolveArtifact(ResolveArtifactsRequest { artifacts, ..Default::default() });
    requests.send(Ok(ArtifactRequestWrapper { request: Some(resolve) })).await.ok()?;
    let Some(Answer::ResolveArtifactResponse(resolved)) = answers.message().await.ok()??.response else {
        return None;
    };
    for artifact in resolved.replacements {
        let name = ArtifactStagingToRolePayload::decode(&artifact.role_payload[..]).ok()?.staged_name;
        let get = Asked::GetArtifact(GetArtifactRequest { artifact: Some(artifact) });
        requests.send(Ok(ArtifactRequestWrapper { request: Some(get) })).await.ok()?;
        let mut content = Vec::new();
        loop {
            let answer = answers.message().await.ok()??;
            // as Prism does
            if answer.is_last {
                break;
            }
            let Some(Answer::GetArtifactResponse(chunk)) = answer.response else { return None };
            assert!(chunk.data.len() <= 2 << 20);
            content.extend(chunk.data);
        }
        fake.staged.lock().expect("a lock").insert(name, content);
    }
    Some(())
}
