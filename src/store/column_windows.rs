//! Ranged reads for the Parquet reader, which requests pages one by one, column by column.
//!
//! Input: an [`Object`]. Output: a `ChunkReader` that turns many small reads into few requests.
//!
//! - Each column has a window of its own, so that reading columns in turn fetches nothing twice.
//! - Once the column chunks are known, no window reaches beyond the chunk it starts in: the next bytes belong to a
//!   column that is not read.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::{Bytes, BytesMut};

use super::object::Object;
use crate::flow::lock;

/// Bytes of one fetch. The reasoning is that of the sequential reader's `READ_BYTES`, but nothing is fetched ahead
/// here, so requests are longer.
const WINDOW_BYTES: u64 = 8 << 20;

/// One for each column that is read, at most image bytes, image path and id, and one for the footer.
const WINDOWS: usize = 4;

/// The most bytes that the windows hold.
pub(crate) const WINDOWS_BYTES: u64 = WINDOWS as u64 * WINDOW_BYTES;

/// Bytes of one fetch of a long page. Its pieces are assembled in one buffer, and only the last piece is held in
/// addition.
pub(crate) const PIECE_BYTES: u64 = 32 << 20;

/// A page header has tens of bytes, more only with statistics.
const HEADER_BUFFER_BYTES: usize = 512;

/// Shared by the readers of all columns.
#[derive(Clone)]
pub struct ColumnWindows {
    object: Object,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Least recently used first.
    windows: Vec<Window>,
    /// Column chunks by their start; empty until the footer is read.
    chunks: Vec<Range<u64>>,
}

struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    fn holds(&self, offset: u64) -> bool {
        offset >= self.start && offset - self.start < self.bytes.len() as u64
    }

    /// At most `length` bytes from `offset`.
    fn from(&self, offset: u64, length: u64) -> Bytes {
        let skip = (offset - self.start) as usize;
        let end = self.bytes.len().min(skip.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)));
        self.bytes.slice(skip..end)
    }
}

impl ColumnWindows {
    /// Reads `object`, with no window filled yet.
    pub fn new(object: Object) -> Self {
        Self { object, state: Arc::default() }
    }

    /// Clear the windows, and from then on fetch only inside these column chunks.
    pub fn keep_inside(&self, mut chunks: Vec<Range<u64>>) {
        chunks.sort_unstable_by_key(|chunk| chunk.start);
        let mut state = lock(&self.state);
        state.chunks = chunks;
        state.windows.clear();
    }

