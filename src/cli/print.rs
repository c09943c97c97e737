//! Standard output.

use std::io::{self, Write};

use sluice::shown::{message_without_secrets, printable};

/// Print `text` and a newline. What names and messages hold of secrets, and of characters that a terminal
/// obeys, is not printed. A reader that has seen enough, such as `head`, is no error.
pub fn print(text: &str) -> io::Result<()> {
    let text = message_without_secrets(text);
    let text = printable(&text);
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
