//! Memory that is used again for the next image.
//!
//! - Growing is the only time it is cleared; what it holds otherwise is left from the last image.

/// Largest buffer kept for the next image: a 16-megapixel photo in RGB. One of the rare larger
/// images gives its memory back, so that what a thread holds between images stays bounded.
const KEPT_BYTES: usize = 48 << 20;

/// Bytes without meaning of their own.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// `length` bytes with any content.
    pub(super) fn take(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length {
            // nothing is worth copying to the new place
            self.0.clear();
            self.0.resize(length, 0);
        }
        &mut self.0[..length]
    }

    /// The first `length` bytes of what was written last.
    ///
    /// # Panics
    /// When fewer were ever taken.
    pub(super) fn written(&self, length: usize) -> &[u8] {
        &self.0[..length]
    }

    /// Free the memory if it is more than is worth keeping.
    pub(super) fn trim(&mut self) {
        if self.0.capacity() > KEPT_BYTES {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_sizes_are_kept() {
        let mut buffer = Buffer::default();
        buffer.take(1000);
        buffer.trim();
        assert_eq!(buffer.written(1000).len(), 1000);
        buffer.take(KEPT_BYTES + 1);
        buffer.trim();
        assert_eq!(buffer.0.capacity(), 0);
    }
}
