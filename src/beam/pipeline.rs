//! The portable pipeline of a job. Pure: the payload and an environment in, Beam's message out.
//!
//! ```text
//! impulse ─→ list ─→ reshuffle ─→ score ─→ group ─→ finish
//!   bytes     KV        KV          KV      KV<bytes, Iterable<bytes>>
//! ```
//!
//! - `list` emits a key and the JSON of a shard for each shard. The reshuffle spreads them over the workers.
//! - `score` emits one report for each shard, all with one key. So `finish` runs once, after the last shard.
//! - `reshuffle` has the URN of Beam's own transform. A runner without it runs what it consists of: a grouping and
//!   `ungroup`.
//! - All coders are Beam's own, so no runner wraps a value.

use std::collections::HashMap;

use prost::Message;

use super::environment::Environment;
use super::payload::Payload;
use super::proto::pipeline::{self as beam, trigger};
use super::urns;

/// Ids of coders.
const BYTES: &str = "bytes";
const KV: &str = "kv";
const ITERABLE: &str = "iterable";
const KV_ITERABLE: &str = "kv_iterable";
const GLOBAL_WINDOW: &str = "global_window";

/// Id of the windowing strategy.
const WINDOWING: &str = "global";

/// Id of the environment.
const ENVIRONMENT: &str = "worker";

/// Names of the only input and the only output of a transform.
const INPUT: &str = "in";
const OUTPUT: &str = "out";

/// The pipeline that runs `payload` in `environment`, which gets the payload's staged files as dependencies.
pub fn pipeline(payload: &Payload, environment: &Environment) -> beam::Pipeline {
    let payload_json = payload.encode();
    let mut graph = Graph { payload_json, components: beam::Components::default() };
    graph.coders();
    graph.windowing();
    graph.components.environments.insert(ENVIRONMENT.to_owned(), environment.message(&payload.staged));
    graph.primitive("impulse", urns::IMPULSE, None, BYTES);
    graph.par_do("list", urns::LIST, "impulse", Some(KV));
    graph.primitive("reshuffle/group", urns::GROUP_BY_KEY, Some("list"), KV_ITERABLE);
    graph.par_do("reshuffle/ungroup", urns::UNGROUP, "reshuffle/group", Some(KV));
    graph.composite("reshuffle", urns::RESHUFFLE, "list", &["reshuffle/group", "reshuffle/ungroup"]);
    graph.par_do("score", urns::SCORE, "reshuffle/ungroup", Some(KV));
    graph.primitive("group", urns::GROUP_BY_KEY, Some("score"), KV_ITERABLE);
    graph.par_do("finish", urns::FINISH, "group", None);
    let roots = ["impulse", "list", "reshuffle", "score", "group", "finish"];
    beam::Pipeline {
        components: Some(graph.components),
        root_transform_ids: roots.map(str::to_owned).into(),
        ..Default::default()
    }
}

/// The id of the collection that a transform makes. Flink's and Spark's runners need other ids than those of transforms.
fn output_of(transform: &str) -> String {
    format!("{transform}.out")
}

/// A pipeline that grows.
struct Graph {
    payload_json: Vec<u8>,
    components: beam::Components,
}

impl Graph {
    fn coders(&mut self) {
        let coders: [(&str, &str, &[&str]); 5] = [
            (BYTES, urns::BYTES, &[]),
            (KV, urns::KV, &[BYTES, BYTES]),
            (ITERABLE, urns::ITERABLE, &[BYTES]),
            (KV_ITERABLE, urns::KV, &[BYTES, ITERABLE]),
            (GLOBAL_WINDOW, urns::GLOBAL_WINDOW, &[]),
        ];
        self.components.coders.extend(coders.map(|(id, urn, components)| {
            let component_coder_ids = components.iter().map(|&id| id.to_owned()).collect();
            (id.to_owned(), beam::Coder { spec: Some(function(urn, Vec::new())), component_coder_ids })
        }));
    }

