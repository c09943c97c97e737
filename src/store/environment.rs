//! Checks the environment variables that configure stores, before a store reads them.
//!
//! - The error for a value that no request can carry, such as one with a line break, names the variable but not its
//!   value.
//! - Certificates are read from a regular file or a folder.
//! - An endpoint is the address of a server without a password: messages about requests contain it.

use std::path::{Path, PathBuf};

use url::Url;

use crate::regular_file::refuse_special;
use crate::shown::without_secrets;

/// Variables that apply to all stores except the disk.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// Words in the names of variables whose values end up in headers or addresses, which are ASCII.
const IN_REQUESTS: [&str; 6] = ["KEY", "TOKEN", "REGION", "ACCOUNT", "ENDPOINT", "URL"];

/// Endings of the names of variables that hold the address of a server.
const ADDRESSES: [&str; 6] =
    ["_ENDPOINT", "_ENDPOINT_URL", "_ENDPOINT_URL_S3", "_ENDPOINT_URL_STS", "_BASE_URL", "_FULL_URI"];

/// Variables that hold the JSON text of a key file.
const KEY_FILES: [&str; 2] = ["GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS_JSON"];

/// Check the variables whose names begin with one of `prefixes`.
///
/// # Errors
/// The name of a variable, and what is wrong with it.
pub(super) fn check(prefixes: &[&str]) -> Result<(), String> {
    for (name, value) in std::env::vars_os() {
        // no store reads a variable whose name is not UTF-8
        let Some(name) = name.to_str() else { continue };
        let is_proxy = PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy));
        if is_proxy || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            let value = value.to_str().ok_or_else(|| format!("{name} is not valid UTF-8"))?;
            check_variable(name, value).map_err(|what| format!("{name} {what}"))?;
        }
    }
    Ok(())
}

/// Check the paths from which all stores except the disk read certificates.
///
/// # Errors
/// The name of a variable, and what is wrong with it.
pub(super) fn check_certificates() -> Result<(), String> {
    let file = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let folders = std::env::var_os("SSL_CERT_DIR");
    let folders = folders.iter().flat_map(|folders| std::env::split_paths(folders));
    let file = file.into_iter().map(|file| ("SSL_CERT_FILE", file, false));
    for (name, path, is_folder) in file.chain(folders.map(|folder| ("SSL_CERT_DIR", folder, true))) {
        check_path(&path, is_folder).map_err(|what| format!("{name} {what}"))?;
    }
    Ok(())
}

/// A device may be endless, and a FIFO blocks until a process writes to it. A missing file is left to the code that
/// opens it.
fn check_path(path: &Path, is_folder: bool) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(found) if is_folder && !found.is_dir() => Err("is not a folder".to_owned()),
        Ok(found) if !is_folder && found.is_dir() => Err("is a folder, expected a regular file".to_owned()),
        _ => refuse_special(path).map_err(|error| error.to_string()),
    }
}

/// The variables whose names begin with `prefix`, as settings of a store: the name in lower case and the value. Empty
/// variables count as unset.
pub(super) fn settings(prefix: &str) -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(move |(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        (name.starts_with(prefix) && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value))
    })
}

/// The value of a variable. An empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn check_variable(name: &str, value: &str) -> Result<(), &'static str> {
    if value.is_empty() || KEY_FILES.contains(&name) {
        return Ok(());
    }
    if value.contains(char::is_control) {
        return Err("holds a line break or another control character");
    }
    let is_path = name.ends_with("_FILE");
    if !is_path && IN_REQUESTS.iter().any(|word| name.contains(word)) && !value.is_ascii() {
        return Err("holds characters that are not ASCII");
    }
    if name.ends_with("REGION") && !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err("is not a region's name");
    }
    if name == "STORAGE_EMULATOR_HOST" && !value.contains("://") {
        return check_address(&format!("http://{value}"));
    }
    if name == "STORAGE_EMULATOR_HOST" || ADDRESSES.iter().any(|end| name.ends_with(end)) {
        return check_address(value);
    }
    Ok(())
}

fn check_address(value: &str) -> Result<(), &'static str> {
    let not_an_address = "is not the address of a server, such as http://localhost:9000";
    if without_secrets(value) != value {
        return Err("holds a user name, a password or a key, which would end up in logs");
    }
    let url = Url::parse(value).map_err(|_| not_an_address)?;
    let is_address =
        matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
    // the client parses the address as it is written
    if is_address && value.parse::<http::Uri>().is_ok() { Ok(()) } else { Err(not_an_address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_value_that_no_request_can_carry_names_its_variable() {
        for (name, value, expected) in [
            ("AWS_SECRET_ACCESS_KEY", "secret\n", "line break"),
            ("AWS_SESSION_TOKEN", "a\r\nsecret: b", "line break"),
            ("AWS_ACCESS_KEY_ID", "schlüssel-secret", "not ASCII"),
            ("AWS_REGION", "eu west secret", "not a region"),
            ("AWS_DEFAULT_REGION", "eu\u{7f}", "control character"),
            ("AWS_ENDPOINT_URL", "http://me:secret@h:9000", "a password"),
            ("AWS_ENDPOINT_URL", "http:///me:secret@h:9000", "a password"),
            ("AWS_ENDPOINT_URL_S3", "localhost:9000", "not the address"),
            ("AWS_ENDPOINT", "http://a secret/", "not the address"),
            ("AZURE_STORAGE_ENDPOINT", "https://h?sig=secret", "a key"),
            ("STORAGE_EMULATOR_HOST", "me:secret@h:9000", "a password"),
            ("STORAGE_EMULATOR_HOST", "h\u{e9}", "not the address"),
            ("STORAGE_EMULATOR_HOST", "http://h/<a>", "not the address"),
            ("GOOGLE_BASE_URL", "ftp://h", "not the address"),
            ("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=secret\n", "line break"),
        ] {
            let message = check_variable(name, value).expect_err(value);
            assert!(message.contains(expected) && !message.contains("secret"), "{name}: {message}");
        }
    }

    #[test]
    fn usable_values_are_accepted() {
        for (name, value) in [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
            ("AWS_ENDPOINT_URL", "https://minio.example/base/"),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY=="),
            ("AWS_REGION", "us-east-1"),
            ("AWS_PROFILE", "jörg"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/home/jörg/token"),
            ("AWS_ENDPOINT_URL", ""),
            ("STORAGE_EMULATOR_HOST", "localhost:4443"),
            ("STORAGE_EMULATOR_HOST", "http://[::1]:4443"),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "{\n}"),
            ("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=a%2Bb"),
            ("HTTPS_PROXY", "http://me:secret@proxy:3128"),
        ] {
            assert_eq!(check_variable(name, value), Ok(()), "{name}={value}");
        }
    }
}
