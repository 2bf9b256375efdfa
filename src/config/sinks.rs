//! The `sinks:` list.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::Section;
use super::{SourceConfig, unique_name};
use crate::sink::{
    KafkaConfig, KafkaSasl, KafkaTls, NatsAuth, NatsConfig, NatsTls, StreamSpec, TopicSpec, refused_option,
};
use crate::subject::{EventType, Naming, Route, Template};

const MIB: u64 = 1024 * 1024;
/// What an envelope can add to the body it was made from: attributes, headers, and base64 for a
/// body that is not JSON.
const ENVELOPE_OVERHEAD: u64 = 16 * 1024;
/// Shortest secret towards a broker; its own rules decide, we only refuse an empty file.
const BROKER_SECRET_MIN: usize = 1;

#[derive(Debug)]
pub struct SinkConfig {
    pub name: String,
    pub template: Template,
    pub broker: Broker,
    /// Published and not yet confirmed, at most.
    pub in_flight_max: usize,
    /// First and longest wait before a publish is tried again.
    pub retry: std::ops::RangeInclusive<Duration>,
}

#[derive(Debug)]
pub enum Broker {
    Kafka(KafkaConfig),
    Nats(NatsConfig),
}

pub(super) fn read(root: &Section<'_>, sources: &[SourceConfig], max_body: u64) -> Vec<SinkConfig> {
    let sections = root.sections("sinks", false);
    if sections.is_empty() {
        root.mistake_with_hint("sinks", "no sink: nothing could be published", "name a Kafka or a NATS");
    }
    let mut names = Vec::new();
    sections.into_iter().filter_map(|section| read_one(section, &mut names, sources, max_body)).collect()
}

fn read_one(
    section: Section<'_>,
    names: &mut Vec<String>,
    sources: &[SourceConfig],
    max_body: u64,
) -> Option<SinkConfig> {
    let name = unique_name(&section, names);
    let kind = section.require_text("kind", "kafka or nats");
    let millis = Duration::from_millis;
    let limits = millis(1)..=Duration::from_secs(3600);
    let (first, longest) = section.section("retry").map_or((millis(100), Duration::from_secs(30)), |retry| {
        let first = retry.duration("first", millis(100), limits.clone());
        let longest = retry.duration("longest", Duration::from_secs(30), limits);
        if first > longest {
            retry.mistake("first", "longer than `longest`");
        }
        retry.finish();
        (first, longest)
    });
    let in_flight_max = usize::try_from(section.number("in_flight_max", 2_000, 1..=4_000)).unwrap_or(1);
    let (template, broker) = match kind? {
        "kafka" => read_kafka(&section, sources, max_body, in_flight_max),
        "nats" => read_nats(&section, in_flight_max),
        other => {
            section.mistake_with_hint("kind", format!("unknown kind `{other}`"), "kafka or nats");
            return None;
        }
    }?;
    section.finish();
    Some(SinkConfig { name: name?, template, broker, in_flight_max, retry: first..=longest })
}

fn template(section: &Section<'_>, key: &'static str, naming: Naming) -> Option<Template> {
    let example = match naming {
        Naming::Nats => "for example subject: \"events.{provider}.{event_type}\"",
        Naming::Kafka => "for example topic: \"events.{provider}\"",
    };
    let text = section.require_text(key, example)?;
    match Template::parse(text, naming) {
        Ok(template) => Some(template),
        Err(error) => {
            section.mistake_with_hint(key, error.to_string(), example);
            None
        }
    }
}

fn servers(section: &Section<'_>, key: &'static str, example: &str) -> Vec<String> {
    let servers = section.texts(key);
    if servers.is_empty() {
        section.mistake_with_hint(key, "missing or empty", format!("for example {key}: [\"{example}\"]"));
    }
    servers
}

