//! Repeats requests where `object_store` gives up too soon.
//!
//! - `object_store` itself repeats requests that a server refused temporarily or that did not reach it, with backoff
//!   and jitter, for `storage.retry_seconds`. It does not repeat a request whose answer is wrong: cut short, not what
//!   was requested, a checksum mismatch. [`again`] does, a few times.
//! - Permanent failures are not repeated: objects that are missing, denied, replaced or exist already, permanent errors
//!   of this machine's disk, and requests that `object_store` repeated until it gave up.

use std::collections::hash_map::RandomState;
use std::error::Error as StdError;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use crate::error::{NoAnswer, NoListing, WrongChecksum};

/// Tries of a request, the first one included.
const TRIES: u32 = 4;

/// Pause before the second request. Each further pause is twice as long, and each is shortened at random by up to a
/// half, so that many workers do not return at the same time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A request that took longer than this was repeated by `object_store`, or repeating it would take several times the
/// configured time.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);

/// Part of the message of `object_store` about a request that it repeated. The error type is private.
const REPEATED: &str = ", max_retries: ";

/// Parts of its message about a listing that is denied or not found; for other requests these are errors of their own.
const REFUSED: [&str; 2] = ["status code: 403 ", "status code: 404 "];

/// Make a request that may safely be repeated, and repeat it if its answer is wrong.
pub async fn again<T, F: Future<Output = object_store::Result<T>>>(
    mut request: impl FnMut() -> F,
) -> object_store::Result<T> {
    for pauses in 0..TRIES - 1 {
        let start = Instant::now();
        match request().await {
            Err(error) if may_get_better(&error) && start.elapsed() < GIVEN_UP_AFTER => {
                tracing::warn!(%error, "a store's answer was wrong; asking again");
            }
            done => return done,
        }
        pause(pauses).await;
    }
    request().await
}

/// Create an object if it is absent. Returns whether it was absent.
///
/// S3 answers with the same status if the object exists and if another writer is creating it. That writer may still
/// fail, so the object is looked up, and the request is repeated if it does not exist. Azure answers a copy to a name
/// that exists with 409 or 412.
///
/// # Errors
/// Those of the store, and one if its answers keep contradicting each other about whether the object exists.
pub async fn create(store: &dyn ObjectStore, path: &Path, payload: PutPayload) -> object_store::Result<bool> {
    let put =
        || async { again(|| store.put_opts(path, payload.clone(), PutMode::Create.into())).await.map(drop) };
    create_by(put, || async { again(|| store.head(path)).await.map(drop) }).await
}

/// The same with any request `put` that creates the object, and `head` to look it up.
pub async fn create_by<P, H>(
    mut put: impl FnMut() -> P,
    mut head: impl FnMut() -> H,
) -> object_store::Result<bool>
where
    P: Future<Output = object_store::Result<()>>,
    H: Future<Output = object_store::Result<()>>,
{
    let mut pauses = 0;
    loop {
        let refused = match put().await {
            Ok(()) => return Ok(true),
            Err(Error::AlreadyExists { source, .. } | Error::Precondition { source, .. }) => source,
            Err(error) => return Err(error),
        };
        match head().await {
            Ok(()) => return Ok(false),
            Err(Error::NotFound { .. }) if pauses + 1 < TRIES => pause(pauses).await,
            Err(Error::NotFound { .. }) => return Err(Error::Generic { store: "create", source: refused }),
            Err(error) => return Err(error),
        }
        pauses += 1;
    }
}

/// Wait before the next try, after `pauses` earlier pauses.
pub async fn pause(pauses: u32) {
    // the keys of the hasher are random
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    tokio::time::sleep((FIRST_PAUSE * 2_u32.pow(pauses)).mul_f64(1.0 - random / 2.0)).await;
}

/// Whether the error is a wrong answer, so that another one may be right.
pub(crate) fn may_get_better(error: &Error) -> bool {
    match error {
        // a token may have expired on the way
        Error::Unauthenticated { .. } => true,
        Error::Generic { .. } => {
            let mut cause: Option<&dyn StdError> = Some(error);
            while let Some(error) = cause {
                if error.is::<WrongChecksum>() {
                    return true;
                }
                if is_final(error) {
                    return false;
                }
                cause = error.source();
            }
            let message = error.to_string();
            !was_repeated(error) && !REFUSED.iter().any(|refused| message.contains(refused))
        }
        _ => false,
    }
}

/// Whether `object_store` repeated the request until it gave up.
pub(crate) fn was_repeated(error: &Error) -> bool {
    error.to_string().contains(REPEATED)
}

