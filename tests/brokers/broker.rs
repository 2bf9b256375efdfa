//! One face for both brokers, so that each story is told once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::kit::bridge::Builder;
use crate::kit::kafka::Kafka;
use crate::kit::nats::Nats;
use crate::kit::provider::Entry;
use crate::kit::{Seen, eventually, oracle};

/// A backlog is drained while the machine does other things too.
const DRAIN: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nats,
    Kafka,
}

pub(crate) enum Broker {
    Nats(Nats),
    Kafka(Kafka),
}

impl Broker {
    pub(crate) async fn start(kind: Kind) -> Self {
        let mut broker = Self::down(kind).await;
        broker.restart().await;
        broker
    }

    /// Its address is known, but it does not run yet.
    pub(crate) async fn down(kind: Kind) -> Self {
        match kind {
            Kind::Nats => Self::Nats(Nats::down().await),
            Kind::Kafka => Self::Kafka(Kafka::down().await),
        }
    }

    pub(crate) async fn restart(&mut self) {
        match self {
            Self::Nats(nats) => nats.restart().await,
            Self::Kafka(kafka) => kafka.restart().await,
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Nats(nats) => nats.kill(),
            Self::Kafka(kafka) => kafka.kill(),
        }
    }

    /// Makes it the bridge's sink.
    pub(crate) fn behind(&self, bridge: Builder) -> Builder {
        match self {
            Self::Nats(nats) => bridge.nats(&nats.url()),
            Self::Kafka(kafka) => bridge.kafka(&kafka.bootstrap()),
        }
    }

    /// Everything that was ever published.
    pub(crate) async fn read_all(&self) -> Vec<Seen> {
        match self {
            Self::Nats(nats) => nats.read("HOOKS").await,
            Self::Kafka(kafka) => kafka.read_all().await,
        }
    }

    /// Waits until every acknowledged event of `ledger` can be read back.
    pub(crate) async fn has_all_of(&self, ledger: &[Entry]) {
        eventually(DRAIN, "every acknowledged event is at the broker", async || {
            let seen = self.read_all().await;
            let missing = oracle::missing(ledger, &seen);
            let Some(first) = missing.first() else { return Ok(()) };
            Err(format!(
                "{} are missing among {} messages, the first of them {first}",
                missing.len(),
                seen.len()
            ))
        })
        .await;
    }

    /// Holds one message against what its envelope says it should be.
    #[track_caller]
    pub(crate) fn check_wire_form(&self, message: &Seen, provider: &str, event_type: &str) {
        let headers: BTreeMap<String, &str> =
            message.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
        let (destination, id_header, key) = match self {
            Self::Nats(_) => (format!("events.{provider}.{event_type}"), "Nats-Msg-Id", None),
            Self::Kafka(_) => (format!("events.{provider}"), "event-id", message.attribute("partitionkey")),
        };
        assert_eq!(message.destination, destination);
        assert_eq!(message.key, key, "{destination}");
        assert_eq!(message.headers.get(id_header), message.id().as_ref(), "{destination}");
        assert_eq!(
            headers.get("content-type").copied(),
            Some("application/cloudevents+json; charset=UTF-8"),
            "{destination}"
        );
    }
}
