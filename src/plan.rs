//! The pipeline as checked, as far as that needs neither the model nor the input.
//!
//! Input: a [`PipelineFile`]. Output: a [`Plan`], or the first thing wrong with it.
//!
//! - Sizes are positive, the crop fits inside the resize, `std` has no zero.
//! - Labels are loaded; whether their number fits the model is the engine's check.
//! - [`Plan::hash`] covers everything that determines predictions, and nothing else.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::{
    Color, DEFAULT_MAX_PIXELS, Devices, EngineKind, EngineSection, Filter, Fit, InputFormat, InputSection,
    LabelsSection, Layout, OneOrMany, Orientation, PipelineFile, PreprocessSection, Provider, Resize, Size,
    StorageSection,
};
use crate::error::ConfigError;
use crate::regular_file::read_text;
use crate::shown::without_secrets;

/// Raise it with every change that may give some input other pixels, scores, statuses or records. Only a build of the
/// same scoring version resumes a run, so that no output mixes rows of two versions. A run record without one is of
/// scoring version 1. A test of `decode` compares a few images with `fixtures/scoring.json`, and says how to update
/// that file.
pub const SCORING_VERSION: u32 = 2;

/// A checked pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Name of the pipeline.
    pub name: String,
    /// Input URIs in the order given; none only in a plan [without inputs](Plan::without_inputs). Serialised without
    /// signatures and other secrets.
    #[serde(serialize_with = "crate::config::uris_without_secrets")]
    pub inputs: Vec<String>,
    /// How the input is read.
    pub input: InputSection,
    /// What is done to the pixels.
    pub preprocess: PreprocessSection,
    /// The model.
    pub model: ModelPlan,
    /// What runs the model.
    pub engine: EngineSection,
    /// Where the predictions go.
    pub output: OutputPlan,
    /// How object stores are reached.
    pub storage: StorageSection,
}

/// The model's file and the names of its classes.
#[derive(Debug, Clone, Serialize)]
pub struct ModelPlan {
    /// The model's file.
    pub path: PathBuf,
    /// Class names in output order.
    pub labels: Option<Vec<String>>,
}

/// Where rows go, which of their scores are kept, and when a run has too many errors.
#[derive(Debug, Clone, Serialize)]
pub struct OutputPlan {
    /// Address of the output.
    pub uri: String,
    /// Which scores a row keeps.
    pub scores: ScoresKept,
    /// Share of rejected rows, from 0 to 1, above which a run fails.
    pub max_error_rate: f64,
    /// Damaged shards above which a run fails.
    pub max_damaged_shards: u64,
    /// Seconds between two checkpoints.
    pub checkpoint_seconds: f64,
}

/// How many of a row's scores are kept in the `scores` list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoresKept {
    /// Every score, in class order.
    All,
    /// The N best, best first, with their class indices.
    Top(usize),
    /// Only the top-1 columns.
    None,
}

impl Plan {
    /// Check `file` as far as it can be checked without opening the model or the input.
    pub fn check(file: PipelineFile) -> Result<Self, ConfigError> {
        let inputs = file.input.uri.clone().into_vec();
        check_name(&file)?;
        check_inputs(&inputs)?;
        Ok(Self { inputs, ..Self::without_inputs(file)? })
    }

