//! The files of a job that a worker needs: used where they are, or fetched from the runner.
//!
//! - A file is used from its path in the plan if it exists there with the right content.
//! - Otherwise it is fetched once for each process and content, into a folder that ends with the process.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connection::{WorkerId, connect};
use super::failure::Failure;
use super::payload::{Payload, StagedFile};
use super::proto::job_management::GetArtifactRequest;
use super::proto::job_management::artifact_retrieval_service_client::ArtifactRetrievalServiceClient;
use super::proto::pipeline::{ArtifactInformation, ArtifactStagingToRolePayload};
use crate::config::LabelsSection;
use crate::error::Error;
use crate::plan::hex;

/// How long to wait for the next piece of a file.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// The folder of the files that a process has fetched.
#[derive(Debug, Default)]
pub struct Fetched(Mutex<Option<TempDir>>);

/// The artifacts that the runner offers to a worker.
pub struct Artifacts {
    pub worker: WorkerId,
    pub runtime: Handle,
    /// The address of the runner's service.
    pub address: Option<String>,
    pub offered: Vec<ArtifactInformation>,
    pub fetched: Arc<Fetched>,
}

impl Artifacts {
    /// `payload` with the paths of files that exist here. Blocks.
    ///
    /// # Errors
    /// If a file is neither here nor among the artifacts, or cannot be fetched.
    pub fn localize(&self, payload: &Payload) -> Result<Payload, Failure> {
        if payload.staged.iter().all(|file| has_content(&file.path, &file.sha256)) {
            return Ok(payload.clone());
        }
        let model = payload.file().map_err(Error::from)?.model;
        // weights lie beside their model, so all files are fetched into one folder
        let folder = self.fetched(payload)?;
        let mut payload = payload.clone();
        let mut set = |key: &str, path: &Path| {
            let path = folder.join(place(&model.path, path)).to_string_lossy().into_owned();
            payload.overrides.set.push(format!("model.{key}={}", toml::Value::String(path)));
        };
        set("path", &model.path);
        if let Some(LabelsSection::File(labels)) = &model.labels {
            set("labels", labels);
        }
        Ok(payload)
    }

    /// The folder with all files of a payload. They are fetched if that has not been done before.
    fn fetched(&self, payload: &Payload) -> Result<PathBuf, Failure> {
        let model = payload.file().map_err(Error::from)?.model.path;
        let mut hash = Sha256::new();
        payload.staged.iter().for_each(|file| hash.update(&file.sha256));
        // one worker fetches, and the others wait for it
        let mut fetched = self.fetched.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match &*fetched {
            Some(all) => all,
            None => {
                let made =
                    TempDir::with_prefix("sluice-").map_err(|error| format!("temporary folder: {error}"))?;
                fetched.insert(made)
            }
        };
        let folder = all.path().join(hex(&hash.finalize()));
        for file in &payload.staged {
            let to = folder.join(place(&model, &file.path));
            if !to.exists() {
                self.fetch(file, &to).map_err(Failure::missing)?;
            }
        }
        Ok(folder)
    }

    /// Fetch a file.
    fn fetch(&self, file: &StagedFile, to: &Path) -> Result<(), String> {
        let StagedFile { path, sha256, name, .. } = file;
        let missing = |why: &str| {
            let path = path.display();
            format!(
                "the worker has no {path} with the content that it had where the job was submitted, and {why}"
            )
        };
        let offered = self.offered.iter().find(|artifact| staged_name(artifact).as_deref() == Some(name));
        let offered = offered.ok_or_else(|| missing("the runner does not offer it"))?.clone();
        let address = self.address.as_deref().ok_or_else(|| missing("the runner has no artifact service"))?;
        let failed = |error: io::Error| format!("{}: {error}", to.display());
        let folder = to.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let (partial, into) = NamedTempFile::new_in(folder).map_err(failed)?.into_parts();
        let got = self.runtime.block_on(self.get(address, offered, partial));
        if got.map_err(|error| format!("the artifact {name}: {error}"))? != *sha256 {
            return Err(format!("the artifact {name} has another content than when the job was submitted"));
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
        let mut client = ArtifactRetrievalServiceClient::with_interceptor(channel, self.worker.clone())
            .max_decoding_message_size(usize::MAX);
        let request = GetArtifactRequest { artifact: Some(artifact) };
        let mut data = client.get_artifact(request).await.map_err(|error| error.to_string())?.into_inner();
        let mut sha256 = Sha256::new();
        loop {
            let piece = timeout(PIECE_TIMEOUT, data.message()).await;
            let piece =
                piece.map_err(|_| format!("nothing has arrived for {} s", PIECE_TIMEOUT.as_secs()))?;
            let Some(piece) = piece.map_err(|error| error.to_string())? else { break };
            sha256.update(&piece.data);
            file.write_all(&piece.data).map_err(|error| error.to_string())?;
        }
        Ok(hex(&sha256.finalize()))
    }
}

/// The place of a file in the folder of its model.
fn place<'a>(model: &Path, file: &'a Path) -> &'a Path {
    let beside = model.parent().and_then(|folder| file.strip_prefix(folder).ok());
    beside.or(file.file_name().map(Path::new)).unwrap_or(file)
}

/// The name under which an artifact is staged.
fn staged_name(artifact: &ArtifactInformation) -> Option<String> {
    ArtifactStagingToRolePayload::decode(&artifact.role_payload[..]).ok().map(|role| role.staged_name)
}

/// Whether the file at `path` has this SHA-256.
fn has_content(path: &Path, sha256: &str) -> bool {
    let hash = || {
        let (mut file, mut hash, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
        loop {
            match file.read(&mut piece)? {
                0 => return io::Result::Ok(hex(&hash.finalize())),
                length => hash.update(&piece[..length]),
            }
        }
    };
    hash().is_ok_and(|found| found == sha256)
}
