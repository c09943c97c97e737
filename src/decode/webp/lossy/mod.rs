//! Whether the lossy data of a WebP is sound, told before it is decoded.
//!
//! Comes in: a VP8 key frame. Goes out: nothing, or what is wrong with it. The decoder is content with
//! data that runs out by a byte, and computes with numbers of any size, where libwebp refuses the one
//! and cuts the other to 16 bits; pixels of such a file would be no picture's.
//!
//! - Bitstream: RFC 6386, sections 9 (headers), 11 (modes) and 13 (coefficients). All of it is read;
//!   pixels are not made.
//! - A partition ends early if a byte behind its last one is needed, as in libwebp.

mod bool_decoder;
mod tables;

use self::bool_decoder::BoolDecoder;
use self::tables::{BLOCK_MODES, CONSTANT_STEPS, STEPS, TOKENS, TokenProbabilities, UPDATES};

/// Frame tag, start code and sides.
const HEADER_BYTES: usize = 10;

/// Sum of a block's coefficients, without their signs, up to which no step of the inverse transform
/// leaves 16 bits: it multiplies none by more than 1.71. Differences of pixels give less than 12,000.
const MAX_BLOCK_SUM: u32 = 19_000;

/// The same for the constant coefficients of a macroblock's luma, which are transformed once more: each
/// of them becomes at most an eighth of the sum.
const MAX_CONSTANTS_SUM: u32 = 8 * MAX_BLOCK_SUM;
const MAX_COEFFICIENT: u32 = i16::MAX as u32;

const EARLY_END: &str = "the lossy data ends early";
const TOO_LARGE: &str = "the lossy data holds coefficients beyond 16 bits";

const LUMA_MODES: [i8; 8] = [-(BLOCKWISE as i8), 2, 4, 6, 0, -1, -2, -3];
const LUMA_MODE_PROBABILITIES: [u8; 4] = [145, 156, 163, 128];
/// The luma mode of a macroblock whose blocks have a mode each.
const BLOCKWISE: u8 = 4;
/// The block mode that stands for each of the other luma modes: constant, vertical, horizontal, plane.
const AS_BLOCK_MODE: [u8; 4] = [0, 2, 3, 1];
const BLOCK_MODE_TREE: [i8; 18] = [0, 2, -1, 4, -2, 6, 8, 12, -3, 10, -5, -6, -4, 14, -7, 16, -8, -9];
const CHROMA_MODES: [i8; 6] = [0, 2, -1, 4, -2, -3];
const CHROMA_MODE_PROBABILITIES: [u8; 3] = [142, 114, 183];
const SEGMENTS: [i8; 6] = [2, 4, 0, -1, -2, -3];

