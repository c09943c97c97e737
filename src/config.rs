//! The pipeline file as written: TOML sections, defaults and overrides.
//!
//! Input: the file's text and `--set` overrides. Output: a [`PipelineFile`], which [`crate::plan::Plan::check`]
//! turns into a plan.
//!
//! - An unknown key is an error that names the nearest known one.
//! - `model.path` and a `model.labels` file are relative to the pipeline file's folder; URIs of
//!   data, and every path given on the command line, are relative to the current folder.

mod explain;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::error::ConfigError;
use crate::regular_file::read_text;
use crate::shown::without_secrets;

/// A pipeline file, section by section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineFile {
    /// Name of the pipeline; part of `run_id`.
    pub name: String,
    /// What to score.
    #[serde(default)]
    pub input: InputSection,
    /// What is done to the pixels of an image before the model sees them.
    pub preprocess: PreprocessSection,
    /// The model, and the names of its classes.
    pub model: ModelSection,
    /// What runs the model, and how.
    #[serde(default)]
    pub engine: EngineSection,
    /// Where the predictions go.
    #[serde(default)]
    pub output: OutputSection,
    /// How object stores are reached.
    #[serde(default)]
    pub storage: StorageSection,
}

/// `[input]`: what to score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputSection {
    /// One URI or a list: object, folder (prefix) or glob.
    pub uri: OneOrMany,
    /// Format of the shards.
    pub format: InputFormat,
    /// TFRecord feature or Parquet column with the encoded image. By default `image/encoded` in TFRecord, and in
    /// Parquet `image`, else the only column of binaries or image structs. In WebDataset, the extension of the sample's
    /// image (`jpg`, `jpg;png`); by default each image is a record.
    pub image_key: Option<String>,
    /// TFRecord feature or Parquet column with the image's id.
    pub id_key: Option<String>,
    /// Loose images in one virtual shard, and so in one predictions part.
    pub files_per_shard: usize,
    /// Whether an input without records is allowed. The run then succeeds with fewer rows, or none.
    pub allow_empty: bool,
    /// Shards read ahead of the one being decoded.
    pub look_ahead: usize,
    /// Longest encoded image, bytes; a longer one becomes a `too_large` row.
    pub max_image_bytes: u64,
    /// Longest page of a Parquet shard, bytes, compressed or not: a page is held as a whole. A shard with a longer page
    /// ends early there. Writers make pages of a megabyte or of a thousand rows, whichever is more.
    pub max_page_bytes: u64,
}

impl Default for InputSection {
    fn default() -> Self {
        Self {
            uri: OneOrMany::Many(Vec::new()),
            format: InputFormat::Auto,
            image_key: None,
            id_key: None,
            files_per_shard: 1000,
            allow_empty: false,
            look_ahead: 2,
            max_image_bytes: 32 << 20,
            max_page_bytes: 512 << 20,
        }
    }
}

/// A URI or a list of URIs. Serialised without signatures and other secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single address.
    One(#[serde(serialize_with = "uri_without_secrets")] String),
    /// Several, read in this order.
    Many(#[serde(serialize_with = "uris_without_secrets")] Vec<String>),
}

fn uri_without_secrets<S: Serializer>(uri: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_secrets(uri))
}

/// Serialise URIs as a manifest stores them.
pub(crate) fn uris_without_secrets<S: Serializer>(uris: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(uris.iter().map(|uri| without_secrets(uri)))
}

impl OneOrMany {
    /// The addresses in order.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// `input.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// Recognised by the object's name, then by its first bytes.
    Auto,
    /// TFRecord files of `tf.Example` messages.
    Tfrecord,
    /// Tar archives of images.
    Webdataset,
    /// Parquet files with a column of images.
    Parquet,
    /// Loose images below a prefix or matching a glob.
    Files,
    /// A list of images: one URI per line, or JSONL with `uri` and optionally `id`.
    Manifest,
}

