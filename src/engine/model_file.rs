//! The file of a model: its kind, and the hash that identifies the model.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::onnx;
use crate::error::EngineError;
use crate::plan::hex;
use crate::regular_file::refuse_special;

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HashedFile {
    pub path: PathBuf,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// SHA-256 of a model, in lower-case hexadecimal. If an ONNX file keeps weights in other files, it is the hash of the
/// hashes of all files.
///
/// # Errors
/// When a file cannot be read, or a model names weights outside its own folder.
pub fn hash_model(path: &Path) -> Result<String, EngineError> {
    Ok(hash_of_files(&hash_files(path)?))
}

/// The hash of the model with these files, as [`hash_files`] returns them.
pub(crate) fn hash_of_files(files: &[HashedFile]) -> String {
    if let [model] = files {
        return model.sha256.clone();
    }
    let mut sha256 = Sha256::new();
    files.iter().for_each(|file| sha256.update(&file.sha256));
    hex(&sha256.finalize())
}

/// The file of a model, and those in which an ONNX file keeps its weights. Each is read once.
///
/// # Errors
/// When a file cannot be read, or the ONNX file names weights outside its own folder.
pub(crate) fn hash_files(path: &Path) -> Result<Vec<HashedFile>, EngineError> {
    let hashed = |path: PathBuf| Ok(HashedFile { sha256: hash_file(&path)?, path });
    if is_serialized(path) {
        return Ok(vec![hashed(path.to_owned())?]);
    }
    let fail = |source| EngineError::ModelFile { path: path.to_owned(), source };
    refuse_special(path).map_err(fail)?;
    let bytes = std::fs::read(path).map_err(fail)?;
    let mut files = vec![HashedFile { path: path.to_owned(), sha256: hex(&Sha256::digest(&bytes)) }];
    let weights = weight_files(path, &bytes)?;
    // weights may be larger than memory
    drop(bytes);
    for path in weights {
        files.push(hashed(path)?);
    }
    Ok(files)
}

/// The files in which the ONNX file at `path`, which has these bytes, keeps its weights besides itself.
fn weight_files(path: &Path, bytes: &[u8]) -> Result<Vec<PathBuf>, EngineError> {
    let beside = |name: String| {
        // a path outside the folder could name a device or a pipe, which may never end
        let below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&name).components().all(below) {
            let message = format!("it keeps weights outside its folder, in {name:?}");
            return Err(EngineError::Load { path: path.to_owned(), message });
        }
        Ok(path.with_file_name(name))
    };
    onnx::external_files(bytes).into_iter().map(beside).collect()
}

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn hash_file(path: &Path) -> Result<String, EngineError> {
    let fail = |source| EngineError::ModelFile { path: path.to_owned(), source };
    refuse_special(path).map_err(fail)?;
    let mut file = File::open(path).map_err(fail)?;
    let (mut sha256, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hex(&sha256.finalize())),
            read => sha256.update(&buffer[..read]),
        }
    }
}

/// Whether a model file is a serialized engine, by its extension.
pub(super) fn is_serialized(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "engine" || extension == "plan")
}
