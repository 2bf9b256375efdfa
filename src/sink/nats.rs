//! The NATS JetStream sink. The only user of async-nats.
//!
//! A driver task owns the connection. It publishes only while connected and while the stream is
//! known to be there: async-nats would queue what is published during an outage and send it
//! later, beside our own retry. An awaited PubAck of the configured stream is the only success.
//! What was given to a socket that then broke is lost without a word and shows as a time-out; so
//! a later message can overtake an earlier one, and the dispatcher keeps one per key under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, context::PublishErrorKind, stream};
use async_nats::{ConnectOptions, Event, HeaderMap};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::{
    Busy, KeyOrder, Message, NatsAuth, NatsConfig, Outcome, Outcomes, PublishError, Sink, SinkStatus,
    StartError, StreamSpec,
};
use crate::envelope::CONTENT_TYPE;

const PING: Duration = Duration::from_secs(10);
/// How long a PubAck, or any answer of the server, is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait between two looks at a stream that is not usable.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Outcomes reported at one time.
const REPORT_MAX: usize = 512;

pub(super) struct NatsSink {
    messages: mpsc::Sender<(u64, Message)>,
    status: Arc<SinkStatus>,
}

impl NatsSink {
    pub(super) fn start(config: NatsConfig, outcomes: Arc<Outcomes>) -> Result<Self, StartError> {
        let status = Arc::<SinkStatus>::default();
        let (connected, is_connected) = watch::channel(false);
        let options = connect_options(&config, &status, connected)?;
        let (messages, received) = mpsc::channel(config.in_flight_max.max(1));
        let driver = Driver {
            config,
            outcomes,
            status: Arc::clone(&status),
            connected: is_connected,
            messages: received,
        };
        tokio::spawn(driver.run(options));
        Ok(Self { messages, status })
    }
}

impl Sink for NatsSink {
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy> {
        self.messages.try_send((token, message.clone())).map_err(|_| Busy)
    }

    fn key_order(&self) -> KeyOrder {
        KeyOrder::OneInFlight
    }

    fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.status)
    }

    fn close(self: Box<Self>, _: Instant) -> BoxFuture<'static, ()> {
        // The driver ends when the channel does.
        async move { drop(self) }.boxed()
    }
}

fn connect_options(
    config: &NatsConfig,
    status: &Arc<SinkStatus>,
    connected: watch::Sender<bool>,
) -> Result<ConnectOptions, StartError> {
    let status = Arc::clone(status);
    let connected = Arc::new(connected);
    let mut options = ConnectOptions::new()
        .name("hookbus")
        .retry_on_initial_connect()
        .ping_interval(PING)
        .request_timeout(Some(ANSWER_WITHIN))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            match &event {
                Event::Connected => {
                    connected.send_replace(true);
                }
                Event::Disconnected | Event::Closed => {
                    connected.send_replace(false);
                    status.set_connected(false);
                    status.set_error(event.to_string());
                }
                Event::ServerError(_) | Event::ClientError(_) => status.set_error(event.to_string()),
                _ => {}
            }
            tracing::debug!(%event, "nats client");
            std::future::ready(())
        });
    if let Some(tls) = &config.tls {
        options = options.require_tls(true);
        if let Some(file) = &tls.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if tls.first {
            options = options.tls_first();
        }
    }
    Ok(match &config.auth {
        NatsAuth::None => options,
        NatsAuth::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        NatsAuth::Token(token) => options.token(token.expose_secret().to_owned()),
        NatsAuth::NkeySeed(seed) => options.nkey(seed.expose_secret().to_owned()),
        NatsAuth::CredsFile(path) => {
            let wrong = |error: std::io::Error| StartError::Config(format!("{}: {error}", path.display()));
            let text = std::fs::read_to_string(path).map_err(wrong)?;
            options.credentials(&text).map_err(wrong)?
        }
    })
}

fn reconnect_delay(attempts: usize) -> Duration {
    ExponentialBackoff::from_millis(2)
        .factor(25)
        .max_delay(Duration::from_secs(2))
        .map(jitter)
        .nth(attempts.min(16))
        .unwrap_or(Duration::from_secs(2))
}

type Ack = BoxFuture<'static, Outcome>;

struct Driver {
    config: NatsConfig,
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
    connected: watch::Receiver<bool>,
    messages: mpsc::Receiver<(u64, Message)>,
}

