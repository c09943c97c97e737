//! Checks the lossy data of a WebP for damage, before it is decoded.
//!
//! Input: a VP8 key frame. Output: nothing, or the reason why it is damaged. The decoder accepts data
//! that is one byte short, and coefficients of any size; libwebp rejects the former and truncates the
//! latter to 16 bits. The pixels of such a file would be wrong.
//!
//! - Bitstream: RFC 6386, sections 9 (headers), 11 (modes) and 13 (coefficients). All of it is parsed;
//!   no pixels are computed.
//! - A partition ends early if a byte past its last one is needed, as in libwebp.

mod bool_decoder;
mod tables;

use self::bool_decoder::BoolDecoder;
use self::tables::{AC_FACTORS, BLOCK_MODES, DC_FACTORS, TOKENS, TokenProbabilities, UPDATES};

/// Frame tag, start code, width and height.
const HEADER_BYTES: usize = 10;

/// Limit of the sum of a block's absolute coefficients. Up to it, no step of the inverse transform
/// exceeds 16 bits, since it multiplies none by more than 1.71. Real pixels give sums below 12,000.
const MAX_BLOCK_SUM: u32 = 19_000;

/// The same limit for a macroblock's Y2 block, which holds the DC coefficients of its luma blocks in
/// transformed form: each DC coefficient becomes at most an eighth of the sum.
const MAX_Y2_SUM: u32 = 8 * MAX_BLOCK_SUM;
const MAX_COEFFICIENT: u32 = i16::MAX as u32;

const EARLY_END: &str = "the lossy data ends early";
const TOO_LARGE: &str = "the lossy data holds coefficients beyond 16 bits";

const LUMA_MODES: [i8; 8] = [-(BLOCKWISE as i8), 2, 4, 6, 0, -1, -2, -3];
const LUMA_MODE_PROBABILITIES: [u8; 4] = [145, 156, 163, 128];
/// The luma mode of a macroblock each of whose blocks has its own mode (`B_PRED`).
const BLOCKWISE: u8 = 4;
/// The block mode implied by each of the other luma modes: DC, vertical, horizontal, TrueMotion.
const AS_BLOCK_MODE: [u8; 4] = [0, 2, 3, 1];
const BLOCK_MODE_TREE: [i8; 18] = [0, 2, -1, 4, -2, 6, 8, 12, -3, 10, -5, -6, -4, 14, -7, 16, -8, -9];
const CHROMA_MODES: [i8; 6] = [0, 2, -1, 4, -2, -3];
const CHROMA_MODE_PROBABILITIES: [u8; 3] = [142, 114, 183];
const SEGMENTS: [i8; 6] = [2, 4, 0, -1, -2, -3];

/// Block types, which select the token probabilities.
const LUMA_WITHOUT_DC: usize = 0;
const Y2: usize = 1;
const CHROMA: usize = 2;
const LUMA_WITH_DC: usize = 3;

/// Band of each coefficient, in zigzag order.
const BANDS: [usize; 16] = [0, 1, 2, 3, 6, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7];

/// Parse all of `bitstream`, an image of `size` pixels. The error is the reason for rejection.
pub(super) fn check(bitstream: &[u8], size: (u32, u32)) -> Result<(), &'static str> {
    let tag = bitstream.first_chunk::<3>().ok_or(EARLY_END)?;
    let first_bytes = (u32::from_le_bytes([tag[0], tag[1], tag[2], 0]) >> 5) as usize;
    let (first, rest) =
        bitstream.get(HEADER_BYTES..).and_then(|data| data.split_at_checked(first_bytes)).ok_or(EARLY_END)?;
    let mut bits = BoolDecoder::new(first);
    let header = Header::read(&mut bits);
    let mut partitions = partitions(rest, header.partitions).ok_or(EARLY_END)?;
    let (columns, rows) = (size.0.div_ceil(16), size.1.div_ceil(16));
    let mut above = vec![Neighbour::default(); columns as usize];
    for row in 0..rows as usize {
        let tokens = &mut partitions[row % header.partitions];
        let mut left = Neighbour::default();
        for above in &mut above {
            let (segment, skipped, luma_mode) = header.read_modes(&mut bits, above, &mut left);
            if skipped {
                above.skip(luma_mode);
                left.skip(luma_mode);
                continue;
            }
            let mut blocks = Blocks { tokens, probabilities: &header.tokens, above, left: &mut left };
            blocks.read(&header.factors[segment], luma_mode)?;
            if tokens.past_end {
                return Err(EARLY_END);
            }
        }
        if bits.past_end {
            return Err(EARLY_END);
        }
    }
    Ok(())
}

/// The coefficient partitions: a table of the lengths of all but the last, then their bytes.
fn partitions(data: &[u8], count: usize) -> Option<Vec<BoolDecoder<'_>>> {
    let (lengths, mut rest) = data.split_at_checked(3 * (count - 1))?;
    let mut partitions = Vec::with_capacity(count);
    for length in lengths.as_chunks::<3>().0 {
        let length = u32::from_le_bytes([length[0], length[1], length[2], 0]);
        let (partition, behind) = rest.split_at_checked(length as usize)?;
        partitions.push(BoolDecoder::new(partition));
        rest = behind;
    }
    partitions.push(BoolDecoder::new(rest));
    Some(partitions)
}

