//! TensorRT's log: forwarded to `tracing`, with its errors kept for messages.

use std::cell::RefCell;
use std::sync::OnceLock;

use crate::engine::cuda::CudaResult;

/// The logger that forwards TensorRT's messages to `tracing`. The process has one logger, because
/// TensorRT keeps the first one that it gets.
pub(in crate::engine) fn logger() -> CudaResult<&'static trtx::Logger> {
    static LOGGER: OnceLock<Result<trtx::Logger, String>> = OnceLock::new();
    let made = LOGGER.get_or_init(|| trtx::Logger::new(Messages).map_err(|error| error.to_string()));
    made.as_ref().map_err(Clone::clone)
}

/// Takes the errors that TensorRT has logged on this thread since the last call. Its functions only
/// return that they failed.
pub(in crate::engine) fn take_errors() -> String {
    ERRORS.take().join("; ")
}

thread_local! {
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Number of errors kept for [`take_errors`]: the first ones are the most informative.
const ERRORS_KEPT: usize = 4;

struct Messages;

impl trtx::LogHandler for Messages {
    fn log(&self, severity: trtx::Severity, message: &str) {
        match severity {
            trtx::Severity::InternalError | trtx::Severity::Error => {
                tracing::debug!(target: "tensorrt", "{message}");
                // must not panic, since C calls it: TensorRT may log while the thread is ending
                let _ = ERRORS.try_with(|errors| {
                    let mut errors = errors.borrow_mut();
                    if errors.len() < ERRORS_KEPT {
                        errors.push(message.to_owned());
                    }
                });
            }
            trtx::Severity::Warning => tracing::debug!(target: "tensorrt", "{message}"),
            trtx::Severity::Info | trtx::Severity::Verbose => {
                tracing::trace!(target: "tensorrt", "{message}");
            }
        }
    }
}

/// The message for a failure: the errors that TensorRT has logged, else the wrapper's message.
pub(in crate::engine) fn tensorrt(what: &str, error: &trtx::Error) -> String {
    let reported = take_errors();
    if reported.is_empty() { format!("{what}: {error}") } else { format!("{what}: {reported}") }
}
