//! A Kafka inside this process, for `hookbus demo` and for a first try: librdkafka's own mock
//! cluster. It keeps everything in memory and is never for production.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Offset, TopicPartitionList};

/// The broker's id in the mock cluster.
const BROKER: i32 = 1;

#[derive(Debug, thiserror::Error)]
#[error("the in-process Kafka failed")]
pub struct EmbeddedError(#[from] KafkaError);

/// One broker, one partition per topic.
pub struct EmbeddedKafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
    topics: Vec<String>,
}

/// One event as a consumer saw it.
#[derive(Debug, Clone)]
pub struct Consumed {
    pub payload: Vec<u8>,
}

impl EmbeddedKafka {
    /// # Errors
    /// When the cluster or a topic cannot be made.
    pub fn start(topics: &[&str]) -> Result<Self, EmbeddedError> {
        let cluster = MockCluster::new(1)?;
        for topic in topics {
            cluster.create_topic(topic, 1, 1)?;
        }
        Ok(Self { cluster, topics: topics.iter().map(|topic| (*topic).to_owned()).collect() })
    }

    /// Address for clients.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Connections break and new ones are refused, until [`EmbeddedKafka::up`].
    ///
    /// # Errors
    /// When the cluster does not take the command.
    pub fn down(&self) -> Result<(), EmbeddedError> {
        Ok(self.cluster.broker_down(BROKER)?)
    }

    /// # Errors
    /// When the cluster does not take the command.
    pub fn up(&self) -> Result<(), EmbeddedError> {
        Ok(self.cluster.broker_up(BROKER)?)
    }

    pub fn consumer(&self) -> EmbeddedConsumer {
        EmbeddedConsumer { bootstrap: self.bootstrap(), topics: self.topics.clone() }
    }
}

/// Reads everything from the start, as any consumer would.
pub struct EmbeddedConsumer {
    bootstrap: String,
    topics: Vec<String>,
}

impl EmbeddedConsumer {
    /// Reads until `expected` events have come, and then on until nothing more does; or for
    /// `within` at the most. Blocks.
    ///
    /// # Errors
    /// When the consumer cannot be made.
    pub fn read_until(&self, expected: usize, within: Duration) -> Result<Vec<Consumed>, EmbeddedError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "hookbus-demo")
            .set("enable.auto.commit", "false")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for topic in &self.topics {
            assignment.add_partition_offset(topic, 0, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let deadline = Instant::now() + within;
        let mut consumed = Vec::new();
        while Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(500)) {
                Some(Ok(message)) => {
                    consumed.push(Consumed { payload: message.payload().unwrap_or_default().to_vec() });
                }
                Some(Err(error)) => tracing::debug!(%error, "consumer"),
                None if consumed.len() >= expected => break,
                None => {}
            }
        }
        Ok(consumed)
    }
}