    /// Exactly `length` bytes at `start`.
    fn get(&self, start: u64, length: u64) -> io::Result<Bytes> {
        let available = self.object.size_bytes().saturating_sub(start);
        if length > available {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = self.peek(start, length)?;
        if first.len() as u64 == length {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(length as usize);
        whole.extend_from_slice(&first);
        drop(first);
        while (whole.len() as u64) < length {
            let got = whole.len() as u64;
            whole.extend_from_slice(&self.fetch(start + got, (length - got).min(PIECE_BYTES))?);
        }
        Ok(whole.freeze())
    }

    /// Between one and `length` bytes at `start`. They come from the window that holds `start`. If none does, up to a
    /// piece is fetched.
    fn peek(&self, start: u64, length: u64) -> io::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut state = lock(&self.state);
        if let Some(at) = state.windows.iter().position(|window| window.holds(start)) {
            let window = state.windows.remove(at);
            let bytes = window.from(start, length);
            state.windows.push(window);
            return Ok(bytes);
        }
        drop(state);
        self.fetch(start, length.min(PIECE_BYTES))
    }

    /// Fetch `length` bytes at `start`, or a whole window if that is longer.
    fn fetch(&self, start: u64, length: u64) -> io::Result<Bytes> {
        let mut state = lock(&self.state);
        let at = state.chunks.partition_point(|chunk| chunk.start <= start);
        let chunk_end = at.checked_sub(1).map(|at| state.chunks[at].end).filter(|&end| end > start);
        let ahead = (start + WINDOW_BYTES).min(chunk_end.unwrap_or(u64::MAX));
        let end = ahead.max(start + length).min(self.object.size_bytes());
        let fetched = self.object.read_range(start..end).map_err(|error| self.object.remember(error))?;
        let window = Window { start, bytes: fetched };
        let bytes = window.from(start, length);
        // a column has no further use for a window that it has read to the end
        let spent = state.windows.iter().position(|old| old.start + old.bytes.len() as u64 == start);
        match spent {
            Some(at) => drop(state.windows.remove(at)),
            None if state.windows.len() == WINDOWS => drop(state.windows.remove(0)),
            None => {}
        }
        // a page longer than a window is decompressed immediately; a window would hold it a second time
        if window.bytes.len() as u64 > length || length <= WINDOW_BYTES {
            state.windows.push(window);
        }
        Ok(bytes)
    }
}

impl Length for ColumnWindows {
    fn len(&self) -> u64 {
        self.object.size_bytes()
    }
}

impl ChunkReader for ColumnWindows {
    type T = BufReader<WindowReader>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let reader = WindowReader { windows: self.clone(), offset: start };
        Ok(BufReader::with_capacity(HEADER_BUFFER_BYTES, reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.get(start, length as u64).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads sequentially from an offset.
pub struct WindowReader {
    windows: ColumnWindows,
    offset: u64,
}

impl Read for WindowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.windows.object.size_bytes().saturating_sub(self.offset);
        let bytes = self.windows.peek(self.offset, left.min(buffer.len() as u64))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stores::tests::local_stores;
    use super::*;
    use crate::items::ObjectRef;

    #[test]
    fn any_order_of_reads_yields_the_bytes_of_the_object() {
        let (_runtime, stores) = local_stores();
        let content: Vec<u8> = (0..3 * WINDOW_BYTES).map(|n| ((n * 131) >> 9) as u8).collect();
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), &content).expect("write");
        let uri = file.path().to_str().expect("UTF-8").to_owned();
        let object =
            Object::open(&stores, &ObjectRef { uri, size_bytes: None, version: None }).expect("open");
        let windows = ColumnWindows::new(object);
        let size = content.len();
        let chunk = WINDOW_BYTES as usize / 3;
        for round in 0..2 {
            let mut reads = vec![(size - 8, 8), (0, 10), (10, chunk), (0, size), (size - 1, 1), (5, 0)];
            reads.extend((0..9).flat_map(|n| [(n * chunk, chunk), (size - (n + 1) * chunk, chunk)]));
            for (start, length) in reads {
                let bytes = windows.get_bytes(start as u64, length).expect("inside");
                assert!(bytes == content[start..start + length], "round {round}: {start}+{length}");
                let mut read = vec![0; length];
                windows.get_read(start as u64).expect("reader").read_exact(&mut read).expect("inside");
                assert!(read == content[start..start + length], "round {round}: {start}+{length}");
            }
            windows.keep_inside(vec![4..100, 100..size as u64 / 2]);
        }
        assert!(windows.get_bytes(size as u64 - 3, 4).is_err());
        assert!(windows.get_bytes(u64::MAX, 4).is_err());
        let state = windows.state.lock().expect("lock");
        assert!(state.windows.len() <= WINDOWS);
    }

    #[test]
    fn a_page_longer_than_a_window_is_not_kept() {
        let (_runtime, stores) = local_stores();
        let size = 3 * WINDOW_BYTES;
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), vec![1; size as usize]).expect("write");
        let uri = file.path().to_str().expect("UTF-8").to_owned();
        let object =
            Object::open(&stores, &ObjectRef { uri, size_bytes: None, version: None }).expect("open");
        let windows = ColumnWindows::new(object);
        windows.get_bytes(0, 100).expect("header");
        windows.get_bytes(100, size as usize - 200).expect("page");
        assert!(windows.state.lock().expect("lock").windows.is_empty());
    }

    #[test]
    fn a_window_ends_with_its_column_chunk() {
        let (_runtime, stores) = local_stores();
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), [1; 1000]).expect("write");
        let uri = file.path().to_str().expect("UTF-8").to_owned();
        let object =
            Object::open(&stores, &ObjectRef { uri, size_bytes: None, version: None }).expect("open");
        let windows = ColumnWindows::new(object);
        windows.keep_inside(vec![300..500, 4..300]);
        windows.get_bytes(10, 5).expect("inside");
        windows.get_bytes(299, 2).expect("across");
        let state = windows.state.lock().expect("lock");
        let ranges: Vec<_> = state.windows.iter().map(|w| (w.start, w.bytes.len())).collect();
        assert_eq!(ranges, [(300, 200)]);
    }
}
