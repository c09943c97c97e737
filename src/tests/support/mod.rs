//! Shared by the black-box tests: generated inputs, the binary, and readers of its output.
#![allow(dead_code, reason = "each test binary uses a part of this module")]

pub mod peak;
pub mod threads;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_cast::display::array_value_to_string;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rustix::process::{Pid, Signal, kill_process};

pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A small image whose pixels depend on `seed` alone.
pub fn png(seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(16, 12, |x, y| {
        image::Rgb([(seed * 37 + x * 11) as u8, (seed * 91 + y * 17) as u8, (x * y + seed) as u8])
    });
    let mut png = Vec::new();
    image.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).expect("a PNG in memory");
    png
}

/// `count` images with the ids `img-00000` and so on, from number `first`.
pub fn images(first: u32, count: u32) -> Vec<(String, Vec<u8>)> {
    (first..first + count).map(|seed| (format!("img-{seed:05}"), png(seed))).collect()
}

/// Write a tar of `members`, each named `stem.png`.
pub fn write_tar(path: &Path, members: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(File::create(path).expect("tar file"));
    for (stem, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{stem}.png"), bytes.as_slice()).expect("tar member");
    }
    tar.finish().expect("tar end");
}

/// Write a TFRecord file of `tf.Example` messages with `image/encoded` and `image/id`.
pub fn write_tfrecord(path: &Path, records: &[(String, Vec<u8>)]) {
    let mut file = File::create(path).expect("TFRecord file");
    for (id, bytes) in records {
        let features = [feature("image/encoded", bytes), feature("image/id", id.as_bytes())].concat();
        let example = field(1, &features);
        let length = (example.len() as u64).to_le_bytes();
        for block in [&length[..], &example[..]] {
            file.write_all(block).expect("block");
            file.write_all(&masked_crc(block).to_le_bytes()).expect("checksum");
        }
    }
}

/// Offsets of the records of a TFRecord file. Each record has a length of 8 bytes and two checksums of 4 bytes.
pub fn tfrecord_starts(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).expect("TFRecord file");
    let (mut starts, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes.get(at..at + 8) {
        starts.push(at as u64);
        at += 16 + u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    }
    starts
}

/// Change bytes of a file, as bit rot does: its size and time stay the same.
pub fn corrupt(path: &Path, at: u64, bytes: &[u8]) {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).expect("a file");
    let file = File::options().write(true).open(path).expect("a file");
    file.write_all_at(bytes, at).expect("written");
    file.set_modified(modified).expect("a time");
}

/// TFRecord's checksum: CRC-32C, rotated right by 15 bits, plus a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A length-delimited protobuf field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(bytes);
    field
}

/// A map entry of `tf.Features`: a name and a list of one byte string.
fn feature(name: &str, bytes: &[u8]) -> Vec<u8> {
    let value = field(1, &field(1, bytes));
    field(1, &[field(1, name.as_bytes()), field(2, &value)].concat())
}

