//! The first image file directory (IFD) of a TIFF.
//!
//! - Classic TIFF and BigTIFF, both byte orders, and the two invalid spellings of the magic number
//!   that Pillow accepts.
//! - Values are read from the file on demand; nothing is allocated for a count that the file states.
//! - A tag whose values reach past the end of the file is an error if the pixels need it, and counts as missing
//!   otherwise.

/// A directory inside the bytes of a file.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    pub(super) big_endian: bool,
    big: bool,
    /// Offset of the first entry, and the number of entries.
    entries_at: usize,
    entries: usize,
    /// The file ends before the last entry.
    pub(super) is_cut: bool,
}

/// The values of one tag.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    value_bytes: usize,
    big_endian: bool,
    /// The field type is text or bytes, not a number.
    is_text: bool,
}

impl<'a> Directory<'a> {
    /// Find the first directory of a TIFF.
    pub(super) fn first(bytes: &'a [u8]) -> Result<Self, String> {
        let big_endian = bytes.starts_with(b"MM");
        let big = matches!(bytes.get(2..4), Some([0, 43] | [43, 0]));
        let mut directory = Self { bytes, big_endian, big, entries_at: 0, entries: 0, is_cut: false };
        let found = directory.word(4 + 4 * usize::from(big)).and_then(|at| {
            let at = usize::try_from(at).ok()?;
            let count_bytes = if big { 8 } else { 2 };
            let count = directory.unsigned(at, count_bytes)?;
            Some((at.checked_add(count_bytes)?, count))
        });
        let Some((entries_at, stated)) = found else {
            return Err("the directory lies behind the end of the file".to_owned());
        };
        // a truncated directory has fewer entries than stated
        let room = bytes.len().saturating_sub(entries_at) / directory.entry_bytes();
        directory.entries_at = entries_at;
        let stated = usize::try_from(stated).unwrap_or(usize::MAX);
        directory.is_cut = stated > room;
        directory.entries = stated.min(room).min(usize::from(u16::MAX));
        Ok(directory)
    }

    fn entry_bytes(&self) -> usize {
        if self.big { 20 } else { 12 }
    }

    /// Bytes of an offset, or of a value stored in the entry itself.
    fn word_bytes(&self) -> usize {
        if self.big { 8 } else { 4 }
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.unsigned(at, self.word_bytes())
    }

    fn unsigned(&self, at: usize, length: usize) -> Option<u64> {
        unsigned(self.bytes.get(at..at.checked_add(length)?)?, self.big_endian)
    }

