//! `sluice bench --decode`: how fast this host decodes the images of a folder.
//!
//! Input: a folder of images, and how to preprocess them. Output: a row for each way to decode, with the cores that it
//! uses, and how far its pixels are from those of full decoding.
//!
//! - The images are read first, so reading is not measured.
//! - The ways take turns, so that all of them see the same changes of the host's speed. A row has the median.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::config::PreprocessSection;
use crate::decode::{Decoder, Scratch, thread_pool};
use crate::error::{ConfigError, Error};
use crate::items::{PixelElement, Pixels, Rejected};
use crate::sniff;

/// Bytes of images that are read at most: enough for thousands of photos, and every host has them.
const MAX_BYTES: u64 = 1 << 30;

/// How often each way has its turn.
const ROUNDS: usize = 3;

/// What to decode, and how.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// A folder of images. Folders in it are not read.
    pub folder: PathBuf,
    /// How to preprocess them, but for `scaled_decode`.
    pub preprocess: PreprocessSection,
    /// Threads that decode.
    pub threads: usize,
    /// How long a turn takes, at least.
    pub turn: Duration,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeReport {
    /// Images that were decoded.
    pub images: usize,
    /// Their encoded size.
    pub bytes: u64,
    /// Files that are no images, that are damaged, or that lie beyond the first GiB; folders count, too.
    pub left_out: usize,
    /// Threads that decoded.
    pub threads: usize,
    /// Width and height of the tensor.
    pub size: (u32, u32),
    /// The ways to decode.
    pub rows: Vec<DecodeRow>,
}

/// A way to decode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeRow {
    /// The way.
    pub way: Way,
    /// Images/s, preprocessing included.
    pub images_per_second: f64,
    /// Cores that were busy.
    pub cores: f64,
    /// Largest difference of a colour value, of 0 to 255, from the pixels of full decoding.
    pub largest_difference: u8,
}

/// How images are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Every pixel, as Pillow does.
    Full,
    /// JPEGs at a fraction of their size, as with `scaled_decode`.
    Scaled,
}

impl Way {
    const ALL: [Self; 2] = [Self::Full, Self::Scaled];

    /// Its name in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Scaled => "scaled_decode",
        }
    }

    fn decoder(self, preprocess: &PreprocessSection) -> Decoder {
        let preprocess = PreprocessSection { scaled_decode: self == Self::Scaled, ..preprocess.clone() };
        Decoder::new(&preprocess, MAX_BYTES, PixelElement::Rgb8)
    }
}

/// Measure all ways to decode.
///
/// # Errors
/// If the folder cannot be read or has no image, or threads cannot be started.
pub fn measure_decoding(options: &DecodeOptions) -> Result<DecodeReport, Error> {
    let DecodeOptions { folder, preprocess, threads, turn } = options;
    let failed = |message: String| Error::from(ConfigError::Argument { argument: "--decode", message });
    let (images, mut left_out) =
        read(folder).map_err(|error| failed(format!("cannot read {}: {error}", folder.display())))?;
    let pool =
        thread_pool(*threads, false).map_err(|error| failed(format!("cannot start threads: {error}")))?;
    let decoders = Way::ALL.map(|way| way.decoder(preprocess));

    // decodes everything once, so that no turn pays for fresh memory
    let compared: Vec<_> = pool.install(|| {
        let compare = |scratch: &mut Scratch, image: &Vec<u8>| {
            let [full, scaled] = decoders.each_ref().map(|decoder| pixels(decoder, image, scratch).ok());
            full.zip(scaled).map(|(full, scaled)| largest_difference(&full, &scaled))
        };
        images.par_iter().map_init(Scratch::default, compare).collect()
    });
    let images: Vec<_> =
        images.into_iter().zip(&compared).filter(|(_, compared)| compared.is_some()).collect();
    let images: Vec<_> = images.into_iter().map(|(image, _)| image).collect();
    left_out += compared.len() - images.len();
    if images.is_empty() {
        return Err(failed(format!("{} has no image that can be decoded", folder.display())));
    }

    let mut turns = decoders.each_ref().map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (decoder, turns) in decoders.iter().zip(&mut turns) {
            turns.push(pool.install(|| take_turn(decoder, &images, *turn)));
        }
    }
    let differences = [0, compared.into_iter().flatten().max().unwrap_or(0)];
    let rows =
        Way::ALL.into_iter().zip(turns).zip(differences).map(|((way, mut turns), largest_difference)| {
            turns.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (images_per_second, cores) = turns[ROUNDS / 2];
            DecodeRow { way, images_per_second, cores, largest_difference }
        });
    Ok(DecodeReport {
        images: images.len(),
        bytes: images.iter().map(|image| image.len() as u64).sum(),
        left_out,
        threads: *threads,
        size: decoders[0].tensor_size(),
        rows: rows.collect(),
    })
}

