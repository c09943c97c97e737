//! Finding and opening TensorRT's shared libraries at run time.
//!
//! Looked for, in this order: the folder `SLUICE_TENSORRT_DIR`; the system's library path, which
//! `LD_LIBRARY_PATH` extends. Nothing is linked, so the same binary runs where there is none.

use std::path::{Path, PathBuf};

/// Which TensorRT this binary is built for.
pub const FLAVOUR: &str = if cfg!(feature = "datacenter") { "TensorRT" } else { "TensorRT-RTX" };

/// The version whose interface this binary speaks; the library must be of this release.
pub const VERSION: &str = if cfg!(feature = "datacenter") { "11.4" } else { "1.6" };

/// The runtime that loads and runs engines.
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

/// Open the library that runs engines.
pub fn open_runtime() -> Result<(), String> {
    open(RUNTIME, |name| trtx::dynamically_load_tensorrt(Some(name)))
}

/// Open the library that reads ONNX.
pub fn open_parser() -> Result<(), String> {
    open(PARSER, |name| trtx::dynamically_load_tensorrt_onnxparser(Some(name)))
}

/// The runtime's place, if it can be opened.
pub fn probe_runtime() -> Result<String, String> {
    open_runtime().map(|()| place(RUNTIME))
}

/// The parser's place, if it can be opened.
pub fn probe_parser() -> Result<String, String> {
    open_parser().map(|()| place(PARSER))
}

/// Where the dynamic loader has found one of `names`.
fn place(names: &[&str]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| {
        let stem = |name: &str| name.split(".so").next().unwrap_or_default().to_owned();
        names.iter().any(|name| path.rsplit('/').next().is_some_and(|file| stem(file) == stem(name)))
    });
    path.unwrap_or("on the library path").to_owned()
}

fn open(names: &[&str], load: impl Fn(&Path) -> trtx::Result<()>) -> Result<(), String> {
    let folder = std::env::var_os("SLUICE_TENSORRT_DIR").map(PathBuf::from);
    let mut reasons = Vec::new();
    for name in names {
        let path = folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        match load(&path) {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(format!(
        "{FLAVOUR} {VERSION} was not found: {}; put its folder on LD_LIBRARY_PATH or into \
         SLUICE_TENSORRT_DIR",
        reasons.join("; ")
    ))
}
