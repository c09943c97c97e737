//! Whole-file compression, told by its magic bytes.
//!
//! Comes in: the raw bytes of a shard or manifest. Goes out: its content, whether it was plain,
//! gzip or zstd. A misleading extension changes nothing.
//!
//! - Decompression streams: output that nobody reads is not produced, and the formats cap each
//!   record, so a small file that unpacks to terabytes costs no memory; [`MAX_RATIO`] ends the time.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flate2::bufread::GzDecoder;

/// Longest magic number below, bytes.
const MAGIC_BYTES: usize = 4;

/// Compressed bytes handed to a decoder at once. The sources behind hold megabytes; this only
/// amortises the call.
const BUFFER_BYTES: usize = 64 << 10;

/// Largest zstd window, as a power of two: what `zstd --long` uses and its command line accepts
/// by default. A frame header may ask for up to 2 TiB, which nothing in an image shard justifies.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Times its packed size that a file may unpack to, once that is more than [`FREE_BYTES`]. Encoded images hardly
/// shrink at all, and uncompressed bitmaps of drawings 50 times; gzip can pack a thousand bytes into one,
/// zstd any number.
pub(super) const MAX_RATIO: u64 = 200;

/// What any file may unpack to, some seconds' work.
pub(super) const FREE_BYTES: u64 = 1 << 30;

/// The most that decompression holds.
pub(super) const WINDOW_BYTES: u64 = 1 << ZSTD_WINDOW_LOG_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes of a file.
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(head) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// What `pzstd` puts before each frame, for zstd's decoder to pass over (RFC 8878, 3.1.2).
fn is_skippable_frame(head: &[u8]) -> bool {
    head.len() >= MAGIC_BYTES && head[0] & 0xf0 == 0x50 && head[1..MAGIC_BYTES] == [0x2a, 0x4d, 0x18]
}

/// The content behind `reader`.
///
/// # Errors
/// Those of `reader` and of the format, and [`io::ErrorKind::InvalidData`] when it unpacks to more than
/// [`MAX_RATIO`] allows.
pub(super) fn decompressed<'a>(reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    unpacked_within(reader, FREE_BYTES)
}

fn unpacked_within<'a>(
    mut reader: impl Read + Send + 'a,
    free_bytes: u64,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    reader.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let whole = Cursor::new(head).chain(reader);
    let packed_bytes = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: whole, bytes: packed_bytes.clone() };
    let unpacked: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => return Ok(Box::new(counted.inner)),
        Compression::Gzip => {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
            Box::new(GzipMembers { member: Some(GzDecoder::new(buffered)) })
        }
        Compression::Zstd => {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(Bounded { inner: unpacked, bytes: 0, packed_bytes, free_bytes }))
}

/// The content of a gzip file: that of its members, one after the other. Zeros behind the last one are padding of
/// tapes and block devices, which gzip passes over as well.
struct GzipMembers<R> {
    /// `None` once all has been read.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let bytes = member.read(buffer)?;
            if bytes > 0 || buffer.is_empty() {
                return Ok(bytes);
            }
            let Some(mut behind) = self.member.take().map(GzDecoder::into_inner) else { break };
            if !is_padding(&mut behind)? {
                self.member = Some(GzDecoder::new(behind));
            }
        }
        Ok(0)
    }
}

/// Read zeros away; whether there was nothing else.
fn is_padding(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let ahead = reader.fill_buf()?;
        if ahead.is_empty() {
            return Ok(true);
        }
        let zeros = ahead.iter().take_while(|&&byte| byte == 0).count();
        let is_all = zeros == ahead.len();
        reader.consume(zeros);
        if !is_all {
            return Ok(false);
        }
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.bytes.fetch_add(bytes as u64, Relaxed);
        Ok(bytes)
    }
}

/// Ends with an error where too little has unpacked to too much.
struct Bounded<R> {
    inner: R,
    bytes: u64,
    packed_bytes: Arc<AtomicU64>,
    free_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packed = self.packed_bytes.load(Relaxed);
        if self.bytes > self.free_bytes && self.bytes / MAX_RATIO > packed {
            let bytes = self.bytes;
            let message = format!(
                "{packed} bytes unpack to {bytes} and more, limit is {MAX_RATIO} times as much; store it unpacked \
                 if it is meant to"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let bytes = self.inner.read(buffer)?;
        self.bytes += bytes as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
        ::zstd::encode_all(bytes, 1).expect("to memory")
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompressed(bytes)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn plain_gzip_and_zstd_are_told_by_their_first_bytes() {
        let text = b"the same content";
        for bytes in [text.to_vec(), gzip(text), zstd(text), [gzip(&text[..4]), gzip(&text[4..])].concat()] {
            assert_eq!(unpacked(&bytes).expect("unpack"), text);
        }
        assert_eq!(unpacked(b"").expect("empty"), b"");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd(text)].concat();
        assert_eq!(unpacked(&skippable).expect("of pzstd"), text);
        assert_eq!(unpacked(b"ab").expect("short"), b"ab");
    }

    #[test]
    fn zeros_behind_a_gzip_file_are_padding_and_anything_else_is_damage() {
        let text = b"the same content";
        for padding in [1, 512, 3 * BUFFER_BYTES] {
            let padded = [gzip(text), vec![0; padding]].concat();
            assert_eq!(unpacked(&padded).expect("padded"), text);
            let between = [padded.clone(), gzip(text)].concat();
            assert_eq!(unpacked(&between).expect("two members"), [&text[..], text].concat());
            unpacked(&[padded, b"what is this".to_vec()].concat()).expect_err("no member");
        }
        unpacked(&gzip(text)[..30]).expect_err("cut inside the checksum");
    }

    #[test]
    fn what_unpacks_to_far_too_much_ends_with_an_error() {
        let noise: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) >> 13) as u8).collect();
        let tight = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).expect("to memory");
            encoder.finish().expect("to memory")
        };
        for pack in [tight, zstd] {
            let bomb = pack(&vec![0; 10_000_000]);
            let mut content = Vec::new();
            let mut reader = unpacked_within(bomb.as_slice(), 1 << 20).expect("head");
            let error = reader.read_to_end(&mut content).expect_err("a bomb");
            assert!(error.to_string().contains("limit is 200 times as much"), "{error}");
            assert!(content.len() < 5_000_000, "{} bytes", content.len());
            assert_eq!(unpacked(&bomb).expect("it is small").len(), 10_000_000);
            let mut reader = unpacked_within(std::io::Cursor::new(pack(&noise)), 1 << 10).expect("head");
            assert_eq!(reader.read_to_end(&mut Vec::new()).expect("images hardly shrink"), noise.len());
        }
    }

    #[test]
    fn a_cut_stream_is_an_error_after_its_content() {
        // several of zstd's 128 KiB blocks, of which some are whole in the first half
        let noise = |n: u32| (n.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 24) as u8;
        let text: Vec<u8> = (0..1_000_000).map(noise).collect();
        for packed in [gzip(&text), zstd(&text)] {
            let mut reader = decompressed(&packed[..packed.len() / 2]).expect("head");
            let mut content = Vec::new();
            reader.read_to_end(&mut content).expect_err("cut");
            assert!(!content.is_empty() && text.starts_with(&content));
        }
    }
}
