//! `sluice`: parse, run, exit code.

mod cli;

use std::process::ExitCode;

/// One thread allocates an image and another frees it. With glibc's allocator, memory then grows with every shard; with
/// jemalloc it stays flat.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// ONNX Runtime sends usage data to its makers, and keeps files for that in the home folder, unless this variable is
/// set before its library is loaded.
const NO_TELEMETRY: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

#[allow(unsafe_code, reason = "the environment has no safe setter")]
fn main() -> ExitCode {
    // SAFETY: no thread has been started yet, so none reads the environment at the same time.
    unsafe { std::env::set_var(NO_TELEMETRY.0, NO_TELEMETRY.1) };
    cli::main()
}
