//! Standard output.

use std::io::{self, Write};

use sluice::shown::{message_without_secrets, printable, printable_json};

/// What a command has found cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct StandardOutput(io::Error);

/// Print `text` and a newline. What names and messages hold of secrets, and of characters that a terminal
/// obeys, is not printed. A reader that has seen enough, such as `head`, is no error.
pub fn print(text: &str) -> Result<(), StandardOutput> {
    let text = message_without_secrets(text);
    write_line(&printable(&text))
}

/// The same for a JSON object, of several lines.
pub fn print_json(object: &serde_json::Value) -> Result<(), StandardOutput> {
    print_json_text(&format!("{object:#}"))
}

/// The same on one line, for whoever collects lines.
pub fn print_json_line(object: &serde_json::Value) -> Result<(), StandardOutput> {
    print_json_text(&object.to_string())
}

fn print_json_text(text: &str) -> Result<(), StandardOutput> {
    write_line(&printable_json(&message_without_secrets(text)))
}

fn write_line(text: &str) -> Result<(), StandardOutput> {
    print_as_is(format!("{text}\n").as_bytes())
}

/// Print `bytes` that are meant as they are, for a program.
pub fn print_as_is(bytes: &[u8]) -> Result<(), StandardOutput> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(StandardOutput),
    }
}
