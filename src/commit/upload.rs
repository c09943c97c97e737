//! Uploading: an object is staged while it is written, and published under its name at its end.
//!
//! - The bytes are stored under `_staging/`: small objects with one put, larger ones with a multipart upload. The final
//!   name is given at the end; [`super::fence`] decides whether the object may have it.
//! - An upload that is dropped before [`Upload::finish`] leaves nothing. A process that dies may leave a staged object.
//! - The bytes flow through a bounded channel to a task, so the next part is written while the store acknowledges the
//!   last one.

use std::io::{self, Write};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::body::Body;
use super::fence::publish_staged;
use super::output::{Output, PUT_BYTES, PUTS_IN_FLIGHT};
use super::record::check_current_async;
use crate::error::SinkError;
use crate::plan::hex;
use crate::store::retry::{again, was_repeated};

/// Bytes handed to the task at a time, and how many such pieces may wait. 4 MiB in all keep a fast store busy while the
/// next row group is encoded.
const PIECE_BYTES: usize = 1 << 20;
const PIECES_WAITING: usize = 4;

/// The most memory that one upload holds: the pieces handed over and the one being filled, the part of the multipart
/// upload being filled, and the parts in flight.
pub const UPLOAD_BYTES: u64 = ((PIECES_WAITING + 2) * PIECE_BYTES + (1 + PUTS_IN_FLIGHT) * PUT_BYTES) as u64;

/// How many times to publish an object in memory: another attempt may remove its staged object each time.
const PUBLISHING_TRIES: u32 = 3;

/// An object that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Whether the name existed and was left as it is: another attempt's object, or this very one, if the answer to its
    /// creation was lost.
    pub was_there: bool,
}

/// An object being written.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    /// Length and checksum of the bytes written so far.
    body: Body,
    task: Task,
    runtime: Handle,
}

/// An upload whose bytes are complete and which the store has yet to acknowledge.
#[derive(Debug)]
pub struct PendingUpload {
    task: Task,
    runtime: Handle,
}

/// The task that stores the bytes. `None` once it has returned its error.
type Task = Option<JoinHandle<Result<Stored, SinkError>>>;

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    /// Publish the bytes under this name. If the channel ends without it, the upload was abandoned.
    End(String),
}

impl Upload {
    /// Begin an object of the run `run_id`.
    pub fn start(output: &Output, run_id: &str) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING);
        let task = store_pieces(output.clone(), run_id.to_owned(), receiver);
        let runtime = output.runtime().clone();
        Self { pieces, buffer: Vec::new(), body: Body::default(), task: Some(runtime.spawn(task)), runtime }
    }

    /// Length and checksum of the bytes written so far.
    pub fn body(&self) -> Body {
        self.body
    }

    /// End the object. It appears under `name` once the returned upload is done.
    pub fn finish(mut self, name: &str) -> PendingUpload {
        let rest = std::mem::take(&mut self.buffer);
        self.send(Piece::Data(rest));
        self.send(Piece::End(name.to_owned()));
        PendingUpload { task: self.task, runtime: self.runtime }
    }

    /// The error of the store, if it has failed. Later calls, and [`PendingUpload::wait`], fail as well.
    pub fn failure(&mut self) -> Option<SinkError> {
        // the task drops its end only when it returns
        self.pieces.is_closed().then(|| wait_for(&mut self.task, &self.runtime).err()).flatten()
    }

    fn send(&self, piece: Piece) {
        // a task that has ended has failed; `failure` and `wait` return its error
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
    /// Wait until the object is published.
    pub fn wait(mut self) -> Result<Stored, SinkError> {
        wait_for(&mut self.task, &self.runtime)
    }
}

fn wait_for(task: &mut Task, runtime: &Handle) -> Result<Stored, SinkError> {
    let failed = |message: String| SinkError::Uri { uri: "upload".to_owned(), message };
    let Some(task) = task.take() else { return Err(failed("failed before".to_owned())) };
    match runtime.block_on(task) {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(failed(error.to_string())),
        },
    }
}

