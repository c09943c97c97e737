//! Reads the input and the precision of an ONNX model without loading a runtime.
//!
//! Decodes only the few fields of `onnx.proto3` that are needed, and skips the rest, including weights.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use prost::Message;

use crate::regular_file::refuse_special;

/// The image input of a model, as declared, and the precision of its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxInput {
    /// Name of the tensor in the model.
    pub name: String,
    /// Batch first; -1 where dynamic.
    pub dims: Vec<i64>,
    /// Name of the batch dimension, if it is dynamic and has a name.
    pub batch: Option<String>,
    /// The type of most of the model's weights.
    pub precision: Precision,
}

/// Element type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats.
    Fp16,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
    /// Integers of 8 bits.
    Int8,
    /// 8-bit floats.
    Fp8,
    /// Another type, or no weights at all.
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

/// The single input of the model at `path`.
///
/// # Errors
/// If the file cannot be read, is not ONNX, or does not have exactly one input.
pub fn read_input(path: &Path) -> Result<OnnxInput, String> {
    refuse_special(path).map_err(|error| error.to_string())?;
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    input_of(&bytes)
}

/// The single input of a model in memory.
///
/// # Errors
/// If it is not ONNX, or does not have exactly one input.
pub fn input_of(bytes: &[u8]) -> Result<OnnxInput, String> {
    let model = Model::decode(bytes).map_err(|error| format!("it is not an ONNX file: {error}"))?;
    let graph = model.graph.ok_or("it is not an ONNX file: it has no graph")?;
    // old exporters list weights among the inputs
    let is_weight = |name: &str| graph.initializer.iter().any(|weight| weight.name == name);
    let inputs: Vec<_> = graph.input.iter().filter(|input| !is_weight(&input.name)).collect();
    let [input] = inputs[..] else {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(format!("it must have one input, it has {} ({})", names.len(), names.join(", ")));
    };
    let shape = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()?.shape.as_ref());
    let shape = shape.ok_or_else(|| format!("its input {} has no shape", input.name))?;
    let dims = shape.dim.iter().map(|dim| dim.dim_value.unwrap_or(-1)).collect();
    let batch = shape.dim.first().map(|dim| dim.dim_param.clone()).filter(|name| !name.is_empty());
    Ok(OnnxInput { name: input.name.clone(), dims, batch, precision: precision(&graph.initializer) })
}

/// Names of the other files that hold a model's weights, sorted and without duplicates; empty if `bytes`
/// is not an ONNX file.
pub fn external_files(bytes: &[u8]) -> Vec<String> {
    let model = Model::decode(bytes).unwrap_or_default();
    let mut names = BTreeSet::new();
    if let Some(graph) = &model.graph {
        graph.external_files(&mut names);
    }
    for function in &model.functions {
        function.node.iter().for_each(|node| node.external_files(&mut names));
    }
    names.into_iter().collect()
}

impl Graph {
    fn external_files(&self, names: &mut BTreeSet<String>) {
        let sparse = self.sparse_initializer.iter().flat_map(Sparse::tensors);
        self.initializer.iter().chain(sparse).for_each(|tensor| tensor.external_files(names));
        self.node.iter().for_each(|node| node.external_files(names));
    }
}

impl Node {
    /// Adds the files of constants, and of nested graphs: branches and loops.
    fn external_files(&self, names: &mut BTreeSet<String>) {
        for attribute in &self.attribute {
            let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
            let tensors =
                attribute.t.iter().chain(&attribute.tensors).chain(sparse.flat_map(Sparse::tensors));
            tensors.for_each(|tensor| tensor.external_files(names));
            attribute.g.iter().chain(&attribute.graphs).for_each(|graph| graph.external_files(names));
        }
    }
}

impl Sparse {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.values.iter().chain(&self.indices)
    }
}

impl Tensor {
    fn external_files(&self, names: &mut BTreeSet<String>) {
        let locations = self.external_data.iter().filter(|entry| entry.key == "location");
        names.extend(locations.map(|entry| entry.value.clone()));
    }
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
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<Sparse>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    t: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    g: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<Sparse>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<Sparse>,
}

