//! Where an event goes: event type -> NATS subject or Kafka topic.
//!
//! Event types come from a provider's body, so they are hostile until parsed: a NATS subject
//! token may be a wildcard to a consumer, `$JS.API` is JetStream's control plane, and an empty
//! token makes a subject that no stream takes. [`EventType::parse`] admits only what is safe in
//! both brokers; everything else is published, whole, under the token [`UNMAPPED`].
//!
//! The mapping is injective: different event types never share a subject, nor a topic. In Kafka
//! `.` and `_` fall together in metric names, so topic templates that contain `{family}` or
//! `{event_type}` use catalogued types only, and those are checked for such collisions when the
//! configuration is read ([`Template::collision`]).

use std::fmt;

/// Token that stands for an event type that cannot be mapped.
pub const UNMAPPED: &str = "unmapped";

/// Longest subject or topic, in bytes: Kafka's limit, and sane for NATS.
pub const MAX_BYTES: usize = 249;
const MAX_TOKENS: usize = 16;
const MAX_TOKEN_BYTES: usize = 64;
/// Longest event type, in bytes; leaves room for a template's own text within [`MAX_BYTES`].
const MAX_EVENT_TYPE_BYTES: usize = 160;

/// A dotted event type whose every token is safe in a subject and in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventType(Box<str>);

impl EventType {
    /// Parses `stack.redeploy.ok`. `None` if it has an empty token, a token over 64 bytes, more
    /// than 16 tokens, over 160 bytes in all, a character outside `[A-Za-z0-9_-]`, or if it is
    /// the reserved word `unmapped`.
    pub fn parse(text: &str) -> Option<Self> {
        let safe = text.len() <= MAX_EVENT_TYPE_BYTES
            && text.split('.').count() <= MAX_TOKENS
            && text.split('.').all(is_token)
            && text.split('.').next() != Some(UNMAPPED);
        safe.then(|| Self(text.into()))
    }

    /// The event type of everything that has none of its own.
    pub fn unmapped() -> Self {
        Self(UNMAPPED.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// First token: `stack` of `stack.redeploy.ok`.
    pub fn family(&self) -> &str {
        self.0.split('.').next().unwrap_or(UNMAPPED)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// What a template may draw on for one event.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    pub provider: &'a str,
    pub source: &'a str,
    pub event_type: &'a EventType,
    /// The provider's catalogue lists this type.
    pub catalogued: bool,
}

/// The broker whose rules a template obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    Nats,
    Kafka,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Provider,
    Source,
    Family,
    EventType,
}

/// `events.{provider}.{event_type}`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    naming: Naming,
    parts: Vec<Part>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    #[error("unknown placeholder {{{0}}}; known are {{provider}} {{source}} {{family}} {{event_type}}")]
    UnknownPlaceholder(String),
    #[error("a `{{` without its `}}`, or the other way round")]
    Unbalanced,
    #[error("'{0}' may not stand in a subject or topic; use letters, digits, `-`, `_` and dots between them")]
    Character(char),
    #[error("an empty token: two dots in a row, or a dot at an end")]
    EmptyToken,
    #[error("{0} bytes can come out of it; the limit is {MAX_BYTES}")]
    TooLong(usize),
    #[error("topics that begin with `__` are Kafka's own")]
    Internal,
    #[error("the template is empty")]
    Empty,
}

impl Template {
    /// # Errors
    /// When something it could render would be unsafe or illegal in that broker.
    pub fn parse(text: &str, naming: Naming) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        let template = Self { naming, parts: parse_parts(text)? };
        // Placeholders always yield whole safe tokens, so one made-up rendering shows every
        // empty token that the template's own text could make.
        let unmapped = EventType::unmapped();
        let sample =
            template.render(Route { provider: "p", source: "s", event_type: &unmapped, catalogued: true });
        if sample.split('.').any(str::is_empty) {
            return Err(TemplateError::EmptyToken);
        }
        if naming == Naming::Kafka && text.starts_with("__") {
            return Err(TemplateError::Internal);
        }
        let longest: usize = template.parts.iter().map(Part::longest).sum();
        if longest > MAX_BYTES {
            return Err(TemplateError::TooLong(longest));
        }
        Ok(template)
    }

