//! A Parquet shard.
//!
//! The Parquet library meets some damaged files with a panic, which the reader catches: such a panic is no
//! find. Any other one is, caught or not.
#![no_main]

use std::panic::{set_hook, take_hook};

#[path = "../../tests/support/hostile.rs"]
mod hostile;

fn pass_over_the_librarys_panics() {
    let abort = take_hook();
    set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !["/parquet-", "/arrow-", "/thrift-"].iter().any(|library| file.contains(library)) {
            abort(panic);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: pass_over_the_librarys_panics(), |bytes: &[u8]| hostile::replay("parquet", bytes));
