//! The JetStream stream that the events go into: made where the operator wants that, and checked
//! for settings that would lose what it took.

use async_nats::Client;
use async_nats::jetstream::context::{ContextBuilder, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{ErrorCode, stream};

use super::StreamSpec;
use super::nats::{ANSWER_WITHIN, describe};

/// What is weak about the stream.
///
/// # Errors
/// Says why the stream is not usable now.
pub(super) async fn check_stream(client: Client, spec: &StreamSpec) -> Result<Vec<String>, String> {
    let context = ContextBuilder::new().timeout(ANSWER_WITHIN).build(client);
    let found = context.get_stream(&spec.name).await;
    let config = match found {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(error) if spec.create && is_missing(&error) => {
            let made = context.create_stream(wanted(spec)).await.map_err(|error| describe(&error))?;
            tracing::info!(stream = spec.name, subjects = ?spec.subjects, "stream created");
            made.cached_info().config.clone()
        }
        Err(error) if is_missing(&error) => {
            return Err(format!("stream {} does not exist: make it, or set stream.create: true", spec.name));
        }
        Err(error) => return Err(format!("stream {}: {}", spec.name, describe(&error))),
    };
    Ok(weaknesses(spec, &config))
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(
        error.kind(),
        GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND
    )
}

/// `discard: new`: a full stream must refuse, not delete the oldest.
fn wanted(spec: &StreamSpec) -> stream::Config {
    stream::Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        max_bytes: spec.max_bytes.unwrap_or(-1),
        num_replicas: spec.replicas,
        duplicate_window: spec.duplicate_window,
        discard: stream::DiscardPolicy::New,
        storage: stream::StorageType::File,
        retention: stream::RetentionPolicy::Limits,
        ..stream::Config::default()
    }
}

fn weaknesses(spec: &StreamSpec, found: &stream::Config) -> Vec<String> {
    let mut weak = Vec::new();
    if found.discard != stream::DiscardPolicy::New {
        weak.push("discard is `old`: a full stream deletes its oldest events".to_owned());
    }
    if found.storage != stream::StorageType::File {
        weak.push("storage is `memory`: a restart of the server empties the stream".to_owned());
    }
    if found.no_ack {
        weak.push("no_ack is set: no event can ever be confirmed".to_owned());
    }
    if found.num_replicas < spec.replicas {
        weak.push(format!("{} replicas instead of {}", found.num_replicas, spec.replicas));
    }
    if found.duplicate_window < spec.duplicate_window {
        let (found, wanted) = (found.duplicate_window.as_secs(), spec.duplicate_window.as_secs());
        weak.push(format!("duplicate window of {found} s, not {wanted} s: more repeats after an outage"));
    }
    for subject in &spec.subjects {
        if !found.subjects.iter().any(|by| covers(by, subject)) {
            weak.push(format!("the stream does not take {subject}, only {}", found.subjects.join(", ")));
        }
    }
    weak
}

/// Whether each subject that `narrow` stands for is also one of `wide`.
fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('.');
    for wide in wide.split('.') {
        match (wide, narrow.next()) {
            (">", Some(_)) => return true,
            ("*", Some(token)) if token != ">" => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_subject_covers_a_narrower_one() {
        for (wide, narrow, expected) in [
            ("events.>", "events.a.b", true),
            ("events.>", "events.>", true),
            ("events.>", "events", false),
            ("events.*", "events.a", true),
            ("events.*", "events.>", false),
            ("events.*", "events.a.b", false),
            (">", "events.>", true),
            ("events.a", "events.*", false),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }
}
