//! Tests against the library and the binary that need no broker.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod sim;
mod spool_crash;
mod spool_faults;
mod spool_model;