/// Dequantization factors of a segment: for the DC and for the AC coefficients of each kind of block.
#[derive(Clone, Copy, Default)]
struct Factors {
    luma: [u32; 2],
    y2: [u32; 2],
    chroma: [u32; 2],
}

struct Header {
    /// Probabilities of the bits of a segment number, if each macroblock states its segment.
    segments: Option<[u8; 3]>,
    factors: [Factors; 4],
    partitions: usize,
    tokens: TokenProbabilities,
    /// Probability that a macroblock has coefficients, if macroblocks have a flag for it.
    skip: Option<u8>,
}

impl Header {
    fn read(bits: &mut BoolDecoder) -> Self {
        // colour space and clamping type
        bits.literal(2);
        let mut segments = None;
        let mut levels = None;
        if bits.flag() {
            let (map, data) = (bits.flag(), bits.flag());
            // without data, the quantizer level of every segment is 0
            let mut absolute = true;
            let mut segment_levels = [0; 4];
            if data {
                absolute = bits.flag();
                segment_levels = std::array::from_fn(|_| bits.signed(7));
                // loop filter levels
                bits.skip_signed(4);
            }
            levels = Some((absolute, segment_levels));
            if map {
                segments =
                    Some(std::array::from_fn(|_| if bits.flag() { bits.literal(8) as u8 } else { 255 }));
            }
        }
        // loop filter type, level and sharpness, then its deltas
        bits.literal(10);
        if bits.flag() && bits.flag() {
            bits.skip_signed(8);
        }
        let partitions = 1 << bits.literal(2);
        let base = bits.literal(7) as i32;
        let deltas: [i32; 5] = std::array::from_fn(|_| bits.signed(4));
        let factors = std::array::from_fn(|segment| {
            Factors::of(
                match levels {
                    Some((true, levels)) => levels[segment],
                    Some((false, levels)) => base + levels[segment],
                    None => base,
                },
                deltas,
            )
        });
        // whether the probabilities are kept for the next frame
        bits.flag();
        let mut tokens = TOKENS;
        let probabilities = tokens.as_flattened_mut().as_flattened_mut().as_flattened_mut();
        let updates = UPDATES.as_flattened().as_flattened().as_flattened();
        for (probability, &update) in probabilities.iter_mut().zip(updates) {
            if bits.read(update) {
                *probability = bits.literal(8) as u8;
            }
        }
        let skip = if bits.flag() { Some(bits.literal(8) as u8) } else { None };
        Self { segments, factors, partitions, tokens, skip }
    }

    /// Read a macroblock's segment, whether it has no coefficients, and its luma mode.
    fn read_modes(
        &self,
        bits: &mut BoolDecoder,
        above: &mut Neighbour,
        left: &mut Neighbour,
    ) -> (usize, bool, u8) {
        let segment = self.segments.map_or(0, |probabilities| bits.tree(&SEGMENTS, &probabilities));
        let skipped = self.skip.is_some_and(|probability| bits.read(probability));
        let luma_mode = bits.tree(&LUMA_MODES, &LUMA_MODE_PROBABILITIES);
        if luma_mode == BLOCKWISE {
            for left in &mut left.modes {
                for above in &mut above.modes {
                    let probabilities = &BLOCK_MODES[usize::from(*above)][usize::from(*left)];
                    let mode = bits.tree(&BLOCK_MODE_TREE, probabilities);
                    (*above, *left) = (mode, mode);
                }
            }
        } else {
            let mode = AS_BLOCK_MODE[usize::from(luma_mode)];
            (above.modes, left.modes) = ([mode; 4], [mode; 4]);
        }
        bits.tree(&CHROMA_MODES, &CHROMA_MODE_PROBABILITIES);
        (usize::from(segment), skipped, luma_mode)
    }
}

impl Factors {
    /// Factors at the quantizer level `level`, with the header's delta for each kind.
    fn of(level: i32, [luma_dc, y2_dc, y2_ac, chroma_dc, chroma_ac]: [i32; 5]) -> Self {
        let dc = |delta: i32| u32::from(DC_FACTORS[(level + delta).clamp(0, 127) as usize]);
        let ac = |delta: i32| u32::from(AC_FACTORS[(level + delta).clamp(0, 127) as usize]);
        Self {
            luma: [dc(luma_dc), ac(0)],
            y2: [dc(y2_dc) * 2, (ac(y2_ac) * 155 / 100).max(8)],
            chroma: [dc(chroma_dc).min(132), ac(chroma_ac)],
        }
    }
}

/// The state of a macroblock that the macroblocks below and to the right depend on.
#[derive(Clone, Copy, Default)]
struct Neighbour {
    /// Modes of the blocks at the edge.
    modes: [u8; 4],
    /// Whether the blocks at the edge have coefficients: four of luma, then two of each chroma plane.
    filled: [bool; 8],
    /// Whether the last Y2 block has coefficients.
    y2: bool,
}

