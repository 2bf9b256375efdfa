//! Settings of a Kafka sink, and the client options that an operator may not touch.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

#[derive(Clone)]
pub struct KafkaConfig {
    pub brokers: Vec<String>,
    /// Topics that do not exist are made, with these numbers.
    pub create_topics: Option<TopicSpec>,
    /// Every topic that the configuration can publish to.
    pub topics: Vec<String>,
    pub tls: Option<KafkaTls>,
    pub sasl: Option<KafkaSasl>,
    /// librdkafka's own options; none that [`refused_option`] refuses.
    pub options: BTreeMap<String, String>,
    /// Largest message in bytes, key and headers included.
    pub max_message_bytes: usize,
    /// Messages handed over and not yet confirmed, at most.
    pub in_flight_max: usize,
}

/// The options' values stay hidden: librdkafka knows many kinds of secrets.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("create_topics", &self.create_topics)
            .field("topics", &self.topics)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("options", &self.options.keys())
            .field("max_message_bytes", &self.max_message_bytes)
            .field("in_flight_max", &self.in_flight_max)
            .finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSpec {
    pub partitions: i32,
    /// -1: the broker's own default.
    pub replication: i32,
}

impl Default for TopicSpec {
    fn default() -> Self {
        Self { partitions: 3, replication: -1 }
    }
}

#[derive(Debug, Clone)]
pub struct KafkaTls {
    /// Without it, the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct KafkaSasl {
    pub mechanism: String,
    pub username: String,
    pub password: SecretString,
}

/// Why an option of librdkafka may not be set by the operator; `None` if it may.
pub fn refused_option(key: &str, value: &str) -> Option<&'static str> {
    match key {
        "acks" | "request.required.acks" if !matches!(value, "all" | "-1") => {
            Some("an event counts as delivered only when all in-sync replicas have it: leave acks at all")
        }
        "enable.idempotence" if value != "true" => Some(
            "without the idempotent producer, retries inside the client reorder and repeat events: leave it true",
        ),
        "message.timeout.ms" | "delivery.timeout.ms" => {
            Some("the client would give events up; they wait on disk for as long as an outage lasts")
        }
        "retries" | "message.send.max.retries" => {
            Some("the client tries for ever; the spool decides what becomes of an event")
        }
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if value.parse::<u32>().is_ok_and(|n| n > 5) =>
        {
            Some("more than 5 requests in flight break the order of a key")
        }
        "enable.gapless.guarantee" if value != "true" => {
            Some("without it, events overtake one that was refused: leave it true")
        }
        "transactional.id" | "transaction.timeout.ms" => Some("transactions are not used by this sink"),
        "allow.auto.create.topics" => {
            Some("use create_topics: true, which also says with how many partitions")
        }
        "queue.buffering.max.messages" | "queue.buffering.max.kbytes" | "queuing.strategy" => {
            Some("the spool is the queue; use in_flight_max")
        }
        "bootstrap.servers" | "metadata.broker.list" => Some("use brokers"),
        "message.max.bytes" => Some("follows from http.max_body"),
        "security.protocol" => Some("follows from tls and sasl"),
        "partitioner" if value == "random" => Some("events of one resource must go to one partition"),
        "delivery.report.only.error" if value != "false" => {
            Some("the delivery report is what confirms an event")
        }
        _ if key.starts_with("test.") => {
            Some("librdkafka's own tests use it: events would go to no real broker")
        }
        _ if key.starts_with("ssl.ca")
            || key.starts_with("ssl.key.")
            || key.starts_with("ssl.certificate") =>
        {
            Some("use tls: { ca_file, cert_file, key_file }")
        }
        _ if key.starts_with("sasl.")
            && matches!(key, "sasl.username" | "sasl.password" | "sasl.mechanisms" | "sasl.mechanism") =>
        {
            Some("use sasl: { mechanism, username, password: { file } }")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_break_the_promise_are_refused_and_others_pass() {
        for (key, value) in [
            ("acks", "1"),
            ("enable.idempotence", "false"),
            ("message.timeout.ms", "5000"),
            ("partitioner", "random"),
            ("delivery.report.only.error", "true"),
            ("test.mock.num.brokers", "3"),
            ("sasl.password", "x"),
        ] {
            assert!(refused_option(key, value).is_some(), "{key}={value}");
        }
        for (key, value) in [
            ("acks", "all"),
            ("partitioner", "fnv1a_random"),
            ("compression.type", "zstd"),
            ("linger.ms", "20"),
            ("client.rack", "a"),
        ] {
            assert_eq!(refused_option(key, value), None, "{key}={value}");
        }
    }
}
