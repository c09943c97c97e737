//! One object on its way to the store: whole or not at all.
//!
//! - The object appears only when its last byte is stored, and only if there is none of that name: a
//!   small one by a put that creates, a larger one by a multipart upload to a name of its own, which is
//!   then copied by a request that creates. Of attempts that race one wins, and the others are told.
//!   (A put to a disk leaves its bytes under a neighbouring name when it is killed, so that on a disk
//!   small objects go the way of larger ones.)
//! - What it is to be called is said at its end.
//! - An upload that is dropped before [`Upload::finish`] leaves nothing behind; one whose process dies
//!   may leave an object under [`STAGING`].
//! - The bytes flow through a bounded channel to a task, so that writing the next part never
//!   waits for the store to acknowledge the last.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fence::Fence;
use crate::plan::hex;
use crate::store::retry::{self, again};

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

/// Folder below the output for what is not published yet.
pub const STAGING: &str = "_staging";

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Whether an object of that name was there before, which was left as it is: another attempt's, or this very one,
    /// if the answer to its creation was lost.
    pub was_there: bool,
}

/// Where the bytes of an upload wait to be published.
#[derive(Debug, Clone)]
pub struct Staging {
    pub path: Path,
    /// Whether to use it for the smallest object, too.
    pub always: bool,
    /// Whose object it is, if what another run has left of that name is to be replaced.
    pub fence: Option<Fence>,
}

/// The first bytes of an object: how many, and their CRC-32C.
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

    /// As it was written.
    pub fn parse(said: &str) -> Option<Self> {
        let (bytes, crc32c) = said.split_once(' ')?;
        Some(Self { bytes: bytes.parse().ok()?, crc32c: u32::from_str_radix(crc32c, 16).ok()? })
    }

    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether it is what `whole` is without `rest`, its end.
    pub fn is_without(self, whole: Self, rest: &[u8]) -> bool {
        self.bytes + rest.len() as u64 == whole.bytes
            && crc32c::crc32c_combine(self.crc32c, crc32c::crc32c(rest), rest.len()) == whole.crc32c
    }

    /// Whether `object` begins with the bytes of which `said` was written.
    pub fn is_of(said: &str, object: &[u8]) -> bool {
        let bytes = said.split(' ').next().and_then(|bytes| bytes.parse::<usize>().ok());
        let first = bytes.and_then(|bytes| object.get(..bytes));
        first.is_some_and(|first| Self::of(first).to_string() == said)
    }
}

impl std::fmt::Display for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:08x}", self.bytes, self.crc32c)
    }
}

/// An object being written.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    /// What has been written.
    body: Body,
    task: Task,
}

/// An upload whose bytes are complete and which the store has yet to acknowledge.
#[derive(Debug)]
pub struct PendingUpload(Task);

/// What stores; `None` once it has told why it failed.
type Task = Option<JoinHandle<object_store::Result<Stored>>>;

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    /// Publish all that under this name. Without it the end of the channel means that the upload was
    /// given up.
    End(Path),
}

impl Upload {
    /// Start writing an object; `staging` is nobody else's.
    pub fn start(runtime: &Handle, store: Arc<dyn ObjectStore>, staging: Staging) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING);
        let task = runtime.spawn(store_pieces(store, staging, receiver));
        Self { pieces, buffer: Vec::new(), body: Body::default(), task: Some(task) }
    }

    /// What has been written so far.
    pub fn body(&self) -> Body {
        self.body
    }

    /// All bytes are written; the object appears at `path` once the returned upload is done.
    pub fn finish(mut self, path: Path) -> PendingUpload {
        let rest = std::mem::take(&mut self.buffer);
        self.send(Piece::Data(rest));
        self.send(Piece::End(path));
        PendingUpload(self.task)
    }

    /// Why the store failed, if it already has. Whoever asks again, or goes on, is told that it has.
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
        self.body.add(bytes);
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
    /// Wait for the store's word.
    pub fn wait(mut self, runtime: &Handle) -> object_store::Result<Stored> {
        wait_for(&mut self.0, runtime)
    }
}

fn wait_for(task: &mut Task, runtime: &Handle) -> object_store::Result<Stored> {
    let Some(task) = task.take() else { return Err(given_up("failed before")) };
    match runtime.block_on(task) {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(source) => Err(object_store::Error::JoinError { source }),
        },
    }
}

fn given_up(why: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "upload", source: why.into() }
}

