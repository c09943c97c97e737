//! From bytes to values.
//!
//! Input: a coder, and bytes that may arrive in pieces. Output: one value.
//!
//! - The remaining work is a stack of steps, kept between pieces. So decoding is linear in the bytes, however small the
//!   pieces are.
//! - A step reads all of its bytes or none: if it fails, input and stack are as before.
//! - A length or a count is a claim of the data. Nothing is allocated for it before its bytes have arrived.

use std::sync::Arc;

use bytes::Bytes;

use super::coder::{Coder, Window};
use super::value::Value;

/// The longest bytes, string or length-prefixed value, as lengths are 32-bit integers in Beam's SDKs.
pub const MAX_LENGTH_BYTES: usize = i32::MAX as usize;

/// The most items of an iterable whose items take no bytes. The items of others are bounded by the bytes that arrive.
const MAX_EMPTY_ITEMS: u64 = 16;

/// The count of an iterable whose items come in chunks.
const CHUNKED: i32 = -1;

/// The count of a chunk that is none: a token of the runner's state follows.
const STATE_TOKEN: i64 = -1;

/// Whether a value may be followed by something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Its encoding shows where it ends.
    Nested,
    /// It ends where the bytes end.
    Outer,
}

/// Why no value was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// More bytes are needed.
    Incomplete,
    /// The bytes are not an encoding of the coder.
    Invalid(Problem),
}

/// What is wrong with encoded data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("a varint has more than 64 bits")]
    Varint,
    #[error("a length is {length} bytes, limit is {MAX_LENGTH_BYTES} bytes")]
    Length { length: i64 },
    #[error("a string is not UTF-8")]
    Utf8,
    #[error("an iterable has {count} items")]
    Count { count: i64 },
    #[error("an iterable has {count} items that take no bytes, limit is {MAX_EMPTY_ITEMS}")]
    EmptyItems { count: u64 },
    #[error("an iterable continues in the runner's state, which sluice does not read")]
    StateBacked,
    #[error("the first byte of a nullable value is {byte}, expected 0 or 1")]
    Nullable { byte: u8 },
    #[error("{windows} windows, expected {expected}")]
    Windows { windows: i32, expected: &'static str },
    #[error("the pane starts with byte {byte:#04x}, which is not known")]
    Pane { byte: u8 },
    #[error("the data ends after {bytes} bytes of it")]
    Ends { bytes: usize },
    #[error("a value does not end within its length of {bytes} bytes")]
    Short { bytes: usize },
    #[error("a value ends {bytes} bytes before its length does")]
    Long { bytes: usize },
}

/// Bytes and the position up to which they are read.
#[derive(Debug)]
pub struct Input<'a> {
    pub bytes: &'a [u8],
    pub position: usize,
}

impl<'a> Input<'a> {
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let taken = self.bytes[self.position..].get(..length).ok_or(Stop::Incomplete)?;
        self.position += length;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let array = *self.bytes[self.position..].first_chunk().ok_or(Stop::Incomplete)?;
        self.position += N;
        Ok(array)
    }

    pub fn byte(&mut self) -> Result<u8, Stop> {
        self.array().map(|[byte]| byte)
    }

    /// Seven bits a byte, the lowest first, of the integer as 64 unsigned bits.
    pub fn varint(&mut self) -> Result<i64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value.cast_signed());
            }
        }
        Err(Stop::Invalid(Problem::Varint))
    }

    /// Bytes behind their length.
    fn length_prefixed(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.varint()?;
        match usize::try_from(length) {
            Ok(bytes) if bytes <= MAX_LENGTH_BYTES => self.take(bytes),
            _ => Err(Stop::Invalid(Problem::Length { length })),
        }
    }

    fn value_bytes(&mut self, context: Context) -> Result<&'a [u8], Stop> {
        match context {
            Context::Nested => self.length_prefixed(),
            Context::Outer => self.take(self.bytes.len() - self.position),
        }
    }

    /// One window.
    pub fn window(&mut self, window: Window) -> Result<&'a [u8], Stop> {
        let start = self.position;
        match window {
            Window::Global => {}
            Window::Interval => {
                self.take(size_of::<i64>())?;
                self.varint()?;
            }
        }
        Ok(&self.bytes[start..self.position])
    }
}

/// A value in the process of being decoded.
#[derive(Debug)]
pub struct ValueDecoder {
    /// What is still to do, the next step last.
    steps: Vec<Step>,
    /// Decoded values that are not yet part of another.
    values: Vec<Value>,
}

#[derive(Debug)]
enum Step {
    /// Read a value.
    Value(Arc<Coder>, Context),
    /// Make a pair of the last two values.
    Pair,
    /// Make the last value an optional one.
    Present,
    /// Read `left` values.
    Items { item: Arc<Coder>, left: u64 },
    /// Read chunks of values up to the empty one; `start` is the index of the iterable's first value.
    Chunks { item: Arc<Coder>, start: usize },
    /// Make an iterable of the values from `start` on.
    Collect { start: usize },
}