/// A folder for one test, with a pipeline file for the tiny model.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().expect("temp folder") };
        fs::create_dir(bench.path("in")).expect("input folder");
        fs::write(bench.path("pipeline.toml"), tiny_pipeline()).expect("pipeline file");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sluice COMMAND pipeline.toml --input in --output OUT ARGS…`, not yet started.
    pub fn command(&self, command: &str, out: &str, args: &[&str]) -> Command {
        let mut sluice = sluice();
        sluice.current_dir(self.folder.path()).args([command, "pipeline.toml", "--output", out]);
        if !args.contains(&"--input") {
            sluice.args(["--input", "in"]);
        }
        sluice.args(args);
        sluice
    }

    pub fn run(&self, out: &str, args: &[&str]) -> Output {
        self.command("run", out, args).output().expect("the binary starts")
    }

    /// Rows of an output without the batch ids, which differ between runs.
    pub fn comparable_rows(&self, out: &str) -> Vec<Row> {
        self.rows(out).into_iter().map(|row| Row { batch_id: None, ..row }).collect()
    }

    /// Rows of an output, in the order of its parts.
    pub fn rows(&self, out: &str) -> Vec<Row> {
        parts(&self.path(out).join("predictions")).iter().flat_map(|part| read_rows(part)).collect()
    }

    /// The note of an attempt.
    pub fn note(&self, out: &str, attempt: u32) -> serde_json::Value {
        let notes = parts(&self.path(out).join("_attempts"));
        let prefix = format!("{attempt:06}-");
        let is_wanted = |note: &&PathBuf| {
            note.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
        };
        let text = fs::read(notes.iter().find(is_wanted).expect("a note")).expect("a file");
        serde_json::from_slice(&text).expect("the note is JSON")
    }

    pub fn manifest(&self, out: &str) -> serde_json::Value {
        let text = fs::read(self.path(out).join("_manifest.json")).expect("a manifest");
        serde_json::from_slice(&text).expect("the manifest is JSON")
    }
}

/// The binary under test, with the ONNX Runtime that `scripts/setup.sh` installs. If the library is missing, a failing
/// test shows what to install. Tests that score are ignored by default.
pub fn sluice() -> Command {
    let mut sluice = Command::new(env!("CARGO_BIN_EXE_sluice"));
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        let library = Path::new(REPOSITORY).join(".deps/onnxruntime/libonnxruntime.so.1.31.1");
        if !library.is_file() {
            eprintln!("{} is missing: run scripts/setup.sh --with onnxruntime", library.display());
        }
        sluice.env("ORT_DYLIB_PATH", library);
    }
    sluice
}

/// The path of a file in `.deps` that the command `setup` installs.
///
/// # Panics
/// If it is missing.
pub fn installed(name: &str, setup: &str) -> PathBuf {
    let path = Path::new(REPOSITORY).join(".deps").join(name);
    assert!(path.is_file(), "{} is missing: run {setup}", path.display());
    path
}

fn tiny_pipeline() -> String {
    format!(
        r#"
        name = "tiny"
        [input]
        uri = "in"
        [preprocess]
        resize = {{ width = 8, height = 8 }}
        scale = 0.00392156862745098
        layout = "nhwc"
        [model]
        path = "{REPOSITORY}/fixtures/tiny.onnx"
        labels = ["north", "east", "south", "west"]
        [engine]
        batch_size = 4
        threads = 1
        [output]
        uri = "unused"
        "#
    )
}

/// The files of a folder, sorted by name; none if it does not exist.
pub fn parts(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut parts: Vec<_> = entries.map(|entry| entry.expect("folder entry").path()).collect();
    parts.sort();
    parts
}

/// One prediction, with its scores as bits, so that equal rows are bit-identical.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub key: String,
    pub record_index: i64,
    pub image_id: String,
    pub status: String,
    pub error: Option<String>,
    pub top1: Option<(i32, String)>,
    pub score_bits: Option<Vec<u32>>,
    pub size: Option<(i32, i32)>,
    pub batch_id: Option<i64>,
    /// All other columns except `run_id`, as text.
    pub rest: String,
}

/// Columns that a [`Row`] has a field for, or that differ between runs.
const SEPARATE_COLUMNS: [&str; 12] = [
    "key",
    "record_index",
    "image_id",
    "status",
    "error",
    "top1_index",
    "top1_label",
    "scores",
    "width",
    "height",
    "batch_id",
    "run_id",
];

pub fn read_rows(part: &Path) -> Vec<Row> {
    let file = File::open(part).expect("part");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("reader");
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.expect("rows");
        let text = |column: &str, row: usize| {
            let column = batch[column].as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let int = |column: &str, row: usize| {
            let column = batch[column].as_primitive::<Int32Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        let columns: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let rest = |row: usize| {
            let others = columns.iter().filter(|name| !SEPARATE_COLUMNS.contains(&name.as_str()));
            let values = others.map(|name| {
                let value = array_value_to_string(&batch[name.as_str()], row).expect("a value");
                format!("{name}={value}")
            });
            values.collect::<Vec<_>>().join(" ")
        };
        let scores = batch["scores"].as_list::<i32>();
        let batch_id = batch["batch_id"].as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            rows.push(Row {
                key: text("key", row).expect("key"),
                record_index: batch["record_index"].as_primitive::<Int64Type>().value(row),
                image_id: text("image_id", row).expect("image_id"),
                status: text("status", row).expect("status"),
                error: text("error", row),
                top1: int("top1_index", row).zip(text("top1_label", row)),
                score_bits: scores.is_valid(row).then(|| {
                    scores
                        .value(row)
                        .as_primitive::<Float32Type>()
                        .values()
                        .iter()
                        .map(|s| s.to_bits())
                        .collect()
                }),
                size: int("width", row).zip(int("height", row)),
                batch_id: batch_id.is_valid(row).then(|| batch_id.value(row)),
                rest: rest(row),
            });
        }
    }
    rows
}

/// Score bits by image id.
///
/// # Panics
/// If an id occurs twice.
pub fn scores_by_id(rows: &[Row]) -> BTreeMap<String, Vec<u32>> {
    let scores: BTreeMap<_, _> =
        rows.iter().filter_map(|row| Some((row.image_id.clone(), row.score_bits.clone()?))).collect();
    assert_eq!(
        scores.len(),
        rows.iter().filter(|row| row.status == "ok").count(),
        "an image id occurs twice"
    );
    scores
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Write a Parquet file with Hugging Face's image struct and an id column.
pub fn write_parquet(path: &Path, records: &[(String, Vec<u8>)]) {
    use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
    use arrow_schema::{DataType, Field};
    use std::sync::Arc;

    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(records.iter().map(|record| &record.1)));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(records.iter().map(|record| &record.0)));
    let image = StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, false)), bytes),
        (Arc::new(Field::new("path", DataType::Utf8, false)), names),
    ]);
    let batch = RecordBatch::try_from_iter([("image", Arc::new(image) as ArrayRef)]).expect("columns");
    let file = File::create(path).expect("Parquet file");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).expect("writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("footer");
}

/// A PNG that declares a size but has no pixels.
pub fn huge_png(width: u32, height: u32) -> Vec<u8> {
    png_around(width, height, b"")
}

/// A small file with a large black PNG, which takes long to decode.
pub fn slow_png() -> Vec<u8> {
    let (width, height) = (9_000, 10_000);
    let mut pixels = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = (3 * u64::from(width) + 1) * u64::from(height);
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut pixels).expect("to memory");
    png_around(width, height, &pixels.finish().expect("to memory"))
}

/// A PNG file with these compressed RGB pixels.
fn png_around(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [header, [b"IDAT", pixels].concat(), b"IEND".to_vec()] {
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(&chunk);
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}

pub fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "stdout:\n{}\nstderr:\n{}", stdout(output), stderr(output));
}

/// Start a run over 400 shards of 50 images, and wait until `ready` of its parts are published.
pub fn started(bench: &Bench, ready: usize) -> Child {
    for shard in 0..400 {
        write_tar(&bench.path(&format!("in/{shard:03}.tar")), &images(shard * 50, 50));
    }
    let mut running = bench
        .command("run", "out", &[])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    while whole_parts(bench).len() < ready {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it was interrupted");
        std::thread::yield_now();
    }
    running
}

/// The parts that `predictions/*.parquet` matches.
pub fn whole_parts(bench: &Bench) -> Vec<PathBuf> {
    let mut parts = parts(&bench.path("out/predictions"));
    parts.retain(|part| part.extension().is_some_and(|extension| extension == "parquet"));
    parts
}

pub fn send(signal: Signal, to: &Child) {
    kill_process(Pid::from_child(to), signal).expect("the child is there");
}

/// A thousand pseudo-random letters and digits, which compress badly (Marsaglia's 64-bit xorshift).
pub fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        letters[(state >> 58) as usize] as char
    };
    (0..1000).map(|_| letter()).collect()
}
