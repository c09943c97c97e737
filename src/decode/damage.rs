//! Tests of [`Decoder::decode`] with images that are damaged, hostile or too large.

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/codecs");
    std::fs::read(folder.join(name)).expect("fixture")
}

fn section(text: &str) -> PreprocessSection {
    toml::from_str(text).expect("valid section")
}

fn decoder(text: &str) -> Decoder {
    Decoder::new(&section(text), 1 << 20, PixelElement::U8)
}

const SMALL: &str = "resize = { width = 8, height = 8 }";

fn refused(decoder: &Decoder, bytes: &[u8]) -> Rejected {
    decoder.decode(bytes, &mut Scratch::default()).expect_err("must be refused")
}

/// A PNG of the stated size whose pixels are missing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut png = fixture("rgb.png");
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    png
}

#[test]
fn an_empty_image_and_text_have_different_reasons() {
    let empty = refused(&decoder(SMALL), b"");
    assert_eq!((empty.status, empty.error.as_str()), (Status::Empty, "image is zero bytes long"));
    let text = refused(&decoder(SMALL), b"hello, world");
    assert_eq!(text.status, Status::DecodeError);
    assert_eq!(text.error, "not an image: it is text");
}

#[test]
fn a_huge_image_is_refused_by_the_size_in_its_header() {
    let rejected = refused(&decoder(SMALL), &png_header(60_000, 60_000));
    assert_eq!(rejected.status, Status::TooLarge);
    assert_eq!(rejected.error, "image is 60000×60000 pixels, limit is 100 megapixels");
    let header = ImageHeader { format: ImageFormat::Png, width: 60_000, height: 60_000 };
    assert_eq!(rejected.header, Some(header));
}

#[test]
fn the_pixel_limit_applies_to_every_format() {
    let decoder = decoder(&format!("{SMALL}\nmax_pixels = 500"));
    for name in
        ["baseline.jpg", "rgb.png", "lossy.webp", "animated.webp", "palette.gif", "rgb.bmp", "raw.tif"]
    {
        let rejected = refused(&decoder, &fixture(name));
        assert_eq!(rejected.status, Status::TooLarge, "{name}");
        assert_eq!(rejected.error, "image is 27×19 pixels, limit is 500 pixels", "{name}");
        assert!(rejected.header.is_some(), "{name}");
    }
}

#[test]
fn a_file_above_the_byte_limit_is_refused_without_reading_it() {
    let decoder = Decoder::new(&section(SMALL), 100, PixelElement::U8);
    let rejected = refused(&decoder, &fixture("baseline.jpg"));
    assert_eq!((rejected.status, rejected.header), (Status::TooLarge, None));
    assert_eq!(rejected.error, "image is 1054 bytes long, limit is 100");
}

#[test]
fn a_side_of_zero_is_an_error_and_the_header_is_reported() {
    let rejected = refused(&decoder(SMALL), &png_header(0, 5));
    assert_eq!(rejected.error, "image is 0×5 pixels, a side is zero");
    assert_eq!(rejected.header.map(|header| header.height), Some(5));
}

/// A gray JPEG of 10,000×10,000 pixels with arithmetic coding: a frame header, and scans of all
/// coefficients with one byte of data each.
fn many_scans(scans: usize) -> Vec<u8> {
    let frame = [0xff, 0xca, 0, 11, 8, 0x27, 0x10, 0x27, 0x10, 1, 1, 0x11, 0];
    let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 1, 63, 0, 0x55];
    [&[0xff, 0xd8][..], &frame, &scan.repeat(scans), &[0xff, 0xd9]].concat()
}

#[test]
fn a_jpeg_with_too_many_scans_is_refused_by_its_estimated_work() {
    let rejected = refused(&decoder(SMALL), &many_scans(29));
    assert_eq!(rejected.status, Status::TooLarge);
    assert_eq!(rejected.error, "image may take 347 s of a core to decode, limit is 20");
    let header = ImageHeader { format: ImageFormat::Jpeg, width: 10_000, height: 10_000 };
    assert_eq!(rejected.header, Some(header));
    // ten times the pixel limit allows ten times the work
    let rejected = refused(&decoder(&format!("{SMALL}\nmax_pixels = 1000000000")), &many_scans(29));
    assert_eq!(rejected.error, "image may take 347 s of a core to decode, limit is 200");
}

/// A JPEG without tables must not be decoded with the tables of an earlier image.
#[test]
fn earlier_images_do_not_affect_the_result() {
    let mut without_tables = fixture("baseline.jpg");
    for at in 0..without_tables.len() - 1 {
        if without_tables[at] == 0xff && matches!(without_tables[at + 1], 0xdb | 0xc4) {
            // turn the table segments into comments
            without_tables[at + 1] = 0xfe;
        }
    }
    let decoder = decoder(SMALL);
    let mut scratch = Scratch::default();
    let alone = decoder.decode(&without_tables, &mut scratch);
    assert!(alone.is_err(), "an image without tables cannot be decoded");
    for name in ["444.jpg", "gray.jpg", "cmyk_adobe.jpg", "rgba_16.png"] {
        decoder.decode(&fixture(name), &mut scratch).expect("undamaged");
        assert_eq!(decoder.decode(&without_tables, &mut scratch), alone, "after {name}");
    }
    let whole = fixture("progressive.jpg");
    let expected = decoder.decode(&whole, &mut Scratch::default()).expect("undamaged");
    for end in (2..whole.len() - 2).step_by(7) {
        assert!(decoder.decode(&whole[..end], &mut scratch).is_err(), "cut at {end}");
        assert_eq!(decoder.decode(&whole, &mut scratch).as_ref(), Ok(&expected), "after a cut at {end}");
    }
}

