//! Lists the names of one input: by a walk of local folders, or by the pages of a bucket's listing.
//!
//! Input: an input. Output: the names below its folder, in the order of their full names, listed on demand.
//!
//! - The caller applies patterns and hidden names. They narrow the listing as far as a prefix of a bucket's keys or the
//!   name of a folder allows.
//! - Memory holds the names of one folder and its parents, or one page of keys.

use std::iter;

use crate::store::{KeyPages, ListedKey, Stores};

use super::found::{Found, Listed, Names};
use super::input::{Input, Shape};
use super::naming;
use super::walk::Walk;

/// Begin to list `input`.
pub(super) fn names(stores: &Stores, input: &Input) -> Names {
    let glob = match &input.shape {
        Shape::Object(object) => return Box::new(iter::once(Ok(Listed::Named(object.clone())))),
        Shape::Folder => None,
        Shape::Glob(glob) => Some(glob),
    };
    let max_depth = glob.and_then(|glob| glob.max_depth);
    if let Some(folder) = input.location.local_path() {
        return Box::new(Walk::new(folder, max_depth, input.folder_rules()));
    }
    let base_id = input.base_id();
    let base_key = base_id.strip_prefix(input.location.root()).unwrap_or_default().to_owned();
    let literal = glob.map_or("", |glob| glob.literal.as_str());
    let prefix = format!("{base_key}{literal}");
    let keys = KeyPages::new(stores, &input.location, &input.uri, prefix, max_depth == Some(1));
    let listed = keys.into_iter().flatten().filter_map(move |key| match key {
        Ok(key) => named(key, &base_key).map(Ok),
        Err(error) => Some(Err(error)),
    });
    Box::new(listed)
}

/// A key as a name below `base_key`; `None` for the folder itself.
fn named(key: ListedKey, base_key: &str) -> Option<Listed> {
    Some(match key {
        ListedKey::Object { key, size_bytes, version, is_folder_marker } => {
            let name = key.strip_prefix(base_key).filter(|name| !name.is_empty())?.to_owned();
            Listed::Found(Found { name, path: None, size_bytes, version, is_folder_marker })
        }
        ListedKey::Unaddressable(key) => Listed::Skipped(naming::UNADDRESSABLE, key),
    })
}