/// The images of a folder in the order of their names, and the number of other entries.
fn read(folder: &Path) -> std::io::Result<(Vec<Vec<u8>>, usize)> {
    let mut paths =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let (mut images, mut left_out, mut bytes) = (Vec::new(), 0, 0);
    for path in paths {
        let length =
            fs::metadata(&path).ok().filter(fs::Metadata::is_file).map_or(u64::MAX, |file| file.len());
        if length > MAX_BYTES - bytes {
            left_out += 1;
            continue;
        }
        let image = fs::read(&path)?;
        if sniff::image_format(&image).is_some() {
            bytes += length;
            images.push(image);
        } else {
            left_out += 1;
        }
    }
    Ok((images, left_out))
}

fn pixels(decoder: &Decoder, image: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>, Rejected> {
    match decoder.decode(image, scratch)? {
        (_, Pixels::U8(rgb)) => Ok(rgb),
        (_, Pixels::F32(_)) => unreachable!("the decoder was made for bytes"),
    }
}

fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// Decode the images again and again, for a while. Returns images/s and the cores that were busy.
fn take_turn(decoder: &Decoder, images: &[Vec<u8>], turn: Duration) -> (f64, f64) {
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let mut decoded = 0;
    while decoded == 0 || begun.elapsed() < turn {
        images.par_iter().for_each_init(Scratch::default, |scratch, image| {
            // every image was decoded before
            let _ = std::hint::black_box(decoder.decode(image, scratch));
        });
        decoded += images.len();
    }
    let seconds = begun.elapsed().as_secs_f64();
    (decoded as f64 / seconds, (cpu_seconds() - cpu) / seconds)
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The report as a sentence and a Markdown table.
pub fn decode_markdown(report: &DecodeReport, folder: &Path) -> String {
    let DecodeReport { images, bytes, left_out, threads, size: (width, height), rows } = report;
    let megabytes = *bytes as f64 / 1e6;
    let mut lines = vec![
        format!(
            "{images} images of {}, {megabytes:.1} MB, decoded to {width}×{height}; threads: {threads}",
            folder.display()
        ),
        String::new(),
        "| decoding | images/s | cores | largest difference |".to_owned(),
        format!("|{}", " --- |".repeat(4)),
    ];
    lines.extend(rows.iter().map(|row| {
        let DecodeRow { way, images_per_second, cores, largest_difference } = row;
        format!("| {} | {images_per_second:.0} | {cores:.2} | {largest_difference} |", way.as_str())
    }));
    if *left_out > 0 {
        lines.push(String::new());
        lines
            .push(format!("left out: {left_out} files or folders that are no images, are damaged, or lie beyond the first GiB"));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_are_decoded_in_both_ways_and_other_files_are_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/photos");
        for name in ["aqueduct.jpg", "bison.jpg"] {
            fs::copy(photos.join(name), folder.path().join(name)).expect("copied");
        }
        let options = DecodeOptions {
            folder: folder.path().to_owned(),
            preprocess: toml::from_str("resize = { width = 24, height = 16 }").expect("a section"),
            threads: 2,
            turn: Duration::ZERO,
        };
        let report = measure_decoding(&options).expect("two images");
        let [full, scaled] = &report.rows[..] else { panic!("{report:?}") };
        assert_eq!((report.images, report.left_out, report.size), (2, 0, (24, 16)));
        assert_eq!((full.way, full.largest_difference), (Way::Full, 0));
        assert!(
            scaled.largest_difference > 0 && scaled.images_per_second > 0.0 && full.cores > 0.0,
            "{report:?}"
        );

        fs::write(folder.path().join("a.txt"), "no image").expect("a file");
        fs::write(folder.path().join("b.png"), b"\x89PNG\r\n\x1a\n").expect("a file");
        fs::create_dir(folder.path().join("c")).expect("a folder");
        assert_eq!(measure_decoding(&options).expect("two images").left_out, 3);
        for name in ["aqueduct.jpg", "bison.jpg"] {
            fs::remove_file(folder.path().join(name)).expect("removed");
        }
        let refused = measure_decoding(&options).expect_err("no image").to_string();
        assert!(refused.contains("has no image that can be decoded"), "{refused}");
    }
}
