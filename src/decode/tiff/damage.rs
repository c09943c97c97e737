//! Tests of damaged files: damage that a checksum or a length proves is rejected, and a missing end
//! that no pixel needs is tolerated.

use std::io::Write;

use super::super::{Decoder, Pixels, Scratch};
use super::bombs::{LONG, SHORT, decode, deflated, refusal, tiff, tiled};
use crate::items::{PixelElement, Status};

const DEFLATE: u32 = 8;
const ZSTD: u32 = 50000;

fn samples(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * index / 3) as u8).collect()
}

/// Zstd data whose last 4 bytes are a checksum of the content.
fn zstd_with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("an encoder");
    encoder.include_checksum(true).expect("a parameter");
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

/// A file whose only tile, of 16×16 pixels, is `stream`; the image has `side`×`side` pixels.
fn tile(side: u32, compression: u32, stream: &[u8]) -> Vec<u8> {
    tiled(side, (16, 16), compression, stream)
}

#[test]
fn a_wrong_checksum_is_refused_and_a_missing_one_is_tolerated() {
    // a tile as large as the image, one larger than the image, and a stream longer than its tile
    for (side, length) in [(16, 256), (11, 256), (16, 300)] {
        let content = samples(length);
        let streams =
            [(DEFLATE, deflated(&content), "data check"), (ZSTD, zstd_with_checksum(&content), "checksum")];
        for (compression, stream, reason) in streams {
            decode(&tile(side, compression, &stream)).expect("a sound tile");
            for cut in 1..=4 {
                let without = decode(&tile(side, compression, &stream[..stream.len() - cut]));
                match without {
                    Ok(()) => assert_eq!(length, 256),
                    Err(rejected) => {
                        assert_eq!(
                            rejected.error,
                            "tiff: tile 0: holds more than 256 bytes and does not end"
                        );
                    }
                }
                let mut wrong = stream.clone();
                wrong[stream.len() - cut] ^= 4;
                let (status, error) = refusal(&tile(side, compression, &wrong));
                assert_eq!(status, Status::DecodeError);
                assert!(error.starts_with("tiff: tile 0: ") && error.contains(reason), "{error}");
                assert!(!error.contains("holds"), "no byte is missing: {error}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_data_with_a_checksum_never_changes_a_pixel() {
    let content = samples(256);
    let section = "resize = { width = 16, height = 16 }";
    let decoder = Decoder::new(&toml::from_str(section).expect("section"), 1 << 20, PixelElement::U8);
    let pixels = |stream: &[u8], compression| {
        let decoded = decoder.decode(&tile(16, compression, stream), &mut Scratch::default());
        decoded.map(|(_, pixels)| match pixels {
            Pixels::U8(pixels) => pixels,
            _ => unreachable!("u8 was requested"),
        })
    };
    for (compression, stream) in [(DEFLATE, deflated(&content)), (ZSTD, zstd_with_checksum(&content))] {
        let expected = pixels(&stream, compression).expect("a sound tile");
        let mut refused = 0;
        for at in 0..stream.len() {
            for bit in 0..8 {
                let mut wrong = stream.clone();
                wrong[at] ^= 1 << bit;
                match pixels(&wrong, compression) {
                    Ok(pixels) => {
                        assert!(pixels == expected, "compression {compression}: byte {at}, bit {bit}");
                    }
                    Err(rejected) => {
                        assert_eq!(rejected.status, Status::DecodeError);
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 7 * stream.len(), "{refused} of {} bits", 8 * stream.len());
    }
}

#[test]
fn a_stream_far_longer_than_its_tile_is_not_read_to_its_end() {
    let mut stream = deflated(&[7; 1 << 20]);
    let last = stream.len() - 1;
    stream[last] ^= 1;
    decode(&tile(16, DEFLATE, &stream)).expect("its first 256 bytes");
}

/// A file of 4×4 one-byte pixels whose last field is `tag` with the values `tail`.
fn four_rows(compression: u32, photometric: u32, data: &[u8], (tag, tail): (u16, &[u32])) -> Vec<u8> {
    let (offsets, counts) = ([8, 12, 16, 20], [4; 4]);
    let one_strip = [data.len() as u32];
    let (rows, offsets, counts): (u32, &[u32], &[u32]) = match compression {
        1 => (1, &offsets, &counts),
        _ => (4, &offsets[..1], &one_strip),
    };
    let mut fields: Vec<(u16, u16, &[u32])> = vec![
        (256, LONG, &[4]),
        (257, LONG, &[4]),
        (258, SHORT, &[8]),
        (259, SHORT, std::slice::from_ref(&compression)),
        (262, SHORT, std::slice::from_ref(&photometric)),
        (273, LONG, offsets),
        (278, LONG, std::slice::from_ref(&rows)),
        (279, LONG, counts),
    ];
    fields.retain(|field| field.0 != tag);
    fields.push((tag, LONG, tail));
    tiff(data, &fields)
}

/// Check that `whole` decodes, and that it is refused with 1 to `bytes` bytes cut off its end.
fn refused_when_cut(whole: &[u8], tag: u16, bytes: usize) {
    decode(whole).expect("a sound file");
    for cut in 1..=bytes {
        let (status, error) = refusal(&whole[..whole.len() - cut]);
        assert_eq!(status, Status::DecodeError);
        let expected = format!("tiff: tag {tag} states ");
        assert!(error.starts_with(&expected) && error.ends_with("behind the end of the file"), "{error}");
    }
}

#[test]
fn a_truncated_tag_that_the_pixels_need_is_refused() {
    let pixels = samples(16);
    let colors: Vec<u32> = (0..768).map(|value| value * 85).collect();
    refused_when_cut(&four_rows(1, 3, &pixels, (320, &colors)), 320, 3 * 256 * 4);
    refused_when_cut(&four_rows(DEFLATE, 3, &deflated(&pixels), (320, &colors)), 320, 3 * 256 * 4);
    refused_when_cut(&four_rows(1, 1, &pixels, (273, &[8, 12, 16, 20])), 273, 16);
    refused_when_cut(&four_rows(1, 1, &pixels, (258, &[8, 8])), 258, 8);
    refused_when_cut(&four_rows(DEFLATE, 1, &deflated(&pixels), (279, &[100, 100])), 279, 8);
    refused_when_cut(&four_rows(1, 1, &pixels, (339, &[1, 1])), 339, 8);
}

#[test]
fn a_truncated_tag_that_the_pixels_do_not_need_is_tolerated() {
    let pixels = samples(16);
    let colors: Vec<u32> = (0..768).collect();
    for whole in [
        four_rows(1, 1, &pixels, (320, &colors)),
        four_rows(1, 1, &pixels, (279, &[4, 4, 4, 4])),
        four_rows(DEFLATE, 1, &deflated(&pixels), (700, &[0, 0, 0])),
    ] {
        decode(&whole).expect("a sound file");
        decode(&whole[..whole.len() - 5]).expect("complete pixels");
    }
}

#[test]
fn compressed_pixels_with_a_truncated_directory_are_refused() {
    // the predictor is the last entry: 12 bytes, followed by the 4-byte offset of the next IFD
    let whole = four_rows(DEFLATE, 1, &deflated(&samples(16)), (317, &[2]));
    decode(&whole).expect("a sound file");
    decode(&whole[..whole.len() - 4]).expect("no entry is missing");
    let (status, error) = refusal(&whole[..whole.len() - 5]);
    assert_eq!((status, error.as_str()), (Status::DecodeError, "tiff: the directory is cut short"));
}

#[test]
fn compressed_pixels_that_are_neither_chunky_nor_planar_are_refused() {
    let pixels = samples(16);
    decode(&four_rows(1, 1, &pixels, (284, &[513]))).expect("accepted, as by Pillow");
    let (status, error) = refusal(&four_rows(DEFLATE, 1, &deflated(&pixels), (284, &[513])));
    assert_eq!(status, Status::DecodeError);
    assert_eq!(error, "tiff: planar configuration 513 is not supported");
}
