//! Decides whether an object of an input is a shard, a manifest, an image, a companion of images, or none of these.
//!
//! Input: an object that an input names or lists. Output: its [`Rule`].
//!
//! - Listed objects are judged by their names alone; only objects that an input names are opened.

use bytes::Bytes;

use crate::config::InputFormat;
use crate::error::SourceError;
use crate::items::{ObjectRef, ShardFormat};
use crate::sniff::{self, Content, is_image};
use crate::store::{Object, STANDARD_INPUT, Stores, is_immediate_refusal};

use super::detect::{SNIFF_BYTES, by_bytes};
use super::input::Input;
use super::naming::{self, Rule};

/// Judges objects by the configured format, names and first bytes.
pub(super) struct Classifier {
    pub stores: Stores,
    pub format: InputFormat,
}

impl Classifier {
    /// The rule for an object that a listing found, by its name.
    pub fn listed(&self, input: &Input, name: &str) -> Rule {
        let by_name = input.rule(name);
        let format = match self.format {
            InputFormat::Auto => return by_name,
            InputFormat::Tfrecord => ShardFormat::Tfrecord,
            InputFormat::Webdataset => ShardFormat::Webdataset,
            InputFormat::Parquet => ShardFormat::Parquet,
            InputFormat::Files | InputFormat::Manifest => ShardFormat::Files,
        };
        match by_name {
            // the format files takes every object
            Rule::Skip(naming::UNDERSCORE) if self.format == InputFormat::Files => Rule::Image,
            Rule::Skip(_) => by_name,
            _ if self.format == InputFormat::Files => Rule::Image,
            Rule::Sidecar(naming::UNDERSCORE) if format == ShardFormat::Files => by_name,
            Rule::Sidecar(naming::UNDERSCORE) => Rule::Skip(naming::UNDERSCORE),
            _ if self.format == InputFormat::Manifest => Rule::Manifest,
            _ => Rule::Container(format),
        }
    }

    /// The rule for an object that an input names. The configured format decides first, then the name, then the first
    /// bytes. A text file is a list of images, unless it holds an image.
    ///
    /// # Errors
    /// When the object cannot be read, or is neither a shard nor an image nor a list.
    pub fn named(&self, object: &ObjectRef) -> Result<Rule, SourceError> {
        if object.uri == STANDARD_INPUT {
            return match self.format {
                InputFormat::Auto | InputFormat::Manifest => Ok(Rule::Manifest),
                _ => {
                    let message =
                        "standard input is read as a manifest; input.format must be auto or manifest";
                    Err(SourceError::Uri { uri: object.uri.clone(), message: message.to_owned() })
                }
            };
        }
        match self.format {
            InputFormat::Auto => {}
            InputFormat::Tfrecord => return Ok(Rule::Container(ShardFormat::Tfrecord)),
            InputFormat::Webdataset => return Ok(Rule::Container(ShardFormat::Webdataset)),
            InputFormat::Parquet => return Ok(Rule::Container(ShardFormat::Parquet)),
            InputFormat::Files => return Ok(Rule::Image),
            InputFormat::Manifest => return Ok(Rule::Manifest),
        }
        if let Some(format) = naming::container(&object.uri) {
            return Ok(Rule::Container(format));
        }
        if naming::has_image_extension(&object.uri) {
            return Ok(Rule::Image);
        }
        let head = match self.head_of(object) {
            // its kind stays unknown, and its row says why it cannot be read
            Err(SourceError::Storage(error))
                if is_immediate_refusal(&error.source)
                    && !naming::is_manifest(&object.uri)
                    && self.is_object_fault(object, &error.source) =>
            {
                return Ok(Rule::Image);
            }
            head => head?,
        };
        match by_bytes(&head) {
            Some(ShardFormat::Files) => Ok(Rule::Image),
            None if is_image(&head) => Ok(Rule::Image),
            // a compressed list has no magic bytes of its own
            _ if naming::is_manifest(&object.uri) => Ok(Rule::Manifest),
            Some(format) => Ok(Rule::Container(format)),
            None => {
                let message = match sniff::content(&head) {
                    Content::Other("text") => {
                        "it is text; a list of images needs input.format = \"manifest\"".to_owned()
                    }
                    Content::Other(what) => format!("it is {what}, not a shard or an image"),
                    Content::Image(_) | Content::OtherImage(_) | Content::Unknown => {
                        "neither its name nor its first bytes show its format; set input.format".to_owned()
                    }
                };
                Err(SourceError::Uri { uri: object.uri.clone(), message })
            }
        }
    }

    /// Whether the store refuses only this object.
    fn is_object_fault(&self, object: &ObjectRef, error: &object_store::Error) -> bool {
        let location = self.stores.resolve(&object.uri).ok();
        location.and_then(|at| self.stores.find_object_fault(&at, std::iter::empty(), error)).is_some()
    }

    /// The first bytes of an object.
    fn head_of(&self, object: &ObjectRef) -> Result<Bytes, SourceError> {
        let opened = Object::open(&self.stores, object)?;
        Ok(opened.read_range(0..opened.size_bytes().min(SNIFF_BYTES))?)
    }

    /// Whether the empty object that was listed as `uri` only marks a folder. Consoles create an object `folder/` for
    /// an empty folder; it is listed without its slash, and no object `folder` exists.
    ///
    /// # Errors
    /// Those of the store.
    pub fn is_folder_marker(&self, uri: &str) -> Result<bool, SourceError> {
        match self.stores.head(&self.stores.resolve(uri)?) {
            Ok(_) => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) if is_immediate_refusal(&error.source) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the object that `input` lists as `name` goes into a shard.
    pub fn takes(&self, input: &Input, name: &str) -> bool {
        !matches!(self.listed(input, name), Rule::Skip(_))
    }
}
