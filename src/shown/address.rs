//! Removes secrets from addresses: users, values of parameters, and addresses inside an address.
//!
//! - Eight digits of its SHA-256 replace a secret, so that different addresses stay different. A secret that can be
//!   guessed gets no digits, since a guess could be compared with them.

use std::borrow::Cow;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::secret_names::{MAX_ENCODINGS, Secrets, can_be_guessed, decoded, is_secret, letters_and_digits};

/// Schemes whose addresses are a bucket and a key.
const BUCKET_SCHEMES: [&str; 8] = ["gs", "s3", "s3a", "az", "azure", "adl", "abfs", "abfss"];

/// Characters at which a parameter begins.
const DELIMITERS: [char; 4] = ['?', '&', ';', '#'];

/// A URI without the secrets that give access.
pub fn without_secrets(uri: &str) -> Cow<'_, str> {
    redacted(uri, MAX_ENCODINGS)
}

/// Whether an address in a bucket has the parameters of a signature, which give access to anyone who has the address.
pub(crate) fn is_signed(address: &str) -> bool {
    without_values(address, Secrets::Signatures, MAX_ENCODINGS) != address
}

/// Whether `text` begins like an address, well-formed or not.
pub(crate) fn looks_like_uri(text: &str) -> bool {
    uri_start(text) == Some(0)
}

/// Whether the authority is `container@account.…`, as in Azure's addresses.
pub(crate) fn names_container(scheme: &str, authority: &str) -> bool {
    let is_azure = ["az", "abfs", "abfss"].contains(&scheme);
    let account = authority.split_once('@').filter(|(container, _)| !container.contains(':'));
    is_azure
        && account.is_some_and(|(_, host)| {
            !host.contains('@')
                && [".windows.net", ".fabric.microsoft.com"].iter().any(|end| host.ends_with(end))
        })
}

/// Where in a word a URI begins: a scheme of two letters or more, a colon and a slash. What browsers accept as an
/// address counts, too: `https:/host`, `https:\\host`, `https:host`.
pub(super) fn uri_start(word: &str) -> Option<usize> {
    word.match_indices(':').find_map(|(colon, _)| {
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let scheme = word[..colon].rsplit(|c| !is_scheme(c)).next().unwrap_or_default();
        let scheme = scheme.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        let is_web = ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web));
        let is_uri = scheme.len() > 1 && (is_web || word[colon + 1..].starts_with(['/', '\\']));
        is_uri.then_some(colon - scheme.len())
    })
}

pub(super) fn redacted(uri: &str, encodings: u32) -> Cow<'_, str> {
    // leading blanks do not change the address
    let trimmed = uri.trim_start_matches(|c: char| c.is_whitespace() || c.is_control());
    let Some((scheme, rest)) = trimmed.split_once(':').filter(|_| uri_start(trimmed) == Some(0)) else {
        return bare_without_secrets(uri);
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme == "file" {
        return joined(uri, &[&uri[..uri.len() - rest.len()], &bare_without_secrets(rest)]);
    }
    let is_bucket = BUCKET_SCHEMES.contains(&scheme.as_str());
    let secrets = if is_bucket { Secrets::Signatures } else { Secrets::All };
    let address = rest.trim_start_matches(['/', '\\']);
    let start = &uri[..uri.len() - address.len()];
    let end = address.find(['/', '\\', '?', '#']).unwrap_or(address.len());
    let (authority, path) = address.split_at(end);
    let path = without_values(path, secrets, encodings);
    if names_container(&scheme, authority) {
        return joined(uri, &[start, authority, &path]);
    }
    let (user, server) =
        authority.rsplit_once('@').map_or((None, authority), |(user, server)| (Some(user), server));
    // a password with a slash or a question mark looks like a host that ends there
    let port = server.split_once(':').filter(|_| !server.starts_with('[')).map(|(_, port)| port);
    let is_cut = port.is_some_and(|port| {
        !port.bytes().all(|byte| byte.is_ascii_digit())
            || (path.starts_with(['?', '#']) && address[end..].contains('@'))
    });
    if user.is_none() && is_cut {
        return format!("{start}…").into();
    }
    match user {
        Some(_) => joined(uri, &[start, "…@", server, &path]),
        None => joined(uri, &[start, server, &path]),
    }
}

/// The parts joined; borrows `uri` if they are equal to it.
fn joined<'a>(uri: &'a str, parts: &[&str]) -> Cow<'a, str> {
    let shown = parts.concat();
    if shown == uri { uri.into() } else { shown.into() }
}

/// A path, or an address without a scheme, from which anything like `user:password@` before a host is removed.
pub(super) fn bare_without_secrets(path: &str) -> Cow<'_, str> {
    if !path.contains('@') {
        return path.into();
    }
    // `//host/path` is an address without its scheme
    let host_at = (path.starts_with("//") && !path.starts_with("///")).then_some(2);
    let mut shown = String::with_capacity(path.len());
    for segment in path.split_inclusive(['/', '\\']) {
        let user_start = if host_at == Some(shown.len()) && !segment.starts_with('…') {
            Some(0)
        } else {
            user_start(segment)
        };
        match user_start.zip(segment.rfind('@')) {
            Some((start, at)) => {
                let (before, secret) = segment[..at].split_at(start);
                let _ = write!(shown, "{before}…{}{}", hash_of(secret), &segment[at..]);
            }
            None => shown.push_str(segment),
        }
    }
    if shown == path { path.into() } else { shown.into() }
}

/// Where the user begins in `user:password@host`.
fn user_start(segment: &str) -> Option<usize> {
    let (before, host) = segment.rsplit_once('@')?;
    let (user, password) = before.split_once(':')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '%' | '+' | '-');
    let user = user.rsplit(|c| !is_name(c)).next().unwrap_or_default();
    let user = user.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let is_address =
        !user.is_empty() && !password.is_empty() && host.starts_with(|c: char| c.is_alphanumeric());
    is_address.then(|| before.len() - password.len() - 1 - user.len())
}

