//! The members of a tar archive, one after the other.
//!
//! Input: the uncompressed bytes of an archive. Output: each member's name, kind and size. The caller reads or skips
//! its content.
//!
//! The `tar` crate parses header fields, but its `Archive` is not used: it reads long-name members into memory whatever
//! their size.
//!
//! - Names are identifiers only, as [`escaped`] writes them. They are never used as paths.
//! - A header with a checksum mismatch ends the archive: the start of the next member is unknown.
//! - Another archive may follow the end mark of one, as after `cat`. Other data there is ignored, unless a header
//!   follows the data: then the zeros were a hole, and the archive is damaged.

use std::borrow::Cow;
use std::io::Read;

use tar::{EntryType, Header};

use crate::error::ReadError;
use crate::sniff;

use super::stream::Stream;
use crate::store::escaped;

/// A tar archive consists of blocks of this many bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// Blocks of zeros at the end of an archive.
const END_MARK_BLOCKS: u32 = 2;

/// Longest GNU long name or pax header, bytes. Paths are at most 4 KiB long on the systems that write them.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// The members of one archive.
pub(super) struct Members<R> {
    stream: Stream<R>,
    /// Bytes up to the next header: the padding of the last member.
    padding: u64,
    /// A block that was read ahead.
    returned: Option<Block>,
    /// Whether the end was reached.
    ended: bool,
}

type Block = [u8; BLOCK_BYTES];

/// A member whose header is read and whose content is not.
pub(super) struct Member {
    /// The name as [`escaped`] writes it.
    pub name: String,
    pub kind: EntryType,
    /// Bytes of the content in the archive.
    pub size: u64,
    /// Whether the content is stored without its holes.
    pub sparse: bool,
}

impl Member {
    pub fn is_link(&self) -> bool {
        self.kind.is_hard_link() || self.kind.is_symlink()
    }

    /// Whether it is a file, or a link to one. POSIX requires an undefined type to be treated as a file.
    pub fn is_file(&self) -> bool {
        self.kind.is_file()
            || self.kind.is_contiguous()
            || self.kind.is_gnu_sparse()
            || self.is_link()
            || is_undefined(self.kind)
    }

    /// Whether it is a folder. The oldest writers mark a folder only by a trailing slash and give it no bytes.
    pub fn is_folder(&self) -> bool {
        self.kind.is_dir() || self.kind.is_file() && self.size == 0 && self.name.ends_with('/')
    }
}

