//! The files of a job that a worker needs: used where they are, or fetched from the runner.
//!
//! - A file is used from its path in the plan if it exists there with the right content.
//! - Otherwise it is fetched once for each process and content. It is removed when the last worker that needs it ends, or
//!   by a later worker if this process is killed: see [`fetched`].
//! - Workers wait for each other only if they need the same files, so a service that does not answer delays its own job
//!   alone.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connection::{WorkerId, connect};
use super::failure::Failure;
use super::payload::{Payload, StagedFile};
use super::proto::job_management::GetArtifactRequest;
use super::proto::job_management::artifact_retrieval_service_client::ArtifactRetrievalServiceClient;
use super::proto::pipeline::{ArtifactInformation, ArtifactStagingToRolePayload};
use super::service_error::words;
use super::staged::is_name_of_content;
use crate::config::LabelsSection;
use crate::engine::hash_file;
use crate::error::Error;
use crate::flow::lock;
use crate::plan::hex;

pub use fetched::Fetched;
use fetched::Folder;

mod fetched;
#[cfg(test)]
mod tests;

/// How long to wait for the next piece of a file.
const PIECE_TIMEOUT: Duration = Duration::from_secs(20);

/// The artifacts that a runner offers to a worker.
pub struct Offer {
    pub worker: WorkerId,
    pub runtime: Handle,
    /// The address of the runner's service.
    pub address: Option<String>,
    pub offered: Vec<ArtifactInformation>,
    pub fetched: Arc<Fetched>,
}

/// Which files of a plan a function needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The labels, which are a part of the plan.
    Labels,
    /// The labels, the model and its weights.
    All,
}

/// The files of one worker.
pub struct Artifacts {
    offer: Offer,
    /// The folders that the worker uses.
    folders: Mutex<HashMap<String, Arc<Folder>>>,
    /// See [`PIECE_TIMEOUT`].
    patience: Duration,
}

impl Artifacts {
    pub fn new(offer: Offer) -> Self {
        Self { offer, folders: Mutex::default(), patience: PIECE_TIMEOUT }
    }

    /// `payload`, with paths on this host for the files that are needed. Blocks.
    ///
    /// # Errors
    /// If a file is neither here nor among the artifacts, or cannot be fetched.
    pub fn localize(&self, payload: &Payload, needs: Needs) -> Result<Payload, Failure> {
        let model = payload.file().map_err(Error::from)?.model;
        let labels = match &model.labels {
            Some(LabelsSection::File(labels)) => Some(labels),
            _ => None,
        };
        let is_needed = |file: &&StagedFile| needs == Needs::All || labels == Some(&file.path);
        let needed: Vec<_> = payload.staged.iter().filter(is_needed).collect();
        if needed.iter().all(|file| hash_file(&file.path).is_ok_and(|found| found == file.sha256)) {
            return Ok(payload.clone());
        }
        // weights lie beside their model, so all files are fetched into one folder
        let folder = self.fetched(payload, &model.path, &needed)?;
        let mut localized = payload.clone();
        let mut set = |key: &str, file: &StagedFile| {
            let path = folder.join(place(&model.path, file)).to_string_lossy().into_owned();
            localized.overrides.set.push(format!("model.{key}={}", toml::Value::String(path)));
        };
        for file in needed {
            if file.path == model.path {
                set("path", file);
            }
            if labels == Some(&file.path) {
                set("labels", file);
            }
        }
        Ok(localized)
    }

    /// The folder with the files `needed`. Those that it lacks are fetched.
    fn fetched(&self, payload: &Payload, model: &Path, needed: &[&StagedFile]) -> Result<PathBuf, Failure> {
        let mut hash = Sha256::new();
        for file in &payload.staged {
            hash.update(&file.sha256);
            hash.update(place(model, file).as_os_str().as_encoded_bytes());
        }
        let folder = self.folder(hex(&hash.finalize()))?;
        // one worker fetches, and the others wait for it
        let _fetching = lock(&folder.fetching);
        for file in needed {
            let to = folder.files().join(place(model, file));
            if !to.exists() {
                self.fetch(file, &to).map_err(Failure::missing)?;
            }
        }
        Ok(folder.files())
    }

