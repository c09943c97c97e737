//! Standard input as a manifest: `-` among the inputs.
//!
//! - It can be read only once, but a run reads its inputs several times. It is therefore copied to an unnamed file,
//!   which disappears with the process.
//! - A resumed run must be given the same lines again. Its shards are called `-#1+1000` and so on.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;

/// The name of standard input among the inputs. (A file of that name is `./-`.)
pub const STANDARD_INPUT: &str = "-";

/// A copy of standard input.
#[derive(Debug)]
pub(crate) struct Spooled(File);

impl Spooled {
    /// Read standard input to its end.
    pub fn read() -> io::Result<Self> {
        let input = io::stdin();
        if input.is_terminal() {
            tracing::info!(
                "reading the images to score from the terminal, one per line; Ctrl-D ends the list"
            );
        }
        Self::copy(input.lock())
    }

    fn copy(mut input: impl io::Read) -> io::Result<Self> {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut input, &mut file)?;
        Ok(Self(file))
    }

    /// A path by which the copy can be opened from its start, as long as this value exists.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_standard_input_can_be_read_repeatedly() {
        let spooled = Spooled::copy(&b"a.jpg\nb.jpg\n"[..]).expect("spooled");
        for _ in 0..2 {
            assert_eq!(std::fs::read(spooled.path()).expect("the copy"), b"a.jpg\nb.jpg\n");
        }
    }
}
