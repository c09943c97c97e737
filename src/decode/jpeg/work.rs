//! Estimates the CPU time that decoding a JPEG may take, from its markers.
//!
//! - Each scan may visit every block of its components, however few bytes it has. The estimate assumes
//!   the worst content for each coefficient, and that the file is decoded twice, as a damaged one is.
//! - Costs were measured on a core of 2020 at 3 GHz, and rounded up.

use super::markers::{SOS, Segments, is_frame};

/// One pixel: inverse DCT, colour conversion and resizing.
const PIXEL_NS: u64 = 30;

/// One byte of entropy-coded data.
const BYTE_NS: u64 = 20;

/// The start of a scan: building its tables.
const SCAN_NS: u64 = 20_000;

/// One block of a scan, whatever its content.
const BLOCK_NS: u64 = 20;

/// One Huffman-coded coefficient of a block, in addition to the cost of its bytes.
const HUFFMAN_COEFFICIENT_NS: u64 = 1;

/// One arithmetic-coded coefficient: about 30 binary decisions, which may take no byte.
const ARITHMETIC_COEFFICIENT_NS: u64 = 60;

const COEFFICIENTS: u64 = 64;

/// The work that decoding a JPEG may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub scans: u32,
    /// CPU time, at most.
    pub nanoseconds: u64,
}

/// The fields of a start-of-frame segment.
struct Frame<'a> {
    pixels: u64,
    arithmetic: bool,
    progressive: bool,
    /// Three bytes each: identifier, sampling factors, quantization table.
    components: &'a [[u8; 3]],
}

impl<'a> Frame<'a> {
    fn read(marker: u8, payload: &'a [u8]) -> Option<Self> {
        let side =
            |at: usize| Some(u64::from(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?])));
        Some(Self {
            pixels: side(1)? * side(3)?,
            arithmetic: marker >= 0xc9,
            progressive: matches!(marker, 0xc2 | 0xca),
            components: payload.get(6..)?.as_chunks().0,
        })
    }

    /// Cost of a scan of the components `named`.
    fn scan_ns(&self, named: &[[u8; 2]], coefficients: u64) -> u64 {
        let each = if self.arithmetic { ARITHMETIC_COEFFICIENT_NS } else { HUFFMAN_COEFFICIENT_NS };
        SCAN_NS + self.blocks(named) * (BLOCK_NS + coefficients * each)
    }

    /// Whether a scan of that number of components holds the whole image.
    fn is_whole(&self, components: usize) -> bool {
        !self.progressive && components >= self.components.len()
    }

    /// Blocks of the components that a scan names.
    fn blocks(&self, named: &[[u8; 2]]) -> u64 {
        let factors = |component: &[u8; 3]| (u64::from(component[1] >> 4), u64::from(component[1] & 15));
        let largest = |of: fn((u64, u64)) -> u64| self.components.iter().map(|c| of(factors(c))).max();
        let unit = largest(|(wide, _)| wide).unwrap_or(0) * largest(|(_, high)| high).unwrap_or(0);
        let share =
            self.components.iter().filter(|component| named.iter().any(|name| name[0] == component[0]));
        let samples: u64 = share.map(factors).map(|(wide, high)| wide * high).sum();
        // the decoder rejects a sampling factor of zero
        self.pixels.div_ceil(COEFFICIENTS) * samples / unit.max(1)
    }
}

/// Estimate the work that the scans of `jpeg` may cause.
pub(super) fn estimate(jpeg: &[u8]) -> Work {
    let mut work = Work { scans: 0, nanoseconds: 0 };
    let mut frame = None;
    let mut segments = Segments::with_scans(jpeg);
    let mut first_data_at = None;
    while let Some(segment) = segments.next() {
        if is_frame(segment.marker) {
            frame = frame.or(Frame::read(segment.marker, segment.payload));
        }
        let (SOS, Some(frame)) = (segment.marker, &frame) else { continue };
        let Some((&count, rest)) = segment.payload.split_first() else { break };
        let named = rest.as_chunks().0;
        let named = &named[..named.len().min(usize::from(count))];
        let range = rest.get(2 * named.len()..2 * named.len() + 2);
        let coefficients = match range {
            Some(&[first, last]) if frame.progressive => u64::from(last.saturating_sub(first)) + 1,
            _ => COEFFICIENTS,
        };
        work.scans += 1;
        work.nanoseconds += frame.scan_ns(named, coefficients);
        if frame.is_whole(named.len()) {
            first_data_at = None;
            break;
        }
        first_data_at.get_or_insert(segments.at());
    }
    if let (Some(at), Some(frame)) = (first_data_at, &frame) {
        // Damage may look like the marker of a segment that contains the scans after it. The decoder may
        // still find them.
        let behind_first = scan_markers(segments.read_bytes().get(at..).unwrap_or_default());
        let hidden = (1 + behind_first).saturating_sub(work.scans);
        let all: Vec<_> = frame.components.iter().map(|&[id, ..]| [id, 0]).collect();
        work.scans += hidden;
        work.nanoseconds += u64::from(hidden) * frame.scan_ns(&all, COEFFICIENTS);
    }
    let pixels = frame.map_or(0, |frame| frame.pixels);
    work.nanoseconds = 2 * (work.nanoseconds + jpeg.len() as u64 * BYTE_NS) + pixels * PIXEL_NS;
    work
}

