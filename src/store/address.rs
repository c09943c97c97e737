//! Parses URIs into a service, a store and a path in it.
//!
//! - The key is the text after the bucket, byte for byte: `gs://b/a b#1%.jpg` means just that. Only `file://` and
//!   `https://` are URLs and percent-decoded.
//! - A URI with credentials or a signature is refused: it would end up in logs and in the output.

use std::path::{Component, Path as FilePath, PathBuf};

use object_store::path::Path;
use url::Url;

use crate::shown::{is_signed, looks_like_uri, names_container};

use super::escape::unaddressable;
use super::location::StoreKind;
use super::web;

/// The service that a store belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Local,
    Google,
    Amazon,
    Azure,
    Http,
}

const CREDENTIALS: &str = "credentials in a URI would end up in logs and in the output";

/// A parsed URI.
#[derive(Debug)]
pub(super) struct Address {
    /// As it was given, except that `file://` has become a plain path.
    pub uri: String,
    pub service: Service,
    pub kind: StoreKind,
    /// The part before the path: `gs://bucket/`, `https://host/`, `/`.
    pub root: String,
    pub path: Path,
}

impl Address {
    /// # Errors
    /// Why `uri` cannot be parsed or is refused. The message does not contain the URI.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = uri.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
            if looks_like_uri(uri) {
                return Err(
                    "looks like a URI but is not one: a scheme is followed by :// and a name".to_owned()
                );
            }
            return Self::local(uri, uri);
        };
        let service = match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let path = Url::parse(uri).ok().and_then(|url| url.to_file_path().ok());
                let path = path.ok_or("a file URL must name an absolute path of this machine")?;
                let path = path.to_str().ok_or("the path is not valid UTF-8")?;
                return Self::local(path, path);
            }
            "http" | "https" => return Self::http(uri),
            "gs" => Service::Google,
            "s3" | "s3a" => Service::Amazon,
            "az" | "azure" | "adl" | "abfs" | "abfss" => Service::Azure,
            _ => {
                return Err(format!(
                    "scheme {scheme} is not supported, expected a path, file, gs, s3, az, abfs, http or https"
                ));
            }
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("names no bucket".to_owned());
        }
        let scheme = scheme.to_ascii_lowercase();
        if bucket.contains(['@', ':']) && !names_container(&scheme, bucket) {
            return Err(CREDENTIALS.to_owned());
        }
        if is_signed(key) {
            return Err("a signature in a URI would end up in logs and in the output".to_owned());
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if !bucket.chars().all(is_name) {
            return Err("names no bucket: its name has letters, digits, '-', '_' and '.' only".to_owned());
        }
        let path = Path::parse(key).map_err(|error| unaddressable(&error))?;
        let root = format!("{scheme}://{bucket}/");
        Ok(Self { uri: uri.to_owned(), service, kind: StoreKind::Bucket, root, path })
    }

    fn local(uri: &str, path: &str) -> Result<Self, String> {
        let absolute = absolute_path(FilePath::new(path))
            .map_err(|error| format!("cannot be made an absolute path: {error}"))?;
        let absolute = absolute.to_str().ok_or("the path is not valid UTF-8")?;
        let path = Path::parse(absolute).map_err(|error| unaddressable(&error))?;
        if path.filename().is_some_and(is_staged_name) {
            return Err("a name that ends in # and digits is that of a file still being written".to_owned());
        }
        let root = "/".to_owned();
        Ok(Self { uri: uri.to_owned(), service: Service::Local, kind: StoreKind::Local, root, path })
    }

    fn http(uri: &str) -> Result<Self, String> {
        let url = Url::parse(uri).map_err(|error| error.to_string())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(CREDENTIALS.to_owned());
        }
        if url.fragment().is_some() {
            return Err("a fragment is not supported; percent-encode # in names".to_owned());
        }
        let path = web::path_of(&url)?;
        let root = url[..url::Position::BeforePath].to_owned() + "/";
        Ok(Self { uri: uri.to_owned(), service: Service::Http, kind: StoreKind::Http, root, path })
    }
}

/// A letter, then letters, digits and three signs (RFC 3986, 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// An absolute path without `.` and `..`. It need not exist: a new output does not exist yet.
fn absolute_path(path: &FilePath) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    if !absolute.components().any(|part| part == Component::ParentDir) {
        return Ok(absolute);
    }
    let mut result = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            // the parent of a symbolic link's target is not the parent of the link
            result = result.canonicalize().unwrap_or(result);
            result.pop();
        } else {
            result.push(part);
        }
    }
    Ok(result)
}

/// Whether `name` is the name of a file that `LocalFileSystem` has not finished writing, such as `name#1`. It refuses
/// to read such a file.
pub fn is_staged_name(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SourceError;

    #[test]
    fn uris_are_parsed_byte_for_byte() {
        let cases = [
            ("gs://b/a b#1%20.jpg", "gs://b/", "a b#1%20.jpg"),
            ("s3://my_bucket", "s3://my_bucket/", ""),
            ("s3://b/folder/", "s3://b/", "folder"),
            ("abfss://c@a.dfs.core.windows.net/x/y", "abfss://c@a.dfs.core.windows.net/", "x/y"),
            ("https://h:8080/a%20b/c.tar", "https://h:8080/", "a b/c.tar"),
            ("/data/a%b.tar", "/", "data/a%b.tar"),
            ("file:///data/a%20b.tar", "/", "data/a b.tar"),
        ];
        for (uri, root, path) in cases {
            let address = Address::parse(uri).expect(uri);
            assert_eq!((address.root.as_str(), address.path.as_ref()), (root, path), "{uri}");
        }
    }

    #[test]
    fn the_error_for_a_refused_uri_says_why_and_repeats_no_secret() {
        let cases = [
            ("ftp://h/x", "scheme ftp is not supported"),
            ("gs:///x", "names no bucket"),
            ("s3://my bucket/x", "names no bucket"),
            ("https://h/x#y", "fragment"),
            ("https://me:secret@h/x", "credentials"),
            ("s3://AKIA:secret@b/x", "credentials"),
            ("s3://AKIA:sec/ret@b/x", "credentials"),
            ("gs://secret@b/x", "credentials"),
            ("az://secret@b/x", "credentials"),
            ("az://b/x?sv=1&sig=secret", "signature"),
            ("https:///me:secret@h/x", "credentials"),
            ("https:/me:secret@h/x", "looks like a URI"),
            ("https:me:secret@h/x", "looks like a URI"),
            ("s3:///AKIA:secret@b/x", "names no bucket"),
            ("https:/me:secret@h/a?u=http://x", "looks like a URI"),
            ("gs://b/x;%73ig=secret", "signature"),
            ("dir/part.parquet#12", "still being written"),
        ];
        for (uri, expected) in cases {
            let message = Address::parse(uri).expect_err(uri);
            assert!(message.contains(expected), "{uri}: {message}");
            let shown = SourceError::Uri { uri: uri.to_owned(), message }.to_string();
            assert!(!shown.contains("secret") && !shown.contains("ret@"), "{shown}");
        }
    }
}
