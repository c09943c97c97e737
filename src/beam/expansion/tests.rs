//! Requests like those of SDKs, and what they are expanded to.

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
    let mut expected =
        [urns::KEY, urns::START, urns::LIST_GIVEN, urns::UNGROUP, urns::SCORE, urns::FINISH, urns::REPORT];
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
}

#[test]
fn the_input_of_the_file_does_not_matter() {
    let mut bench = Bench::new();
    let here = std::env::current_dir().expect("a folder").to_string_lossy().into_owned();
    for (uri, set) in [("\"in\"", ""), ("\"-\"", ""), ("[\"a.tar\", \"-\"]", ""), ("\"/in\"", "input.uri=-")]
    {
        let text = bench.pipeline().replace("[model]", &format!("[input]\nuri = {uri}\n[model]"));
        let set: Vec<_> = [set].into_iter().filter(|set| !set.is_empty()).collect();
        let json = serde_json::json!({"pipeline": text, "output": "gs://bucket/out", "set": set});
        bench.set_payload(&json.to_string());
        let payload = String::from_utf8(bench.payload().encode()).expect("JSON");
        // a service in another folder makes the same payload
        assert!(!payload.contains(&here), "{payload}");
    }
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

#[test]
fn a_trigger_that_may_fire_twice_is_refused_and_named() {
    use trigger::{Always, Default, ElementCount, Never, Repeat, Trigger};
    let mut bench = Bench::new();
    let mut expand = |trigger: Option<Trigger>| {
        let strategy = bench.components().windowing_strategies.get_mut("theirs").expect("a strategy");
        strategy.trigger = Some(beam::Trigger { trigger });
        bench.expand().map(drop).map_err(|error| error.to_string())
    };
    let count = Trigger::ElementCount(ElementCount { element_count: 1000 });
    let again = Repeat { subtrigger: Some(Box::new(beam::Trigger { trigger: Some(count.clone()) })) };
    let once = [Trigger::Default(Default {}), Trigger::Never(Never {}), Trigger::Always(Always {})];
    for trigger in once.map(Some).into_iter().chain([None]) {
        assert_eq!(expand(trigger), Ok(()));
    }
    for (trigger, name) in [(count, "AfterCount"), (Trigger::Repeat(Box::new(again)), "Repeatedly")] {
        let refusal = expand(Some(trigger)).expect_err("refused");
        assert!(refusal.contains(&format!("has the trigger {name}, which may fire more")), "{refusal}");
    }
}