/// Start-of-scan markers in `bytes`, wherever they are. Entropy-coded data cannot contain one.
fn scan_markers(bytes: &[u8]) -> u32 {
    let found = bytes.windows(2).filter(|pair| *pair == [0xff, SOS]).count();
    u32::try_from(found).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gray JPEG of 10,000×10,000 pixels: a frame header and scans of these coefficients, each with very little data.
    fn gray(marker: u8, scans: &[(u8, u8)]) -> Vec<u8> {
        let mut jpeg = vec![0xff, 0xd8, 0xff, marker, 0, 11, 8, 0x27, 0x10, 0x27, 0x10, 1, 7, 0x11, 0];
        for &(first, last) in scans {
            jpeg.extend([0xff, SOS, 0, 8, 1, 7, 0, first, last, 0, 1, 0xff, 0, 0xff, 0xd3, 2]);
        }
        [jpeg, vec![0xff, 0xd9]].concat()
    }

    fn seconds(jpeg: &[u8]) -> f64 {
        estimate(jpeg).nanoseconds as f64 / 1e9
    }

    #[test]
    fn scans_after_a_stray_marker_are_counted() {
        let jpeg = gray(0xc2, &[(0, 0), (1, 63), (1, 63)]);
        let first = jpeg.windows(2).position(|pair| pair == [0xff, SOS]).expect("a scan");
        let mut damaged = jpeg.clone();
        // the marker of a segment of 20 bytes, in the data of the first scan
        damaged.splice(first + 10..first + 10, [0xff, 0x05, 0, 20]);
        let (whole, damaged) = (estimate(&jpeg), estimate(&damaged));
        assert_eq!((whole.scans, damaged.scans), (3, 3));
        assert!(damaged.nanoseconds >= whole.nanoseconds);
    }

    #[test]
    fn the_cost_of_a_scan_depends_on_its_coefficients() {
        let blocks = 1_562_500;
        let jpeg = gray(0xc2, &[(0, 0), (1, 63)]);
        let scans = 2 * SCAN_NS + blocks * (2 * BLOCK_NS + 64 * HUFFMAN_COEFFICIENT_NS);
        let rest = jpeg.len() as u64 * BYTE_NS * 2 + 100_000_000 * PIXEL_NS;
        assert_eq!(estimate(&jpeg), Work { scans: 2, nanoseconds: 2 * scans + rest });
        // a sequential image is complete with its first scan
        assert_eq!(estimate(&gray(0xc0, &[(0, 63); 9])).scans, 1);
    }

    #[test]
    fn ordinary_files_are_far_below_the_limit_and_hostile_ones_above() {
        let limit = super::super::super::request::MAX_DECODE_SECONDS as f64;
        let script = [(0, 0), (1, 5), (6, 63), (1, 63), (0, 0), (1, 63)];
        assert!(seconds(&gray(0xc2, &script)) < limit / 3.0);
        assert!(seconds(&gray(0xc9, &[(0, 63)])) < limit);
        assert!(seconds(&gray(0xca, &[(1, 63); 29])) > limit * 10.0);
        assert!(seconds(&gray(0xc2, &[(1, 63); 100])) > limit);
    }

    #[test]
    fn a_file_truncated_anywhere_never_panics() {
        let jpeg = gray(0xca, &[(0, 0), (1, 63)]);
        for end in 0..jpeg.len() {
            estimate(&jpeg[..end]);
        }
    }
}
