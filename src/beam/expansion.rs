//! Expands the transform that pipelines of other SDKs use: from the request of an SDK to the components that the runner
//! executes.
//!
//! - The input is one bounded collection of URIs, which are strings or bytes, in the global window.
//! - The payload of the transform is the text of a pipeline file, or JSON with the file's `path`, its text as `pipeline`,
//!   or both, and overrides as `output` and `set`. `input.uri` of the file is ignored.
//! - The output is a collection of strings: the report of each shard as JSON.
//! - The request's components are not changed. Ids of new ones begin with the request's namespace, as SDKs require.
//! - Only the pipeline file, the model and the labels are read. Workers check the input and the output.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::absolute::absolute_path;
use super::coders::Coder;
use super::components::Builder;
use super::environment::Environment;
use super::payload::StagedFile;
use super::pipeline::{Steps, add_transform};
use super::prepare::prepare;
use super::proto::expansion::{ExpansionRequest, ExpansionResponse};
use super::proto::pipeline as beam;
use super::urns;
use crate::config::Overrides;
use crate::error::{ConfigError, Error};
use crate::plan::Plan;
use crate::regular_file::read_text;

/// The name of the payload in messages. Paths in the payload are relative to the current folder.
const PAYLOAD: &str = "the payload";

/// The name of the output.
const OUTPUT: &str = "out";

/// Why a request cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum ExpansionError {
    /// The SDK asks for an unknown transform, or the input cannot be used.
    #[error("{0}")]
    Request(String),
    /// The payload is neither of the two forms.
    #[error(
        "the payload must be the text of a pipeline file, or JSON with the keys path, pipeline, output and set: \
         {0}"
    )]
    Payload(String),
    /// The pipeline file, the model or the labels cannot be used.
    #[error(transparent)]
    Pipeline(#[from] Error),
}

/// The payload of the transform.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    /// The pipeline file. Model paths are relative to its folder, as on the command line.
    #[serde(default)]
    path: Option<PathBuf>,
    /// The text of the pipeline file; by default, `path` is read.
    #[serde(default)]
    pipeline: Option<String>,
    /// Replaces `output.uri`.
    #[serde(default)]
    output: Option<String>,
    /// `section.key=value`, as the command line has it.
    #[serde(default)]
    set: Vec<String>,
}

/// The response to a request, with the files that its workers need. The workers run in `environment`. Blocks, because
/// the model is hashed.
///
/// # Errors
/// If the input or the payload cannot be used.
pub fn expand(
    request: ExpansionRequest,
    environment: &Environment,
) -> Result<(ExpansionResponse, Vec<StagedFile>), ExpansionError> {
    let ExpansionRequest { components, transform, namespace, .. } = request;
    let components = components.unwrap_or_default();
    let mut transform = transform.unwrap_or_default();
    let spec = transform.spec.clone().unwrap_or_default();
    if spec.urn != urns::TRANSFORM {
        let (urn, known) = (spec.urn, urns::TRANSFORM);
        return Err(ExpansionError::Request(format!("sluice has no transform {urn:?}, only {known:?}")));
    }
    let (uris, windowing) = input(&components, &transform).map_err(ExpansionError::Request)?;
    let configuration = Configuration::decode(&spec.payload)?;
    let (path, pipeline) = configuration.file()?;
    let Configuration { output, set, .. } = configuration;
    let overrides = Overrides { inputs: Vec::new(), output, set };
    let (payload, _) = prepare(path, pipeline, &overrides, Plan::without_inputs)?;
    let mut builder = Builder::within(
        components,
        format!("{namespace}_"),
        format!("{}/", transform.unique_name),
        windowing,
        payload.encode(),
        environment.message(&payload.staged),
    );
    let Steps { transforms, output } = add_transform(&mut builder, &uris);
    transform.subtransforms = transforms;
    transform.outputs = HashMap::from([(OUTPUT.to_owned(), output)]);
    let response = ExpansionResponse {
        components: Some(builder.finish()),
        transform: Some(transform),
        ..ExpansionResponse::default()
    };
    Ok((response, payload.staged))
}