    /// The folder for the files with the hash `content`. It exists until this worker ends.
    fn folder(&self, content: String) -> Result<Arc<Folder>, Failure> {
        let mut own = lock(&self.folders);
        if let Some(folder) = own.get(&content) {
            return Ok(Arc::clone(folder));
        }
        let folder = self.offer.fetched.folder(&content);
        let folder = folder.map_err(|error| format!("cannot make a temporary folder: {error}"))?;
        own.insert(content, Arc::clone(&folder));
        Ok(folder)
    }

    /// Fetch a file.
    fn fetch(&self, file: &StagedFile, to: &Path) -> Result<(), String> {
        let StagedFile { path, sha256, name, .. } = file;
        let missing =
            |why: &str| format!("{} is missing or different on the worker, and {why}", path.display());
        let offered = &self.offer.offered;
        let is_offer = |artifact: &&ArtifactInformation| {
            staged_name(artifact).is_some_and(|name| is_name_of_content(&name, sha256))
        };
        let offered = offered.iter().find(is_offer);
        let offered = offered.ok_or_else(|| missing("the runner does not offer it as an artifact"))?.clone();
        let address = self.offer.address.as_deref();
        let address = address.ok_or_else(|| missing("the runner has no artifact service"))?;
        let failed = |error: io::Error| format!("{}: {error}", to.display());
        let folder = to.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let (partial, into) = NamedTempFile::new_in(folder).map_err(failed)?.into_parts();
        let got = self.offer.runtime.block_on(self.get(address, offered, partial));
        let got = got.map_err(|why| missing(&format!("it cannot be fetched from {address}: {why}")))?;
        if got != *sha256 {
            return Err(missing(&format!(
                "the runner's artifact {name} differs from the file that was submitted"
            )));
        }
        into.persist(to).map_err(|error| failed(error.error))?;
        tracing::info!(name, from = address, "fetched an artifact");
        Ok(())
    }

    /// Write an artifact to `file`. Returns its SHA-256.
    async fn get(
        &self,
        address: &str,
        artifact: ArtifactInformation,
        mut file: File,
    ) -> Result<String, String> {
        let channel = connect("artifact service", address).await?;
        let mut client = ArtifactRetrievalServiceClient::with_interceptor(channel, self.offer.worker.clone())
            .max_decoding_message_size(usize::MAX);
        let silent = |_| format!("nothing has arrived for {} s", self.patience.as_secs_f64());
        let request = GetArtifactRequest { artifact: Some(artifact) };
        let answer = timeout(self.patience, client.get_artifact(request)).await.map_err(silent)?;
        let mut data = answer.map_err(|error| words(&error))?.into_inner();
        let mut sha256 = Sha256::new();
        loop {
            let piece = timeout(self.patience, data.message()).await.map_err(silent)?;
            let Some(piece) = piece.map_err(|error| words(&error))? else { break };
            sha256.update(&piece.data);
            file.write_all(&piece.data).map_err(|error| error.to_string())?;
        }
        Ok(hex(&sha256.finalize()))
    }
}

/// The place of a file in the folder of fetched files. Weights keep their place beside the model. Other files have names
/// of their content, since the base name of one may be that of another.
fn place(model: &Path, file: &StagedFile) -> PathBuf {
    let beside = model.parent().and_then(|folder| file.path.strip_prefix(folder).ok());
    let is_below = |path: &&Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    match beside.filter(is_below) {
        Some(path) => Path::new("model").join(path),
        None => Path::new("other").join(&file.name),
    }
}

/// The name under which an artifact is staged.
fn staged_name(artifact: &ArtifactInformation) -> Option<String> {
    ArtifactStagingToRolePayload::decode(&artifact.role_payload[..]).ok().map(|role| role.staged_name)
}
