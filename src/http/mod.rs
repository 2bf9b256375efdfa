//! The HTTP side: `POST /hooks/<source>[/<token>]` in, `/livez /readyz /metrics` for operators.
//!
//! The only user of warp and hyper's server. warp's own server is not used: it has no deadline
//! for slow clients, speaks cleartext HTTP/2, and waits a second after each accept error.

mod accept;
mod admin;
mod answer;
mod body;
mod deadline;
mod intake;

use std::net::SocketAddr;
use std::time::Duration;

pub use accept::Listener;
pub use admin::{Readiness, SinkReadiness, routes as admin_routes};
pub use intake::{Intake, routes};

/// Limits of the listener for providers.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Largest body in bytes; a longer one is answered 413.
    pub max_body: u64,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// Between requests on one connection. Longer than the 60 s after which common proxies
    /// close theirs, so that they never send into a connection that we are closing.
    pub idle_timeout: Duration,
    /// Accepting stops while this many connections are open.
    pub max_connections: usize,
    /// Bytes of bodies held at one time, over all requests.
    pub body_memory: u64,
}

impl Config {
    /// For the listener that operators and probes use.
    pub fn admin(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_body: 1024,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(75),
            max_connections: 64,
            body_memory: 64 * 1024,
        }
    }
}