impl ValueDecoder {
    /// In [`Context::Outer`], [`ValueDecoder::run`] must get all bytes at once.
    pub fn new(coder: &Arc<Coder>, context: Context) -> Self {
        Self { steps: vec![Step::Value(Arc::clone(coder), context)], values: Vec::new() }
    }

    /// Read as much as there is. If the input is incomplete, call again with the same bytes and more, at the position
    /// that it left.
    pub fn run(&mut self, input: &mut Input) -> Result<Value, Stop> {
        while let Some(step) = self.steps.pop() {
            let start = input.position;
            if let Err(stop) = self.perform(&step, input) {
                input.position = start;
                self.steps.push(step);
                return Err(stop);
            }
        }
        Ok(self.pop())
    }

    fn perform(&mut self, step: &Step, input: &mut Input) -> Result<(), Stop> {
        match step {
            Step::Value(coder, context) => self.read(coder, *context, input)?,
            Step::Pair => {
                let value = self.pop();
                let key = self.pop();
                self.values.push(Value::Pair(key.into(), value.into()));
            }
            Step::Present => {
                let value = self.pop();
                self.values.push(Value::Optional(Some(value.into())));
            }
            Step::Items { left: 0, .. } => {}
            Step::Items { item, left } => {
                self.steps.push(Step::Items { item: Arc::clone(item), left: left - 1 });
                self.steps.push(Step::Value(Arc::clone(item), Context::Nested));
            }
            Step::Chunks { item, start } => match input.varint()? {
                0 => {}
                STATE_TOKEN => return Err(Stop::Invalid(Problem::StateBacked)),
                count => {
                    let left = item_count(count, self.values.len() - start, item)?;
                    self.steps.push(Step::Chunks { item: Arc::clone(item), start: *start });
                    self.steps.push(Step::Items { item: Arc::clone(item), left });
                }
            },
            Step::Collect { start } => {
                let items = self.values.split_off(*start);
                self.values.push(Value::Iterable(items));
            }
        }
        Ok(())
    }

    fn read(&mut self, coder: &Coder, context: Context, input: &mut Input) -> Result<(), Stop> {
        let value = match coder {
            Coder::Bytes => Value::Bytes(Bytes::copy_from_slice(input.value_bytes(context)?)),
            Coder::String => {
                let text = std::str::from_utf8(input.value_bytes(context)?);
                Value::String(text.map_err(|_| Stop::Invalid(Problem::Utf8))?.to_owned())
            }
            Coder::Varint => Value::Varint(input.varint()?),
            Coder::Window(window) => Value::Bytes(Bytes::copy_from_slice(input.window(*window)?)),
            Coder::LengthPrefix(inner) => {
                decode_whole(inner, Context::Outer, input.length_prefixed()?).map_err(Stop::Invalid)?
            }
            Coder::Kv(key, value) => {
                self.steps.extend([
                    Step::Pair,
                    Step::Value(Arc::clone(value), context),
                    Step::Value(Arc::clone(key), Context::Nested),
                ]);
                return Ok(());
            }
            Coder::Iterable(item) => {
                let count = i32::from_be_bytes(input.array()?);
                let start = self.values.len();
                let items = match count {
                    CHUNKED => Step::Chunks { item: Arc::clone(item), start },
                    _ => Step::Items { item: Arc::clone(item), left: item_count(count.into(), 0, item)? },
                };
                self.steps.extend([Step::Collect { start }, items]);
                return Ok(());
            }
            Coder::Nullable(inner) => match input.byte()? {
                0 => Value::Optional(None),
                1 => {
                    self.steps.extend([Step::Present, Step::Value(Arc::clone(inner), context)]);
                    return Ok(());
                }
                byte => return Err(Stop::Invalid(Problem::Nullable { byte })),
            },
        };
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Value {
        self.values.pop().expect("each value that a step uses has been read by a step before it")
    }
}

/// The checked count of an iterable, or of one of its chunks after `before` items.
fn item_count(count: i64, before: usize, item: &Coder) -> Result<u64, Stop> {
    let left = u64::try_from(count).map_err(|_| Stop::Invalid(Problem::Count { count }))?;
    let all = left.saturating_add(before as u64);
    if all > MAX_EMPTY_ITEMS && item.takes_no_bytes() {
        return Err(Stop::Invalid(Problem::EmptyItems { count: all }));
    }
    Ok(left)
}

/// Decode a value that takes all of `bytes`.
pub fn decode_whole(coder: &Arc<Coder>, context: Context, bytes: &[u8]) -> Result<Value, Problem> {
    let mut input = Input { bytes, position: 0 };
    let value = ValueDecoder::new(coder, context).run(&mut input).map_err(|stop| match stop {
        Stop::Incomplete => Problem::Short { bytes: bytes.len() },
        Stop::Invalid(problem) => problem,
    })?;
    match bytes.len() - input.position {
        0 => Ok(value),
        bytes => Err(Problem::Long { bytes }),
    }
}
