//! Finding and opening TensorRT's shared libraries at run time.
//!
//! Looked for, in this order: the folder `SLUICE_TENSORRT_DIR`, and then nowhere else; the system's
//! library path, which `LD_LIBRARY_PATH` extends; `.deps/tensorrt/`, where `scripts/setup.sh` puts
//! them. Nothing is linked, so the same binary runs where there is none.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::engine::cuda::{Version, find_library, library_version};
use crate::engine::deps::search_roots;

/// Which TensorRT this binary is built for.
pub const FLAVOUR: &str = if cfg!(feature = "datacenter") { "TensorRT" } else { "TensorRT-RTX" };

/// Major and minor number of the release whose interface this binary speaks.
const RELEASE: (i32, i32) = if cfg!(feature = "datacenter") { (11, 4) } else { (1, 6) };

/// Where `scripts/setup.sh` puts the libraries, below the repository's root.
const FOLDER: &str = ".deps/tensorrt";

/// The runtime that loads and runs engines; the lean one runs version-compatible engines only.
const RUNTIME: &[&str] = if cfg!(feature = "datacenter") {
    &["libnvinfer.so.11", "libnvinfer_lean.so.11"]
} else {
    &["libtensorrt_rtx.so.1"]
};

/// The parser that building an engine needs as well.
const PARSER: &[&str] = if cfg!(feature = "datacenter") {
    &["libnvonnxparser.so.11"]
} else {
    &["libtensorrt_onnxparser_rtx.so.1"]
};

/// Smallest compute capability the flavour serves; datacenter TensorRT says so itself.
const LEAST_CAPABILITY: (i32, i32) = if cfg!(feature = "datacenter") { (0, 0) } else { (8, 0) };

/// Whether this flavour serves a device of that compute capability.
pub fn check_capability(capability: (i32, i32)) -> Result<(), String> {
    if capability >= LEAST_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, rest)) = (capability, LEAST_CAPABILITY);
    Err(format!(
        "{FLAVOUR} wants compute capability {least}.{rest} or later, this GPU has {major}.{minor}: build sluice with \
         --features datacenter, which speaks to datacenter TensorRT"
    ))
}

/// The release this binary wants, for messages.
pub fn release() -> String {
    format!("{FLAVOUR} {}.{}", RELEASE.0, RELEASE.1)
}

/// Where the runtime lies that is open: there is one for the process.
static OPENED: OnceLock<PathBuf> = OnceLock::new();

/// Open the library that runs engines, and tell its version.
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

/// Open the library that reads ONNX: the runtime's neighbour, for another release's would not fit it
/// and does not say which it is.
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

/// The runtime's version and place, if it can be opened.
pub fn probe_runtime() -> Result<String, String> {
    open_runtime().map(|version| format!("{version}, {}", place(RUNTIME)))
}

/// The parser's place, if it can be opened.
pub fn probe_parser() -> Result<String, String> {
    open_parser().map(|()| place(PARSER))
}

/// Where the one of `names` that is open lies.
fn place(names: &[&str]) -> String {
    let found = names
        .iter()
        .flat_map(|name| candidates(name))
        .find_map(|path| find_library(&path.to_string_lossy()).ok());
    found.unwrap_or_else(|| "on the library path".to_owned())
}

/// Where a library of that name may lie. A bare name is for the dynamic loader to find.
fn candidates(name: &str) -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("SLUICE_TENSORRT_DIR") {
        return vec![Path::new(&folder).join(name)];
    }
    let deps = search_roots().into_iter().map(|root| root.join(FOLDER).join(name));
    std::iter::once(PathBuf::from(name)).chain(deps.filter(|path| path.is_file())).collect()
}

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
    fn the_library_of_the_setup_script_is_opened_and_of_the_right_release() {
        let version = open_runtime().expect("scripts/setup.sh --with tensorrt puts TensorRT in place");
        assert_eq!((version.major, version.minor), RELEASE);
        let place = probe_runtime().expect("it was opened before");
        assert!(RUNTIME.iter().any(|name| place.contains(name)), "{place}");
    }

    #[test]
    fn a_missing_library_names_every_place_and_what_to_run() {
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
    fn a_gpu_that_is_too_old_is_sent_to_the_other_flavour() {
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
