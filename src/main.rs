//! `sluice`: parse, run, exit code.

mod cli;

use std::process::ExitCode;

/// Images are read, decoded and batched on different threads. glibc's allocator keeps what one
/// thread frees of another's, more with every shard; this one's memory stays flat.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