impl InputFormat {
    /// As the pipeline file spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tfrecord => "tfrecord",
            Self::Webdataset => "webdataset",
            Self::Parquet => "parquet",
            Self::Files => "files",
            Self::Manifest => "manifest",
        }
    }
}

/// `[preprocess]`: from encoded bytes to the model's input tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessSection {
    /// The size that the model takes, and how an image is brought to it.
    pub resize: Resize,
    /// Centred crop after the resize.
    #[serde(default)]
    pub crop: Option<Size>,
    /// Order of the three colours.
    #[serde(default)]
    pub color: Color,
    /// `(pixel * scale - mean) / std`, per channel in tensor order.
    #[serde(default = "one")]
    pub scale: f32,
    /// The mean to subtract from each channel, in tensor order.
    #[serde(default)]
    pub mean: [f32; 3],
    /// The standard deviation to divide each channel by, in tensor order.
    #[serde(default = "ones")]
    pub std: [f32; 3],
    /// Order of the dimensions in memory.
    #[serde(default)]
    pub layout: Layout,
    /// Whether the orientation in the metadata is applied.
    #[serde(default)]
    pub orientation: Orientation,
    /// Colour behind transparent pixels and of letterbox bars. Without it, alpha is dropped and bars are black.
    #[serde(default)]
    pub background: Option<[u8; 3]>,
    /// Decode JPEGs at 1/2, 1/4 or 1/8 of their size by DCT scaling if the target is no larger than that.
    #[serde(default)]
    pub scaled_decode: bool,
    /// Compress the resized and cropped image as JPEG of this quality (1 to 100, 4:2:0) and decode
    /// it again, as the reference code of open-nsfw does.
    #[serde(default)]
    pub jpeg_round_trip: Option<u8>,
    /// Largest image, pixels; a larger one becomes a `too_large` row before it is decoded.
    #[serde(default = "default_max_pixels")]
    pub max_pixels: u64,
    /// Decode threads; 0 is one for each core.
    #[serde(default)]
    pub threads: usize,
}

fn one() -> f32 {
    1.0
}

fn ones() -> [f32; 3] {
    [1.0; 3]
}

/// Larger than the photos of almost every camera, and 400 MB once decoded to RGBA.
pub const DEFAULT_MAX_PIXELS: u64 = 100_000_000;

fn default_max_pixels() -> u64 {
    DEFAULT_MAX_PIXELS
}

/// `preprocess.resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How an image of another aspect ratio is fitted.
    #[serde(default)]
    pub fit: Fit,
    /// How pixels are interpolated.
    #[serde(default)]
    pub filter: Filter,
}

/// How an image of another aspect ratio is fitted to the target size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Exactly width × height, aspect ratio ignored.
    #[default]
    Stretch,
    /// The smallest size that covers the target, then cropped to it at the centre.
    Cover,
    /// The largest size that fits inside, centred on `background` (letterbox).
    Contain,
}

/// Resampling filter, as Pillow names and defines it: antialiased, support grows with the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The mean of the covered pixels.
    Box,
    /// A triangle over 2 pixels.
    #[default]
    Bilinear,
    /// Keys' cubic over 4 pixels, with a = −0.5.
    Bicubic,
    /// A windowed sinc over 6 pixels.
    Lanczos3,
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// Channel order of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// Axis order of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, height, width, colour.
    Nhwc,
    /// Batch, colour, height, width.
    #[default]
    Nchw,
}

/// Whether the EXIF orientation tag is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Orientation {
    /// Turned and mirrored as the metadata says.
    #[default]
    Apply,
    /// As the pixels are stored.
    Ignore,
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// The model's file.
    pub path: PathBuf,
    /// Class names in output order: a list, or the path of a file with one per line.
    #[serde(default)]
    pub labels: Option<LabelsSection>,
}

/// `model.labels`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelsSection {
    /// A text file with one label in each line.
    File(PathBuf),
    /// The labels themselves, in the order of the classes.
    Inline(Vec<String>),
}

