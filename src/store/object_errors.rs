//! Decides whether a failed request is the fault of its object or of the store.
//!
//! Input: the error of a request. Output: the fault of the object itself, or `None`.
//!
//! - A faulty object costs its row or its shard. If it counted as a failure of its store, every attempt would end at
//!   it.
//! - An object that is missing, denied or replaced is judged by its entry in the listing ([`object_fault`]).
//! - An answer of the wrong form is the object's fault ([`unusable_object`]).
//! - Most other refusals may be about the object or about the store ([`ambiguous_fault`]): a disabled decryption key
//!   and an expired token have the same status. They count as the object's fault if its store still serves others
//!   ([`super::health`]).

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use crate::error::{NoAnswer, WrongChecksum, lacks_open_files};
use crate::items::ObjectRef;

use super::location::StoreKind;
use super::outage::GivenUp;
use super::retry::{cause, was_repeated};

/// Statuses that are about credentials, the input, or the rate of requests.
const STATUSES_OF_STORE: [&str; 7] = ["401", "403", "404", "407", "408", "412", "429"];

/// Error codes of stores for wrong or expired credentials and late requests, whatever the status.
const CODES_OF_STORE: [&str; 8] = [
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "AuthenticationFailed",
];

/// The text before a status in messages of `object_store`, whose error type is private.
const STATUS: &str = "status code: ";

/// The beginning of its message about a redirect without an address: the bucket is in another region.
const REDIRECT: &str = "Received redirect";

/// Error codes of Amazon and Azure for an object that must first be restored from an archive.
const ARCHIVED: [&str; 2] = ["InvalidObjectState", "BlobArchived"];

/// Google's, Amazon's and Azure's codes for a bucket that does not exist.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

/// The fault of `object` itself after a read failed with `error`, if the error and the listing prove one; `None` if the
/// store is at fault.
///
/// A listed object is assumed to exist. If its bucket or folder has since been removed, or a bucket denies access, all
/// other objects are lost as well, and a run that continued would write an error row for each of them.
pub(crate) fn object_fault(error: &Error, object: &ObjectRef, kind: Option<StoreKind>) -> Option<String> {
    let fault = |what: &str| Some(what.to_owned());
    let listed = object.size_bytes.is_some();
    match error {
        Error::NotFound { .. } if is_bucket_gone(error) => return None,
        Error::NotFound { .. } if listed && is_folder_gone(object, kind) => return None,
        Error::NotFound { .. } => return fault("not found"),
        Error::PermissionDenied { .. } if listed && kind == Some(StoreKind::Bucket) => return None,
        Error::PermissionDenied { .. } if is_about_credentials(error) => return None,
        Error::PermissionDenied { .. } => return fault("permission denied"),
        Error::Precondition { .. } => return fault("replaced since it was listed"),
        _ => {}
    }
    // the local store wraps the error of the operating system
    let error = links(error).find_map(|error| error.downcast_ref::<io::Error>())?;
    match error.kind() {
        io::ErrorKind::PermissionDenied => fault("permission denied"),
        io::ErrorKind::NotADirectory => fault("not found"),
        io::ErrorKind::InvalidInput => fault(&error.to_string()),
        io::ErrorKind::InvalidFilename => fault("the name is too long or not valid"),
        _ => None,
    }
}

fn is_bucket_gone(error: &Error) -> bool {
    let answer = error.to_string();
    NO_BUCKET.iter().any(|code| answer.contains(code))
}

fn is_folder_gone(object: &ObjectRef, kind: Option<StoreKind>) -> bool {
    let folder = Path::new(&object.uri).parent();
    kind == Some(StoreKind::Local) && folder.is_some_and(|folder| !folder.is_dir())
}

/// Whether `error` is about credentials or the time of a request, and so about every object of a store.
fn is_about_credentials(error: &Error) -> bool {
    let message = error.to_string();
    CODES_OF_STORE.iter().any(|code| message.contains(code))
}

/// Why the object is unusable, if the error proves that the object is at fault and not its store.
pub(crate) fn unusable_object(error: &Error) -> Option<String> {
    let message = error.to_string();
    if ARCHIVED.iter().any(|code| message.contains(code)) {
        return Some("it is in an archive, from which it must first be restored".to_owned());
    }
    match error {
        Error::Generic { .. } | Error::NotSupported { .. } => {
            let is_transport = |error: &(dyn StdError + 'static)| {
                error.is::<HttpError>() || error.is::<io::Error>() || error.is::<WrongChecksum>()
            };
            let is_about_store = message.contains(STATUS) || message.contains(REDIRECT);
            (!is_about_store && !links(error).any(is_transport)).then(|| cause(error))
        }
        Error::AlreadyExists { .. } | Error::NotModified { .. } => Some(cause(error)),
        Error::JoinError { source } if source.is_panic() => Some(source.to_string()),
        _ => None,
    }
}

/// The fault of the object, provided that its store serves others; `None` if the store is at fault in any case.
///
/// These are refusals, server errors and broken answers that lasted through all repetitions, and endless redirects.
pub(crate) fn ambiguous_fault(error: &Error) -> Option<String> {
    if !matches!(error, Error::Generic { .. }) || lacks_open_files(error) || is_about_credentials(error) {
        return None;
    }
    let mut is_broken = false;
    for link in links(error) {
        if link.is::<NoAnswer>() || link.is::<GivenUp>() || link.is::<WrongChecksum>() {
            return None;
        }
        match link.downcast_ref::<HttpError>().map(HttpError::kind) {
            Some(HttpErrorKind::Connect) => return None,
            Some(_) => is_broken = true,
            None => {}
        }
    }
    let message = error.to_string();
    let is_refused = message.split_once(STATUS).is_some_and(|(_, status)| {
        status.starts_with(['4', '5']) && !STATUSES_OF_STORE.iter().any(|known| status.starts_with(known))
    });
    (is_broken || is_refused).then(|| cause(error))
}

