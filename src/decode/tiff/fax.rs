//! CCITT fax data: runs of white and black pixels.
//!
//! Input: codes of ITU-T T.4 (Group 3, one- or two-dimensional) or T.6 (Group 4), or modified Huffman
//! runs (TIFF 6.0, section 10). Output: rows of bits, 1 for black.
//!
//! - A row whose runs do not add up to its width, or an invalid code, is damage.
//! - Work is linear in the codes read and the rows written.

use fax::BitReader;
use fax::maps::{self, Mode};

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Modified Huffman: runs without end-of-line codes. Each row is padded to a multiple of this number of bytes.
    Runs {
        row_multiple_bytes: usize,
    },
    /// Rows separated by end-of-line codes. In two-dimensional coding, a bit after each code states whether the next
    /// row is one-dimensional.
    Group3 {
        two_dimensional: bool,
    },
    Group4,
}

/// Zero bits before the 1 of an end-of-line code; further zero bits are fill.
const END_OF_LINE_ZEROS: u8 = 11;

/// Limit of the zero-length runs of a row: encoders write one at its start, and a few write more. Without a limit, a
/// row could have as many as fit into the file.
const EMPTY_RUNS: usize = 16;

/// Decode rows of `width` pixels into the rows of `output`, each of `row_bytes` bytes; pixels past the
/// end of a row of `output`, whose last row may be shorter, are dropped. Returns the bytes of `stream`
/// read.
pub(super) fn decode(
    scheme: Scheme,
    stream: &[u8],
    width: usize,
    row_bytes: usize,
    output: &mut [u8],
) -> Result<usize, String> {
    let mut reader =
        Rows { bits: Bits { bytes: stream, at: 0 }, width, reference: Vec::new(), changes: Vec::new() };
    let rows = output.len().div_ceil(row_bytes);
    for (row, out) in output.chunks_mut(row_bytes).enumerate() {
        let read = match scheme {
            Scheme::Runs { row_multiple_bytes } => {
                let read = reader.runs();
                reader.bits.align(row_multiple_bytes);
                read
            }
            Scheme::Group3 { two_dimensional } => reader.group_3_row(two_dimensional),
            Scheme::Group4 => reader.two_dimensional_row(),
        };
        read.ok_or_else(|| format!("fax data is damaged or ends at row {row} of {rows}"))?;
        paint(&reader.changes, width, out);
        std::mem::swap(&mut reader.reference, &mut reader.changes);
    }
    Ok(reader.bits.at.div_ceil(8).min(stream.len()))
}

struct Rows<'a> {
    bits: Bits<'a>,
    width: usize,
    /// The changing elements of the row above: the positions of its colour changes, starting with white.
    reference: Vec<usize>,
    /// The changing elements of this row.
    changes: Vec<usize>,
}

impl Rows<'_> {
    fn group_3_row(&mut self, two_dimensional: bool) -> Option<()> {
        let mut one_dimensional = true;
        let mut lines_ended = 0_usize;
        while self.bits.peek(END_OF_LINE_ZEROS) == Some(0) {
            while self.bits.peek(1)? == 0 {
                self.bits.consume(1).ok()?;
            }
            self.bits.consume(1).ok()?;
            if two_dimensional {
                one_dimensional = self.bits.peek(1)? == 1;
                self.bits.consume(1).ok()?;
            }
            lines_ended += 1;
        }
        // Two consecutive codes start the return-to-control sequence, which ends the page. Without a
        // code no row starts here.
        match lines_ended {
            1 if one_dimensional => self.runs(),
            1 => self.two_dimensional_row(),
            _ => None,
        }
    }

    /// A row of alternating white and black runs.
    fn runs(&mut self) -> Option<()> {
        self.changes.clear();
        let mut at = 0;
        let mut is_black = false;
        while at < self.width && self.changes.len() <= self.max_changes() {
            at += self.run(is_black)?;
            self.changes.push(at);
            is_black = !is_black;
        }
        (at == self.width).then_some(())
    }

    /// A row coded relative to the row above (T.6, 2.2).
    fn two_dimensional_row(&mut self) -> Option<()> {
        self.changes.clear();
        // `None` is before the first pixel, so that a change at pixel 0 lies to its right
        let mut at: Option<usize> = None;
        let mut is_black = false;
        // index of the first change of the row above to the right of `at`
        let mut above = 0;
        while at.unwrap_or(0) < self.width {
            if self.changes.len() > self.max_changes() {
                return None;
            }
            while self.reference.get(above).is_some_and(|&change| at.is_some_and(|at| change <= at)) {
                above += 1;
            }
            let opposite = above + usize::from((above % 2 == 1) != is_black);
            let change = |index: usize| self.reference.get(index).copied().unwrap_or(self.width);
            match maps::mode::decode(&mut self.bits)? {
                Mode::Pass => at = Some(change(opposite + 1)),
                Mode::Vertical(by) => {
                    let to = change(opposite).checked_add_signed(isize::from(by))?;
                    if to < at.unwrap_or(0) || to > self.width {
                        return None;
                    }
                    self.changes.push(to);
                    is_black = !is_black;
                    at = Some(to);
                }
                Mode::Horizontal => {
                    let first = at.unwrap_or(0) + self.run(is_black)?;
                    let second = first + self.run(!is_black)?;
                    if second > self.width {
                        return None;
                    }
                    self.changes.extend([first, second]);
                    at = Some(second);
                }
                Mode::Extension | Mode::EOF => return None,
            }
        }
        Some(())
    }

    /// Limit of the changes of a row: one at each pixel, and some zero-length runs.
    fn max_changes(&self) -> usize {
        self.width + EMPTY_RUNS
    }

    /// The length of a run: any number of make-up codes, which are multiples of 64, and a terminating
    /// code.
    fn run(&mut self, is_black: bool) -> Option<usize> {
        let mut length = 0;
        loop {
            let code = match is_black {
                true => maps::black::decode(&mut self.bits),
                false => maps::white::decode(&mut self.bits),
            }?;
            length += usize::from(code);
            if length > self.width {
                return None;
            }
            if code < 64 {
                return Some(length);
            }
        }
    }
}