impl Configuration {
    fn decode(payload: &[u8]) -> Result<Self, ExpansionError> {
        let text =
            std::str::from_utf8(payload).map_err(|error| ExpansionError::Payload(error.to_string()))?;
        // no TOML begins like this
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).map_err(|error| ExpansionError::Payload(error.to_string()));
        }
        Ok(Self { pipeline: Some(text.to_owned()), ..Self::default() })
    }

    /// The path and the text of the pipeline file.
    fn file(&self) -> Result<(PathBuf, String), ExpansionError> {
        let path = self.path.clone().map(|path| absolute_path(&path)).transpose().map_err(Error::from)?;
        let text = match (&self.pipeline, &path) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path)
                .map_err(|source| Error::from(ConfigError::Read { path: path.clone(), source }))?,
            (None, None) => {
                return Err(ExpansionError::Payload("it has neither path nor pipeline".to_owned()));
            }
        };
        Ok((path.unwrap_or_else(|| PathBuf::from(PAYLOAD)), text))
    }
}

/// The collection of URIs, and its windowing strategy.
fn input(components: &beam::Components, transform: &beam::PTransform) -> Result<(String, String), String> {
    let mut inputs = transform.inputs.values();
    let (Some(id), None) = (inputs.next(), inputs.next()) else {
        let found = transform.inputs.len();
        return Err(format!("the transform takes one collection, of URIs, and got {found}"));
    };
    let collection = components.pcollections.get(id);
    let collection = collection.ok_or_else(|| format!("the request has no collection {id:?}"))?;
    if collection.is_bounded != i32::from(beam::is_bounded::Enum::Bounded) {
        return Err("the collection of URIs is unbounded, but must be bounded".to_owned());
    }
    let windowing = &collection.windowing_strategy_id;
    let strategy = components.windowing_strategies.get(windowing);
    let strategy = strategy.ok_or_else(|| format!("the request has no windowing strategy {windowing:?}"))?;
    let window_fn = strategy.window_fn.as_ref().map_or("", |window_fn| &window_fn.urn);
    if window_fn != urns::GLOBAL_WINDOWS {
        return Err(format!(
            "the collection of URIs has windows ({window_fn}); the transform needs the global window, because one run \
             scores all of them"
        ));
    }
    check_coder(components, &collection.coder_id)?;
    Ok((id.clone(), windowing.clone()))
}

