//! Where `scripts/setup.sh` puts libraries.

use std::path::{Path, PathBuf};

/// The current folder and the executable's, each with all folders above it: the repository's root,
/// below which `.deps` lies, is among them.
pub fn search_roots() -> Vec<PathBuf> {
    let exe = std::env::current_exe().ok();
    let starts = [std::env::current_dir().ok(), exe.and_then(|exe| exe.parent().map(Path::to_owned))];
    starts.iter().flatten().flat_map(|start| start.ancestors()).map(Path::to_owned).collect()
}