async fn store_pieces(
    store: Arc<dyn ObjectStore>,
    staging: Staging,
    mut pieces: mpsc::Receiver<Piece>,
) -> object_store::Result<Stored> {
    let (mut bytes, mut sha256) = (0, Sha256::new());
    let (mut held, mut held_bytes) = (Vec::new(), 0);
    let mut parts: Option<WriteMultipart> = None;
    let path = loop {
        let data = match pieces.recv().await {
            Some(Piece::Data(data)) => Bytes::from(data),
            Some(Piece::End(path)) => break path,
            None => {
                if let Some(parts) = parts {
                    parts.abort().await?;
                }
                return Err(given_up("given up before its end"));
            }
        };
        bytes += data.len() as u64;
        sha256.update(&data);
        if let Some(mut begun) = parts.take() {
            if let Err(error) = begun.wait_for_capacity(PARTS_IN_FLIGHT).await {
                // what is stored of it would cost money for ever; `error` says more than a failure of this
                let _ = begun.abort().await;
                return Err(error);
            }
            begun.put(data);
            parts = Some(begun);
            continue;
        }
        held_bytes += data.len();
        held.push(data);
        if held_bytes > PART_BYTES {
            let upload = again(|| store.put_multipart(&staging.path)).await?;
            let begun = parts.insert(WriteMultipart::new_with_chunk_size(upload, PART_BYTES));
            held.drain(..).for_each(|data| begun.put(data));
        }
    };
    let published = match parts {
        None => create_small(&store, &staging, &path, PutPayload::from_iter(held)).await,
        Some(parts) => {
            finished(parts, &store, &staging.path, bytes).await?;
            publish(&store, &staging, &path).await
        }
    };
    let was_there = match published {
        Ok(()) => false,
        Err(object_store::Error::AlreadyExists { .. }) => true,
        Err(error) => return Err(error),
    };
    Ok(Stored { bytes, sha256: hex(&sha256.finalize()), was_there })
}

/// Create an object, by way of `staging` if need be. One of the same content is taken for the one created here.
pub(super) async fn create(
    store: &Arc<dyn ObjectStore>,
    staging: &Staging,
    path: &Path,
    content: Bytes,
) -> object_store::Result<()> {
    let created = if content.len() <= PART_BYTES {
        create_small(store, staging, path, content.clone().into()).await
    } else {
        replace(store, &staging.path, content.clone()).await?;
        publish(store, staging, path).await
    };
    match created {
        Err(object_store::Error::AlreadyExists { .. }) if holds(store, path, &content).await? => Ok(()),
        created => created,
    }
}

