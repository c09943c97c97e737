//! Opens a store: makes its client, with settings, credentials and retries.
//!
//! - Nothing is sent. Credentials are requested with the first request.
//! - Credentials and endpoints come from the environment, by each platform's own convention.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3CopyIfNotExists};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::ClientConfigKey;
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, ObjectStore, Result, RetryConfig};

use crate::config::StorageSection;

use super::address::Service;
use super::disk::Disk;
use super::environment;
use super::http_checks::CheckedConnector;
use super::location::{Copying, LastRead};
use super::web::WebServer;

/// An open store.
#[derive(Clone)]
pub(super) struct Connected {
    pub store: Arc<dyn ObjectStore>,
    /// The same store, if it can be listed by pages.
    pub pages: Option<Arc<dyn PaginatedListStore>>,
    pub last_read: LastRead,
    pub copying: Copying,
}

/// A server that has never answered is more likely a wrong name, or a credentials server that does not exist here, than
/// an outage. Until its first answer of any kind, requests are repeated for this long only.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The first pause between two tries, and the shortest.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// The largest object that S3 copies in one request (`UploadPartCopy`). `object_store` makes one request for a copy.
const MAX_S3_COPY_BYTES: u64 = 5 << 30;

/// Open the store `root` of `service`.
///
/// # Errors
/// Settings in the environment that cannot be used or are missing.
pub(super) fn connect(service: Service, root: &str, section: &StorageSection) -> Result<Connected> {
    fn with_pages(store: impl ObjectStore + PaginatedListStore) -> Connected {
        let store = Arc::new(store);
        let (last_read, copying) = (LastRead::default(), Copying::default());
        Connected { store: store.clone(), pages: Some(store), last_read, copying }
    }
    fn without_pages(store: impl ObjectStore) -> Connected {
        let (last_read, copying) = (LastRead::default(), Copying::default());
        Connected { store: Arc::new(store), pages: None, last_read, copying }
    }
    check_environment(service)
        .map_err(|what| object_store::Error::Generic { store: "environment", source: what.into() })?;
    let retry = retry_config(section.retry_seconds);
    let accept_encoding = match service {
        Service::Google => Some("gzip"),
        Service::Http => Some("identity"),
        Service::Local | Service::Amazon | Service::Azure => None,
    };
    let connector = CheckedConnector {
        first_answer_within: FIRST_ANSWER_WITHIN.min(retry.retry_timeout / 2),
        give_up_after: (service == Service::Http).then_some(retry.retry_timeout),
        accept_encoding,
    };
    let timeout = format!("{}ms", (section.timeout_seconds * 1e3).ceil() as u64);
    let settings = Settings { root, retry, connector, timeout };
    Ok(match service {
        Service::Local => without_pages(Disk::new()),
        Service::Google => with_pages(settings.google()?),
        Service::Amazon => {
            let copying = Copying { max_bytes: MAX_S3_COPY_BYTES, ..Copying::default() };
            Connected { copying, ..with_pages(settings.amazon()?) }
        }
        Service::Azure => {
            let wait = Some(Duration::from_secs_f64(section.retry_seconds));
            let copying = Copying { wait, ..Copying::default() };
            Connected { copying, ..with_pages(settings.azure()?) }
        }
        Service::Http => without_pages(WebServer(settings.web()?)),
    })
}

fn check_environment(service: Service) -> std::result::Result<(), String> {
    environment::check(match service {
        // a disk has neither proxies nor certificates
        Service::Local => return Ok(()),
        Service::Http => &[],
        Service::Google => &["GOOGLE_", "STORAGE_EMULATOR_HOST", "GCE_METADATA_"],
        Service::Amazon => &["AWS_"],
        Service::Azure => &["AZURE_"],
    })?;
    environment::check_certificates()
}

/// Repeat a request for `retry_seconds`, however often that is. A pause is chosen at random between the shortest one
/// and three times the last one. With a factor of two, pauses would not grow on average, and many workers would keep a
/// failing store busy.
fn retry_config(retry_seconds: f64) -> RetryConfig {
    let retry_timeout = Duration::from_secs_f64(retry_seconds);
    let max_backoff = (retry_timeout / 4).clamp(MIN_PAUSE, BackoffConfig::default().max_backoff);
    RetryConfig {
        max_retries: retry_timeout.div_duration_f64(MIN_PAUSE).ceil() as usize + 1,
        retry_timeout,
        backoff: BackoffConfig { init_backoff: MIN_PAUSE, max_backoff, base: 3.0 },
    }
}

