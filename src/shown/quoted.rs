//! Quotes servers' messages: their first characters, without secrets inside or outside of addresses.

use super::message_without_secrets;
use super::secret_names::{Secrets, is_secret};

/// Enough for a sentence or two.
const MAX_CHARS: usize = 200;

/// Least length of a word that counts as a token after a word such as "token".
const MIN_TOKEN_BYTES: usize = 16;

/// Schemes of the header `Authorization`; the next word is the secret.
const SCHEMES: [&str; 2] = ["bearer", "basic"];

/// How a JSON Web Token begins: `{"` in base64.
const JSON_WEB_TOKEN: &str = "eyJ";

/// The beginning of a server's message.
pub(crate) fn quoted(text: &str) -> String {
    let text = without_named_values(&message_without_secrets(text));
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `text` without the values that follow names of secrets, as in `token=…`, `"token": "…"`, `Authorization: Bearer …`
/// and `the token …`, and without JSON Web Tokens.
fn without_named_values(text: &str) -> String {
    let is_wrapped =
        |c: char| matches!(c, '"' | '\'' | '`' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' | ',' | ';');
    let mut shown = String::with_capacity(text.len());
    let mut before = Before::Nothing;
    let ends_word = |c: char| c.is_whitespace() || is_wrapped(c) || matches!(c, '=' | ':');
    for piece in text.split_inclusive(ends_word) {
        let word = piece.trim_end_matches(ends_word);
        let end = &piece[word.len()..];
        let is_hidden = match before {
            // empty, or removed already
            _ if word.is_empty() || word.starts_with('…') => false,
            _ if word.starts_with(JSON_WEB_TOKEN) && word.len() >= MIN_TOKEN_BYTES => true,
            Before::Scheme | Before::NameAndSign => true,
            Before::Name => is_token(word),
            Before::Nothing => false,
        };
        let is_scheme = SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
        before = match before {
            Before::Name if word.is_empty() && matches!(end, "=" | ":") => Before::NameAndSign,
            kept if word.is_empty() => kept,
            _ if is_scheme => Before::Scheme,
            _ if !is_hidden && is_secret(word, Secrets::Unmistakable) => {
                if matches!(end, "=" | ":") {
                    Before::NameAndSign
                } else {
                    Before::Name
                }
            }
            _ => Before::Nothing,
        };
        shown.push_str(if is_hidden && !is_scheme { "…" } else { word });
        shown.push_str(end);
    }
    shown
}

/// What precedes a word.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    /// The name of a secret.
    Name,
    /// The name of a secret and `=` or `:`.
    NameAndSign,
    /// A scheme of the header `Authorization`.
    Scheme,
}

/// Whether `word` is longer than an ordinary word and contains a digit.
fn is_token(word: &str) -> bool {
    word.len() >= MIN_TOKEN_BYTES && word.contains(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_message_has_no_secrets() {
        for (text, expected) in [
            ("cannot fetch https://h/x?id=1&sig=SECRET today", "cannot fetch https://h/x?id=1&sig=…"),
            ("token=SECRET is old", "token=… is old"),
            ("\"access_token\": \"SECRET\"", "\"access_token\": \"…\""),
            ("token 'SECRET0123456789abcdef' is old", "token '…' is old"),
            ("Authorization: Bearer SECRET, refused", "Authorization: Bearer …, refused"),
            ("got Basic SECRET", "got Basic …"),
            ("eyJSECRET.eyJhbGciOi.x of nobody", "… of nobody"),
            ("password: SECRET", "password: …"),
            ("at u:SECRET@h/x", "at …"),
        ] {
            let shown = quoted(text);
            assert!(shown.starts_with(expected) && !shown.contains("SECRET"), "{text}: {shown}");
        }
        for text in
            ["not today", "the token has expired", "no such key: a/b.jpg (code 404)", "ExpiredToken: old", ""]
        {
            let shown = quoted(text);
            assert!(shown == text || text.starts_with("Expired"), "{text}: {shown}");
        }
        assert_eq!(quoted(&"ä".repeat(300)), "ä".repeat(200) + "…");
    }
}
