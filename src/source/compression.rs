//! Whole-file compression, recognised by its magic bytes.
//!
//! Input: the raw bytes of a shard or manifest, plain, gzip or zstd, or for TFRecord also zlib. Output: the
//! decompressed content. Extensions are ignored.
//!
//! - Other compression formats are named in an error, [`io::ErrorKind::Unsupported`].
//! - Decompression is streamed: output that is not read is not produced, and the formats limit each record, so a small
//!   file that decompresses to terabytes costs no memory. [`MAX_RATIO`] limits the time.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flate2::bufread::{GzDecoder, ZlibDecoder};

use crate::sniff::{is_gzip, is_zlib, is_zstd};
use crate::store::ZSTD_WINDOW_LOG_MAX;

/// First bytes that show the compression. They also let a format recognise its own start: a tar block is the longest.
pub(super) const HEAD_BYTES: usize = 512;

/// Compressed bytes given to a decoder at once. The underlying readers hold megabytes; this only amortises the calls.
const BUFFER_BYTES: usize = 64 << 10;

/// The highest ratio of decompressed to compressed bytes, beyond [`FREE_BYTES`]. Encoded images hardly compress at all,
/// and uncompressed bitmaps of drawings by a factor of 50. gzip reaches a factor of 1,000, and zstd has no limit.
pub(super) const MAX_RATIO: u64 = 200;

/// Bytes that any file may decompress to: a few seconds of work.
pub(super) const FREE_BYTES: u64 = 1 << 30;

/// The most bytes of memory that decompression takes.
pub(super) const WINDOW_BYTES: u64 = 1 << ZSTD_WINDOW_LOG_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Zlib,
}

impl Compression {
    /// The compression of a file with these first bytes. zlib is not recognised here: its magic bytes are too short to
    /// be certain.
    pub fn of(head: &[u8]) -> Self {
        if is_gzip(head) {
            Self::Gzip
        } else if is_zstd(head) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// The decompressed content of `reader`.
///
/// # Errors
/// Those of `reader` and of the format, and [`io::ErrorKind::InvalidData`] when the content is longer than
/// [`MAX_RATIO`] allows.
pub(super) fn decompressed<'a>(reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    unpacked_within(reader, |_| Compression::None, FREE_BYTES)
}

/// Like [`decompressed`], for a TFRecord file, which may also be compressed by zlib (TensorFlow's option `ZLIB`). Only
/// two bytes identify zlib, so a plain record takes precedence.
pub(super) fn decompressed_records<'a>(
    reader: impl Read + Send + 'a,
    is_plain: impl Fn(&[u8]) -> bool,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let zlib = |head: &[u8]| {
        if is_zlib(head) && !is_plain(head) { Compression::Zlib } else { Compression::None }
    };
    unpacked_within(reader, zlib, FREE_BYTES)
}