impl Neighbour {
    fn skip(&mut self, luma_mode: u8) {
        self.filled = [false; 8];
        // a macroblock without a Y2 block does not change the flag
        self.y2 &= luma_mode == BLOCKWISE;
    }
}

/// Reads the coefficients of a macroblock.
struct Blocks<'a, 'b> {
    tokens: &'a mut BoolDecoder<'b>,
    probabilities: &'a TokenProbabilities,
    above: &'a mut Neighbour,
    left: &'a mut Neighbour,
}

impl Blocks<'_, '_> {
    fn read(&mut self, factors: &Factors, luma_mode: u8) -> Result<(), &'static str> {
        let (mut first, mut block_type, mut dc) = (0, LUMA_WITH_DC, 0);
        if luma_mode != BLOCKWISE {
            let context = usize::from(self.above.y2) + usize::from(self.left.y2);
            let (filled, sum) = self.read_block(Y2, 0, context, factors.y2)?;
            (self.above.y2, self.left.y2) = (filled, filled);
            if sum > MAX_Y2_SUM {
                return Err(TOO_LARGE);
            }
            (first, block_type, dc) = (1, LUMA_WITHOUT_DC, sum.div_ceil(8));
        }
        self.read_plane(0, 4, block_type, first, dc, factors.luma)?;
        for at in [4, 6] {
            self.read_plane(at, 2, CHROMA, 0, 0, factors.chroma)?;
        }
        Ok(())
    }

    /// Read `side` × `side` blocks of one plane, from coefficient `first` on; the flags of their
    /// neighbours are at index `at`, and `dc` bounds a DC coefficient that comes from the Y2 block.
    fn read_plane(
        &mut self,
        at: usize,
        side: usize,
        block_type: usize,
        first: usize,
        dc: u32,
        factors: [u32; 2],
    ) -> Result<(), &'static str> {
        for y in at..at + side {
            for x in at..at + side {
                let context = usize::from(self.above.filled[x]) + usize::from(self.left.filled[y]);
                let (filled, sum) = self.read_block(block_type, first, context, factors)?;
                (self.above.filled[x], self.left.filled[y]) = (filled, filled);
                if sum + dc > MAX_BLOCK_SUM {
                    return Err(TOO_LARGE);
                }
            }
        }
        Ok(())
    }

    /// Read a block. Returns whether it has coefficients, and the sum of their absolute values.
    fn read_block(
        &mut self,
        block_type: usize,
        first: usize,
        mut context: usize,
        factors: [u32; 2],
    ) -> Result<(bool, u32), &'static str> {
        let bits = &mut *self.tokens;
        let mut sum = 0;
        let mut after_zero = false;
        for at in first..16 {
            let probabilities = &self.probabilities[block_type][BANDS[at]][context];
            // a zero is never followed by the end of the block
            if !after_zero && !bits.read(probabilities[0]) {
                return Ok((at > first, sum));
            }
            after_zero = !bits.read(probabilities[1]);
            if after_zero {
                context = 0;
                continue;
            }
            let value = bits.value(probabilities);
            context = if value == 1 { 1 } else { 2 };
            // the sign
            bits.flag();
            let coefficient = value * factors[usize::from(at > 0)];
            if coefficient > MAX_COEFFICIENT {
                return Err(TOO_LARGE);
            }
            sum += coefficient;
        }
        Ok((true, sum))
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks;
    use super::*;

    const SIZE: (u32, u32) = (27, 19);

    fn bitstream() -> Vec<u8> {
        let webp = std::fs::read("fixtures/codecs/lossy.webp").expect("a fixture");
        let frame = chunks::read(&webp).expect("sound").frame;
        assert_eq!(frame.size, SIZE);
        frame.lossy_data().expect("lossy").to_vec()
    }

    #[test]
    fn data_ends_early_if_a_byte_past_a_partition_is_needed() {
        let whole = bitstream();
        // the encoder flushes two bytes more than a decoder needs
        let needed = whole.len() - 2;
        for end in 0..=whole.len() {
            let expected = if end < needed { Err(EARLY_END) } else { Ok(()) };
            assert_eq!(check(&whole[..end], SIZE), expected, "{end}");
        }
        // 8 bytes are too few for the header and the modes
        let mut modes_cut = whole.clone();
        let tag = u32::from_le_bytes([whole[0], whole[1], whole[2], 0]);
        modes_cut[..3].copy_from_slice(&(tag & 0x1f | 8 << 5).to_le_bytes()[..3]);
        assert_eq!(check(&modes_cut, SIZE), Err(EARLY_END));
        // more rows of macroblocks than the data holds
        assert_eq!(check(&whole, (27, 190)), Err(EARLY_END));
    }

    #[test]
    fn a_flipped_bit_that_gives_huge_coefficients_is_detected() {
        let mut bitstream = bitstream();
        bitstream[70] ^= 1;
        assert_eq!(check(&bitstream, SIZE), Err(TOO_LARGE));
    }
}
