//! Folders in which to look for `.deps`, where `scripts/setup.sh` puts libraries.

use std::path::{Path, PathBuf};

/// The current folder and the executable's folder, each with all folders above it. The root of the
/// repository, which contains `.deps`, is usually among them.
pub fn search_roots() -> Vec<PathBuf> {
    let exe = std::env::current_exe().ok();
    let starts = [std::env::current_dir().ok(), exe.and_then(|exe| exe.parent().map(Path::to_owned))];
    starts.iter().flatten().flat_map(|start| start.ancestors()).map(Path::to_owned).collect()
}