#[test]
fn a_jpeg_decodes_although_a_metadata_segment_has_an_invalid_length() {
    let decoder = decoder(SMALL);
    let whole = fixture("baseline.jpg");
    assert_eq!(whole[2..6], [0xff, 0xe0, 0, 16], "JFIF comes first");
    let expected = decoder.decode(&whole, &mut Scratch::default()).expect("undamaged");
    for length in [0, 1] {
        let mut jpeg = whole.clone();
        jpeg[5] = length;
        assert_eq!(decoder.decode(&jpeg, &mut Scratch::default()).as_ref(), Ok(&expected), "JFIF, {length}");
        let mut jpeg = whole.clone();
        jpeg.splice(20..20, [&[0xff, 0xfe, 0, length], &b"a comment"[..]].concat());
        assert_eq!(decoder.decode(&jpeg, &mut Scratch::default()).as_ref(), Ok(&expected), "COM, {length}");
    }
}

#[test]
fn a_scaled_decode_is_close_to_the_full_one_and_never_enlarges() {
    let mut scratch = Scratch::default();
    let image = fixture("orientation_6.jpg");
    for (size, tolerance) in [("width = 5, height = 8", 12), ("width = 20, height = 30", 0)] {
        let resize = format!("resize = {{ {size} }}\nlayout = 'nhwc'");
        let mut rows = ["false", "true"].map(|scaled| {
            let decoder = decoder(&format!("{resize}\nscaled_decode = {scaled}"));
            match decoder.decode(&image, &mut scratch) {
                Ok((_, Pixels::U8(row))) => row,
                other => panic!("{other:?}"),
            }
        });
        let [full, scaled] = &mut rows;
        let sum: u32 = full.iter().zip(scaled.iter()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let mean = sum / full.len() as u32;
        assert!(mean <= tolerance, "{size}: off by {mean} on average");
        assert_eq!(tolerance == 0, full == scaled, "{size}: only a reduction to half or less is scaled");
    }
}

#[test]
fn the_message_of_a_caught_panic_is_reported() {
    let cases: [(Box<dyn std::any::Any + Send>, &str); 3] = [
        (Box::new("a &str"), "a &str"),
        (Box::new(String::from("a String")), "a String"),
        (Box::new(5_i32), "no message"),
    ];
    for (panic, message) in cases {
        assert_eq!(crate::error::panic_message(&*panic), message);
    }
}

const FIXTURES: [&str; 47] = [
    "baseline.jpg",
    "progressive.jpg",
    "restarts.jpg",
    "cmyk_adobe.jpg",
    "orientation_6.jpg",
    "rgba.png",
    "palette_alpha.png",
    "interlaced_2.png",
    "rgb_16.png",
    "raw_packed_before.png",
    "xmp_packed_behind.png",
    "indexed_4.png",
    "animated.png",
    "frame_lossy.webp",
    "alpha_quality_0.webp",
    "few_colors.webp",
    "exif_announced.webp",
    "exif_rational.jpg",
    "icc_counts.jpg",
    "arithmetic_progressive.jpg",
    "lossy_alpha.webp",
    "lossless.webp",
    "animated.webp",
    "canvas_larger_transparent.gif",
    "interlaced.gif",
    "palette.bmp",
    "lzw.tif",
    "planar.tif",
    "fax.tif",
    "runs_8_skips.bmp",
    "runs_4.bmp",
    "masks_bgra.bmp",
    "os2_4.bmp",
    "interlaced_corner.gif",
    "palette_local.gif",
    "tiles_lzw_predictor.tif",
    "strips_planar_deflate_predictor.tif",
    "tiles_packbits.tif",
    "zstd.tif",
    "old_lzw.tif",
    "group_3_2d.tif",
    "runs.tif",
    "jpeg_ycbcr.tif",
    "jpeg_tiles.tif",
    "palette_4.tif",
    "premultiplied_and_extra.tif",
    "big.tif",
];

/// Options that exercise the most code.
const THOROUGH: &str = "resize = { width = 9, height = 7, fit = 'cover', filter = 'lanczos3' }
    background = [1, 2, 3]
    scaled_decode = true
    max_pixels = 100000";

/// Decode, and check the result in general: a row of the right length, or a rejection that is not
/// due to a panic.
fn try_decode(bytes: &[u8]) -> Result<(), TestCaseError> {
    match decoder(THOROUGH).decode(bytes, &mut Scratch::default()) {
        Ok((_, Pixels::U8(row))) => prop_assert_eq!(row.len(), 9 * 7 * 3),
        Ok(_) => prop_assert!(false, "u8 was requested"),
        Err(rejected) => {
            prop_assert!(rejected.status != Status::Ok);
            prop_assert!(!rejected.error.is_empty());
            prop_assert!(!rejected.error.contains("panicked"), "{}", rejected.error);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_bytes_after_any_magic_number_never_panic(
        magic in prop::sample::select(FIXTURES.to_vec()),
        kept in 2..40_usize,
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = fixture(magic);
        bytes.truncate(kept);
        bytes.extend(rest);
        try_decode(&bytes)?;
    }

    #[test]
    fn altered_and_truncated_images_never_panic(
        name in prop::sample::select(FIXTURES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = fixture(name);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(end.index(bytes.len()));
        }
        try_decode(&bytes)?;
    }
}