    /// The same for a caller that does not list the input. `input.uri` is ignored, and the plan has no inputs.
    pub fn without_inputs(file: PipelineFile) -> Result<Self, ConfigError> {
        check_name(&file)?;
        let PipelineFile { name, input, preprocess, model, engine, output, storage } = file;
        check_range("input.files_per_shard", input.files_per_shard as u64, 1..=1 << 24)?;
        check_range("input.max_image_bytes", input.max_image_bytes, 1..=1 << 31)?;
        check_range("input.max_page_bytes", input.max_page_bytes, 1..=1 << 31)?;
        check_keys(&input)?;
        check_range("input.look_ahead", input.look_ahead as u64, 0..=MAX_THREADS)?;
        check_range("engine.batch_size", engine.batch_size as u64, 1..=MAX_BATCH_SIZE)?;
        check_range("engine.lanes", engine.lanes as u64, 1..=MAX_LANES)?;
        check_engine(&engine)?;
        check_range("engine.threads", engine.threads as u64, 0..=MAX_THREADS)?;
        check_preprocess(&preprocess)?;
        if output.uri.is_empty() {
            return Err(ConfigError::invalid("output.uri", "is empty; set it here or with --output"));
        }
        check_output(&output.uri)?;
        if !(0.0..=1.0).contains(&output.max_error_rate) {
            return Err(ConfigError::invalid("output.max_error_rate", "must be between 0 and 1"));
        }
        if !(MIN_CHECKPOINT_SECONDS..=MAX_CHECKPOINT_SECONDS).contains(&output.checkpoint_seconds) {
            let message = format!("must be between {MIN_CHECKPOINT_SECONDS} and {MAX_CHECKPOINT_SECONDS}");
            return Err(ConfigError::invalid("output.checkpoint_seconds", message));
        }
        let seconds = [
            ("storage.timeout_seconds", storage.timeout_seconds),
            ("storage.retry_seconds", storage.retry_seconds),
        ];
        for (key, seconds) in seconds {
            if !(MIN_STORAGE_SECONDS..=MAX_STORAGE_SECONDS).contains(&seconds) {
                let message = format!("must be between {MIN_STORAGE_SECONDS} and {MAX_STORAGE_SECONDS}");
                return Err(ConfigError::invalid(key, message));
            }
        }
        let labels = model.labels.map(load_labels).transpose()?;
        Ok(Self {
            name,
            inputs: Vec::new(),
            input,
            preprocess,
            model: ModelPlan { path: model.path, labels },
            engine,
            output: OutputPlan {
                uri: output.uri,
                scores: parse_scores(&output.scores)?,
                max_error_rate: output.max_error_rate,
                max_damaged_shards: output.max_damaged_shards,
                checkpoint_seconds: output.checkpoint_seconds,
            },
            storage,
        })
    }

    /// Make `inputs` the input, as if the pipeline file had named them. They are not checked.
    pub fn set_inputs(&mut self, inputs: Vec<String>) {
        if self.input.uri.clone().into_vec() != inputs {
            self.input.uri = OneOrMany::Many(inputs.clone());
        }
        self.inputs = inputs;
    }

    /// Width and height of the tensor: the crop if there is one, else the resize.
    pub fn tensor_size(&self) -> Size {
        self.preprocess.tensor_size()
    }

    /// SHA-256 (hex) over [`Plan::determinants`].
    pub fn hash(&self, model_sha256: &str) -> String {
        hex(&Sha256::digest(self.determinants(model_sha256).to_string()))
    }

    /// What determines the predictions of a given input: its format, the preprocessing, labels, kept scores, engine,
    /// batch size, the model's own hash, and [`SCORING_VERSION`]. The locations of input and output, thread counts and
    /// limits on errors are left out.
    pub fn determinants(&self, model_sha256: &str) -> serde_json::Value {
        #[derive(Serialize)]
        struct Determinants<'a> {
            scoring_version: u32,
            preprocess: &'a PreprocessSection,
            labels: &'a Option<Vec<String>>,
            scores: ScoresKept,
            engine: EngineKind,
            provider: Provider,
            tf32: bool,
            batch_size: usize,
            format: InputFormat,
            image_key: &'a Option<String>,
            id_key: &'a Option<String>,
            max_image_bytes: u64,
            max_page_bytes: u64,
            model_sha256: &'a str,
        }
        let preprocess = PreprocessSection { threads: 0, ..self.preprocess.clone() };
        let determinants = Determinants {
            scoring_version: SCORING_VERSION,
            preprocess: &preprocess,
            labels: &self.model.labels,
            scores: self.output.scores,
            engine: self.engine.kind,
            provider: self.engine.provider,
            tf32: self.engine.tf32,
            batch_size: self.engine.batch_size,
            format: self.input.format,
            image_key: &self.input.image_key,
            id_key: &self.input.id_key,
            max_image_bytes: self.input.max_image_bytes,
            max_page_bytes: self.input.max_page_bytes,
            model_sha256,
        };
        serde_json::to_value(determinants).expect("plain structs always serialise to JSON")
    }
}

impl PreprocessSection {
    /// The cheapest preprocessing, a resize to one pixel, to check images without a model.
    pub fn smallest() -> Self {
        Self {
            resize: Resize { width: 1, height: 1, fit: Fit::Stretch, filter: Filter::Nearest },
            crop: None,
            color: Color::Rgb,
            scale: 1.0,
            mean: [0.0; 3],
            std: [1.0; 3],
            layout: Layout::Nhwc,
            orientation: Orientation::Ignore,
            background: None,
            scaled_decode: false,
            jpeg_round_trip: None,
            max_pixels: DEFAULT_MAX_PIXELS,
            threads: 0,
        }
    }

