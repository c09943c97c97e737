//! WebDataset: a tar archive whose image members are the records.
//!
//! Comes in: the uncompressed bytes of an archive. Goes out: one record for each image member,
//! told by its extension; other members (`.json`, `.txt`, `.cls`) are read past.
//!
//! The members are walked here and not by the `tar` crate's `Archive`, which takes long-name
//! members into memory whatever their size; header fields are still read by that crate.
//!
//! - The id is WebDataset's sample key: the member's name up to the first dot of its last part,
//!   without a leading `./`. Two images of one sample are two records with the same id.
//! - Names are identifiers only. No path is ever made of one.
//! - A header whose checksum fails ends the shard: nothing says where the next member starts.
//! - Behind the end mark of one archive may stand another, as `cat` puts them together. Anything else there is
//!   left alone, unless a header follows it: then the mark was a hole, and the shard is damaged.

use std::borrow::Cow;
use std::io::Read;

use bytes::Bytes;
use tar::{EntryType, Header};

use crate::error::ReadError;
use crate::items::{RawRecord, Rejected, Status};

use super::detect::has_image_extension;
use super::format::{image_content, too_large};
use super::stream::Stream;

/// Everything in a tar archive comes in blocks of this many bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// Blocks of zeros at the end of an archive.
const END_MARK_BLOCKS: u32 = 2;

/// Longest GNU long name or pax header, bytes. Paths end at 4 KiB on the systems that write them.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// The image members of one archive.
pub(super) struct TarRecords<R> {
    stream: Stream<R>,
    max_image_bytes: u64,
    /// Bytes between here and the next header: the padding of the last member.
    padding: u64,
    /// A block that was read ahead.
    returned: Option<Block>,
}

type Block = [u8; BLOCK_BYTES];

/// A member, its header read and its content not.
struct Member {
    name: String,
    kind: EntryType,
    size: u64,
    sparse: bool,
}

