//! The published envelope: CloudEvents 1.0, JSON, structured mode. Twin of
//! `schemas/v1/envelope.json`; the fixture tests hold the two together.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::subject::EventType;

/// `Content-Type` of every published event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// Names of our JSON Schemas; never resolved over a network.
const SCHEMA_PREFIX: &str = "urn:hookbus:schema:v1:";

/// How the thing that happened ended, as far as the event type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Success,
    Failure,
    Started,
    Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// The attributes in the order in which they are published. Values are plain text by now: all
/// parsing has been done by the source that filled them in.
#[derive(Debug, Serialize)]
pub struct Envelope<'a> {
    pub specversion: &'static str,
    /// `<source name>:<provider's event id, or a digest>`; the same for the same delivery for ever.
    pub id: &'a str,
    /// `/<provider>/<source name>`.
    pub source: &'a str,
    #[serde(rename = "type")]
    pub type_: String,
    /// `<resource kind>/<resource id>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it happened at the provider, RFC 3339; absent where the provider does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// When we accepted it, RFC 3339 with milliseconds.
    pub recordedtime: String,
    pub datacontenttype: &'static str,
    pub dataschema: String,
    /// Ordering key; never empty.
    pub partitionkey: &'a str,
    pub provider: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    pub severity: Severity,
    /// Present, as `false`, only when `data` misses its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schemavalid: Option<bool>,
    pub data: &'a RawValue,
}

impl Envelope<'_> {
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("a struct of texts and one valid JSON value serialises").into()
    }
}

/// `$id` of the schema of an event's `data`.
pub fn data_schema(provider: &str, event_type: &EventType, catalogued: bool) -> String {
    if catalogued {
        format!("{SCHEMA_PREFIX}{provider}:{event_type}")
    } else {
        format!("{SCHEMA_PREFIX}generic")
    }
}

/// An event ready for a broker, with what its way there needs.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: String,
    pub event_type: EventType,
    /// The provider's catalogue lists this type, so it has a schema of its own.
    pub catalogued: bool,
    /// Ordering key; never empty.
    pub key: String,
    /// The key is a resource's: events that share it must stay in order. Without a resource the
    /// key only makes sure that there is one.
    pub ordered: bool,
    /// The envelope as JSON.
    pub json: Bytes,
}
