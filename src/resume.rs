//! What is left of an input when a run is gone on with.
//!
//! - A shard whose part is there is not read again. Parts are told by name, which says the shard's
//!   place in the input and its identity; a part of another identity in that place means that the
//!   input has changed since, which is an error and nothing to be mended silently.

use std::collections::BTreeMap;

use crate::error::SourceError;
use crate::items::ShardRef;
use crate::report::PartReport;
use crate::sink::{part_name, shard_index};

/// The shards of a listing that have no part yet.
#[derive(Debug)]
pub struct Remaining<I> {
    shards: I,
    done: BTreeMap<u64, Done>,
}

/// A part that is there.
#[derive(Debug)]
struct Done {
    path: String,
    shard: String,
}

impl<I: Iterator<Item = Result<ShardRef, SourceError>>> Remaining<I> {
    /// Of `shards`, those without a part among `parts`.
    pub fn new(shards: I, parts: &[PartReport]) -> Self {
        let done = |part: &PartReport| {
            let done = Done { path: part.path.clone(), shard: part.shard.clone() };
            Some((shard_index(&part.path)?, done))
        };
        Self { shards, done: parts.iter().filter_map(done).collect() }
    }
}

impl<I: Iterator<Item = Result<ShardRef, SourceError>>> Iterator for Remaining<I> {
    type Item = Result<ShardRef, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(shard) = self.shards.next() else {
                let (_, gone) = self.done.pop_first()?;
                let message = "its part is there, the shard is not any more".to_owned();
                return Some(Err(SourceError::Changed { shard: gone.shard, message }));
            };
            let shard = match shard {
                Ok(shard) => shard,
                Err(error) => return Some(Err(error)),
            };
            match self.done.remove(&shard.index) {
                None => return Some(Ok(shard)),
                Some(done) if done.path == part_name(&shard) => {}
                Some(done) if done.shard == shard.name => {
                    let message = "it has another version now".to_owned();
                    return Some(Err(SourceError::Changed { shard: shard.name, message }));
                }
                Some(done) => {
                    let message = format!("in its place there was {}", done.shard);
                    return Some(Err(SourceError::Changed { shard: shard.name, message }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ObjectRef, ShardContent, ShardFormat};

    fn shard(index: u64, name: &str, version: &str) -> ShardRef {
        let object =
            ObjectRef { uri: name.to_owned(), size_bytes: Some(7), version: Some(version.to_owned()) };
        let content = ShardContent::Container(object);
        ShardRef { index, name: name.to_owned(), format: ShardFormat::Webdataset, content }
    }

    fn part(shard: &ShardRef) -> PartReport {
        PartReport { path: part_name(shard), shard: shard.name.clone(), ..PartReport::default() }
    }

    fn left(shards: &[ShardRef], parts: &[PartReport]) -> Result<Vec<String>, String> {
        let shards = shards.iter().cloned().map(Ok);
        let names = Remaining::new(shards, parts).map(|shard| shard.map(|shard| shard.name));
        names.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    #[test]
    fn what_has_a_part_is_skipped_and_the_rest_is_left() {
        let shards = [shard(0, "a.tar", "1"), shard(1, "b.tar", "1"), shard(2, "c.tar", "1")];
        assert_eq!(left(&shards, &[]), Ok(vec!["a.tar".into(), "b.tar".into(), "c.tar".into()]));
        assert_eq!(left(&shards, &[part(&shards[1])]), Ok(vec!["a.tar".into(), "c.tar".into()]));
        let all: Vec<_> = shards.iter().map(part).collect();
        assert_eq!(left(&shards, &all), Ok(vec![]));
    }

    #[test]
    fn an_input_that_has_changed_is_refused_with_what_has_changed() {
        let shards = [shard(0, "a.tar", "1"), shard(1, "b.tar", "1")];
        let parts: Vec<_> = shards.iter().map(part).collect();
        let replaced = [shard(0, "a.tar", "1"), shard(1, "b.tar", "2")];
        let message = left(&replaced, &parts).expect_err("another version");
        assert!(message.contains("b.tar") && message.contains("another version"), "{message}");
        let inserted = [shard(0, "a.tar", "1"), shard(1, "aa.tar", "1"), shard(2, "b.tar", "1")];
        let message = left(&inserted, &parts).expect_err("a shard between");
        assert!(message.contains("aa.tar") && message.contains("there was b.tar"), "{message}");
        let message = left(&shards[..1], &parts).expect_err("one is gone");
        assert!(message.contains("b.tar") && message.contains("not any more"), "{message}");
    }
}
