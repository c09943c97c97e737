//! A byte stream that tracks its position and trusts no length.
//!
//! Input: any reader. Output: blocks and runs of bytes, and the offset in the stream.
//!
//! - A length is a claim of the data: memory grows with the bytes that arrive and is never ahead of them by more than
//!   [`TRUSTED_BYTES`].

use std::io::{self, Read};

/// The most bytes that are allocated for a claimed length before they arrive. The buffers of most images need not grow
/// then, and it is little compared with what a shard holds anyway.
const TRUSTED_BYTES: u64 = 1 << 20;

/// A reader and its position.
pub(super) struct Stream<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Stream<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0 }
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Fill `block`; fewer bytes than requested mean that the stream has ended.
    pub fn fill(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }

    /// Read `length` bytes, or up to the end of the stream.
    pub fn read_bytes(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.min(TRUSTED_BYTES) as usize);
        self.reader.by_ref().take(length).read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }

    /// Skip `length` bytes; fewer skipped bytes mean that the stream has ended.
    pub fn skip(&mut self, length: u64) -> io::Result<u64> {
        let skipped = io::copy(&mut self.reader.by_ref().take(length), &mut io::sink())?;
        self.offset += skipped;
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_length_is_not_allocated() {
        let mut stream = Stream::new(&b"short"[..]);
        let bytes = stream.read_bytes(1 << 60).expect("read");
        assert_eq!(bytes, b"short");
        assert!(bytes.capacity() <= 2 * TRUSTED_BYTES as usize);
        assert_eq!(stream.offset(), 5);
    }

    #[test]
    fn the_offset_counts_what_was_filled_read_and_skipped() {
        let mut stream = Stream::new(&[1_u8; 100][..]);
        assert_eq!(stream.fill(&mut [0; 10]).expect("fill"), 10);
        assert_eq!(stream.read_bytes(20).expect("read").len(), 20);
        assert_eq!(stream.skip(500).expect("skip"), 70);
        assert_eq!(stream.offset(), 100);
        assert_eq!(stream.fill(&mut [0; 4]).expect("end"), 0);
    }
}
