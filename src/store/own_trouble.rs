//! Whether an object alone is at fault when its store refuses it, or answers what cannot be used.
//!
//! - Such an object costs its row, or its shard: every attempt would end at it otherwise.
//! - An answer of the wrong form is about the object ([`own_trouble`]). Most refusals may be about the object or about the
//!   store ([`may_be_own`]): a disabled decryption key and an expired token give the same status. They count as the
//!   object's own if its store still serves others ([`super::others`]).
//! - What is denied, missing, replaced, garbled on its way or not answered at all is judged elsewhere: it is about the
//!   store, or about the input.

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::retry::{cause, was_repeated};
use crate::error::{NoAnswer, WrongChecksum, lacks_open_files};

use super::outage::GivenUp;

/// Statuses that are about credentials, the input, or the pace of requests.
const STATUSES_OF_STORE: [&str; 7] = ["401", "403", "404", "407", "408", "412", "429"];

/// Error codes of stores for wrong or expired credentials and late requests, whatever the status.
pub(super) const CODES_OF_STORE: [&str; 8] = [
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "AuthenticationFailed",
];

/// Whether `error` is about credentials or time, and so about every object of a store.
pub(super) fn is_about_credentials(error: &object_store::Error) -> bool {
    let said = error.to_string();
    CODES_OF_STORE.iter().any(|code| said.contains(code))
}

/// How `object_store` words a status; its type cannot be named.
const STATUS: &str = "status code: ";

/// How it words an answer that leads elsewhere: a bucket in another region.
const REDIRECT: &str = "Received redirect";

/// What Amazon and Azure answer where an object must first be brought back from an archive.
const ARCHIVED: [&str; 2] = ["InvalidObjectState", "BlobArchived"];

/// What is wrong with the object, in words; `None` if it may not be the object.
pub(crate) fn own_trouble(error: &object_store::Error) -> Option<String> {
    let said = error.to_string();
    if ARCHIVED.iter().any(|code| said.contains(code)) {
        return Some("it is in an archive, from which it must first be restored".to_owned());
    }
    match error {
        object_store::Error::Generic { .. } | object_store::Error::NotSupported { .. } => {
            let mut link: Option<&dyn StdError> = Some(error);
            while let Some(error) = link {
                if error.is::<HttpError>() || error.is::<io::Error>() || error.is::<WrongChecksum>() {
                    return None;
                }
                link = error.source();
            }
            let is_about_store = said.contains(STATUS) || said.contains(REDIRECT);
            (!is_about_store).then(|| cause(error))
        }
        object_store::Error::AlreadyExists { .. } | object_store::Error::NotModified { .. } => {
            Some(cause(error))
        }
        object_store::Error::JoinError { source } if source.is_panic() => Some(source.to_string()),
        _ => None,
    }
}

/// What is wrong with the object, in words, if its store gives others; `None` for what is about the store in any case.
///
/// These are refusals, server errors and broken answers that have lasted as long as they were waited for, and endless
/// redirects.
pub(crate) fn may_be_own(error: &object_store::Error) -> Option<String> {
    let is_unclear = matches!(error, object_store::Error::Generic { .. });
    if !is_unclear || lacks_open_files(error) || is_about_credentials(error) {
        return None;
    }
    let mut is_broken = false;
    let mut link: Option<&dyn StdError> = Some(error);
    while let Some(error) = link {
        if error.is::<NoAnswer>() || error.is::<GivenUp>() || error.is::<WrongChecksum>() {
            return None;
        }
        match error.downcast_ref::<HttpError>().map(HttpError::kind) {
            Some(HttpErrorKind::Connect) => return None,
            Some(_) => is_broken = true,
            None => {}
        }
        link = error.source();
    }
    let said = error.to_string();
    let is_refused = said.split_once(STATUS).is_some_and(|(_, status)| {
        status.starts_with(['4', '5']) && !STATUSES_OF_STORE.iter().any(|known| status.starts_with(known))
    });
    (is_broken || is_refused).then(|| cause(error))
}

/// Whether an answer did not come in time. The line may be slow, which large objects show first.
pub(super) fn is_late(error: &object_store::Error) -> bool {
    let mut link: Option<&dyn StdError> = Some(error);
    while let Some(error) = link {
        if error
            .downcast_ref::<HttpError>()
            .is_some_and(|error| matches!(error.kind(), HttpErrorKind::Timeout))
        {
            return true;
        }
        link = error.source();
    }
    false
}

