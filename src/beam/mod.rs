//! sluice on Apache Beam: an SDK harness for the Fn API, a submitter of its pipeline, and a cross-language transform.
//!
//! The types generated from Beam's protos stay in this module.

mod absolute;
mod artifacts;
mod boot;
mod bundle;
mod bundle_state;
mod chunks;
mod coders;
mod components;
mod connection;
mod data;
mod environment;
mod expansion;
mod expansion_service;
mod failure;
#[cfg(test)]
mod fake_runner;
mod functions;
mod graph;
mod job_service;
mod logging;
mod messages;
mod monitoring;
mod payload;
mod pipeline;
mod prepare;
mod proto;
mod row_counts;
mod scorers;
mod service_error;
mod serving;
mod shared_store;
mod staged;
mod staging;
mod submit;
mod uris;
mod urns;
mod worker;

pub use boot::{Endpoints, Process};
pub use environment::Environment;
pub use expansion_service::ExpansionService;
pub use failure::Failure;
pub use logging::send_to_runners;
pub use service_error::ServiceError;
pub use submit::{
    FinishedJob, Follower, Submission, SubmitError, SubmitOptions, Submitted, check_command, own_path,
};
