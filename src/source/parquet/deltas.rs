//! Counts Parquet's delta-encoded lengths before the Parquet library allocates memory for them.
//!
//! Input: the values of a page whose encoding is `DELTA_LENGTH_BYTE_ARRAY` or `DELTA_BYTE_ARRAY`. Output: nothing
//! if the number of lengths is allowed, else what is wrong with them.
//!
//! - A list of lengths starts with their number, and equal lengths take no bytes at all: a page of a few bytes can
//!   claim any amount of memory, and the library allocates that memory before it reads on.
//! - The library reads the lengths themselves and compares them with the bytes of the page.
//!
//! Layout: "Delta encoding (DELTA_BINARY_PACKED)" in Apache Parquet's `Encodings.md`.

use super::thrift::Compact;

/// The number of values in a block is a multiple of this.
const BLOCK_STEP: u64 = 128;

/// The number of values in a miniblock is a multiple of this, so that they fill whole bytes.
const MINIBLOCK_STEP: u64 = 32;

/// Bytes of memory that the library takes for each length.
const LENGTH_BYTES: u64 = 4;

/// Check the lists of lengths at the start of `values`, `lists` in number. Each has one length for every value of the
/// page that is not null, so at most `max_count`. Together they may take `max_bytes` of memory.
pub(super) fn check(values: &[u8], lists: u64, max_count: u64, max_bytes: u64) -> Result<(), String> {
    let mut rest = values;
    let mut first = None;
    for _ in 0..lists {
        let list = List::begin(&mut rest).ok_or("the lengths of a page's values are malformed")?;
        if list.count > max_count {
            return Err(format!("a page of {max_count} values holds {} lengths", list.count));
        }
        if *first.get_or_insert(list.count) != list.count {
            return Err("a page holds more prefixes than suffixes, or fewer".to_owned());
        }
        let bytes = list.count * LENGTH_BYTES * lists;
        if bytes > max_bytes {
            return Err(format!("the lengths of a page take {bytes} bytes, {max_bytes} are left beside it"));
        }
        rest = list.end(rest).ok_or("the lengths of a page's values are cut short")?;
    }
    Ok(())
}

/// The start of a list.
struct List {
    count: u64,
    miniblocks: u64,
    miniblock_values: u64,
}

impl List {
    fn begin(rest: &mut &[u8]) -> Option<Self> {
        let (block_values, miniblocks, count) = (varint(rest)?, varint(rest)?, varint(rest)?);
        let _first_length = varint(rest)?;
        let miniblock_values = block_values.checked_div(miniblocks)?;
        let is_sound = block_values.is_multiple_of(BLOCK_STEP)
            && block_values.is_multiple_of(miniblocks)
            && miniblock_values.is_multiple_of(MINIBLOCK_STEP)
            && (1..=u64::from(u32::MAX)).contains(&block_values);
        is_sound.then_some(Self { count, miniblocks, miniblock_values })
    }

    /// The bytes after the list.
    fn end<'a>(&self, mut rest: &'a [u8]) -> Option<&'a [u8]> {
        // the header of the list holds the first length
        let mut left = self.count.saturating_sub(1);
        while left > 0 {
            let _min_delta = varint(&mut rest)?;
            let (widths, miniblocks) = rest.split_at_checked(usize::try_from(self.miniblocks).ok()?)?;
            // miniblocks that are not needed have a width, but no bytes
            let needed = left.div_ceil(self.miniblock_values).min(self.miniblocks);
            let bits = widths[..needed as usize].iter().map(|&width| u64::from(width)).sum::<u64>();
            let bytes = bits * (self.miniblock_values / 8);
            rest = miniblocks.get(usize::try_from(bytes).ok()?..)?;
            left = left.saturating_sub(self.miniblocks * self.miniblock_values);
        }
        Some(rest)
    }
}

/// Numbers are encoded like those of Thrift.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    Compact::new(rest).varint().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of `count` lengths that all equal `first`, which is zigzag-coded.
    fn alike(count: u32, first: u8) -> Vec<u8> {
        let mut bytes = vec![0x80, 0x01, 4];
        let mut left = count;
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.extend([left as u8, first]);
        bytes.resize(bytes.len() + 5 * (count.saturating_sub(1)).div_ceil(128) as usize, 0);
        bytes
    }

    #[test]
    fn lengths_are_limited_by_the_number_of_values_and_by_memory() {
        let bytes = [alike(1000, 2), vec![7; 1000]].concat();
        assert_eq!(check(&bytes, 1, 1000, 4000), Ok(()));
        assert_eq!(check(&bytes, 1, 999, 4000), Err("a page of 999 values holds 1000 lengths".to_owned()));
        check(&bytes, 1, 1000, 3999).expect_err("no room for them");
        check(&bytes, 2, 1000, 8000).expect_err("the second list is not a list");
        let both = [alike(1000, 0), bytes].concat();
        assert_eq!(check(&both, 2, 1000, 8000), Ok(()));
        check(&[alike(999, 0), alike(1000, 2)].concat(), 2, 1000, 8000).expect_err("another number");
        assert_eq!(check(&alike(0, 0), 1, 10, 0), Ok(()), "all values are null");
    }

    #[test]
    fn a_list_that_is_malformed_or_cut_is_an_error() {
        let whole = alike(1000, 2);
        for end in 0..whole.len() {
            check(&whole[..end], 1, 1000, 4000).expect_err("cut");
        }
        // values in a block, miniblocks in it
        for (block, miniblocks) in [(0, 1), (128, 0), (127, 1), (128, 3), (128, 8), (0, 0)] {
            let bytes = [&[block as u8 | 0x80, (block >> 7) as u8, miniblocks, 1, 0][..], &[0; 50]].concat();
            check(&bytes, 1, 10, 4000).expect_err(&format!("{block} {miniblocks}"));
        }
        let huge = [&[0x80; 8][..], &[0x40, 1, 100, 0], &[0xff; 50]].concat();
        check(&huge, 1, 100, 4000).expect_err("a block of 2^62 values");
        check(&[0xff; 100], 1, 100, 4000).expect_err("numbers without an end");
        // a width that the page has no bytes for
        let mut wide = alike(1000, 2);
        wide[6] = 0xff;
        check(&wide, 1, 1000, 4000).expect_err("cut");
    }
}