/// The settings that the clients of all services share.
struct Settings<'a> {
    root: &'a str,
    retry: RetryConfig,
    connector: CheckedConnector,
    timeout: String,
}

impl Settings<'_> {
    /// `STORAGE_EMULATOR_HOST` is a convention of Google's own clients that `object_store` does not know.
    fn google(self) -> Result<GoogleCloudStorage> {
        let allow_http = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
        let mut builder = GoogleCloudStorageBuilder::new();
        let emulator = environment::variable("STORAGE_EMULATOR_HOST");
        if emulator.is_none() {
            for (name, value) in environment::settings("GOOGLE_") {
                if let Ok(key) = name.parse::<GoogleConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(path) = environment::variable("SERVICE_ACCOUNT") {
                builder = builder.with_service_account_path(path);
            }
        }
        builder = builder
            .with_url(self.root)
            .with_retry(self.retry)
            .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), self.timeout)
            .with_http_connector(self.connector);
        if let Some(host) = emulator {
            let base = if host.contains("://") { host } else { format!("http://{host}") };
            let account = serde_json::json!({
                "gcs_base_url": base.trim_end_matches('/'),
                "disable_oauth": true,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            });
            builder = builder.with_service_account_key(account.to_string()).with_config(allow_http, "true");
        } else if names_plain_http(&["GOOGLE_BASE_URL"]) {
            builder = builder.with_config(allow_http, "true");
        }
        builder.build()
    }

    fn amazon(self) -> Result<AmazonS3> {
        let mut builder = AmazonS3Builder::new();
        for (name, value) in environment::settings("AWS_") {
            if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        builder = builder
            .with_url(self.root)
            .with_retry(self.retry)
            .with_http_connector(self.connector)
            .with_copy_if_not_exists(S3CopyIfNotExists::Multipart);
        if names_plain_http(&["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]) {
            builder = builder.with_allow_http(true);
        }
        builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), self.timeout).build()
    }

    fn azure(self) -> Result<MicrosoftAzure> {
        let mut builder = MicrosoftAzureBuilder::new();
        for (name, value) in environment::settings("AZURE_") {
            if let Ok(key) = name.parse::<AzureConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(endpoint) = environment::variable("IDENTITY_ENDPOINT") {
            builder = builder.with_msi_endpoint(endpoint);
        }
        builder = builder.with_url(self.root).with_retry(self.retry).with_http_connector(self.connector);
        if names_plain_http(&["AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"]) {
            builder = builder.with_allow_http(true);
        }
        builder.with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), self.timeout).build()
    }

    fn web(self) -> Result<HttpStore> {
        HttpBuilder::new()
            .with_url(self.root)
            .with_retry(self.retry)
            .with_http_connector(self.connector)
            .with_config(ClientConfigKey::Timeout, self.timeout)
            .with_config(ClientConfigKey::AllowHttp, "true")
            .build()
    }
}

/// Whether one of the variables holds an endpoint without TLS, which then is intended.
fn names_plain_http(variables: &[&str]) -> bool {
    variables.iter().any(|name| std::env::var(name).is_ok_and(|value| value.starts_with("http://")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_repeated_for_the_configured_time() {
        for seconds in [0.1, 6.0, 180.0, 86_400.0] {
            let retry = retry_config(seconds);
            // even with the shortest pauses, the time limit ends before the retries do
            let BackoffConfig { init_backoff, max_backoff, base } = retry.backoff;
            let shortest = init_backoff.as_secs_f64() * retry.max_retries as f64;
            assert!(shortest > seconds, "{seconds} s: {} retries", retry.max_retries);
            assert_eq!(retry.retry_timeout, Duration::from_secs_f64(seconds));
            assert!(max_backoff.mul_f64(base) > init_backoff && max_backoff.as_secs_f64() <= seconds);
        }
    }
}