/// `[engine]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSection {
    /// What runs the model.
    pub kind: EngineKind,
    /// Where ONNX Runtime runs it.
    pub provider: Provider,
    /// Rows of every batch, the last one padded up to it.
    pub batch_size: usize,
    /// Compute threads of the CPU provider; 0 is one for each core.
    pub threads: usize,
    /// GPUs to run on.
    pub devices: Devices,
    /// Batches that one GPU processes at once, each in its own execution context.
    pub lanes: usize,
    /// Whether TensorRT may round the operands of float32 products to TF32, which is several times
    /// faster. The model's own types stay as they are.
    pub tf32: bool,
    /// Whether the CPU may run what a GPU provider cannot. The manifest names the engine that was used.
    pub allow_fallback: bool,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            kind: EngineKind::Onnxruntime,
            provider: Provider::Cpu,
            batch_size: 32,
            threads: 0,
            devices: Devices::default(),
            lanes: 2,
            tf32: true,
            allow_fallback: false,
        }
    }
}

/// `engine.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// ONNX Runtime.
    Onnxruntime,
    /// TensorRT.
    Tensorrt,
}

/// `engine.devices`: `"all"`, or a list of ordinals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Devices {
    /// Every GPU of the host.
    All(AllDevices),
    /// GPUs by ordinal, from 0.
    List(Vec<usize>),
}

/// The word for every GPU that CUDA lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllDevices {
    /// The word `all`.
    All,
}

impl Default for Devices {
    fn default() -> Self {
        Self::List(vec![0])
    }
}

/// `engine.provider`: where ONNX Runtime runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// CUDA on a GPU.
    Cuda,
    /// The plugin provider that contains TensorRT-RTX.
    #[serde(rename = "tensorrt-rtx")]
    TensorrtRtx,
    /// The provider of datacenter TensorRT 10.
    Tensorrt,
}

impl Provider {
    /// As the pipeline file spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorrtRtx => "tensorrt-rtx",
            Self::Tensorrt => "tensorrt",
        }
    }
}

/// `[output]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Folder or prefix for this run alone.
    pub uri: String,
    /// `all`, `topN` (best first) or `none`.
    pub scores: String,
    /// Share of rejected rows above which the run counts as failed.
    pub max_error_rate: f64,
    /// Shards that may end early, with an unknown number of records lost, before the run counts
    /// as failed.
    pub max_damaged_shards: u64,
    /// Seconds between two checkpoints: the most work that a killed run loses.
    pub checkpoint_seconds: f64,
}

impl Default for OutputSection {
    fn default() -> Self {
        Self {
            uri: String::new(),
            scores: "all".to_owned(),
            max_error_rate: 0.01,
            max_damaged_shards: 0,
            checkpoint_seconds: 30.0,
        }
    }
}

/// `[storage]`: timeouts and retries of object stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// Seconds for one request, its response included. Bytes received by then are kept, and the rest is requested
    /// again.
    pub timeout_seconds: f64,
    /// Seconds during which a failed request is retried, with growing pauses.
    pub retry_seconds: f64,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self { timeout_seconds: 30.0, retry_seconds: 180.0 }
    }
}

/// What the command line overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// Replaces `input.uri` when not empty.
    pub inputs: Vec<String>,
    /// Address of the output.
    pub output: Option<String>,
    /// `section.key=value`, the value in TOML or a bare string.
    pub set: Vec<String>,
}

impl PipelineFile {
    /// Read `path`, apply `overrides`, and resolve model paths.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, overrides)
    }

    /// Parse the `text` of the pipeline file `path`, apply `overrides`, and resolve model paths.
    pub fn parse(text: &str, path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| {
            let (line, column, message) = explain::syntax(text, &error);
            ConfigError::Syntax { path: path.to_owned(), line, column, message }
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        resolve_model_paths(&mut table, folder);
        for argument in &overrides.set {
            apply_set(&mut table, argument)?;
        }
        let mut file = Self::from_table(table)?;
        if !overrides.inputs.is_empty() {
            file.input.uri = OneOrMany::Many(overrides.inputs.clone());
        }
        if let Some(uri) = &overrides.output {
            file.output.uri.clone_from(uri);
        }
        Ok(file)
    }

    fn from_table(table: toml::Table) -> Result<Self, ConfigError> {
        if let Some(error) = explain::misplaced_section(&table, &SECTIONS) {
            return Err(error);
        }
        serde_path_to_error::deserialize(toml::Value::Table(table.clone()))
            .map_err(|error| explain::explain(&table, error.path(), error.inner().message()))
    }
}

