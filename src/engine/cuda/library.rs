//! Shared libraries that others than their own crates ask for: which TensorRT this is, and what a
//! plugin wants opened before it.

use std::error::Error;
use std::ffi::c_int;
use std::fmt;
use std::path::Path;

use libloading::{Library, Symbol};

use super::CudaResult;

/// A release of TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub major: i32,
    pub minor: i32,
    pub patch: i32,
}

impl Version {
    /// From TensorRT's own number: `(major * 100 + minor) * 100 + patch`.
    pub fn from_number(number: i32) -> Self {
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The version of the TensorRT library at `path`, or of that name on the system's library path.
pub fn library_version(path: &Path) -> CudaResult<Version> {
    let library = open(path)?;
    // SAFETY: `NvInferRuntimeBase.h` declares it so: `int32_t getInferLibVersion() noexcept`.
    let ask: Symbol<'_, unsafe extern "C" fn() -> c_int> = unsafe { library.get(b"getInferLibVersion\0") }
        .map_err(|error| format!("it is no TensorRT library: {}", reason(&error)))?;
    // SAFETY: it takes nothing, and the library is open.
    let number = unsafe { ask() };
    Ok(Version::from_number(number))
}

/// Open the library at `path` for the rest of the process, so that the loader need not look for it
/// when another library wants it.
pub fn keep_open(path: &Path) -> CudaResult<()> {
    std::mem::forget(open(path)?);
    Ok(())
}

fn open(path: &Path) -> CudaResult<Library> {
    // SAFETY: NVIDIA's libraries may be opened at any time and from any thread; what they run then
    // touches no memory of ours.
    unsafe { Library::new(path) }.map_err(|error| reason(&error))
}

/// What the loader says of it.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_number() {
        assert_eq!(Version::from_number(10_601).to_string(), "1.6.1");
        assert_eq!(Version::from_number(110_400).to_string(), "11.4.0");
    }

    #[test]
    fn a_file_that_is_no_library_says_so() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let message = library_version(file.path()).expect_err("an empty file");
        assert!(message.contains(&*file.path().to_string_lossy()), "{message}");
        let message = library_version(Path::new("libc.so.6")).expect_err("another library");
        assert!(message.contains("no TensorRT library"), "{message}");
    }
}