/// Store the bytes that arrive through `pieces`, and publish them.
async fn store_pieces(
    output: Output,
    run_id: String,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Stored, SinkError> {
    let staged = output.staging_path();
    let mut sha256 = Sha256::new();
    let result = async {
        let (bytes, name) = stage(&output, &staged, &mut pieces, &mut sha256).await?;
        let created = publish_staged(&output, &run_id, &staged, &name).await?;
        Ok(Stored { bytes, sha256: hex(&sha256.finalize()), was_there: !created })
    }
    .await;
    or_other_run(&output, &run_id, result).await
}

/// `result`, with [`SinkError::OtherRun`] in place of an error that the removal of the run has caused: the removal
/// deletes staged objects, too.
async fn or_other_run<T>(
    output: &Output,
    run_id: &str,
    result: Result<T, SinkError>,
) -> Result<T, SinkError> {
    match result {
        Err(SinkError::Storage(error)) if !was_repeated(&error.source) => {
            match check_current_async(output, run_id).await {
                Err(other @ SinkError::OtherRun { .. }) => Err(other),
                _ => Err(error.into()),
            }
        }
        result => result,
    }
}

/// Store the bytes that arrive through `pieces` at `staged`. Returns their number and the final name.
async fn stage(
    output: &Output,
    staged: &Path,
    pieces: &mut mpsc::Receiver<Piece>,
    sha256: &mut Sha256,
) -> Result<(u64, String), SinkError> {
    let store = output.store();
    let failed = |source| output.failed(&output.name_of(staged), source);
    let (mut bytes, mut small, mut small_bytes) = (0, Vec::new(), 0);
    let mut parts: Option<WriteMultipart> = None;
    let name = loop {
        let data = match pieces.recv().await {
            Some(Piece::Data(data)) => Bytes::from(data),
            Some(Piece::End(name)) => break name,
            None => {
                if let Some(parts) = parts {
                    parts.abort().await.map_err(failed)?;
                }
                let message = "the upload was abandoned".to_owned();
                return Err(SinkError::Uri { uri: output.uri().to_owned(), message });
            }
        };
        bytes += data.len() as u64;
        let max_bytes = output.copying.max_bytes;
        if bytes > max_bytes {
            if let Some(parts) = parts {
                let _ = parts.abort().await;
            }
            let message = format!(
                "a part has more than {max_bytes} bytes, the largest object that this store copies; make the \
                 shards smaller, or store fewer scores (output.scores)"
            );
            return Err(SinkError::Uri { uri: output.uri().to_owned(), message });
        }
        sha256.update(&data);
        if let Some(mut begun) = parts.take() {
            if let Err(error) = begun.wait_for_capacity(PUTS_IN_FLIGHT).await {
                // stored parts of an upload cost money until it is aborted; `error` says more than a failure to do so
                let _ = begun.abort().await;
                return Err(failed(error));
            }
            begun.put(data);
            parts = Some(begun);
            continue;
        }
        small_bytes += data.len();
        small.push(data);
        if small_bytes > PUT_BYTES {
            let upload = again(|| store.put_multipart(staged)).await.map_err(failed)?;
            let begun = parts.insert(WriteMultipart::new_with_chunk_size(upload, PUT_BYTES));
            small.drain(..).for_each(|data| begun.put(data));
        }
    };
    match parts {
        None => {
            let content = PutPayload::from_iter(small);
            // on a disk, an attempt that has finished the run may be removing the folder
            again(|| store.put(staged, content.clone())).await.map_err(failed)?;
        }
        Some(parts) => output.complete(parts, staged, bytes).await.map_err(failed)?,
    }
    Ok((bytes, name))
}

/// Publish an object that is held in memory. Returns whether it was created.
///
/// # Errors
/// Those of the store, and [`SinkError::OtherRun`] if the output no longer belongs to the run `run_id`.
pub(super) fn publish(output: &Output, run_id: &str, name: &str, content: &[u8]) -> Result<bool, SinkError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut upload = Upload::start(output, run_id);
        upload.body.add(content);
        upload.buffer = content.to_vec();
        match upload.finish(name).wait() {
            // another attempt has removed the staged object, because the parts of the run are decided
            Err(SinkError::Storage(error))
                if tries < PUBLISHING_TRIES && matches!(error.source, Error::NotFound { .. }) => {}
            stored => return Ok(!stored?.was_there),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::local::LocalFileSystem;
    use object_store::memory::InMemory;

    use super::*;
    use crate::commit::attempts::AttemptNote;
    use crate::commit::claim::claim;
    use crate::commit::output::json;
    use crate::commit::testing::{Hooked, in_memory, record};
    use crate::error::Retry;

    const NAME: &str = "predictions/part-000007-0123456789ab.parquet";

    fn begun(output: Output) -> Output {
        claim(&output, &record("run"), &AttemptNote::begun(0, 1)).expect("an empty output");
        output
    }

    fn on_disk(folder: &tempfile::TempDir, runtime: &tokio::runtime::Runtime) -> Output {
        let store = LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let local = folder.path().join("out");
        Output::new(
            Arc::new(store),
            Path::from("out"),
            "out".to_owned(),
            Some(local),
            runtime.handle().clone(),
        )
    }

    #[test]
    fn small_and_large_objects_arrive_whole_with_their_checksum() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        for length in [0, 10, 3 * PUT_BYTES + 17] {
            let folder = tempfile::tempdir().expect("folder");
            for output in [begun(in_memory(&runtime)), begun(on_disk(&folder, &runtime))] {
                let upload = |data: &[u8]| {
                    let mut upload = Upload::start(&output, "run");
                    upload.write_all(data).expect("a buffer takes anything");
                    upload.finish(NAME).wait().expect("stored")
                };
                let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                let sha256 = hex(&Sha256::digest(&data));
                let stored = Stored { bytes: length as u64, sha256, was_there: false };
                assert_eq!(upload(&data), stored);
                assert_eq!(output.read(NAME).expect("readable"), data);

                // a second attempt at the same object finds the first one's
                assert!(upload(&vec![7; length + 1]).was_there);
                assert_eq!(output.read(NAME).expect("readable"), data);
                let listing = crate::commit::listing::OutputListing::read(&output).expect("a listing");
                assert_eq!(listing.staged, [""; 0], "a staged object is left");
            }
        }
    }

    #[test]
    fn a_small_object_is_staged_again_when_its_folder_is_removed_meanwhile() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let store = Hooked::new(InMemory::new(), false, |moment| {
            if moment > 0 {
                return Ok(());
            }
            let source = io::Error::from(io::ErrorKind::NotFound).into();
            Err(Error::Generic { store: "test", source })
        });
        let inner = Output::new(
            Arc::clone(&store.inner) as _,
            Path::from("a"),
            "a".to_owned(),
            None,
            runtime.handle().clone(),
        );
        inner.create(super::super::names::RUN, json(&record("run"))).expect("created");
        let output =
            Output::new(Arc::new(store), Path::from("a"), "a".to_owned(), None, runtime.handle().clone());
        let mut upload = Upload::start(&output, "run");
        upload.write_all(b"rows").expect("a buffer takes anything");
        assert!(!upload.finish(NAME).wait().expect("stored").was_there);
    }

    #[test]
    fn an_object_that_is_too_large_to_be_copied_is_refused_while_it_is_written() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let mut output = begun(in_memory(&runtime));
        output.copying.max_bytes = 3 * PUT_BYTES as u64;
        let mut upload = Upload::start(&output, "run");
        upload.write_all(&vec![1; 3 * PUT_BYTES + 1]).expect("a buffer takes anything");
        let error = upload.finish(NAME).wait().expect_err("it is too large");
        assert!(error.to_string().contains("output.scores"), "{error}");
        assert_eq!(error.retry(), Retry::Never);
        let listing = crate::commit::listing::OutputListing::read(&output).expect("a listing");
        assert_eq!((listing.predictions.len(), listing.staged.len()), (0, 0));
        let content = vec![1; 3 * PUT_BYTES];
        assert!(publish(&output, "run", NAME, &content).expect("published"));
    }

    #[test]
    fn an_upload_that_is_given_up_leaves_nothing() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let output = begun(in_memory(&runtime));
        let mut upload = Upload::start(&output, "run");
        upload.write_all(&vec![1; 2 * PUT_BYTES]).expect("a buffer takes anything");
        let Upload { pieces, task, runtime, .. } = upload;
        drop(pieces);
        assert!(PendingUpload { task, runtime }.wait().is_err());
        let listing = crate::commit::listing::OutputListing::read(&output).expect("a listing");
        assert_eq!((listing.predictions.len(), listing.staged.len()), (0, 0));
    }

    #[test]
    fn an_upload_that_has_failed_says_so_whenever_it_is_asked() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let folder = tempfile::tempdir().expect("folder");
        let output = begun(on_disk(&folder, &runtime));
        // a file where the upload needs a folder
        let staging = folder.path().join("out/_staging");
        std::fs::remove_dir_all(&staging).expect("a folder");
        std::fs::write(staging, b"").expect("a file");
        let mut upload = Upload::start(&output, "run");
        let mut failure = None;
        while failure.is_none() {
            upload.write_all(&vec![1; PUT_BYTES]).expect("a buffer takes anything");
            failure = upload.failure();
        }
        assert!(!failure.expect("a reason").to_string().contains("failed before"));
        upload.write_all(&vec![1; PUT_BYTES]).expect("a buffer takes anything");
        let again = upload.failure().expect("it has failed");
        assert!(again.to_string().contains("failed before"), "{again}");
        let pending = upload.finish(NAME);
        pending.wait().expect_err("it has failed");
    }
}
