//! A real NATS server with JetStream, and a plain consumer of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Log, Process};
use super::seen::{Position, Seen};
use super::{PATIENCE, blocking, eventually, port, provision, scratch_dir};

pub(crate) struct Nats {
    // Before the directory: what runs in it ends first.
    process: Option<Process>,
    program: PathBuf,
    port: u16,
    /// `user:password`, or empty.
    login: String,
    dir: TempDir,
    log: Log,
}

impl Nats {
    pub(crate) async fn start() -> Self {
        Self::start_with("", "").await
    }

    /// Starts a server whose configuration ends in `snippet`; our own consumer logs in as `login`
    /// (`user:password`, or nothing).
    pub(crate) async fn start_with(snippet: &str, login: &str) -> Self {
        let mut nats = Self::down_with(snippet, login).await;
        nats.restart().await;
        nats
    }

    /// A server that does not run yet, but whose address is known; `restart` starts it.
    pub(crate) async fn down() -> Self {
        Self::down_with("", "").await
    }

    async fn down_with(snippet: &str, login: &str) -> Self {
        let program = blocking(provision::nats_server).await;
        let dir = scratch_dir();
        let port = port::free();
        // Durable acks: a PubAck comes after the sync, so that kill -9 and power cuts prove the same.
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: kit\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always }}\n{snippet}\n",
            dir.path().join("store").display()
        );
        fs::write(dir.path().join("nats.conf"), config).expect("a fresh folder");
        Self { process: None, program, port, login: login.to_owned(), dir, log: Log::default() }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again on the same port and directory; returns when it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none(), "kill it before you restart it");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.dir.path().join("nats.conf"));
        let process = self.process.insert(Process::spawn("nats-server", command, &self.log, "reinstall it"));
        let port = self.port;
        let log = &self.log;
        eventually(PATIENCE, "nats-server greets", async || {
            if let Some(status) = process.has_exited() {
                return Err(format!("it exited with {status}:\n{}", log.tail()));
            }
            blocking(move || greeting(port)).await.map_err(|e| e.to_string())
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGSTOP: frozen, with its sockets open.
    pub(crate) fn stop(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// A client of our own, for what a test has to set up or look at.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        let options = match self.login.split_once(':') {
            Some((user, password)) => {
                ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            }
            None => ConnectOptions::new(),
        };
        let client = eventually(PATIENCE, "our own client connects to NATS", async || {
            options.clone().connect(self.url()).await
        });
        jetstream::new(client.await)
    }

    /// Everything that the stream holds, in its order; nothing if there is no such stream.
    pub(crate) async fn read(&self, stream: &str) -> Vec<Seen> {
        tokio::time::timeout(PATIENCE, self.read_unbounded(stream))
            .await
            .unwrap_or_else(|_| panic!("reading the stream {stream} took longer than {PATIENCE:?}"))
    }

    async fn read_unbounded(&self, name: &str) -> Vec<Seen> {
        let jetstream = self.jetstream().await;
        let mut stream = match jetstream.get_stream(name).await {
            Ok(stream) => stream,
            Err(error) if is_missing(&error) => return Vec::new(),
            Err(error) => panic!("cannot open the stream {name}: {error}"),
        };
        let count = stream.info().await.expect("the stream answers").state.messages;
        let mut seen = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        if count == 0 {
            return seen;
        }
        let config = OrderedConfig { deliver_policy: DeliverPolicy::All, ..OrderedConfig::default() };
        let consumer = stream.create_consumer(config).await.expect("the stream takes a consumer");
        let mut messages = consumer.messages().await.expect("the consumer delivers");
        while let Some(message) = messages.next().await {
            let message = message.expect("the consumer delivers");
            let info = message.info().expect("JetStream says where a message stands");
            let (offset, is_last) = (info.stream_sequence, info.pending == 0);
            let headers = message.headers.iter().flat_map(|headers| headers.iter()).map(|(name, values)| {
                let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
                (name.to_string(), values.join(", "))
            });
            seen.push(Seen {
                destination: message.subject.to_string(),
                key: None,
                headers: headers.collect(),
                payload: message.payload.to_vec(),
                position: Position { partition: 0, offset },
            });
            if is_last {
                break;
            }
        }
        seen
    }
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::ErrorCode;
    use jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// A server says INFO on a new connection, but only once JetStream has recovered.
fn greeting(port: u16) -> std::io::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.starts_with("INFO ") {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("greeted by {line:?}")))
    }
}

/// A stream as an operator would make it, for tests in which the bridge may not create one.
pub(crate) fn durable_stream(name: &str, subjects: &[&str]) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    }
}