/// Properties of the next member that extension headers state.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> Members<R> {
    pub fn new(reader: R) -> Self {
        Self { stream: Stream::new(reader), padding: 0, returned: None, ended: false }
    }

    /// The first bytes of a member's content, at most `count`. The caller must read or skip the rest.
    pub fn head(&mut self, member: &Member, count: u64) -> Result<Vec<u8>, ReadError> {
        let wanted = member.size.min(count);
        let head = self.stream.read_bytes(wanted).map_err(|error| self.damaged(&member.name, &error))?;
        if (head.len() as u64) < wanted {
            return Err(cut_short(&member.name, head.len() as u64, member.size));
        }
        Ok(head)
    }

    /// All of a member's content, of which `head` is already read.
    pub fn rest(&mut self, member: &Member, mut head: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        let behind = self.read(&member.name, member.size - head.len() as u64, member.size)?;
        if head.is_empty() {
            return Ok(behind);
        }
        head.extend_from_slice(&behind);
        Ok(head)
    }

    /// Skip a member's content, of which `read` bytes are already read.
    pub fn skip_rest(&mut self, member: &Member, read: u64) -> Result<(), ReadError> {
        let left = member.size - read;
        let skipped = self.stream.skip(left).map_err(|error| self.damaged(&member.name, &error))?;
        self.finish_member(&member.name, member.size, read + skipped)
    }

    /// Read headers up to and including that of the next member. Returns `None` at the end and from then on.
    pub fn next_member(&mut self) -> Result<Option<Member>, ReadError> {
        let mut extensions = Extensions::default();
        loop {
            if self.ended {
                return Ok(None);
            }
            let Some(block) = self.next_header()? else {
                self.ended = true;
                return Ok(None);
            };
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
                let name = escaped(&name);
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

    /// Skip the content of a hard link, if it has any. Many writers state the size of the linked file without storing
    /// its bytes, so bytes that begin like the next member are not content.
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
                // some writers omit the end mark, and GNU tar and Python accept that
                tracing::warn!(bytes = start, "archive ends without an end mark; members may be missing");
                return Ok(None);
            }
            match filled {
                0.. if filled < BLOCK_BYTES && (zeros >= END_MARK_BLOCKS || (zeros > 0 && is_zero)) => {
                    if !is_zero {
                        tracing::warn!(bytes = start, "data that is not an archive follows the end mark");
                    }
                    return Ok(None);
                }
                BLOCK_BYTES if is_zero => zeros += 1,
                BLOCK_BYTES => break (start, block),
                _ if start > 0 => {
                    return Err(self.corrupt("the file ends where a member's header should stand"));
                }
                _ => {
                    let what = "the file is shorter than a member's header";
                    return Err(match sniff::is_tar(&block[..filled]) {
                        true => ReadError::Corrupt(format!("damaged: {what}")),
                        false => no_archive(&block[..filled], what),
                    });
                }
            }
        };
        if !is_header(&block) {
            if zeros >= END_MARK_BLOCKS && !self.has_header_ahead()? {
                tracing::warn!(bytes = start, "data that is not an archive follows the end mark");
                return Ok(None);
            }
            let what = format!("the checksum of the header at byte {start} does not hold");
            return Err(match start {
                0 if !sniff::is_tar(&block) => no_archive(&block, &what),
                _ => ReadError::Corrupt(format!("damaged: {what}")),
            });
        }
        Ok(Some(block))
    }

    /// Whether a member's header follows anywhere before the end of the file.
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
        self.read("an extension header", size, size)
    }

    /// The last `count` of the `size` bytes of `name`.
    fn read(&mut self, name: &str, count: u64, size: u64) -> Result<Vec<u8>, ReadError> {
        let bytes = self.stream.read_bytes(count).map_err(|error| self.damaged(name, &error))?;
        self.finish_member(name, size, size - count + bytes.len() as u64)?;
        Ok(bytes)
    }

    fn skip(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let skipped = self.stream.skip(size).map_err(|error| self.damaged(name, &error))?;
        self.finish_member(name, size, skipped)
    }

    /// Check that all bytes of a member arrived. Its padding is skipped before the next header: a member without its
    /// padding is complete.
    fn finish_member(&mut self, name: &str, size: u64, arrived: u64) -> Result<(), ReadError> {
        if arrived < size {
            return Err(cut_short(name, arrived, size));
        }
        let block = BLOCK_BYTES as u64;
        self.padding = (block - size % block) % block;
        Ok(())
    }

    /// Skip the further map blocks of a GNU sparse member. Each block says whether another one follows.
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
    /// Apply the records of a pax header. Unknown keys are ignored, as POSIX requires. An empty value means the value
    /// of the member's own header.
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

/// The first record of a pax header, `"%d %s=%s\n", length, key, value`, as key, value and the remaining bytes. The
/// length is that of the whole record. A value may hold any bytes, line breaks included.
pub(super) fn pax_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
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

/// Whether members of this type have no content, whatever size their headers state. Some writers state the size of the
/// file on disk.
fn has_no_content(kind: EntryType) -> bool {
    kind.is_symlink()
        || kind.is_character_special()
        || kind.is_block_special()
        || kind.is_dir()
        || kind.is_fifo()
}

/// Whether neither POSIX nor a known writer of archives defines this type. POSIX leaves upper-case letters to writers:
/// GNU tar uses `D` (a folder's list of names), `M` (the rest of a file on another volume), `N` and `V` (the archive's
/// label), and Solaris uses `A`, `E`, `I` and `X`.
fn is_undefined(kind: EntryType) -> bool {
    !matches!(kind.as_byte(), b'0'..=b'7' | b'g' | b'x' | b'K' | b'L' | b'S')
        && !b"DMNVAEIX".contains(&kind.as_byte())
}

/// The error for a file that does not begin like an archive. It names the content, or says `what` is wrong.
fn no_archive(head: &[u8], what: &str) -> ReadError {
    let name = sniff::name(head).map(|name| format!("it is {name}"));
    ReadError::Corrupt(format!("not a tar archive: {}", name.unwrap_or_else(|| what.to_owned())))
}

fn cut_short(name: &str, arrived: u64, size: u64) -> ReadError {
    ReadError::Corrupt(format!("the file ends inside {name}: {arrived} of its {size} bytes are there"))
}
