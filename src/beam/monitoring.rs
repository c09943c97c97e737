//! What a worker reports of its bundles: elements by collection, and how far the source was read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::bundle::BundleState;
use super::proto::pipeline::MonitoringInfo;

/// The capability of runners that take metrics by short ids.
const SHORT_IDS: &str = "beam:protocol:monitoring_info_short_ids:v1";

const ELEMENT_COUNT: &str = "beam:metric:element_count:v1";
const READ_INDEX: &str = "beam:metric:data_channel:read_index:v1";
const SUM_INT64: &str = "beam:metrics:sum_int64:v1";

/// The metrics of a bundle.
pub struct Monitoring(Vec<MonitoringInfo>);

impl Monitoring {
    /// The metrics of a bundle at this moment.
    pub fn of(state: &BundleState) -> Self {
        let sum = |urn: &str, label: &str, name: String, value: i64| MonitoringInfo {
            urn: urn.to_owned(),
            r#type: SUM_INT64.to_owned(),
            payload: varint(value),
            labels: HashMap::from([(label.to_owned(), name)]),
            ..Default::default()
        };
        let counts =
            state.counts().into_iter().map(|(name, count)| sum(ELEMENT_COUNT, "PCOLLECTION", name, count));
        let mut infos: Vec<_> = counts.collect();
        if let Some(source) = state.source() {
            infos.push(sum(READ_INDEX, "PTRANSFORM", source, state.read_index()));
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

/// Short ids of metrics, each for an URN and its labels.
#[derive(Debug, Default)]
pub struct ShortIds(Mutex<Vec<MonitoringInfo>>);

impl ShortIds {
    /// Short ids, if the runner has declared that it takes them.
    pub fn if_declared(capabilities: &[String]) -> Option<Self> {
        capabilities.iter().any(|capability| capability == SHORT_IDS).then(Self::default)
    }

    fn shorten(&self, mut info: MonitoringInfo) -> (String, Vec<u8>) {
        let payload = std::mem::take(&mut info.payload);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|known| *known == info).unwrap_or_else(|| {
            known.push(info);
            known.len() - 1
        });
        (place.to_string(), payload)
    }

    /// The metrics of these ids, without payloads.
    pub fn resolve(&self, ids: &[String]) -> HashMap<String, MonitoringInfo> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resolve = |id: &String| Some((id.clone(), known.get(id.parse::<usize>().ok()?)?.clone()));
        ids.iter().filter_map(resolve).collect()
    }
}

/// A number in Beam's variable-length coding: seven bits in each byte, the lowest first.
fn varint(value: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value as u64, &mut bytes);
    bytes
}
