//! Standard input as a manifest: `-` among the inputs.
//!
//! - It can be read once, and a run looks at its inputs several times. So it is copied to a file that has no name when it
//!   is first asked for, and that goes with the process.
//! - A run that is begun again is given the same lines again. Its shards are called `-#1+1000` and so on.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;

/// How an input is called that is standard input. (A file of that name is `./-`.)
pub const STANDARD_INPUT: &str = "-";

/// What has come from standard input.
#[derive(Debug)]
pub(crate) struct Spooled(File);

impl Spooled {
    /// Read standard input to its end.
    pub fn read() -> io::Result<Self> {
        let input = io::stdin();
        if input.is_terminal() {
            tracing::info!("reading the images to score from the terminal, one a line; Ctrl-D ends them");
        }
        Self::copy(input.lock())
    }

    fn copy(mut input: impl io::Read) -> io::Result<Self> {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut input, &mut file)?;
        Ok(Self(file))
    }

    /// Where it can be opened, from its beginning, for as long as it is held.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_once_can_be_read_often() {
        let spooled = Spooled::copy(&b"a.jpg\nb.jpg\n"[..]).expect("spooled");
        for _ in 0..2 {
            assert_eq!(std::fs::read(spooled.path()).expect("there"), b"a.jpg\nb.jpg\n");
        }
    }
}