    /// The values of a tag, or `None` if the file does not have it. If there are several entries, the
    /// last one counts, as in Pillow.
    ///
    /// Fails if the values reach past the end of the file.
    pub(super) fn values(&self, tag: u16) -> Result<Option<Values<'a>>, String> {
        let entries = (0..self.entries).rev().map(|index| self.entries_at + index * self.entry_bytes());
        let found =
            entries.filter(|&entry| self.unsigned(entry, 2) == Some(u64::from(tag))).find_map(|entry| {
                let kind = self.unsigned(entry + 2, 2)?;
                let value_bytes = match kind {
                    1 | 2 | 6 | 7 => 1,
                    3 | 8 => 2,
                    4 | 9 | 11 | 13 => 4,
                    5 | 10 | 12 | 16 | 17 | 18 => 8,
                    _ => return None,
                };
                let count = self.word(entry + 4).filter(|count| *count > 0)?;
                let bytes = self.stored(entry, count, value_bytes);
                Some(
                    bytes
                        .map(|bytes| Values {
                            bytes,
                            value_bytes,
                            big_endian: self.big_endian,
                            is_text: matches!(kind, 1 | 2 | 7),
                        })
                        .ok_or(count),
                )
            });
        found.transpose().map_err(|count| {
            format!("tag {tag} states {count} values, which reach behind the end of the file")
        })
    }

    /// The bytes of the `count` values of the entry at offset `entry`, unless they are truncated.
    fn stored(&self, entry: usize, count: u64, value_bytes: usize) -> Option<&'a [u8]> {
        let length = usize::try_from(count).ok()?.checked_mul(value_bytes)?;
        let value_at = entry + 4 + self.word_bytes();
        let start = if length <= self.word_bytes() {
            value_at
        } else {
            usize::try_from(self.word(value_at)?).ok()?
        };
        self.bytes.get(start..start.checked_add(length)?)
    }

    /// Whether the file has the tag, even if its values are truncated.
    pub(super) fn has(&self, tag: u16) -> bool {
        !matches!(self.values(tag), Ok(None))
    }

    /// The first value of a tag. Fails as `values` does.
    pub(super) fn number(&self, tag: u16) -> Result<Option<u64>, String> {
        Ok(self.values(tag)?.and_then(|values| values.get(0)))
    }

    /// The first value of a tag that the pixels do not need; a truncated tag counts as missing.
    pub(super) fn metadata_number(&self, tag: u16) -> Option<u64> {
        self.number(tag).ok().flatten()
    }

    /// As `metadata_number`, but distinguishes a missing tag, `None`, from one whose type is text or bytes,
    /// `Some(None)`.
    pub(super) fn metadata_value(&self, tag: u16) -> Option<Option<u64>> {
        let values = self.values(tag).ok().flatten()?;
        Some((!values.is_text).then(|| values.get(0)).flatten())
    }

    /// The bytes of a tag's values. Fails as `values` does.
    pub(super) fn bytes(&self, tag: u16) -> Result<Option<&'a [u8]>, String> {
        Ok(self.values(tag)?.map(|values| values.bytes))
    }
}

impl Values<'_> {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.value_bytes
    }

    pub(super) fn get(&self, index: usize) -> Option<u64> {
        unsigned(self.bytes.chunks_exact(self.value_bytes).nth(index)?, self.big_endian)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks_exact(self.value_bytes).filter_map(|value| unsigned(value, self.big_endian))
    }
}

fn unsigned(bytes: &[u8], big_endian: bool) -> Option<u64> {
    let add = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
    match bytes.len() {
        0 | 9.. => None,
        _ if big_endian => Some(bytes.iter().fold(0, add)),
        _ => Some(bytes.iter().rev().fold(0, add)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(big_endian: bool) -> Vec<u8> {
        let u16_bytes = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let u32_bytes = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut bytes = if big_endian { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(u32_bytes(8));
        bytes.extend(u16_bytes(2));
        for (tag, kind, count, value) in [(256, 4, 1, 70_000), (258, 3, 3, 38)] {
            bytes.extend(u16_bytes(tag));
            bytes.extend(u16_bytes(kind));
            bytes.extend(u32_bytes(count));
            bytes.extend(u32_bytes(value));
        }
        bytes.extend([0; 4]);
        [8, 8, 16].into_iter().for_each(|bits| bytes.extend(u16_bytes(bits)));
        bytes
    }

    #[test]
    fn values_are_read_in_either_byte_order_and_only_if_none_is_missing() {
        for big_endian in [false, true] {
            let bytes = file(big_endian);
            let directory = Directory::first(&bytes).expect("a directory");
            assert_eq!(directory.number(256), Ok(Some(70_000)));
            let bits = directory.values(258).expect("complete").expect("present");
            assert_eq!((bits.len(), bits.iter().collect::<Vec<_>>()), (3, vec![8, 8, 16]));
            assert!(!directory.has(257));
            let cut = Directory::first(&bytes[..bytes.len() - 1]).expect("a directory");
            assert_eq!(
                cut.values(258).map(|_| ()),
                Err("tag 258 states 3 values, which reach behind the end of the file".to_owned())
            );
            assert!(cut.has(258) && !cut.is_cut);
            assert_eq!(cut.metadata_number(258), None);
            let cut = Directory::first(&bytes[..30]).expect("a directory");
            assert!(cut.has(256) && !cut.has(258) && cut.is_cut);
            for end in 0..bytes.len() {
                let _ = Directory::first(&bytes[..end]).map(|directory| directory.has(258));
            }
        }
    }
}
