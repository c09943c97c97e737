//! The total work of a worker, for its progress display, found by a second listing during the run.

use sluice::commit::Share;
use sluice::error::SourceError;
use sluice::items::{ShardContent, ShardRef};
use sluice::plan::Plan;
use sluice::source::list_shards;
use sluice::store::Stores;

use super::progress::Total;

/// The total of `share`. It is unknown if the input cannot be listed; then the run fails, too, and reports why.
pub fn count(stores: &Stores, plan: &Plan, share: Share, limit: Option<u64>) -> Total {
    if limit.is_some() {
        return Total { records: limit, bytes: None };
    }
    // standard input can be read only once
    if plan.inputs.iter().any(|input| input == "-") {
        return Total::default();
    }
    let listed = list_shards(stores, &plan.inputs, &plan.input);
    listed.and_then(|shards| sum(shards.quiet(), share)).unwrap_or_default()
}

/// Records if every shard is a list of images; bytes if the listing has all sizes.
fn sum(
    shards: impl Iterator<Item = Result<ShardRef, SourceError>>,
    share: Share,
) -> Result<Total, SourceError> {
    let mut total = Total { records: Some(0), bytes: Some(0) };
    for shard in shards {
        let shard = shard?;
        if share.takes(shard.index) {
            let records = match &shard.content {
                ShardContent::Objects(entries) => {
                    Some(entries.iter().filter(|entry| entry.sidecar.is_none()).count() as u64)
                }
                ShardContent::Container(_) => None,
            };
            let bytes = Some(shard.size_bytes()).filter(|&bytes| bytes > 0);
            total.records = total.records.zip(records).map(|(sum, records)| sum + records);
            total.bytes = total.bytes.zip(bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice::items::{ManifestEntry, ObjectRef, ShardFormat};

    fn object(size_bytes: Option<u64>) -> ObjectRef {
        ObjectRef { uri: "a".to_owned(), size_bytes, version: None }
    }

    fn shard(index: u64, content: ShardContent) -> Result<ShardRef, SourceError> {
        Ok(ShardRef::new(index, index.to_string(), ShardFormat::Files, content))
    }

    fn container(index: u64, bytes: u64) -> Result<ShardRef, SourceError> {
        shard(index, ShardContent::Container(object(Some(bytes))))
    }

    fn list(index: u64, sizes: &[Option<u64>]) -> Result<ShardRef, SourceError> {
        let entry = |&size| ManifestEntry::new(object(size), String::new());
        shard(index, ShardContent::Objects(sizes.iter().map(entry).collect()))
    }

    #[test]
    fn only_the_shards_of_this_worker_count() {
        let shards = || [container(0, 5), container(1, 70), container(2, 600)].into_iter();
        let counted = |share| sum(shards(), share).expect("a listing");
        assert_eq!(counted(Share::default()), Total { records: None, bytes: Some(675) });
        let share = Share { shard_index: 1, num_shards: 2 };
        assert_eq!(counted(share), Total { records: None, bytes: Some(70) });
    }

    #[test]
    fn lists_of_images_are_counted_by_images() {
        let lists = [list(0, &[Some(3), Some(4)]), list(1, &[None])];
        let counted = sum(lists.into_iter(), Share::default()).expect("a listing");
        assert_eq!(counted, Total { records: Some(3), bytes: None });
        let mixed = [list(0, &[None]), container(1, 7)];
        assert_eq!(sum(mixed.into_iter(), Share::default()).expect("a listing"), Total::default());
    }
}
