//! LZW in the dialects of GIF and TIFF.
//!
//! Input: packed codes. Output: bytes, until the caller's buffer is full.
//!
//! - A table entry refers to a string in the output: the previous string and the byte that follows it.
//! - Work is linear in the codes read and the bytes written; the table always takes 24 KiB.
//! - Accepts what Pillow's decoders accept: GIF specification, appendix F; TIFF 6.0, section 13.

/// Codes have at most 12 bits.
const MAX_CODE_BITS: u32 = 12;

const TABLE_ENTRIES: usize = 1 << MAX_CODE_BITS;

/// How codes are packed, and when their width grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Least significant bit first.
    Gif,
    /// Most significant bit first; the width grows one code early.
    Tiff,
    /// TIFF from before its specification: packed as in a GIF.
    OldTiff,
}

/// Why decoding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The output is full.
    Full,
    /// The end-of-information code came first.
    EndCode,
    /// The data ended first.
    OutOfData,
    /// A code is not in the table.
    BadCode,
}

/// An LZW table, reused for each stream.
pub(super) struct Lzw {
    pub(super) dialect: Dialect,
    /// Offset in the output of each code's string.
    starts: Box<[u32; TABLE_ENTRIES]>,
    lengths: Box<[u16; TABLE_ENTRIES]>,
}

impl Lzw {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, starts: Box::new([0; TABLE_ENTRIES]), lengths: Box::new([0; TABLE_ENTRIES]) }
    }

    /// Decode `codes` of `data_bits`-bit data (8 in a TIFF, at most 12 in a GIF) into `output`, which
    /// is shorter than 4 GiB. Returns the number of bytes written, and why decoding ended.
    pub(super) fn decode(
        &mut self,
        data_bits: u32,
        codes: &mut impl Iterator<Item = u8>,
        output: &mut [u8],
    ) -> (usize, Ending) {
        let most_significant_first = self.dialect == Dialect::Tiff;
        let early = u32::from(most_significant_first);
        let clear = 1_u32 << data_bits;
        let end = clear + 1;
        let mut next = clear + 2;
        let mut code_bits = data_bits + 1;
        // start and length of the previous string
        let mut before: Option<(usize, usize)> = None;
        let (mut buffer, mut buffered_bits) = (0_u32, 0_u32);
        let mut written = 0;
        while written < output.len() {
            while buffered_bits < code_bits {
                let Some(byte) = codes.next() else { return (written, Ending::OutOfData) };
                if most_significant_first {
                    buffer = buffer << 8 | u32::from(byte);
                } else {
                    buffer |= u32::from(byte) << buffered_bits;
                }
                buffered_bits += 8;
            }
            buffered_bits -= code_bits;
            let mask = (1 << code_bits) - 1;
            let code = if most_significant_first {
                buffer >> buffered_bits & mask
            } else {
                let code = buffer & mask;
                buffer >>= code_bits;
                code
            };

            if code == clear {
                next = clear + 2;
                code_bits = data_bits + 1;
                before = None;
                continue;
            }
            if code == end {
                return (written, Ending::EndCode);
            }
            let start = written;
            if code < clear {
                output[written] = code as u8;
                written += 1;
            } else {
                let Some((previous, previous_length)) = before else { return (written, Ending::BadCode) };
                let (from, length) = match code {
                    // the previous string followed by its own first byte
                    _ if code == next => (previous, previous_length + 1),
                    _ if code < next => {
                        (self.starts[code as usize] as usize, usize::from(self.lengths[code as usize]))
                    }
                    _ => return (written, Ending::BadCode),
                };
                let length = length.min(output.len() - written);
                let apart = length.min(written - from);
                output.copy_within(from..from + apart, written);
                written += apart;
                if apart < length {
                    output[written] = output[from];
                    written += 1;
                }
            }
            if let Some((previous, previous_length)) = before
                && (next as usize) < TABLE_ENTRIES
            {
                self.starts[next as usize] = previous as u32;
                self.lengths[next as usize] = (previous_length + 1) as u16;
                if next + early == (1 << code_bits) - 1 && code_bits < MAX_CODE_BITS {
                    code_bits += 1;
                }
                next += 1;
            }
            before = Some((start, written - start));
        }
        (written, Ending::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weezl::BitOrder;

    fn decoded(dialect: Dialect, bits: u32, packed: &[u8], length: usize) -> (Vec<u8>, Ending) {
        let mut output = vec![0; length];
        let (written, ending) = Lzw::new(dialect).decode(bits, &mut packed.iter().copied(), &mut output);
        output.truncate(written);
        (output, ending)
    }

    proptest! {
        #[test]
        fn decoding_restores_the_encoded_bytes(
            data in prop::collection::vec(0..4_u8, 0..9000),
            noise in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            for data in [data, noise] {
                let gif = weezl::encode::Encoder::new(BitOrder::Lsb, 8).encode(&data).expect("encoded");
                let tiff = weezl::encode::Encoder::with_tiff_size_switch(BitOrder::Msb, 8).encode(&data).expect("encoded");
                for (dialect, packed) in [(Dialect::Gif, gif), (Dialect::Tiff, tiff)] {
                    let (output, ending) = decoded(dialect, 8, &packed, data.len());
                    prop_assert_eq!(ending, Ending::Full);
                    prop_assert!(output == data);
                    let (output, ending) = decoded(dialect, 8, &packed, data.len() + 1);
                    prop_assert_eq!(ending, Ending::EndCode);
                    prop_assert!(output == data);
                }
            }
        }

        #[test]
        fn random_codes_never_panic(packed in prop::collection::vec(any::<u8>(), 0..600), bits in 0..13_u32) {
            for dialect in [Dialect::Gif, Dialect::Tiff, Dialect::OldTiff] {
                decoded(dialect, bits, &packed, 5000);
            }
        }
    }
}
