//! Removes secrets and control characters from text before it is shown.
//!
//! Input: URIs, messages of stores, names of objects. Output: the same text if it is harmless.
//!
//! - In a URI, everything before the host's `@` is removed, and so is the value of each parameter that names a secret
//!   (`secret_names`), after `?`, `&`, `;` or `#`, in any spelling.
//! - `user:password@` is also removed where there is no scheme, and from paths of files. Digits of a hash replace it
//!   there, since it may be an ordinary name.
//! - In a bucket, `@`, `?` and `=` belong to names. Only the parameters of a signature are secrets there.

mod address;
mod quoted;
mod secret_names;

use std::borrow::Cow;
use std::fmt::Write;

use address::{bare_without_secrets, redacted, uri_start, without_values};
use secret_names::{MAX_ENCODINGS, Secrets};

pub use address::without_secrets;
pub(crate) use address::{is_signed, looks_like_uri, names_container};
pub(crate) use quoted::quoted;

/// A message without the secrets of the URIs and parameters in it.
pub fn message_without_secrets(text: &str) -> Cow<'_, str> {
    if !text.contains([':', '=', '@', '%']) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    let ends_word = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`');
    for piece in text.split_inclusive(ends_word) {
        // punctuation around an address in a sentence is not a part of it
        let (before, word) = piece.split_at(piece.len() - piece.trim_start_matches(['(', '[', '{']).len());
        let word = word.trim_end_matches(ends_word).trim_end_matches([':', ',', '.', ')']);
        shown.push_str(before);
        match uri_start(word) {
            Some(start) => {
                shown.push_str(&word[..start]);
                shown.push_str(&redacted(&word[start..], MAX_ENCODINGS));
            }
            None => {
                let word = bare_without_secrets(word);
                shown.push_str(&without_values(&word, Secrets::Signatures, MAX_ENCODINGS));
            }
        }
        shown.push_str(&piece[before.len() + word.len()..]);
    }
    if shown == text { text.into() } else { shown.into() }
}

/// `text` with every control character, and every mark that changes the direction of text, replaced by its code point.
/// Newlines and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(controls_terminal) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if controls_terminal(c) {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// The same for a JSON document, which can have such a character only inside a string.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(controls_terminal) {
        return json.into();
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if controls_terminal(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Whether a terminal acts on `c` rather than prints it: control characters (ECMA-48), the marks of the bidirectional
/// algorithm (Unicode, UAX 9), and line separators. All are below U+10000.
fn controls_terminal(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value that must not be shown; the cases have SECRET in its place.
    const SECRET: &str = "very-secret";

    #[test]
    fn addresses_without_secrets_are_unchanged() {
        for uri in [
            "https://h/x.jpg",
            "https://h:80/a@b",
            "https://[::1]:80/x",
            "https://h/i?id=1&size=2#top",
            "https://h/i?monkey=1&keyboard=2",
            "gs://b/what?.jpg?a=b",
            "gs://b/what?.jpg",
            "gs://b/a?key=1&token=2.jpg",
            "abfss://container@account.dfs.core.windows.net/x",
            "file:///a@b?sig=d",
            "file:///a/b@c:d",
            "//data/a@b",
            "/data/12:00@north/a.jpg",
            "a@b.jpg",
            "https://h/a/https://h:80/x?id=1",
            "https://h/a%2Fb%3Fc%3Dd",
            "/data/a?b@c",
            "/data/a?sig=b",
            "C:/data/a@b",
            "photos/a@b:c.jpg",
            "",
        ] {
            assert_eq!(without_secrets(uri), uri);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for (uri, start) in [
            ("https://h/x?X-Goog-Signature=SECRET", "https://h/x?X-Goog-Signature=…"),
            ("HTTPS://me:SECRET@h:80/a@b", "HTTPS://…@h:80/a@b"),
            ("https://me:a/SECRET@h/x", "https://…"),
            ("https://me:a?SECRET@h/x", "https://…"),
            ("https://me:1?SECRET@h/x", "https://…"),
            ("https:///me:SECRET@h/x", "https:///…@h/x"),
            ("https:////me:SECRET@h/x", "https:////…@h/x"),
            ("https:/me:SECRET@h/x", "https:/…@h/x"),
            ("https:\\\\me:SECRET@h\\x", "https:\\\\…@h\\x"),
            ("https:me:SECRET@h/x", "https:…@h/x"),
            ("https://SECRET@h?sig=/a@", "https://…@h?sig=…"),
            ("ftp://me:SECRET@h/x?token=abc", "ftp://…@h/x?token=…"),
            ("s3://AKIA:SECRET@b/x", "s3://…@b/x"),
            ("s3:///AKIA:SECRET@b/x", "s3:///…@b/x"),
            ("s3://AKIA:a/SECRET@b/x", "s3://…"),
            ("gs://SECRET@b/x", "gs://…@b/x"),
            ("az://SECRET@b/x", "az://…@b/x"),
            ("abfss://c:SECRET@account.dfs.core.windows.net/x", "abfss://…@account.dfs.core.windows.net/x"),
            ("s3://b/x?a=b&X-Amz-Signature=SECRET", "s3://b/x?a=b&X-Amz-Signature=…"),
            ("az://b/x?sv=1&sig=SECRET", "az://b/x?sv=1&sig=…"),
            ("gs://b/x;%73ig=SECRET", "gs://b/x;%73ig=…"),
            ("https://h/i?id=7&access_token=SECRET&w=2", "https://h/i?id=7&access_token=…"),
            ("https://h/i?Api-Key=SECRET", "https://h/i?Api-Key=…"),
            ("https://h/i?API.KEY=SECRET", "https://h/i?API.KEY=…"),
            ("https://h/i?key=SECRET", "https://h/i?key=…"),
            ("https://h/i?password=SECRET", "https://h/i?password=…"),
            ("https://h/i?client_secret=SECRET", "https://h/i?client_secret=…"),
            ("https://h/i;token=SECRET", "https://h/i;token=…"),
            ("https://h/i#access_token=SECRET", "https://h/i#access_token=…"),
            ("https://h/i?%74oken=SECRET", "https://h/i?%74oken=…"),
            ("https://h/i?%2574oken=SECRET", "https://h/i?%2574oken=…"),
            ("https://h/i?a=1;SIG=SECRET", "https://h/i?a=1;SIG=…"),
            ("https://h/p?url=https%3A%2F%2Fh%2Fx%3Fsig%3DSECRET", "https://h/p?url=…"),
            ("https://h/p?url=https://me:SECRET@h/x", "https://h/p?url=…"),
            ("wss+x://me:SECRET@h/x", "wss+x://…@h/x"),
            (" https://me:SECRET@h/x", " https://…@h/x"),
            ("//me:SECRET@h/x", "//…"),
            ("//SECRET@h/x", "//…"),
            ("me:SECRET@h/x", "…"),
            ("/data/me:SECRET@h/x", "/data/…"),
            ("file://me:SECRET@h/x", "file://…"),
            ("file:///me:SECRET@h/x", "file:///…"),
            ("https://proxy/https://me:SECRET@h/x?a", "https://proxy/…"),
            ("https://proxy/https://me:1?SECRET@h/x", "https://proxy/…"),
            ("https://proxy/https%3A%2F%2Fh%2Fx%3Fsig%3DSECRET/y", "https://proxy/…"),
            ("https://h/i;jsessionid=SECRET?w=1", "https://h/i;jsessionid=…"),
            ("https://h/i?sig=SEC;SECRET&w=1", "https://h/i?sig=…"),
        ] {
            let uri = uri.replace("SECRET", SECRET);
            let shown = without_secrets(&uri);
            assert!(shown.starts_with(start) && !shown.contains(SECRET), "{uri}: {shown}");
            let message = format!("cannot read ({uri}): not found");
            let shown = message_without_secrets(&message);
            assert!(!shown.contains(SECRET) && shown.contains("not found"), "{message}: {shown}");
        }
    }

    #[test]
    fn addresses_that_differ_stay_different() {
        let shown: std::collections::BTreeSet<_> =
            ["https://h/i?id=1", "https://h/i?id=2", "https://h/i?id=1&sig=a", "https://h/i?id=1&sig=b"]
                .map(|uri| without_secrets(uri).into_owned())
                .into();
        assert_eq!(shown.len(), 4, "{shown:?}");
        // a password can be guessed, and a guess compared with its hash
        assert_eq!(without_secrets("https://h/i?password=a"), "https://h/i?password=…");
    }

    #[test]
    fn removing_secrets_twice_changes_nothing() {
        for uri in [
            "https://h/i?id=1&sig=a#token=b",
            "https://u:p@h/i?password=a&key=c;jwt=d",
            "s3://b/k?X-Amz-Signature=e",
            "//u:p@h/x",
            "u:p@h/x?y",
            "https://h/https://u:p@h/x",
        ] {
            let shown = without_secrets(uri);
            assert_eq!(without_secrets(&shown), shown);
            assert_eq!(
                message_without_secrets(&format!("cannot read {shown}: gone")),
                format!("cannot read {shown}: gone")
            );
        }
    }

    #[test]
    fn a_message_keeps_its_words() {
        for text in ["line 3: expected a = b", "a:b c=d", "at 12:30:00, 5 of 7 (see gs://b/x)", "x?y", ""] {
            assert_eq!(message_without_secrets(text), text);
        }
        let message = "GET \"http://me:very-secret@h:9/b?sig=very-secret\" in 3ms";
        let shown = message_without_secrets(message);
        assert!(shown.starts_with("GET \"http://…@h:9/b?sig=…") && shown.ends_with("\" in 3ms"), "{shown}");
        assert_eq!(
            message_without_secrets("of /b?a=1&password=x&sig=").as_ref(),
            "of /b?a=1&password=x&sig="
        );
        assert!(!message_without_secrets("of /b?a=1&sig=very-secret").contains(SECRET));
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        let name = "a\u{1b}]0;x\u{7}\u{9b}31m\r\u{202e}gpj.\u{2066}ü日\n\tb\u{7f}\0";
        let shown = printable(name);
        assert_eq!(shown, "a\\u{1b}]0;x\\u{7}\\u{9b}31m\\u{d}\\u{202e}gpj.\\u{2066}ü日\n\tb\\u{7f}\\u{0}");
        let json = serde_json::to_string(&serde_json::json!({ "name": name })).expect("JSON");
        let shown = printable_json(&json);
        assert!(!shown.contains(controls_terminal), "{shown}");
        let read: serde_json::Value = serde_json::from_str(&shown).expect("still JSON");
        assert_eq!(read["name"], name);
    }

    proptest! {
        #[test]
        fn no_text_causes_a_panic(text in "(https://|s3://|file:|//)?[a-dsigü…:/?&;=%#@\\[\\]\\\\ 23574]{0,60}") {
            let _ = (without_secrets(&text), message_without_secrets(&text), is_signed(&text), quoted(&text));
        }

        #[test]
        fn no_secret_is_shown_however_it_is_spelled(
            start in "(https://h|HTTP://h:80|ftp://h)/[a-c/]{0,4}", before in "[?;#](a=[b&]{0,2}[&;])?", left in "[-_+.\\[ ]{0,2}",
            name in "(sig|SIG|Token|seSSion|sas|X-Api-Key)", right in "[-_+.\\]; ]{0,2}", behind in "(&w=1)?",
        ) {
            let uri = format!("{start}{before}{left}{name}{right}=SECRET{behind}");
            prop_assert!(!without_secrets(&uri).contains("SECRET"), "{}: {}", uri, without_secrets(&uri));
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let uri = format!("{start}{before}{left}{encoded}{right}=SECRET{behind}");
            prop_assert!(!without_secrets(&uri).contains("SECRET"), "{}: {}", uri, without_secrets(&uri));
        }

        #[test]
        fn no_password_is_shown(
            scheme in "https?|ftp|s3", slashes in "/{1,4}", password in "[A-Z]{8,12}", path in "[a-z]{0,5}",
        ) {
            let uri = format!("{scheme}:{slashes}me:{password}@host/{path}");
            prop_assert!(!without_secrets(&uri).contains(&password));
            let message = format!("error: {uri}, gone");
            prop_assert!(!message_without_secrets(&message).contains(&password));
        }
    }
}
