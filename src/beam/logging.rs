//! Sends the log of a process to the runners of its workers.
//!
//! - Every line goes to the runner of every worker. Most processes have one.
//! - Logging never waits: a runner that does not read its log loses lines. The next line says how many.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Level;

use super::connection::{WorkerId, connect};
use super::proto::fn_execution::LogEntry;
use super::proto::fn_execution::beam_fn_logging_client::BeamFnLoggingClient;
use super::proto::fn_execution::log_entry::{List, severity::Enum as Severity};
use crate::flow::lock;

/// Lines that may wait to be sent to a runner.
const LINES_WAITING: usize = 1000;

/// How long a runner may take to read the last lines of a worker that ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The runners that get the log.
static RUNNERS: Mutex<Vec<Arc<Runner>>> = Mutex::new(Vec::new());

struct Runner {
    /// `None` once the runner has closed the stream: it waits until this end is closed, too.
    lines: Mutex<Option<mpsc::Sender<LogEntry>>>,
    /// Lines lost since the last one that was not.
    lost: AtomicU64,
}

fn runners() -> MutexGuard<'static, Vec<Arc<Runner>>> {
    lock(&RUNNERS)
}

/// Send a line of the log to all runners. `place` is the module that it comes from.
pub fn send_to_runners(level: Level, place: &str, message: &str) {
    for runner in runners().iter() {
        runner.send(level, place, message);
    }
}

impl Runner {
    fn send(&self, level: Level, place: &str, message: &str) {
        let lost = self.lost.swap(0, Relaxed);
        let message =
            if lost == 0 { message.to_owned() } else { format!("({lost} lines were lost here) {message}") };
        let lines = lock(&self.lines);
        if let Some(lines) = &*lines
            && lines.try_send(entry(level, place, message)).is_err()
        {
            self.lost.fetch_add(lost + 1, Relaxed);
        }
    }

    fn close(&self) {
        lock(&self.lines).take();
    }
}

fn entry(level: Level, place: &str, message: String) -> LogEntry {
    let severity = match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warn,
        Level::INFO => Severity::Info,
        Level::DEBUG => Severity::Debug,
        Level::TRACE => Severity::Trace,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = Timestamp { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() as i32 };
    LogEntry {
        severity: severity.into(),
        timestamp: Some(timestamp),
        message,
        log_location: place.to_owned(),
        thread: std::thread::current().name().unwrap_or_default().to_owned(),
        ..Default::default()
    }
}

/// The log stream to the runner of one worker. Closed when the worker ends, because the runner waits for that.
pub struct Logging {
    runner: Arc<Runner>,
    task: JoinHandle<()>,
}

impl Logging {
    /// Open a stream to the logging service at `address`.
    ///
    /// # Errors
    /// If the service cannot be reached.
    pub async fn open(address: &str, worker: WorkerId) -> Result<Self, String> {
        let channel = connect("logging service", address).await?;
        let mut client = BeamFnLoggingClient::with_interceptor(channel, worker);
        let (lines, waiting) = mpsc::channel(LINES_WAITING);
        let lists = ReceiverStream::new(waiting).map(|line| List { log_entries: vec![line] });
        let runner = Arc::new(Runner { lines: Mutex::new(Some(lines)), lost: AtomicU64::new(0) });
        runner.send(Level::INFO, module_path!(), "the worker has started");
        runners().push(Arc::clone(&runner));
        let sending = Arc::clone(&runner);
        let address = address.to_owned();
        // some runners answer only when the stream ends
        let task = tokio::spawn(async move {
            // the service sends nothing that matters, but its end does
            let ended = match client.logging(lists).await {
                Ok(controls) => {
                    let mut controls = controls.into_inner();
                    while let Ok(Some(_)) = controls.message().await {}
                    None
                }
                Err(error) => Some(error),
            };
            sending.close();
            remove(&sending);
            if let Some(error) = ended {
                tracing::warn!(address, %error, "the runner's logging service rejected the log");
            }
        });
        Ok(Self { runner, task })
    }

    /// Close the stream, and wait up to [`LAST_LINES`] until the runner has read it.
    pub async fn close(mut self) {
        self.end();
        // a panic was reported by its own thread
        let _ = timeout(LAST_LINES, &mut self.task).await;
    }

    /// Take no further lines.
    fn end(&self) {
        self.runner.close();
        remove(&self.runner);
    }
}

fn remove(runner: &Arc<Runner>) {
    runners().retain(|known| !Arc::ptr_eq(known, runner));
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.end();
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, Runtime};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic::{Request, Response, Status, Streaming, async_trait};

    use super::*;
    use crate::beam::proto::fn_execution::LogControl;
    use crate::beam::proto::fn_execution::beam_fn_logging_server::{BeamFnLogging, BeamFnLoggingServer};

    /// A logging service that answers when the stream has ended, as some runners do.
    struct Service {
        received: Sender<String>,
        reads: bool,
    }

    #[async_trait]
    impl BeamFnLogging for Service {
        type LoggingStream = tokio_stream::Empty<Result<LogControl, Status>>;

        async fn logging(
            &self,
            request: Request<Streaming<List>>,
        ) -> Result<Response<Self::LoggingStream>, Status> {
            if !self.reads {
                std::future::pending::<()>().await;
            }
            let mut lists = request.into_inner();
            while let Some(list) = lists.message().await? {
                list.log_entries
                    .into_iter()
                    .for_each(|line| self.received.send(line.message).expect("a test"));
            }
            Ok(Response::new(tokio_stream::empty()))
        }
    }

    /// Send `lines` lines to a service, and close the stream. Returns what the service has received.
    fn received(reads: bool, lines: usize) -> Vec<String> {
        let (services, (received, all)) = (Runtime::new().expect("a runtime"), channel());
        let listener = services.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let service = BeamFnLoggingServer::new(Service { received, reads });
        let server = Server::builder().add_service(service);
        services.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        // one thread, so that nothing is sent before the stream is closed
        let worker = Builder::new_current_thread().enable_all().build().expect("a runtime");
        worker.block_on(async {
            let id = WorkerId::new("1").expect("an id");
            let logging = Logging::open(&address, id).await.expect("a stream");
            for line in 0..lines {
                logging.runner.send(Level::INFO, "a::module", &line.to_string());
            }
            logging.close().await;
        });
        drop(services);
        all.iter().collect()
    }

    #[test]
    fn the_last_lines_of_a_worker_reach_its_runner() {
        let lines = received(true, 100);
        assert_eq!(lines.len(), 101, "with the line of the start");
        assert_eq!(lines.last().map(String::as_str), Some("99"));
    }

    #[test]
    fn a_runner_that_does_not_read_its_log_does_not_keep_a_worker() {
        assert!(received(false, 1).is_empty());
    }
}
