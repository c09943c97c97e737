//! Builds Beam's components: transforms, the collections between them, and their coders.
//!
//! - A transform is added with the ids of the collections that it reads, and returns the id of the one that it makes.
//! - The ids and names of everything that is added begin with those of the builder's owner, so that components which
//!   another SDK has begun can be completed.
//! - All coders are Beam's own, so no runner wraps a value.

use std::collections::HashMap;

use prost::Message;

use super::proto::pipeline::{self as beam, trigger};
use super::urns;

/// The coders of our collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coder {
    /// Bytes.
    Bytes,
    /// A string.
    String,
    /// A pair of bytes.
    Kv,
    /// A pair of bytes and of many bytes.
    KvIterable,
}

/// Ids of coders.
const BYTES: &str = "bytes";
const STRING: &str = "string";
const KV: &str = "kv";
const ITERABLE: &str = "iterable";
const KV_ITERABLE: &str = "kv_iterable";
const GLOBAL_WINDOW: &str = "global_window";

/// Id of the windowing strategy.
const WINDOWING: &str = "global";

/// Id of the environment.
const ENVIRONMENT: &str = "worker";

/// Name of the only output of a transform, and of its only input.
const INPUT: &str = "in";
const OUTPUT: &str = "out";

impl Coder {
    fn id(self) -> &'static str {
        match self {
            Self::Bytes => BYTES,
            Self::String => STRING,
            Self::Kv => KV,
            Self::KvIterable => KV_ITERABLE,
        }
    }
}

/// Adds to components.
pub struct Builder {
    components: beam::Components,
    /// Begins every id.
    id_prefix: String,
    /// Begins the name of every transform.
    name_prefix: String,
    /// Id of the windowing strategy of all collections.
    windowing: String,
    /// The payload of our functions.
    payload: Vec<u8>,
}

impl Builder {
    /// A builder of a whole pipeline, whose functions have this payload and run in this environment.
    pub fn new(payload: Vec<u8>, environment: beam::Environment) -> Self {
        let (components, id_prefix, name_prefix) = Default::default();
        let mut builder =
            Self { components, id_prefix, name_prefix, windowing: WINDOWING.to_owned(), payload };
        builder.begin(environment);
        builder.windowing();
        builder
    }

    /// A builder that adds to `components`. Ids begin with `id_prefix`, names with `name_prefix`, and collections have
    /// the windowing strategy with the id `windowing`.
    pub fn within(
        components: beam::Components,
        id_prefix: String,
        name_prefix: String,
        windowing: String,
        payload: Vec<u8>,
        environment: beam::Environment,
    ) -> Self {
        let mut builder = Self { components, id_prefix, name_prefix, windowing, payload };
        builder.begin(environment);
        builder
    }

    /// The components.
    pub fn finish(self) -> beam::Components {
        self.components
    }

    /// The id of something that is added under the name `local`.
    pub fn id(&self, local: &str) -> String {
        format!("{}{local}", self.id_prefix)
    }

    fn begin(&mut self, environment: beam::Environment) {
        self.components.environments.insert(self.id(ENVIRONMENT), environment);
        let coders: [(&str, &str, &[&str]); 6] = [
            (BYTES, urns::BYTES, &[]),
            (STRING, urns::STRING, &[]),
            (KV, urns::KV, &[BYTES, BYTES]),
            (ITERABLE, urns::ITERABLE, &[BYTES]),
            (KV_ITERABLE, urns::KV, &[BYTES, ITERABLE]),
            (GLOBAL_WINDOW, urns::GLOBAL_WINDOW, &[]),
        ];
        for (id, urn, parts) in coders {
            let component_coder_ids = parts.iter().map(|part| self.id(part)).collect();
            let coder = beam::Coder { spec: Some(function(urn, Vec::new())), component_coder_ids };
            self.components.coders.insert(self.id(id), coder);
        }
    }

    /// One window for everything, which fires once.
    fn windowing(&mut self) {
        let strategy = beam::WindowingStrategy {
            window_fn: Some(function(urns::GLOBAL_WINDOWS, Vec::new())),
            merge_status: beam::merge_status::Enum::NonMerging.into(),
            window_coder_id: self.id(GLOBAL_WINDOW),
            trigger: Some(beam::Trigger { trigger: Some(trigger::Trigger::Default(trigger::Default {})) }),
            accumulation_mode: beam::accumulation_mode::Enum::Discarding.into(),
            output_time: beam::output_time::Enum::EndOfWindow.into(),
            closing_behavior: beam::closing_behavior::Enum::EmitIfNonempty.into(),
            on_time_behavior: beam::on_time_behavior::Enum::FireAlways.into(),
            assigns_to_one_window: true,
            environment_id: self.id(ENVIRONMENT),
            ..Default::default()
        };
        self.components.windowing_strategies.insert(self.windowing.clone(), strategy);
    }