/// `text`, a path and parameters, with the values of secret parameters replaced. The path on a web server may contain
/// another address, whose secrets are replaced as well.
pub(super) fn without_values(text: &str, secrets: Secrets, encodings: u32) -> Cow<'_, str> {
    let path = &text[..text.find(DELIMITERS).unwrap_or(text.len())];
    let mut shown = path.to_owned();
    if secrets == Secrets::All && encodings > 0 {
        if let Some(start) = uri_start(path)
            && !redacted(&text[start..], encodings - 1).starts_with(&path[start..])
        {
            return format!("{}…{}", &path[..start], hash_of(&text[start..])).into();
        }
        shown = path_without_secrets(path, secrets, encodings - 1);
    }
    let first = path.len();
    for parameter in parameters(&text[first..]) {
        let (name, equals, value) = name_and_value(parameter);
        let decoded_name = decoded(&name[1..], MAX_ENCODINGS);
        if is_replaced(value) {
            shown.push_str(parameter);
        } else if !value.is_empty() && is_secret(&decoded_name, secrets) {
            let digits = if can_be_guessed(&decoded_name) { String::new() } else { hash_of(value) };
            let _ = write!(shown, "{name}{equals}…{digits}");
        } else if encodings > 0 && holds_secret(value, secrets, encodings - 1) {
            // an address inside an address
            let _ = write!(shown, "{name}{equals}…{}", hash_of(value));
        } else if encodings > 0 && holds_secret(&parameter[1..], secrets, encodings - 1) {
            let _ = write!(shown, "{}…{}", &parameter[..1], hash_of(&parameter[1..]));
        } else {
            shown.push_str(parameter);
        }
    }
    if shown == text { text.into() } else { shown.into() }
}

/// A path in which components that are percent-encoded addresses with secrets are replaced.
fn path_without_secrets(path: &str, secrets: Secrets, encodings: u32) -> String {
    let part = |part: &str| match part.contains('%') && holds_secret(part, secrets, encodings) {
        true => format!("…{}", hash_of(part)),
        false => part.to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The first eight hexadecimal digits of the SHA-256 of `value`.
fn hash_of(value: &str) -> String {
    Sha256::digest(value)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parameters of `text`, which begins with a delimiter, each with its delimiter. A delimiter belongs to the
/// parameter before it if no name follows; so does one that many servers treat as an ordinary character (`;`, `?`),
/// unless a name and a value follow.
fn parameters(text: &str) -> impl Iterator<Item = &str> {
    let mut starts = Vec::new();
    for (at, delimiter) in text.match_indices(DELIMITERS) {
        let rest = &text[at + 1..];
        let piece = &rest[..rest.find(DELIMITERS).unwrap_or(rest.len())];
        let is_parameter = match piece.split_once('=') {
            Some((name, _)) => !letters_and_digits(&decoded(name, MAX_ENCODINGS)).is_empty(),
            None => matches!(delimiter, "&" | "#"),
        };
        if at == 0 || is_parameter {
            starts.push(at);
        }
    }
    let ends: Vec<_> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    starts.into_iter().zip(ends).map(|(start, end)| &text[start..end])
}

/// A parameter's name with its delimiter, the equals sign, which may be percent-encoded, and the value.
fn name_and_value(parameter: &str) -> (&str, &str, &str) {
    let encoded = parameter.to_ascii_lowercase().find("%3d").map(|at| (at, 3));
    let found = parameter.find('=').map(|at| (at, 1)).into_iter().chain(encoded).min();
    let Some((at, length)) = found else { return (parameter, "", "") };
    let (name, rest) = parameter.split_at(at);
    let (equals, value) = rest.split_at(length);
    (name, equals, value)
}

/// Whether `value` already replaces a secret: text may pass through here twice.
fn is_replaced(value: &str) -> bool {
    value.strip_prefix('…').is_some_and(|digits| {
        digits.is_empty() || (digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    })
}

fn holds_secret(value: &str, secrets: Secrets, encodings: u32) -> bool {
    let address = decoded(value, 1);
    let start = uri_start(&address).unwrap_or(0);
    (uri_start(&address).is_some() && redacted(&address[start..], encodings) != address[start..])
        || (address.contains(DELIMITERS) && without_values(&address, secrets, encodings) != address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_recognised_in_any_spelling() {
        for (text, shown) in [
            ("?sig%5B%5D=S", "?sig%5B%5D=…"),
            ("?%5bsig%5d=S", "?%5bsig%5d=…"),
            ("?sig%20=S", "?sig%20=…"),
            ("?sig+=S", "?sig+=…"),
            ("?sig;=S", "?sig;=…"),
            ("?sig&=S", "?sig&=…"),
            ("?sig%3DS", "?sig%3D…"),
            ("?%73%69%67=S", "?%73%69%67=…"),
            ("?a=1%26sig=S", "?a=…"),
            ("?https%3A%2F%2Fh%2Fx%3Fsig%3DS", "?…"),
        ] {
            let found = without_values(text, Secrets::All, MAX_ENCODINGS);
            assert!(found.starts_with(shown) && !found.contains('S'), "{text}: {found}");
            assert_eq!(without_values(&found, Secrets::All, MAX_ENCODINGS), found);
        }
        let value_with_delimiters = without_values("?sig=SE;CR?ET&w=2#top", Secrets::All, MAX_ENCODINGS);
        assert!(value_with_delimiters.ends_with("&w=2#top"), "{value_with_delimiters}");
        assert!(!value_with_delimiters.contains("CR"), "{value_with_delimiters}");
    }
}
