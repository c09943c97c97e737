//! Decides which names of parameters name a secret.
//!
//! - Names are compared by letters and digits only: percent-decoded, in lower case, without separators. Names of form
//!   fields (`x[sig]`, `sig[]`) match if one of their parts does.

/// Names of parameters that are secrets in every address: whole names, and parts of names.
const SIGNATURE_NAMES: [&str; 2] = ["sig", "googleaccessid"];
const SIGNATURE_PARTS: [&str; 6] =
    ["signature", "xamz", "xgoog", "accesstoken", "securitytoken", "awsaccesskey"];

/// The same for the addresses of web servers, and for servers' messages. In a bucket they may belong to an object's
/// key.
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

/// Whether the value of the parameter `name` can be guessed.
pub(super) fn can_be_guessed(name: &str) -> bool {
    let name = letters_and_digits(name);
    PASSWORD_NAMES.contains(&name.as_str()) || contains_any(&name, &PASSWORD_PARTS)
}

pub(super) fn letters_and_digits(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn contains_any(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.contains(part))
}

/// `text`, percent-decoded at most `times` times.
pub(super) fn decoded(text: &str, times: u32) -> String {
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
}
