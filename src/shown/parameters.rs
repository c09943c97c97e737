//! Parameters of addresses: which of them are secrets, and how their values are removed.
//!
//! - Names are compared by letters and digits only: percent-decoded, in lower case, without separators. Names of form
//!   fields (`x[sig]`, `sig[]`) match if one of their parts does.
//! - Eight digits of its SHA-256 replace a value, so that addresses that differ stay different. A value that can be
//!   guessed has none, since a guess could be compared with them.

use std::borrow::Cow;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{redacted, uri_start};

/// Where a parameter begins.
const DELIMITERS: [char; 4] = ['?', '&', ';', '#'];

/// Names of parameters that are secrets in every address: whole names, and parts of names.
const SIGNATURE_NAMES: [&str; 2] = ["sig", "googleaccessid"];
const SIGNATURE_PARTS: [&str; 6] =
    ["signature", "xamz", "xgoog", "accesstoken", "securitytoken", "awsaccesskey"];

/// The same for the addresses of web servers, and for servers' messages. In a bucket they may belong to an object's key.
const SECRET_NAMES: [&str; 14] = [
    "pwd",
    "jwt",
    "hmac",
    "hdnts",
    "hdnea",
    "hdntl",
    "keypairid",
    "sas",
    "sid",
    "otp",
    "psw",
    "passwd",
    "creds",
    "cookie",
];
const SECRET_PARTS: [&str; 20] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "passcode",
    "credential",
    "session",
    "sessid",
    "bearer",
    "authorization",
    "authentication",
    "apikey",
    "accesskey",
    "authkey",
    "accountkey",
    "sharedkey",
    "privatekey",
    "signingkey",
    "subscriptionkey",
    "masterkey",
];

/// Names of secrets in addresses that have other meanings in a sentence.
const ADDRESS_NAMES: [&str; 8] = ["key", "auth", "pass", "policy", "code", "sign", "pin", "pw"];

/// Names of parameters whose values can be guessed.
const PASSWORD_NAMES: [&str; 3] = ["pin", "pw", "otp"];
const PASSWORD_PARTS: [&str; 4] = ["pass", "pwd", "psw", "secret"];

/// Layers of percent-encoding that are searched for secrets.
pub(super) const MAX_ENCODINGS: u32 = 3;

/// Which parameters are secrets. Each level includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Secrets {
    /// Signatures of stores.
    Signatures,
    /// Everything that gives access, if its name has no other meaning.
    Unmistakable,
    /// Everything that gives access.
    All,
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
pub(super) fn hash_of(value: &str) -> String {
    Sha256::digest(value)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the value of the parameter `name`, percent-decoded, is a secret.
pub(super) fn is_secret(name: &str, secrets: Secrets) -> bool {
    std::iter::once(name).chain(name.split(['[', ']'])).map(letters_and_digits).any(|name| {
        let is = |names: &[&str]| names.contains(&name.as_str());
        is(&SIGNATURE_NAMES)
            || contains_any(&name, &SIGNATURE_PARTS)
            || (secrets >= Secrets::Unmistakable && (is(&SECRET_NAMES) || contains_any(&name, &SECRET_PARTS)))
            || (secrets == Secrets::All && is(&ADDRESS_NAMES))
    })
}

/// The parameters of `text`, each with its delimiter, with which `text` must begin. A delimiter belongs to the parameter
/// before it if no name follows; so does one that many servers treat as an ordinary character (`;`, `?`), unless a name
/// and a value follow.
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

fn can_be_guessed(name: &str) -> bool {
    let name = letters_and_digits(name);
    PASSWORD_NAMES.contains(&name.as_str()) || contains_any(&name, &PASSWORD_PARTS)
}

fn letters_and_digits(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn contains_any(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.contains(part))
}

/// `text`, percent-decoded at most `times` times.
fn decoded(text: &str, times: u32) -> String {
    let mut text = text.to_owned();
    for _ in 0..times {
        if !text.contains('%') {
            break;
        }
        let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
        while let [first, tail @ ..] = rest {
            let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) if *first == b'%' => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                _ => {
                    bytes.push(*first);
                    rest = tail;
                }
            }
        }
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_secret_is_recognised_in_any_spelling() {
        for name in [
            "sas",
            "session",
            "session_id",
            "sessionId",
            "PHPSESSID",
            "jsessionid",
            "sid",
            "bearer",
            "passphrase",
            "sig[]",
            "[sig]",
            "x[sig]",
            "sig[0]",
            "sig ",
            "sig+",
            "sig;",
            "SIG",
            "s-i-g",
            "s_i.g",
            "access-token",
            "X-Api-Key",
            "x_amz_signature",
            "auth[token]",
            "user[key]",
            "Ocp-Apim-Subscription-Key",
            "cookie",
        ] {
            assert!(is_secret(name, Secrets::All), "{name}");
        }
        for name in ["id", "size", "monkey", "keyboard", "design", "compass", "side", "sigma", "codec", ""] {
            assert!(!is_secret(name, Secrets::All), "{name}");
        }
    }

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