fn read_kafka(
    section: &Section<'_>,
    sources: &[SourceConfig],
    max_body: u64,
    in_flight_max: usize,
) -> Option<(Template, Broker)> {
    if cfg!(not(feature = "kafka")) {
        section.mistake("kind", "this build has no Kafka: it was made without the feature `kafka`");
    }
    let template = template(section, "topic", Naming::Kafka);
    let brokers = servers(section, "brokers", "127.0.0.1:9092");
    let options = read_options(section);
    let topics = template.as_ref().map(|template| topics(section, template, sources)).unwrap_or_default();
    let config = KafkaConfig {
        brokers,
        create_topics: read_create_topics(section),
        topics,
        tls: section.section("tls").map(|tls| {
            let read = KafkaTls {
                ca_file: tls.readable("ca_file"),
                cert_file: tls.readable("cert_file"),
                key_file: tls.readable("key_file"),
            };
            pair(&tls, "cert_file", "key_file");
            tls.finish();
            read
        }),
        sasl: section.section("sasl").and_then(read_sasl),
        options,
        max_message_bytes: usize_of(max_body * 2 + ENVELOPE_OVERHEAD),
        in_flight_max,
    };
    Some((template?, Broker::Kafka(config)))
}

/// `create_topics: true`, or with numbers of its own.
fn read_create_topics(section: &Section<'_>) -> Option<TopicSpec> {
    let value = section.get("create_topics")?;
    if value.is_boolean() {
        return section.flag("create_topics", false).then(TopicSpec::default);
    }
    let spec = section.section("create_topics")?;
    let defaults = TopicSpec::default();
    let number = |key, default: i32| {
        let read = spec.number(key, u64::try_from(default).unwrap_or(1), 1..=10_000);
        i32::try_from(read).unwrap_or(default)
    };
    let read = TopicSpec {
        partitions: number("partitions", defaults.partitions),
        replication: number("replication_factor", defaults.replication),
    };
    spec.finish();
    Some(read)
}

/// librdkafka's own options, without those that would break the promise.
fn read_options(section: &Section<'_>) -> BTreeMap<String, String> {
    let Some(map) = section.get("options") else { return BTreeMap::new() };
    let Some(map) = map.as_object() else {
        section.mistake("options", "expected a mapping of librdkafka options");
        return BTreeMap::new();
    };
    let mut options = BTreeMap::new();
    for (key, value) in map {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match refused_option(key, &value) {
            Some(reason) => {
                section.mistake_with_hint(&format!("options.{key}"), format!("`{value}` is refused"), reason)
            }
            None => {
                options.insert(key.clone(), value);
            }
        }
    }
    options
}

