//! The generator: plain sockets, requests signed and laid out ahead of time.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::kit::provider::{SECRET, SIGNATURE_HEADER, signature};

/// Distinct resources that the events are about.
const RESOURCES: usize = 1_000;
/// Bodies are filled up to about so many bytes.
const BODY_BYTES: usize = 1_024;

/// Ids are distinct over all runs of a process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
pub(crate) struct Requests(Arc<Vec<Bytes>>);

impl Requests {
    pub(crate) fn signed(count: usize) -> Self {
        let first = NEXT_ID.fetch_add(count as u64, Ordering::Relaxed);
        let run = std::process::id();
        let one = |n: u64| {
            let mut body = format!(
                r#"{{"id":"evt_{run}_{n}","type":"server.started","created_at":"2025-01-15T10:30:00Z","data":{{"server_id":"srv_{}","name":"production-web-01","status":"running","ip":"192.168.1.100","note":""#,
                n as usize % RESOURCES
            );
            let fill = BODY_BYTES.saturating_sub(body.len() + 3);
            body.extend(std::iter::repeat_n('x', fill));
            body.push_str("\"}}");
            let mut request = String::with_capacity(body.len() + 256);
            write!(
                request,
                "POST /hooks/prod HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 {SIGNATURE_HEADER}: {}\r\ncontent-length: {}\r\n\r\n{body}",
                signature(SECRET, body.as_bytes()),
                body.len()
            )
            .unwrap();
            Bytes::from(request)
        };
        Self(Arc::new((first..first + count as u64).map(one).collect()))
    }
}

#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) took: Duration,
    latencies: Vec<Duration>,
}

impl Figures {
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        let index = (self.latencies.len() as f64 * percent / 100.0) as usize;
        self.latencies.get(index.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn sum(parts: Vec<Self>, took: Duration) -> Self {
        let mut sum = Self { took, ..Self::default() };
        for part in parts {
            sum.accepted += part.accepted;
            sum.refused += part.refused;
            sum.latencies.extend(part.latencies);
        }
        sum.latencies.sort_unstable();
        sum
    }

    fn note(&mut self, accepted: bool, latency: Duration) {
        if accepted {
            self.accepted += 1;
        } else {
            self.refused += 1;
        }
        self.latencies.push(latency);
    }
}

/// Each connection sends its next request when the last is answered, until the time or the
/// requests are used up.
pub(crate) async fn closed_loop(
    address: SocketAddr,
    requests: &Requests,
    connections: usize,
    lasts: Duration,
) -> Figures {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (requests, next) = (requests.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await;
                let mut figures = Figures::default();
                while began.elapsed() < lasts {
                    let Some(request) = requests.0.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let sent = Instant::now();
                    figures.note(connection.exchange(request).await, sent.elapsed());
                }
                figures
            })
        })
        .collect();
    gather(tasks, began).await
}

/// Requests leave at their times whatever became of the ones before; latency counts from the
/// time at which a request should have left.
pub(crate) async fn fixed_rate(
    address: SocketAddr,
    requests: &Requests,
    connections: usize,
    rate: u64,
) -> Figures {
    let began = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|first| {
            let requests = requests.clone();
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await;
                let mut figures = Figures::default();
                for index in (first..requests.0.len()).step_by(connections) {
                    let due = began + Duration::from_secs_f64(index as f64 / rate as f64);
                    tokio::time::sleep_until(due.into()).await;
                    figures.note(connection.exchange(&requests.0[index]).await, due.elapsed());
                }
                figures
            })
        })
        .collect();
    gather(tasks, began).await
}

async fn gather(tasks: Vec<tokio::task::JoinHandle<Figures>>, began: Instant) -> Figures {
    let mut parts = Vec::new();
    for task in tasks {
        parts.push(task.await.unwrap());
    }
    Figures::sum(parts, began.elapsed())
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: vec![0; 4096] }
    }

    /// Sends one request and reads its answer, which has no body when it is 202.
    async fn exchange(&mut self, request: &[u8]) -> bool {
        self.stream.write_all(request).await.unwrap();
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            filled += read;
            if self.buffer[..filled].windows(4).any(|four| four == b"\r\n\r\n") {
                return self.buffer.starts_with(b"HTTP/1.1 202");
            }
        }
    }
}