/// What extension headers say about the member that follows them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> TarRecords<R> {
    pub fn new(reader: R, max_image_bytes: u64) -> Self {
        Self { stream: Stream::new(reader), max_image_bytes, padding: 0, returned: None }
    }

    /// The next image member; `None` at the end of the archive.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, ReadError> {
        while let Some(member) = self.next_member()? {
            if is_image(&member.name, member.kind) {
                return self.read_image(member).map(Some);
            }
            self.skip(&member.name, member.size)?;
        }
        Ok(None)
    }

    fn read_image(&mut self, member: Member) -> Result<RawRecord, ReadError> {
        let Member { name, kind, size, sparse } = member;
        let image_id = sample_key(&name).to_owned();
        let reason = if is_link(kind) {
            Some(Rejected::new(Status::MissingImage, "member is a link and holds no image"))
        } else if sparse {
            Some(Rejected::new(Status::CorruptRecord, "member is stored sparsely, which is not supported"))
        } else if size > self.max_image_bytes {
            Some(too_large(size, self.max_image_bytes))
        } else {
            None
        };
        if let Some(reason) = reason {
            self.skip(&name, size)?;
            return Ok(RawRecord { image_id, content: Err(reason) });
        }
        let bytes = self.read(&name, size)?;
        Ok(RawRecord { image_id, content: image_content(Bytes::from(bytes), self.max_image_bytes) })
    }

    /// Read headers up to and including that of the next member.
    fn next_member(&mut self) -> Result<Option<Member>, ReadError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.next_header()? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            let kind = header.entry_type();
            let mut size = header.entry_size().map_err(|error| self.corrupt(&error.to_string()))?;
            if kind.is_gnu_longname() {
                let mut name = self.read_extension(size)?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                extensions.name = Some(name);
            } else if kind.is_pax_local_extensions() {
                let data = self.read_extension(size)?;
                extensions.apply_pax(&data);
            } else if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
                self.skip("an extension header", size)?;
            } else {
                let mut sparse = extensions.sparse;
                if kind.is_gnu_sparse() {
                    sparse = true;
                    if header.as_gnu().is_some_and(tar::GnuHeader::is_extended) {
                        self.skip_sparse_map()?;
                    }
                }
                let name = extensions.name.map_or_else(|| header.path_bytes(), Cow::Owned);
                let name = String::from_utf8_lossy(&name).into_owned();
                size = extensions.size.unwrap_or(size);
                if has_no_content(kind) {
                    size = 0;
                } else if kind.is_hard_link() && size > 0 {
                    self.skip_linked(&name, size)?;
                    size = 0;
                }
                return Ok(Some(Member { name, kind, size, sparse }));
            }
        }
    }

    /// Read past what a hard link holds. Its size is often that of the file it leads to, without a byte of that
    /// file: so it is content only if it does not begin as the next member would.
    fn skip_linked(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let mut block = [0; BLOCK_BYTES];
        let filled = self.stream.fill(&mut block).map_err(|error| self.damaged(name, &error))?;
        if filled == BLOCK_BYTES && (block == [0; BLOCK_BYTES] || is_header(&block)) {
            self.returned = Some(block);
            return Ok(());
        }
        self.skip(name, size.saturating_sub(filled as u64))?;
        let padding = std::mem::take(&mut self.padding);
        self.stream.skip(padding).map_err(|error| self.damaged(name, &error))?;
        Ok(())
    }

    /// The next header block; `None` at the end of the file.
    fn next_header(&mut self) -> Result<Option<Block>, ReadError> {
        let returned = self.returned.take();
        if let Some(block) = returned.filter(|block| *block != [0; BLOCK_BYTES]) {
            return Ok(Some(block));
        }
        let padding = std::mem::take(&mut self.padding);
        let skipped = self.stream.skip(padding).map_err(|error| self.corrupt(&error.to_string()))?;
        let mut zeros = u32::from(returned.is_some());
        let (start, block) = loop {
            let start = self.stream.offset();
            let mut block = [0; BLOCK_BYTES];
            let filled = self.stream.fill(&mut block).map_err(|error| self.corrupt(&error.to_string()))?;
            let is_zero = block[..filled] == [0; BLOCK_BYTES][..filled];
            if filled == 0 && start > 0 && skipped == padding && zeros == 0 {
                // GNU tar and Python read on past a missing end mark, and some writers leave it out
                tracing::warn!(bytes = start, "archive ends without an end mark; members may be missing");
                return Ok(None);
            }
            match filled {
                0.. if filled < BLOCK_BYTES && (zeros >= END_MARK_BLOCKS || (zeros > 0 && is_zero)) => {
                    if !is_zero {
                        tracing::warn!(bytes = start, "something that is no archive follows the end mark");
                    }
                    return Ok(None);
                }
                BLOCK_BYTES if is_zero => zeros += 1,
                BLOCK_BYTES => break (start, block),
                _ => return Err(self.corrupt("the file ends where a member's header should stand")),
            }
        };
        if !is_header(&block) {
            if zeros >= END_MARK_BLOCKS && !self.has_header_ahead()? {
                tracing::warn!(bytes = start, "something that is no archive follows the end mark");
                return Ok(None);
            }
            let what = if start == 0 { "not a tar archive" } else { "damaged" };
            return Err(ReadError::Corrupt(format!(
                "{what}: the checksum of the header at byte {start} does not hold"
            )));
        }
        Ok(Some(block))
    }

    /// Whether anything up to the end of the file is a member's header.
    fn has_header_ahead(&mut self) -> Result<bool, ReadError> {
        let mut block = [0; BLOCK_BYTES];
        while self.stream.fill(&mut block).map_err(|error| self.corrupt(&error.to_string()))? == BLOCK_BYTES {
            if is_header(&block) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > EXTENSION_BYTES_MAX {
            let message = format!("an extension header is {size} bytes, limit is {EXTENSION_BYTES_MAX}");
            return Err(self.corrupt(&message));
        }
        self.read("an extension header", size)
    }

    fn read(&mut self, name: &str, size: u64) -> Result<Vec<u8>, ReadError> {
        let bytes = self.stream.read_bytes(size).map_err(|error| self.damaged(name, &error))?;
        self.finish_member(name, size, bytes.len() as u64)?;
        Ok(bytes)
    }

    fn skip(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let skipped = self.stream.skip(size).map_err(|error| self.damaged(name, &error))?;
        self.finish_member(name, size, skipped)
    }

    /// Its padding is left for the next header to skip: a member whose last byte is here is whole.
    fn finish_member(&mut self, name: &str, size: u64, arrived: u64) -> Result<(), ReadError> {
        if arrived < size {
            return Err(ReadError::Corrupt(format!(
                "the file ends inside {name}: {arrived} of its {size} bytes are there"
            )));
        }
        let block = BLOCK_BYTES as u64;
        self.padding = (block - size % block) % block;
        Ok(())
    }

    /// GNU sparse members carry further blocks of their map, each saying whether one more follows.
    fn skip_sparse_map(&mut self) -> Result<(), ReadError> {
        const IS_EXTENDED: usize = 504;
        let mut block = [0; BLOCK_BYTES];
        loop {
            let filled = self.stream.fill(&mut block).map_err(|error| self.corrupt(&error.to_string()))?;
            if filled < BLOCK_BYTES {
                return Err(self.corrupt("the file ends inside the map of a sparse member"));
            }
            if block[IS_EXTENDED] == 0 {
                return Ok(());
            }
        }
    }

    fn corrupt(&self, what: &str) -> ReadError {
        ReadError::Corrupt(format!("at byte {}: {what}", self.stream.offset()))
    }

    fn damaged(&self, name: &str, error: &std::io::Error) -> ReadError {
        ReadError::Corrupt(format!("cannot read {name}: {error}"))
    }
}

