//! Sources: the webhook providers we accept from.
//!
//! A [`Source`] is what the operator configured: a name, a provider, a [`Check`]. Its two halves
//! are used at the two ends of the spool: [`Source::verify`] before a delivery is stored,
//! [`Source::normalise`] on its way out. To add a provider, write one file beside `cloud66.rs`
//! and name it in [`PROVIDERS`].

mod cdhosting;
mod cloud66;
mod delivery;
mod normalise;
mod signature;

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use warp::http::HeaderMap;

pub use delivery::Delivery;
pub use normalise::Kind;
pub use signature::{Check, HeaderChoice, MIN_SECRET_BYTES, VerifyError, sign};

use crate::envelope::Event;
use crate::json::{Cleaner, Members};
use crate::subject::EventType;

/// All providers, by the name that stands in the configuration.
pub const PROVIDERS: &[&dyn Provider] = &[&cloud66::Cloud66, &cdhosting::CdHosting];

/// What differs from provider to provider.
pub trait Provider: Sync + Send {
    /// Name in configuration, subjects and metrics.
    fn name(&self) -> &'static str;
    /// Reverse DNS prefix of the envelope's `type`.
    fn type_prefix(&self) -> &'static str;
    /// The event types that have a schema of their own.
    fn catalogue(&self) -> &'static [Kind];
    /// Whether the provider can sign its deliveries (HMAC-SHA256 in hex over the raw body).
    fn signs(&self) -> bool;
    /// Member names that are blanked unless the operator says otherwise.
    fn redacted(&self) -> &'static [&'static str];
    /// The provider's own id of the event, if the body holds a usable one. Called on the accept
    /// path: borrow, do not build a tree.
    fn event_id<'a>(&self, body: &'a [u8]) -> Option<std::borrow::Cow<'a, str>>;
    /// The event type as the provider wrote it.
    fn event_type<'a>(&self, body: &Members<'a>) -> Option<std::borrow::Cow<'a, str>>;
    /// Picks the body apart. Total: what is missing is left out.
    fn map(&self, body: &Members<'_>, event_type: &EventType, cleaner: &Cleaner) -> normalise::Mapped;
}

/// The provider of that name.
pub fn provider(name: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.iter().copied().find(|p| p.name() == name)
}

/// One configured source.
pub struct Source {
    name: Arc<str>,
    provider: &'static dyn Provider,
    check: Check,
    cleaner: Cleaner,
    /// The envelope's `source`.
    uri: String,
}

/// Everything of a request that a check may look at.
#[derive(Debug)]
pub struct Presented<'a> {
    pub headers: &'a HeaderMap,
    /// Third path segment of `/hooks/<source>/<token>`.
    pub path_token: Option<&'a str>,
    pub body: Bytes,
}

/// A delivery whose check has passed. There is no other way to make one, and nothing else is
/// ever spooled.
#[derive(Debug)]
pub struct Verified {
    key: [u8; 16],
    delivery: Delivery,
}

impl Verified {
    /// The key under which a repeat of this delivery is recognised.
    pub fn key(&self) -> [u8; 16] {
        self.key
    }

    pub fn event_id(&self) -> &str {
        &self.delivery.event_id
    }

    /// The record as it is spooled.
    pub fn encode(&self) -> Bytes {
        self.delivery.encode()
    }
}

impl Source {
    pub fn new(
        name: &str,
        provider: &'static dyn Provider,
        check: Check,
        redact: Option<Vec<String>>,
    ) -> Self {
        let redact = redact.unwrap_or_else(|| provider.redacted().iter().map(|s| (*s).to_owned()).collect());
        Self {
            name: name.into(),
            provider,
            check,
            cleaner: Cleaner::new(redact),
            uri: format!("/{}/{name}", provider.name()),
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn provider(&self) -> &'static dyn Provider {
        self.provider
    }

    /// Whether anything is checked at all.
    pub fn is_verified(&self) -> bool {
        !matches!(self.check, Check::Nothing)
    }

    /// Checks a request over its raw bytes. Never looks into the body before the check has
    /// passed, and never refuses a delivery for its content.
    ///
    /// # Errors
    /// When the signature or the token is missing, malformed or wrong.
    pub fn verify(&self, presented: Presented<'_>, received_ms: i64) -> Result<Verified, VerifyError> {
        self.check.pass(&presented)?;
        let Presented { headers, body, .. } = presented;
        let (event_id, key) = self.identify(&body);
        Ok(Verified {
            key,
            delivery: Delivery {
                source: Arc::clone(&self.name),
                received_ms,
                event_id,
                headers: delivery::chosen_headers(headers),
                body,
            },
        })
    }

    /// Event id and repeat key. The id carries the source's name, so that equal ids of two
    /// sources never shadow each other in a stream that drops repeats.
    fn identify(&self, body: &[u8]) -> (String, [u8; 16]) {
        if let Some(id) = self.provider.event_id(body).filter(|id| is_plain_id(id)) {
            let event_id = format!("{}:{id}", self.name);
            let key = digest(&[event_id.as_bytes()]);
            return (event_id, key);
        }
        let key = digest(&[self.name.as_bytes(), b"\0", body]);
        let mut event_id = String::with_capacity(self.name.len() + 33);
        event_id.push_str(&self.name);
        event_id.push(':');
        for byte in key {
            write!(event_id, "{byte:02x}").expect("writing to a String cannot fail");
        }
        (event_id, key)
    }

    /// Maps a spooled delivery to the event that is published. Total: what cannot be understood
    /// becomes a generic event that holds the whole body.
    pub fn normalise(&self, delivery: &Delivery) -> Event {
        normalise::normalise(self.provider, &self.uri, &self.cleaner, delivery)
    }
}

/// A provider's id that may stand in headers and logs: 1 to 128 printable ASCII characters.
fn is_plain_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// First 16 bytes of SHA-256 over the parts.
fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let full: [u8; 32] = hash.finalize().into();
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().zip(full) {
        *to = from;
    }
    short
}

/// A check that nothing passes, with the cost of a real one: what an unknown source is held
/// against, so that it answers no faster than a known one.
pub fn decoy() -> Check {
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    Check::Signature { header: HeaderChoice::Any, secrets: vec![SecretString::from(hex::encode(random))] }
}
