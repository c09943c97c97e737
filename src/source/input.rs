//! One input URI: object, folder or glob.
//!
//! Input: a URI of the plan. Output: an [`Input`], which says where to list and which names to take.
//!
//! - A name that exists is that object or folder, whatever characters it contains.
//! - In globs `*`, `?` and `[…]` stay inside one folder, `**` crosses folders, and `{a,b}` matches either.
//! - Hidden names, which start with a dot like `.DS_Store`, are taken only by a glob that spells out the dot or an
//!   input that names the object. The same holds for containers whose name starts with an underscore.

use std::collections::HashSet;

use futures_util::StreamExt;
use globset::{GlobBuilder, GlobMatcher};

use crate::error::{SourceError, StorageError};
use crate::items::ObjectRef;
use crate::shown::without_secrets;

use super::naming::{self, Rule, is_hidden, is_web_address};
use crate::store::{Location, STANDARD_INPUT, StoreKind, Stores, is_immediate_refusal};

/// Characters that make a name a pattern.
const GLOB_CHARACTERS: [char; 4] = ['*', '?', '[', '{'];

/// A folder at the root of a file system that only root may read; fsck puts recovered files there.
const LOST_AND_FOUND: &str = "lost+found";

/// An input URI, resolved to an object, a folder or a glob.
pub(super) struct Input {
    /// The URI as given.
    pub uri: String,
    /// The object, or the folder below which to list.
    pub location: Location,
    pub shape: Shape,
}

pub(super) enum Shape {
    /// One object, looked up.
    Object(ObjectRef),
    /// Everything below a folder or prefix.
    Folder,
    /// The objects that match below the last folder without pattern characters.
    Glob(Glob),
}

/// A pattern, relative to the input's folder.
pub(super) struct Glob {
    matcher: GlobMatcher,
    /// The start of every match.
    pub literal: String,
    /// The greatest depth of a match, 1 for one directly in the folder; `None` with `**`.
    pub max_depth: Option<usize>,
    takes_hidden: bool,
    takes_underscored: bool,
    /// Patterns of the folders above a match, from the top down, before the first that spans several folders.
    folders: Vec<GlobMatcher>,
}

/// Which folders a walk descends into.
pub(super) struct FolderRules {
    takes_hidden: bool,
    folders: Vec<GlobMatcher>,
}

/// The treatment of a folder by a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Folder {
    /// Something below may match.
    Descend,
    /// Something below would match if it were not hidden.
    Hidden,
    /// Nothing below can match.
    Outside,
}

impl FolderRules {
    /// The treatment of the folder `name`, which is relative to the input's folder.
    pub fn judge(&self, name: &str) -> Folder {
        let mut parts = name.split('/').enumerate();
        let inside = parts.all(|(depth, part)| {
            part != LOST_AND_FOUND && self.folders.get(depth).is_none_or(|folder| folder.is_match(part))
        });
        if !inside {
            Folder::Outside
        } else if !self.takes_hidden && is_hidden(name) {
            Folder::Hidden
        } else {
            Folder::Descend
        }
    }
}

impl Input {
    /// Find out what `uri` stands for. Names without glob characters are looked up.
    pub fn find(stores: &Stores, uri: &str) -> Result<Self, SourceError> {
        if uri == STANDARD_INPUT {
            stores.spool_standard_input()?;
        }
        let key_start = uri.find("://").map_or(0, |scheme| scheme + 3);
        let first_glob = uri[key_start..].find(GLOB_CHARACTERS).map(|at| key_start + at);
        let refused = |message: &str| SourceError::Uri { uri: uri.to_owned(), message: message.to_owned() };
        let is_web = is_web_address(uri);
        let is_plain = !uri.contains('?');
        if is_web && is_plain && (uri.ends_with('/') || uri.contains('*')) {
            return Err(refused(
                "a web server cannot be listed; name each object, or list them in a manifest",
            ));
        }
        if let Some(first_glob) = first_glob.filter(|_| !is_web) {
            // the question mark may begin the query of a signed URL
            let location = (key_start > 0).then(|| stores.resolve(uri)).transpose()?;
            let exists = match &location {
                None => std::path::Path::new(uri).exists(),
                // `file://` URIs write these characters of a name percent-encoded, so this one is a pattern
                Some(location) => {
                    location.kind == StoreKind::Bucket && !uri.contains('*') && stores.head(location).is_ok()
                }
            };
            if !exists {
                return Self::glob(stores, uri, first_glob);
            }
        }
        let location = stores.resolve(uri)?;
        let shape = match location.kind {
            StoreKind::Local if location.local_path().is_some_and(|path| path.is_dir()) => Shape::Folder,
            StoreKind::Bucket if location.path.is_root() || uri.ends_with('/') => Shape::Folder,
            StoreKind::Local => Shape::Object(stores.head(&location)?),
            StoreKind::Bucket | StoreKind::Http => match stores.head(&location) {
                Err(error) if location.kind == StoreKind::Bucket && error.is_not_found() => Shape::Folder,
                // some stores refuse the name of a prefix instead of answering "not found"
                Err(error) if is_immediate_refusal(&error.source) && holds_objects(stores, &location) => {
                    Shape::Folder
                }
                // reported when the object is read: other inputs are not affected
                Err(error) if is_immediate_refusal(&error.source) => {
                    Shape::Object(ObjectRef { uri: location.uri.clone(), size_bytes: None, version: None })
                }
                found => Shape::Object(found?),
            },
        };
        Ok(Self { uri: uri.to_owned(), location, shape })
    }

