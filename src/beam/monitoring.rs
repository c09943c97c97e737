//! Metrics of a bundle: elements by collection, how far the source was read, rows by status, and what the model did.
//!
//! - Every bundle counts itself from its start, so that a submitter sees that a worker is alive.
//! - The metrics of Beam's RunInference have the same names and namespace here. The load time of a model includes the
//!   time to fetch it and to warm it up. Sizes of models and of requests in bytes are not reported.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::bundle_state::BundleState;
use super::proto::pipeline::MonitoringInfo;
use super::urns;
use crate::flow::lock;
use crate::plan::hex;
use crate::progress::Distribution;

/// The capability of runners that take metrics by short ids.
const SHORT_IDS: &str = "beam:protocol:monitoring_info_short_ids:v1";

const ELEMENT_COUNT: &str = "beam:metric:element_count:v1";
const READ_INDEX: &str = "beam:metric:data_channel:read_index:v1";
/// Namespace of our own counters.
pub const NAMESPACE: &str = "sluice";

/// What the name of a counter of rows begins with. The status follows.
pub const IMAGES: &str = "images_";

/// Bundles that have started.
const BUNDLES: &str = "bundles";

/// Progress reports that the runner has requested. The counter changes as long as the worker is alive.
const REPORTS: &str = "progress_reports";

/// Images that a model has scored, as Beam's RunInference calls them.
const INFERENCES: &str = "num_inferences";

/// Images of each batch.
const BATCH_SIZE: &str = "inference_request_batch_size";

/// Time of each batch in the model.
const BATCH_LATENCY: &str = "inference_batch_latency_micro_secs";

/// Time until the model was ready.
const LOAD_LATENCY: &str = "load_model_latency_milli_secs";

/// Namespace of the metrics of Beam's RunInference.
const RUN_INFERENCE: &str = "RunInference";

const SUM_INT64: &str = "beam:metrics:sum_int64:v1";
const USER_DISTRIBUTION: &str = "beam:metric:user:distribution_int64:v1";
const DISTRIBUTION_INT64: &str = "beam:metrics:distribution_int64:v1";

/// Digits of a short id: enough to keep the metrics of a job apart.
const SHORT_ID_DIGITS: usize = 16;

/// The metrics of a bundle.
pub struct Monitoring(Vec<MonitoringInfo>);

impl Monitoring {
    /// The metrics of a bundle at this moment.
    pub fn of(state: &BundleState) -> Self {
        let mut infos = Vec::new();
        for (collection, count) in state.counts() {
            infos.push(sum(ELEMENT_COUNT, &[("PCOLLECTION", &collection)], count));
        }
        if let (Some(source), Ok(index)) = (state.source(), u64::try_from(state.read_index())) {
            infos.push(sum(READ_INDEX, &[("PTRANSFORM", &source)], index));
        }
        for transform in state.functions() {
            infos.push(sum(urns::USER_SUM, &user_labels(&transform, NAMESPACE, BUNDLES), 1));
            infos.push(sum(urns::USER_SUM, &user_labels(&transform, NAMESPACE, REPORTS), state.reports()));
        }
        for (transform, scored) in state.scored() {
            let rows = scored.rows();
            for (status, rows) in rows.iter() {
                let name = format!("{IMAGES}{}", status.as_str());
                infos.push(sum(urns::USER_SUM, &user_labels(&transform, NAMESPACE, &name), rows));
            }
            let inference = |name| user_labels(&transform, RUN_INFERENCE, name);
            let batches = scored.batches.counts();
            if batches.rows.count > 0 {
                infos.push(sum(urns::USER_SUM, &inference(INFERENCES), batches.rows.sum));
            }
            let load_ms = scored.load_ms();
            let distributions =
                [(BATCH_SIZE, batches.rows), (BATCH_LATENCY, batches.latency_us), (LOAD_LATENCY, load_ms)];
            let with_values = distributions.iter().filter(|(_, distribution)| distribution.count > 0);
            infos.extend(with_values.map(|(name, values)| distribution(&inference(name), values)));
        }
        Self(infos)
    }

    /// The metrics as a response carries them: in full, or by short ids if the runner has declared that it takes those.
    pub fn reported(self, ids: Option<&ShortIds>) -> (Vec<MonitoringInfo>, HashMap<String, Vec<u8>>) {
        match ids {
            None => (self.0, HashMap::new()),
            Some(ids) => (Vec::new(), self.0.into_iter().map(|info| ids.shorten(info)).collect()),
        }
    }
}

/// Short ids of metrics, each for a URN with its labels. Prism has one table of ids for all workers of a job, including
/// those of other SDKs, so an id is a hash of its URN and labels.
#[derive(Debug, Default)]
pub struct ShortIds(Mutex<Vec<(String, MonitoringInfo)>>);

impl ShortIds {
    /// Short ids, if the runner has declared that it takes them.
    pub fn if_declared(capabilities: &[String]) -> Option<Self> {
        capabilities.iter().any(|capability| capability == SHORT_IDS).then(Self::default)
    }

    fn shorten(&self, mut info: MonitoringInfo) -> (String, Vec<u8>) {
        let payload = std::mem::take(&mut info.payload);
        let mut known = lock(&self.0);
        if let Some((id, _)) = known.iter().find(|(_, known)| *known == info) {
            return (id.clone(), payload);
        }
        let id = short_id(&info);
        known.push((id.clone(), info));
        (id, payload)
    }

