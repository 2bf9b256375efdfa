//! The bridge against real brokers, which the kit installs and starts: nothing here is skipped.

#![cfg(all(feature = "kafka", feature = "nats"))]
#![allow(
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test may stop at the first surprise, and speaks on stderr"
)]

mod broker;
mod contract;
mod ground;
mod outage;
mod shutdown;

#[path = "../kit/mod.rs"]
mod kit;
