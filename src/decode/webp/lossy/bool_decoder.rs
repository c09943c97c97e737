//! The boolean entropy decoder of VP8 (RFC 6386, section 7), and the values that it codes.

/// The smallest value of each category of large coefficients, and the probabilities of its extra bits.
const CATEGORIES: [(u32, &[u8]); 6] = [
    (5, &[159]),
    (7, &[165, 145]),
    (11, &[173, 148, 140]),
    (19, &[176, 155, 140, 135]),
    (35, &[180, 157, 141, 134, 130]),
    (67, &[254, 254, 243, 230, 196, 177, 153, 140, 133, 130, 129]),
];

/// Decodes arithmetic-coded bits of given probabilities.
pub(super) struct BoolDecoder<'a> {
    bytes: &'a [u8],
    value: u64,
    range: u32,
    /// Bits of `value` below the 8 bits that are compared; negative if `value` has fewer than 8.
    spare: i32,
    /// A byte past the end was needed.
    pub(super) past_end: bool,
}

impl<'a> BoolDecoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, value: 0, range: 255, spare: -8, past_end: false }
    }

    fn load(&mut self) {
        if let Some((bytes, rest)) = self.bytes.split_first_chunk::<4>() {
            self.value = self.value << 32 | u64::from(u32::from_be_bytes(*bytes));
            self.spare += 32;
            self.bytes = rest;
            return;
        }
        let byte = match self.bytes.split_first() {
            Some((&byte, rest)) => {
                self.bytes = rest;
                byte
            }
            None => {
                self.past_end = true;
                0
            }
        };
        self.value = self.value << 8 | u64::from(byte);
        self.spare += 8;
    }

    /// A bit that is 0 with a probability of `probability` / 256.
    pub(super) fn read(&mut self, probability: u8) -> bool {
        if self.spare < 0 {
            self.load();
        }
        let split = 1 + (((self.range - 1) * u32::from(probability)) >> 8);
        let shifted = u64::from(split) << self.spare;
        let set = self.value >= shifted;
        if set {
            self.value -= shifted;
            self.range -= split;
        } else {
            self.range = split;
        }
        let shift = self.range.leading_zeros() - 24;
        self.range <<= shift;
        self.spare -= shift as i32;
        set
    }

    pub(super) fn flag(&mut self) -> bool {
        self.read(128)
    }

    pub(super) fn literal(&mut self, bits: u32) -> u32 {
        (0..bits).fold(0, |value, _| value << 1 | u32::from(self.flag()))
    }

    /// An optional number: a flag, then `bits` bits and a sign; 0 if the flag is not set.
    pub(super) fn signed(&mut self, bits: u32) -> i32 {
        if !self.flag() {
            return 0;
        }
        let value = self.literal(bits) as i32;
        if self.flag() { -value } else { value }
    }

    /// Skip `count` optional numbers of 6 bits, which only the loop filter needs.
    pub(super) fn skip_signed(&mut self, count: usize) {
        for _ in 0..count {
            self.signed(6);
        }
    }

    /// A leaf of `tree`, which is a list of pairs of branches; a branch is the index of another pair, or
    /// a negated leaf.
    pub(super) fn tree(&mut self, tree: &[i8], probabilities: &[u8]) -> u8 {
        let mut at = 0;
        loop {
            let branch = tree[at + usize::from(self.read(probabilities[at / 2]))];
            if branch <= 0 {
                return branch.unsigned_abs();
            }
            at = branch as usize;
        }
    }

    /// The absolute value of a coefficient other than 0, before dequantization.
    pub(super) fn value(&mut self, probabilities: &[u8; 11]) -> u32 {
        if !self.read(probabilities[2]) {
            return 1;
        }
        if !self.read(probabilities[3]) {
            if !self.read(probabilities[4]) {
                return 2;
            }
            return 3 + u32::from(self.read(probabilities[5]));
        }
        let category = if !self.read(probabilities[6]) {
            usize::from(self.read(probabilities[7]))
        } else if !self.read(probabilities[8]) {
            2 + usize::from(self.read(probabilities[9]))
        } else {
            4 + usize::from(self.read(probabilities[10]))
        };
        let (least, extra) = CATEGORIES[category];
        least + extra.iter().fold(0, |value, &bit| value << 1 | u32::from(self.read(bit)))
    }
}
