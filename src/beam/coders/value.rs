//! Decoded data.

use bytes::Bytes;

/// The header of an element that has none to inherit: the minimum timestamp, the global window, no firing.
///
/// ```text
/// 8 bytes timestamp in ms with the sign bit inverted, 4 bytes number of windows, windows, 1 byte pane
/// ```
/// Both numbers are big-endian. The minimum timestamp is `i64::MIN` microseconds; a global window takes no bytes.
#[cfg(test)]
pub const FIRST_HEADER: [u8; 13] =
    [0x7f, 0xdf, 0x3b, 0x64, 0x5a, 0x1c, 0xac, 0x09, 0x00, 0x00, 0x00, 0x01, 0x0f];

/// One element of a data stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Timestamp, windows and pane as they were encoded.
    pub header: Bytes,
    /// What the element holds.
    pub value: Value,
}

/// A decoded value. It owns its bytes and keeps no message alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Bytes, or a window as it was encoded.
    Bytes(Bytes),
    /// Text.
    String(String),
    /// An integer.
    Varint(i64),
    /// Key and value.
    Pair(Box<Value>, Box<Value>),
    /// Values of one kind.
    Iterable(Vec<Value>),
    /// A value that may be absent.
    Optional(Option<Box<Value>>),
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "bytes",
            Self::String(_) => "a string",
            Self::Varint(_) => "an integer",
            Self::Pair(..) => "a pair",
            Self::Iterable(_) => "an iterable",
            Self::Optional(_) => "an optional value",
        }
    }
}
