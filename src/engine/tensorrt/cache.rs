//! Engines that were built from ONNX files, kept for the next run.
//!
//! - They lie in `$SLUICE_CACHE_DIR`, else `$XDG_CACHE_HOME/sluice`, else `~/.cache/sluice`, each
//!   under a name that follows from everything it depends on.
//! - A lock file keeps two processes from building the same engine at once: the second waits and
//!   then finds it. An engine is visible only when whole.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::{BuildOptions, FLAVOUR, Passport, Profile, VERSION, build, seconds};
use crate::engine::cuda::Device;
use crate::error::EngineError;
use crate::plan::hex;

/// The serialized engine of the ONNX file at `model` for `device`, from the cache or built now.
pub fn load_or_build(
    model: &Path,
    model_sha256: &str,
    device: &Device,
    profile: &Profile,
) -> Result<Vec<u8>, EngineError> {
    let folder = folder().map_err(|message| EngineError::Cache { message })?;
    let path = folder.join(format!("{}.engine", key(model_sha256, device, profile)));
    let fail = |error: std::io::Error| EngineError::Cache { message: format!("{}: {error}", path.display()) };
    std::fs::create_dir_all(&folder).map_err(fail)?;
    let lock = File::create(path.with_extension("lock")).map_err(fail)?;
    lock.lock().map_err(fail)?;
    if let Some(serialized) = kept(&path, device)? {
        return Ok(serialized);
    }
    tracing::info!(
        model = %model.display(),
        gpu = device.name,
        engine = %path.display(),
        "building an engine: none is kept for this model, GPU and batch size"
    );
    let start = Instant::now();
    let serialized = build(device, model, profile, &BuildOptions::default())
        .map_err(|message| EngineError::Load { path: model.to_owned(), message })?;
    let passport = Passport::issue(model_sha256, &serialized, device, profile);
    write_whole(&path, &serialized, &passport).map_err(fail)?;
    tracing::info!(engine = %path.display(), took = seconds(start.elapsed()), "engine built");
    Ok(serialized)
}

/// The kernels that were compiled for an engine on a kind of device, kept for the next run. Without
/// them it takes some seconds longer to start, so nothing that goes wrong here is an error.
#[derive(Debug)]
pub struct Kernels(Option<PathBuf>);

impl Kernels {
    /// Where the kernels of the engine `serialized` on `device` are kept.
    pub fn of(serialized: &[u8], device: &Device) -> Self {
        let text = format!(
            "{} {FLAVOUR} {VERSION} {} {:?}",
            hex(&Sha256::digest(serialized)),
            device.name,
            device.compute_capability
        );
        let name = format!("{}.kernels", &hex(&Sha256::digest(text))[..32]);
        Self(folder().ok().map(|folder| folder.join(name)))
    }

    pub fn read(&self) -> Option<Vec<u8>> {
        std::fs::read(self.0.as_ref()?).ok()
    }

    /// Keep `kernels`, unless they are kept already.
    pub fn write(&self, kernels: Result<Vec<u8>, String>) {
        let Some(path) = &self.0 else { return };
        let written = kernels.and_then(|kernels| {
            if kernels.is_empty() || self.read().is_some_and(|kept| kept.len() == kernels.len()) {
                return Ok(());
            }
            let write = || {
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
                replace(path, &kernels)
            };
            write().map_err(|error| error.to_string())
        });
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), error, "kernels are not kept");
        }
    }
}

/// The engine at `path`, if it is there and sound; a damaged one is built anew.
fn kept(path: &Path, device: &Device) -> Result<Option<Vec<u8>>, EngineError> {
    let Some(passport) = Passport::beside(path).unwrap_or_default() else { return Ok(None) };
    let Ok(serialized) = std::fs::read(path) else { return Ok(None) };
    match passport.check(path, &serialized, device) {
        Ok(()) => Ok(Some(serialized)),
        Err(error) => {
            tracing::warn!(%error, "a kept engine is not used");
            Ok(None)
        }
    }
}

/// Write an engine and then its passport, each whole or not at all.
pub fn write_whole(path: &Path, serialized: &[u8], passport: &Passport) -> std::io::Result<()> {
    let passport = serde_json::to_vec_pretty(passport)?;
    replace(path, serialized)?;
    replace(&Passport::path(path), &passport)
}

/// Write a file so that it is seen whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, bytes)?;
    std::fs::rename(&part, path)
}

/// Where engines are kept.
pub fn folder() -> Result<PathBuf, String> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("SLUICE_CACHE_DIR")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("sluice")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/sluice")))
        .ok_or_else(|| "there is no HOME and no SLUICE_CACHE_DIR to keep engines in".to_owned())
}

/// Everything an engine depends on.
fn key(model_sha256: &str, device: &Device, profile: &Profile) -> String {
    let text = format!(
        "{model_sha256} {FLAVOUR} {VERSION} {} {:?} {profile:?}",
        device.name, device.compute_capability
    );
    hex(&Sha256::digest(text))[..32].to_owned()
}
