//! The marker segments of a JPEG.
//!
//! Input: a whole JPEG. Output: the properties that libjpeg does not report (EXIF, XMP, whether the scans hold the
//! whole image), and a copy with a clean header for files whose header libjpeg warns about.
//!
//! - Marker syntax: ITU-T T.81, annex B. Reading is as lenient as libjpeg's: bytes between
//!   segments are skipped.
//! - Entropy-coded data is never decoded.

use std::borrow::Cow;

use super::super::orientation::EXIF_PREFIX;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
pub(super) const SOS: u8 = 0xda;
const PROGRESSIVE_FRAME: u8 = 0xc2;
const FIRST_ARITHMETIC_FRAME: u8 = 0xc9;
const PROGRESSIVE_ARITHMETIC_FRAME: u8 = 0xca;
const DRI: u8 = 0xdd;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;
const APP15: u8 = 0xef;
const COM: u8 = 0xfe;

const XMP_PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// The content of a JPEG's header besides its size and colour space.
#[derive(Debug, Default)]
pub(super) struct Markers<'a> {
    /// The EXIF segments, joined: a long block continues in the next segment.
    pub exif: Option<Cow<'a, [u8]>>,
    /// XML packet of the last XMP segment.
    pub xmp: Option<&'a [u8]>,
    /// Bits per sample and number of colour components.
    pub frame: Option<(u8, u8)>,
    /// There is more than one scan.
    pub several_scans: bool,
    /// A restart interval is defined.
    pub restarts: bool,
}

/// Read the segments of `jpeg` up to its first scan, or up to the first that cannot be read.
pub(super) fn read(jpeg: &[u8]) -> Markers<'_> {
    let mut markers = Markers::default();
    for segment in Segments::new(jpeg) {
        match segment.marker {
            APP1 => match (segment.payload.strip_prefix(EXIF_PREFIX), &mut markers.exif) {
                (Some(block), Some(exif)) => exif.to_mut().extend(block),
                (Some(_), exif) => *exif = Some(Cow::Borrowed(segment.payload)),
                (None, _) => markers.xmp = segment.payload.strip_prefix(XMP_PREFIX).or(markers.xmp),
            },
            marker if is_frame(marker) => {
                markers.frame = segment.payload.first().copied().zip(segment.payload.get(5).copied());
                markers.several_scans |= matches!(marker, PROGRESSIVE_FRAME | PROGRESSIVE_ARITHMETIC_FRAME);
            }
            SOS => {
                let in_scan = segment.payload.first().copied().unwrap_or(0);
                markers.several_scans |= markers.frame.is_some_and(|(_, components)| in_scan < components);
            }
            DRI => markers.restarts = segment.payload != [0, 0],
            _ => {}
        }
    }
    markers
}

/// Whether the Huffman-coded scans of `jpeg` cover every bit of every coefficient of every component.
///
/// A decoder can tell whether such a scan is truncated. With arithmetic coding it cannot, since an encoder may omit
/// trailing zero bytes; this then returns false.
pub(super) fn has_all_scans(jpeg: &[u8]) -> bool {
    let mut is_progressive = false;
    // identifier, and a bit for each coefficient that is complete
    let mut components: Vec<(u8, u64)> = Vec::new();
    for Segment { marker, payload } in Segments::with_scans(jpeg) {
        if is_frame(marker) && components.is_empty() {
            if marker >= FIRST_ARITHMETIC_FRAME {
                return false;
            }
            is_progressive = marker == PROGRESSIVE_FRAME;
            components
                .extend(payload.get(6..).into_iter().flat_map(|all| all.chunks(3)).map(|one| (one[0], 0)));
        } else if marker == SOS {
            let Some((&count, rest)) = payload.split_first() else { return false };
            let Some((named, [first, last, approximation])) = rest
                .split_at_checked(2 * usize::from(count))
                .and_then(|(named, rest)| Some((named, rest.first_chunk::<3>()?)))
            else {
                return false;
            };
            let sent = match (is_progressive, approximation & 15) {
                (false, _) => u64::MAX,
                (true, 0) => (*first..=*last.min(&63)).fold(0, |sent, coefficient| sent | 1 << coefficient),
                (true, _) => 0,
            };
            for (_, of_component) in
                components.iter_mut().filter(|(id, _)| named.chunks(2).any(|name| name[0] == *id))
            {
                *of_component |= sent;
            }
        }
    }
    !components.is_empty() && components.iter().all(|&(_, sent)| sent == u64::MAX)
}

