//! What a consumer saw.

use std::collections::BTreeMap;

use serde_json::Value;

/// One message as a plain consumer of the broker reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// NATS subject or Kafka topic.
    pub(crate) destination: String,
    /// Kafka's message key; NATS has none.
    pub(crate) key: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) payload: Vec<u8>,
    pub(crate) position: Position,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Kafka's partition; 0 for NATS.
    pub(crate) partition: i32,
    /// Kafka's offset, or the sequence in the stream.
    pub(crate) offset: u64,
}

impl Seen {
    pub(crate) fn envelope(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|error| {
            panic!("{} {:?} is not JSON: {error}", self.destination, self.position);
        })
    }

    /// The envelope's `id`; `None` if there is no such text.
    pub(crate) fn id(&self) -> Option<String> {
        self.attribute("id")
    }

    /// An attribute of the envelope that is a text.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        serde_json::from_slice::<Value>(&self.payload).ok()?.get(name)?.as_str().map(str::to_owned)
    }
}
