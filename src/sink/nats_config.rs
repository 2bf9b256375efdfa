//! Settings of a NATS JetStream sink.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

#[derive(Debug, Clone)]
pub struct NatsConfig {
    pub servers: Vec<String>,
    pub stream: StreamSpec,
    pub tls: Option<NatsTls>,
    pub auth: NatsAuth,
    /// Messages handed over and not yet confirmed, at most.
    pub in_flight_max: usize,
}

#[derive(Debug, Clone)]
pub struct StreamSpec {
    pub name: String,
    /// Make the stream where it is missing.
    pub create: bool,
    /// Subjects that the stream must take.
    pub subjects: Vec<String>,
    pub max_bytes: Option<i64>,
    pub replicas: usize,
    /// How long the server recognises an event that it has stored already.
    pub duplicate_window: Duration,
}

#[derive(Debug, Clone)]
pub struct NatsTls {
    /// Without it, the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// TLS before the server's greeting.
    pub first: bool,
}

#[derive(Debug, Clone)]
pub enum NatsAuth {
    None,
    UserPassword { user: String, password: SecretString },
    Token(SecretString),
    NkeySeed(SecretString),
    CredsFile(PathBuf),
}
