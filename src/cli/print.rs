//! Prints to standard output.

use std::io::{self, Write};

use sluice::shown::{message_without_secrets, printable, printable_json};

/// A command's result cannot be printed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct StandardOutput(io::Error);

/// Print `text` and a newline, without secrets and control characters. A reader that closes the pipe early, such as
/// `head`, is not an error.
pub fn print(text: &str) -> Result<(), StandardOutput> {
    let text = message_without_secrets(text);
    write_line(&printable(&text))
}

/// The same for a JSON object, on several lines.
pub fn print_json(object: &serde_json::Value) -> Result<(), StandardOutput> {
    print_json_text(&format!("{object:#}"))
}

/// The same for a JSON object, on one line.
pub fn print_json_line(object: &serde_json::Value) -> Result<(), StandardOutput> {
    print_json_text(&object.to_string())
}

fn print_json_text(text: &str) -> Result<(), StandardOutput> {
    write_line(&printable_json(&message_without_secrets(text)))
}

fn write_line(text: &str) -> Result<(), StandardOutput> {
    print_as_is(format!("{text}\n").as_bytes())
}

/// Print `bytes` unchanged, for a program.
pub fn print_as_is(bytes: &[u8]) -> Result<(), StandardOutput> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(StandardOutput),
    }
}