#[derive(Clone, PartialEq, Message)]
struct Sparse {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    /// Location of values that are stored in another file, as key-value pairs such as `location`.
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
    /// Name of a dynamic dimension.
    #[prost(string, tag = "2")]
    dim_param: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_found_among_weights_that_old_exporters_list_as_inputs() {
        let value = |name: &str, dims: &[Option<i64>]| {
            let named = |dim_value: &Option<i64>| if dim_value.is_none() { "N" } else { "" }.to_owned();
            let dim = |dim_value| Dimension { dim_param: named(&dim_value), dim_value };
            let dim = dims.iter().copied().map(dim).collect();
            let tensor_type = Some(TensorType { shape: Some(Shape { dim }) });
            ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type }) }
        };
        let graph = Graph {
            initializer: vec![
                Tensor { dims: vec![3, 2], data_type: 10, name: "weight".to_owned(), external_data: vec![] },
                Tensor { dims: vec![5], data_type: 1, name: "bias".to_owned(), external_data: vec![] },
            ],
            input: vec![value("image", &[None, Some(3), Some(8), Some(8)]), value("weight", &[Some(3)])],
            ..Graph::default()
        };
        let mut model = Model { graph: Some(graph), ..Model::default() };
        let (name, dims) = ("image".to_owned(), vec![-1, 3, 8, 8]);
        let expected = OnnxInput { name, dims, batch: Some("N".to_owned()), precision: Precision::Fp16 };
        assert_eq!(input_of(&model.encode_to_vec()), Ok(expected));

        model.graph.as_mut().expect("a graph").initializer.clear();
        let message = input_of(&model.encode_to_vec()).expect_err("two inputs");
        assert!(message.contains("image, weight"), "{message}");
        assert!(input_of(b"hello, I am not a model").is_err());
        assert!(input_of(b"").is_err());
    }

    #[test]
    fn the_hash_of_a_model_covers_its_external_weights() {
        let weight = |name: &str, file: &str| {
            let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
            let external_data = vec![entry("offset", "0"), entry("location", file)];
            Tensor { dims: vec![1], data_type: 1, name: name.to_owned(), external_data }
        };
        let initializer = vec![weight("a", "m.data"), weight("b", "m.data")];
        let graph = |initializer| Graph { initializer, ..Graph::default() };
        let of = |graph| Model { graph: Some(graph), ..Model::default() }.encode_to_vec();
        let model = of(graph(initializer));
        assert_eq!(external_files(&model), ["m.data"]);

        let attribute = Attribute {
            t: Some(weight("constant", "constants")),
            g: Some(graph(vec![weight("inner", "branch")])),
            sparse_tensor: Some(Sparse { values: Some(weight("few", "sparse")), indices: None }),
            ..Attribute::default()
        };
        let node = vec![Node { attribute: vec![attribute] }];
        let nested = Graph { node: node.clone(), ..Graph::default() };
        assert_eq!(external_files(&of(nested)), ["branch", "constants", "sparse"]);
        let function = Model { functions: vec![Function { node }], ..Model::default() };
        assert_eq!(external_files(&function.encode_to_vec()), ["branch", "constants", "sparse"]);
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
            std::fs::write(&path, of(graph(vec![weight("a", outside)]))).expect("write");
            let refused = crate::engine::hash_model(&path).expect_err("not next to the model");
            assert!(refused.to_string().contains("outside its folder"), "{refused}");
        }
        std::fs::write(&path, of(graph(vec![weight("a", "./m.data")]))).expect("write");
        crate::engine::hash_model(&path).expect("next to the model");
    }

    #[test]
    fn overflowing_dimensions_do_not_panic() {
        let weight = Tensor { dims: vec![i64::MAX, 2], data_type: 1, ..Tensor::default() };
        assert_eq!(precision(&[weight.clone(), weight]), Precision::Fp32);
    }
}
