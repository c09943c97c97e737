//! Computes how much memory the code tables of a lossless WebP take, before the decoder builds them.
//!
//! Input: a lossless bitstream. Output: an upper bound of the bytes that the decoder's prefix codes
//! take. A few bits of a file can define a table of several kilobytes, and there may be 65,536 groups
//! of five tables, so neither the file's length nor the image's size bounds them.
//!
//! - Bitstream: RFC 9649, sections 3.5 to 3.7. Everything before the pixels is read: transforms, the
//!   entropy image, whose pixels are group numbers, and the code lengths.
//! - Pixels are not kept. A group number is a pixel's red and green, and every pixel is a literal or a
//!   copy of one, so the largest literal gives the number of groups.

/// Memory of each group in addition to its tables, including the spare capacity of the list of groups.
const GROUP_BYTES: u64 = 1024;

/// Longest code that the table resolves; for longer codes the decoder builds a tree.
const TABLE_BITS: usize = 10;
const TABLE_ENTRY_BYTES: u64 = 4;
/// Two tree nodes for each longer code.
const TREE_BYTES: u64 = 32;

const MAX_CODE_BITS: usize = 15;

/// Alphabet sizes of the five codes of a group: green and lengths, red, blue, alpha, distance. The colour
/// cache enlarges the first.
const ALPHABETS: [usize; 5] = [256 + 24, 256, 256, 256, 40];
const LITERALS: u16 = 256;
const FIRST_CACHED: u16 = 256 + 24;

/// Order in which the lengths of the code length code are stored.
const LENGTHS_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Bytes of the tables of `bitstream`, an image of `size` pixels without its header. `None` if the
/// bitstream is damaged, so that no decoder can read it.
pub(super) fn table_bytes(bitstream: &[u8], size: (u32, u32)) -> Option<u64> {
    let mut bits = Bits { bytes: bitstream, at: 0 };
    let mut width = size.0;
    while bits.read(1)? == 1 {
        match bits.read(2)? {
            // predictor or colour transform: an image with one pixel for each block
            0 | 1 => {
                let block_bits = bits.read(3)? + 2;
                read_image(&mut bits, blocks((width, size.1), block_bits))?;
            }
            // subtract-green transform
            2 => {}
            // colour-indexing transform; with a small palette, a pixel packs several indices
            _ => {
                let colors = bits.read(8)? + 1;
                read_image(&mut bits, u64::from(colors))?;
                width = width.div_ceil(match colors {
                    0..=2 => 8,
                    3..=4 => 4,
                    5..=16 => 2,
                    _ => 1,
                });
            }
        }
    }
    let cache_symbols = read_cache(&mut bits)?;
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let block_bits = bits.read(3)? + 2;
        groups = u64::from(read_image(&mut bits, blocks((width, size.1), block_bits))?) + 1;
    }
    let mut bytes = groups * GROUP_BYTES;
    for _ in 0..groups {
        for alphabet in alphabets(cache_symbols) {
            bytes += Code::read(&mut bits, alphabet)?.table_bytes();
        }
    }
    Some(bytes)
}

fn blocks((width, height): (u32, u32), block_bits: u32) -> u64 {
    let side = |length: u32| u64::from(length.div_ceil(1 << block_bits));
    side(width) * side(height)
}

fn alphabets(cache_symbols: usize) -> [usize; 5] {
    let mut alphabets = ALPHABETS;
    alphabets[0] += cache_symbols;
    alphabets
}

/// Reads the size of the colour cache: the number of symbols that it adds.
fn read_cache(bits: &mut Bits) -> Option<usize> {
    if bits.read(1)? == 0 {
        return Some(0);
    }
    let cache_bits = bits.read(4)?;
    (1..=11).contains(&cache_bits).then_some(1 << cache_bits)
}

/// Read an image of `pixels` pixels with one group of codes. Returns its largest red × 256 + green.
fn read_image(bits: &mut Bits, pixels: u64) -> Option<u32> {
    let cache_symbols = read_cache(bits)?;
    let mut codes = Vec::with_capacity(ALPHABETS.len());
    for alphabet in alphabets(cache_symbols) {
        codes.push(Code::read(bits, alphabet)?);
    }
    let [green, red, blue, alpha, distance] = &codes[..] else { return None };
    let (mut largest, mut at) = (0, 0);
    while at < pixels {
        match green.symbol(bits)? {
            symbol @ ..LITERALS => {
                largest = largest.max(u32::from(red.symbol(bits)?) << 8 | u32::from(symbol));
                blue.symbol(bits)?;
                alpha.symbol(bits)?;
                at += 1;
            }
            symbol @ LITERALS..FIRST_CACHED => {
                at += read_length(bits, symbol - LITERALS)?;
                let prefix = distance.symbol(bits)?;
                read_length(bits, prefix)?;
            }
            FIRST_CACHED.. => at += 1,
        }
    }
    (at == pixels).then_some(largest)
}