    /// A transform that the runner itself executes.
    pub fn primitive(&mut self, local: &str, urn: &str, inputs: &[&str], coder: Coder) -> String {
        let inputs = match inputs {
            [input] => HashMap::from([(INPUT.to_owned(), (*input).to_owned())]),
            several => {
                let several = several.iter().enumerate();
                several.map(|(number, input)| (number.to_string(), (*input).to_owned())).collect()
            }
        };
        let output = self.collection(local, coder);
        let transform = beam::PTransform {
            spec: Some(function(urn, Vec::new())),
            inputs,
            outputs: HashMap::from([(OUTPUT.to_owned(), output.clone())]),
            ..Default::default()
        };
        self.transform(local, transform);
        output
    }

    /// One of our functions.
    pub fn par_do(&mut self, local: &str, urn: &str, input: &str, coder: Coder) -> String {
        let output = self.collection(local, coder);
        self.function(local, urn, input, HashMap::from([(OUTPUT.to_owned(), output.clone())]));
        output
    }

    /// One of our functions that makes no collection.
    pub fn last(&mut self, local: &str, urn: &str, input: &str) {
        self.function(local, urn, input, HashMap::new());
    }

    fn function(&mut self, local: &str, urn: &str, input: &str, outputs: HashMap<String, String>) {
        let do_fn = Some(function(urn, self.payload.clone()));
        let payload = beam::ParDoPayload { do_fn, ..Default::default() };
        let transform = beam::PTransform {
            spec: Some(function(urns::PAR_DO, payload.encode_to_vec())),
            inputs: HashMap::from([(INPUT.to_owned(), input.to_owned())]),
            outputs,
            environment_id: self.id(ENVIRONMENT),
            ..Default::default()
        };
        self.transform(local, transform);
    }

    /// A transform that consists of `parts`.
    pub fn composite(&mut self, local: &str, urn: &str, input: &str, output: &str, parts: &[&str]) {
        let transform = beam::PTransform {
            spec: Some(function(urn, Vec::new())),
            subtransforms: parts.iter().map(|part| self.id(part)).collect(),
            inputs: HashMap::from([(INPUT.to_owned(), input.to_owned())]),
            outputs: HashMap::from([(OUTPUT.to_owned(), output.to_owned())]),
            ..Default::default()
        };
        self.transform(local, transform);
    }

    fn transform(&mut self, local: &str, transform: beam::PTransform) {
        let unique_name = format!("{}{local}", self.name_prefix);
        let transform = beam::PTransform { unique_name, ..transform };
        self.components.transforms.insert(self.id(local), transform);
    }

    /// The collection that a transform makes. Flink's and Spark's runners need other ids than those of transforms.
    fn collection(&mut self, transform: &str, coder: Coder) -> String {
        let id = self.id(&format!("{transform}.out"));
        let collection = beam::PCollection {
            unique_name: id.clone(),
            coder_id: self.id(coder.id()),
            is_bounded: beam::is_bounded::Enum::Bounded.into(),
            windowing_strategy_id: self.windowing.clone(),
            ..Default::default()
        };
        self.components.pcollections.insert(id.clone(), collection);
        id
    }
}

fn function(urn: &str, payload: Vec<u8>) -> beam::FunctionSpec {
    beam::FunctionSpec { urn: urn.to_owned(), payload }
}

/// Checks of components, for tests.
#[cfg(test)]
pub mod checks {
    use std::collections::HashSet;

    use super::*;

    /// Check that every id in `all` resolves, that no id is that of a transform and of a collection, and that names of
    /// transforms are unique.
    pub fn every_id_resolves(all: &beam::Components) {
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
        assert!(all.pcollections.keys().all(|id| !all.transforms.contains_key(id)), "ids are unique");
        for transform in all.transforms.values() {
            let collections = transform.inputs.values().chain(transform.outputs.values());
            assert!(collections.clone().all(|id| all.pcollections.contains_key(id)), "{transform:?}");
            assert!(transform.subtransforms.iter().all(|id| all.transforms.contains_key(id)));
        }
        let names: HashSet<_> = all.transforms.values().map(|transform| &transform.unique_name).collect();
        assert_eq!(names.len(), all.transforms.len());
    }

    /// Check that each transform of `order`, the ids of a pipeline or of a composite, comes after the producers of its
    /// inputs. `made` are the collections that exist before.
    pub fn order_is_topological(all: &beam::Components, order: &[String], made: &[String]) {
        let mut made: HashSet<_> = made.iter().collect();
        for id in order {
            let transform = &all.transforms[id];
            assert!(transform.inputs.values().all(|input| made.contains(input)), "{id}");
            made.extend(transform.outputs.values());
        }
    }

    /// The functions among the transforms, by URN, with their payloads. Checks that they have the environment, and that
    /// other transforms have neither an environment nor a payload.
    pub fn functions(all: &beam::Components) -> Vec<(String, Vec<u8>)> {
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
            functions.push((do_fn.urn, do_fn.payload));
        }
        functions.sort_unstable();
        functions
    }
}
