//! The error of a worker, as text that passes through a runner to the submitter of the job.
//!
//! A runner forwards text only, often inside a stack trace or behind words of its own. So the text of an error contains
//! the exit code, and whether a retry helps.

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Retry, SinkError, panic_message};
use crate::exit_code;

/// What the text of every failure begins with. JSON follows.
const PREFIX: &str = "sluice error: ";

/// Why a worker failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code that `sluice run` has for the error.
    pub code: u8,
    /// Whether a retry helps.
    pub retry: Retry,
    /// The message of the error.
    pub message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: exit_code::code_of(&error), retry: error.retry(), message: error.to_string() }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Error::from(error).into()
    }
}

/// A fault between a worker and its runner.
impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: exit_code::FAILED, retry: Retry::Again, message }
    }
}

impl Failure {
    /// The failure of a worker that lacks the file in `message`.
    pub fn missing(message: String) -> Self {
        Self { code: exit_code::ENGINE, retry: Retry::Elsewhere, message }
    }

    /// The failure of a bundle that this version of sluice can never process: an unknown transform, function or coder,
    /// elements that do not fit, or a payload of another version.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { code: exit_code::USAGE, retry: Retry::Never, message: message.into() }
    }

    /// The failure of a bundle whose worker is ending.
    pub fn stopped() -> Self {
        "the worker was asked to stop".to_owned().into()
    }

    /// Whether it is [`Failure::stopped`].
    pub fn is_stopped(&self) -> bool {
        *self == Self::stopped()
    }

    /// The failure of work that panicked.
    pub fn panicked(panic: &(dyn Any + Send)) -> Self {
        format!("internal failure, please report it: {}", panic_message(panic)).into()
    }
}

/// The JSON of a failure.
#[derive(Serialize, Deserialize)]
struct Written {
    code: u8,
    retry: String,
    message: String,
}

impl Failure {
    /// One line that [`Failure::find`] recognises.
    pub fn to_text(&self) -> String {
        let (code, retry, message) = (self.code, self.retry.as_str().to_owned(), self.message.clone());
        let json = serde_json::to_string(&Written { code, retry, message });
        format!("{PREFIX}{}", json.expect("a struct of texts and a number always serialises to JSON"))
    }

    /// The last failure in `text`.
    pub fn find(text: &str) -> Option<Self> {
        let mut rest = text;
        while let Some(at) = rest.rfind(PREFIX) {
            let json = &rest[at + PREFIX.len()..];
            if let Some(found) = first_failure(json).or_else(|| first_failure(&without_one_escape(json))) {
                return Some(found);
            }
            rest = &rest[..at];
        }
        None
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a worker failed: {}", self.message)
    }
}

/// The failure whose JSON begins `text`, whatever follows it.
fn first_failure(text: &str) -> Option<Failure> {
    let Written { code, retry, message } =
        serde_json::Deserializer::from_str(text).into_iter().next()?.ok()?;
    let retries = [Retry::Never, Retry::Elsewhere, Retry::Again];
    let retry = retries.into_iter().find(|known| known.as_str() == retry)?;
    Some(Failure { code, retry, message })
}

/// `text` as it was before somebody put it into quotes.
fn without_one_escape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(message: &str) -> Failure {
        Failure { code: 3, retry: Retry::Never, message: message.to_owned() }
    }

    #[test]
    fn a_failure_survives_a_stack_trace_and_quotes() {
        let failure = failure("input \"a\\b\" is denied\nsee the {log}");
        let text = failure.to_text();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(Failure::find(&text).as_ref(), Some(&failure));
        let traced = format!("java.lang.RuntimeException: {text}\n\tat Harness.run(Harness.java:7)");
        assert_eq!(Failure::find(&traced).as_ref(), Some(&failure));
        let quoted = format!("bundle failed: {text:?}, worker 1");
        assert_eq!(Failure::find(&quoted), Some(failure));
    }

    #[test]
    fn the_last_failure_counts_and_damaged_ones_do_not() {
        let texts = [failure("first").to_text(), failure("second").to_text()].join("\ncaused by: ");
        assert_eq!(Failure::find(&texts), Some(failure("second")));
        let cut = &texts[..texts.len() - 2];
        assert_eq!(Failure::find(cut), Some(failure("first")));
        for text in ["", "sluice error: ", "sluice error: {\"code\":3,\"retry\":\"maybe\",\"message\":\"x\"}"]
        {
            assert_eq!(Failure::find(text), None, "{text}");
        }
    }
}
