//! Feeds untrusted bytes to sluice, with one function for each kind of input. The fuzz targets and the test that
//! replays the findings of fuzzing call these functions.
//!
//! Each function panics if a guarantee is broken, and returns the result otherwise.

use std::path::PathBuf;
use std::sync::LazyLock;

use sluice::config::{Overrides, PipelineFile, PreprocessSection};
use sluice::decode::{Decoder, Scratch};
use sluice::error::ReadError;
use sluice::items::{ObjectRef, PixelElement, Pixels, RawRecord, ShardContent, ShardFormat, ShardRef};
use sluice::plan::Plan;
use sluice::source::{ReadOptions, open_shard};
use sluice::store::Stores;

/// Limits so low that small inputs reach them.
const MAX_IMAGE_BYTES: u64 = 1 << 16;
const MAX_PAGE_BYTES: u64 = 1 << 20;
const MAX_PIXELS: u64 = 1 << 20;

/// The file that holds the bytes, in memory if possible. The tested functions read files and objects only.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from("/dev/shm");
    let folder = if folder.is_dir() { folder } else { std::env::temp_dir() };
    folder.join(format!("sluice-hostile-{}", std::process::id()))
});

fn file(bytes: &[u8]) -> &'static PathBuf {
    std::fs::write(&*FILE, bytes).expect("a file in memory");
    &FILE
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime"));

/// A record's id, and the length of its image or the reason for its rejection.
pub type Read = (String, Result<usize, String>);

/// Read a shard. Returns its records, and the error that ended it early, if any.
pub fn shard(bytes: &[u8], format: ShardFormat) -> (Vec<Read>, Option<ReadError>) {
    let uri = file(bytes).to_str().expect("UTF-8").to_owned();
    let content = ShardContent::Container(ObjectRef { uri: uri.clone(), size_bytes: None, version: None });
    let shard = ShardRef::new(0, uri, format, content);
    let options = ReadOptions {
        image_key: None,
        id_key: None,
        max_image_bytes: MAX_IMAGE_BYTES,
        max_page_bytes: MAX_PAGE_BYTES,
    };
    let mut found = Vec::new();
    let opened = match open_shard(&Stores::new(RUNTIME.handle().clone()), &shard, 0, &options) {
        Ok(opened) => opened,
        Err(error) => return (found, Some(error)),
    };
    for record in opened.records {
        match record {
            Ok(RawRecord { image_id, content, .. }) => {
                let content = content.map(|image| image.len()).map_err(|rejected| rejected.error);
                match &content {
                    Ok(length) => assert!((1..=MAX_IMAGE_BYTES).contains(&(*length as u64))),
                    Err(reason) => assert!(!reason.is_empty()),
                }
                found.push((image_id, content));
            }
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}

/// Decoders whose options together exercise every branch.
static DECODERS: LazyLock<[Decoder; 3]> = LazyLock::new(|| {
    [
        "resize = { width = 8, height = 8 }",
        "resize = { width = 9, height = 5, fit = 'cover', filter = 'lanczos3' }\n\
         crop = { width = 4, height = 4 }\nscaled_decode = true\nbackground = [1, 2, 3]\nlayout = 'nhwc'",
        "resize = { width = 24, height = 24, fit = 'contain', filter = 'nearest' }\n\
         jpeg_round_trip = 75\norientation = 'ignore'",
    ]
    .map(|text| {
        let section: PreprocessSection = toml::from_str(text).expect("a section");
        let section = PreprocessSection { max_pixels: MAX_PIXELS, ..section };
        Decoder::new(&section, 1 << 20, PixelElement::U8)
    })
});

/// A bitmap of white pixels. Bytes that leak from it into the next image change that image's row.
static WHITE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const SIDE: u32 = 64;
    const HEADER_BYTES: u32 = 54;
    let pixels = vec![0xff; (3 * SIDE * SIDE) as usize];
    let numbers = [HEADER_BYTES + pixels.len() as u32, 0, HEADER_BYTES, 40, SIDE, SIDE, 1 | 24 << 16];
    let numbers = numbers.into_iter().chain([0; 6]).flat_map(u32::to_le_bytes);
    [b"BM".to_vec(), numbers.collect(), pixels].concat()
});

/// Decode an image with each decoder. Returns the length of the tensor row, or the reason for rejection.
pub fn image(bytes: &[u8]) -> Vec<Result<usize, String>> {
    let decode = |decoder: &Decoder| {
        let first = decoder.decode(bytes, &mut Scratch::default());
        // a scratch that was used before gives the same result
        let mut used = Scratch::default();
        decoder.decode(&WHITE, &mut used).expect("an image");
        assert_eq!(first, decoder.decode(bytes, &mut used));
        match first {
            Ok((header, Pixels::U8(row))) => {
                assert!(u64::from(header.width) * u64::from(header.height) <= MAX_PIXELS);
                Ok(row.len())
            }
            Ok((_, other)) => panic!("the row does not consist of bytes: {other:?}"),
            // the decoder catches panics, and a replay must fail as fuzzing did
            Err(rejected) if rejected.error.contains("panicked") => panic!("{}", rejected.error),
            Err(rejected) => Err(rejected.error),
        }
    };
    DECODERS.iter().map(decode).collect()
}

/// Parse and check a pipeline file, without opening the model.
pub fn pipeline(bytes: &[u8]) -> Result<Plan, String> {
    let overrides = Overrides { inputs: vec!["in".into()], output: Some("out".into()), set: Vec::new() };
    let read = PipelineFile::load(file(bytes), &overrides).map_err(|error| error.to_string())?;
    Plan::check(read).map_err(|error| error.to_string())
}

/// Run the fuzz target of this name.
pub fn replay(target: &str, bytes: &[u8]) {
    match target {
        "tfrecord" => drop(shard(bytes, ShardFormat::Tfrecord)),
        "tar" => drop(shard(bytes, ShardFormat::Webdataset)),
        "parquet" => drop(shard(bytes, ShardFormat::Parquet)),
        "image" => drop(image(bytes)),
        "pipeline" => drop(pipeline(bytes)),
        other => panic!("there is no fuzz target {other}"),
    }
}