/// Whether what is at `path` is `content`: after a request that creates was answered with "already exists", it may
/// have been carried out before, its answer lost, and the request repeated.
pub(super) async fn holds(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    content: &Bytes,
) -> object_store::Result<bool> {
    let look = again(|| async {
        let found = store.get(path).await?;
        if found.meta.size == content.len() as u64 { found.bytes().await.map(Some) } else { Ok(None) }
    });
    match look.await {
        Ok(found) => Ok(found.is_some_and(|found| found == content)),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Store an object in place of what is there: in parts, where one request might take longer than it may.
pub(super) async fn replace(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    content: Bytes,
) -> object_store::Result<()> {
    if content.len() <= PART_BYTES {
        return store.put(path, content.into()).await.map(drop);
    }
    let upload = again(|| store.put_multipart(path)).await?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    for part in (0..content.len()).step_by(PART_BYTES) {
        if let Err(error) = parts.wait_for_capacity(PARTS_IN_FLIGHT).await {
            let _ = parts.abort().await;
            return Err(error);
        }
        parts.put(content.slice(part..content.len().min(part + PART_BYTES)));
    }
    finished(parts, store, path, content.len() as u64).await
}

/// Complete an upload to `path`. The answer may be lost, and only that.
async fn finished(
    parts: WriteMultipart,
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
) -> object_store::Result<()> {
    let Err(error) = parts.finish().await else { return Ok(()) };
    match store.head(path).await {
        Ok(there) if there.size == bytes => Ok(()),
        _ => Err(error),
    }
}

/// Create a small object, by way of `staging` if need be.
async fn create_small(
    store: &Arc<dyn ObjectStore>,
    staging: &Staging,
    path: &Path,
    content: PutPayload,
) -> object_store::Result<()> {
    if !staging.always {
        return first_at(store, path, staging, || retry::create(store, path, content.clone())).await;
    }
    // on a disk whoever has finished the run may remove the folder just now
    again(|| store.put(&staging.path, content.clone())).await?;
    publish(store, staging, path).await
}

/// Create at `path` by `create`, which tells whether there was nothing; once more if another run's was removed.
async fn first_at<F: Future<Output = object_store::Result<bool>>>(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    staging: &Staging,
    create: impl Fn() -> F,
) -> object_store::Result<()> {
    let mut first = create().await?;
    if let (false, Some(fence)) = (first, &staging.fence)
        && fence.displace(store, path).await?
    {
        first = create().await?;
    }
    created(path, first)
}

/// Copy what is whole at `staging` to `path`, unless something is there already.
async fn publish(store: &Arc<dyn ObjectStore>, staging: &Staging, path: &Path) -> object_store::Result<()> {
    let copy = || again(|| store.copy_if_not_exists(&staging.path, path));
    let look = || again(|| async { store.head(path).await.map(drop) });
    let copied = first_at(store, path, staging, || retry::create_by(copy, look)).await;
    let removed = store.delete(&staging.path).await;
    match (copied, removed) {
        // an attempt that finished the run has tidied up after all others
        (Err(object_store::Error::NotFound { .. }), _) if store.head(path).await.is_ok() => {
            created(path, false)
        }
        (copied, Err(error)) => {
            tracing::debug!(%error, "a staged object is left");
            copied
        }
        (copied, Ok(())) => copied,
    }
}

/// Who was not first is told so.
fn created(path: &Path, first: bool) -> object_store::Result<()> {
    if first {
        return Ok(());
    }
    Err(object_store::Error::AlreadyExists {
        path: path.to_string(),
        source: "published by another attempt".into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use futures_util::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStoreExt,
        PutMultipartOptions, PutOptions, PutResult,
    };

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("runtime")
    }

    #[test]
    fn small_and_large_objects_arrive_whole_with_their_checksum() {
        let runtime = runtime();
        for (length, always) in [(0, false), (0, true), (10, false), (10, true), (3 * PART_BYTES + 17, false)]
        {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let upload = |data: &[u8]| {
                let mut upload = start(&runtime, &store, always);
                upload.write_all(data).expect("task alive");
                upload.finish(Path::from("a")).wait(runtime.handle()).expect("stored")
            };
            let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let sha256 = hex(&Sha256::digest(&data));
            let stored = Stored { bytes: length as u64, sha256, was_there: false };
            assert_eq!(upload(&data), stored);
            let there = || runtime.block_on(async { store.get(&Path::from("a")).await?.bytes().await });
            assert_eq!(there().expect("readable"), data);

            // a second attempt at the same object finds the first one's
            assert!(upload(&vec![7; length]).was_there);
            assert_eq!(there().expect("readable"), data);
            assert!(runtime.block_on(store.head(&Path::from("staged"))).is_err(), "a staged object is left");
        }
    }

    fn start(runtime: &tokio::runtime::Runtime, store: &Arc<dyn ObjectStore>, always: bool) -> Upload {
        let staging = Staging { path: Path::from("staged"), always, fence: None };
        Upload::start(runtime.handle(), Arc::clone(store), staging)
    }

    /// A store whose folder of staged objects is removed while the first one is put there.
    #[derive(Debug, Default)]
    struct TidiedUp {
        inner: InMemory,
        puts: AtomicUsize,
    }

    impl std::fmt::Display for TidiedUp {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a store that is tidied up")
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for TidiedUp {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            options: PutOptions,
        ) -> object_store::Result<PutResult> {
            if self.puts.fetch_add(1, Relaxed) == 0 {
                let source = io::Error::from(io::ErrorKind::NotFound).into();
                return Err(object_store::Error::Generic { store: "test", source });
            }
            self.inner.put_opts(location, payload, options).await
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            options: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(location, options).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
            self.inner.get_opts(location, options).await
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    #[test]
    fn a_small_object_is_staged_again_when_its_folder_is_removed_meanwhile() {
        let runtime = runtime();
        let store: Arc<dyn ObjectStore> = Arc::new(TidiedUp::default());
        let mut upload = start(&runtime, &store, true);
        upload.write_all(b"rows").expect("task alive");
        assert!(!upload.finish(Path::from("a")).wait(runtime.handle()).expect("stored").was_there);
    }

    #[test]
    fn an_upload_that_is_given_up_leaves_nothing() {
        let runtime = runtime();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut upload = start(&runtime, &store, false);
        upload.write_all(&vec![1; 2 * PART_BYTES]).expect("task alive");
        let Upload { pieces, task, .. } = upload;
        drop(pieces);
        assert!(PendingUpload(task).wait(runtime.handle()).is_err());
        assert!(runtime.block_on(store.head(&Path::from("a"))).is_err());
    }

    #[test]
    fn an_upload_that_has_failed_says_so_whenever_it_is_asked() {
        let runtime = runtime();
        let folder = tempfile::tempdir().expect("folder");
        let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let store: Arc<dyn ObjectStore> = Arc::new(local);
        // a file where the upload wants a folder
        std::fs::write(folder.path().join("staged"), b"").expect("a file");
        let staging = Staging { path: Path::from("staged/below"), always: false, fence: None };
        let mut upload = Upload::start(runtime.handle(), store, staging);
        let mut failure = None;
        while failure.is_none() {
            upload.write_all(&vec![1; PART_BYTES]).expect("a buffer takes anything");
            failure = upload.failure(runtime.handle());
        }
        assert!(!failure.expect("a reason").to_string().contains("failed before"));
        upload.write_all(&vec![1; PART_BYTES]).expect("a buffer takes anything");
        let again = upload.failure(runtime.handle()).expect("it has failed");
        assert!(again.to_string().contains("failed before"), "{again}");
        let pending = upload.finish(Path::from("a"));
        pending.wait(runtime.handle()).expect_err("it has failed");
    }
}