    fn glob(stores: &Stores, uri: &str, first_glob: usize) -> Result<Self, SourceError> {
        let folder_end = uri[..first_glob].rfind('/').map_or(0, |slash| slash + 1);
        let (folder, pattern) = uri.split_at(folder_end);
        let matcher = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| {
            SourceError::Uri { uri: uri.to_owned(), message: format!("not a valid glob: {}", error.kind()) }
        })?;
        let mut location = stores.resolve(if folder.is_empty() { "." } else { folder })?;
        if folder.is_empty() {
            location.uri = String::new();
        }
        if let Some(path) = location.local_path() {
            // distinguish an empty match from a missing folder
            std::fs::metadata(&path).map_err(|source| {
                let path = path.display().to_string();
                let source = object_store::Error::NotFound { path, source: source.into() };
                StorageError { uri: uri.to_owned(), source }
            })?;
        }
        let literal_end = pattern.find('\\').map_or(first_glob, |escape| first_glob.min(folder_end + escape));
        let glob = Glob {
            matcher: matcher.compile_matcher(),
            literal: uri[folder_end..literal_end].to_owned(),
            max_depth: (!pattern.contains("**")).then(|| pattern.matches('/').count() + 1),
            takes_hidden: is_hidden(pattern),
            takes_underscored: pattern.split('/').any(|part| part.starts_with('_')),
            folders: folder_matchers(pattern),
        };
        Ok(Self { uri: uri.to_owned(), location, shape: Shape::Glob(glob) })
    }

    /// The URI of the folder as given, with a trailing slash: the prefix of every listed URI.
    pub fn base_uri(&self) -> String {
        with_slash(self.location.uri.clone())
    }

    /// The id of the folder, with a trailing slash. It is the same for every spelling of the folder.
    pub fn base_id(&self) -> String {
        with_slash(self.location.id())
    }

    /// Whether `name` matches this input, hidden or not.
    pub fn matches(&self, name: &str) -> bool {
        match &self.shape {
            Shape::Object(_) => false,
            Shape::Folder => true,
            Shape::Glob(glob) => glob.matcher.is_match(name),
        }
    }

    /// Which folders below this input may hold a match.
    pub fn folder_rules(&self) -> FolderRules {
        match &self.shape {
            Shape::Glob(Glob { takes_hidden, folders, .. }) => {
                FolderRules { takes_hidden: *takes_hidden, folders: folders.clone() }
            }
            Shape::Folder | Shape::Object(_) => FolderRules { takes_hidden: false, folders: Vec::new() },
        }
    }

    /// Whether `name` or a folder in it is hidden from this input.
    pub fn hides(&self, name: &str) -> bool {
        let takes_hidden = matches!(&self.shape, Shape::Glob(glob) if glob.takes_hidden);
        !takes_hidden && is_hidden(name)
    }

    /// The rule for the listed object `name`, by the name alone.
    pub fn rule(&self, name: &str) -> Rule {
        let takes_underscored = matches!(&self.shape, Shape::Glob(glob) if glob.takes_underscored);
        if self.hides(name) { Rule::Skip(naming::HIDDEN) } else { naming::listed(name, takes_underscored) }
    }
}

/// The inputs before the current one, whose objects are not taken again.
///
/// A folder or glob is a rule about names, so the objects that it lists need not be remembered.
#[derive(Default)]
pub(super) struct Earlier {
    objects: HashSet<String>,
    /// Positions in the list of inputs.
    lists: Vec<usize>,
}

impl Earlier {
    /// Add the input at `position`, which is listed completely.
    pub fn add(&mut self, inputs: &[Input], position: usize) {
        match inputs[position].shape {
            Shape::Object(_) => drop(self.objects.insert(inputs[position].location.id())),
            Shape::Folder | Shape::Glob(_) => self.lists.push(position),
        }
    }

    /// Whether an earlier input took the object `id`. `takes` says whether an input that lists the object's folder
    /// takes its name.
    pub fn took(&self, inputs: &[Input], id: &str, takes: impl Fn(&Input, &str) -> bool) -> bool {
        self.objects.contains(id)
            || self.lists.iter().any(|&at| {
                let input = &inputs[at];
                let name = id.strip_prefix(&input.base_id());
                name.is_some_and(|name| input.matches(name) && takes(input, name))
            })
    }
}

/// The first of the inputs `uris` whose listing descends into `folder`, if any.
///
/// # Errors
/// Those of [`super::list_shards`].
pub fn input_around<'a>(
    stores: &Stores,
    uris: &'a [String],
    folder: &Location,
) -> Result<Option<&'a str>, SourceError> {
    for uri in uris {
        let input = Input::find(stores, uri)?;
        let descends = match &input.shape {
            Shape::Object(_) => false,
            Shape::Folder => true,
            Shape::Glob(glob) => glob.max_depth.is_none(),
        };
        if descends && with_slash(folder.id()).starts_with(&input.base_id()) {
            return Ok(Some(uri));
        }
    }
    Ok(None)
}