    /// The subject or topic of one event; always legal.
    pub fn render(&self, route: Route<'_>) -> String {
        // Any type a provider invents may become a NATS subject, which costs nothing; a Kafka
        // topic is a resource, so only the catalogue's types get one of their own.
        let own = self.naming == Naming::Nats || route.catalogued;
        let mut out = String::with_capacity(64);
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Provider => route.provider,
                Part::Source => route.source,
                Part::Family if own => route.event_type.family(),
                Part::EventType if own => route.event_type.as_str(),
                Part::Family | Part::EventType => UNMAPPED,
            });
        }
        out
    }

    /// The subject filter of a stream that takes all that this template renders: placeholders
    /// become wildcards, `{event_type}` (one to many tokens) the tail `>`.
    pub fn stream_filter(&self) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::EventType => {
                    out.push('>');
                    return out;
                }
                Part::Provider | Part::Source | Part::Family => out.push('*'),
            }
        }
        out
    }

    /// Two event types of `types` whose names would fall together in Kafka, if any.
    pub fn collision<'a>(&self, types: &[&'a str]) -> Option<(&'a str, &'a str)> {
        if self.naming != Naming::Kafka {
            return None;
        }
        let mut seen: Vec<(String, &'a str)> = types.iter().map(|t| (t.replace('.', "_"), *t)).collect();
        seen.sort();
        seen.dedup();
        seen.iter().zip(seen.iter().skip(1)).find(|(a, b)| a.0 == b.0).map(|(a, b)| (a.1, b.1))
    }
}

impl Part {
    fn longest(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Provider | Self::Source | Self::Family => MAX_TOKEN_BYTES,
            Self::EventType => MAX_EVENT_TYPE_BYTES,
        }
    }
}

fn parse_parts(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (literal, tail) = match rest.split_once('{') {
            Some((literal, tail)) => (literal, Some(tail)),
            None => (rest, None),
        };
        if literal.contains('}') {
            return Err(TemplateError::Unbalanced);
        }
        if let Some(bad) = literal.chars().find(|c| !(c.is_ascii() && is_token_byte(*c as u8)) && *c != '.') {
            return Err(TemplateError::Character(bad));
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal.to_owned()));
        }
        let Some(tail) = tail else { break };
        let (name, after) = tail.split_once('}').ok_or(TemplateError::Unbalanced)?;
        parts.push(match name {
            "provider" => Part::Provider,
            "source" => Part::Source,
            "family" => Part::Family,
            "event_type" => Part::EventType,
            other => return Err(TemplateError::UnknownPlaceholder(other.to_owned())),
        });
        rest = after;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_event_types_are_not_mapped() {
        for text in [
            "",
            ".",
            "a..b",
            "a.",
            "*",
            "a.>",
            "$JS.API.x",
            "a b",
            "a\r\nb",
            "a\0",
            "ä",
            "unmapped",
            "unmapped.x",
            "a/b",
        ] {
            assert_eq!(EventType::parse(text), None, "{text:?}");
        }
        assert_eq!(EventType::parse(&"a".repeat(65)), None);
        assert_eq!(EventType::parse(&vec!["a"; 17].join(".")), None);
        assert!(EventType::parse("application.health_check.failed").is_some());
    }

    #[test]
    fn templates_render_and_refuse() {
        let event_type = EventType::parse("stack.redeploy.ok").expect("valid");
        let route = Route { provider: "cloud66", source: "c66", event_type: &event_type, catalogued: false };
        let nats = Template::parse("events.{provider}.{event_type}", Naming::Nats).expect("valid");
        assert_eq!(nats.render(route), "events.cloud66.stack.redeploy.ok");
        assert_eq!(nats.stream_filter(), "events.*.>");
        let kafka = Template::parse("events.{provider}.{family}", Naming::Kafka).expect("valid");
        assert_eq!(
            kafka.render(route),
            "events.cloud66.unmapped",
            "an unknown type makes no topic of its own"
        );
        for (text, error) in [
            ("", TemplateError::Empty),
            ("a..{provider}", TemplateError::EmptyToken),
            ("a.*", TemplateError::Character('*')),
            ("$JS.{provider}", TemplateError::Character('$')),
            ("a.{what}", TemplateError::UnknownPlaceholder("what".to_owned())),
            ("a.{provider", TemplateError::Unbalanced),
            ("__x", TemplateError::Internal),
        ] {
            assert_eq!(Template::parse(text, Naming::Kafka), Err(error), "{text}");
        }
    }

    #[test]
    fn types_that_fall_together_in_kafka_are_found() {
        let template = Template::parse("{event_type}", Naming::Kafka).expect("valid");
        assert_eq!(template.collision(&["a.b", "c", "a_b"]), Some(("a.b", "a_b")));
        assert_eq!(template.collision(&["a.b", "a.c"]), None);
    }
}
