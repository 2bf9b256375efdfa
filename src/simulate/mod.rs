//! Plays the providers: their own example payloads, made distinct, signed as they sign, sent over
//! real HTTP. What `hookbus send` and `hookbus demo` share.

mod client;
mod payload;

pub use client::{Answer, Client};
pub use payload::{Payload, Payloads};

use std::time::Duration;

/// The waits of CDHosting before it tries again and finally disables the webhook. Cloud 66 never
/// tries again.
pub const CDHOSTING_RETRIES: [Duration; 5] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(24 * 3600),
];

/// The provider's own retry ladder; empty if it never tries again.
pub fn retries(provider: &str) -> &'static [Duration] {
    if provider == "cdhosting" { &CDHOSTING_RETRIES } else { &[] }
}
