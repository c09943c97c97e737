//! The async runtime of object stores.

/// A small async runtime for object stores; everything else runs on its own threads.
pub fn storage_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("storage")
        .enable_all()
        .build()?)
}