/// Whether an answer timed out. The connection may be slow, which shows first with large objects.
pub(super) fn is_timeout(error: &Error) -> bool {
    let mut http_errors = links(error).filter_map(|error| error.downcast_ref::<HttpError>());
    http_errors.any(|error| matches!(error.kind(), HttpErrorKind::Timeout))
}

/// Whether the object was refused, or the answer is unusable, without any repetition.
pub(crate) fn is_immediate_refusal(error: &Error) -> bool {
    unusable_object(error).is_some() || (ambiguous_fault(error).is_some() && !was_repeated(error))
}

/// `error`, its cause, and so on.
fn links(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Generic { store: "GCS", source: source.into() }
    }

    #[test]
    fn an_unusable_object_differs_from_a_store_that_fails() {
        for own in [
            "Content-Length Header missing from response",
            "Received non-partial response when range requested",
            "20 bytes came for the 10 at 0",
        ] {
            assert_eq!(unusable_object(&generic(own)).as_deref(), Some(own));
        }
        for store in [
            "Server returned non-2xx status code: 503 Busy: ",
            "Server returned non-2xx status code: 405 Method Not Allowed: ",
            "Server returned non-2xx status code: 416 Range Not Satisfiable: InvalidRange",
            "Server returned non-2xx status code: 400 Bad Request: ExpiredToken",
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
        ] {
            assert_eq!(unusable_object(&generic(store)), None, "{store}");
        }
        assert_eq!(unusable_object(&generic(io::Error::from(io::ErrorKind::StorageFull))), None);
        assert_eq!(unusable_object(&generic(WrongChecksum { found: 1, expected: 2 })), None);
        let broken =
            HttpError::new(HttpErrorKind::Interrupted, io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(unusable_object(&generic(broken)), None);
        let denied = |message: &str| Error::PermissionDenied { path: "a".to_owned(), source: message.into() };
        assert_eq!(unusable_object(&denied("403 AccessDenied")), None);
        assert!(unusable_object(&denied("403 InvalidObjectState")).expect("its own").contains("archive"));
    }

    #[test]
    fn an_ambiguous_refusal_differs_from_a_fault_of_the_store() {
        let status = |status: &str| generic(format!("Server returned non-2xx status code: {status}: "));
        for unclear in
            ["400 Bad Request", "402 Payment Required", "405 Method Not Allowed", "410 Gone", "500 Busy"]
        {
            assert!(ambiguous_fault(&status(unclear)).is_some(), "{unclear}");
        }
        for store in
            ["401 Unauthorized", "403 Forbidden", "407 Proxy", "408 Timeout", "429 Slow down", "301 Moved"]
        {
            assert_eq!(ambiguous_fault(&status(store)), None, "{store}");
        }
        let broken = |kind| generic(HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(ambiguous_fault(&broken(HttpErrorKind::Interrupted)).is_some());
        assert_eq!(ambiguous_fault(&broken(HttpErrorKind::Connect)), None);
        let given_up = GivenUp { seconds: 1, last: "503".to_owned() };
        assert_eq!(ambiguous_fault(&generic(HttpError::new(HttpErrorKind::Unknown, given_up))), None);
        assert_eq!(ambiguous_fault(&generic(WrongChecksum { found: 1, expected: 2 })), None);
        assert_eq!(ambiguous_fault(&generic(io::Error::from(io::ErrorKind::StorageFull))), None);
    }

    #[test]
    fn wrong_credentials_are_never_the_fault_of_an_object() {
        for code in CODES_OF_STORE {
            let refused = generic(format!("Server returned non-2xx status code: 400 Bad Request: {code}"));
            assert_eq!((unusable_object(&refused), ambiguous_fault(&refused)), (None, None), "{code}");
        }
    }

    #[test]
    fn a_bucket_that_rejects_the_credentials_is_at_fault() {
        for code in CODES_OF_STORE {
            let source = format!("403 {code}").into();
            let denied = Error::PermissionDenied { path: "a".to_owned(), source };
            let object = ObjectRef { uri: "s3://b/a".to_owned(), size_bytes: None, version: None };
            assert_eq!(object_fault(&denied, &object, Some(StoreKind::Bucket)), None, "{code}");
        }
    }

    #[test]
    fn a_timeout_differs_from_a_broken_answer() {
        let broken = |kind| generic(HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(is_timeout(&broken(HttpErrorKind::Timeout)));
        assert!(!is_timeout(&broken(HttpErrorKind::Interrupted)));
    }

    #[test]
    fn a_refusal_after_repetitions_is_not_immediate() {
        let message = "Error performing GET http://h/a in 6s, after 9 retries, max_retries: 9, retry_timeout: 6s  - \
                    Server returned non-2xx status code: 500 Busy: ";
        assert!(!is_immediate_refusal(&generic(message)));
        assert!(is_immediate_refusal(&generic("Server returned non-2xx status code: 400 Bad Request: ")));
        assert!(is_immediate_refusal(&generic("Server returned non-2xx status code: 410 Gone: ")));
    }
}
