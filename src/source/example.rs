//! `tf.Example` as far as an image shard needs it.
//!
//! Field numbers follow `tensorflow/core/example/{example,feature}.proto`. `float_list` is left
//! out, so a record's embeddings are skipped instead of unpacked.
//!
//! - Values decoded from [`bytes::Bytes`] share the record's memory; nothing is copied.

use std::collections::HashMap;

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Example {
    #[prost(message, optional, tag = "1")]
    pub features: Option<Features>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Features {
    #[prost(map = "string, message", tag = "1")]
    pub feature: HashMap<String, Feature>,
}

/// A oneof in the schema: a well-formed feature has one of its lists.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Feature {
    #[prost(message, optional, tag = "1")]
    pub bytes_list: Option<BytesList>,
    #[prost(message, optional, tag = "3")]
    pub int64_list: Option<Int64List>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BytesList {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub value: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Int64List {
    #[prost(int64, repeated, tag = "1")]
    pub value: Vec<i64>,
}

impl Feature {
    /// First value as the text of an id; bytes that are not UTF-8 are replaced.
    pub fn first_as_text(&self) -> Option<String> {
        if let Some(bytes) = self.bytes_list.as_ref().and_then(|list| list.value.first()) {
            return Some(String::from_utf8_lossy(bytes).into_owned());
        }
        self.int64_list.as_ref().and_then(|list| list.value.first()).map(i64::to_string)
    }
}