    /// The metrics of these ids, without payloads.
    pub fn resolve(&self, ids: &[String]) -> HashMap<String, MonitoringInfo> {
        let known = lock(&self.0);
        known.iter().filter(|(id, _)| ids.contains(id)).cloned().collect()
    }
}

/// The id of a metric, the same in all workers.
fn short_id(info: &MonitoringInfo) -> String {
    let labels: BTreeMap<_, _> = info.labels.iter().collect();
    let hash = Sha256::digest(format!("{:?}", (&info.urn, &info.r#type, labels)));
    format!("sluice-{}", &hex(&hash)[..SHORT_ID_DIGITS])
}

type Labels<'a> = [(&'a str, &'a str)];

fn user_labels<'a>(transform: &'a str, namespace: &'a str, name: &'a str) -> [(&'a str, &'a str); 3] {
    [("PTRANSFORM", transform), ("NAMESPACE", namespace), ("NAME", name)]
}

fn sum(urn: &str, labels: &Labels<'_>, value: u64) -> MonitoringInfo {
    info(urn, SUM_INT64, labels, &[value])
}

fn distribution(labels: &Labels<'_>, values: &Distribution) -> MonitoringInfo {
    let Distribution { count, sum, min, max } = *values;
    info(USER_DISTRIBUTION, DISTRIBUTION_INT64, labels, &[count, sum, min, max])
}

/// A metric. Its payload is the `numbers` in Beam's variable-length coding: seven bits in each byte, the lowest first.
fn info(urn: &str, r#type: &str, labels: &Labels<'_>, numbers: &[u64]) -> MonitoringInfo {
    let labels = labels.iter().map(|&(label, of)| (label.to_owned(), of.to_owned())).collect();
    let mut payload = Vec::new();
    // Beam's numbers are signed
    let positive = numbers.iter().map(|&number| number.min(i64::MAX as u64));
    positive.for_each(|number| prost::encoding::encode_varint(number, &mut payload));
    let (urn, r#type) = (urn.to_owned(), r#type.to_owned());
    MonitoringInfo { urn, r#type, payload, labels, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_progress_report_differs_from_the_last_one() {
        let state = BundleState::default();
        state.start(vec!["list".to_owned()]);
        let report = || {
            state.count_report();
            let infos = Monitoring::of(&state).0;
            let reports =
                infos.into_iter().find(|info| info.labels.get("NAME").is_some_and(|name| name == REPORTS));
            reports.expect("a counter").payload
        };
        assert_eq!([report(), report()], [[1], [2]]);
    }

    #[test]
    fn metrics_of_scored_shards_have_the_names_of_run_inference() {
        let state = BundleState::default();
        let scored = state.scored_by("score");
        scored.batches.count(3, Duration::from_micros(300));
        scored.batches.count(2, Duration::from_micros(5));
        scored.add_load(Duration::from_millis(1));
        let infos = Monitoring::of(&state).0;
        let payload = |urn: &str, name: &str| {
            let is_it = |info: &&MonitoringInfo| {
                let label = |label: &str| info.labels[label].clone();
                (info.urn.as_str(), label("NAMESPACE"), label("NAME"), label("PTRANSFORM"))
                    == (urn, "RunInference".to_owned(), name.to_owned(), "score".to_owned())
            };
            infos.iter().find(is_it).expect("a metric").payload.clone()
        };
        assert_eq!(payload(urns::USER_SUM, "num_inferences"), [5]);
        assert_eq!(payload(USER_DISTRIBUTION, "inference_request_batch_size"), [2, 5, 2, 3]);
        // count, sum, minimum, maximum: 305 and 300 take two bytes
        let latency = payload(USER_DISTRIBUTION, "inference_batch_latency_micro_secs");
        assert_eq!(latency, [2, 0xb1, 0x02, 5, 0xac, 0x02]);
        assert_eq!(payload(USER_DISTRIBUTION, "load_model_latency_milli_secs"), [1, 1, 1, 1]);
        assert_eq!(infos.len(), 4);
    }

    #[test]
    fn short_ids_are_the_same_in_all_workers_and_differ_from_those_of_other_sdks() {
        let capabilities = [SHORT_IDS.to_owned()];
        let [one, other] = [(); 2].map(|()| ShortIds::if_declared(&capabilities).expect("declared"));
        let reported = |ids: &ShortIds, collection, elements| {
            let info = sum(ELEMENT_COUNT, &[("PCOLLECTION", collection)], elements);
            let (infos, mut short) = Monitoring(vec![info]).reported(Some(ids));
            assert!(infos.is_empty());
            short.drain().next().expect("a metric")
        };
        let (a, payload) = reported(&one, "a", 1);
        assert_eq!(payload, [1]);
        let (b, _) = reported(&other, "b", 1);
        assert_eq!(reported(&other, "a", 200), (a.clone(), vec![0xc8, 0x01]));
        assert!(a != b && a.starts_with("sluice-"), "{a} {b}");
        let resolved = other.resolve(&[a.clone(), "0".to_owned()]);
        assert_eq!(resolved.len(), 1);
        assert_eq!((resolved[&a].urn.as_str(), resolved[&a].payload.len()), (ELEMENT_COUNT, 0));
    }
}
