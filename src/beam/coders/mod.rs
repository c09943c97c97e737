//! Beam's encodings: the elements of a data stream as bytes and as values.
//!
//! ```text
//! descriptor ─ ElementCoder::resolve ─→ ElementCoder
//! data messages ─ ElementDecoder ─→ Element ─ a function of ours ─→ encode_element ─→ data messages
//! ```
//!
//! An element is a header and a value. The header (timestamp, windows, pane) passes through our functions verbatim.
//! `beam_runner_api.proto` and `standard_coders.yaml`, which is part of Beam's Python package, define the encodings.
//!
//! - Everything here is pure: no file, no connection, no clock.
//! - Data is never trusted: no bytes cause a panic, and memory grows with the bytes that arrive, not with their claims.
//! - Coders are resolved when a stream needs them, because a descriptor also holds coders of other SDKs.

mod coder;
mod decode;
mod elements;
mod encode;
mod value;

#[cfg(test)]
mod standard_tests;
#[cfg(test)]
mod tests;

pub use coder::{Coder, ElementCoder};
pub use elements::ElementDecoder;
pub use encode::encode_element;
pub use value::{Element, Value};
