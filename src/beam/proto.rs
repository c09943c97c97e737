//! Beam's messages and services by short paths, and its URNs.

pub use beam_model_rs::v1::org::apache::beam::model::{
    expansion::v1 as expansion, fn_execution::v1 as fn_execution, job_management::v1 as job_management,
    pipeline::v1 as pipeline,
};
