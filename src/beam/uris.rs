//! The URIs that a pipeline of another SDK wants to be scored: messages to [`super::graph::Function::ListGiven`].

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::absolute::is_relative;
use super::failure::Failure;
use super::messages::{decode, encode};
use crate::error::{ConfigError, Error, SourceError};
use crate::plan::check_inputs;
use crate::shown::without_secrets;
use crate::store::STANDARD_INPUT;

/// One element of the group of all URIs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// One for each pipeline, so that a pipeline without URIs is listed, too.
    Start,
    /// A URI of the input.
    Uri(String),
}

/// The message that names a URI.
pub fn uri_message(uri: &str) -> Vec<u8> {
    encode(&Message::Uri(uri.to_owned()))
}

/// The message that names none.
pub fn start_message() -> Vec<u8> {
    encode(&Message::Start)
}

/// The URIs of the messages, sorted and each once. Neither the order of messages nor their number matters.
///
/// # Errors
/// If one of them is not a message.
pub fn uris_of(messages: impl IntoIterator<Item = Result<Bytes, Failure>>) -> Result<Vec<String>, Failure> {
    let mut uris = BTreeSet::new();
    for message in messages {
        if let Message::Uri(uri) = decode(&message?)? {
            uris.insert(uri);
        }
    }
    Ok(uris.into_iter().collect())
}

/// Refuse URIs that a worker cannot list. There may be none if an empty input is allowed.
///
/// # Errors
/// [`SourceError::NoInput`] if there is none, [`ConfigError::Invalid`] if one of them cannot be listed.
pub fn check_uris(uris: &[String], allow_empty: bool) -> Result<(), Error> {
    if uris.is_empty() {
        if allow_empty {
            return Ok(());
        }
        let (uri, message) = ("of the pipeline".to_owned(), "it has no URI".to_owned());
        return Err(SourceError::NoInput { uri, message }.into());
    }
    let refuse = |uri: &str, why: &str| {
        let message = format!("{:?} {why}", without_secrets(uri));
        Err(ConfigError::invalid("input.uri", message).into())
    };
    for uri in uris {
        if uri.is_empty() {
            return refuse(uri, "is empty");
        }
        if uri == STANDARD_INPUT {
            return refuse(uri, "is standard input, which the workers of a runner cannot read");
        }
        if is_relative(uri) {
            return refuse(uri, "is a relative path; workers run in other folders, so it must be absolute");
        }
    }
    Ok(check_inputs(uris)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_sorted_and_each_is_listed_once() {
        let messages = [uri_message("gs://b"), start_message(), uri_message("/a"), uri_message("gs://b")];
        let uris_of = |messages: &[Vec<u8>]| uris_of(messages.iter().map(|m| Ok(Bytes::copy_from_slice(m))));
        let uris = uris_of(&messages).expect("messages");
        assert_eq!(uris, ["/a", "gs://b"]);
        assert_eq!(uris_of(&[start_message()]), Ok(Vec::new()));
        assert!(uris_of(&[b"gs://b".to_vec()]).is_err());
    }

    #[test]
    fn uris_that_no_worker_can_list_are_refused() {
        let check = |uris: &[&str], allow_empty| {
            let uris: Vec<_> = uris.iter().map(|&uri| uri.to_owned()).collect();
            check_uris(&uris, allow_empty).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["/a", "gs://b/*.tar", "https://h/a.tar", "file:///a b"], false), Ok(()));
        assert_eq!(check(&[], true), Ok(()));
        for (uris, expected) in [
            (&[][..], "input of the pipeline has nothing to score: it has no URI"),
            (&["/a", ""], "input.uri: \"\" is empty"),
            (&["-"], "standard input"),
            (&["/b", "in/a.tar"], "input.uri: \"in/a.tar\" is a relative path"),
            (&[" gs://b"], "white space"),
        ] {
            let refusal = check(uris, false).expect_err("refused");
            assert!(refusal.contains(expected), "{refusal}");
        }
    }
}
