//! `sluice`: parse, run, exit code.

mod cli;

use std::process::ExitCode;

/// Images are read, decoded and batched on different threads. glibc's allocator keeps what one
/// thread frees of another's, more with every shard; this one's memory stays flat.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// ONNX Runtime reports its use to its makers, and keeps files in the home folder for that, unless this is set
/// before its library is loaded.
const NO_TELEMETRY: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

#[allow(unsafe_code, reason = "the environment has no safe setter")]
fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(NO_TELEMETRY.0, NO_TELEMETRY.1) };
    cli::main()
}