/// A copy of `jpeg` without the parts of the header that libjpeg warns about: bytes between segments,
/// metadata segments with a length below 2 (whose content then lies between segments), a JFIF version
/// other than 1, an unknown Adobe transform, inconsistent ICC profile segments. libjpeg decodes such
/// files, and assumes the values that the copy states, but turbojpeg fails if a header causes a warning.
/// Segments that do not affect the pixels are left out.
pub(super) fn with_clean_header(jpeg: &[u8]) -> Vec<u8> {
    let components = read(jpeg).frame.map_or(0, |(_, components)| components);
    let mut copy = Vec::with_capacity(jpeg.len());
    copy.extend([0xff, SOI]);
    let mut segments = Segments::new(jpeg);
    for segment in segments.by_ref() {
        if is_metadata(segment.marker) && !matches!(segment.marker, APP0 | APP14) {
            continue;
        }
        let payload_at = copy.len() + 4;
        copy.extend([0xff, segment.marker]);
        if !has_payload(segment.marker) {
            continue;
        }
        // cannot overflow: the length was read from a u16
        copy.extend((segment.payload.len() as u16 + 2).to_be_bytes());
        copy.extend(segment.payload);
        let payload = &mut copy[payload_at..];
        match segment.marker {
            APP0 if payload.starts_with(b"JFIF\0") && payload.len() > 5 => payload[5] = 1,
            APP14 if payload.starts_with(b"Adobe") && payload.len() > 11 => {
                // 0 is no transform; for unknown values libjpeg assumes YCCK (2) with four components,
                // else YCbCr (1)
                let assumed = if components == 4 { 2 } else { 1 };
                if payload[11] != 0 {
                    payload[11] = assumed;
                }
            }
            _ => {}
        }
    }
    copy.extend(&jpeg[segments.at.min(jpeg.len())..]);
    copy
}

/// Whether this is a start-of-frame marker; 0xc4, 0xc8 and 0xcc in the same range have other meanings.
pub(super) fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Application segments and comments.
fn is_metadata(marker: u8) -> bool {
    matches!(marker, APP0..=APP15 | COM)
}

fn has_payload(marker: u8) -> bool {
    !matches!(marker, 0x01 | 0xd0..=0xd9)
}

/// A marker and its payload.
pub(super) struct Segment<'a> {
    pub marker: u8,
    /// Without the two length bytes; empty for markers without a segment.
    pub payload: &'a [u8],
}

/// Iterates over segments.
pub(super) struct Segments<'a> {
    jpeg: &'a [u8],
    /// Offset from which the next marker is searched.
    at: usize,
    /// Continue after the first start of scan. Entropy-coded data is skipped like any bytes between
    /// segments; its restart markers are returned as segments.
    with_scans: bool,
    ended: bool,
}

impl<'a> Segments<'a> {
    /// The segments up to and including the first start of scan.
    fn new(jpeg: &'a [u8]) -> Self {
        Self { jpeg, at: 2, with_scans: false, ended: false }
    }

    /// All segments.
    pub(super) fn with_scans(jpeg: &'a [u8]) -> Self {
        Self { with_scans: true, ..Self::new(jpeg) }
    }