/// A length or a distance: its prefix code, and the extra bits.
fn read_length(bits: &mut Bits, prefix: u16) -> Option<u64> {
    let prefix = u64::from(prefix);
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some(((2 + (prefix & 1)) << extra) + u64::from(bits.read(extra as u32)?) + 1)
}

/// A canonical prefix code.
struct Code {
    /// Number of symbols of each code length; 0 for length 0.
    counts: [u16; MAX_CODE_BITS + 1],
    /// Sorted by code length, then by value.
    symbols: Vec<u16>,
}

impl Code {
    fn read(bits: &mut Bits, alphabet: usize) -> Option<Self> {
        let mut lengths = vec![0; alphabet];
        if bits.read(1)? == 1 {
            // simple code: one or two symbols, stored literally
            let both = bits.read(1)? == 1;
            let first_bits = if bits.read(1)? == 1 { 8 } else { 1 };
            let first = bits.read(first_bits)? as u16;
            let second = if both { Some(bits.read(8)? as u16) } else { None };
            let symbols: Vec<u16> = [Some(first), second].into_iter().flatten().collect();
            if symbols.iter().any(|&symbol| usize::from(symbol) >= alphabet) {
                return None;
            }
            // two equal symbols also take one bit
            let mut counts = [0; MAX_CODE_BITS + 1];
            counts[1] = symbols.len() as u16;
            return Some(Self { counts, symbols });
        }
        let mut length_code = vec![0; LENGTHS_ORDER.len()];
        for &at in &LENGTHS_ORDER[..4 + bits.read(4)? as usize] {
            length_code[at] = bits.read(3)? as u8;
        }
        let length_code = Self::of(&length_code)?;
        let mut left = alphabet;
        if bits.read(1)? == 1 {
            let wide = 2 + 2 * bits.read(3)?;
            left = 2 + bits.read(wide)? as usize;
            if left > alphabet {
                return None;
            }
        }
        let (mut at, mut previous) = (0, 8);
        while at < alphabet && left > 0 {
            left -= 1;
            let (length, repeat) = match length_code.symbol(bits)? {
                16 => (previous, 3 + bits.read(2)? as usize),
                17 => (0, 3 + bits.read(3)? as usize),
                18 => (0, 11 + bits.read(7)? as usize),
                length => (length as u8, 1),
            };
            lengths.get_mut(at..at + repeat)?.fill(length);
            at += repeat;
            if length != 0 {
                previous = length;
            }
        }
        Self::of(&lengths)
    }

    /// The code with these lengths; `None` unless it is complete or has a single symbol.
    fn of(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0; MAX_CODE_BITS + 1];
        let mut symbols: Vec<u16> =
            (0..lengths.len() as u16).filter(|&at| lengths[usize::from(at)] > 0).collect();
        symbols.sort_by_key(|&at| lengths[usize::from(at)]);
        for &symbol in &symbols {
            counts[usize::from(lengths[usize::from(symbol)])] += 1;
        }
        let filled: u32 =
            (1..=MAX_CODE_BITS).map(|length| u32::from(counts[length]) << (MAX_CODE_BITS - length)).sum();
        (symbols.len() == 1 || filled == 1 << MAX_CODE_BITS).then_some(Self { counts, symbols })
    }

    fn symbol(&self, bits: &mut Bits) -> Option<u16> {
        if let [only] = self.symbols[..] {
            // a single symbol takes no bits
            return Some(only);
        }
        // canonical code: codes of one length are consecutive, and shorter ones come first
        let (mut code, mut first, mut index) = (0, 0, 0);
        for length in 1..=MAX_CODE_BITS {
            code = code << 1 | bits.read(1)?;
            let count = u32::from(self.counts[length]);
            if code < first + count {
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
        }
        None
    }

    fn table_bytes(&self) -> u64 {
        if self.symbols.len() == 1 {
            return 0;
        }
        let longest = self.counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        let in_tree: u64 = self.counts[TABLE_BITS + 1..].iter().map(|&count| u64::from(count)).sum();
        (TABLE_ENTRY_BYTES << longest.min(TABLE_BITS)) + TREE_BYTES * in_tree.max(2)
    }
}