/// Check that elements are strings or bytes.
fn check_coder(components: &beam::Components, id: &str) -> Result<(), String> {
    let advice = "URIs must be strings or bytes; in Python, a step before the transform can declare that with \
                  .with_output_types(str)";
    let mut coder = Coder::resolve(&components.coders, id).map_err(|error| format!("{error}; {advice}"))?;
    while let Coder::LengthPrefix(inner) = coder {
        coder = Coder::clone(&inner);
    }
    match coder {
        Coder::Bytes | Coder::String => Ok(()),
        other => Err(format!("the elements of the input are encoded as {}; {advice}", other.urn())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::beam::components::checks;
    use crate::beam::payload::Payload;

    /// A folder with a model, and a request like those of SDKs.
    struct Bench {
        folder: TempDir,
        request: ExpansionRequest,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            fs::write(folder.path().join("m.plan"), "m").expect("a file");
            let spec = |urn: &str, payload: &[u8]| {
                Some(beam::FunctionSpec { urn: urn.to_owned(), payload: payload.to_owned() })
            };
            let coder = |urn: &str| beam::Coder { spec: spec(urn, b""), component_coder_ids: Vec::new() };
            let collection = beam::PCollection {
                unique_name: "uris".to_owned(),
                coder_id: "text".to_owned(),
                is_bounded: beam::is_bounded::Enum::Bounded.into(),
                windowing_strategy_id: "theirs".to_owned(),
                ..Default::default()
            };
            let strategy = beam::WindowingStrategy {
                window_fn: spec(urns::GLOBAL_WINDOWS, b""),
                window_coder_id: "window".to_owned(),
                environment_id: "python".to_owned(),
                ..Default::default()
            };
            let fake = beam::PTransform {
                unique_name: "impulse_input".to_owned(),
                spec: spec(urns::IMPULSE, b""),
                outputs: HashMap::from([("out".to_owned(), "uris".to_owned())]),
                ..Default::default()
            };
            let entry = |id: &str, coder| (id.to_owned(), coder);
            let components = beam::Components {
                transforms: HashMap::from([("impulse_input".to_owned(), fake)]),
                pcollections: HashMap::from([("uris".to_owned(), collection)]),
                windowing_strategies: HashMap::from([("theirs".to_owned(), strategy)]),
                coders: HashMap::from([
                    entry("text", coder(urns::STRING)),
                    entry("window", coder(urns::GLOBAL_WINDOW)),
                    entry("pickled", coder("beam:coder:pickled_python:v1")),
                ]),
                environments: HashMap::from([("python".to_owned(), beam::Environment::default())]),
            };
            let transform = beam::PTransform {
                unique_name: "Main/Score".to_owned(),
                spec: spec(urns::TRANSFORM, b""),
                inputs: HashMap::from([("input".to_owned(), "uris".to_owned())]),
                ..Default::default()
            };
            let request = ExpansionRequest {
                components: Some(components),
                transform: Some(transform),
                namespace: "external_7".to_owned(),
                ..Default::default()
            };
            let mut bench = Self { folder, request };
            bench.set_payload(&bench.pipeline());
            bench
        }

        /// The text of a pipeline file without an input.
        fn pipeline(&self) -> String {
            let model = self.folder.path().join("m.plan");
            format!(
                "name = \"t\"\n[preprocess]\nresize = {{ width = 2, height = 2 }}\n[model]\npath = {model:?}\n\
                 [engine]\nkind = \"tensorrt\"\n[output]\nuri = \"out\"\n"
            )
        }

        fn components(&mut self) -> &mut beam::Components {
            self.request.components.as_mut().expect("components")
        }

        fn collection(&mut self) -> &mut beam::PCollection {
            self.components().pcollections.get_mut("uris").expect("a collection")
        }

        fn transform(&mut self) -> &mut beam::PTransform {
            self.request.transform.as_mut().expect("a transform")
        }

        fn set_payload(&mut self, payload: &str) {
            self.transform().spec.as_mut().expect("a spec").payload = payload.as_bytes().to_owned();
        }

        fn expand(&self) -> Result<(ExpansionResponse, Vec<StagedFile>), ExpansionError> {
            expand(self.request.clone(), &Environment::External { pool: "localhost:1".to_owned() })
        }

        /// The payload of the functions of an expanded transform.
        fn payload(&self) -> Payload {
            let (response, _) = self.expand().expect("expanded");
            let functions = checks::functions(&response.components.expect("components"));
            let decode = |(_, encoded): &(String, Vec<u8>)| Payload::decode(encoded).expect("a payload");
            let payloads: Vec<_> = functions.iter().map(decode).collect();
            assert!(payloads.iter().all(|payload| *payload == payloads[0]));
            payloads.into_iter().next().expect("a function")
        }

        fn refusal(&self) -> String {
            self.expand().expect_err("refused").to_string()
        }
    }

    #[test]
    fn a_payload_may_name_the_pipeline_file_whose_folder_has_the_model() {
        let mut bench = Bench::new();
        let model = bench.folder.path().join("m.plan");
        let text = bench.pipeline().replace(&format!("{model:?}"), "\"m.plan\"");
        let path = bench.folder.path().join("p.toml");
        bench.set_payload(&serde_json::json!({"pipeline": text, "path": path}).to_string());
        assert_eq!(bench.payload().staged[0].path, model);
        bench.set_payload(&serde_json::json!({"path": path}).to_string());
        assert!(bench.refusal().contains("p.toml"), "{}", bench.refusal());
        fs::write(&path, &text).expect("a file");
        assert_eq!((bench.payload().text, bench.payload().path), (text.clone(), path));
        bench.set_payload(&text);
        assert!(bench.refusal().contains("m.plan"), "{}", bench.refusal());
        bench.set_payload("{}");
        assert!(bench.refusal().contains("neither path nor pipeline"), "{}", bench.refusal());
    }

    #[test]
    fn the_components_of_the_request_are_completed() {
        let bench = Bench::new();
        let (response, files) = bench.expand().expect("expanded");
        let (all, transform) =
            (response.components.expect("components"), response.transform.expect("a transform"));
        checks::every_id_resolves(&all);
        let asked = bench.request.components.as_ref().expect("components");
        for (id, theirs) in &asked.transforms {
            assert_eq!(&all.transforms[id], theirs);
        }
        for (id, theirs) in &asked.coders {
            assert_eq!(&all.coders[id], theirs);
        }
        assert_eq!(all.windowing_strategies, asked.windowing_strategies);
        assert_eq!(all.environments["external_7_worker"].dependencies.len(), files.len());
        // an SDK takes what begins with the namespace
        let ids = all.transforms.keys().chain(all.pcollections.keys()).chain(all.coders.keys());
        let new: Vec<_> = ids.filter(|id| id.starts_with("external_7_")).collect();
        let old = asked.transforms.len() + asked.pcollections.len() + asked.coders.len();
        let count = all.transforms.len() + all.pcollections.len() + all.coders.len();
        assert_eq!(new.len() + old, count);
        let new = all.transforms.iter().filter(|(id, _)| id.starts_with("external_7_"));
        assert!(new.clone().all(|(_, transform)| transform.unique_name.starts_with("Main/Score/")));
        // the composite is the one that was asked for
        assert_eq!(
            (transform.unique_name.as_str(), &transform.inputs["input"]),
            ("Main/Score", &"uris".to_owned())
        );
        checks::order_is_topological(&all, &transform.subtransforms, &["uris".to_owned()]);
        let parts = new.clone().map(|(_, transform)| transform.subtransforms.len()).sum::<usize>();
        assert_eq!(transform.subtransforms.len() + parts, new.count(), "each is a part");
        let outputs: Vec<_> = transform.outputs.values().collect();
        let [output] = outputs[..] else { panic!("{outputs:?}") };
        let coder = &all.pcollections[output].coder_id;
        assert_eq!(all.coders[coder].spec.as_ref().expect("a spec").urn, urns::STRING);
    }

    #[test]
    fn the_functions_are_those_of_the_transform() {
        let (response, _) = Bench::new().expand().expect("expanded");
        let mut all = response.components.expect("components");
        all.transforms.retain(|id, _| id.starts_with("external_7_"));
        let functions = checks::functions(&all);
        let urns: Vec<_> = functions.iter().map(|(urn, _)| urn.as_str()).collect();
        let mut expected = [
            urns::KEY,
            urns::START,
            urns::LIST_GIVEN,
            urns::UNGROUP,
            urns::SCORE,
            urns::FINISH,
            urns::REPORT,
        ];
        expected.sort_unstable();
        assert_eq!(urns, expected);
    }

    #[test]
    fn the_payload_is_a_pipeline_file_or_json_that_overrides_it() {
        let mut bench = Bench::new();
        let here = std::env::current_dir().expect("a folder");
        let plain = bench.payload();
        assert_eq!(plain.file().expect("a file").output.uri, format!("{}/out", here.display()));
        assert_eq!(plain.staged.len(), 1);
        let json = serde_json::json!({
            "pipeline": bench.pipeline(),
            "output": "gs://bucket/out",
            "set": ["engine.batch_size=3"],
        });
        bench.set_payload(&format!(" {json}"));
        let file = bench.payload().file().expect("a file");
        assert_eq!((file.output.uri.as_str(), file.engine.batch_size), ("gs://bucket/out", 3));
        // the input of the file does not matter
        bench.set_payload(&bench.pipeline().replace("[model]", "[input]\nuri = \"in\"\n[model]"));
        assert!(bench.expand().is_ok());
    }

    #[test]
    fn a_wrong_payload_is_an_error_with_our_words() {
        let mut bench = Bench::new();
        let pipeline = bench.pipeline();
        for (payload, expected) in [
            ("{\"pipeline\": \"\", \"outputs\": \"x\"}".to_owned(), "unknown field `outputs`"),
            (pipeline.replace("[model]", "[modle]"), "unknown key modle, did you mean model?"),
            (pipeline.replace("name = \"t\"", "name = t"), "the payload is not valid TOML: line 1"),
            (pipeline.replace("uri = \"out\"", ""), "output.uri: is empty"),
            (pipeline.replace("m.plan", "n.plan"), "n.plan"),
        ] {
            bench.set_payload(&payload);
            assert!(bench.refusal().contains(expected), "{}", bench.refusal());
        }
        bench.transform().spec.as_mut().expect("a spec").payload = vec![0xff];
        assert!(bench.refusal().contains("the payload must be"), "{}", bench.refusal());
    }

    #[test]
    fn strings_and_bytes_are_the_only_elements() {
        let mut bench = Bench::new();
        let prefixed = |inner: &str| beam::Coder {
            spec: Some(beam::FunctionSpec { urn: urns::LENGTH_PREFIX.to_owned(), payload: Vec::new() }),
            component_coder_ids: vec![inner.to_owned()],
        };
        let mut pair = prefixed("text");
        pair.component_coder_ids.push("text".to_owned());
        pair.spec.as_mut().expect("a spec").urn = urns::KV.to_owned();
        let mut bytes = prefixed("text");
        bytes.component_coder_ids.clear();
        bytes.spec.as_mut().expect("a spec").urn = urns::BYTES.to_owned();
        let coders = [("prefixed", prefixed("text")), ("pair", pair), ("bytes", bytes)];
        bench.components().coders.extend(coders.map(|(id, coder)| (id.to_owned(), coder)));
        for (coder, expected) in [
            ("text", None),
            ("bytes", None),
            ("prefixed", None),
            ("pair", Some("beam:coder:kv:v1; URIs must be strings or bytes")),
            ("pickled", Some("beam:coder:pickled_python:v1, which sluice does not support; URIs must be")),
            ("none", Some("no coder none")),
        ] {
            bench.collection().coder_id = coder.to_owned();
            match (bench.expand(), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (other, _) => panic!("{coder}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_input_without_an_end_or_with_windows_is_refused() {
        let mut bench = Bench::new();
        bench.transform().spec.as_mut().expect("a spec").urn = "sluice:transform:sort:v1".to_owned();
        assert!(bench.refusal().contains("sluice has no transform"), "{}", bench.refusal());
        let mut bench = Bench::new();
        bench.collection().is_bounded = beam::is_bounded::Enum::Unbounded.into();
        assert!(bench.refusal().contains("is unbounded"), "{}", bench.refusal());
        let mut bench = Bench::new();
        let strategy = bench.components().windowing_strategies.get_mut("theirs").expect("a strategy");
        strategy.window_fn.as_mut().expect("a function").urn = "beam:window_fn:fixed_windows:v1".to_owned();
        assert!(bench.refusal().contains("fixed_windows"), "{}", bench.refusal());
        let mut bench = Bench::new();
        bench.transform().inputs.insert("second".to_owned(), "uris".to_owned());
        assert!(bench.refusal().contains("takes one collection, of URIs, and got 2"), "{}", bench.refusal());
    }
}
