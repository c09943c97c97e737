//! Compares pixels with Pillow's, for every case of `fixtures/codecs/cases.json`, which
//! `scripts/codec_fixtures.py` writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Fixtures {
    cases: Vec<Case>,
    lengths_that_load: BTreeMap<String, Vec<usize>>,
    /// For each image that must be rejected, a part of the reason.
    refused: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Case {
    group: String,
    name: String,
    input: String,
    expected: String,
    preprocess: PreprocessSection,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/codecs")
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).expect("fixture")
}

fn fixtures() -> Fixtures {
    serde_json::from_slice(&bytes("cases.json")).expect("cases.json")
}

/// The largest difference of a byte, and the number of bytes that differ.
fn difference(case: &Case, scratch: &mut Scratch) -> Result<(u8, usize), String> {
    let decoder = Decoder::new(&case.preprocess, 1 << 20, PixelElement::U8);
    let (_, pixels) = decoder.decode(&bytes(&case.input), scratch).map_err(|rejected| rejected.error)?;
    let Pixels::U8(pixels) = pixels else { unreachable!("u8 was requested") };
    let expected = image::load_from_memory(&bytes(&case.expected)).expect("expected PNG").into_rgb8();
    let pairs = || pixels.iter().zip(expected.as_raw());
    assert_eq!(pixels.len(), expected.as_raw().len(), "{}", case.name);
    let largest = pairs().map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    Ok((largest, pairs().filter(|(a, b)| a != b).count()))
}

fn check(group: &str) {
    let mut scratch = Scratch::default();
    let mut failures = Vec::new();
    let cases: Vec<Case> = fixtures().cases.into_iter().filter(|case| case.group == group).collect();
    assert!(!cases.is_empty(), "no case of group {group}");
    for case in cases {
        match difference(&case, &mut scratch) {
            Ok((0, 0)) => {}
            Ok((largest, differing)) => {
                failures.push(format!("{}: {differing} bytes differ, by up to {largest}", case.name));
            }
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{group}:\n{}", failures.join("\n"));
}

#[test]
fn every_format_and_mode_decodes_to_the_same_pixels_as_pillow() {
    check("decode");
}

#[test]
fn alpha_is_composited_as_pillow_does() {
    check("background");
}

#[test]
fn every_filter_gives_the_same_pixels_as_pillow() {
    check("resize");
}

#[test]
fn every_fit_and_crop_gives_the_same_pixels_as_pillow() {
    check("fit");
}

#[test]
fn every_orientation_is_turned_upright_as_pillow_does() {
    check("orientation");
}

#[test]
fn a_truncated_jpeg_is_decoded_only_if_no_pixel_is_missing() {
    let mut scratch = Scratch::default();
    for (name, lengths) in fixtures().lengths_that_load {
        let whole = bytes(&name);
        let section = "resize = { width = 8, height = 8 }";
        let decoder = Decoder::new(&toml::from_str(section).expect("section"), 1 << 20, PixelElement::U8);
        let got: Vec<usize> =
            (1..=whole.len()).filter(|&end| decoder.decode(&whole[..end], &mut scratch).is_ok()).collect();
        assert_eq!(got, lengths, "{name}");
        let complete = decoder.decode(&whole, &mut Scratch::default());
        for end in lengths {
            assert_eq!(decoder.decode(&whole[..end], &mut scratch), complete, "{name} cut at {end}");
        }
    }
}

#[test]
fn an_unsupported_or_incomplete_image_is_refused_with_its_reason() {
    let section = "resize = { width = 8, height = 8 }";
    let decoder = Decoder::new(&toml::from_str(section).expect("section"), 1 << 20, PixelElement::U8);
    for (name, reason) in fixtures().refused {
        let rejected = decoder.decode(&bytes(&name), &mut Scratch::default()).expect_err(&name);
        assert_eq!(rejected.status, Status::DecodeError, "{name}");
        assert!(rejected.error.contains(&reason), "{name}: {}", rejected.error);
        assert!(!rejected.error.contains("panicked"), "{name}: {}", rejected.error);
    }
}