/// Band of each coefficient in the order of the file.
const BANDS: [usize; 16] = [0, 1, 2, 3, 6, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7];
/// Read all of `bitstream`, an image of `size` pixels; an error says what is wrong with it.
pub(super) fn check(bitstream: &[u8], size: (u32, u32)) -> Result<(), &'static str> {
    let tag = bitstream.first_chunk::<3>().ok_or(EARLY_END)?;
    let first_bytes = (u32::from_le_bytes([tag[0], tag[1], tag[2], 0]) >> 5) as usize;
    let (first, rest) =
        bitstream.get(HEADER_BYTES..).and_then(|data| data.split_at_checked(first_bytes)).ok_or(EARLY_END)?;
    let mut bits = BoolDecoder::new(first);
    let header = Header::read(&mut bits);
    let mut partitions = partitions(rest, header.partitions).ok_or(EARLY_END)?;
    let (columns, rows) = (size.0.div_ceil(16), size.1.div_ceil(16));
    let mut above = vec![Beside::default(); columns as usize];
    for row in 0..rows as usize {
        let tokens = &mut partitions[row % header.partitions];
        let mut left = Beside::default();
        for above in &mut above {
            let (segment, skipped, luma_mode) = header.read_modes(&mut bits, above, &mut left);
            if skipped {
                above.skip(luma_mode);
                left.skip(luma_mode);
                continue;
            }
            let mut blocks = Blocks { tokens, probabilities: &header.tokens, above, left: &mut left };
            blocks.read(&header.steps[segment], luma_mode)?;
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

/// The partitions of coefficients: a table of the lengths of all but the last, then their bytes.
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

/// Steps of a segment's constant and other coefficients.
#[derive(Clone, Copy, Default)]
struct Steps {
    luma: [u32; 2],
    /// Of the constant coefficients of luma, transformed once more.
    constants: [u32; 2],
    chroma: [u32; 2],
}

struct Header {
    /// Probabilities of the bits of a segment's number, where macroblocks say theirs.
    segments: Option<[u8; 3]>,
    steps: [Steps; 4],
    partitions: usize,
    tokens: TokenProbabilities,
    /// Probability that a macroblock has coefficients, where macroblocks say so.
    skip: Option<u8>,
}

impl Header {
    fn read(bits: &mut BoolDecoder) -> Self {
        // colour space and clamping
        bits.literal(2);
        let mut segments = None;
        let mut levels = None;
        if bits.flag() {
            let (map, data) = (bits.flag(), bits.flag());
            // without data all segments have level 0
            let mut absolute = true;
            let mut of_segments = [0; 4];
            if data {
                absolute = bits.flag();
                of_segments = std::array::from_fn(|_| bits.signed(7));
                // loop filters
                bits.skip_signed(4);
            }
            levels = Some((absolute, of_segments));
            if map {
                segments =
                    Some(std::array::from_fn(|_| if bits.flag() { bits.literal(8) as u8 } else { 255 }));
            }
        }
        // the loop filter, then its adjustments
        bits.literal(10);
        if bits.flag() && bits.flag() {
            bits.skip_signed(8);
        }
        let partitions = 1 << bits.literal(2);
        let base = bits.literal(7) as i32;
        let deltas: [i32; 5] = std::array::from_fn(|_| bits.signed(4));
        let steps = std::array::from_fn(|segment| {
            Steps::of(
                match levels {
                    Some((true, levels)) => levels[segment],
                    Some((false, levels)) => base + levels[segment],
                    None => base,
                },
                deltas,
            )
        });
        // whether probabilities are kept for the next frame
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
        Self { segments, steps, partitions, tokens, skip }
    }

    /// Segment of a macroblock, whether it has no coefficients, and its luma mode.
    fn read_modes(&self, bits: &mut BoolDecoder, above: &mut Beside, left: &mut Beside) -> (usize, bool, u8) {
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

impl Steps {
    /// Steps at `level`, with the differences that the header states for each kind.
    fn of(level: i32, [luma, constants, constants_other, chroma, chroma_other]: [i32; 5]) -> Self {
        let constant = |delta: i32| u32::from(CONSTANT_STEPS[(level + delta).clamp(0, 127) as usize]);
        let other = |delta: i32| u32::from(STEPS[(level + delta).clamp(0, 127) as usize]);
        Self {
            luma: [constant(luma), other(0)],
            constants: [constant(constants) * 2, (other(constants_other) * 155 / 100).max(8)],
            chroma: [constant(chroma).min(132), other(chroma_other)],
        }
    }
}

/// What a macroblock leaves for the ones below it and to its right.
#[derive(Clone, Copy, Default)]
struct Beside {
    /// Modes of the blocks at the edge.
    modes: [u8; 4],
    /// Whether the blocks at the edge have coefficients: luma, then both of chroma.
    filled: [bool; 8],
    /// Whether the constants of luma, transformed once more, have coefficients.
    constants: bool,
}

impl Beside {
    fn skip(&mut self, luma_mode: u8) {
        self.filled = [false; 8];
        // a macroblock without them leaves what is there
        self.constants &= luma_mode == BLOCKWISE;
    }
}

/// Reads the coefficients of a macroblock.
struct Blocks<'a, 'b> {
    tokens: &'a mut BoolDecoder<'b>,
    probabilities: &'a TokenProbabilities,
    above: &'a mut Beside,
    left: &'a mut Beside,
}

impl Blocks<'_, '_> {
    fn read(&mut self, steps: &Steps, luma_mode: u8) -> Result<(), &'static str> {
        let (mut first, mut plane, mut constant) = (0, 3, 0);
        if luma_mode != BLOCKWISE {
            let context = usize::from(self.above.constants) + usize::from(self.left.constants);
            let (filled, sum) = self.read_block(1, 0, context, steps.constants)?;
            (self.above.constants, self.left.constants) = (filled, filled);
            if sum > MAX_CONSTANTS_SUM {
                return Err(TOO_LARGE);
            }
            (first, plane, constant) = (1, 0, sum.div_ceil(8));
        }
        self.read_plane(0, 4, plane, first, constant, steps.luma)?;
        for at in [4, 6] {
            self.read_plane(at, 2, 2, 0, 0, steps.chroma)?;
        }
        Ok(())
    }

    /// The blocks of a square of `side` × `side`, whose edges are kept at `at`.
    fn read_plane(
        &mut self,
        at: usize,
        side: usize,
        plane: usize,
        first: usize,
        constant: u32,
        steps: [u32; 2],
    ) -> Result<(), &'static str> {
        for y in at..at + side {
            for x in at..at + side {
                let context = usize::from(self.above.filled[x]) + usize::from(self.left.filled[y]);
                let (filled, sum) = self.read_block(plane, first, context, steps)?;
                (self.above.filled[x], self.left.filled[y]) = (filled, filled);
                if sum + constant > MAX_BLOCK_SUM {
                    return Err(TOO_LARGE);
                }
            }
        }
        Ok(())
    }

    /// Whether a block holds anything, and the sum of its coefficients without their signs.
    fn read_block(
        &mut self,
        plane: usize,
        first: usize,
        mut context: usize,
        steps: [u32; 2],
    ) -> Result<(bool, u32), &'static str> {
        let bits = &mut *self.tokens;
        let mut sum = 0;
        let mut behind_zero = false;
        for at in first..16 {
            let probabilities = &self.probabilities[plane][BANDS[at]][context];
            // a block does not end behind a zero
            if !behind_zero && !bits.read(probabilities[0]) {
                return Ok((at > first, sum));
            }
            behind_zero = !bits.read(probabilities[1]);
            if behind_zero {
                context = 0;
                continue;
            }
            let value = bits.value(probabilities);
            context = if value == 1 { 1 } else { 2 };
            // the sign
            bits.flag();
            let coefficient = value * steps[usize::from(at > 0)];
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
    fn data_ends_early_if_a_byte_behind_a_partition_is_needed() {
        let whole = bitstream();
        // the encoder fills its last bits up with two bytes more than a decoder needs
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
        // rows of macroblocks that the data does not hold
        assert_eq!(check(&whole, (27, 190)), Err(EARLY_END));
    }

    #[test]
    fn a_bit_can_make_coefficients_that_no_picture_has() {
        let mut bitstream = bitstream();
        bitstream[70] ^= 1;
        assert_eq!(check(&bitstream, SIZE), Err(TOO_LARGE));
    }
}
