//! Whether an object alone is at fault when its store refuses it, or answers what cannot be used.
//!
//! - Such an object costs its row, or its shard: every attempt would end at it otherwise.
//! - What is denied, missing, replaced, garbled on its way or not answered at all is judged elsewhere: it is about the
//!   store, or about the input.

use std::error::Error as StdError;
use std::io;

use object_store::client::HttpError;

use crate::error::WrongChecksum;
use crate::retry::cause;

/// Statuses that are about the object that was asked for: what cannot be had in this form, is gone for good, or is
/// withheld by law.
const STATUSES: [&str; 7] = ["406", "409", "410", "415", "416", "422", "451"];

/// How `object_store` words a status; its type cannot be named.
const STATUS: &str = "status code: ";

/// How it words an answer that leads elsewhere: a bucket in another region.
const REDIRECT: &str = "Received redirect";

/// What Amazon and Azure answer where an object must first be brought back from an archive.
const ARCHIVED: [&str; 2] = ["InvalidObjectState", "BlobArchived"];

/// What is wrong with the object, in words; `None` if it may not be the object.
pub(super) fn own_trouble(error: &object_store::Error) -> Option<String> {
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
            let is_about_it = match said.split_once(STATUS) {
                Some((_, status)) => STATUSES.iter().any(|known| status.starts_with(known)),
                None => !said.contains(REDIRECT),
            };
            is_about_it.then(|| cause(error))
        }
        object_store::Error::AlreadyExists { .. } => Some(cause(error)),
        _ => None,
    }
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
            "Server returned non-2xx status code: 410 Gone: ",
            "Server returned non-2xx status code: 416 Range Not Satisfiable: InvalidRange",
            "20 bytes came for the 10 at 0",
        ] {
            assert_eq!(own_trouble(&generic(own)).as_deref(), Some(own));
        }
        for store in [
            "Server returned non-2xx status code: 503 Busy: ",
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
}
