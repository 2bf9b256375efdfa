//! What all providers' mappings have in common: from a delivery to the published event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{Delivery, Provider};
use crate::envelope::{Envelope, Event, Outcome, Severity, data_schema};
use crate::json::{Cleaner, Members, begin_member, is_rfc3339, text_member};
use crate::subject::{EventType, UNMAPPED};

/// Longest ordering key, in bytes; longer ones are replaced by a digest.
const KEY_BYTES_MAX: usize = 256;

/// One catalogued event type and what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub event_type: &'static str,
    pub action: &'static str,
    pub outcome: Option<Outcome>,
    pub severity: Severity,
    /// The schema demands an id of the resource.
    pub needs_resource_id: bool,
}

/// What a provider's mapping found in a body.
#[derive(Debug, Default)]
pub struct Mapped {
    /// RFC 3339.
    pub time: Option<String>,
    pub resource: Resource,
    /// JSON array of related objects, each with `kind` and `id`.
    pub related: String,
    /// JSON object: every other field that the provider sent, cleaned.
    pub details: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Empty: unknown.
    pub kind: &'static str,
    pub id: Option<String>,
    pub name: Option<String>,
    pub environment: Option<String>,
    pub address: Option<String>,
}

/// What an event type says by its name alone: `redeploy.ok` is a redeploy that succeeded.
struct Reading<'a> {
    action: &'a str,
    outcome: Option<Outcome>,
    severity: Severity,
    needs_resource_id: bool,
}

pub(super) fn normalise(
    provider: &'static dyn Provider,
    uri: &str,
    cleaner: &Cleaner,
    delivery: &Delivery,
) -> Event {
    let parsed = std::str::from_utf8(&delivery.body)
        .map_err(|error| format!("body is not UTF-8: {error}"))
        .and_then(parse);
    let body = match parsed {
        Ok(body) => body,
        Err(problem) => return unmapped(provider, uri, delivery, &problem, None),
    };
    let Some(written) = provider.event_type(&body) else {
        return unmapped(provider, uri, delivery, "the body names no event type", Some((&body, cleaner)));
    };
    let Some(event_type) = EventType::parse(&written) else {
        let problem = "the event type cannot stand in a subject or topic";
        return unmapped(provider, uri, delivery, problem, Some((&body, cleaner)));
    };

    let kind = provider.catalogue().iter().find(|kind| kind.event_type == event_type.as_str());
    let reading = kind.map_or_else(|| read_name(&event_type), Reading::from);
    let mapped = provider.map(&body, &event_type, cleaner);
    let data = data(&event_type, &reading, &mapped);
    let valid = !(reading.needs_resource_id && mapped.resource.id.is_none());
    seal(provider, uri, delivery, &event_type, kind.is_some(), &reading, mapped, data, valid)
}

fn parse(text: &str) -> Result<Members<'_>, String> {
    // A byte order mark is the one addition before valid JSON that senders are known to make.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| format!("body is not JSON: {error}"))?;
    Members::of(raw).ok_or_else(|| "body is not a JSON object".to_owned())
}

