//! Payloads as the providers document them, made distinct.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

macro_rules! samples {
    ($provider:literal: $($event:literal),* $(,)?) => {
        &[$(($event, include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/", $provider, "/", $event, "/request.json"
        )))),*]
    };
}

type Sample = (&'static str, &'static str);

const CLOUD66: &[Sample] = samples!["cloud66":
    "application.health_check.failed", "application.integration.configured",
    "application.integration.removed", "application.update.failed", "application.update.pending",
    "application.update.started", "application.update.succeeded", "backup.verification.failed",
    "managed_backup.fail", "server.backon", "server.ip.change.fail", "server.stopped",
    "stack.created", "stack.deploy.started", "stack.provision.fail", "stack.provision.ok",
    "stack.redeploy.fail", "stack.redeploy.hook.fail", "stack.redeploy.ok",
    "stack.stackscore.changed",
];

const CDHOSTING: &[Sample] = samples!["cdhosting":
    "billing.payment.failed", "billing.payment.succeeded", "billing.subscription.cancelled",
    "server.backup.completed", "server.created", "server.error", "server.rebooted",
    "server.started", "server.stopped",
];

/// Distinct stacks and servers that the payloads are about.
const RESOURCES: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownEvent {
    #[error("no payloads of provider `{0}`; there are some of cloud66 and cdhosting")]
    Provider(String),
    #[error("no payload of event type `{wanted}`; {provider} has: {known}")]
    Event { provider: String, wanted: String, known: String },
}

/// One body to send.
#[derive(Debug, Clone)]
pub struct Payload {
    pub event_type: &'static str,
    pub body: Bytes,
}

/// An endless supply of distinct bodies, each event type in turn.
#[derive(Debug, Clone)]
pub struct Payloads {
    provider: &'static str,
    samples: Vec<(&'static str, Value)>,
    /// Sets the ids of this run apart from those of another.
    run: u64,
}

impl Payloads {
    /// Of one event type, or of all of them in turn.
    ///
    /// # Errors
    /// When provider or event type are unknown.
    pub fn new(provider: &str, event_type: Option<&str>) -> Result<Self, UnknownEvent> {
        let (provider, samples) = match provider {
            "cloud66" => ("cloud66", CLOUD66),
            "cdhosting" => ("cdhosting", CDHOSTING),
            other => return Err(UnknownEvent::Provider(other.to_owned())),
        };
        let chosen: Vec<_> = samples
            .iter()
            .filter(|(name, _)| event_type.is_none_or(|wanted| wanted == *name))
            .map(|(name, text)| (*name, serde_json::from_str(text).expect("the fixtures are JSON")))
            .collect();
        if chosen.is_empty() {
            return Err(UnknownEvent::Event {
                provider: provider.to_owned(),
                wanted: event_type.unwrap_or_default().to_owned(),
                known: samples.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            });
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(since.as_millis()).unwrap_or_default();
        Ok(Self { provider, samples: chosen, run })
    }

    /// The n-th body. The same n gives the same body: that is a provider's repeat.
    pub fn nth(&self, n: u64) -> Payload {
        let turn = n % u64::try_from(self.samples.len()).unwrap_or(1);
        let (event_type, sample) = self
            .samples
            .get(usize::try_from(turn).unwrap_or(0))
            .expect("a remainder is below its divisor, and there is at least one sample");
        let mut body = sample.clone();
        if self.provider == "cloud66" {
            distinct_cloud66(&mut body, self.run, n);
        } else {
            distinct_cdhosting(&mut body, self.run, n);
        }
        Payload { event_type, body: body.to_string().into() }
    }
}

/// Cloud 66 sends no event id: bodies differ by the time of sending and by their resource, whose
/// uid is new in every run.
fn distinct_cloud66(body: &mut Value, run: u64, n: u64) {
    let resource = n % RESOURCES;
    for pointer in ["/uid", "/server", "/stack/uid"] {
        if let Some(Value::String(uid)) = body.pointer_mut(pointer) {
            // "stack-550e..." keeps its kind; a bare UUID of a server gets one.
            let kind = if uid.starts_with("stack-") { "stack" } else { "server" };
            *uid = format!("{kind}-{run:x}-{resource:03}");
        }
    }
    if let Some(timestamp) = body.get_mut("timestamp") {
        *timestamp = json!(run / 1000 + n);
    }
}

fn distinct_cdhosting(body: &mut Value, run: u64, n: u64) {
    if let Some(id) = body.get_mut("id") {
        *id = json!(format!("evt_{run:x}_{n}"));
    }
    if let Some(server) = body.pointer_mut("/data/server_id") {
        *server = json!(format!("srv_{:03}", n % RESOURCES));
    }
}
