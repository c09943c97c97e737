//! A store's request once more, where `object_store` gives up too soon.
//!
//! - `object_store` itself repeats what a server refused for the moment and what did not reach it, with
//!   backoff and jitter, for as long as `storage.retry_seconds`. It does not repeat an answer that came
//!   and is wrong: cut short, not what was asked for, of another checksum. [`again`] does, a few times.
//! - What cannot get better is not tried again: what is missing, denied, there already or replaced, and what
//!   this machine's disk refuses.

use std::collections::hash_map::RandomState;
use std::error::Error as StdError;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use object_store::client::{HttpError, HttpErrorKind};

/// Requests in all.
const TRIES: u32 = 4;

/// Pause before the second one; each further pause is twice as long, and all are cut at random by up to a
/// half, so that many workers do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A request that took longer than this was repeated by `object_store` until it gave up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);

/// Make a request whose repetition does no harm, again if its answer was wrong.
pub async fn again<T, F: Future<Output = object_store::Result<T>>>(
    mut request: impl FnMut() -> F,
) -> object_store::Result<T> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        let start = Instant::now();
        match request().await {
            Err(error) if may_get_better(&error) && start.elapsed() < GIVEN_UP_AFTER => {
                tracing::warn!(%error, "a store's answer was wrong; asking again");
            }
            done => return done,
        }
        // the hasher's keys are random
        let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        tokio::time::sleep(pause.mul_f64(1.0 - random / 2.0)).await;
        pause *= 2;
    }
    request().await
}

fn may_get_better(error: &object_store::Error) -> bool {
    match error {
        // a token may have run out on its way
        object_store::Error::Unauthenticated { .. } => true,
        object_store::Error::Generic { .. } => {
            let mut cause: Option<&dyn StdError> = Some(error);
            while let Some(error) = cause {
                if is_final(error) {
                    return false;
                }
                cause = error.source();
            }
            true
        }
        _ => false,
    }
}

/// Whether a cause of a failure says that nothing is to be had by trying again: a disk's refusal, or a server
/// that could not be reached for as long as that is tried.
fn is_final(cause: &(dyn StdError + 'static)) -> bool {
    let unreached =
        cause.downcast_ref().is_some_and(|error: &HttpError| error.kind() == HttpErrorKind::Connect);
    let refused = cause.downcast_ref().is_some_and(|error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::FileTooLarge
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::InvalidFilename
                | ErrorKind::Unsupported
        )
    });
    unreached || refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::Error;

    fn tried(error: fn() -> Error) -> u32 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        let mut tries = 0;
        let failed: object_store::Result<()> = runtime.block_on(again(|| {
            tries += 1;
            std::future::ready(Err(error()))
        }));
        failed.expect_err("every try fails");
        tries
    }

    #[test]
    fn a_wrong_answer_is_asked_for_again_and_a_refusal_is_not() {
        assert_eq!(tried(|| Error::Generic { store: "test", source: "cut short".into() }), TRIES);
        let missing = || Error::NotFound { path: "a".to_owned(), source: "no such key".into() };
        assert_eq!(tried(missing), 1);
        let denied = || Error::PermissionDenied { path: "a".to_owned(), source: "not yours".into() };
        assert_eq!(tried(denied), 1);
        let full =
            || Error::Generic { store: "test", source: io::Error::from(ErrorKind::StorageFull).into() };
        assert_eq!(tried(full), 1);
        let cut =
            || Error::Generic { store: "test", source: io::Error::from(ErrorKind::UnexpectedEof).into() };
        assert_eq!(tried(cut), TRIES);
    }
}