    /// One window for everything, which fires once.
    fn windowing(&mut self) {
        let strategy = beam::WindowingStrategy {
            window_fn: Some(function(urns::GLOBAL_WINDOWS, Vec::new())),
            merge_status: beam::merge_status::Enum::NonMerging.into(),
            window_coder_id: GLOBAL_WINDOW.to_owned(),
            trigger: Some(beam::Trigger { trigger: Some(trigger::Trigger::Default(trigger::Default {})) }),
            accumulation_mode: beam::accumulation_mode::Enum::Discarding.into(),
            output_time: beam::output_time::Enum::EndOfWindow.into(),
            closing_behavior: beam::closing_behavior::Enum::EmitIfNonempty.into(),
            on_time_behavior: beam::on_time_behavior::Enum::FireAlways.into(),
            assigns_to_one_window: true,
            environment_id: ENVIRONMENT.to_owned(),
            ..Default::default()
        };
        self.components.windowing_strategies.insert(WINDOWING.to_owned(), strategy);
    }

    /// A transform that the runner itself executes.
    fn primitive(&mut self, id: &str, urn: &str, input: Option<&str>, coder: &str) {
        self.collection(id, coder);
        let transform = beam::PTransform {
            spec: Some(function(urn, Vec::new())),
            inputs: input.map(|input| (INPUT.to_owned(), output_of(input))).into_iter().collect(),
            outputs: HashMap::from([(OUTPUT.to_owned(), output_of(id))]),
            ..Default::default()
        };
        self.transform(id, transform);
    }

    /// One of our functions. `coder` is that of its output, if it has one.
    fn par_do(&mut self, id: &str, urn: &str, input: &str, coder: Option<&str>) {
        let do_fn = Some(function(urn, self.payload_json.clone()));
        let payload = beam::ParDoPayload { do_fn, ..Default::default() };
        if let Some(coder) = coder {
            self.collection(id, coder);
        }
        let transform = beam::PTransform {
            spec: Some(function(urns::PAR_DO, payload.encode_to_vec())),
            inputs: HashMap::from([(INPUT.to_owned(), output_of(input))]),
            outputs: coder.map(|_| (OUTPUT.to_owned(), output_of(id))).into_iter().collect(),
            environment_id: ENVIRONMENT.to_owned(),
            ..Default::default()
        };
        self.transform(id, transform);
    }

    /// A transform that consists of `parts`, and has the output of the last one.
    fn composite(&mut self, id: &str, urn: &str, input: &str, parts: &[&str]) {
        let output = parts.last().copied().unwrap_or(input);
        let transform = beam::PTransform {
            spec: Some(function(urn, Vec::new())),
            subtransforms: parts.iter().map(|&part| part.to_owned()).collect(),
            inputs: HashMap::from([(INPUT.to_owned(), output_of(input))]),
            outputs: HashMap::from([(OUTPUT.to_owned(), output_of(output))]),
            ..Default::default()
        };
        self.transform(id, transform);
    }

    fn transform(&mut self, id: &str, transform: beam::PTransform) {
        let transform = beam::PTransform { unique_name: id.to_owned(), ..transform };
        self.components.transforms.insert(id.to_owned(), transform);
    }

    fn collection(&mut self, transform: &str, coder: &str) {
        let collection = beam::PCollection {
            unique_name: output_of(transform),
            coder_id: coder.to_owned(),
            is_bounded: beam::is_bounded::Enum::Bounded.into(),
            windowing_strategy_id: WINDOWING.to_owned(),
            ..Default::default()
        };
        self.components.pcollections.insert(output_of(transform), collection);
    }
}

