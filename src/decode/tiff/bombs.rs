//! Tests with small files that demand much memory or work.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::super::{Decoder, Rejected, Scratch};
use crate::items::{PixelElement, Status};

pub(super) const LONG: u16 = 4;
pub(super) const SHORT: u16 = 3;

/// A little-endian TIFF whose IFD, with these fields, follows `data`.
pub(super) fn tiff(data: &[u8], fields: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut bytes = b"II*\0".to_vec();
    bytes.extend((8 + data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes.extend((fields.len() as u16).to_le_bytes());
    let mut tail = Vec::new();
    let tail_at = bytes.len() + 12 * fields.len() + 4;
    for (tag, kind, values) in fields {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((values.len() as u32).to_le_bytes());
        if let [value] = values {
            bytes.extend(value.to_le_bytes());
        } else {
            bytes.extend((tail_at as u32 + tail.len() as u32).to_le_bytes());
            values.iter().for_each(|value| tail.extend(value.to_le_bytes()));
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(tail);
    bytes
}

/// A gray image of `side`×`side` pixels in tiles, all of which refer to `data`.
pub(super) fn tiled(side: u32, (width, height): (u32, u32), compression: u32, data: &[u8]) -> Vec<u8> {
    let tiles = side.div_ceil(width) as usize * side.div_ceil(height) as usize;
    let (offsets, counts) = (vec![8; tiles], vec![data.len() as u32; tiles]);
    let fields: [(u16, u16, &[u32]); 10] = [
        (256, LONG, &[side]),
        (257, LONG, &[side]),
        (258, SHORT, &[8]),
        (259, SHORT, &[compression]),
        (262, SHORT, &[1]),
        (277, SHORT, &[1]),
        (322, LONG, &[width]),
        (323, LONG, &[height]),
        (324, LONG, &offsets),
        (325, LONG, &counts),
    ];
    tiff(data, &fields)
}

pub(super) fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

pub(super) fn decode(bytes: &[u8]) -> Result<(), Rejected> {
    let section = "resize = { width = 8, height = 8 }\nmax_pixels = 4000000";
    let decoder = Decoder::new(&toml::from_str(section).expect("section"), 32 << 20, PixelElement::U8);
    decoder.decode(bytes, &mut Scratch::default()).map(|_| ())
}

pub(super) fn refusal(bytes: &[u8]) -> (Status, String) {
    let rejected = decode(bytes).expect_err("a bomb");
    (rejected.status, rejected.error)
}

#[test]
fn a_tile_with_more_pixels_than_an_image_may_have_is_too_large() {
    let (status, error) = refusal(&tiled(64, (1 << 20, 1 << 12), 1, &[0; 100]));
    assert_eq!(status, Status::TooLarge);
    assert_eq!(error, "tile is 1048576×4096 pixels, limit is 4000000 pixels");
}

#[test]
fn tiles_that_reach_far_beyond_the_image_are_too_large() {
    let (status, error) = refusal(&tiled(1900, (1 << 20, 2), 8, &deflated(&[0; 1 << 21])));
    assert_eq!(status, Status::TooLarge);
    assert_eq!(error, "image is 1900×1900 pixels in tiles that are 1048576 pixels wide together");
}

#[test]
fn an_image_in_too_many_tiny_tiles_is_too_large() {
    let (status, error) = refusal(&tiled(1900, (1, 2), 8, &deflated(&[0; 2])));
    assert_eq!(status, Status::TooLarge);
    assert_eq!(error, "image is cut into 1805000 tiles, limit is 262144");
}

#[test]
fn tiles_that_all_refer_to_one_long_stream_are_refused_after_a_few_reads() {
    // empty stored blocks of 5 bytes each, before the 256 bytes of a tile
    let nothing = [0, 0, 0, 0xff, 0xff].repeat(20_000);
    let tile = deflated(&[7; 256]);
    let stream = [&tile[..2], &nothing, &tile[2..]].concat();
    decode(&tiled(16, (16, 16), 8, &stream)).expect("one tile is fine");
    let (status, error) = refusal(&tiled(800, (16, 16), 8, &stream));
    assert_eq!(status, Status::DecodeError);
    assert_eq!(error, "tiff: tiles name the same parts of the file too often");
}

#[test]
fn blank_tiles_may_share_one_stream() {
    decode(&tiled(1900, (64, 64), 8, &deflated(&[255; 64 * 64]))).expect("identical tiles");
}