    /// Offset from which the next marker is searched.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes up to the end of the last segment; all of the file if the next one cannot be read.
    pub(super) fn read_bytes(&self) -> &'a [u8] {
        if self.ended { &self.jpeg[..self.at] } else { self.jpeg }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.ended {
            return None;
        }
        // a marker is 0xff, any number of further 0xff, and a byte that is neither 0 nor 0xff
        let mut at = self.at;
        loop {
            at += self.jpeg.get(at..)?.iter().position(|&byte| byte == 0xff)?;
            match self.jpeg.get(at + 1)? {
                0 | 0xff => at += 1,
                _ => break,
            }
        }
        let marker = *self.jpeg.get(at + 1)?;
        at += 2;
        let mut payload: &[u8] = &[];
        if has_payload(marker) {
            let length = u16::from_be_bytes([*self.jpeg.get(at)?, *self.jpeg.get(at + 1)?]);
            // libjpeg takes metadata with an invalid length for empty
            let length = if is_metadata(marker) { length.max(2) } else { length };
            payload = self.jpeg.get(at + 2..at + usize::from(length))?;
            at += usize::from(length);
        } else if marker == EOI {
            (self.at, self.ended) = (at, true);
            return None;
        }
        self.at = at;
        self.ended = marker == SOS && !self.with_scans;
        Some(Segment { marker, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SOI, JFIF 7.0, two stray bytes, EXIF, fill bytes before a frame of 3 components, a scan of 1.
    fn unclean_header() -> Vec<u8> {
        let mut jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x07\0\0\0\x01\0\x01\0\0xy".to_vec();
        jpeg.extend(b"\xff\xe1\0\x0aExif\0\0II");
        jpeg.extend(b"\xff\xff\xff\xc0\0\x11\x08\0\x08\0\x08\x03\x01\x11\0\x02\x11\0\x03\x11\0");
        jpeg.extend(b"\xff\xda\0\x08\x01\x01\0\0\x3f\0data\xff\xd9");
        jpeg
    }

    #[test]
    fn exif_is_read_past_stray_bytes() {
        let jpeg = unclean_header();
        let markers = read(&jpeg);
        assert_eq!(markers.exif.as_deref(), Some(&b"Exif\0\0II"[..]));
    }

    #[test]
    fn exif_continues_in_the_next_segment_and_the_last_xmp_counts() {
        let segment = |payload: &[u8]| [&[0xff, APP1, 0, payload.len() as u8 + 2], payload].concat();
        let xmp = |packet: &[u8]| segment(&[XMP_PREFIX, packet].concat());
        let parts =
            [segment(b"Exif\0\0II"), xmp(b"<a/>"), segment(b"Exif\0\0*\0"), xmp(b"<b/>"), segment(b"x")];
        let jpeg = [&[0xff, SOI][..], &parts.concat()].concat();
        let markers = read(&jpeg);
        assert_eq!(markers.exif.as_deref(), Some(&b"Exif\0\0II*\0"[..]));
        assert_eq!(markers.xmp, Some(&b"<b/>"[..]));
    }

    #[test]
    fn a_copy_with_a_clean_header_differs_only_in_its_header() {
        let clean = with_clean_header(&unclean_header());
        assert!(!clean.windows(2).any(|pair| pair == b"xy"));
        assert_eq!(clean[11], 1, "JFIF major version");
        assert!(clean.ends_with(b"data\xff\xd9"));
        assert_eq!(with_clean_header(&clean), clean);
    }

    #[test]
    fn metadata_with_an_invalid_length_is_empty_and_other_segments_end_the_header() {
        let jpeg = |marker: u8, length: u8| {
            let mut jpeg = unclean_header();
            jpeg.splice(2..2, [0xff, marker, 0, length, b'z']);
            jpeg
        };
        for (marker, length) in [(APP0, 0), (APP0, 1), (APP1, 1), (0xe2, 0), (APP14, 1), (COM, 0), (COM, 1)] {
            let jpeg = jpeg(marker, length);
            let markers = read(&jpeg);
            assert_eq!(markers.exif.as_deref(), Some(&b"Exif\0\0II"[..]), "{marker:x} {length}");
            assert!(!with_clean_header(&jpeg).contains(&b'z'), "{marker:x} {length}");
        }
        for length in [0, 1] {
            assert_eq!(read(&jpeg(0xdb, length)).frame, None, "quantization table, {length}");
        }
    }

    #[test]
    fn a_header_truncated_anywhere_never_panics() {
        let jpeg = unclean_header();
        for end in 2..jpeg.len() {
            read(&jpeg[..end]);
            with_clean_header(&jpeg[..end]);
        }
    }
}
