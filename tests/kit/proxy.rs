//! A TCP proxy that plays the network at its worst.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::port;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Bytes pass.
    Fair,
    /// Each piece waits before it passes.
    Slow(Duration),
    /// A partition: nothing passes either way, and nobody is told. What is under way passes when the
    /// weather changes, as with a network that heals.
    Hole,
    /// What the client sends arrives; the answers are gone for good. Such a connection is reset when the
    /// weather changes: its stream has a gap.
    DeafClient,
    /// The other way round.
    DeafServer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

pub(crate) struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    /// Counted up to cut every connection.
    cuts: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of the loopback and connects to `server` for each client.
    pub(crate) async fn start(server: SocketAddr) -> Self {
        Self::start_on(port::free(), server).await
    }

    /// As `start`, for servers that must know beforehand what to advertise.
    pub(crate) async fn start_on(port: u16, server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
        let (weather, cuts) = (watch::Sender::new(Weather::Fair), watch::Sender::new(0));
        let (weather_seen, cuts_seen) = (weather.subscribe(), cuts.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, server, weather_seen.clone(), cuts_seen.clone()));
            }
        });
        Self { port, weather, cuts, accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets every connection (RST, both ends); new ones are taken as before.
    pub(crate) fn reset_all(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.reset_all();
    }
}

async fn join(
    mut client: TcpStream,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut cuts: watch::Receiver<u64>,
) {
    let seen = *cuts.borrow_and_update();
    // In a hole not even a connection is made.
    if weather.clone().wait_for(|weather| *weather != Weather::Hole).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    for end in [&client, &server] {
        end.set_nodelay(true).expect("a socket of ours");
        // Closing is then a reset, so that nobody takes a cut for a clean end.
        end.set_zero_linger().expect("a socket of ours");
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pump(from_client, to_server, Direction::ToServer, weather.clone()) => {}
        () = pump(from_server, to_client, Direction::ToClient, weather) => {}
        _ = cuts.wait_for(|cuts| *cuts != seen) => {}
    }
}

/// Moves bytes one way; ends when either end does, or when the stream has a gap.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut has_gap = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            changed = weather.changed() => {
                if has_gap || changed.is_err() {
                    return;
                }
                continue;
            }
        };
        let count = match read {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let Ok(now) = weather.wait_for(|weather| *weather != Weather::Hole).await.map(|now| *now) else {
            return;
        };
        match (now, direction) {
            (Weather::DeafClient, Direction::ToClient) | (Weather::DeafServer, Direction::ToServer) => {
                has_gap = true;
                continue;
            }
            _ if has_gap => return,
            (Weather::Slow(pause), _) => tokio::time::sleep(pause).await,
            _ => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