impl Driver {
    async fn run(mut self, options: ConnectOptions) {
        // With `retry_on_initial_connect` this fails only for what no retry can cure.
        let client = match options.connect(self.config.servers.join(",")).await {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "NATS client cannot start: events wait on disk");
                self.status.set_error(error.to_string());
                // Holding the messages keeps them on disk, where they are safe.
                return std::future::pending().await;
            }
        };
        let context = jetstream::context::ContextBuilder::new()
            .timeout(ANSWER_WITHIN)
            .max_ack_inflight(self.config.in_flight_max * 2)
            .build(client);

        let mut acks: FuturesUnordered<Ack> = FuturesUnordered::new();
        let mut stream_known = false;
        loop {
            let connected = *self.connected.borrow_and_update();
            stream_known &= connected;
            self.status.set_connected(stream_known);
            tokio::select! {
                biased;
                Some(outcome) = acks.next() => {
                    stream_known &= self.report(outcome, &mut acks);
                }
                changed = self.connected.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                known = look_at_stream(&context, &self.config.stream, &self.status), if connected && !stream_known => {
                    stream_known = known;
                }
                message = self.messages.recv(), if stream_known => {
                    let Some((token, message)) = message else { return };
                    match publish(&context, &self.config.stream.name, token, message).await {
                        Ok(ack) => acks.push(ack),
                        Err(error) => self.outcomes.push(Outcome { token, result: Err(error) }),
                    }
                }
            }
        }
    }

    /// Reports this outcome and all others that are there. False if one says that the stream is
    /// not as it was.
    fn report(&self, first: Outcome, acks: &mut FuturesUnordered<Ack>) -> bool {
        let mut outcomes = vec![first];
        while outcomes.len() < REPORT_MAX {
            match acks.next().now_or_never() {
                Some(Some(outcome)) => outcomes.push(outcome),
                _ => break,
            }
        }
        let failure = outcomes.iter().find_map(|outcome| match &outcome.result {
            Err(PublishError::Transient(reason)) => Some(reason.clone()),
            _ => None,
        });
        self.outcomes.push_many(outcomes);
        let fine = failure.is_none();
        if let Some(reason) = failure {
            self.status.set_error(reason);
        }
        fine
    }
}

async fn publish(
    context: &jetstream::Context,
    stream: &str,
    token: u64,
    message: Message,
) -> Result<Ack, PublishError> {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, message.event_id);
    headers.insert("Content-Type", CONTENT_TYPE);
    headers.insert("event-type", message.event_type);
    let sent = context.publish_with_headers(message.destination.to_string(), headers, message.payload);
    let ack = timeout(ANSWER_WITHIN, sent)
        .await
        .map_err(|_| PublishError::Transient("the client takes nothing".to_owned()))?
        .map_err(|error| sort(&error))?;
    let stream = stream.to_owned();
    Ok(async move {
        let result = match ack.await {
            // `duplicate` is a success too: the server has it already.
            Ok(ack) if ack.stream == stream => Ok(()),
            Ok(ack) => Err(PublishError::Transient(format!(
                "stream {} took the event instead of {stream}: two streams claim its subject",
                ack.stream
            ))),
            Err(error) => Err(sort(&error)),
        };
        Outcome { token, result }
    }
    .boxed())
}

/// Permanent is too large and nothing else: a missing or full stream, a missing permission, can
/// be cured.
fn sort(error: &jetstream::context::PublishError) -> PublishError {
    let text = std::error::Error::source(error)
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => PublishError::Permanent(text),
        _ => PublishError::Transient(text),
    }
}

/// Makes sure of the stream; waits a moment where it is not usable. True if it is.
async fn look_at_stream(context: &jetstream::Context, spec: &StreamSpec, status: &SinkStatus) -> bool {
    match check_stream(context, spec).await {
        Ok(()) => true,
        Err(problem) => {
            if status.last_error().as_ref() != Some(&problem) {
                tracing::warn!(stream = spec.name, problem, "stream not usable: events wait on disk");
                status.set_error(problem);
            }
            sleep(jitter(LOOK_AGAIN / 4)).await;
            false
        }
    }
}

async fn check_stream(context: &jetstream::Context, spec: &StreamSpec) -> Result<(), String> {
    let found = context.get_stream(&spec.name).await;
    let config = match found {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(error) if spec.create && is_missing(&error) => {
            let made = context.create_stream(stream_config(spec)).await.map_err(|error| describe(&error))?;
            tracing::info!(stream = spec.name, subjects = ?spec.subjects, "stream created");
            made.cached_info().config.clone()
        }
        Err(error) if is_missing(&error) => {
            return Err(format!("stream {} does not exist: make it, or set stream.create: true", spec.name));
        }
        Err(error) => return Err(describe(&error)),
    };
    warn_of_weakness(spec, &config);
    Ok(())
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::context::GetStreamErrorKind;
    matches!(
        error.kind(),
        GetStreamErrorKind::JetStream(answer) if answer.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND
    )
}

fn describe(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// `discard: new`: a full stream must refuse, not delete the oldest.
fn stream_config(spec: &StreamSpec) -> stream::Config {
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

fn warn_of_weakness(spec: &StreamSpec, found: &stream::Config) {
    let stream = &spec.name;
    if found.discard != stream::DiscardPolicy::New {
        tracing::warn!(stream, "discard is `old`: a full stream deletes its oldest events");
    }
    if found.storage != stream::StorageType::File {
        tracing::warn!(stream, "storage is `memory`: a restart of the server empties the stream");
    }
    if found.duplicate_window < spec.duplicate_window {
        tracing::warn!(
            stream,
            found_s = found.duplicate_window.as_secs(),
            wanted_s = spec.duplicate_window.as_secs(),
            "duplicate window is shorter than configured: more repeats after an outage"
        );
    }
    let missing: Vec<_> = spec.subjects.iter().filter(|subject| !found.subjects.contains(subject)).collect();
    if !missing.is_empty() {
        tracing::warn!(stream, ?missing, found = ?found.subjects, "check that the stream's subjects cover ours");
    }
}