/// `otherwise` gives the compression of a head that is neither gzip nor zstd.
fn unpacked_within<'a>(
    mut reader: impl Read + Send + 'a,
    otherwise: impl Fn(&[u8]) -> Compression,
    free_bytes: u64,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    reader.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let compression = match Compression::of(&head) {
        Compression::None => otherwise(&head),
        compression => compression,
    };
    if let Some(what) = Some(&head).filter(|_| compression == Compression::None).and_then(|head| unread(head))
    {
        let message = format!(
            "it is {what}, which is not read; expected it plain, or packed by gzip or zstd (a TFRecord also by zlib)"
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let whole = Cursor::new(head).chain(reader);
    let packed_bytes = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: whole, bytes: packed_bytes.clone() };
    let unpacked: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => return Ok(Box::new(counted.inner)),
        Compression::Gzip => {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
            Box::new(Streams::<GzDecoder<_>>::of(buffered))
        }
        Compression::Zlib => {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
            Box::new(Streams::<ZlibDecoder<_>>::of(buffered))
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

/// The name of an unsupported compression.
fn unread(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 8] = [
        (b"\xfd7zXZ\0", "xz data"),
        (b"\x04\x22\x4d\x18", "lz4 data"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PK\x05\x06", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"\xff\x06\0\0sNaPpY", "snappy data"),
        (b"\x1f\x9d", "data of compress"),
    ];
    // a digit, then the magic of the first block or of the stream's end
    let is_bzip2 =
        head.starts_with(b"BZh") && matches!(head.get(4..10), Some(b"1AY&SY" | b"\x17\x72\x45\x38\x50\x90"));
    if is_bzip2 {
        return Some("bzip2 data");
    }
    MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

/// A decoder of one stream.
trait Stream: Read {
    type Reader: BufRead;
    fn of(reader: Self::Reader) -> Self;
    fn into_reader(self) -> Self::Reader;
}

impl<R: BufRead> Stream for GzDecoder<R> {
    type Reader = R;

    fn of(reader: R) -> Self {
        Self::new(reader)
    }

    fn into_reader(self) -> R {
        self.into_inner()
    }
}

impl<R: BufRead> Stream for ZlibDecoder<R> {
    type Reader = R;

    fn of(reader: R) -> Self {
        Self::new(reader)
    }

    fn into_reader(self) -> R {
        self.into_inner()
    }
}

/// The content of a gzip or zlib file: its streams, one after the other. Zeros after a stream are the padding of tapes
/// and block devices, which gzip ignores as well.
struct Streams<S> {
    /// `None` after the last stream.
    stream: Option<S>,
}

impl<S: Stream> Streams<S> {
    fn of(reader: S::Reader) -> Self {
        Self { stream: Some(S::of(reader)) }
    }
}

impl<S: Stream> Read for Streams<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(stream) = &mut self.stream {
            let bytes = stream.read(buffer)?;
            if bytes > 0 || buffer.is_empty() {
                return Ok(bytes);
            }
            let Some(mut behind) = self.stream.take().map(S::into_reader) else { break };
            if !is_padding(&mut behind)? {
                self.stream = Some(S::of(behind));
            }
        }
        Ok(0)
    }
}

/// Skip zeros. Returns whether they reach the end of `reader`.
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

/// Counts the bytes that are read through it.
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

/// Fails when the decompression ratio is too high.
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
    fn plain_gzip_and_zstd_are_recognised_by_their_first_bytes() {
        let text = b"the same content";
        for bytes in [text.to_vec(), gzip(text), zstd(text), [gzip(&text[..4]), gzip(&text[4..])].concat()] {
            assert_eq!(unpacked(&bytes).expect("unpack"), text);
        }
        assert_eq!(unpacked(b"").expect("empty"), b"");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd(text)].concat();
        assert_eq!(unpacked(&skippable).expect("of pzstd"), text);
        assert_eq!(unpacked(b"ab").expect("short"), b"ab");
    }

    pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    #[test]
    fn zlib_is_decompressed_unless_the_file_is_a_plain_record() {
        let text = b"the same content".repeat(100);
        let unpacked = |bytes: &[u8], is_plain: bool| {
            let mut content = Vec::new();
            let reader = decompressed_records(std::io::Cursor::new(bytes.to_vec()), move |_| is_plain);
            reader.and_then(|mut reader| reader.read_to_end(&mut content)).map(|_| content)
        };
        for level in [0, 1, 6, 9] {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
            encoder.write_all(&text).expect("to memory");
            let packed = encoder.finish().expect("to memory");
            assert_eq!(unpacked(&packed, false).expect("zlib"), text);
            assert_eq!(unpacked(&packed, true).expect("plain"), packed);
            let two = [&packed[..], &packed, &[0; 7]].concat();
            assert_eq!(unpacked(&two, false).expect("two streams").len(), 2 * text.len());
            unpacked(&packed[..packed.len() - 2], false).expect_err("cut inside the checksum");
        }
        assert_eq!(unpacked(&gzip(&text), false).expect("gzip"), text);
    }

    #[test]
    fn an_unsupported_compression_is_named() {
        let cases: [(&[u8], &str); 5] = [
            (b"BZh91AY&SY\0\0", "bzip2 data"),
            (b"\xfd7zXZ\0\0\x04", "xz data"),
            (b"PK\x03\x04\x14", "a zip archive"),
            (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
            (b"\x04\x22\x4d\x18", "lz4 data"),
        ];
        for (head, name) in cases {
            let error = decompressed(head).err().expect("not read");
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().starts_with(&format!("it is {name}, which is not read")), "{error}");
        }
        assert_eq!(unpacked(b"BZh9.jpg").expect("a name"), b"BZh9.jpg");
    }

    #[test]
    fn zeros_after_a_gzip_file_are_padding_and_anything_else_is_damage() {
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
    fn an_extreme_decompression_ratio_ends_with_an_error() {
        let noise: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) >> 13) as u8).collect();
        let tight = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).expect("to memory");
            encoder.finish().expect("to memory")
        };
        for pack in [tight, zstd] {
            let bomb = pack(&vec![0; 10_000_000]);
            let mut content = Vec::new();
            let mut reader = unpacked_within(bomb.as_slice(), |_| Compression::None, 1 << 20).expect("head");
            let error = reader.read_to_end(&mut content).expect_err("a bomb");
            assert!(error.to_string().contains("limit is 200 times as much"), "{error}");
            assert!(content.len() < 5_000_000, "{} bytes", content.len());
            assert_eq!(unpacked(&bomb).expect("it is small").len(), 10_000_000);
            let mut reader =
                unpacked_within(std::io::Cursor::new(pack(&noise)), |_| Compression::None, 1 << 10)
                    .expect("head");
            assert_eq!(reader.read_to_end(&mut Vec::new()).expect("images hardly shrink"), noise.len());
        }
    }

    #[test]
    fn a_cut_stream_is_an_error_after_its_content() {
        // several of zstd's 128 KiB blocks, some of which are complete in the first half
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