/// The innermost error of a chain: the answer, or why there was none.
pub(crate) fn cause(error: &Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Whether a cause of a failure shows that repeating is useless.
fn is_final(cause: &(dyn StdError + 'static)) -> bool {
    // `object_store` already repeats requests to an unreachable server for as long as makes sense
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
                | ErrorKind::InvalidInput
                | ErrorKind::Unsupported
        )
    });
    cause.is::<NoAnswer>() || cause.is::<NoListing>() || unreached || refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use object_store::http::HttpBuilder;
    use object_store::{BackoffConfig, ClientOptions, RetryConfig};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime")
    }

    fn tried(error: impl Fn() -> Error) -> u32 {
        let mut tries = 0;
        let failed: object_store::Result<()> = runtime().block_on(again(|| {
            tries += 1;
            std::future::ready(Err(error()))
        }));
        failed.expect_err("every try fails");
        tries
    }

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Generic { store: "test", source: source.into() }
    }

    #[test]
    fn a_wrong_answer_is_repeated_and_a_refusal_is_not() {
        assert_eq!(tried(|| generic("cut short")), TRIES);
        let missing = || Error::NotFound { path: "a".to_owned(), source: "no such key".into() };
        assert_eq!(tried(missing), 1);
        let denied = || Error::PermissionDenied { path: "a".to_owned(), source: "not yours".into() };
        assert_eq!(tried(denied), 1);
        let listing = "Error performing list request: Error performing GET http://h/b?list-type=2 in 9ms - \
                       Server returned non-2xx status code: 403 Forbidden: AccessDenied";
        assert_eq!(tried(|| generic(listing)), 1);
    }

    #[test]
    fn a_permanent_error_of_the_disk_is_not_repeated() {
        for kind in [ErrorKind::PermissionDenied, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            assert_eq!(tried(|| generic(io::Error::from(kind))), 1, "{kind}");
        }
        assert_eq!(tried(|| generic(io::Error::from(ErrorKind::UnexpectedEof))), TRIES);
    }

    #[test]
    fn a_request_to_an_unreachable_server_is_not_repeated() {
        let refused =
            || HttpError::new(HttpErrorKind::Connect, io::Error::from(ErrorKind::ConnectionRefused));
        assert_eq!(tried(|| generic(refused())), 1);
        assert_eq!(tried(|| generic(WrongChecksum { found: 1, expected: 2 })), TRIES);
    }

    /// `was_repeated` depends on the text of a message of `object_store`, which may change in a new release.
    #[test]
    fn a_request_that_object_store_gave_up_is_not_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let busy = std::thread::spawn(move || {
            const REQUESTS: usize = 3;
            for stream in listener.incoming().take(REQUESTS) {
                let mut stream = stream.expect("a request");
                let _ = stream.read(&mut [0; 4096]).expect("a request");
                let answer = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).expect("the client is connected");
            }
        });
        let moment = Duration::from_millis(1);
        let backoff = BackoffConfig { init_backoff: moment, max_backoff: 2 * moment, base: 2.0 };
        let retry = RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(60) };
        let options = ClientOptions::new().with_allow_http(true);
        let store = HttpBuilder::new().with_url(url).with_retry(retry).with_client_options(options);
        let store = store.build().expect("a store");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let failed = runtime.block_on(store.head(&Path::from("a"))).expect_err("a busy server");
        busy.join().expect("three requests");
        assert!(!may_get_better(&failed), "{failed}");
    }

    #[test]
    fn an_object_exists_only_if_it_can_be_looked_up() {
        let exists = || Error::AlreadyExists { path: "a".to_owned(), source: "409".into() };
        let missing = || Error::NotFound { path: "a".to_owned(), source: "404".into() };
        // another writer's object, which exists from the `appears`th look-up on, or which that writer fails to create
        let create = |appears: u32, fails: bool| {
            let (mut puts, mut look_ups) = (0, 0);
            let put = || {
                puts += 1;
                std::future::ready(if fails && puts > 1 { Ok(()) } else { Err(exists()) })
            };
            let head = || {
                look_ups += 1;
                std::future::ready(if look_ups >= appears { Ok(()) } else { Err(missing()) })
            };
            runtime().block_on(create_by(put, head))
        };
        assert!(!create(1, false).expect("it exists"));
        assert!(!create(2, false).expect("it exists"));
        assert!(create(2, true).expect("it is created"));
        let error = create(u32::MAX, false).expect_err("it never exists");
        assert!(matches!(error, Error::Generic { .. }), "{error}");
    }

    #[test]
    fn a_failed_precondition_means_that_the_object_exists() {
        let refused = || Error::Precondition { path: "a".to_owned(), source: "412".into() };
        let created = create_by(
            || std::future::ready(Err(refused())),
            || std::future::ready(object_store::Result::Ok(())),
        );
        assert!(!runtime().block_on(created).expect("it exists"));
    }
}
