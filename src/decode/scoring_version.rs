//! A test that fails if pixels or statuses change without a new [`SCORING_VERSION`]: it compares the tensor
//! rows of a few images with the digests in `fixtures/scoring.json`.
//!
//! - The images, one for each decoder and two that are rejected, are decoded with two `[preprocess]` sections. Pixels
//!   come from integer arithmetic, and normalised values are rounded step by step, so every CPU gives the same bits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::*;
use crate::plan::{SCORING_VERSION, hex};

/// If this variable is set, the test writes the digests instead of comparing them.
const WRITE: &str = "SLUICE_WRITE_SCORING_DIGESTS";

/// Files of `fixtures/codecs`.
const IMAGES: [&str; 13] = [
    "rgb.jpg",
    "progressive.jpg",
    "cmyk_adobe.jpg",
    "lossless.jpg",
    "rgba.png",
    "gray_16.png",
    "lossy_alpha.webp",
    "lossless.webp",
    "palette.gif",
    "rgb.bmp",
    "lzw.tif",
    "cut.bmp",
    "data_cut.webp",
];

const SECTIONS: [(&str, &str); 2] = [
    ("defaults", "resize = { width = 13, height = 11 }"),
    (
        "all keys",
        "resize = { width = 17, height = 15, fit = 'contain', filter = 'lanczos3' }
        crop = { width = 12, height = 14 }
        color = 'bgr'
        scale = 0.017
        mean = [1.5, 2.5, 3.5]
        std = [0.3, 0.7, 1.1]
        layout = 'nhwc'
        background = [9, 8, 7]
        jpeg_round_trip = 75",
    ),
];

#[derive(Serialize, Deserialize)]
struct Recorded {
    scoring_version: u32,
    /// For each image and section, the SHA-256 of its tensor row, or its status if it is rejected.
    digests: BTreeMap<String, String>,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scoring.json")
}

fn digests() -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for (section, text) in SECTIONS {
        let decoder = Decoder::new(&toml::from_str(text).expect(section), 1 << 20, PixelElement::F32);
        for name in IMAGES {
            let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/codecs").join(name);
            let image = std::fs::read(image).expect(name);
            let digest = match decoder.decode(&image, &mut Scratch::default()) {
                Ok((_, Pixels::F32(row))) => {
                    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
                    hex(&Sha256::digest(bytes))
                }
                Ok(_) => unreachable!("f32 was requested"),
                Err(rejected) => rejected.status.as_str().to_owned(),
            };
            digests.insert(format!("{name}, {section}"), digest);
        }
    }
    digests
}

#[test]
fn pixels_and_statuses_change_only_with_the_scoring_version() {
    let found = digests();
    let recorded: Option<Recorded> = std::fs::read(fixture())
        .ok()
        .map(|recorded| serde_json::from_slice(&recorded).expect("fixtures/scoring.json"));
    let changes = |recorded: &Recorded| {
        let differs = |(name, digest): (&String, &String)| {
            recorded.digests.get(name).is_some_and(|recorded| recorded != digest).then(|| name.clone())
        };
        found.iter().filter_map(differs).collect::<Vec<_>>()
    };
    let changed = recorded.as_ref().map(changes).unwrap_or_default();
    let version = recorded.as_ref().map(|recorded| recorded.scoring_version);
    assert!(
        changed.is_empty() || version != Some(SCORING_VERSION),
        "the pixels or statuses of these images differ from scoring version {SCORING_VERSION}: {changed:?}; if \
         that is intended, raise SCORING_VERSION in src/plan.rs, then run {WRITE}=1 cargo test --lib scoring_version"
    );
    if std::env::var_os(WRITE).is_some() {
        let recorded = Recorded { scoring_version: SCORING_VERSION, digests: found };
        let text = serde_json::to_string_pretty(&recorded).expect("strings always serialise to JSON") + "\n";
        return std::fs::write(fixture(), text).expect("fixtures/scoring.json");
    }
    let is_current = recorded
        .is_some_and(|recorded| recorded.scoring_version == SCORING_VERSION && recorded.digests == found);
    assert!(
        is_current,
        "fixtures/scoring.json is for another scoring version or other images: run {WRITE}=1 cargo test --lib \
         scoring_version"
    );
}
