//! What an ONNX file says about its inputs, without opening any runtime.
//!
//! Reads the few fields of `onnx.proto3` that are needed and skips the rest, weights included.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use prost::Message;

/// The image input of a model, as declared, and what the model computes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxInput {
    pub name: String,
    /// Batch first; -1 where dynamic.
    pub dims: Vec<i64>,
    /// Type that most of the model's weights have.
    pub precision: Precision,
}

/// Element type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
    Fp8,
    /// None of these, or no weights at all.
    Other,
}

impl Precision {
    /// From `TensorProto.DataType`.
    fn of(data_type: i32) -> Self {
        match data_type {
            1 => Self::Fp32,
            10 => Self::Fp16,
            16 => Self::Bf16,
            2 | 3 => Self::Int8,
            17..=20 => Self::Fp8,
            _ => Self::Other,
        }
    }
}

/// The one input of the model at `path`.
///
/// # Errors
/// When the file cannot be read, is no ONNX, or has more than one input.
pub fn read_input(path: &Path) -> Result<OnnxInput, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    input_of(&bytes)
}

/// The same of a model in memory.
pub fn input_of(bytes: &[u8]) -> Result<OnnxInput, String> {
    let model = Model::decode(bytes).map_err(|error| format!("it is no ONNX file: {error}"))?;
    let graph = model.graph.ok_or("it is no ONNX file: it has no graph")?;
    // files of old exporters list their weights among the inputs
    let is_weight = |name: &str| graph.initializer.iter().any(|weight| weight.name == name);
    let inputs: Vec<_> = graph.input.iter().filter(|input| !is_weight(&input.name)).collect();
    let [input] = inputs[..] else {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(format!("it must have one input, it has {} ({})", names.len(), names.join(", ")));
    };
    let shape = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()?.shape.as_ref());
    let shape = shape.ok_or_else(|| format!("its input {} has no shape", input.name))?;
    let dims = shape.dim.iter().map(|dim| dim.dim_value.unwrap_or(-1)).collect();
    Ok(OnnxInput { name: input.name.clone(), dims, precision: precision(&graph.initializer) })
}

/// Names of the files beside a model that hold its weights, each once, in order; none for what is no
/// ONNX file.
pub fn external_files(bytes: &[u8]) -> Vec<String> {
    let graph = Model::decode(bytes).ok().and_then(|model| model.graph).unwrap_or_default();
    let entries = graph.initializer.into_iter().flat_map(|weight| weight.external_data);
    let names: BTreeSet<_> =
        entries.filter(|entry| entry.key == "location").map(|entry| entry.value).collect();
    names.into_iter().collect()
}

fn precision(weights: &[Tensor]) -> Precision {
    let mut elements = HashMap::<_, i64>::new();
    for weight in weights {
        let count = weight.dims.iter().fold(1_i64, |product, &dim| product.saturating_mul(dim));
        let elements = elements.entry(Precision::of(weight.data_type)).or_default();
        *elements = elements.saturating_add(count);
    }
    let most = elements.into_iter().max_by_key(|&(_, count)| count);
    most.map_or(Precision::Other, |(precision, _)| precision)
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    /// Where the values lie if not here, as keys such as `location` with their values.
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_found_among_old_exporters_weights() {
        let value = |name: &str, dims: &[Option<i64>]| {
            let dim = dims.iter().map(|&dim_value| Dimension { dim_value }).collect();
            let tensor_type = Some(TensorType { shape: Some(Shape { dim }) });
            ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type }) }
        };
        let graph = Graph {
            initializer: vec![
                Tensor { dims: vec![3, 2], data_type: 10, name: "weight".to_owned(), external_data: vec![] },
                Tensor { dims: vec![5], data_type: 1, name: "bias".to_owned(), external_data: vec![] },
            ],
            input: vec![value("image", &[None, Some(3), Some(8), Some(8)]), value("weight", &[Some(3)])],
        };
        let mut model = Model { graph: Some(graph) };
        let (name, dims) = ("image".to_owned(), vec![-1, 3, 8, 8]);
        let expected = OnnxInput { name, dims, precision: Precision::Fp16 };
        assert_eq!(input_of(&model.encode_to_vec()), Ok(expected));

        model.graph.as_mut().expect("a graph").initializer.clear();
        let message = input_of(&model.encode_to_vec()).expect_err("two inputs");
        assert!(message.contains("image, weight"), "{message}");
        assert!(input_of(b"hello, I am no model").is_err());
        assert!(input_of(b"").is_err());
    }

    #[test]
    fn files_that_hold_weights_are_part_of_the_models_hash() {
        let weight = |name: &str, file: &str| {
            let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
            let external_data = vec![entry("offset", "0"), entry("location", file)];
            Tensor { dims: vec![1], data_type: 1, name: name.to_owned(), external_data }
        };
        let initializer = vec![weight("a", "m.data"), weight("b", "m.data")];
        let model = Model { graph: Some(Graph { initializer, input: vec![] }) }.encode_to_vec();
        assert_eq!(external_files(&model), ["m.data"]);
        assert!(external_files(b"no model").is_empty());

        let folder = tempfile::tempdir().expect("temp folder");
        let (path, data) = (folder.path().join("m.onnx"), folder.path().join("m.data"));
        std::fs::write(&path, &model).expect("write");
        let missing = crate::engine::hash_model(&path).expect_err("its weights are missing");
        assert!(missing.to_string().contains("m.data"), "{missing}");
        let mut hashes = ["old", "new"].map(|weights| {
            std::fs::write(&data, weights).expect("write");
            crate::engine::hash_model(&path).expect("a hash")
        });
        hashes.sort();
        assert_ne!(hashes[0], hashes[1]);

        for outside in ["/dev/zero", "../m.data"] {
            let model =
                Model { graph: Some(Graph { initializer: vec![weight("a", outside)], input: vec![] }) };
            std::fs::write(&path, model.encode_to_vec()).expect("write");
            let refused = crate::engine::hash_model(&path).expect_err("not beside the model");
            assert!(refused.to_string().contains("outside its folder"), "{refused}");
        }
    }

    #[test]
    fn sizes_beyond_all_measure_are_no_panic() {
        let weight = Tensor { dims: vec![i64::MAX, 2], data_type: 1, ..Tensor::default() };
        assert_eq!(precision(&[weight.clone(), weight]), Precision::Fp32);
    }
}
