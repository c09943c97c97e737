//! Code that the instruction sets share: it splits weights into 16-bit halves, and pads rows to whole registers.

/// The first `wanted_bytes` of `from`; if it is shorter, a copy in `tail`, padded with zeros.
pub(super) fn with_slack<'a>(from: &'a [u8], wanted_bytes: usize, tail: &'a mut Vec<u8>) -> &'a [u8] {
    from.get(..wanted_bytes).unwrap_or_else(|| {
        tail.clear();
        tail.extend_from_slice(from);
        tail.resize(wanted_bytes, 0);
        tail
    })
}

/// Bits of the low part of a weight: as an `i16` it is never negative.
pub(super) const LOW_BITS: u32 = 15;

/// The low and the high part of a weight. A weight's magnitude is below 2^24, so the high part fits
/// easily.
pub(super) fn split(weight: i32) -> [i16; 2] {
    [(weight & ((1 << LOW_BITS) - 1)) as i16, (weight >> LOW_BITS) as i16]
}
