//! Files of this machine's disk with names that no object store can address: bytes that are not UTF-8, or control
//! characters.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;

use super::version::local_version;

/// A file with such a name.
pub(crate) struct OddFile {
    pub path: PathBuf,
    /// The file's name in messages.
    pub uri: String,
}

impl OddFile {
    /// The first bytes of the file, at most `count`.
    pub fn head(&self, count: u64) -> object_store::Result<Vec<u8>> {
        self.metadata()?;
        let mut head = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(count).read_to_end(&mut head));
        read.map_err(|error| self.error(error))?;
        Ok(head)
    }

    /// The size of the file, provided that it still has `version`.
    pub fn size_of_version(&self, version: Option<&str>) -> object_store::Result<u64> {
        let metadata = self.metadata()?;
        if version.is_some_and(|version| *version != local_version(&metadata)) {
            return Err(self.changed());
        }
        Ok(metadata.len())
    }

    /// All of the file, which must be `size_bytes` long.
    pub fn read(&self, size_bytes: u64) -> object_store::Result<Bytes> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(size_bytes + 1).read_to_end(&mut bytes));
        read.map_err(|error| self.error(error))?;
        if bytes.len() as u64 != size_bytes {
            return Err(self.changed());
        }
        Ok(bytes.into())
    }

    /// Only regular files are opened: opening any other file may block forever.
    fn metadata(&self) -> object_store::Result<Metadata> {
        let metadata = std::fs::metadata(&self.path).map_err(|error| self.error(error))?;
        if metadata.is_file() { Ok(metadata) } else { Err(self.changed()) }
    }

    fn changed(&self) -> object_store::Error {
        let source = "it has changed since it was listed".into();
        object_store::Error::Precondition { path: self.uri.clone(), source }
    }

    fn error(&self, error: io::Error) -> object_store::Error {
        let path = self.uri.clone();
        match error.kind() {
            io::ErrorKind::NotFound => object_store::Error::NotFound { path, source: error.into() },
            io::ErrorKind::PermissionDenied => {
                object_store::Error::PermissionDenied { path, source: error.into() }
            }
            _ => object_store::Error::Generic { store: "file", source: error.into() },
        }
    }
}