impl Extensions {
    /// Keys we do not know are left alone as POSIX asks, and an empty value stands for the header's own.
    fn apply_pax(&mut self, mut data: &[u8]) {
        while let Some((key, value, rest)) = pax_record(data) {
            data = rest;
            let name = Some(value.to_vec()).filter(|name| !name.is_empty());
            match key {
                b"path" if !self.sparse => self.name = name,
                b"GNU.sparse.name" => {
                    self.sparse = true;
                    self.name = name;
                }
                b"size" => {
                    self.size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
    }
}

/// The first record of a pax header, `"%d %s=%s\n", length, key, value`, as key, value and what follows. The length
/// is that of the whole record; a value may hold anything, line breaks included.
fn pax_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|&byte| byte == b' ')?;
    let length = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

/// Whether `block` is a header whose checksum holds.
pub(super) fn is_header(block: &[u8]) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let Some(block) = block.first_chunk::<BLOCK_BYTES>() else { return false };
    // the sum counts its own field as spaces
    let outside = block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
    let sum: u32 = outside.map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ');
    Header::from_byte_slice(block).cksum().is_ok_and(|stored| stored == sum)
}

/// Links to images count, so that none is lost in silence. Hidden names do not: macOS adds a
/// `._cat.jpg` with its attributes for each `cat.jpg`.
fn is_image(name: &str, kind: EntryType) -> bool {
    let data = kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() || is_link(kind);
    let base = name.rsplit('/').next().unwrap_or(name);
    data && !base.starts_with('.') && has_image_extension(base)
}

/// Whatever size their headers name: that of the file on the disk, with some writers.
fn has_no_content(kind: EntryType) -> bool {
    kind.is_symlink()
        || kind.is_character_special()
        || kind.is_block_special()
        || kind.is_dir()
        || kind.is_fifo()
}

fn is_link(kind: EntryType) -> bool {
    kind.is_hard_link() || kind.is_symlink()
}

/// `./dir/a.seg.png` → `dir/a`.
fn sample_key(name: &str) -> &str {
    let name = name.strip_prefix("./").unwrap_or(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name[base..].find('.').map_or(name.len(), |dot| base + dot);
    &name[..end]
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::compression::decompressed;
    use super::super::compression::tests::{gzip, zstd};
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in members {
            let mut header = Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).expect("to memory");
        }
        builder.into_inner().expect("to memory")
    }

