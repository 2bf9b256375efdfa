//! Tests against the library and the binary that need no broker.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::let_underscore_must_use,
    reason = "a test may stop at the first surprise"
)]

#[cfg(feature = "nats")]
mod cli;
#[cfg(all(feature = "kafka", feature = "nats"))]
mod config;
mod dispatch;
mod fixtures;
#[cfg(feature = "nats")]
mod receive;
mod sim;
mod spool_crash;
mod spool_faults;
mod spool_model;
mod support;
mod tidy;
