//! The folders of fetched files.
//!
//! - A folder exists while a worker of the process uses it.
//! - A process that is killed leaves its folders behind. The first fetch of another process of the same user removes
//!   them. A folder is left behind if nobody holds the lock of its file `lock`: the system releases the locks of a
//!   process when it ends. Process ids prove nothing, because containers may share the folder for temporary files.

use std::collections::HashMap;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use tempfile::TempDir;

use crate::flow::lock;

/// How the names of the folders begin.
const PREFIX: &str = "sluice-beam-";

/// The locked file of a folder.
const LOCK: &str = "lock";

/// The name of that file until it is locked. A folder without [`LOCK`] is never removed, so that no process removes a folder
/// that another one is making.
const NEW_LOCK: &str = "new-lock";

/// The part of a folder that has the fetched files.
const FILES: &str = "files";

/// The folders of files that the workers of a process have fetched.
#[derive(Debug)]
pub struct Fetched {
    /// The folder for temporary files.
    root: PathBuf,
    folders: Mutex<Folders>,
}

#[derive(Debug, Default)]
struct Folders {
    /// By the content of their files.
    by_content: HashMap<String, Weak<Folder>>,
    /// Whether the folders of processes that were killed have been removed.
    is_swept: bool,
}

/// A folder of fetched files. It is removed when the last worker that uses it ends.
#[derive(Debug)]
pub struct Folder {
    // removed before the lock is released
    path: TempDir,
    _lock: File,
    /// Held by the worker that fetches.
    pub fetching: Mutex<()>,
}

impl Default for Fetched {
    fn default() -> Self {
        Self::below(std::env::temp_dir())
    }
}

impl Fetched {
    /// Folders below `root`.
    pub fn below(root: PathBuf) -> Self {
        Self { root, folders: Mutex::default() }
    }

    /// The folder for the files with the hash `content`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn folder(&self, content: &str) -> io::Result<Arc<Folder>> {
        let mut folders = lock(&self.folders);
        if let Some(folder) = folders.by_content.get(content).and_then(Weak::upgrade) {
            return Ok(folder);
        }
        if !folders.is_swept {
            folders.is_swept = true;
            remove_abandoned(&self.root);
        }
        folders.by_content.retain(|_, folder| folder.strong_count() > 0);
        let made = Arc::new(Folder::new(&self.root)?);
        folders.by_content.insert(content.to_owned(), Arc::downgrade(&made));
        Ok(made)
    }

    /// The folders in use.
    #[cfg(test)]
    pub fn in_use(&self) -> Vec<Arc<Folder>> {
        lock(&self.folders).by_content.values().filter_map(Weak::upgrade).collect()
    }
}

impl Folder {
    fn new(root: &Path) -> io::Result<Self> {
        let path = TempDir::with_prefix_in(PREFIX, root)?;
        let new_lock = path.path().join(NEW_LOCK);
        let lock = File::create_new(&new_lock)?;
        // on a file system without locks, the folder is never taken for an abandoned one
        if lock.lock().is_ok() {
            fs::rename(new_lock, path.path().join(LOCK))?;
        }
        fs::create_dir(path.path().join(FILES))?;
        Ok(Self { path, _lock: lock, fetching: Mutex::default() })
    }

    /// Where its files are.
    pub fn files(&self) -> PathBuf {
        self.path.path().join(FILES)
    }
}

/// Remove the folders below `root` that processes of this user have left behind. One that cannot be removed stays.
fn remove_abandoned(root: &Path) {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) => return tracing::debug!(%error, "cannot look for folders of killed workers"),
    };
    for entry in entries.flatten() {
        match remove_if_abandoned(&entry) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(folder = %entry.path().display(), "removed the files of a killed worker");
            }
            Err(error) => {
                tracing::debug!(folder = %entry.path().display(), %error, "the files of a killed worker stay");
            }
        }
    }
}