/// Reads bits, the least significant bit of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// Position in bits.
    at: usize,
}

impl Bits<'_> {
    /// The next `count` bits, at most 24; the first bit is the least significant.
    fn read(&mut self, count: u32) -> Option<u32> {
        let rest = self.bytes.get(self.at / 8..)?;
        let mut word = [0; 4];
        let length = rest.len().min(4);
        word[..length].copy_from_slice(&rest[..length]);
        let end = self.at + count as usize;
        if end > self.bytes.len() * 8 {
            return None;
        }
        let value = u32::from_le_bytes(word) >> (self.at % 8) & ((1 << count) - 1);
        self.at = end;
        Some(value)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes bits as [`Bits`] reads them.
    #[derive(Default)]
    pub struct Writer(Vec<bool>);

    impl Writer {
        pub fn write(&mut self, value: u32, count: u32) -> &mut Self {
            self.0.extend((0..count).map(|bit| value >> bit & 1 == 1));
            self
        }

        /// A code of one symbol.
        pub fn single(&mut self, symbol: u32) -> &mut Self {
            self.write(0b101, 3).write(symbol, 8)
        }

        /// A code of 11 symbols, of lengths 1 to 10 and 10.
        fn long_code(&mut self) -> &mut Self {
            // in the code length code, lengths 7 to 10 take 4 bits and 1 to 6 take 3
            let of_length = |at: usize| match at {
                1..=6 => 3,
                7..=10 => 4,
                _ => 0,
            };
            self.write(0, 1).write(10, 4);
            for at in &LENGTHS_ORDER[..14] {
                self.write(of_length(*at), 3);
            }
            // 11 symbols have a length: the number minus 2, in 4 bits
            self.write(1, 1).write(1, 3).write(9, 4);
            for length in (1..=10).chain([10]) {
                // the code of a length, its most significant bit first
                let (code, count) = if length <= 6 { (length - 1, 3) } else { (12 + length - 7, 4) };
                for bit in (0..count).rev() {
                    self.write(code >> bit & 1, 1);
                }
            }
            self
        }

        pub fn bytes(&self) -> Vec<u8> {
            let byte = |bits: &[bool]| (0..bits.len()).map(|at| u8::from(bits[at]) << at).sum();
            self.0.chunks(8).map(byte).collect()
        }
    }

    /// A lossless bitstream, without its header, with `groups` groups of long codes.
    pub fn with_groups(groups: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        // no transform, no cache, blocks of 512 pixels, no cache
        writer.write(0, 1).write(0, 1).write(1, 1).write(7, 3).write(0, 1);
        // every block uses the last group
        writer.single((groups - 1) & 255).single((groups - 1) >> 8).single(0).single(0).single(0);
        for _ in 0..5 * groups {
            writer.long_code();
        }
        writer.bytes()
    }

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(std::path::Path::new("fixtures/codecs").join(name)).expect("a fixture")
    }

    #[test]
    fn every_group_adds_the_bytes_of_its_tables() {
        for groups in [1, 2, 300, 700] {
            let bytes = table_bytes(&with_groups(groups), (64, 64));
            let each = GROUP_BYTES + 5 * ((TABLE_ENTRY_BYTES << TABLE_BITS) + 2 * TREE_BYTES);
            assert_eq!(bytes, Some(u64::from(groups) * each));
        }
    }

    #[test]
    fn a_bitstream_that_ends_before_its_pixels_is_damaged() {
        let whole = with_groups(2);
        for end in 0..whole.len() {
            assert_eq!(table_bytes(&whole[..end], (64, 64)), None, "cut at {end}");
        }
    }

    #[test]
    fn ordinary_files_need_small_tables() {
        for (name, size) in [("lossless.webp", (27, 19)), ("lossless_alpha.webp", (27, 19))] {
            let file = fixture(name);
            let at = file.windows(4).position(|name| name == b"VP8L").expect("lossless") + 8 + 5;
            let bytes = table_bytes(&file[at..], size).expect("sound");
            assert!(bytes < 100_000, "{name}: {bytes}");
        }
    }
}