fn function(urn: &str, payload: Vec<u8>) -> beam::FunctionSpec {
    beam::FunctionSpec { urn: urn.to_owned(), payload }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::beam::payload::VERSION;

    fn example() -> (Payload, beam::Pipeline) {
        let payload = Payload {
            version: VERSION,
            path: "/a/p.toml".into(),
            text: "name = \"p\"".to_owned(),
            overrides: crate::config::Overrides::default(),
            model_sha256: String::new(),
            staged: Vec::new(),
        };
        let environment = Environment::External { pool: "localhost:1".to_owned() };
        let pipeline = pipeline(&payload, &environment);
        (payload, pipeline)
    }

    #[test]
    fn every_id_resolves() {
        let (_, pipeline) = example();
        let all = pipeline.components.expect("components");
        for coder in all.coders.values() {
            assert!(coder.component_coder_ids.iter().all(|id| all.coders.contains_key(id)), "{coder:?}");
        }
        for strategy in all.windowing_strategies.values() {
            assert!(all.coders.contains_key(&strategy.window_coder_id));
            assert!(all.environments.contains_key(&strategy.environment_id));
        }
        for collection in all.pcollections.values() {
            assert!(all.coders.contains_key(&collection.coder_id), "{collection:?}");
            assert!(all.windowing_strategies.contains_key(&collection.windowing_strategy_id));
        }
        assert_eq!(all.transforms.len(), 8);
        assert!(all.pcollections.keys().all(|id| !all.transforms.contains_key(id)), "ids are unique");
        for transform in all.transforms.values() {
            let collections = transform.inputs.values().chain(transform.outputs.values());
            assert!(collections.clone().all(|id| all.pcollections.contains_key(id)), "{transform:?}");
            assert!(transform.subtransforms.iter().all(|id| all.transforms.contains_key(id)));
        }
        assert!(pipeline.root_transform_ids.iter().all(|id| all.transforms.contains_key(id)));
        let names: HashSet<_> = all.transforms.values().map(|transform| &transform.unique_name).collect();
        assert_eq!(names.len(), all.transforms.len());
    }

    #[test]
    fn roots_come_after_what_they_read() {
        let (_, pipeline) = example();
        let all = pipeline.components.expect("components");
        let mut made = HashSet::new();
        let mut seen = HashSet::new();
        for id in &pipeline.root_transform_ids {
            let transform = &all.transforms[id];
            assert!(transform.inputs.values().all(|input| made.contains(input)), "{id}");
            made.extend(transform.outputs.values());
            seen.insert(id);
            seen.extend(&transform.subtransforms);
        }
        assert_eq!(seen.len(), all.transforms.len(), "every transform is a root or a part of one");
    }

    #[test]
    fn only_our_functions_have_the_environment_and_all_carry_the_payload() {
        let (payload, pipeline) = example();
        let all = pipeline.components.expect("components");
        let mut functions = Vec::new();
        for transform in all.transforms.values() {
            let spec = transform.spec.as_ref().expect("a spec");
            if spec.urn != urns::PAR_DO {
                assert_eq!((transform.environment_id.as_str(), spec.payload.len()), ("", 0), "{transform:?}");
                continue;
            }
            assert!(all.environments.contains_key(&transform.environment_id));
            let par_do = beam::ParDoPayload::decode(&spec.payload[..]).expect("a payload");
            let do_fn = par_do.do_fn.expect("a function");
            assert_eq!(serde_json::from_slice::<Payload>(&do_fn.payload).expect("JSON"), payload);
            functions.push(do_fn.urn);
        }
        functions.sort_unstable();
        assert_eq!(functions, [urns::FINISH, urns::LIST, urns::SCORE, urns::UNGROUP]);
    }

    #[test]
    fn collections_have_the_coders_of_the_contract() {
        let (_, pipeline) = example();
        let all = pipeline.components.expect("components");
        let coder = |id: &str| all.pcollections[&output_of(id)].coder_id.as_str();
        assert_eq!(["impulse", "list", "reshuffle/ungroup", "score"].map(coder), [BYTES, KV, KV, KV]);
        assert_eq!(["reshuffle/group", "group"].map(coder), [KV_ITERABLE; 2]);
        assert!(all.transforms["finish"].outputs.is_empty());
    }
}
