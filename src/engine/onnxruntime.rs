//! ONNX Runtime as an engine, on the CPU.
//!
//! - The model has one image input of rank 4, of float32 or uint8, whose sides match the
//!   preprocessing, and its first output has one row of float32 scores for each image.
//! - The batch dimension is dynamic or equals `batch_size`; either way it is always run full.

use std::path::Path;
use std::time::{Duration, Instant};

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use crate::config::Layout;
use crate::error::EngineError;
use crate::items::{BatchShape, PixelElement, Pixels};
use crate::plan::{Plan, threads_or_cores};

use super::runtime_library;
use super::{Engine, Inference};

/// A loaded model.
#[derive(Debug)]
pub struct OnnxRuntime {
    session: Session,
    input: String,
    output: String,
    /// Dimensions of the input tensor, batch first.
    dims: [i64; 4],
    shape: BatchShape,
    classes: usize,
}

impl OnnxRuntime {
    /// Load the plan's model and check it against the preprocessing and the labels.
    pub fn load(plan: &Plan) -> Result<Self, EngineError> {
        let path = &plan.model.path;
        std::fs::File::open(path).map_err(|source| EngineError::ModelFile { path: path.clone(), source })?;
        let environment = runtime_library::open()?;
        let session = open_session(&environment, path, threads_or_cores(plan.engine.threads))
            .map_err(|error| EngineError::Load { path: path.clone(), message: error.to_string() })?;
        let mismatch = |message| EngineError::Mismatch { path: path.clone(), message };

        let [input] = session.inputs() else {
            let names: Vec<_> = session.inputs().iter().map(Outlet::name).collect();
            return Err(mismatch(format!("it must have one input, it has {}", names.join(", "))));
        };
        let (dims, element) = check_input(input, plan).map_err(mismatch)?;
        let output = session.outputs().first().ok_or_else(|| mismatch("it has no output".to_owned()))?;
        let (input, output_name) = (input.name().to_owned(), output.name().to_owned());
        let declared = declared_classes(output).map_err(mismatch)?;

        let shape = BatchShape {
            batch_size: plan.engine.batch_size,
            row_elements: plan.preprocess.row_elements(),
            element,
        };
        let mut engine = Self { session, input, output: output_name, dims, shape, classes: 0 };
        engine.classes = match declared {
            Some(classes) => classes,
            None => engine.measured_classes().map_err(mismatch)?,
        };
        if let Some(labels) = &plan.model.labels
            && labels.len() != engine.classes
        {
            let message =
                format!("it has {} scores a row, model.labels has {} names", engine.classes, labels.len());
            return Err(mismatch(message));
        }
        Ok(engine)
    }

    /// Length of a row of scores, found by running once: the model does not declare it.
    fn measured_classes(&mut self) -> Result<usize, String> {
        let rows = self.shape.batch_size;
        let (scores, _) = self.run(&self.shape.zeros())?;
        if scores.len() % rows != 0 {
            return Err(format!("its output has {} values for {rows} rows", scores.len()));
        }
        Ok(scores.len() / rows)
    }

    /// All scores of a full batch, and the time they took.
    fn run(&mut self, pixels: &Pixels) -> Result<(Vec<f32>, Duration), String> {
        let text = |error: ort::Error| error.to_string();
        let input = match pixels {
            Pixels::F32(values) => {
                TensorRef::from_array_view((self.dims, values.as_slice())).map_err(text)?.into_dyn()
            }
            Pixels::U8(values) => {
                TensorRef::from_array_view((self.dims, values.as_slice())).map_err(text)?.into_dyn()
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
    fn batch_shape(&self) -> BatchShape {
        self.shape
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn computes_on_cpu(&self) -> bool {
        true
    }

    fn infer(&mut self, pixels: &Pixels, rows: usize) -> Result<Inference, String> {
        let (mut scores, compute) = self.run(pixels)?;
        let expected = self.shape.batch_size * self.classes;
        if scores.len() != expected {
            return Err(format!("the model returned {} scores, expected {expected}", scores.len()));
        }
        scores.truncate(rows * self.classes);
        Ok(Inference { scores, h2d: Duration::ZERO, compute, d2h: Duration::ZERO })
    }
}

fn open_session(
    environment: &ort::environment::Environment,
    path: &Path,
    threads: usize,
) -> Result<Session, ort::Error> {
    let mut builder = Session::builder(environment)?
        .with_intra_threads(threads)?
        // a spinning pool would take the cores that decoding needs between two batches
        .with_intra_op_spinning(false)?
        // a pattern lays out all tensors of a run side by side, in two to three times the memory
        // that the arena needs without, and no faster
        .with_memory_pattern(false)?;
    builder.commit_from_file(path)
}

/// The input's dimensions with the batch put in, and its element type.
fn check_input(input: &Outlet, plan: &Plan) -> Result<([i64; 4], PixelElement), String> {
    let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
        return Err(format!("input {} is not a tensor", input.name()));
    };
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
    let size = plan.tensor_size();
    let (height, width) = (i64::from(size.height), i64::from(size.width));
    let batch = plan.engine.batch_size as i64;
    let expected = match plan.preprocess.layout {
        Layout::Nhwc => [batch, height, width, 3],
        Layout::Nchw => [batch, 3, height, width],
    };
    // a dimension below zero is dynamic
    let fits = shape.len() == 4 && shape.iter().zip(expected).all(|(&has, wants)| has < 0 || has == wants);
    if !fits {
        let layout = if plan.preprocess.layout == Layout::Nhwc { "nhwc" } else { "nchw" };
        return Err(format!(
            "input {} has shape {}, the pipeline makes {} ({layout})",
            input.name(),
            dims_text(shape),
            dims_text(&expected)
        ));
    }
    Ok((expected, element))
}

/// Scores of a row as far as the model declares them.
fn declared_classes(output: &Outlet) -> Result<Option<usize>, String> {
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = output.dtype() else {
        return Err(format!("output {} is {}, expected a float32 tensor", output.name(), output.dtype()));
    };
    let Some((_, row)) = shape.split_first() else {
        return Err(format!("output {} is a scalar, expected one row of scores an image", output.name()));
    };
    let dynamic = row.iter().any(|&dim| dim < 0);
    Ok((!dynamic).then(|| row.iter().map(|&dim| dim as usize).product()))
}

fn dims_text(dims: &[i64]) -> String {
    let texts: Vec<_> =
        dims.iter().map(|&dim| if dim < 0 { "N".to_owned() } else { dim.to_string() }).collect();
    texts.join("×")
}
