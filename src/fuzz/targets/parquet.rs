//! Reads a Parquet shard.
//!
//! The Parquet library panics on some damaged files, and the reader catches that: such a panic is not a
//! finding. Any other panic is one, caught or not.
#![no_main]

use std::panic::{set_hook, take_hook};

#[path = "../../tests/support/hostile.rs"]
mod hostile;

fn ignore_panics_of_the_library() {
    let abort = take_hook();
    set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !["/parquet-", "/arrow-", "/thrift-"].iter().any(|library| file.contains(library)) {
            abort(panic);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: ignore_panics_of_the_library(), |bytes: &[u8]| hostile::replay("parquet", bytes));