/// Set the bits of the black runs of a row, which starts with white.
fn paint(changes: &[usize], width: usize, row: &mut [u8]) {
    row.fill(0);
    let width = width.min(row.len() * 8);
    for run in changes.chunks(2) {
        let [start, end] = match *run {
            [start] => [start, width],
            [start, end, ..] => [start, end.min(width)],
            [] => continue,
        };
        if start >= end {
            continue;
        }
        let (first, last) = (start / 8, (end - 1) / 8);
        let (head, tail) = (0xff >> (start % 8), 0xff_u8 << (7 - (end - 1) % 8));
        if first == last {
            row[first] |= head & tail;
        } else {
            row[first] |= head;
            row[first + 1..last].fill(0xff);
            row[last] |= tail;
        }
    }
}

/// Reads bits, the most significant bit of each byte first; zeros follow the last byte.
struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits consumed.
    at: usize,
}

impl Bits<'_> {
    /// Skip to the next multiple of `bytes` bytes.
    fn align(&mut self, bytes: usize) {
        self.at = self.at.next_multiple_of(8 * bytes);
    }
}

impl BitReader for Bits<'_> {
    type Error = ();

    fn peek(&self, bits: u8) -> Option<u16> {
        let byte = |index: usize| self.bytes.get(self.at / 8 + index).copied().map_or(0, u32::from);
        let three = byte(0) << 16 | byte(1) << 8 | byte(2);
        (bits <= 16).then(|| (three << (8 + self.at % 8) >> (32 - u32::from(bits).max(1))) as u16)
    }

    fn consume(&mut self, bits: u8) -> Result<(), ()> {
        self.at += usize::from(bits);
        if self.at > self.bytes.len() * 8 { Err(()) } else { Ok(()) }
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        ((8 - self.at % 8) % 8) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_bit_of_a_black_run_is_set() {
        for (start, end) in [(0, 1), (3, 5), (7, 8), (7, 9), (0, 24), (5, 23), (8, 16)] {
            let mut row = [0x55; 3];
            paint(&[start, end], 24, &mut row);
            let bits = u32::from_be_bytes([0, row[0], row[1], row[2]]);
            let expected = (start..end).fold(0, |bits, at| bits | 1 << (23 - at));
            assert_eq!(bits, expected, "{start} to {end}");
        }
        let mut row = [0; 2];
        paint(&[10], 12, &mut row);
        assert_eq!(row, [0, 0x30], "black to the end of the row");
    }

    #[test]
    fn a_row_of_zero_length_runs_ends() {
        // alternating zero-length white and black runs, 8 and 10 bits: 00110101 0000110111
        let empty = [0x35, 0x0d, 0xcd, 0x43, 0x73, 0x50, 0xdc, 0xd4, 0x37].repeat(1000);
        let mut output = [0; 4];
        let scheme = Scheme::Runs { row_multiple_bytes: 1 };
        assert!(decode(scheme, &empty, 32, 4, &mut output).is_err());
        let mut rows = Rows {
            bits: Bits { bytes: &empty, at: 0 },
            width: 32,
            reference: Vec::new(),
            changes: Vec::new(),
        };
        assert_eq!(rows.runs(), None);
        assert_eq!(rows.changes, [0; 32 + EMPTY_RUNS + 1]);
    }

    proptest! {
        #[test]
        fn random_codes_never_panic(stream in prop::collection::vec(any::<u8>(), 0..200), width in 1..90_usize) {
            let row_bytes = width.div_ceil(8);
            let mut output = vec![0; row_bytes * 40];
            for scheme in [
                Scheme::Runs { row_multiple_bytes: 1 },
                Scheme::Runs { row_multiple_bytes: 2 },
                Scheme::Group3 { two_dimensional: false },
                Scheme::Group3 { two_dimensional: true },
                Scheme::Group4,
            ] {
                if let Ok(read) = decode(scheme, &stream, width, row_bytes, &mut output) {
                    prop_assert!(read <= stream.len());
                }
            }
        }
    }
}