    /// Width and height of the tensor: the crop if there is one, else the resize.
    pub fn tensor_size(&self) -> Size {
        self.crop.unwrap_or(Size { width: self.resize.width, height: self.resize.height })
    }

    /// Elements of one image: width × height × 3.
    pub fn row_elements(&self) -> usize {
        let size = self.tensor_size();
        size.width as usize * size.height as usize * 3
    }
}

/// `threads`; 0 means one for each core that this process may use.
pub fn threads_or_cores(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_range(key: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    let message = format!("is {value}, must be between {} and {}", range.start(), range.end());
    Err(ConfigError::invalid(key, message))
}

/// Timeouts of a store. A round trip takes longer than the minimum; a run that waits longer than the maximum hangs.
const MIN_STORAGE_SECONDS: f64 = 0.1;
const MAX_STORAGE_SECONDS: f64 = 86_400.0;

/// Seconds between checkpoints. No store accepts more frequent ones, and rarer ones are as good as none.
const MIN_CHECKPOINT_SECONDS: f64 = 0.01;
const MAX_CHECKPOINT_SECONDS: f64 = 1e6;

/// Rows of a batch: more do not fit any accelerator.
const MAX_BATCH_SIZE: u64 = 1 << 16;

/// Threads of one kind: more than any machine has cores.
const MAX_THREADS: u64 = 4096;

/// Batches on one device at once: more only wait for each other.
const MAX_LANES: u64 = 16;

fn check_name(file: &PipelineFile) -> Result<(), ConfigError> {
    if file.name.is_empty() {
        return Err(ConfigError::invalid("name", "must not be empty"));
    }
    Ok(())
}

/// Refuse inputs that must be mistakes.
///
/// # Errors
/// If there is none, or one of them is empty or begins or ends with white space.
pub(crate) fn check_inputs(inputs: &[String]) -> Result<(), ConfigError> {
    if inputs.is_empty() || inputs.iter().any(String::is_empty) {
        return Err(ConfigError::invalid("input.uri", "is empty; set it here or with --input"));
    }
    inputs.iter().try_for_each(|uri| check_input(uri))
}

/// Refuse white space around an input: a blank before a scheme would make an address a local path.
fn check_input(uri: &str) -> Result<(), ConfigError> {
    if uri.trim() == uri || uri.starts_with("./") {
        return Ok(());
    }
    let message = format!(
        "{:?} begins or ends with white space; if that is the name of a file, write it as ./NAME",
        without_secrets(uri)
    );
    Err(ConfigError::invalid("input.uri", message))
}

/// Refuse names of outputs that must be mistakes.
fn check_output(uri: &str) -> Result<(), ConfigError> {
    let what = if uri.trim() != uri {
        "begins or ends with white space"
    } else if uri.contains(char::is_control) {
        "contains a control character"
    } else {
        return Ok(());
    };
    Err(ConfigError::invalid("output.uri", format!("{:?} {what}", without_secrets(uri))))
}

/// Refuse a key that the format does not use: it would be ignored silently.
fn check_keys(input: &InputSection) -> Result<(), ConfigError> {
    let (has_image_key, has_id_key) = match input.format {
        InputFormat::Auto | InputFormat::Tfrecord | InputFormat::Parquet => (true, true),
        InputFormat::Webdataset => (true, false),
        InputFormat::Files | InputFormat::Manifest => (false, false),
    };
    let keys = [("image_key", &input.image_key, has_image_key), ("id_key", &input.id_key, has_id_key)];
    for (key, value, has_meaning) in keys {
        if value.is_some() && !has_meaning {
            let message = format!("has no meaning with input.format = \"{}\"", input.format.as_str());
            return Err(ConfigError::invalid(format!("input.{key}"), message));
        }
        if value.as_ref().is_some_and(|value| value.trim_matches([' ', ';', '.']).is_empty()) {
            return Err(ConfigError::invalid(format!("input.{key}"), "is empty"));
        }
    }
    Ok(())
}

fn check_engine(engine: &EngineSection) -> Result<(), ConfigError> {
    if let Devices::List(ordinals) = &engine.devices {
        if ordinals.is_empty() {
            return Err(ConfigError::invalid("engine.devices", "names no GPU"));
        }
        if let Some(twice) = ordinals.iter().enumerate().find(|(at, gpu)| ordinals[..*at].contains(gpu)) {
            return Err(ConfigError::invalid("engine.devices", format!("names GPU {} twice", twice.1)));
        }
    }
    let in_onnxruntime = engine.kind == EngineKind::Onnxruntime;
    if !engine.tf32 && in_onnxruntime && matches!(engine.provider, Provider::TensorrtRtx | Provider::Tensorrt)
    {
        let message = "cannot be false with ONNX Runtime's TensorRT providers; it can with kind = \"tensorrt\" or \
                       provider = \"cuda\"";
        return Err(ConfigError::invalid("engine.tf32", message));
    }
    Ok(())
}

/// Pixels of one image: decoding holds several copies of them.
const MAX_PIXELS: u64 = 1 << 33;

/// Longest side of a tensor: one image of a larger size does not fit any accelerator.
const MAX_SIDE: u32 = 16_384;

fn check_preprocess(preprocess: &PreprocessSection) -> Result<(), ConfigError> {
    let resize = preprocess.resize;
    for (key, side) in [("width", resize.width), ("height", resize.height)] {
        if side == 0 || side > MAX_SIDE {
            let message = format!("is {side}, must be between 1 and {MAX_SIDE}");
            return Err(ConfigError::invalid(format!("preprocess.resize.{key}"), message));
        }
    }
    if let Some(crop) = preprocess.crop {
        let fits = (1..=resize.width).contains(&crop.width) && (1..=resize.height).contains(&crop.height);
        if !fits {
            let message = format!(
                "{}×{} does not fit inside the resize to {}×{}",
                crop.width, crop.height, resize.width, resize.height
            );
            return Err(ConfigError::invalid("preprocess.crop", message));
        }
    }
    if resize.fit == Fit::Contain && preprocess.crop.is_some() {
        let message = "cannot follow fit = \"contain\": it would cut the letterbox";
        return Err(ConfigError::invalid("preprocess.crop", message));
    }
    if preprocess.jpeg_round_trip.is_some_and(|quality| !(1..=100).contains(&quality)) {
        return Err(ConfigError::invalid("preprocess.jpeg_round_trip", "must be between 1 and 100"));
    }
    if preprocess.jpeg_round_trip.is_some() && resize.fit == Fit::Contain {
        let message = "is not defined for fit = \"contain\"";
        return Err(ConfigError::invalid("preprocess.jpeg_round_trip", message));
    }
    let numbers = preprocess.mean.iter().chain(&preprocess.std).chain([&preprocess.scale]);
    if numbers.into_iter().any(|number| !number.is_finite()) || preprocess.std.contains(&0.0) {
        let message = "scale, mean and std must be finite, and std not zero";
        return Err(ConfigError::invalid("preprocess", message));
    }
    check_range("preprocess.threads", preprocess.threads as u64, 0..=MAX_THREADS)?;
    check_range("preprocess.max_pixels", preprocess.max_pixels, 1..=MAX_PIXELS)
}

fn load_labels(section: LabelsSection) -> Result<Vec<String>, ConfigError> {
    let labels = match section {
        LabelsSection::Inline(labels) => labels,
        LabelsSection::File(path) => {
            let text = read_text(&path).map_err(|source| ConfigError::Labels { path, source })?;
            text.lines().map(|line| line.trim_end().to_owned()).collect()
        }
    };
    if labels.is_empty() {
        return Err(ConfigError::invalid("model.labels", "is empty"));
    }
    Ok(labels)
}

fn parse_scores(text: &str) -> Result<ScoresKept, ConfigError> {
    match text {
        "all" => return Ok(ScoresKept::All),
        "none" => return Ok(ScoresKept::None),
        _ => {}
    }
    text.strip_prefix("top").and_then(|n| n.parse().ok()).filter(|&n| n > 0).map(ScoresKept::Top).ok_or_else(
        || {
            ConfigError::invalid(
                "output.scores",
                format!("is {text:?}, expected all, none or topN such as top5"),
            )
        },
    )
}

#[cfg(test)]
impl Plan {
    /// A plan whose model no test loads. `more` is added to its pipeline file, whose last section is `[engine]`.
    pub(crate) fn for_tests(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pipeline.toml");
        let text = "name = \"test\"\n[model]\npath = \"none.onnx\"\n[preprocess]\n\
                    resize = { width = 2, height = 2, fit = \"stretch\", filter = \"nearest\" }\n\
                    [engine]\nkind = \"onnxruntime\"\nbatch_size = 32\n";
        std::fs::write(&file, format!("{text}{more}")).expect("a file");
        let (inputs, output) = (vec!["in".to_owned()], Some("out".to_owned()));
        let overrides = crate::config::Overrides { inputs, output, set: Vec::new() };
        let file = crate::config::PipelineFile::load(&file, &overrides).expect("a pipeline");
        Self::check(file).expect("a plan")
    }
}
