//! Memory that is reused for the next image.
//!
//! - It is cleared only when it grows; otherwise it still holds bytes of the previous image.

/// Largest buffer kept for the next image: a 16-megapixel photo in RGB. The memory of larger images,
/// which are rare, is freed, so that a thread holds a bounded amount between images.
const KEPT_BYTES: usize = 48 << 20;

/// A growable buffer of bytes.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// `length` bytes with unspecified content.
    pub(super) fn take(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length {
            // the old content need not be copied to the new allocation
            self.0.clear();
            self.0.resize(length, 0);
        }
        &mut self.0[..length]
    }

    /// The first `length` bytes, as last written.
    ///
    /// # Panics
    /// If `take` was never called with at least `length`.
    pub(super) fn written(&self, length: usize) -> &[u8] {
        &self.0[..length]
    }

    /// Free the memory if it exceeds [`KEPT_BYTES`].
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
    fn a_very_large_buffer_is_freed_between_images() {
        let mut buffer = Buffer::default();
        buffer.take(1000);
        buffer.trim();
        assert_eq!(buffer.written(1000).len(), 1000);
        buffer.take(KEPT_BYTES + 1);
        buffer.trim();
        assert_eq!(buffer.0.capacity(), 0);
    }
}
