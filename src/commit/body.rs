//! Length and checksum of a part's bytes up to its footer. The footer stores them, so damage to the rows is detected.

/// A number of bytes, and their CRC-32C.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Body {
    bytes: u64,
    crc32c: u32,
}

impl Body {
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }

    pub fn of(bytes: &[u8]) -> Self {
        let mut body = Self::default();
        body.add(bytes);
        body
    }

    /// Parse the output of [`Body::to_string`].
    pub fn parse(said: &str) -> Option<Self> {
        let (bytes, crc32c) = said.split_once(' ')?;
        Some(Self { bytes: bytes.parse().ok()?, crc32c: u32::from_str_radix(crc32c, 16).ok()? })
    }

    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether `whole` is these bytes followed by `rest`.
    pub fn is_without(self, whole: Self, rest: &[u8]) -> bool {
        self.bytes + rest.len() as u64 == whole.bytes
            && crc32c::crc32c_combine(self.crc32c, crc32c::crc32c(rest), rest.len()) == whole.crc32c
    }

    /// Whether `object` begins with the bytes that `said` describes.
    pub fn is_of(said: &str, object: &[u8]) -> bool {
        Self::parse(said).is_some_and(|said| object.get(..said.bytes as usize).map(Self::of) == Some(said))
    }
}

impl std::fmt::Display for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:08x}", self.bytes, self.crc32c)
    }
}
