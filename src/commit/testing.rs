//! Outputs for tests.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::body::Body;
use super::footer::{BODY, RUN_ID};
use super::names::MANIFEST;
use super::output::{Output, json};
use super::record::RunRecord;
use super::upload::{Stored, Upload};

/// A part of the run `run_id` without rows, with `footer` in its footer.
pub fn part(run_id: &str, footer: &[(&str, &str)]) -> Vec<u8> {
    let pairs = [&[(RUN_ID, run_id)], footer].concat();
    let pairs = pairs.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs.collect())).build();
    let schema = Arc::new(Schema::empty());
    let mut file = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut file, Arc::clone(&schema), Some(properties)).expect("a writer");
    writer.write(&RecordBatch::new_empty(schema)).expect("no rows");
    writer.flush().expect("no row group");
    writer.sync().expect("to memory");
    let body = Body::of(writer.inner()).to_string();
    writer.append_key_value_metadata(KeyValue::new(BODY.to_owned(), body));
    writer.close().expect("a footer");
    file
}

/// Publish a [`part`] under `name`.
pub fn store_part(output: &Output, run_id: &str, name: &str, footer: &[(&str, &str)]) -> Stored {
    let mut upload = Upload::start(output, run_id);
    upload.write_all(&part(run_id, footer)).expect("a buffer takes anything");
    upload.finish(name).wait().expect("stored")
}

/// The record of the run `run_id`.
pub fn record(run_id: &str) -> RunRecord {
    RunRecord {
        schema_version: "1".to_owned(),
        sluice_version: "0.1.0".to_owned(),
        run_id: run_id.to_owned(),
        started_at: "2026-11-23T00:00:00Z".to_owned(),
        plan_sha256: String::new(),
        limit: None,
        determinants: serde_json::Value::Null,
        removing: None,
    }
}

/// Publish a manifest without parts for the run `run_id`, as another attempt does that finishes the run.
pub fn seal(output: &Output, run_id: &str) {
    let summary = serde_json::json!({"outcome": "succeeded", "rows": 0, "rows_by_status": {}});
    let manifest = serde_json::json!({
        "run_id": run_id, "finished_at": "", "plan_sha256": "", "model_sha256": "", "limit": null,
        "summary": summary, "parts": [], "batches": [], "record": {"path": "", "bytes": 0, "sha256": ""},
    });
    output.create(MANIFEST, json(&manifest)).expect("created");
}

/// An empty output in memory.
pub fn in_memory(runtime: &tokio::runtime::Runtime) -> Output {
    let store = Arc::new(InMemory::new());
    let root = Path::from("a/b");
    Output::new(store, root, "gs://bucket/a/b".to_owned(), None, runtime.handle().clone())
}

/// A store in memory that calls a hook with the number of each moment before and after a request.
pub struct Hooked {
    pub inner: Arc<InMemory>,
    moments: Arc<AtomicU64>,
    hook: Hook,
    /// Whether a copy reads its source in one request and creates the object in another, as on S3.
    copies_in_steps: bool,
}

type Hook = Arc<dyn Fn(u64) -> Result<()> + Send + Sync>;

impl Hooked {
    pub fn new(
        inner: InMemory,
        copies_in_steps: bool,
        hook: impl Fn(u64) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(inner), moments: Arc::default(), hook: Arc::new(hook), copies_in_steps }
    }

    async fn moment(&self) -> Result<()> {
        moment(Arc::clone(&self.moments), Arc::clone(&self.hook)).await
    }
}

async fn moment(moments: Arc<AtomicU64>, hook: Hook) -> Result<()> {
    let number = moments.fetch_add(1, SeqCst);
    // the hook may make requests of its own and wait for them
    tokio::task::spawn_blocking(move || hook(number)).await.expect("the hook does not panic")
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with a hook")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.moment().await?;
        let put = self.inner.put_opts(path, payload, options).await?;
        self.moment().await?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.moment().await?;
        let got = self.inner.get_opts(path, options).await;
        self.moment().await?;
        got
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let begin = moment(Arc::clone(&self.moments), Arc::clone(&self.hook));
        let end = moment(Arc::clone(&self.moments), Arc::clone(&self.hook));
        let deleted = self.inner.delete_stream(paths);
        let nothing = |done: Result<()>| futures_util::future::ready(done.err().map(Err));
        let begin = futures_util::stream::once(begin).filter_map(nothing);
        begin.chain(deleted).chain(futures_util::stream::once(end).filter_map(nothing)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.moment().await?;
        if self.copies_in_steps {
            let source = self.inner.get(from).await?.bytes().await?;
            self.moment().await?;
            self.inner.put_opts(to, source.into(), PutMode::Create.into()).await?;
        } else {
            self.inner.copy_opts(from, to, options).await?;
        }
        self.moment().await
    }
}
