//! A shard as listed: its name, its objects, and its place in the input.
//!
//! - A shard contains everything that a worker needs to read it, and is sent to other processes as JSON
//!   ([`ShardRef::to_json`]).
//! - Its place in the input and its identity are fixed when the input is listed. The name of its part contains both.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::plan::hex;

/// How the records of a shard are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardFormat {
    /// TFRecord framing of `tf.Example` messages, possibly compressed as a whole.
    Tfrecord,
    /// A tar archive whose image members are the records; gzip and zstd are recognised.
    Webdataset,
    /// A Parquet file with one column of encoded images.
    Parquet,
    /// Consecutive loose images of a listing.
    Files,
}

impl ShardFormat {
    /// As columns and reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tfrecord => "tfrecord",
            Self::Webdataset => "webdataset",
            Self::Parquet => "parquet",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for ShardFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object of a store, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Full URI as an analyst would write it: `gs://bucket/a.tar`, `/data/a.tar`, `https://…`.
    pub uri: String,
    /// Size in bytes; `None` for manifest entries, whose sizes are not requested before they are read.
    pub size_bytes: Option<u64>,
    /// ETag at listing time, if the store reports one.
    pub version: Option<String>,
}

/// What a shard is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardContent {
    /// One object that holds all records (TFRecord, tar, Parquet).
    Container(ObjectRef),
    /// Loose objects, one record each, in listing or manifest order.
    Objects(Vec<ManifestEntry>),
}

/// One loose image: its object and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The image's object.
    pub object: ObjectRef,
    /// Identifier for the `image_id` column; the URI where the manifest names none.
    pub image_id: String,
    /// Kind of companion file, such as `json`, that its name suggests. It is a record only if it begins like an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Cow<'static, str>>,
    /// Its path on this machine's disk, if the store cannot address its name.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_bytes")]
    pub path: Option<PathBuf>,
}

impl ManifestEntry {
    /// An object that is a record whatever it contains.
    pub fn new(object: ObjectRef, image_id: String) -> Self {
        Self { object, image_id, sidecar: None, path: None }
    }
}

/// One unit of input and of output: its rows make one predictions part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRef {
    /// Position in the input order of the run, from 0.
    pub index: u64,
    /// Unique in the run: the object's URI, or the first object's URI and a count for loose files.
    pub name: String,
    /// How its records are stored.
    pub format: ShardFormat,
    /// The objects that hold its records.
    pub content: ShardContent,
}

/// Version of a shard's JSON: raise it with each change that an older reader would misunderstand.
const JSON_VERSION: u32 = 1;

/// A shard as JSON.
#[derive(Serialize, Deserialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    shard: Cow<'a, ShardRef>,
}

impl ShardRef {
    /// A shard at this place in the input.
    pub fn new(index: u64, name: impl Into<String>, format: ShardFormat, content: ShardContent) -> Self {
        Self { index, name: name.into(), format, content }
    }

    /// The shard as JSON, for a worker in another process.
    pub fn to_json(&self) -> String {
        let versioned = Versioned { version: JSON_VERSION, shard: Cow::Borrowed(self) };
        serde_json::to_string(&versioned).expect("a shard always serialises to JSON")
    }

    /// The shard that [`ShardRef::to_json`] wrote.
    ///
    /// # Errors
    /// A message, when `json` is of another version or is no shard.
    pub fn from_json(json: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |error: serde_json::Error| format!("not a shard: {error}");
        let Version { version } = serde_json::from_str(json).map_err(wrong)?;
        if version != JSON_VERSION {
            return Err(format!("a shard of version {version}, expected version {JSON_VERSION}"));
        }
        let versioned: Versioned = serde_json::from_str(json).map_err(wrong)?;
        Ok(versioned.shard.into_owned())
    }

    /// SHA-256 (hex) over what the shard is made of: names, sizes and versions of its objects, as far as the listing
    /// knows them. Another identity means another input.
    pub fn identity(&self) -> String {
        let mut sha256 = Sha256::new();
        let mut add = |text: &str| {
            sha256.update((text.len() as u64).to_le_bytes());
            sha256.update(text);
        };
        add(&self.name);
        add(self.format.as_str());
        let mut object = |object: &ObjectRef, image_id: &str| {
            add(&object.uri);
            add(image_id);
            add(&object.size_bytes.map_or(String::new(), |bytes| bytes.to_string()));
            add(object.version.as_deref().unwrap_or_default());
        };
        match &self.content {
            ShardContent::Container(container) => object(container, ""),
            ShardContent::Objects(entries) => {
                entries.iter().for_each(|entry| object(&entry.object, &entry.image_id));
            }
        }
        hex(&sha256.finalize())
    }

    /// Version of its container, if there is one and the listing knows it.
    pub fn version(&self) -> Option<&str> {
        match &self.content {
            ShardContent::Container(object) => object.version.as_deref(),
            ShardContent::Objects(_) => None,
        }
    }

    /// Bytes of its objects, as far as the listing knows them. A server may report wrong sizes.
    pub fn size_bytes(&self) -> u64 {
        match &self.content {
            ShardContent::Container(object) => object.size_bytes.unwrap_or_default(),
            ShardContent::Objects(entries) => {
                let sizes = entries.iter().filter_map(|entry| entry.object.size_bytes);
                sizes.fold(0, u64::saturating_add)
            }
        }
    }
}

/// Paths as JSON: text if they are UTF-8, otherwise an array of bytes.
mod path_bytes {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        let stored = path.as_ref().map(|path| match path.to_str() {
            Some(text) => Stored::Text(text.to_owned()),
            None => Stored::Bytes(path.as_os_str().as_bytes().to_owned()),
        });
        stored.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        let stored = Option::<Stored>::deserialize(deserializer)?;
        Ok(stored.map(|stored| match stored {
            Stored::Text(text) => text.into(),
            Stored::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_read_from_its_json_is_the_same_shard() {
        let object = ObjectRef {
            uri: "gs://bucket/a \"b\".tar".to_owned(),
            size_bytes: Some(7),
            version: Some("\"etag\"".to_owned()),
        };
        let loose = ManifestEntry {
            sidecar: Some("json".into()),
            path: Some(OsString::from_vec(vec![b'/', 0xff, b'a']).into()),
            ..ManifestEntry::new(object.clone(), "\\xffa".to_owned())
        };
        let text =
            ManifestEntry { path: Some("/a/b".into()), ..ManifestEntry::new(object.clone(), String::new()) };
        for (format, content) in [
            (ShardFormat::Webdataset, ShardContent::Container(object)),
            (ShardFormat::Files, ShardContent::Objects(vec![loose, text])),
        ] {
            let shard = ShardRef::new(12, "a", format, content);
            let read = ShardRef::from_json(&shard.to_json()).expect("a shard");
            assert_eq!(read, shard);
            assert_eq!(read.identity(), shard.identity());
        }
    }

    #[test]
    fn a_shard_of_another_version_is_refused() {
        let shard = ShardRef::new(0, "a", ShardFormat::Files, ShardContent::Objects(Vec::new()));
        let json = shard.to_json().replace("\"version\":1", "\"version\":2");
        assert_eq!(ShardRef::from_json(&json), Err("a shard of version 2, expected version 1".to_owned()));
        assert!(ShardRef::from_json("{}").expect_err("no version").starts_with("not a shard: "));
    }
}
