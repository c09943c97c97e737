//! Opens files that operators name, if they are regular files or folders.
//!
//! - Opening a FIFO waits for a writer, and a device may never end. Both are refused before they are opened, and the
//!   message says what they are.
//! - A FIFO that the process inherited (`/dev/stdin`, `/dev/fd/7`, a shell's `<(…)`) has a writer, so it may be read as
//!   text.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Longest text, bytes: far longer than any pipeline file or list of labels.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Paths of the files that a process inherits.
const INHERITED: [&str; 3] = ["/dev/stdin", "/dev/fd/", "/proc/self/fd/"];

/// Refuse anything but a regular file or a folder. A missing file is not an error here.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`], with the kind of file.
pub(crate) fn refuse_special(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    match special(metadata.file_type()) {
        Some(what) => Err(refusal(what)),
        None => Ok(()),
    }
}

/// The text of a file.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::InvalidInput`] for a FIFO that is not inherited, a socket or a device, and for
/// a text longer than 16 MiB.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let is_inherited =
        path.to_str().is_some_and(|path| INHERITED.iter().any(|start| path.starts_with(start)));
    match fs::metadata(path).ok().and_then(|metadata| special(metadata.file_type())) {
        None => {}
        Some(FIFO) if is_inherited => {}
        Some(what) => return Err(refusal(what)),
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        let message = format!("is longer than {MAX_TEXT_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(text)
}

const FIFO: &str = "a FIFO";

fn special(kind: FileType) -> Option<&'static str> {
    if kind.is_fifo() {
        Some(FIFO)
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_block_device() || kind.is_char_device() {
        Some("a device")
    } else {
        None
    }
}

fn refusal(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("is {what}, expected a regular file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_files_are_refused_with_their_kind() {
        let folder = tempfile::tempdir().expect("folder");
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
        assert!(made.success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).expect("link");
        let socket = folder.path().join("socket");
        let _listens = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
        let cases =
            [(&*fifo, "FIFO"), (&*link, "FIFO"), (&*socket, "socket"), (Path::new("/dev/zero"), "device")];
        for (path, what) in cases {
            for refused in [refuse_special(path), read_text(path).map(drop)] {
                let error = refused.expect_err("not a file");
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert!(error.to_string().contains(what), "{error}");
            }
        }
    }

    #[test]
    fn files_folders_and_missing_names_are_not_refused() {
        for path in ["Cargo.toml", "src", "no/such/file"] {
            refuse_special(Path::new(path)).expect("not special");
        }
        assert!(read_text(Path::new("Cargo.toml")).expect("a text").contains("sluice"));
        assert_eq!(read_text(Path::new("no/such")).expect_err("missing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(MAX_TEXT_BYTES + 1).expect("sparse");
        assert!(read_text(file.path()).expect_err("too long").to_string().contains("longer than"));
    }
}
