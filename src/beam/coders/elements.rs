//! The elements of a data stream.
//!
//! Input: the data of the stream's messages, in order. Output: elements. An element may span messages.
//!
//! ```text
//! 8 bytes timestamp, 4 bytes number of windows, windows, pane, value
//! ```
//! Numbers are big-endian. A pane is a byte whose upper half says how many varints follow it: none, one or two.

use bytes::{Buf, Bytes, BytesMut};

use super::coder::{ElementCoder, Window};
use super::decode::{Context, Input, Problem, Stop, ValueDecoder};
use super::value::Element;

/// The data of a stream does not match its coder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("element {index} of the data stream: {problem}")]
pub struct DecodeError {
    /// From 0.
    pub index: u64,
    pub problem: Problem,
}

/// Decodes the elements of one data stream.
#[derive(Debug)]
pub struct ElementDecoder {
    coder: ElementCoder,
    /// Bytes from the start of the current element on.
    buffer: BytesMut,
    /// The current element, once its header is complete.
    current: Option<Current>,
    /// The index of the current element.
    index: u64,
}

/// An element in the process of being decoded.
#[derive(Debug)]
struct Current {
    header_bytes: usize,
    /// Bytes of the buffer that have been decoded.
    position: usize,
    value: ValueDecoder,
}

impl ElementDecoder {
    pub fn new(coder: ElementCoder) -> Self {
        Self { coder, buffer: BytesMut::new(), current: None, index: 0 }
    }

    /// Add the data of the next message.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next element; `None` if it has not arrived completely.
    ///
    /// # Errors
    /// If the data does not fit the coder. Further calls fail in the same way.
    pub fn next_element(&mut self) -> Result<Option<Element>, DecodeError> {
        match self.decode() {
            Ok(element) => {
                self.index += 1;
                Ok(Some(element))
            }
            Err(Stop::Incomplete) => Ok(None),
            Err(Stop::Invalid(problem)) => Err(DecodeError { index: self.index, problem }),
        }
    }

    /// The stream has ended, and [`Self::next_element`] has returned `None`.
    ///
    /// # Errors
    /// If it ended inside an element.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.buffer.len() {
            0 => Ok(()),
            bytes => Err(DecodeError { index: self.index, problem: Problem::Ends { bytes } }),
        }
    }

    fn decode(&mut self) -> Result<Element, Stop> {
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let mut input = Input { bytes: &self.buffer, position: 0 };
                skip_header(&mut input, self.coder.window)?;
                none.insert(Current {
                    header_bytes: input.position,
                    position: input.position,
                    value: ValueDecoder::new(&self.coder.value, Context::Nested),
                })
            }
        };
        let mut input = Input { bytes: &self.buffer, position: current.position };
        let value = current.value.run(&mut input);
        current.position = input.position;
        let element =
            Element { value: value?, header: Bytes::copy_from_slice(&self.buffer[..current.header_bytes]) };
        self.buffer.advance(current.position);
        self.current = None;
        Ok(element)
    }

    /// Bytes that have arrived and are not decoded.
    #[cfg(test)]
    pub fn undecoded_bytes(&self) -> usize {
        self.buffer.len() - self.current.as_ref().map_or(0, |current| current.position)
    }

    /// Bytes that are allocated for data.
    #[cfg(test)]
    pub fn allocated_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

fn skip_header(input: &mut Input, window: Window) -> Result<(), Stop> {
    input.take(size_of::<i64>())?;
    let windows = i32::from_be_bytes(input.array()?);
    let expected = match window {
        Window::Global if windows != 1 => Some("1"),
        Window::Interval if windows < 1 => Some("1 or more"),
        _ => None,
    };
    if let Some(expected) = expected {
        return Err(Stop::Invalid(Problem::Windows { windows, expected }));
    }
    for _ in 0..windows {
        input.window(window)?;
    }
    let pane = input.byte()?;
    let varints = pane >> 4;
    if varints > 2 {
        return Err(Stop::Invalid(Problem::Pane { byte: pane }));
    }
    for _ in 0..varints {
        input.varint()?;
    }
    Ok(())
}
