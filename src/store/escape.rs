//! Writes names of any bytes as text that determines the bytes.
//!
//! - Valid UTF-8 stays unchanged, except for control characters.
//! - Every other byte becomes `\xHH`. A backslash is escaped only where it would otherwise read as such an escape.
//!   Different names therefore have different texts, and a text determines its name.

use object_store::path;

/// `name` as text.
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while !rest.is_empty() {
        let (valid, invalid) = match std::str::from_utf8(rest) {
            Ok(valid) => (valid, 0),
            Err(error) => {
                let (valid, _) = rest.split_at(error.valid_up_to());
                let invalid = error.error_len().unwrap_or(rest.len() - error.valid_up_to());
                (std::str::from_utf8(valid).unwrap_or_default(), invalid)
            }
        };
        for (at, character) in valid.char_indices() {
            let reads_as_escape = character == '\\' && is_escape(&rest[at..]);
            if character.is_control() || reads_as_escape {
                rest[at..at + character.len_utf8()].iter().for_each(|&byte| push_escape(&mut text, byte));
            } else {
                text.push(character);
            }
        }
        rest[valid.len()..valid.len() + invalid].iter().for_each(|&byte| push_escape(&mut text, byte));
        rest = &rest[valid.len() + invalid..];
    }
    text
}

/// The reason why no store can address a name.
pub fn unaddressable(error: &path::Error) -> String {
    let name = match error {
        path::Error::EmptySegment { path } | path::Error::BadSegment { path, .. } => path,
        _ => return "is no name that a store can be asked for".to_owned(),
    };
    match name.chars().find(|c| c.is_control()) {
        Some(c) => {
            format!("holds the control character {c:?}, which no name may hold that a store is asked for")
        }
        None => {
            "has an empty part, or one of dots alone, in its name, for which no store can be asked".to_owned()
        }
    }
}

/// Whether `bytes` begin with an escape.
fn is_escape(bytes: &[u8]) -> bool {
    matches!(bytes, [b'\\', b'x', high, low, ..] if is_digit(*high) && is_digit(*low))
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'F')
}

fn push_escape(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push_str("\\x");
    for digit in [byte >> 4, byte & 0xf] {
        text.push(char::from(DIGITS[usize::from(digit)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The name that `text` represents.
    fn unescaped(text: &str) -> Vec<u8> {
        let (mut name, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((&first, behind)) = rest.split_first() {
            if is_escape(rest) {
                let digits = std::str::from_utf8(&rest[2..4]).expect("ASCII");
                name.push(u8::from_str_radix(digits, 16).expect("hexadecimal"));
                rest = &rest[4..];
            } else {
                name.push(first);
                rest = behind;
            }
        }
        name
    }

    #[test]
    fn text_stays_unchanged_and_other_bytes_are_escaped() {
        let cases: [(&[u8], &str); 7] = [
            ("dir/ä b.jpg".as_bytes(), "dir/ä b.jpg"),
            (br"a\xff.jpg", r"a\xff.jpg"),
            (br"a\xFF.jpg", r"a\x5CxFF.jpg"),
            (br"a\x\y", r"a\x\y"),
            (&[b'a', 0xff, b'b', 0xc3], r"a\xFFb\xC3"),
            (b"a\nb\x1b[31m", r"a\x0Ab\x1B[31m"),
            ("a\u{9b}b".as_bytes(), r"a\xC2\x9Bb"),
        ];
        for (name, text) in cases {
            assert_eq!(escaped(name), text);
            assert_eq!(unescaped(text), name);
        }
    }

    #[test]
    fn the_reason_names_what_makes_a_name_unaddressable() {
        for (name, expected) in
            [("a/b\tc", "character '\\t'"), ("a\0", "'\\0'"), ("a//b", "an empty part"), ("a/../b", "dots")]
        {
            let reason = unaddressable(&path::Path::parse(name).expect_err("not addressable"));
            assert!(reason.contains(expected), "{name:?}: {reason}");
        }
    }

    proptest! {
        #[test]
        fn a_text_determines_its_name(name in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(unescaped(&escaped(&name)), name);
        }

        #[test]
        fn names_that_look_like_escapes_stay_different(name in "[\\\\xA-F0-9\u{1}]{0,20}") {
            prop_assert_eq!(unescaped(&escaped(name.as_bytes())), name.as_bytes());
        }
    }
}
