#![doc = include_str!("ARCHITECTURE.md")]

pub mod command;

pub mod bridge;
pub mod config;
pub mod dead_letter;
pub mod dispatch;
pub mod envelope;
pub mod http;
pub mod json;
pub mod metrics;
pub mod schemas;
pub mod simulate;
pub mod sink;
pub mod source;
pub mod spool;
pub mod subject;
