//! What goes wrong at a job service.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

/// A job service does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Nothing listens there, or the network is at fault.
    #[error("nothing answers at {endpoint}: {message}")]
    Unreachable {
        /// `HOST:PORT`.
        endpoint: String,
        /// Why.
        message: String,
    },
    /// Something listens there that is not a job service.
    #[error("{endpoint} is not a job service of Beam: {message}")]
    NotAJobService {
        /// `HOST:PORT`.
        endpoint: String,
        /// What it answered.
        message: String,
    },
    /// The service answered with an error.
    #[error("the job service refuses {step}: {message}")]
    Refused {
        /// What it was asked for.
        step: &'static str,
        /// Its words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the job service broke during {step}: {message}")]
    Broken {
        /// What was going on.
        step: &'static str,
        /// Why.
        message: String,
    },
    /// The service keeps the connection open and does not answer.
    #[error("the job service has not answered for {seconds:.0} s during {step}")]
    NoAnswer {
        /// What was going on.
        step: &'static str,
        /// How long.
        seconds: f64,
    },
    /// The runner cannot start the job's workers, and does not say so.
    #[error(
        "no worker has started for {seconds:.0} s, so the job was cancelled: does the worker's command exist on the \
         runner's host, and can it run there? See the runner's log"
    )]
    NoWorker {
        /// How long.
        seconds: f64,
    },
    /// Workers reported before, and do not any more. The job was cancelled.
    #[error(
        "no worker has reported anything for {seconds:.0} s, and the job was cancelled: were the workers killed, or \
         has their host stopped?"
    )]
    LostWorker {
        /// How long.
        seconds: f64,
    },
    /// The service answered before, and does not any more.
    #[error("lost the job service at {endpoint} ({message}); it may still run the job {job_id}")]
    Lost {
        /// `HOST:PORT`.
        endpoint: String,
        /// The id of the job.
        job_id: String,
        /// The last error.
        message: String,
    },
}

/// The error when a step was not answered in time.
pub fn no_answer(step: &'static str, after: Duration) -> ServiceError {
    ServiceError::NoAnswer { step, seconds: after.as_secs_f64() }
}

/// The error when a step was answered with `status`.
pub fn status_error(step: &'static str, status: &Status) -> ServiceError {
    let message = words(status);
    // an error that comes from the service has no cause on this side
    match status.source() {
        Some(_) => ServiceError::Broken { step, message },
        None if status.code() == Code::Unavailable => ServiceError::Broken { step, message },
        None => ServiceError::Refused { step, message },
    }
}

/// The message of an answer, with the causes that it does not contain itself.
pub fn words(status: &Status) -> String {
    let code = format!("{:?}", status.code());
    let mut text = if status.message().is_empty() { code } else { status.message().to_owned() };
    add_causes(&mut text, status.source());
    text
}

/// Add a `cause`, and its own causes, to `text`, as far as it does not contain them.
pub fn add_causes(text: &mut String, mut cause: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            *text = format!("{text}: {said}");
        }
        cause = error.source();
    }
}
