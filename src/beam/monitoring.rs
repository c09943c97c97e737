//! Metrics of a bundle: elements by collection, how far the source was read, and rows by status.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::bundle::BundleState;
use super::proto::pipeline::MonitoringInfo;
use super::urns;
use crate::items::Status;

/// The capability of runners that take metrics by short ids.
const SHORT_IDS: &str = "beam:protocol:monitoring_info_short_ids:v1";

const ELEMENT_COUNT: &str = "beam:metric:element_count:v1";
const READ_INDEX: &str = "beam:metric:data_channel:read_index:v1";
/// Namespace of our own counters.
pub const NAMESPACE: &str = "sluice";

/// What the name of a counter of rows begins with. The status follows.
pub const IMAGES: &str = "images_";

/// Images that a model has scored, as Beam's RunInference calls them.
const INFERENCES: &str = "num_inferences";

const SUM_INT64: &str = "beam:metrics:sum_int64:v1";

/// The metrics of a bundle.
pub struct Monitoring(Vec<MonitoringInfo>);

impl Monitoring {
    /// The metrics of a bundle at this moment.
    pub fn of(state: &BundleState) -> Self {
        let mut infos = Vec::new();
        let mut add = |urn: &str, labels: &[(&str, &str)], value: u64| {
            let labels = labels.iter().map(|&(label, of)| (label.to_owned(), of.to_owned())).collect();
            let (urn, r#type) = (urn.to_owned(), SUM_INT64.to_owned());
            infos.push(MonitoringInfo { urn, r#type, payload: varint(value), labels, ..Default::default() });
        };
        for (collection, count) in state.counts() {
            add(ELEMENT_COUNT, &[("PCOLLECTION", &collection)], count);
        }
        if let (Some(source), Ok(index)) = (state.source(), u64::try_from(state.read_index())) {
            add(READ_INDEX, &[("PTRANSFORM", &source)], index);
        }
        for (transform, rows) in state.rows() {
            let mut user = |name: &str, value| {
                let labels = [("PTRANSFORM", transform.as_str()), ("NAMESPACE", NAMESPACE), ("NAME", name)];
                add(urns::USER_SUM, &labels, value);
            };
            for (status, rows) in rows.iter() {
                user(&format!("{IMAGES}{}", status.as_str()), rows);
            }
            user(INFERENCES, rows.of(Status::Ok) + rows.of(Status::InvalidScore));
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
fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}
