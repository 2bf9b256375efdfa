//! Sinks: the brokers we publish to.
//!
//! A [`Sink`] takes messages without waiting and reports later, through [`Outcomes`], how each
//! ended. To add a broker, write one file beside `kafka.rs` and a `start_...` below.

#[cfg(feature = "kafka")]
pub mod embedded;
#[cfg(feature = "kafka")]
mod kafka;
mod kafka_config;
#[cfg(feature = "kafka")]
mod kafka_topics;
#[cfg(feature = "nats")]
mod nats;
mod nats_config;
#[cfg(feature = "nats")]
mod nats_stream;
mod outcomes;
mod status;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use kafka_config::{KafkaConfig, KafkaSasl, KafkaTls, TopicSpec, refused_option};
pub use nats_config::{NatsAuth, NatsConfig, NatsTls, StreamSpec};
pub use outcomes::{Outcome, Outcomes};
pub use status::SinkStatus;

/// One event on its way to a broker.
#[derive(Debug, Clone)]
pub struct Message {
    /// Subject or topic.
    pub destination: Arc<str>,
    /// Ordering key; never empty.
    pub key: String,
    pub event_id: String,
    pub event_type: String,
    /// The CloudEvents JSON.
    pub payload: Bytes,
}

/// Why a publish was not confirmed. The two kinds differ in what is done next: `Transient` is
/// tried again for as long as it takes, `Permanent` becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Anything that an operator or time can cure, missing topics and permissions included.
    #[error("{0}")]
    Transient(String),
    /// A short list: too large, malformed.
    #[error("{0}")]
    Permanent(String),
}

/// Who keeps the order of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// The sink does, with any number of messages of the key under way.
    Pipelined,
    /// Nobody, unless only one message per key is under way.
    OneInFlight,
}

/// The sink's own queue is full: the message was not taken, and there will be no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's queue is full")]
pub struct Busy;

/// Why a sink could not be set up at all. A broker that is down is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the client refuses its configuration: {0}")]
    Config(String),
    #[error("{0}")]
    NotBuiltIn(&'static str),
}

pub trait Sink: Send {
    /// Hands a message over without waiting. Unless it was [`Busy`], its outcome comes exactly
    /// once, however long an outage lasts.
    ///
    /// # Errors
    /// When there is no room now.
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy>;

    fn key_order(&self) -> KeyOrder;

    fn status(&self) -> Arc<SinkStatus>;

    /// Lets go of the broker; whatever is not confirmed by the deadline is given up here, and
    /// published again by the next start.
    fn close(self: Box<Self>, deadline: Instant) -> BoxFuture<'static, ()>;
}

/// Must be called within a tokio runtime; does not wait for the broker.
///
/// # Errors
/// When the client refuses its configuration, or was not built in.
pub fn start_kafka(config: KafkaConfig, outcomes: Arc<Outcomes>) -> Result<Box<dyn Sink>, StartError> {
    #[cfg(feature = "kafka")]
    return Ok(Box::new(kafka::KafkaSink::start(config, outcomes)?));
    #[cfg(not(feature = "kafka"))]
    {
        drop((config, outcomes));
        Err(StartError::NotBuiltIn("this build has no Kafka: it was made without the feature `kafka`"))
    }
}

/// Must be called within a tokio runtime; does not wait for the server.
///
/// # Errors
/// When the client refuses its configuration, or was not built in.
pub fn start_nats(config: NatsConfig, outcomes: Arc<Outcomes>) -> Result<Box<dyn Sink>, StartError> {
    #[cfg(feature = "nats")]
    return Ok(Box::new(nats::NatsSink::start(config, outcomes)?));
    #[cfg(not(feature = "nats"))]
    {
        drop((config, outcomes));
        Err(StartError::NotBuiltIn("this build has no NATS: it was made without the feature `nats`"))
    }
}
