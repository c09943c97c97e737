//! ONNX Runtime as an engine: on the CPU in this file, on GPUs in `gpu`.
//!
//! - The model has one image input of rank 4, float32 or uint8, whose height and width match the preprocessing, and its
//!   first output has a row of float32 scores for each image. On a GPU both may be float16 instead; uint8 is supported
//!   on the CPU only.
//! - The batch dimension is dynamic or equals `batch_size`; batches are always full.

mod gpu;
mod library;

use std::time::{Duration, Instant};

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

pub use self::gpu::{load as load_on_gpus, probe_provider};
pub(crate) use self::library::find_plugin;
use super::shape::{check_input, check_labels, input_dims, row_length};
use super::{Engine, Inference};
use crate::error::EngineError;
use crate::items::{BatchBuffer, BatchShape, PixelElement, PixelsRef};
use crate::plan::{Plan, threads_or_cores};

/// A loaded model on the CPU.
#[derive(Debug)]
pub struct OnnxRuntime {
    session: Session,
    input: String,
    output: String,
    /// Dimensions of the input tensor, batch first.
    dims: [i64; 4],
    shape: BatchShape,
    classes: usize,
    /// Why the plan's provider is not used; `None` if it is.
    fallback: Option<String>,
}

impl OnnxRuntime {
    /// Load the plan's model and check it against the preprocessing and the labels.
    pub fn load(plan: &Plan) -> Result<Self, EngineError> {
        let path = &plan.model.path;
        std::fs::File::open(path).map_err(|source| EngineError::ModelFile { path: path.clone(), source })?;
        let session = cpu_options(&library::open()?, plan)
            .and_then(|mut builder| builder.commit_from_file(path))
            .map_err(|error| EngineError::Load { path: path.clone(), message: error.to_string() })?;
        let mismatch = |message| EngineError::Mismatch { path: path.clone(), message };

        let (input, output) = input_and_output(&session).map_err(mismatch)?;
        let element = check_element(input, plan).map_err(mismatch)?;
        let declared = declared_classes(output).map_err(mismatch)?;
        let (input, output) = (input.name().to_owned(), output.name().to_owned());
        let shape = BatchShape {
            batch_size: plan.engine.batch_size,
            row_elements: plan.preprocess.row_elements(),
            element,
        };
        let dims = input_dims(plan);
        let mut engine = Self { session, input, output, dims, shape, classes: 0, fallback: None };
        engine.classes = match declared {
            Some(classes) => classes,
            None => engine.measured_classes().map_err(mismatch)?,
        };
        check_labels(engine.classes, plan).map_err(mismatch)?;
        Ok(engine)
    }

    /// The CPU engine for a plan whose provider cannot be used; `reason` says why.
    pub(super) fn fallback(plan: &Plan, reason: String) -> Result<Self, EngineError> {
        Ok(Self { fallback: Some(reason), ..Self::load(plan)? })
    }

    /// Number of scores in a row, found by running the model once: the model does not declare it.
    fn measured_classes(&mut self) -> Result<usize, String> {
        let rows = self.shape.batch_size;
        let (scores, _) = self.run(self.shape.zeros().pixels())?;
        if scores.len() % rows != 0 {
            return Err(format!("its output has {} values for {rows} rows", scores.len()));
        }
        Ok(scores.len() / rows)
    }

    /// All scores of a full batch, and the time they took.
    fn run(&mut self, pixels: PixelsRef<'_>) -> Result<(Vec<f32>, Duration), String> {
        let text = |error: ort::Error| error.to_string();
        let input = match pixels {
            PixelsRef::F32(values) => {
                TensorRef::from_array_view((self.dims, values)).map_err(text)?.into_dyn()
            }
            PixelsRef::U8(values) => {
                TensorRef::from_array_view((self.dims, values)).map_err(text)?.into_dyn()
            }
        };
        let start = Instant::now();
        let outputs = self.session.run(ort::inputs![self.input.as_str() => input]).map_err(text)?;
        let compute = start.elapsed();
        let (_, scores) = outputs[self.output.as_str()].try_extract_tensor::<f32>().map_err(text)?;
        Ok((scores.to_vec(), compute))
    }
}

