//! Rows that a job has written so far, from the metrics of its runner.

use super::monitoring::{IMAGES, NAMESPACE};
use super::proto::job_management::MetricResults;
use super::proto::pipeline::MonitoringInfo;
use super::urns;

/// Rows of all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Rows, scored or rejected.
    pub rows: u64,
    /// Of these, rows without scores.
    pub rejected: u64,
}

impl RowCounts {
    /// The counts in `metrics`, if there are any. A runner reports them as attempted, as committed, or both.
    pub fn of(metrics: &MetricResults) -> Option<Self> {
        let counts = [&metrics.attempted, &metrics.committed].map(|infos| Self::sum(infos));
        counts.into_iter().flatten().max_by_key(|counts| counts.rows)
    }

    /// What workers have reported, in a fixed order. It changes as long as they are alive.
    pub fn signs_of_life(metrics: &MetricResults) -> Vec<(String, Vec<u8>)> {
        let all = metrics.attempted.iter().chain(&metrics.committed);
        let of_worker = all.filter(|info| info.labels.get("NAMESPACE").is_some_and(|of| of == NAMESPACE));
        let mut signs: Vec<_> = of_worker
            .map(|info| {
                let label = |name: &str| info.labels.get(name).map_or("", String::as_str);
                (format!("{}/{}", label("PTRANSFORM"), label("NAME")), info.payload.clone())
            })
            .collect();
        signs.sort();
        signs
    }

    fn sum(infos: &[MonitoringInfo]) -> Option<Self> {
        let mut sum = None;
        for (status, rows) in infos.iter().filter_map(counter) {
            let counts: &mut Self = sum.get_or_insert_default();
            counts.rows = counts.rows.saturating_add(rows);
            if status != "ok" {
                counts.rejected = counts.rejected.saturating_add(rows);
            }
        }
        sum
    }
}

/// The status and the value of one of our counters of rows.
fn counter(info: &MonitoringInfo) -> Option<(&str, u64)> {
    let is_ours = info.urn == urns::USER_SUM && info.labels.get("NAMESPACE")? == NAMESPACE;
    let status = info.labels.get("NAME")?.strip_prefix(IMAGES)?;
    let rows = prost::encoding::decode_varint(&mut &info.payload[..]).ok()?;
    is_ours.then_some((status, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(namespace: &str, name: &str, payload: &[u8]) -> MonitoringInfo {
        let labels = [("NAMESPACE", namespace), ("NAME", name), ("PTRANSFORM", "score")];
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
        MonitoringInfo {
            urn: urns::USER_SUM.to_owned(),
            payload: payload.to_vec(),
            labels,
            ..Default::default()
        }
    }

    #[test]
    fn rows_are_summed_over_statuses_and_transforms() {
        let attempted = vec![
            info("sluice", "images_ok", &[0xac, 0x02]),
            info("sluice", "images_ok", &[1]),
            info("sluice", "images_decode_error", &[2]),
            info("sluice", "num_inferences", &[9]),
            info("other", "images_ok", &[9]),
            info("sluice", "images_ok", &[0x80]),
        ];
        let committed = vec![info("sluice", "images_ok", &[7])];
        let metrics = MetricResults { attempted, committed };
        assert_eq!(RowCounts::of(&metrics), Some(RowCounts { rows: 303, rejected: 2 }));
        assert_eq!(RowCounts::of(&MetricResults::default()), None);
    }

    #[test]
    fn any_counter_of_ours_shows_that_a_worker_is_alive() {
        let metrics = |info| MetricResults { attempted: vec![info], committed: Vec::new() };
        assert_eq!(RowCounts::signs_of_life(&metrics(info("sluice", "bundles", &[1]))).len(), 1);
        assert!(RowCounts::signs_of_life(&metrics(info("other", "bundles", &[1]))).is_empty());
    }
}