/// Names of the sections.
const SECTIONS: [&str; 6] = ["input", "preprocess", "model", "engine", "output", "storage"];

/// Make paths relative to the pipeline file's folder, so that the file can move together with its model.
fn resolve_model_paths(table: &mut toml::Table, folder: &Path) {
    let Some(toml::Value::Table(model)) = table.get_mut("model") else { return };
    for key in ["path", "labels"] {
        if let Some(toml::Value::String(path)) = model.get_mut(key) {
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
    }
}

/// Set one `section.key=value` in the table.
fn apply_set(table: &mut toml::Table, argument: &str) -> Result<(), ConfigError> {
    let invalid =
        |message: &str| ConfigError::Set { argument: argument.to_owned(), message: message.to_owned() };
    let (path, text) = argument.split_once('=').ok_or_else(|| invalid("expected section.key=value"))?;
    let value = format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or_else(|| invalid("the key is empty"))?;
    let mut section = table;
    for key in keys {
        let entry = section.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        section = entry
            .as_table_mut()
            .ok_or_else(|| invalid("the key goes through a value that is not a section"))?;
    }
    section.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        name = "t"
        [input]
        uri = "in/*.tar"
        [preprocess]
        resize = { width = 8, height = 8 }
        [model]
        path = "m.onnx"
        labels = ["a", "b"]
        [output]
        uri = "out"
    "#;

    fn parse(text: &str) -> Result<PipelineFile, ConfigError> {
        PipelineFile::from_table(text.parse().expect("test TOML"))
    }

    #[test]
    fn a_small_file_gets_defaults() {
        let file = parse(SMALL).expect("valid");
        assert_eq!(file.engine.batch_size, 32);
        assert_eq!(file.preprocess.std, [1.0; 3]);
        assert_eq!(file.preprocess.resize.filter, Filter::Bilinear);
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        let cases = [
            ("[engine]\nbatchsize = 3", "unknown key engine.batchsize, did you mean batch_size?"),
            ("[ouput]\nuri = 'x'", "unknown key ouput, did you mean output?"),
        ];
        for (addition, expected) in cases {
            let error = parse(&format!("{SMALL}\n{addition}")).expect_err("unknown key");
            assert_eq!(error.to_string(), expected);
        }
        let nested = SMALL.replace("height = 8", "height = 8, filtr = 'box'");
        assert_eq!(
            parse(&nested).expect_err("unknown key").to_string(),
            "unknown key preprocess.resize.filtr, did you mean filter?"
        );
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let error = parse(&format!("{SMALL}\n[engine]\nbatch_size = 'many'")).expect_err("type");
        assert_eq!(error.to_string(), "engine.batch_size: is \"many\", expected a whole number, 0 or more");
    }

    #[test]
    fn set_overrides_nested_keys_as_toml_or_bare_strings() {
        let mut table: toml::Table = SMALL.parse().expect("test TOML");
        for argument in ["engine.batch_size=7", "preprocess.resize.fit=cover", "output.scores=top3"] {
            apply_set(&mut table, argument).expect("valid override");
        }
        let file = PipelineFile::from_table(table).expect("valid");
        assert_eq!(file.engine.batch_size, 7);
        assert_eq!(file.preprocess.resize.fit, Fit::Cover);
        assert_eq!(file.output.scores, "top3");
    }

    #[test]
    fn a_malformed_set_is_refused() {
        let mut table: toml::Table = SMALL.parse().expect("test TOML");
        for argument in ["engine.batch_size", "=3", "name.x=3"] {
            assert!(apply_set(&mut table, argument).is_err(), "{argument}");
        }
    }
}
