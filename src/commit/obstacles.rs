//! What stands on a disk where an output's files belong, and is none: no listing shows it, and nothing can be created
//! in its place.
//!
//! - Links that lead nowhere, FIFOs, sockets and empty folders hold nothing: `--overwrite` removes them.
//! - Devices, and folders that hold something, are refused before anything is removed.
//! - Under any other name such a thing is in nobody's way, and stays.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::checkpoints::CHECKPOINTS;
use super::crashes::CRASHES;
use super::listing::OutputListing;
use super::names::{is_folder, lies_in};
use super::output::Output;
use crate::error::{SinkError, StorageError};

/// Something that is in the way.
struct InTheWay {
    /// Path below the output.
    name: String,
    path: PathBuf,
    kind: FileType,
}

impl InTheWay {
    /// What it is, in words, and whether it may be removed.
    fn judge(&self) -> io::Result<(&'static str, bool)> {
        Ok(match self.kind {
            kind if kind.is_symlink() => ("a link that leads to no file", true),
            kind if kind.is_fifo() => ("a FIFO", true),
            kind if kind.is_socket() => ("a socket", true),
            kind if kind.is_dir() && fs::read_dir(&self.path)?.next().is_none() => ("an empty folder", true),
            kind if kind.is_dir() => ("a folder that is not empty", false),
            _ => ("a device", false),
        })
    }

    fn remove(&self) -> io::Result<()> {
        if self.kind.is_dir() { fs::remove_dir(&self.path) } else { fs::remove_file(&self.path) }
    }
}

/// Whether files of an output belong below the folder of that name.
fn holds_files(name: &str) -> bool {
    let is_of_a_shard = lies_in(CHECKPOINTS, name) || lies_in(CRASHES, name);
    is_folder(name) || is_of_a_shard && name.matches('/').count() == 1
}

/// Add what is in the way in `folder`, which is called `prefix` below the output.
fn look(folder: &Path, prefix: &str, found: &mut Vec<InTheWay>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (name, path) = (format!("{prefix}{}", entry.file_name().to_string_lossy()), entry.path());
        match fs::metadata(&path) {
            // what is a file is listed
            Ok(meta) if meta.is_file() => {}
            Ok(meta) if meta.is_dir() && holds_files(&name) => look(&path, &format!("{name}/"), found)?,
            _ if holds_files(&name) || OutputListing::of(&name).foreign.is_none() => {
                found.push(InTheWay { name, path, kind: entry.file_type()? });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Output {
    /// Remove the run that is there, and what is in the way of another one.
    ///
    /// # Errors
    /// [`SinkError::Occupied`], and then nothing is removed, where something lies that is nothing of ours, or is in the
    /// way and may hold something.
    pub fn overwrite(&self, listing: OutputListing) -> Result<(), SinkError> {
        self.refuse_foreign(&listing)?;
        if let Some(local) = self.local() {
            let failed = |name: &str, error: io::Error| {
                let source = object_store::Error::Generic { store: "folder", source: error.into() };
                SinkError::from(StorageError { uri: self.uri_of(name), source })
            };
            let mut found = Vec::new();
            look(local, "", &mut found).map_err(|error| failed("", error))?;
            let mut kinds = Vec::new();
            for thing in &found {
                let (kind, may_go) = thing.judge().map_err(|error| failed(&thing.name, error))?;
                if !may_go {
                    let what = format!("{}, which is {kind}", thing.name);
                    return Err(SinkError::Occupied { uri: self.uri().to_owned(), what });
                }
                kinds.push(kind);
            }
            for (thing, kind) in found.iter().zip(kinds) {
                tracing::warn!(name = thing.name, kind, "removing what is in the way of an output's file");
                thing.remove().map_err(|error| failed(&thing.name, error))?;
            }
        }
        self.clear(listing)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use object_store::local::LocalFileSystem;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::super::output::{MANIFEST, SUCCESS};
    use super::super::record::RUN;
    use super::*;

    const FILES: [&str; 6] = [
        RUN,
        MANIFEST,
        SUCCESS,
        "_attempts/000000.json",
        "_crashes/part-000000-0123456789ab/0000000012-11-01234567.json",
        "predictions/part-000000-0123456789ab.parquet",
    ];
    const FOLDERS: [&str; 3] = ["_attempts", "_crashes/part-000000-0123456789ab", "predictions"];

    /// An output on a disk in which there is one object, and what `make` makes under a name of an output's file.
    fn overwritten(name: &str, make: impl Fn(&Path)) -> (tempfile::TempDir, Result<(), String>) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let store = LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let (root, local) = (object_store::path::Path::from("out"), folder.path().join("out"));
        let output = Output::new(
            Arc::new(store),
            root,
            "out".to_owned(),
            Some(local.clone()),
            runtime.handle().clone(),
        );
        assert!(output.create("_workers/000000-of-000001", b"x".to_vec()).expect("stored"));
        fs::create_dir_all(local.join(name).parent().expect("a folder")).expect("folders");
        make(&local.join(name));
        let done = output.overwrite(output.list().expect("a list"));
        (folder, done.map_err(|error| error.to_string()))
    }

    #[test]
    fn what_holds_nothing_is_removed_where_a_file_belongs_and_stays_elsewhere() {
        let fifo = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
        let link = |path: &Path| symlink("nowhere", path).expect("a link");
        let socket = |path: &Path| {
            let folder = fs::File::open(path.parent().expect("a folder")).expect("a folder");
            // the whole path of a socket has at most 107 bytes
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
            drop(UnixListener::bind(short).expect("a socket"));
        };
        let dir = |path: &Path| fs::create_dir(path).expect("a folder");
        let kinds: [&dyn Fn(&Path); 4] = [&fifo, &link, &socket, &dir];
        for (at, make) in kinds.into_iter().enumerate() {
            // an empty folder is none in the way of a folder
            let folders = if at < 3 { &FOLDERS[..] } else { &[] };
            for name in FILES.iter().chain(folders) {
                let (folder, done) = overwritten(name, make);
                assert_eq!(done, Ok(()), "{name}");
                let left = folder.path().join("out").join(name).symlink_metadata();
                assert!(left.is_err(), "{name} is left");
            }
            for name in ["notes", "predictions/notes"] {
                let (folder, done) = overwritten(name, make);
                assert_eq!(done, Ok(()), "{name}");
                assert!(
                    folder.path().join("out").join(name).symlink_metadata().is_ok(),
                    "{name} is nobody's"
                );
            }
        }
    }

    #[test]
    fn what_may_hold_something_is_refused_before_anything_is_removed() {
        for name in FILES {
            let (folder, done) =
                overwritten(name, |path| fs::create_dir_all(path.join("more")).expect("folders"));
            let refused = done.expect_err("it holds something");
            assert!(refused.contains(&format!("{name}, which is a folder that is not empty")), "{refused}");
            assert!(folder.path().join("out").join(name).join("more").is_dir());
            assert!(folder.path().join("out/_workers/000000-of-000001").is_file(), "something was removed");
        }
        let kind = fs::metadata("/dev/null").expect("a device").file_type();
        let device = InTheWay { name: RUN.to_owned(), path: "/dev/null".into(), kind };
        assert_eq!(device.judge().expect("looked at"), ("a device", false));
    }
}
