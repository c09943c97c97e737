//! Recognises kinds of text by their beginning.

/// The name of any text, with an article; `None` for other content.
pub(super) fn text(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        // in most UTF-16 text, every other byte is zero
        return (head.len() < 4 || head[2..].contains(&0)).then_some("UTF-16 text");
    }
    let text = printable(head)?.trim_start_matches('\u{feff}').trim_start();
    let lower: String = text.chars().take(64).collect::<String>().to_ascii_lowercase();
    let is = |start: &str| lower.starts_with(start);
    if is("version https://git-lfs") {
        return Some("a Git LFS pointer; git lfs pull fetches the file itself");
    }
    if ["<!doctype html", "<html", "<head", "<body", "<script", "<title"].iter().any(|start| is(start)) {
        return Some("HTML");
    }
    if is("<?xml") || is("<!--") || is("<error") || is("<!doctype") {
        return Some(if position(head, b"<html").is_some() { "HTML" } else { "XML" });
    }
    if is("data:image/") {
        return Some("a data URI; the bytes that it encodes are the image");
    }
    if let Some(name) = encoded(text) {
        return Some(name);
    }
    if is("{") || is("[") {
        return Some("JSON");
    }
    if is("http/1.") {
        return Some("an HTTP response with its header");
    }
    if is("http://") || is("https://") || is("s3://") || is("gs://") {
        return Some("the address of an image, not its bytes");
    }
    (text.len() > 1).then_some("text")
}

/// The name of text that encodes an image.
fn encoded(text: &str) -> Option<&'static str> {
    const BASE64: [(&str, &str); 8] = [
        ("/9j/", "a JPEG in base64; decode it first"),
        ("_9j_", "a JPEG in base64; decode it first"),
        ("iVBORw0KG", "a PNG in base64; decode it first"),
        ("R0lGOD", "a GIF in base64; decode it first"),
        ("UklGR", "a WebP in base64; decode it first"),
        ("SUkqA", "a TIFF in base64; decode it first"),
        ("TU0AK", "a TIFF in base64; decode it first"),
        ("Qk", "a BMP in base64; decode it first"),
    ];
    if text.starts_with("b'\\x") || text.starts_with("b\"\\x") {
        return Some("the text of a Python bytes literal, not the bytes");
    }
    let digits = text.as_bytes();
    if digits.len() >= 16 && digits.iter().all(|digit| digit.is_ascii_hexdigit()) {
        return Some("hexadecimal text");
    }
    let is_base64 = digits.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(byte));
    let of_an_image = BASE64.iter().find(|(start, _)| text.starts_with(start));
    of_an_image.filter(|_| is_base64 && digits.len() >= 16).map(|(_, name)| *name)
}

pub(super) fn is_svg(head: &[u8]) -> bool {
    let Some(text) = printable(head) else { return false };
    let text = text.trim_start_matches('\u{feff}').trim_start();
    text.starts_with("<svg") || (text.starts_with('<') && text.contains("<svg") && !text.contains("<html"))
}

/// `head` as text, if it has neither control characters other than white space nor U+FFFD. A character that is cut at
/// the end is left out.
fn printable(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| (!c.is_control() || "\n\r\t\u{c}".contains(c)) && c != '\u{fffd}';
    text.chars().all(is_text).then_some(text)
}

/// Whether `head` is text without control characters other than white space.
pub(super) fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // a character may be cut in two at the end
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|character| character.is_control() && !character.is_whitespace())
}

pub(super) fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