fn read_sasl(sasl: Section<'_>) -> Option<KafkaSasl> {
    const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
    let mechanism = sasl.require_text("mechanism", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512");
    if let Some(other) = mechanism.filter(|name| !MECHANISMS.contains(name)) {
        sasl.mistake_with_hint("mechanism", format!("unknown mechanism `{other}`"), MECHANISMS.join(", "));
    }
    let username = sasl.require_text("username", "the name that the broker knows");
    sasl.require("password", "password: { file: PATH } or { env: NAME }");
    let password = sasl.section("password").and_then(|secret| secret.secret(BROKER_SECRET_MIN));
    sasl.finish();
    Some(KafkaSasl { mechanism: mechanism?.to_owned(), username: username?.to_owned(), password: password? })
}

/// Every topic that this configuration can publish to, after a check that no two types share one
/// by Kafka's rules.
fn topics(section: &Section<'_>, template: &Template, sources: &[SourceConfig]) -> Vec<String> {
    let mut topics = Vec::new();
    for source in sources.iter().map(|configured| &configured.source) {
        let provider = source.provider();
        let mut render = |event_type: &EventType, catalogued| {
            let route = Route { provider: provider.name(), source: source.name(), event_type, catalogued };
            topics.push(template.render(route));
        };
        provider
            .catalogue()
            .iter()
            .filter_map(|kind| EventType::parse(kind.event_type))
            .for_each(|event_type| render(&event_type, true));
        render(&EventType::unmapped(), false);
    }
    topics.sort_unstable();
    topics.dedup();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    if let Some((one, other)) = template.collision(&names) {
        section.mistake_with_hint(
            "topic",
            format!(
                "topics {one} and {other} fall together in Kafka's metric names, where `.` and `_` are one"
            ),
            "put {provider} or other text between the parts",
        );
    }
    topics
}

fn read_nats(section: &Section<'_>, in_flight_max: usize) -> Option<(Template, Broker)> {
    if cfg!(not(feature = "nats")) {
        section.mistake("kind", "this build has no NATS: it was made without the feature `nats`");
    }
    let template = template(section, "subject", Naming::Nats);
    let servers = servers(section, "servers", "nats://127.0.0.1:4222");
    section.require("stream", "stream: { name: HOOKS, create: true }");
    let subjects = template.as_ref().map(|t| vec![t.stream_filter()]).unwrap_or_default();
    let stream = section.section("stream").and_then(|stream| read_stream(stream, subjects));
    let config = NatsConfig {
        servers,
        stream: stream?,
        tls: section.section("tls").map(|tls| {
            let read = NatsTls {
                ca_file: tls.readable("ca_file"),
                cert_file: tls.readable("cert_file"),
                key_file: tls.readable("key_file"),
                first: tls.flag("first", false),
            };
            pair(&tls, "cert_file", "key_file");
            tls.finish();
            read
        }),
        auth: section.section("auth").map_or(Some(NatsAuth::None), read_auth)?,
        in_flight_max,
    };
    Some((template?, Broker::Nats(config)))
}

fn read_stream(stream: Section<'_>, subjects: Vec<String>) -> Option<StreamSpec> {
    let name = stream.require_text("name", "for example HOOKS");
    if let Some(bad) = name.filter(|name| {
        name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    }) {
        stream.mistake_with_hint(
            "name",
            format!("`{bad}` cannot be a stream's name"),
            "letters, digits, `-` and `_`",
        );
    }
    let create = stream.flag("create", false);
    let max_bytes = stream.contains("max_bytes").then(|| stream.bytes("max_bytes", 0, MIB..=u64::MAX >> 1));
    let replicas = stream.number("replicas", 1, 1..=5);
    let window = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
    let duplicate_window = stream.duration("duplicate_window", Duration::from_secs(120), window);
    stream.finish();
    Some(StreamSpec {
        name: name?.to_owned(),
        create,
        subjects,
        max_bytes: max_bytes.and_then(|bytes| i64::try_from(bytes).ok()),
        replicas: usize_of(replicas),
        duplicate_window,
    })
}

/// One of: user and password, token, nkey_seed, creds_file.
fn read_auth(auth: Section<'_>) -> Option<NatsAuth> {
    let secret = |key| auth.section(key).and_then(|section| section.secret(BROKER_SECRET_MIN));
    let mut ways = Vec::new();
    if let Some(user) = auth.text("user") {
        auth.require("password", "password: { file: PATH } or { env: NAME }");
        if let Some(password) = secret("password") {
            ways.push(NatsAuth::UserPassword { user: user.to_owned(), password });
        }
    }
    ways.extend(secret("token").map(NatsAuth::Token));
    ways.extend(secret("nkey_seed").map(NatsAuth::NkeySeed));
    ways.extend(auth.readable("creds_file").map(NatsAuth::CredsFile));
    if ways.len() != 1 {
        auth.mistake_with_hint(
            "auth",
            format!("{} ways to log in; expected one", ways.len()),
            "user and password, token, nkey_seed, or creds_file",
        );
    }
    auth.finish();
    ways.pop()
}

/// Two keys that make sense only together.
fn pair(section: &Section<'_>, one: &'static str, other: &'static str) {
    if section.contains(one) != section.contains(other) {
        section.mistake(one, format!("`{one}` and `{other}` go together"));
    }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use crate::source::PROVIDERS;
    use crate::subject::UNMAPPED;

    #[test]
    fn the_quarantine_word_is_no_catalogued_type() {
        for provider in PROVIDERS {
            assert!(provider.catalogue().iter().all(|kind| kind.event_type != UNMAPPED));
        }
    }
}
