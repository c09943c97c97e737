//! Finds and loads TensorRT's shared libraries at run time.
//!
//! - If `SLUICE_TENSORRT_DIR` is set, only that folder is searched; else the system's library path, which
//!   `LD_LIBRARY_PATH` extends, and then `.deps/tensorrt/`, where `scripts/setup.sh` puts the libraries.
//! - Nothing is linked, so the same binary runs on hosts without TensorRT.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::engine::cuda::{Version, find_library, library_version};
use crate::engine::deps::search_roots;

/// The TensorRT that this binary is built for.
pub const FLAVOUR: &str = if cfg!(feature = "datacenter") { "TensorRT" } else { "TensorRT-RTX" };

/// Major and minor version of the release whose interface this binary uses.
const RELEASE: (i32, i32) = if cfg!(feature = "datacenter") { (11, 4) } else { (1, 6) };

/// Where `scripts/setup.sh` puts the libraries, relative to the root of the repository.
const FOLDER: &str = ".deps/tensorrt";

/// The runtime, which loads and runs engines. The lean runtime runs version-compatible engines only.
const RUNTIME: &[&str] = if cfg!(feature = "datacenter") {
    &["libnvinfer.so.11", "libnvinfer_lean.so.11"]
} else {
    &["libtensorrt_rtx.so.1"]
};

/// The ONNX parser, which only building needs.
const PARSER: &[&str] = if cfg!(feature = "datacenter") {
    &["libnvonnxparser.so.11"]
} else {
    &["libtensorrt_onnxparser_rtx.so.1"]
};

/// Smallest supported compute capability; datacenter TensorRT checks its own limit.
const LEAST_CAPABILITY: (i32, i32) = if cfg!(feature = "datacenter") { (0, 0) } else { (8, 0) };

/// Check that this flavour supports devices of that compute capability.
pub fn check_capability(capability: (i32, i32)) -> Result<(), String> {
    if capability >= LEAST_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, rest)) = (capability, LEAST_CAPABILITY);
    Err(format!(
        "{FLAVOUR} needs compute capability {least}.{rest} or later, this GPU has {major}.{minor}: build sluice with \
         --features datacenter, which uses datacenter TensorRT"
    ))
}

/// The release that this binary needs, for messages.
pub fn release() -> String {
    format!("{FLAVOUR} {}.{}", RELEASE.0, RELEASE.1)
}

/// Path of the loaded runtime, of which the process has only one.
static OPENED: OnceLock<PathBuf> = OnceLock::new();

/// Load the library that runs engines. Returns its version.
pub fn open_runtime() -> Result<Version, String> {
    open(RUNTIME, &candidates, |path| {
        let version = library_version(path)?;
        if (version.major, version.minor) != RELEASE {
            return Err(format!("it is version {version}"));
        }
        trtx::dynamically_load_tensorrt(Some(path)).map_err(|error| error.to_string())?;
        OPENED.get_or_init(|| PathBuf::from(find_library(&path.to_string_lossy()).unwrap_or_default()));
        Ok(version)
    })
}

/// Load the ONNX parser. The one in the runtime's folder is preferred: a parser of another release would
/// not work with the runtime, and does not report its version.
pub fn open_parser() -> Result<(), String> {
    let neighbour = |name: &str| OPENED.get().map(|runtime| runtime.with_file_name(name));
    let beside = |name: &str| {
        let neighbour = neighbour(name).filter(|path| path.is_file());
        neighbour.map_or_else(|| candidates(name), |path| vec![path])
    };
    open(PARSER, &beside, |path| {
        trtx::dynamically_load_tensorrt_onnxparser(Some(path)).map_err(|error| error.to_string())
    })
}

/// Version and path of the runtime, if it can be loaded.
pub fn probe_runtime() -> Result<String, String> {
    open_runtime().map(|version| format!("{version}, {}", place(RUNTIME)))
}

/// Path of the parser, if it can be loaded.
pub fn probe_parser() -> Result<String, String> {
    open_parser().map(|()| place(PARSER))
}

/// Path of the loaded library among `names`.
fn place(names: &[&str]) -> String {
    let found = names
        .iter()
        .flat_map(|name| candidates(name))
        .find_map(|path| find_library(&path.to_string_lossy()).ok());
    found.unwrap_or_else(|| "on the library path".to_owned())
}

/// The paths at which to look for a library. The dynamic loader searches for a bare name.
fn candidates(name: &str) -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("SLUICE_TENSORRT_DIR") {
        return vec![Path::new(&folder).join(name)];
    }
    let deps = search_roots().into_iter().map(|root| root.join(FOLDER).join(name));
    std::iter::once(PathBuf::from(name)).chain(deps.filter(|path| path.is_file())).collect()
}

/// Call `load` with each candidate path of each name until one succeeds.
fn open<T>(
    names: &[&str],
    candidates: &dyn Fn(&str) -> Vec<PathBuf>,
    load: impl Fn(&Path) -> Result<T, String>,
) -> Result<T, String> {
    let mut reasons = Vec::new();
    for path in names.iter().flat_map(|name| candidates(name)) {
        match load(&path) {
            Ok(loaded) => return Ok(loaded),
            Err(reason) if reason.starts_with(&*path.to_string_lossy()) => reasons.push(reason),
            Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
        }
    }
    Err(format!(
        "{} was not found: {}; run scripts/setup.sh --gpu in the repository, which puts it into {FOLDER}, or put its \
         folder on LD_LIBRARY_PATH or into SLUICE_TENSORRT_DIR",
        release(),
        reasons.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs scripts/setup.sh --with tensorrt"]
    fn the_library_that_the_setup_script_installs_has_the_right_release() {
        let version = open_runtime().expect("scripts/setup.sh --with tensorrt puts TensorRT in place");
        assert_eq!((version.major, version.minor), RELEASE);
        let place = probe_runtime().expect("it was opened before");
        assert!(RUNTIME.iter().any(|name| place.contains(name)), "{place}");
    }

    #[test]
    fn the_error_for_a_missing_library_names_every_path_and_what_to_run() {
        let nowhere = |name: &str| vec![PathBuf::from("/nowhere").join(name)];
        let message = open(RUNTIME, &nowhere, library_version).expect_err("nothing to find");
        for word in
            RUNTIME.iter().copied().chain(["scripts/setup.sh --gpu", "SLUICE_TENSORRT_DIR", &release()])
        {
            assert!(message.contains(word), "{message} lacks {word}");
        }
    }

    #[cfg(not(feature = "datacenter"))]
    #[test]
    fn the_error_for_an_old_gpu_names_the_other_flavour() {
        assert!(check_capability((8, 0)).is_ok() && check_capability((9, 0)).is_ok());
        let message = check_capability((7, 5)).expect_err("a T4");
        assert!(message.contains("7.5") && message.contains("datacenter"), "{message}");
    }

    #[test]
    fn a_library_of_another_release_is_refused() {
        let named = |name: &str| vec![PathBuf::from(name)];
        let message = open(&["lib"], &named, |_| Err::<(), _>("it is version 9.9.9".to_owned()))
            .expect_err("another release");
        assert!(message.contains("lib: it is version 9.9.9"), "{message}");
    }
}
