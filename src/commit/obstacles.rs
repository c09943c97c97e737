//! Entries on a disk that have the name of an output's file but are not files. No listing shows them, and no file can
//! be created under their name.
//!
//! - `--overwrite` removes dangling links, FIFOs, sockets and empty folders: they have no content.
//! - Devices, and folders that are not empty, are refused before anything is removed.
//! - Such an entry stays if it has any other name.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::names::{ObjectName, holds_objects};
use super::output::Output;
use crate::error::SinkError;

/// One such entry.
struct Obstacle {
    /// Path below the output.
    name: String,
    path: PathBuf,
    kind: FileType,
}

impl Obstacle {
    /// What it is, in words, and whether it may be removed.
    fn judge(&self) -> io::Result<(&'static str, bool)> {
        Ok(match self.kind {
            kind if kind.is_symlink() => ("a dangling link", true),
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

/// Add the obstacles in `folder`, whose name below the output is `prefix`.
fn look(folder: &Path, prefix: &str, found: &mut Vec<Obstacle>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (name, path) = (format!("{prefix}{}", entry.file_name().to_string_lossy()), entry.path());
        match fs::metadata(&path) {
            // a listing shows it
            Ok(meta) if meta.is_file() => {}
            Ok(meta) if meta.is_dir() && holds_objects(&name) => look(&path, &format!("{name}/"), found)?,
            _ if holds_objects(&name) || ObjectName::parse(&name).is_some() => {
                found.push(Obstacle { name, path, kind: entry.file_type()? });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Remove the obstacles of an output on this machine's disk.
///
/// # Errors
/// [`SinkError::Occupied`], before anything is removed, if one of them may have content.
pub(super) fn remove_obstacles(output: &Output) -> Result<(), SinkError> {
    let Some(local) = output.local() else { return Ok(()) };
    let failed = |name: &str, error: io::Error| {
        output.failed(name, object_store::Error::Generic { store: "folder", source: error.into() })
    };
    let mut found = Vec::new();
    look(local, "", &mut found).map_err(|error| failed("", error))?;
    let mut kinds = Vec::new();
    for obstacle in &found {
        let (kind, may_go) = obstacle.judge().map_err(|error| failed(&obstacle.name, error))?;
        if !may_go {
            let what = format!("{}, which is {kind}", obstacle.name);
            return Err(SinkError::Occupied { uri: output.uri().to_owned(), what });
        }
        kinds.push(kind);
    }
    for (obstacle, kind) in found.iter().zip(kinds) {
        tracing::warn!(
            name = obstacle.name,
            kind,
            "removing an obstacle: it has the name of an output's file"
        );
        obstacle.remove().map_err(|error| failed(&obstacle.name, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use object_store::local::LocalFileSystem;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::commit::names::{MANIFEST, RUN, SUCCESS};

    const FILES: [&str; 6] = [
        RUN,
        MANIFEST,
        SUCCESS,
        "_attempts/000000-01234567.json",
        "_crashes/part-000000-0123456789ab/0000000012-11-01234567.json",
        "predictions/part-000000-0123456789ab.parquet",
    ];
    const FOLDERS: [&str; 3] = ["_attempts", "_crashes/part-000000-0123456789ab", "predictions"];

    /// The obstacles removed from an output on a disk that has one object, and what `make` makes under the name of
    /// another.
    fn cleared(name: &str, make: impl Fn(&Path)) -> (tempfile::TempDir, Result<(), String>) {
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
        assert!(output.create("_workers/000000-of-000001-01234567", b"x".to_vec()).expect("stored"));
        fs::create_dir_all(local.join(name).parent().expect("a folder")).expect("folders");
        make(&local.join(name));
        let done = remove_obstacles(&output);
        (folder, done.map_err(|error| error.to_string()))
    }

    #[test]
    fn an_empty_obstacle_is_removed_where_a_file_belongs_and_stays_elsewhere() {
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
            // an empty folder is in the way of no folder
            let folders = if at < 3 { &FOLDERS[..] } else { &[] };
            for name in FILES.iter().chain(folders) {
                let (folder, done) = cleared(name, make);
                assert_eq!(done, Ok(()), "{name}");
                let left = folder.path().join("out").join(name).symlink_metadata();
                assert!(left.is_err(), "{name} is left");
            }
            for name in ["notes", "predictions/notes"] {
                let (folder, done) = cleared(name, make);
                assert_eq!(done, Ok(()), "{name}");
                assert!(
                    folder.path().join("out").join(name).symlink_metadata().is_ok(),
                    "{name} was removed"
                );
            }
        }
    }

    #[test]
    fn an_obstacle_that_may_hold_something_is_refused_before_anything_is_removed() {
        for name in FILES {
            let (folder, done) =
                cleared(name, |path| fs::create_dir_all(path.join("more")).expect("folders"));
            let refused = done.expect_err("it holds something");
            assert!(refused.contains(&format!("{name}, which is a folder that is not empty")), "{refused}");
            assert!(folder.path().join("out").join(name).join("more").is_dir());
            assert!(
                folder.path().join("out/_workers/000000-of-000001-01234567").is_file(),
                "something was removed"
            );
        }
        let kind = fs::metadata("/dev/null").expect("a device").file_type();
        let device = Obstacle { name: RUN.to_owned(), path: "/dev/null".into(), kind };
        assert_eq!(device.judge().expect("looked at"), ("a device", false));
    }
}
