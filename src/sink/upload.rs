//! One object on its way to the store: whole or not at all.
//!
//! - The object appears only when its last byte is stored: a single put, or a multipart upload
//!   that is completed at the end.
//! - An upload that is dropped before [`Upload::finish`] leaves nothing behind.
//! - The bytes flow through a bounded channel to a task, so that writing the next part never
//!   waits for the store to acknowledge the last.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::plan::hex;

/// Bytes handed to the task at a time, and how many such pieces may wait: 4 MiB in all keep a
/// fast store busy while the next row group is being encoded.
const PIECE_BYTES: usize = 1 << 20;
const PIECES_WAITING: usize = 4;

/// Objects up to this size are stored with one put, larger ones in parts of this size; above the
/// 5 MiB that S3 demands of a part.
const PART_BYTES: usize = 8 << 20;

/// Parts of one object on their way at once. One stream to a bucket carries tens of MB/s, and a
/// GPU's scores for 5,000 images/s with a thousand classes make no more than 20.
const PARTS_IN_FLIGHT: usize = 1;

/// The most that one upload holds: pieces handed over and one being filled, a part being filled,
/// and parts on their way.
pub const UPLOAD_BYTES: u64 =
    ((PIECES_WAITING + 2) * PIECE_BYTES + (1 + PARTS_IN_FLIGHT) * PART_BYTES) as u64;

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// An object being written.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    task: JoinHandle<object_store::Result<Stored>>,
}

/// An upload whose bytes are complete and which the store has yet to acknowledge.
#[derive(Debug)]
pub struct PendingUpload(JoinHandle<object_store::Result<Stored>>);

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    /// Without it the end of the channel means that the upload was given up.
    End,
}

impl Upload {
    /// Start writing the object at `path`.
    pub fn start(runtime: &Handle, store: Arc<dyn ObjectStore>, path: Path) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING);
        let task = runtime.spawn(store_pieces(store, path, receiver));
        Self { pieces, buffer: Vec::new(), task }
    }

    /// All bytes are written; the object appears once the returned upload is done.
    pub fn finish(mut self) -> PendingUpload {
        let rest = std::mem::take(&mut self.buffer);
        self.send(Piece::Data(rest));
        self.send(Piece::End);
        PendingUpload(self.task)
    }

    /// Why the store failed, if it already has.
    pub fn failure(&mut self, runtime: &Handle) -> Option<object_store::Error> {
        // the task lets go of its end only when it returns
        self.pieces.is_closed().then(|| wait_for(&mut self.task, runtime).err()).flatten()
    }

    fn send(&self, piece: Piece) {
        // a task that is gone has failed; `failure` and `wait` say why
        let _ = self.pieces.blocking_send(piece);
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            let piece = Piece::Data(std::mem::take(&mut self.buffer));
            self.send(piece);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PendingUpload {
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// Wait for the store's word.
    pub fn wait(mut self, runtime: &Handle) -> object_store::Result<Stored> {
        wait_for(&mut self.0, runtime)
    }
}

fn wait_for(
    task: &mut JoinHandle<object_store::Result<Stored>>,
    runtime: &Handle,
) -> object_store::Result<Stored> {
    match runtime.block_on(task) {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(source) => Err(object_store::Error::JoinError { source }),
        },
    }
}

async fn store_pieces(
    store: Arc<dyn ObjectStore>,
    path: Path,
    mut pieces: mpsc::Receiver<Piece>,
) -> object_store::Result<Stored> {
    let mut writer = BufWriter::with_capacity(store, path, PART_BYTES).with_max_concurrency(PARTS_IN_FLIGHT);
    let (mut bytes, mut sha256) = (0, Sha256::new());
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Data(data) => {
                bytes += data.len() as u64;
                sha256.update(&data);
                writer.put(Bytes::from(data)).await?;
            }
            Piece::End => {
                writer.shutdown().await.map_err(store_error)?;
                return Ok(Stored { bytes, sha256: hex(&sha256.finalize()) });
            }
        }
    }
    writer.abort().await?;
    Err(object_store::Error::Generic { store: "upload", source: "given up before its end".into() })
}

/// The store's own error out of the one that `AsyncWrite` wraps around it.
fn store_error(error: io::Error) -> object_store::Error {
    error
        .downcast()
        .unwrap_or_else(|error| object_store::Error::Generic { store: "upload", source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime")
    }

    #[test]
    fn small_and_large_objects_arrive_whole_with_their_checksum() {
        let runtime = runtime();
        for length in [0, 10, 3 * PART_BYTES + 17] {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let mut upload = Upload::start(runtime.handle(), Arc::clone(&store), Path::from("a"));
            let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            upload.write_all(&data).expect("task alive");
            let stored = upload.finish().wait(runtime.handle()).expect("stored");
            let read = runtime.block_on(async { store.get(&Path::from("a")).await?.bytes().await });
            assert_eq!(read.expect("readable"), data);
            assert_eq!(stored, Stored { bytes: length as u64, sha256: hex(&Sha256::digest(&data)) });
        }
    }

    #[test]
    fn an_upload_that_is_given_up_leaves_nothing() {
        let runtime = runtime();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut upload = Upload::start(runtime.handle(), Arc::clone(&store), Path::from("a"));
        upload.write_all(&vec![1; 2 * PART_BYTES]).expect("task alive");
        let Upload { pieces, task, .. } = upload;
        drop(pieces);
        assert!(PendingUpload(task).wait(runtime.handle()).is_err());
        assert!(runtime.block_on(store.head(&Path::from("a"))).is_err());
    }
}
