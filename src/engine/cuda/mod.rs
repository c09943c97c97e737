//! CUDA, as far as engines need it: devices, pinned memory, the normalising kernel, and lanes that
//! run TensorRT or ONNX Runtime. The only folder with unsafe code.
//!
//! - Raw calls → `Result` → owning types. Whatever a stream may still use is owned by the value
//!   that owns the stream, and is freed only after the stream has been waited for.
//! - Nothing is linked: the driver, NVRTC and TensorRT are opened at run time, and a missing one is
//!   an error that says what is missing.
#![allow(unsafe_code, reason = "the one folder that talks to CUDA and TensorRT")]

mod device;
mod flavour;
mod kernel;
mod lane;
mod library;
mod onnxruntime;
mod ordinary_memory;
mod tensorrt;

pub use device::{Device, PinnedBuffer, devices};
pub use kernel::{Normalise, nvrtc_version};
pub use lane::{Lane, LaneTimes, Runner};
pub use library::{Version, driver_release, find_library, keep_open, library_version};
pub use onnxruntime::{OnnxRuntimeRunner, TensorSpec};
pub use ordinary_memory::ordinary_memory;
pub use tensorrt::{Binding, LoadError, Loaded, TensorRtRunner};
pub(super) use tensorrt::{logger, tensorrt};

/// What CUDA or TensorRT said.
pub type CudaResult<T> = Result<T, String>;

/// The text of a driver error, with what was being done.
fn driver(what: &str, error: cudarc::driver::DriverError) -> String {
    let code = error.0;
    let text =
        error.error_string().map_or_else(|_| format!("{code:?}"), |text| text.to_string_lossy().into_owned());
    format!("{what}: {text}")
}
