//! The results of listing one input.

use std::path::PathBuf;

use crate::error::SourceError;
use crate::items::ObjectRef;

/// One name, relative to its input's folder.
pub(super) struct Found {
    /// The name as [`crate::store::escaped`] writes it.
    pub name: String,
    /// The local path, if no store can address the name.
    pub path: Option<PathBuf>,
    pub size_bytes: Option<u64>,
    pub version: Option<String>,
    /// Whether it is the empty object `name/`, which marks a folder, beside an object called `name`.
    pub is_folder_marker: bool,
}

/// The listing of an input, in order.
pub(super) type Names = Box<dyn Iterator<Item = Result<Listed, SourceError>> + Send>;

/// One step of a listing.
pub(super) enum Listed {
    /// The object that the input names.
    Named(ObjectRef),
    Found(Found),
    /// Something that is neither read nor listed further: its kind and its name.
    Skipped(&'static str, String),
}