impl Engine for OnnxRuntime {
    fn describe(&self) -> String {
        match &self.fallback {
            None => "ONNX Runtime on the CPU".to_owned(),
            Some(reason) => format!("ONNX Runtime on the CPU instead of the plan's provider: {reason}"),
        }
    }

    fn batch_shape(&self) -> BatchShape {
        self.shape
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn computes_on_cpu(&self) -> bool {
        true
    }

    fn infer(&mut self, pixels: PixelsRef<'_>, rows: usize) -> Result<Inference, String> {
        let (mut scores, compute) = self.run(pixels)?;
        let expected = self.shape.batch_size * self.classes;
        if scores.len() != expected {
            return Err(format!("the model returned {} scores, expected {expected}", scores.len()));
        }
        scores.truncate(rows * self.classes);
        Ok(Inference { scores, h2d: Duration::ZERO, compute, d2h: Duration::ZERO })
    }

    fn infer_floats(&mut self, tensor: &[f32]) -> Result<Vec<f32>, String> {
        Ok(self.run(PixelsRef::F32(tensor))?.0)
    }
}

/// Path and build of ONNX Runtime, if it can be loaded.
pub fn probe_onnxruntime() -> Result<String, String> {
    let path = library::path()?;
    library::open().map_err(|error| error.to_string())?;
    Ok(format!("{}, {}", path.display(), ort::info()))
}

fn cpu_options(environment: &Environment, plan: &Plan) -> Result<SessionBuilder, ort::Error> {
    Ok(Session::builder(environment)?
        .with_intra_threads(threads_or_cores(plan.engine.threads))?
        // spinning threads would take the cores that decoding needs between two batches
        .with_intra_op_spinning(false)?
        // a memory pattern allocates all tensors of a run side by side, which takes two to three times the memory of
        // the arena and is no faster
        .with_memory_pattern(false)?)
}

/// The one input and the first output.
fn input_and_output(session: &Session) -> Result<(&Outlet, &Outlet), String> {
    let [input] = session.inputs() else {
        let names: Vec<_> = session.inputs().iter().map(Outlet::name).collect();
        return Err(format!("it must have one input, it has {}", names.join(", ")));
    };
    let output = session.outputs().first().ok_or("it has no output")?;
    Ok((input, output))
}

fn tensor(outlet: &Outlet) -> Result<(TensorElementType, &[i64]), String> {
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => Ok((*ty, shape)),
        other => Err(format!("{} is {other}, expected a tensor", outlet.name())),
    }
}

/// The element type of batches on the CPU for this input, which must fit the plan.
fn check_element(input: &Outlet, plan: &Plan) -> Result<PixelElement, String> {
    let (ty, shape) = tensor(input)?;
    let element = match ty {
        TensorElementType::Float32 => PixelElement::F32,
        TensorElementType::Uint8 => {
            let preprocess = &plan.preprocess;
            if preprocess.scale != 1.0 || preprocess.mean != [0.0; 3] || preprocess.std != [1.0; 3] {
                let reason = "takes uint8 pixels, so scale, mean and std cannot be applied";
                return Err(format!("input {} {reason}", input.name()));
            }
            PixelElement::U8
        }
        other => {
            return Err(format!(
                "input {} has element type {other}, expected float32 or uint8",
                input.name()
            ));
        }
    };
    check_input(input.name(), shape, plan)?;
    Ok(element)
}

/// Number of scores in a row, if the model declares it.
fn declared_classes(output: &Outlet) -> Result<Option<usize>, String> {
    let (TensorElementType::Float32, shape) = tensor(output)? else {
        return Err(format!("output {} is {}, expected a float32 tensor", output.name(), output.dtype()));
    };
    row_length(output.name(), shape)
}
