//! Reduces the body of a store's error to what an operator needs.
//!
//! - Some services repeat the request in the body: S3 answers a wrong signature with the request that it signed itself,
//!   key id and session token included, and an expired token with that token. Only the code and the message are passed
//!   on.
//! - The result is short, and secrets in addresses are left out ([`quoted`]).
//! - No more than [`MAX_BODY_BYTES`] of a body are read.

use futures_util::StreamExt;
use object_store::client::HttpResponseBody;
use serde_json::Value;

use crate::shown::quoted;

/// The most bytes of an error that are read: stores send a page of text.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Read as much of an error's body as arrives, and reduce it.
pub(super) async fn reduced(body: HttpResponseBody) -> String {
    let (mut stream, mut bytes) = (body.bytes_stream(), Vec::new());
    // a truncated body may still hold the message
    while bytes.len() < MAX_BODY_BYTES
        && let Some(Ok(chunk)) = stream.next().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_BODY_BYTES - bytes.len())]);
    }
    words(&String::from_utf8_lossy(&bytes))
}

/// Code and message in the whole body of an error.
pub(super) fn words(body: &str) -> String {
    let body = body.trim_start_matches('\u{feff}').trim();
    if body.starts_with('<') {
        // in `Details` Google names the account and the missing permission
        let elements =
            ["Code", "Message", "Details"].into_iter().filter_map(|name| element(body, name)).map(quoted);
        // an HTML page has none of them
        return elements.collect::<Vec<_>>().join(": ");
    }
    if body.starts_with('{') {
        return serde_json::from_str(body).map_or_else(|_| String::new(), |body| json_words(&body));
    }
    quoted(body.lines().next().unwrap_or_default())
}

/// The text of the first element of that name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// `{"error": {"code", "message"}}` of Google and Azure; `{"error", "error_description"}` of OAuth 2.0
/// (RFC 6749, 5.2); `{"code", "message"}` of AWS' credential endpoints.
fn json_words(body: &Value) -> String {
    let error = body.get("error").filter(|error| error.is_object()).unwrap_or(body);
    let keys = ["error", "status", "code", "Code", "message", "Message", "error_description"];
    let texts = keys.into_iter().filter_map(|key| error.get(key)).filter_map(Value::as_str).map(quoted);
    texts.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_message_of_an_error_are_passed_on() {
        let cases = [
            (
                "<?xml version='1.0'?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>It does not.</Message>\
                 <AWSAccessKeyId>AKIA</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:tok</CanonicalRequest>\
                 </Error>",
                "SignatureDoesNotMatch: It does not.",
            ),
            (
                "<Error><Code>AccessDenied</Code><Message>Access denied.</Message><Details>me lacks get</Details>\
                 </Error>",
                "AccessDenied: Access denied.: me lacks get",
            ),
            (
                "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>old</Message></Error>\
                 </ErrorResponse>",
                "ExpiredToken: old",
            ),
            (r#"{"error": {"code": 403, "message": "no access", "errors": ["tok"]}}"#, "no access"),
            (r#"{"error": "invalid_grant", "error_description": "bad"}"#, "invalid_grant: bad"),
            (r#"{"token": "tok"}"#, ""),
            (r#"{"token": "#, ""),
            ("<html><body>tok</body></html>", ""),
            ("not today\nat all", "not today"),
            (
                "no upstream at http://me:tok@h/x?a=1&token=tok",
                "no upstream at http://…@h/x?a=1&token=…1a7674eb",
            ),
            (r#"{"message": "token=tok is old"}"#, "token=… is old"),
            ("", ""),
        ];
        for (body, expected) in cases {
            assert_eq!(words(body), expected, "{body}");
        }
    }

    #[test]
    fn an_endless_error_is_cut() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let text = runtime.block_on(reduced("ä".repeat(MAX_BODY_BYTES).into()));
        assert_eq!(text, "ä".repeat(200) + "…");
        let late = format!("{}<Code>late</Code>", "<a/>".repeat(MAX_BODY_BYTES / 4));
        assert_eq!(runtime.block_on(reduced(late.into())), "");
    }
}
