//! Verifies an object that arrived range by range.
//!
//! - The checksums (CRC-32C) of consecutive ranges are combined, without their bytes. Missing ranges are fetched;
//!   ranges that arrived twice are fetched once more and compared.
//! - A shard that ended normally is verified if that is cheap. One that looks damaged is always verified: its rows
//!   would otherwise blame the data for an error of the network. If less of it has arrived than is missing, the ranges
//!   that have arrived are fetched once more instead of the rest: a terabyte that is not a tar archive at all is judged
//!   by its first bytes.

use std::ops::Range;

use crate::error::WrongChecksum;

/// The most bytes that are fetched only for the checksum, in addition to an eighth of the object. The unread columns of
/// a Parquet file are mostly names beside images.
const SPARE_BYTES: u64 = 8 << 20;

/// Checksums of ranges of one object, in the order of their arrival.
#[derive(Debug, Default, Clone)]
pub(super) struct RangesSeen(Vec<(Range<u64>, u32)>);

impl RangesSeen {
    pub fn add(&mut self, range: Range<u64>, bytes: &[u8]) {
        let crc32c = crc32c::crc32c(bytes);
        match self.0.last_mut() {
            // an object that is read from start to end is one range
            Some((last, so_far)) if last.end == range.start => {
                *so_far = crc32c::crc32c_combine(*so_far, crc32c, bytes.len());
                last.end = range.end;
            }
            _ => self.0.push((range, crc32c)),
        }
    }

    /// Compare with the `expected` checksum of an object of `size_bytes`. `fetch` returns the checksum of a range;
    /// `damaged` is whether the shard looks damaged.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub fn check<E>(
        &self,
        size_bytes: u64,
        expected: u32,
        damaged: bool,
        mut fetch: impl FnMut(Range<u64>) -> Result<u32, E>,
    ) -> Result<Result<(), WrongChecksum>, E> {
        let (pieces, again) = self.pieces(size_bytes);
        let fetched = |piece: &&(Range<u64>, Option<u32>)| piece.1.is_none();
        let missing = pieces.iter().filter(fetched).map(|(range, _)| range.end - range.start).sum::<u64>();
        let twice = again.iter().map(|(range, _)| range.end - range.start).sum::<u64>();
        if !damaged && missing + twice > SPARE_BYTES + size_bytes / 8 {
            return Ok(Ok(()));
        }
        let seen = size_bytes - missing + twice;
        if seen < missing {
            let arrived = pieces.into_iter().filter_map(|(range, crc32c)| Some((range, crc32c?)));
            return compare(arrived.chain(again), fetch);
        }
        let mut found = 0;
        for (range, crc32c) in pieces {
            let length = (range.end - range.start) as usize;
            let crc32c = crc32c.map_or_else(|| fetch(range), Ok)?;
            found = crc32c::crc32c_combine(found, crc32c, length);
        }
        if found != expected {
            return Ok(Err(WrongChecksum { found, expected }));
        }
        compare(again.into_iter(), fetch)
    }

    /// The whole object in pieces, without a checksum where a piece has not arrived; and the ranges that arrived in
    /// addition.
    #[allow(clippy::type_complexity, reason = "ranges with and without a checksum, and nothing else")]
    fn pieces(&self, size_bytes: u64) -> (Vec<(Range<u64>, Option<u32>)>, Vec<(Range<u64>, u32)>) {
        let mut seen = self.0.clone();
        seen.sort_by_key(|(range, _)| (range.start, range.end));
        let (mut pieces, mut again, mut at) = (Vec::new(), Vec::new(), 0);
        for (range, crc32c) in seen {
            if range.start < at {
                again.push((range, crc32c));
                continue;
            }
            if range.start > at {
                pieces.push((at..range.start, None));
            }
            at = range.end;
            pieces.push((range, Some(crc32c)));
        }
        if at < size_bytes {
            pieces.push((at..size_bytes, None));
        }
        (pieces, again)
    }
}

/// Fetch ranges again and compare them with those that arrived.
fn compare<E>(
    ranges: impl Iterator<Item = (Range<u64>, u32)>,
    mut fetch: impl FnMut(Range<u64>) -> Result<u32, E>,
) -> Result<Result<(), WrongChecksum>, E> {
    for (range, first) in ranges {
        let second = fetch(range)?;
        if second != first {
            return Ok(Err(WrongChecksum { found: first, expected: second }));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn check(bytes: &[u8], seen: &[(Range<usize>, bool)], damaged: bool) -> (bool, usize) {
        let mut ranges = RangesSeen::default();
        for (range, right) in seen {
            let mut arrived = bytes[range.clone()].to_vec();
            if !right {
                arrived[0] ^= 1;
            }
            ranges.add(range.start as u64..range.end as u64, &arrived);
        }
        let mut fetched = 0;
        let fetch = |range: Range<u64>| {
            fetched += (range.end - range.start) as usize;
            Ok::<_, Infallible>(crc32c::crc32c(&bytes[range.start as usize..range.end as usize]))
        };
        let checked = ranges.check(bytes.len() as u64, crc32c::crc32c(bytes), damaged, fetch);
        (checked.expect("infallible").is_ok(), fetched)
    }

    #[test]
    fn a_wrong_bit_is_found_in_any_range() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
        assert_eq!(check(&bytes, &[(0..400, true), (400..1000, true)], false), (true, 0));
        assert_eq!(check(&bytes, &[(0..400, true), (400..1000, false)], false), (false, 0));
        // the footer first, a column in between, the rest never
        assert_eq!(check(&bytes, &[(900..1000, true), (100..800, true)], false), (true, 200));
        assert!(!check(&bytes, &[(900..1000, true), (100..800, false)], false).0);
        // the footer twice, once wrong
        assert_eq!(check(&bytes, &[(990..1000, true), (900..1000, true), (0..900, true)], false), (true, 10));
        assert!(!check(&bytes, &[(990..1000, false), (900..1000, true), (0..900, true)], false).0);
        assert!(!check(&bytes, &[(990..1000, true), (900..1000, false), (0..900, true)], false).0);
        assert_eq!(check(&[], &[], true), (true, 0));
    }

    #[test]
    fn only_a_damaged_shard_is_verified_at_any_cost() {
        let bytes = vec![7; 2 * SPARE_BYTES as usize];
        let seen = [(0..100, true)];
        assert_eq!(check(&bytes, &seen, false), (true, 0));
        // the cheaper of the two checks
        assert_eq!(check(&bytes, &seen, true), (true, 100));
        assert_eq!(check(&bytes, &[(0..100, false)], true), (false, 100));
        let most = bytes.len() - 100;
        assert_eq!(check(&bytes, &[(0..most, true)], true), (true, 100));
        assert_eq!(check(&bytes, &[(0..most, false)], true), (false, 100));
    }
}
