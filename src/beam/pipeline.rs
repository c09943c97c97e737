//! The portable pipelines of sluice. Pure: the payload and an environment in, Beam's message out.
//!
//! ```text
//! impulse ─→ list ─→ reshuffle ─→ score ─→ group ─→ finish
//!   bytes     KV        KV          KV      KV<bytes, Iterable<bytes>>
//! ```
//!
//! - `list` emits a key and the JSON of a shard for each shard. The reshuffle spreads them over the workers.
//! - `score` emits one report for each shard, all with one key. So `finish` runs once, after the last shard.
//! - `reshuffle` has the URN of Beam's own transform. A runner that does not know it runs its parts: a
//!   group-by-key and `ungroup`.
//!
//! The transform for pipelines of other SDKs reads a collection of URIs, and outputs a collection of shard reports:
//!
//! ```text
//! URIs ────→ key ───┐
//! impulse ─→ start ─┴→ merge ─→ gather ─→ list ─→ reshuffle ─→ score ─┬→ group ─→ finish
//!                                                                     └→ report
//! ```
//!
//! - `gather` groups all URIs, so that the shards have the same places whatever the order in which URIs arrive.
//! - `start` makes a group even if there is no URI.

use super::components::{Builder, Coder};
use super::environment::Environment;
use super::payload::Payload;
use super::proto::pipeline as beam;
use super::urns;

/// Transforms that follow `list`, in order.
const STEPS: [&str; 4] = ["reshuffle", "score", "group", "finish"];

/// The pipeline that runs `payload` in `environment`, which gets the payload's staged files as dependencies.
pub fn pipeline(payload: &Payload, environment: &Environment) -> beam::Pipeline {
    let mut builder = Builder::new(payload.encode(), environment.message(&payload.staged));
    let impulse = builder.primitive("impulse", urns::IMPULSE, &[], Coder::Bytes);
    let listed = builder.par_do("list", urns::LIST, &impulse, Coder::Kv);
    add_steps(&mut builder, &listed);
    let roots = ["impulse", "list"].into_iter().chain(STEPS);
    beam::Pipeline {
        root_transform_ids: roots.map(|root| builder.id(root)).collect(),
        components: Some(builder.finish()),
        ..Default::default()
    }
}

/// The transforms of a composite, in order, and its output.
#[derive(Debug)]
pub struct Steps {
    /// Ids of transforms.
    pub transforms: Vec<String>,
    /// Id of a collection of strings.
    pub output: String,
}

/// Add the transforms that score the URIs in the collection `uris`.
pub fn add_transform(builder: &mut Builder, uris: &str) -> Steps {
    let keyed = builder.par_do("key", urns::KEY, uris, Coder::Kv);
    let impulse = builder.primitive("impulse", urns::IMPULSE, &[], Coder::Bytes);
    let started = builder.par_do("start", urns::START, &impulse, Coder::Kv);
    let merged = builder.primitive("merge", urns::FLATTEN, &[&keyed, &started], Coder::Kv);
    let gathered = builder.primitive("gather", urns::GROUP_BY_KEY, &[&merged], Coder::KvIterable);
    let listed = builder.par_do("list", urns::LIST_GIVEN, &gathered, Coder::Kv);
    let scored = add_steps(builder, &listed);
    let output = builder.par_do("report", urns::REPORT, &scored, Coder::String);
    let all = ["key", "impulse", "start", "merge", "gather", "list"].into_iter();
    let transforms = all.chain(STEPS).chain(["report"]).map(|local| builder.id(local)).collect();
    Steps { transforms, output }
}

/// Add the [`STEPS`], given the collection that `list` makes. Returns the one that `score` makes.
fn add_steps(builder: &mut Builder, listed: &str) -> String {
    let grouped = builder.primitive("reshuffle/group", urns::GROUP_BY_KEY, &[listed], Coder::KvIterable);
    let shuffled = builder.par_do("reshuffle/ungroup", urns::UNGROUP, &grouped, Coder::Kv);
    let parts = ["reshuffle/group", "reshuffle/ungroup"];
    builder.composite("reshuffle", urns::RESHUFFLE, listed, &shuffled, &parts);
    let scored = builder.par_do("score", urns::SCORE, &shuffled, Coder::Kv);
    let group = builder.primitive("group", urns::GROUP_BY_KEY, &[&scored], Coder::KvIterable);
    builder.last("finish", urns::FINISH, &group);
    scored
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beam::components::checks;
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
        checks::every_id_resolves(&all);
        assert_eq!(all.transforms.len(), 8);
    }

    #[test]
    fn roots_come_after_what_they_read() {
        let (_, pipeline) = example();
        let all = pipeline.components.expect("components");
        checks::order_is_topological(&all, &pipeline.root_transform_ids, &[]);
        let parts = all.transforms.values().map(|transform| transform.subtransforms.len()).sum::<usize>();
        assert_eq!(
            pipeline.root_transform_ids.len() + parts,
            all.transforms.len(),
            "each is a root or a part"
        );
    }

    #[test]
    fn only_our_functions_have_the_environment_and_all_carry_the_payload() {
        let (payload, pipeline) = example();
        let functions = checks::functions(&pipeline.components.expect("components"));
        assert!(functions.iter().all(|(_, encoded)| Payload::decode(encoded).as_ref() == Ok(&payload)));
        let urns: Vec<_> = functions.iter().map(|(urn, _)| urn.as_str()).collect();
        assert_eq!(urns, [urns::FINISH, urns::LIST, urns::SCORE, urns::UNGROUP]);
    }

    #[test]
    fn collections_have_the_coders_of_the_contract() {
        let (_, pipeline) = example();
        let all = pipeline.components.expect("components");
        let coder = |transform: &str| all.pcollections[&format!("{transform}.out")].coder_id.as_str();
        assert_eq!(["impulse", "list", "reshuffle/ungroup", "score"].map(coder), ["bytes", "kv", "kv", "kv"]);
        assert_eq!(["reshuffle/group", "group"].map(coder), ["kv_iterable"; 2]);
        assert!(all.transforms["finish"].outputs.is_empty());
    }
}
