//! CUDA: devices, pinned memory, the normalisation kernel, and lanes that run TensorRT or ONNX Runtime.
//! The only folder with unsafe code.
//!
//! - Raw calls return a `Result`, and resources have owning types. Memory that a stream may still use
//!   belongs to the owner of the stream, and is freed only after the stream is synchronized.
//! - Nothing is linked: the driver, NVRTC and TensorRT are loaded at run time, and the error for a
//!   missing one names it.
#![allow(unsafe_code, reason = "the one folder that talks to CUDA and TensorRT")]

mod device;
mod flavour;
mod kernel;
mod lane;
mod library;
mod onnxruntime;
mod ordinary_memory;
mod runner;
mod tensorrt;

pub use device::{Device, PinnedBuffer, devices};
pub use kernel::{Normalise, nvrtc_version};
pub use lane::{Lane, LaneTimes};
pub use library::{Version, driver_release, find_library, keep_open, library_version};
pub use onnxruntime::{OnnxRuntimeRunner, TensorSpec};
pub use ordinary_memory::ordinary_memory;
pub use runner::Runner;
pub use tensorrt::{Binding, LoadError, Loaded, TensorRtRunner};
pub(super) use tensorrt::{logger, tensorrt};

/// Errors are messages of CUDA or TensorRT.
pub type CudaResult<T> = Result<T, String>;

/// The message for a driver error; `what` says what failed.
fn driver(what: &str, error: cudarc::driver::DriverError) -> String {
    let code = error.0;
    let text =
        error.error_string().map_or_else(|_| format!("{code:?}"), |text| text.to_string_lossy().into_owned());
    format!("{what}: {text}")
}