/// A body without a usable event type, kept whole: its fields where it has fields, else its bytes.
fn unmapped(
    provider: &'static dyn Provider,
    uri: &str,
    delivery: &Delivery,
    problem: &str,
    body: Option<(&Members<'_>, &Cleaner)>,
) -> Event {
    let event_type = EventType::unmapped();
    let reading =
        Reading { action: UNMAPPED, outcome: None, severity: Severity::Warning, needs_resource_id: false };
    let mut mapped = Mapped { related: "[]".to_owned(), details: "{".to_owned(), ..Mapped::default() };
    if let Some((members, cleaner)) = body {
        cleaner.write_members(members, &mut mapped.details, |_| true);
    }
    mapped.details.push('}');
    let mut data = data(&event_type, &reading, &mapped);
    data.pop();
    text_member(&mut data, "problem", problem);
    if body.is_none() {
        text_member(&mut data, "body_base64", &BASE64.encode(&delivery.body));
    }
    data.push('}');
    seal(provider, uri, delivery, &event_type, false, &reading, mapped, data, true)
}

fn data(event_type: &EventType, reading: &Reading<'_>, mapped: &Mapped) -> String {
    let mut out = String::with_capacity(512 + mapped.related.len() + mapped.details.len());
    out.push('{');
    text_member(&mut out, "event_type", event_type.as_str());
    text_member(&mut out, "family", event_type.family());
    text_member(&mut out, "action", reading.action);
    if let Some(outcome) = reading.outcome {
        begin_member(&mut out, "outcome");
        out.push_str(outcome.json());
    }
    begin_member(&mut out, "severity");
    out.push_str(reading.severity.json());
    begin_member(&mut out, "resource");
    mapped.resource.write(&mut out);
    begin_member(&mut out, "related");
    out.push_str(&mapped.related);
    begin_member(&mut out, "details");
    out.push_str(&mapped.details);
    out.push('}');
    out
}

#[expect(clippy::too_many_arguments, reason = "the one place where all that was found comes together")]
fn seal(
    provider: &'static dyn Provider,
    uri: &str,
    delivery: &Delivery,
    event_type: &EventType,
    catalogued: bool,
    reading: &Reading<'_>,
    mapped: Mapped,
    data: String,
    valid: bool,
) -> Event {
    let Mapped { time, resource, .. } = mapped;
    let key = match &resource.id {
        Some(id) if id.len() <= KEY_BYTES_MAX => id.clone(),
        Some(id) => hex::encode(Sha256::digest(id.as_bytes())),
        None => format!("{}/{event_type}", provider.name()),
    };
    let envelope = Envelope {
        specversion: "1.0",
        id: &delivery.event_id,
        source: uri,
        type_: format!("{}.{event_type}", provider.type_prefix()),
        subject: resource.id.as_deref().map(|id| format!("{}/{id}", resource.kind)),
        time,
        recordedtime: rfc3339_ms(delivery.received_ms),
        datacontenttype: "application/json",
        dataschema: data_schema(provider.name(), event_type, catalogued),
        partitionkey: &key,
        provider: provider.name(),
        outcome: reading.outcome,
        severity: reading.severity,
        schemavalid: (!valid).then_some(false),
        data: serde_json::from_str(&data).expect("members are written from checked values only"),
    };
    let json = envelope.to_json();
    let ordered = resource.id.is_some();
    Event { id: delivery.event_id.clone(), event_type: event_type.clone(), catalogued, key, ordered, json }
}

impl Resource {
    fn write(&self, out: &mut String) {
        out.push('{');
        text_member(out, "kind", if self.kind.is_empty() { "unknown" } else { self.kind });
        let members = [
            ("id", &self.id),
            ("name", &self.name),
            ("environment", &self.environment),
            ("address", &self.address),
        ];
        for (name, value) in members {
            if let Some(value) = value {
                text_member(out, name, value);
            }
        }
        out.push('}');
    }
}

impl Outcome {
    fn json(self) -> &'static str {
        match self {
            Self::Success => "\"success\"",
            Self::Failure => "\"failure\"",
            Self::Started => "\"started\"",
            Self::Pending => "\"pending\"",
        }
    }
}

impl Severity {
    fn json(self) -> &'static str {
        match self {
            Self::Info => "\"info\"",
            Self::Warning => "\"warning\"",
            Self::Error => "\"error\"",
        }
    }
}

impl From<&Kind> for Reading<'_> {
    fn from(kind: &Kind) -> Self {
        Reading {
            action: kind.action,
            outcome: kind.outcome,
            severity: kind.severity,
            needs_resource_id: kind.needs_resource_id,
        }
    }
}

/// Reads a type that no catalogue lists. Only words that mean one thing are understood:
/// `started` is left alone, since it ends what began (`deploy.started`) and what is done
/// (`server.started`) alike.
fn read_name(event_type: &EventType) -> Reading<'_> {
    let after_family = event_type.as_str().split_once('.').map_or("", |(_, rest)| rest);
    let (head, last) = after_family.rsplit_once('.').unwrap_or(("", after_family));
    let outcome = match last {
        "ok" | "succeeded" | "completed" | "done" => Some(Outcome::Success),
        "fail" | "failed" | "error" => Some(Outcome::Failure),
        _ => None,
    };
    let action = if outcome.is_some() { head } else { after_family };
    Reading {
        action: if action.is_empty() { event_type.family() } else { action },
        outcome,
        severity: if outcome == Some(Outcome::Failure) { Severity::Error } else { Severity::Info },
        needs_resource_id: false,
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339_ms(unix_ms: i64) -> String {
    let time = Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

/// RFC 3339 in UTC from integer seconds; `None` if there is no such time.
pub(super) fn rfc3339_of_seconds(raw: &RawValue) -> Option<String> {
    let seconds: i64 = raw.get().parse().ok()?;
    Some(Timestamp::from_second(seconds).ok()?.to_string())
}

/// The same time in UTC; `None` for a text that is not RFC 3339.
pub(super) fn rfc3339_utc(text: &str) -> Option<String> {
    is_rfc3339(text).then(|| text.parse::<Timestamp>().ok().map(|time| time.to_string())).flatten()
}