/// Whether the object has been refused, or answered in a way that cannot be used, and nothing was waited for.
pub(crate) fn is_refused_at_once(error: &object_store::Error) -> bool {
    own_trouble(error).is_some() || (may_be_own(error).is_some() && !was_repeated(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::Error;
    use object_store::client::HttpErrorKind;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Generic { store: "GCS", source: source.into() }
    }

    #[test]
    fn an_object_that_cannot_be_used_is_told_from_a_store_that_fails() {
        for own in [
            "Content-Length Header missing from response",
            "Received non-partial response when range requested",
            "20 bytes came for the 10 at 0",
        ] {
            assert_eq!(own_trouble(&generic(own)).as_deref(), Some(own));
        }
        for store in [
            "Server returned non-2xx status code: 503 Busy: ",
            "Server returned non-2xx status code: 405 Method Not Allowed: ",
            "Server returned non-2xx status code: 416 Range Not Satisfiable: InvalidRange",
            "Server returned non-2xx status code: 400 Bad Request: ExpiredToken",
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
        ] {
            assert_eq!(own_trouble(&generic(store)), None, "{store}");
        }
        assert_eq!(own_trouble(&generic(io::Error::from(io::ErrorKind::StorageFull))), None);
        assert_eq!(own_trouble(&generic(WrongChecksum { found: 1, expected: 2 })), None);
        let broken =
            HttpError::new(HttpErrorKind::Interrupted, io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(own_trouble(&generic(broken)), None);
        let denied = |said: &str| Error::PermissionDenied { path: "a".to_owned(), source: said.into() };
        assert_eq!(own_trouble(&denied("403 AccessDenied")), None);
        assert!(own_trouble(&denied("403 InvalidObjectState")).expect("its own").contains("archive"));
    }

    #[test]
    fn what_may_be_about_an_object_or_its_store_is_told_from_what_is_about_the_store() {
        let status = |status: &str| generic(format!("Server returned non-2xx status code: {status}: "));
        for unclear in
            ["400 Bad Request", "402 Payment Required", "405 Method Not Allowed", "410 Gone", "500 Busy"]
        {
            assert!(may_be_own(&status(unclear)).is_some(), "{unclear}");
        }
        for store in
            ["401 Unauthorized", "403 Forbidden", "407 Proxy", "408 Timeout", "429 Slow down", "301 Moved"]
        {
            assert_eq!(may_be_own(&status(store)), None, "{store}");
        }
        let broken = |kind| generic(HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(may_be_own(&broken(HttpErrorKind::Interrupted)).is_some());
        assert_eq!(may_be_own(&broken(HttpErrorKind::Connect)), None);
        let given_up = GivenUp { seconds: 1, last: "503".to_owned() };
        assert_eq!(may_be_own(&generic(HttpError::new(HttpErrorKind::Unknown, given_up))), None);
        assert_eq!(may_be_own(&generic(WrongChecksum { found: 1, expected: 2 })), None);
        assert_eq!(may_be_own(&generic(io::Error::from(io::ErrorKind::StorageFull))), None);
    }

    #[test]
    fn wrong_credentials_are_never_an_objects_own_trouble() {
        for code in CODES_OF_STORE {
            let refused = generic(format!("Server returned non-2xx status code: 400 Bad Request: {code}"));
            assert_eq!((own_trouble(&refused), may_be_own(&refused)), (None, None), "{code}");
        }
    }

    #[test]
    fn a_late_answer_is_told_from_a_broken_one() {
        let broken = |kind| generic(HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(is_late(&broken(HttpErrorKind::Timeout)));
        assert!(!is_late(&broken(HttpErrorKind::Interrupted)));
    }

    #[test]
    fn what_was_waited_for_is_not_refused_at_once() {
        let said = "Error performing GET http://h/a in 6s, after 9 retries, max_retries: 9, retry_timeout: 6s  - \
                    Server returned non-2xx status code: 500 Busy: ";
        assert!(!is_refused_at_once(&generic(said)));
        assert!(is_refused_at_once(&generic("Server returned non-2xx status code: 400 Bad Request: ")));
        assert!(is_refused_at_once(&generic("Server returned non-2xx status code: 410 Gone: ")));
    }
}
