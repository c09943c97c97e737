//! Finds and loads ONNX Runtime's shared library at run time.
//!
//! - Search order: `ORT_DYLIB_PATH`; `.deps/onnxruntime-gpu/` and `.deps/onnxruntime/` in the current
//!   folder and those above it; the same from the executable's folder upwards.
//! - Nothing is linked, so the binary also starts on a host without ONNX Runtime; the error then names the missing
//!   library.
//! - Once loaded, ONNX Runtime sends telemetry to its makers unless `ORT_DISABLE_TELEMETRY` is set. The binary sets the
//!   variable at its start; a program that uses this library must set it, otherwise [`open`] fails.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use crate::engine::cuda::keep_open;
use crate::engine::deps::search_roots;
use crate::error::EngineError;
use crate::flow::lock;

/// Where `scripts/setup.sh` puts the library, relative to the root of the repository. The first has GPU
/// providers and comes with `--gpu`.
const FOLDERS: [&str; 2] = [".deps/onnxruntime-gpu", ".deps/onnxruntime"];

/// The plugin with the TensorRT-RTX provider, and the provider's name.
const PLUGIN: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";
pub const PLUGIN_PROVIDER: &str = "NvTensorRTRTXExecutionProvider";

/// Dependencies of the plugin in its own folder, which the dynamic loader does not search.
const PLUGIN_NEEDS: [&str; 3] =
    ["libcudart.so.13", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"];

/// The path of ONNX Runtime's library.
pub fn path() -> Result<PathBuf, String> {
    find(std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from), &search_roots())
}

/// The path of the TensorRT-RTX plugin: `SLUICE_ORT_TENSORRT_RTX`, else in the folder of ONNX Runtime,
/// else on `LD_LIBRARY_PATH`.
pub fn find_plugin() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("SLUICE_ORT_TENSORRT_RTX").map(PathBuf::from) {
        let message = || format!("SLUICE_ORT_TENSORRT_RTX is {}, which is not a file", path.display());
        return if path.is_file() { Ok(path) } else { Err(message()) };
    }
    let beside = path().ok().and_then(|path| path.parent().map(Path::to_owned));
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(std::env::split_paths(&folders));
    folders.map(|folder| folder.join(PLUGIN)).find(|path| path.is_file()).ok_or_else(|| {
        format!(
            "{PLUGIN} was not found: it comes with the package onnxruntime-ep-nv-tensorrt-rtx-cu13; run \
             scripts/setup.sh --gpu in the repository, or put its folder on LD_LIBRARY_PATH or its path into \
             SLUICE_ORT_TENSORRT_RTX"
        )
    })
}

/// Register the plugin, unless this process already has.
pub fn register_plugin(environment: &Environment, path: &Path) -> Result<(), String> {
    let known = |environment: &Environment| {
        environment.devices().any(|device| device.ep().is_ok_and(|name| name == PLUGIN_PROVIDER))
    };
    if known(environment) {
        return Ok(());
    }
    for name in PLUGIN_NEEDS {
        // a library in another folder is found by the loader, or reported as missing
        let beside = path.with_file_name(name);
        if beside.is_file() {
            keep_open(&beside)?;
        }
    }
    environment
        .register_ep_library(PLUGIN_PROVIDER, path)
        .map_err(|error| format!("cannot load {}: {error}", path.display()))?;
    if known(environment) { Ok(()) } else { Err(format!("{} offers no device here", path.display())) }
}

/// The process's environment: ONNX Runtime allows only one, which lives until the process ends.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// The variable that disables ONNX Runtime's telemetry.
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Load ONNX Runtime, or return the environment that this process already has.
///
/// # Errors
/// [`EngineError::RuntimeMissing`] if it cannot be found or loaded, or if `ORT_DISABLE_TELEMETRY` is not set.
pub fn open() -> Result<Environment, EngineError> {
    // nothing panics while it holds the lock
    let mut opened = lock(&ENVIRONMENT);
    if let Some(environment) = &*opened {
        return Ok(environment.clone());
    }
    if std::env::var_os(TELEMETRY).is_none() {
        let message = format!(
            "{TELEMETRY} is not set: 1 keeps ONNX Runtime from sending telemetry and from writing files to the home \
             folder"
        );
        return Err(EngineError::RuntimeMissing(message));
    }
    let path = path().map_err(EngineError::RuntimeMissing)?;
    let fail = |error: &dyn std::fmt::Display| {
        EngineError::RuntimeMissing(format!("cannot use ONNX Runtime at {}: {error}", path.display()))
    };
    tracing::debug!(path = %path.display(), "opening ONNX Runtime");
    let environment = ort::init_from(&path)
        .map_err(|error| fail(&error))?
        .with_name("sluice")
        .build()
        .map_err(|error| fail(&error))?;
    Ok(opened.insert(environment).clone())
}

fn find(from_env: Option<PathBuf>, roots: &[PathBuf]) -> Result<PathBuf, String> {
    if let Some(path) = from_env {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("ORT_DYLIB_PATH is {}, which is not a file", path.display()))
        };
    }
    let mut folders = roots.iter().flat_map(|root| FOLDERS.map(|folder| root.join(folder)));
    folders.find_map(|folder| library_in(&folder)).ok_or_else(|| {
        format!(
            "ONNX Runtime was not found: run scripts/setup.sh in the repository, which puts it into {}, or set \
             ORT_DYLIB_PATH to a libonnxruntime.so of version 1.31 or later",
            FOLDERS[1]
        )
    })
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    names
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libonnxruntime.so") || name.ends_with(".dylib") || name == "onnxruntime.dll"
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs scripts/setup.sh --with onnxruntime"]
    fn the_runtime_can_be_opened_more_than_once() {
        for _ in 0..2 {
            open().expect("scripts/setup.sh --with onnxruntime puts ONNX Runtime in place");
        }
    }

    #[test]
    fn the_error_for_a_missing_library_says_what_to_run() {
        let message = find(None, &[]).expect_err("nothing to find");
        assert!(message.contains("scripts/setup.sh") && message.contains("ORT_DYLIB_PATH"), "{message}");
    }

    #[test]
    fn a_path_in_the_environment_is_never_ignored() {
        let message = find(Some("/no/such/lib.so".into()), &search_roots()).expect_err("not a file");
        assert!(message.contains("/no/such/lib.so"), "{message}");
    }

    #[test]
    fn the_library_is_found_in_the_folder_of_the_setup_script() {
        let root = tempfile::tempdir().expect("temp folder");
        for folder in FOLDERS.iter().rev() {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).expect("folder");
            let library = folder.join("libonnxruntime.so.1.31.1");
            std::fs::write(&library, b"").expect("file");
            assert_eq!(find(None, &[root.path().to_owned()]), Ok(library), "the one for GPUs wins");
        }
    }
}
