//! sluice: batch image scoring.
#![deny(unsafe_code)]

pub mod config;
pub mod error;
pub mod items;
pub mod plan;