/// One matcher for each folder of a pattern, before the first part that spans several folders.
fn folder_matchers(pattern: &str) -> Vec<GlobMatcher> {
    // alternatives, character sets and escapes may contain slashes
    if pattern.contains(['{', '[', '\\']) {
        return Vec::new();
    }
    let mut parts: Vec<_> = pattern.split('/').collect();
    parts.pop();
    let single = parts.into_iter().take_while(|part| !part.contains("**"));
    let matchers = single.map(|part| GlobBuilder::new(part).literal_separator(true).build());
    matchers.map_while(|glob| glob.ok().map(|glob| glob.compile_matcher())).collect()
}

/// Whether the bucket holds an object below `location`.
fn holds_objects(stores: &Stores, location: &Location) -> bool {
    let first = async { location.store.list(Some(&location.path)).next().await };
    location.kind == StoreKind::Bucket && matches!(stores.wait(location.kind, first), Some(Ok(_)))
}

fn with_slash(mut folder: String) -> String {
    if !folder.is_empty() && !folder.ends_with('/') {
        folder.push('/');
    }
    folder
}

/// Refuse inputs if two of them are the same in any spelling.
pub(super) fn refuse_repeated(inputs: &[Input]) -> Result<(), SourceError> {
    let (mut seen, mut names) = (HashSet::new(), HashSet::new());
    for input in inputs {
        let pattern = match &input.shape {
            Shape::Glob(glob) => glob.matcher.glob().glob(),
            Shape::Object(_) | Shape::Folder => "",
        };
        if !seen.insert((input.location.id(), pattern)) {
            let message = "is given twice".to_owned();
            return Err(SourceError::Uri { uri: input.uri.clone(), message });
        }
        if !names.insert((without_secrets(&input.uri), pattern)) {
            let message = "differs from another input only in a secret, which names do not show".to_owned();
            return Err(SourceError::Uri { uri: input.uri.clone(), message });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local_stores;

    #[test]
    fn globs_stay_inside_a_folder_and_skip_hidden_names_unless_they_spell_it_out() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let cases = [
            ("*.jpg", "a.jpg", true),
            ("*.jpg", "d/a.jpg", false),
            ("**/*.jpg", "d/e/a.jpg", true),
            ("**/*.jpg", "a.jpg", true),
            ("d?/[ab].{jpg,png}", "d1/b.png", true),
            ("d?/[ab].{jpg,png}", "d1/c.png", false),
            ("*", ".DS_Store", false),
            ("*", "_DSC0002.JPG", true),
            ("**/*.jpg", ".cache/a.jpg", false),
            ("_*/a.jpg", "_x/a.jpg", true),
            (".*/a.jpg", ".x/a.jpg", true),
        ];
        for (pattern, name, expected) in cases {
            let input =
                Input::find(&stores, &format!("{}/{pattern}", folder.path().display())).expect(pattern);
            assert_eq!(input.matches(name) && !input.hides(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_input_that_descends_into_the_output_is_found() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| format!("{}/{name}", folder.path().display());
        std::fs::create_dir(at("photos")).expect("folder");
        for (input, output, around) in [
            ("photos", "photos/out", true),
            ("photos/", "photos", true),
            ("photos/**/*.jpg", "photos/out/today", true),
            ("photos", "photos-scored", false),
            ("photos", "out", false),
            ("photos/*.jpg", "photos/out", false),
        ] {
            let uris = [at(input)];
            let folder = stores.resolve(&at(output)).expect("a path");
            let found = input_around(&stores, &uris, &folder).expect("they exist");
            assert_eq!(found.is_some(), around, "{input}, {output}");
        }
    }

    #[test]
    fn an_existing_name_is_not_a_pattern() {
        let (_runtime, stores) = local_stores();
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("photo[1].jpg");
        std::fs::write(&path, b"x").expect("write");
        let input = Input::find(&stores, path.to_str().expect("UTF-8")).expect("found");
        assert!(matches!(input.shape, Shape::Object(object) if object.size_bytes == Some(1)));
    }

    #[test]
    fn a_web_server_cannot_be_listed() {
        let (_runtime, stores) = local_stores();
        for uri in ["https://h/*.jpg", "https://h/folder/"] {
            let message = Input::find(&stores, uri).err().expect("refused").to_string();
            assert!(message.contains("cannot be listed"), "{message}");
        }
    }

    #[test]
    fn a_bad_glob_and_a_missing_folder_are_different_errors() {
        let (_runtime, stores) = local_stores();
        let message = Input::find(&stores, "src/[z-a].rs").err().expect("bad").to_string();
        assert!(message.contains("not a valid glob"), "{message}");
        let message = Input::find(&stores, "no/such/*.rs").err().expect("missing").to_string();
        assert!(message.contains("no/such/*.rs") && message.contains("not found"), "{message}");
    }
}