    fn read(bytes: &[u8]) -> (Vec<RawRecord>, Option<String>) {
        let mut reader = TarRecords::new(bytes, 1000);
        let mut found = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(record)) => found.push(record),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }

    fn ids(found: &[RawRecord]) -> Vec<&str> {
        found.iter().map(|record| record.image_id.as_str()).collect()
    }

    #[test]
    fn image_members_are_records_and_others_are_not() {
        let tar = archive(&[
            ("a.jpg", b"one"),
            ("a.json", b"{}"),
            ("dir.v1/b.PNG", b"two"),
            ("dir.v1/b.cls", b"3"),
            ("./c.left.webp", b"three"),
            ("c.right.webp", b"four"),
            ("._a.jpg", b"attributes"),
        ]);
        let (found, error) = read(&tar);
        assert_eq!(error, None);
        assert_eq!(ids(&found), ["a", "dir.v1/b", "c", "c"]);
        assert_eq!(found[3].content, Ok(Bytes::from_static(b"four")));
    }

    #[test]
    fn long_names_of_gnu_and_pax_are_whole() {
        let long = format!("{}/image.jpg", "folder".repeat(40));
        let mut builder = tar::Builder::new(archive(&[(long.as_str(), b"gnu")]));
        builder.get_mut().truncate(3 * BLOCK_BYTES + BLOCK_BYTES);
        let extensions = [("path", long.as_bytes()), ("mtime", b"1.5")];
        builder.append_pax_extensions(extensions).expect("to memory");
        let mut header = Header::new_ustar();
        header.set_size(3);
        header.set_path("short.bin").expect("short");
        header.set_cksum();
        builder.append(&header, &b"pax"[..]).expect("to memory");
        let (found, error) = read(&builder.into_inner().expect("to memory"));
        assert_eq!(error, None);
        let key = long.strip_suffix(".jpg").expect("suffix");
        assert_eq!(ids(&found), [key, key]);
        assert_eq!(found[1].content, Ok(Bytes::from_static(b"pax")));
    }

    #[test]
    fn empty_and_too_large_members_are_rejected_and_the_next_one_read() {
        let tar = archive(&[("e.jpg", b""), ("l.jpg", &[1; 1001]), ("o.jpg", &[1; 1000])]);
        let (found, error) = read(&tar);
        assert_eq!(error, None);
        let reasons: Vec<_> = found.iter().map(|r| r.content.as_ref().err().map(|e| e.status)).collect();
        assert_eq!(reasons, [Some(Status::Empty), Some(Status::TooLarge), None]);
    }

    #[test]
    fn a_link_to_an_image_is_a_row() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "b.jpg", "a.jpg").expect("to memory");
        let (found, _) = read(&builder.into_inner().expect("to memory"));
        assert_eq!(found[0].content.as_ref().expect_err("link").status, Status::MissingImage);
    }

    #[test]
    fn the_size_of_a_link_hides_no_member() {
        let link = |kind: EntryType, body: &[u8]| {
            let mut header = Header::new_ustar();
            header.set_entry_type(kind);
            header.set_path("b.jpg").expect("short");
            header.set_link_name("a.jpg").expect("short");
            header.set_size(700);
            header.set_cksum();
            let (before, after) = (archive(&[("a.jpg", b"one")]), archive(&[("c.jpg", b"three")]));
            read(&[&before[..1024], header.as_bytes(), body, &after].concat())
        };
        for (kind, body) in
            [(EntryType::Link, &[][..]), (EntryType::Link, &[7; 1024]), (EntryType::Symlink, &[])]
        {
            let (found, error) = link(kind, body);
            assert_eq!((ids(&found), error), (vec!["a", "b", "c"], None), "{kind:?}");
        }
    }

    #[test]
    fn a_cut_inside_a_member_names_it_and_keeps_the_rows_before() {
        let tar = archive(&[("a.jpg", &[1; 700]), ("b.jpg", &[2; 700])]);
        let second = 512 + 1024;
        let (found, error) = read(&tar[..second + 512 + 100]);
        assert_eq!(ids(&found), ["a"]);
        assert_eq!(error.expect("cut"), "the file ends inside b.jpg: 100 of its 700 bytes are there");
        let (found, error) = read(&tar[..second + 100]);
        assert_eq!(ids(&found), ["a"]);
        assert!(error.expect("cut").contains("member's header"));
        // the last byte of the member is there, the padding is not
        let (found, error) = read(&tar[..512 + 700]);
        assert_eq!(ids(&found), ["a"]);
        assert!(error.is_some());
    }

    #[test]
    fn a_missing_end_mark_is_no_damage() {
        let tar = archive(&[("a.jpg", b"one")]);
        let (found, error) = read(&tar[..1024]);
        assert_eq!((ids(&found), error), (vec!["a"], None));
    }

    #[test]
    fn members_behind_an_end_mark_are_read_and_a_hole_is_damage() {
        let (one, two) = (archive(&[("a.jpg", b"one")]), archive(&[("b.jpg", b"two")]));
        let (found, error) = read(&[&one[..], &[0; 10_240], &two].concat());
        assert_eq!((ids(&found), error), (vec!["a", "b"], None));
        // zeros where a header and some of its member stood
        let mut holed = archive(&[("a.jpg", b"one"), ("b.jpg", &[7; 1000]), ("c.jpg", b"three")]);
        holed[1024..2048].fill(0);
        let (found, error) = read(&holed);
        assert_eq!(ids(&found), ["a"]);
        let error = error.expect("damaged");
        assert!(error.starts_with("damaged") && error.contains("at byte 2048"), "{error}");
        // a signature, say
        let (found, error) = read(&[&one[..], &[7; 2000]].concat());
        assert_eq!((ids(&found), error), (vec!["a"], None));
        let (found, error) = read(&[&one[..], b"\n"].concat());
        assert_eq!((ids(&found), error), (vec!["a"], None));
        // one block of zeros is no end mark
        let (found, error) = read(&[&one[..1024], &[0; 512], &[7; 2000]].concat());
        assert!(ids(&found) == ["a"] && error.is_some());
        // a device's padding ends anywhere
        let (found, error) = read(&[&one[..], &[0; 100]].concat());
        assert_eq!((ids(&found), error), (vec!["a"], None));
    }

    #[test]
    fn a_pax_value_may_hold_line_breaks_and_an_empty_one_leaves_the_header_be() {
        let named = |extensions: [(&str, &[u8]); 2]| {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append_pax_extensions(extensions).expect("to memory");
            builder.into_inner().map(|tar| [&tar[..1024], &archive(&[("a.jpg", b"one")])].concat())
        };
        let odd = named([("SCHILY.xattr.user.x", b"a\n\nb"), ("path", b"long/b.jpg")]).expect("to memory");
        assert_eq!(ids(&read(&odd).0), ["long/b"]);
        let empty = named([("path", b""), ("size", b"")]).expect("to memory");
        assert_eq!(ids(&read(&empty).0), ["a"]);
        for malformed in [&b"99 path=x\n"[..], b"path=x", b"9 path=x", b"0 path=x\n", b"8 pathx\n", b"1 "] {
            assert_eq!(pax_record(malformed), None);
        }
    }

    #[test]
    fn what_is_no_archive_says_so() {
        assert!(read(&[b'x'; 2000]).1.expect("error").starts_with("not a tar archive"));
        assert!(read(b"hello").1.is_some());
        assert!(read(b"").1.is_some());
    }

    #[test]
    fn a_damaged_header_ends_the_shard_and_says_where() {
        let mut tar = archive(&[("a.jpg", b"one"), ("b.jpg", b"two")]);
        tar[1024] ^= 1;
        let (found, error) = read(&tar);
        assert_eq!(ids(&found), ["a"]);
        assert_eq!(error.expect("damaged"), "damaged: the checksum of the header at byte 1024 does not hold");
    }

    #[test]
    fn a_long_name_of_a_gigabyte_is_refused() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 30);
        header.set_cksum();
        let message = read(header.as_bytes()).1.expect("refused");
        assert!(message.contains("limit is 1048576"), "{message}");
    }

    #[test]
    fn records_before_a_cut_of_the_compressed_stream_survive() {
        // members that differ, so that half of the stream holds about half of them
        let images: Vec<Vec<u8>> = (0..600_u32)
            .map(|n| (0..900_u32).map(|m| ((n * 900 + m).wrapping_mul(2_654_435_761) >> 13) as u8).collect())
            .collect();
        let members: Vec<(&str, &[u8])> = images.iter().map(|image| ("a.jpg", &image[..])).collect();
        let tar = archive(&members);
        for packed in [gzip(&tar), zstd(&tar)] {
            let mut reader = TarRecords::new(decompressed(&packed[..packed.len() / 2]).expect("head"), 1000);
            let mut whole = 0;
            let error = loop {
                match reader.next_record() {
                    Ok(record) => whole += record.map(|_| 1).expect("no end"),
                    Err(error) => break error,
                }
            };
            assert!(whole > 100, "{whole}: {error}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            read(&bytes);
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0_usize..100_000, value in any::<u8>(), repair in any::<bool>()) {
            let long = format!("{}.jpg", "x".repeat(150));
            let mut tar = archive(&[("a.jpg", &[1; 700]), (long.as_str(), &[2; 10]), ("c.jpg", b"")]);
            let at = at % tar.len();
            tar[at] = value;
            if repair {
                // give the header that was hit a checksum that holds
                let start = at / BLOCK_BYTES * BLOCK_BYTES;
                let mut header = Header::from_byte_slice(&tar[start..start + BLOCK_BYTES]).clone();
                header.set_cksum();
                tar[start..start + BLOCK_BYTES].copy_from_slice(header.as_bytes());
            }
            read(&tar);
        }
    }
}
