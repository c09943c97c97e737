//! Shared libraries that are loaded directly: to find the version of TensorRT and of the driver, and to
//! preload the dependencies of a plugin.

use std::error::Error;
use std::ffi::{CStr, c_int, c_uint};
use std::fmt;
use std::path::Path;

use libloading::{Library, Symbol};

use super::CudaResult;

/// A release of TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The first number.
    pub major: i32,
    /// The second number.
    pub minor: i32,
    /// The third number.
    pub patch: i32,
}

impl Version {
    /// From TensorRT's version number: `(major * 100 + minor) * 100 + patch`.
    pub fn from_number(number: i32) -> Self {
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The version of the TensorRT library at `path`; a bare name is searched on the library path.
pub fn library_version(path: &Path) -> CudaResult<Version> {
    let library = open(path)?;
    // SAFETY: `NvInferRuntimeBase.h` declares `int32_t getInferLibVersion() noexcept`.
    let ask: Symbol<'_, unsafe extern "C" fn() -> c_int> = unsafe { library.get(b"getInferLibVersion\0") }
        .map_err(|error| format!("it is not a TensorRT library: {}", reason(&error)))?;
    // SAFETY: the function takes no arguments, and the library is loaded.
    let number = unsafe { ask() };
    Ok(Version::from_number(number))
}

/// Version of NVIDIA's driver, such as `580.159.04`, from its management library.
pub fn driver_release() -> CudaResult<String> {
    const LENGTH: usize = 80;
    let library = open(Path::new("libnvidia-ml.so.1"))?;
    let missing = |error: libloading::Error| reason(&error);
    // SAFETY: `nvml.h` declares `nvmlReturn_t nvmlInit_v2(void)`.
    let start: Symbol<'_, unsafe extern "C" fn() -> c_int> =
        unsafe { library.get(b"nvmlInit_v2\0") }.map_err(missing)?;
    // SAFETY: `nvml.h` declares `nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)`.
    let ask: Symbol<'_, unsafe extern "C" fn(*mut u8, c_uint) -> c_int> =
        unsafe { library.get(b"nvmlSystemGetDriverVersion\0") }.map_err(missing)?;
    let mut text = [0_u8; LENGTH];
    // SAFETY: the function takes no arguments, and the library is loaded.
    let started = unsafe { start() };
    // SAFETY: the library is initialised, and writes no more than the given length.
    let code = if started == 0 { unsafe { ask(text.as_mut_ptr(), LENGTH as c_uint) } } else { started };
    if code != 0 {
        return Err(format!("NVML reports error {code}"));
    }
    let text = CStr::from_bytes_until_nul(&text).map_err(|error| error.to_string())?;
    Ok(text.to_string_lossy().into_owned())
}

/// The path at which the dynamic loader finds the library `name`, or `on the library path` if that is unknown.
pub fn find_library(name: &str) -> CudaResult<String> {
    let _open = open(Path::new(name))?;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split(".so").next().unwrap_or(file);
    let is_it =
        |path: &&str| path.rsplit('/').next().is_some_and(|file| file.split(".so").next() == Some(stem));
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(is_it);
    Ok(path.unwrap_or("on the library path").to_owned())
}

/// Load the library at `path` for the rest of the process, so that the loader does not search for it
/// when another library depends on it.
pub fn keep_open(path: &Path) -> CudaResult<()> {
    std::mem::forget(open(path)?);
    Ok(())
}

fn open(path: &Path) -> CudaResult<Library> {
    // SAFETY: NVIDIA's libraries may be loaded at any time and from any thread, and their initialisers
    // touch no memory of this program.
    unsafe { Library::new(path) }.map_err(|error| reason(&error))
}

/// The loader's own message.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_where_the_loader_finds_it() {
        let place = find_library("libc.so.6").expect("every program has it");
        assert!(place.starts_with('/') && place.contains("libc.so"), "{place}");
        assert!(find_library("libno-such-thing.so.7").is_err());
    }

    #[test]
    fn a_version_is_read_from_its_number() {
        assert_eq!(Version::from_number(10_601).to_string(), "1.6.1");
        assert_eq!(Version::from_number(110_400).to_string(), "11.4.0");
    }

    #[test]
    fn the_error_for_a_file_that_is_not_a_library_says_so() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let message = library_version(file.path()).expect_err("an empty file");
        assert!(message.contains(&*file.path().to_string_lossy()), "{message}");
        let message = library_version(Path::new("libc.so.6")).expect_err("another library");
        assert!(message.contains("not a TensorRT library"), "{message}");
    }
}
