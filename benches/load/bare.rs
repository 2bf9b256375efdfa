//! The bare limit: warp reads the body, verifies it, picks two fields, answers 202. No disk, no
//! broker. On the same accept loop as the bridge, in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use bytes::{Buf, BufMut as _, BytesMut};
use futures_util::{Stream, StreamExt as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hookbus::http::{Config, Listener};
use serde::Deserialize;
use sha2::Sha256;
use warp::Filter as _;
use warp::http::{HeaderMap, StatusCode};

use crate::kit::provider::{SECRET, SIGNATURE_HEADER};

pub(crate) const ARGUMENT: &str = "--serve-bare";

pub(crate) async fn serve() {
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        max_body: 1 << 20,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(75),
        max_connections: 4096,
        body_memory: 64 << 20,
    };
    let listener = Listener::bind(config).await.unwrap();
    println!("{}", listener.address().unwrap());
    let routes = warp::post().and(warp::header::headers_cloned()).and(warp::body::stream()).then(answer);
    listener.serve(routes, std::future::pending::<tokio::time::Instant>()).await;
}

async fn answer<B: Buf, E: std::fmt::Debug>(
    headers: HeaderMap,
    body: impl Stream<Item = Result<B, E>>,
) -> StatusCode {
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        whole.put(chunk.unwrap());
    }
    if passes(&headers, &whole) { StatusCode::ACCEPTED } else { StatusCode::UNAUTHORIZED }
}

#[derive(Deserialize)]
struct TwoFields<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
}

fn passes(headers: &HeaderMap, body: &[u8]) -> bool {
    let mut signature = [0; 32];
    let Some(header) = headers.get(SIGNATURE_HEADER) else { return false };
    if hex::decode_to_slice(header, &mut signature).is_err() {
        return false;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body);
    mac.verify_slice(&signature).is_ok()
        && serde_json::from_slice::<TwoFields<'_>>(body)
            .is_ok_and(|fields| !fields.id.is_empty() && !fields.event_type.is_empty())
}

/// The server as a child process.
pub(crate) struct Child {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Child {
    pub(crate) fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(ARGUMENT)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: line.trim().parse().unwrap(), process }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
