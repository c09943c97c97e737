//! From values to bytes.

use bytes::BufMut;

use super::coder::{Coder, ElementCoder, Window};
use super::decode::{Context, Input, MAX_LENGTH_BYTES};
use super::value::Value;

/// A value cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("a value is {kind}, but its coder is {urn}")]
    Kind { kind: &'static str, urn: &'static str },
    #[error("a value is {bytes} bytes, limit is {MAX_LENGTH_BYTES} bytes")]
    Length { bytes: usize },
    #[error("an iterable has {items} items, limit is {}", i32::MAX)]
    Items { items: usize },
}

/// Append an element to `out`. Iterables are counted, not chunked.
///
/// # Errors
/// If the value does not fit the coder or one of its limits. `out` is then as before.
pub fn encode_element(
    header: &[u8],
    value: &Value,
    coder: &ElementCoder,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(header);
    encode(value, &coder.value, Context::Nested, out).inspect_err(|_| out.truncate(start))
}

/// Append a value to `out`. What it holds after an error is not specified.
pub fn encode(value: &Value, coder: &Coder, context: Context, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match (coder, value) {
        (Coder::Bytes, Value::Bytes(bytes)) => put_bytes(bytes, context, out),
        (Coder::String, Value::String(text)) => put_bytes(text.as_bytes(), context, out),
        (Coder::Varint, Value::Varint(number)) => {
            put_varint(*number, out);
            Ok(())
        }
        (Coder::Window(window), Value::Bytes(bytes)) if is_window(bytes, *window) => {
            out.extend_from_slice(bytes);
            Ok(())
        }
        (Coder::Kv(key_coder, value_coder), Value::Pair(key, value)) => {
            encode(key, key_coder, Context::Nested, out)?;
            encode(value, value_coder, context, out)
        }
        (Coder::Iterable(item), Value::Iterable(items)) => {
            let count = i32::try_from(items.len()).map_err(|_| EncodeError::Items { items: items.len() })?;
            out.put_i32(count);
            items.iter().try_for_each(|value| encode(value, item, Context::Nested, out))
        }
        (Coder::LengthPrefix(inner), value) => {
            let mut bytes = Vec::new();
            encode(value, inner, Context::Outer, &mut bytes)?;
            put_bytes(&bytes, Context::Nested, out)
        }
        (Coder::Nullable(_), Value::Optional(None)) => {
            out.push(0);
            Ok(())
        }
        (Coder::Nullable(inner), Value::Optional(Some(value))) => {
            out.push(1);
            encode(value, inner, context, out)
        }
        _ => Err(EncodeError::Kind { kind: value.kind(), urn: coder.urn() }),
    }
}

fn put_bytes(bytes: &[u8], context: Context, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if bytes.len() > MAX_LENGTH_BYTES {
        return Err(EncodeError::Length { bytes: bytes.len() });
    }
    if context == Context::Nested {
        put_varint(bytes.len() as i64, out);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_varint(number: i64, out: &mut Vec<u8>) {
    let mut left = number.cast_unsigned();
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Whether `bytes` are exactly one window.
fn is_window(bytes: &[u8], window: Window) -> bool {
    let mut input = Input { bytes, position: 0 };
    input.window(window).is_ok_and(|read| read.len() == bytes.len())
}
