//! A walk of a local folder, with names in the order in which a bucket would list them.
//!
//! Input: a folder and the rules for its subfolders. Output: the names found, relative to the folder.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use object_store::path;
use walkdir::{DirEntry, WalkDir};

use crate::error::{SourceError, StorageError};
use crate::store::{escaped, is_staged_name, local_version};

use super::found::{Found, Listed};
use super::input::{Folder, FolderRules};
use super::naming;

/// Files below a folder in the order of their full names: a folder sorts by its name with a slash.
pub(super) struct Walk {
    folder: PathBuf,
    rules: FolderRules,
    entries: walkdir::IntoIter,
}

impl Walk {
    pub fn new(folder: PathBuf, max_depth: Option<usize>, rules: FolderRules) -> Self {
        let sort_key = |entry: &DirEntry| {
            let mut key = entry.file_name().as_encoded_bytes().to_vec();
            if entry.file_type().is_dir() {
                key.push(b'/');
            }
            key
        };
        let entries = WalkDir::new(&folder)
            .follow_links(true)
            .min_depth(1)
            .max_depth(max_depth.unwrap_or(usize::MAX))
            .sort_by(move |a, b| sort_key(a).cmp(&sort_key(b)))
            .into_iter();
        Self { folder, rules, entries }
    }

    /// The name of `path` relative to the folder.
    fn name_of(&self, path: &Path) -> String {
        escaped(path.strip_prefix(&self.folder).unwrap_or(path).as_os_str().as_encoded_bytes())
    }

    /// One step; `None` for a folder that is descended into or ignored.
    fn step(&mut self, entry: walkdir::Result<DirEntry>) -> Result<Option<Listed>, SourceError> {
        let (path, metadata) = match entry {
            Ok(entry) => {
                let (name, kind) = (self.name_of(entry.path()), entry.file_type());
                // links are followed, so a link to a folder counts as a folder
                if kind.is_dir() {
                    return Ok(self.folder(name));
                }
                if !kind.is_file() {
                    return Ok(Some(Listed::Skipped(naming::SPECIAL, name)));
                }
                (entry.path().to_owned(), entry.metadata().ok())
            }
            Err(error) => {
                let path = error.path().unwrap_or(&self.folder).to_owned();
                if error.loop_ancestor().is_some() {
                    return Ok(Some(Listed::Skipped(naming::LINK, self.name_of(&path))));
                }
                let kind = error.io_error().map(std::io::Error::kind);
                // a dangling link is listed, so that its row reports it
                let is_dangling =
                    matches!(kind, Some(ErrorKind::NotFound | ErrorKind::NotADirectory)) || is_loop(&error);
                if kind == Some(ErrorKind::NotFound) && !path.is_symlink() && path != self.folder {
                    // it was removed after its folder was listed
                    return Ok(None);
                }
                if !(is_dangling && path.is_symlink()) {
                    let source = object_store::Error::Generic { store: "folder", source: error.into() };
                    return Err(StorageError { uri: path.display().to_string(), source }.into());
                }
                (path, None)
            }
        };
        let name = self.name_of(&path);
        if is_staged_name(name.rsplit('/').next().unwrap_or(&name)) {
            return Ok(Some(Listed::Skipped(naming::BEING_WRITTEN, name)));
        }
        let (size_bytes, version) =
            (metadata.as_ref().map(Metadata::len), metadata.as_ref().map(local_version));
        // an escaped name, or one that no store can address, cannot be looked up by its text
        let is_addressable =
            path.to_str().is_some_and(|path| path.ends_with(&name) && path::Path::parse(path).is_ok());
        let path = (!is_addressable).then_some(path);
        Ok(Some(Listed::Found(Found { name, path, size_bytes, version, is_folder_marker: false })))
    }

    fn folder(&mut self, name: String) -> Option<Listed> {
        match self.rules.judge(&name) {
            Folder::Descend => None,
            judged => {
                self.entries.skip_current_dir();
                (judged == Folder::Hidden).then(|| Listed::Skipped(naming::HIDDEN, name + "/"))
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Listed, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.entries.next()?;
            if let Some(listed) = self.step(entry).transpose() {
                return Some(listed);
            }
        }
    }
}

/// Whether links form a loop.
fn is_loop(error: &walkdir::Error) -> bool {
    error.io_error().and_then(std::io::Error::raw_os_error) == Some(libc::ELOOP)
}

#[cfg(test)]
mod tests {
    use super::super::input::Input;
    use super::*;
    use crate::store::local_stores;

    #[test]
    fn a_walk_yields_the_same_versions_as_the_store() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("a.jpg"), b"image").expect("write");
        std::os::unix::fs::symlink("a.jpg", folder.path().join("b.jpg")).expect("link");
        let path = folder.path().to_owned();
        let rules =
            Input::find(&stores, folder.path().to_str().expect("UTF-8")).expect("a folder").folder_rules();
        for listed in Walk::new(path, None, rules) {
            let Listed::Found(found) = listed.expect("listed") else { panic!("files are found") };
            let path = folder.path().join(&found.name);
            let location = stores.resolve(path.to_str().expect("UTF-8")).expect("a path");
            let looked_up = stores.head(&location).expect("there");
            assert!(found.version.is_some() && found.version == looked_up.version, "{:?}", found.version);
            assert_eq!(found.size_bytes, looked_up.size_bytes);
        }
    }
}