/// Remove a folder, if a process of this user has left it behind. No link is followed.
fn remove_if_abandoned(entry: &DirEntry) -> io::Result<bool> {
    let user = rustix::process::geteuid().as_raw();
    // of a link, not of its target
    let metadata = entry.metadata()?;
    let is_own = metadata.is_dir() && metadata.uid() == user;
    if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) || !is_own {
        return Ok(false);
    }
    let path = entry.path();
    // opening a FIFO must not wait for a writer
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let lock = match OpenOptions::new().read(true).custom_flags(flags).open(path.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let metadata = lock.metadata()?;
    if !metadata.is_file() || metadata.uid() != user || lock.try_lock().is_err() {
        return Ok(false);
    }
    // the locked file last, so that a process that is killed in between leaves a folder that is found again
    match fs::remove_dir_all(path.join(FILES)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir_all(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a killed process leaves: its folder, and no lock.
    fn abandoned(root: &Path) -> PathBuf {
        let folder = Folder::new(root).expect("a folder");
        let model = folder.files().join("model");
        fs::create_dir(&model).expect("a folder");
        fs::write(model.join("m.onnx"), "m").expect("a file");
        folder._lock.unlock().expect("unlocked");
        let path = folder.path.path().to_owned();
        std::mem::forget(folder);
        path
    }

    #[test]
    fn the_first_fetch_of_a_process_removes_what_killed_processes_left() {
        let root = tempfile::tempdir().expect("a folder");
        let left = abandoned(root.path());
        let used = Folder::new(root.path()).expect("a folder");
        let fetched = Fetched::below(root.path().to_owned());
        let folder = fetched.folder("a").expect("a folder");
        assert!(!left.exists() && used.files().exists() && folder.files().exists());
        let later = abandoned(root.path());
        let other = fetched.folder("b").expect("a folder");
        assert!(later.exists(), "a process looks once");
        assert!(other.files() != folder.files() && folder.files().exists());
    }

    #[test]
    fn only_folders_of_this_shape_are_removed_and_no_link_is_followed() {
        let (root, elsewhere) = (tempfile::tempdir().expect("root"), tempfile::tempdir().expect("elsewhere"));
        let path = |name: &str| root.path().join(name);
        let target = abandoned(elsewhere.path());
        symlink(&target, path("sluice-beam-link")).expect("a link");
        // another process is making it
        fs::create_dir_all(path("sluice-beam-new")).expect("a folder");
        fs::write(path("sluice-beam-new").join(NEW_LOCK), "").expect("a file");
        fs::create_dir_all(path("sluice-beam-linked")).expect("a folder");
        symlink(target.join(LOCK), path("sluice-beam-linked").join(LOCK)).expect("a link");
        fs::create_dir_all(path("sluice-out")).expect("a folder");
        fs::write(path("sluice-out").join(LOCK), "").expect("a file");
        fs::write(path("sluice-beam-file"), "").expect("a file");
        fs::create_dir_all(path("sluice-beam-fifo")).expect("a folder");
        let fifo = path("sluice-beam-fifo").join(LOCK);
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        let before = fs::read_dir(root.path()).expect("a folder").count();
        remove_abandoned(root.path());
        assert_eq!(fs::read_dir(root.path()).expect("a folder").count(), before);
        assert!(target.join(FILES).exists());
        // a link inside a folder that is removed
        let left = abandoned(root.path());
        symlink(&target, left.join(FILES).join("link")).expect("a link");
        remove_abandoned(root.path());
        assert!(!left.exists() && target.join(FILES).exists());
    }

    #[test]
    fn a_folder_whose_removal_was_cut_off_is_removed_later() {
        let root = tempfile::tempdir().expect("a folder");
        let left = abandoned(root.path());
        fs::remove_dir_all(left.join(FILES)).expect("removed");
        remove_abandoned(root.path());
        assert!(!left.exists());
    }
}
