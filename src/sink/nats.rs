//! The NATS JetStream sink. The only user of async-nats.
//!
//! A driver task owns the connection. It publishes only while connected and while the stream is
//! known to be there: async-nats would queue what is published during an outage and send it
//! later, beside our own retry. An ack of the configured stream is the only success. What was
//! given to a socket that then broke is lost without a word, and a message can so be overtaken by
//! a later one; the dispatcher therefore keeps one per key under way.
//!
//! All acks come in through one subscription, told apart by the number at the end of the reply
//! subject: much cheaper than a future, a timer and a channel for each message.
//! `Nats-Expected-Stream` makes any other stream that claims our subject refuse the event,
//! instead of keeping a stray copy of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::nats_stream::check_stream;
use super::{
    Busy, KeyOrder, Message, NatsAuth, NatsConfig, Outcome, Outcomes, PublishError, Sink, SinkStatus,
    StartError,
};
use crate::envelope::CONTENT_TYPE;

const PING: Duration = Duration::from_secs(10);
/// How long an ack, or any answer of the server, is waited for.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The client's events wake the driver; should one be lost, it looks for itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait between two looks at a stream that is not usable.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Messages published, and outcomes reported, at one time.
const BATCH: usize = 256;

const EVENT_TYPE: HeaderName = HeaderName::from_static("event-type");
const CONTENT_TYPE_NAME: HeaderName = HeaderName::from_static("Content-Type");

pub(super) struct NatsSink {
    messages: mpsc::Sender<Parcel>,
    status: Arc<SinkStatus>,
    driver: JoinHandle<()>,
}

struct Parcel {
    token: u64,
    message: Message,
}

impl NatsSink {
    pub(super) fn start(config: NatsConfig, outcomes: Arc<Outcomes>) -> Result<Self, StartError> {
        let status = Arc::<SinkStatus>::default();
        let (links, link) = watch::channel(0);
        let options = connect_options(&config, &status, links)?;
        let (messages, received) = mpsc::channel(config.in_flight_max.max(1));
        let shared = Shared { config, outcomes, status: Arc::clone(&status) };
        let driver = tokio::spawn(drive(shared, options, received, link));
        Ok(Self { messages, status, driver })
    }
}

impl Drop for NatsSink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Sink for NatsSink {
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy> {
        self.messages.try_send(Parcel { token, message: message.clone() }).map_err(|_| Busy)
    }

    fn key_order(&self) -> KeyOrder {
        KeyOrder::OneInFlight
    }

    fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.status)
    }

    fn close(mut self: Box<Self>, deadline: Instant) -> BoxFuture<'static, ()> {
        async move {
            // The driver ends once it has the outcome of all that it took.
            let (closed, _) = mpsc::channel(1);
            self.messages = closed;
            let ended = timeout(deadline.saturating_duration_since(Instant::now()), &mut self.driver).await;
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "the NATS driver ended badly");
            }
        }
        .boxed()
    }
}

/// `links` counts what happened to the connection; it is 0 until there has been one.
fn connect_options(
    config: &NatsConfig,
    status: &Arc<SinkStatus>,
    links: watch::Sender<u64>,
) -> Result<ConnectOptions, StartError> {
    let status = Arc::clone(status);
    let links = Arc::new(links);
    let mut options = ConnectOptions::new()
        .name("hookbus")
        .retry_on_initial_connect()
        .ping_interval(PING)
        .request_timeout(Some(ANSWER_WITHIN))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            match &event {
                Event::Connected => links.send_modify(|count| *count += 1),
                Event::Disconnected | Event::Closed => {
                    links.send_modify(|count| *count += 1);
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

struct Shared {
    config: NatsConfig,
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
}

impl Shared {
    fn report(&self, token: u64, result: Result<(), PublishError>, into: &mut Vec<Outcome>) {
        match &result {
            Ok(()) => self.status.acked(),
            Err(PublishError::Transient(reason)) => self.status.failed(reason),
            Err(PublishError::Permanent(_)) => {}
        }
        into.push(Outcome { token, result });
    }
}

async fn drive(
    shared: Shared,
    options: ConnectOptions,
    messages: mpsc::Receiver<Parcel>,
    link: watch::Receiver<u64>,
) {
    // With `retry_on_initial_connect` this fails only for what no retry can cure.
    let connected = options.connect(&shared.config.servers).await.map_err(|error| error.to_string());
    let opened = match connected {
        Ok(client) => {
            let inbox = client.new_inbox();
            let acks = client.subscribe(format!("{inbox}.*")).await.map_err(|error| error.to_string());
            acks.map(|acks| (client, inbox, acks))
        }
        Err(error) => Err(error),
    };
    match opened {
        Ok((client, inbox, acks)) => {
            let under_way = UnderWay { inbox, first: 0, slots: VecDeque::new() };
            let driver = Driver {
                shared,
                client,
                acks,
                under_way,
                messages,
                link,
                usable: false,
                weaknesses: Vec::new(),
            };
            driver.run().await;
        }
        Err(error) => {
            tracing::error!(error, "NATS client cannot start: events wait on disk");
            shared.status.set_error(error);
            // Holding the messages keeps them on disk, where they are safe.
            std::future::pending().await
        }
    }
}

/// Published and not yet acked, numbered in the order of publishing.
struct UnderWay {
    inbox: String,
    first: u64,
    /// `None` once acked.
    slots: VecDeque<Option<(u64, Instant)>>,
}

impl UnderWay {
    /// The reply subject of the next publish.
    fn reply(&self) -> String {
        let number = self.first + u64::try_from(self.slots.len()).unwrap_or(u64::MAX);
        format!("{}.{number}", self.inbox)
    }

    fn push(&mut self, token: u64, deadline: Instant) {
        self.slots.push_back(Some((token, deadline)));
    }

    /// The token of what this reply is for; `None` if that has been reported already.
    fn take(&mut self, reply: &str) -> Option<u64> {
        let number: u64 = reply.strip_prefix(&self.inbox)?.strip_prefix('.')?.parse().ok()?;
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let (token, _) = self.slots.get_mut(place)?.take()?;
        self.trim();
        Some(token)
    }

    fn trim(&mut self) {
        while self.slots.pop_front_if(|slot| slot.is_none()).is_some() {
            self.first += 1;
        }
    }

    /// When the oldest is given up.
    fn deadline(&self) -> Option<Instant> {
        self.slots.front().and_then(|slot| slot.map(|(_, deadline)| deadline))
    }

    fn expired(&mut self, now: Instant) -> Option<u64> {
        let slot = self.slots.pop_front_if(|slot| slot.is_some_and(|(_, deadline)| deadline <= now))?;
        self.first += 1;
        self.trim();
        slot.map(|(token, _)| token)
    }

    /// Gives all up. Their numbers are not used again, so that late acks find nothing.
    fn drain(&mut self) -> Vec<u64> {
        self.first += u64::try_from(self.slots.len()).unwrap_or(0);
        self.slots.drain(..).flatten().map(|(token, _)| token).collect()
    }
}

/// Finds out whether the stream is usable, and what is weak about it.
type Look = BoxFuture<'static, Result<Vec<String>, String>>;

struct Driver {
    shared: Shared,
    client: Client,
    acks: Subscriber,
    under_way: UnderWay,
    messages: mpsc::Receiver<Parcel>,
    link: watch::Receiver<u64>,
    /// Connected, and the stream was there when it was last looked at.
    usable: bool,
    /// What has been warned of.
    weaknesses: Vec<String>,
}

impl Driver {
    /// Until the sink is closed and all that was taken has its outcome.
    async fn run(mut self) {
        let mut look: Option<Look> = None;
        let mut waits = backoff();
        let mut parcels = Vec::with_capacity(BATCH);
        let mut closed = false;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        while !(closed && self.under_way.slots.is_empty()) {
            if self.client.connection_state() != State::Connected {
                self.usable = false;
                look = None;
            } else if !self.usable && look.is_none() {
                look = Some(self.look(Duration::ZERO));
            }
            self.shared.status.set_connected(self.usable);
            tokio::select! {
                biased;
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.link_changed();
                    look = None;
                }
                Some(ack) = self.acks.next() => self.take_acks(ack),
                result = settled(&mut look) => {
                    look = None;
                    match result {
                        Ok(weaknesses) => {
                            self.usable = true;
                            waits = backoff();
                            self.warn(weaknesses);
                        }
                        Err(problem) => {
                            self.complain(problem);
                            look = Some(self.look(jitter(waits.next().unwrap_or(LONGEST_WAIT))));
                        }
                    }
                }
                count = self.messages.recv_many(&mut parcels, BATCH), if self.usable && !closed => {
                    closed = count == 0;
                    self.publish(&mut parcels).await;
                }
                () = at(self.under_way.deadline()) => self.expire(),
                _ = tick.tick() => {
                    closed |= self.messages.is_closed() && self.messages.is_empty();
                }
            }
        }
        // What is in the client's own buffers goes out before the connection is let go.
        if timeout(LOOK_EVERY, self.client.flush()).await.is_err() {
            tracing::debug!("the NATS client did not flush");
        }
    }

    fn look(&self, wait: Duration) -> Look {
        let (client, spec) = (self.client.clone(), self.shared.config.stream.clone());
        async move {
            sleep(wait).await;
            check_stream(client, &spec).await
        }
        .boxed()
    }

    fn warn(&mut self, weaknesses: Vec<String>) {
        if weaknesses != self.weaknesses {
            for weakness in &weaknesses {
                tracing::warn!(
                    stream = self.shared.config.stream.name,
                    weakness,
                    "the stream may lose events"
                );
            }
            self.weaknesses = weaknesses;
        }
    }

    fn complain(&self, problem: String) {
        let status = &self.shared.status;
        if status.last_error().as_ref() != Some(&problem) {
            tracing::warn!(problem, "stream not usable: events wait on disk");
            status.set_error(problem);
        }
    }

    /// The link broke, or is a new one: what was given to the old one may be lost, and is
    /// published again. The server knows what it has by the event's id.
    fn link_changed(&mut self) {
        self.usable = false;
        let mut outcomes = Vec::new();
        for token in self.under_way.drain() {
            let lost = PublishError::Transient("the connection broke before the ack came".to_owned());
            self.shared.report(token, Err(lost), &mut outcomes);
        }
        self.shared.outcomes.push_many(outcomes);
    }

    async fn publish(&mut self, parcels: &mut Vec<Parcel>) {
        let mut failed = Vec::new();
        let deadline = Instant::now() + ANSWER_WITHIN;
        for Parcel { token, message } in parcels.drain(..) {
            match send(&self.client, &self.shared.config.stream.name, self.under_way.reply(), message).await {
                Ok(()) => self.under_way.push(token, deadline),
                Err(error) => self.shared.report(token, Err(error), &mut failed),
            }
        }
        if !failed.is_empty() {
            self.shared.outcomes.push_many(failed);
        }
    }

    /// Takes this ack and all others that are there.
    fn take_acks(&mut self, first: async_nats::Message) {
        let mut outcomes = Vec::with_capacity(BATCH);
        let mut next = Some(first);
        while let Some(ack) = next {
            if let Some(token) = self.under_way.take(&ack.subject) {
                let result = read_ack(ack.status, &ack.payload, &self.shared.config.stream.name);
                // The stream may be another by now: look before more is published.
                self.usable &= !matches!(result, Err(PublishError::Transient(_)));
                self.shared.report(token, result, &mut outcomes);
            }
            next = if outcomes.len() < BATCH { self.acks.next().now_or_never().flatten() } else { None };
        }
        self.shared.outcomes.push_many(outcomes);
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let mut outcomes = Vec::new();
        while let Some(token) = self.under_way.expired(now) {
            let silent = PublishError::Transient(format!("no ack within {} s", ANSWER_WITHIN.as_secs()));
            self.shared.report(token, Err(silent), &mut outcomes);
        }
        self.usable &= outcomes.is_empty();
        self.shared.outcomes.push_many(outcomes);
    }
}

async fn send(client: &Client, stream: &str, reply: String, message: Message) -> Result<(), PublishError> {
    let Message { destination, event_id, event_type, payload, .. } = message;
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, header(&event_id)?);
    headers.insert(async_nats::header::NATS_EXPECTED_STREAM, header(stream)?);
    headers.insert(CONTENT_TYPE_NAME, header(CONTENT_TYPE)?);
    headers.insert(EVENT_TYPE, header(&event_type)?);
    let sending = client.publish_with_reply_and_headers(destination.to_string(), reply, headers, payload);
    // Waits only while the client's own queue is full, which a broken link can cause.
    let sent = timeout(ANSWER_WITHIN, sending)
        .await
        .map_err(|_| PublishError::Transient("the client's queue stays full".to_owned()))?;
    sent.map_err(|error| {
        let text = describe(&error);
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
                PublishError::Permanent(text)
            }
            PublishErrorKind::Send => PublishError::Transient(text),
        }
    })
}

/// async-nats panics on a line break in a value unless it is parsed.
fn header(value: &str) -> Result<HeaderValue, PublishError> {
    value.parse().map_err(|_| PublishError::Permanent(format!("line break in header value {value:?}")))
}

/// A JetStream answer to a publish: an ack, or an error.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    stream: Option<std::borrow::Cow<'a, str>>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// A message larger than the stream's own limit: `JSStreamMessageExceedsMaximumErr`.
const EXCEEDS_MAXIMUM: u64 = 10054;

/// A duplicate is a success too: the server has it already. Of the server's errors only "too
/// large" is final; a missing or full stream, or a missing permission, can be cured.
fn read_ack(status: Option<StatusCode>, payload: &Bytes, expected: &str) -> Result<(), PublishError> {
    if status == Some(StatusCode::NO_RESPONDERS) {
        return Err(PublishError::Transient("no stream takes this subject, or JetStream is off".to_owned()));
    }
    let answer: Answer<'_> = serde_json::from_slice(payload)
        .map_err(|error| PublishError::Transient(format!("answer not understood: {error}")))?;
    match answer {
        Answer { error: Some(refusal), .. } => {
            let Refusal { code, err_code, description } = refusal;
            let text = format!("{description} (code {code}, err_code {err_code})");
            Err(match err_code {
                EXCEEDS_MAXIMUM => PublishError::Permanent(text),
                _ => PublishError::Transient(text),
            })
        }
        Answer { stream: Some(stream), .. } if stream == expected => Ok(()),
        Answer { stream, .. } => Err(PublishError::Transient(format!(
            "stream {} took the event instead of {expected}",
            stream.as_deref().unwrap_or("without a name")
        ))),
    }
}

pub(super) fn describe(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn backoff() -> ExponentialBackoff {
    ExponentialBackoff::from_millis(2).factor(50).max_delay(LONGEST_WAIT)
}

async fn settled(look: &mut Option<Look>) -> Result<Vec<String>, String> {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under_way(count: u64) -> UnderWay {
        let mut under_way = UnderWay { inbox: "_INBOX.x".to_owned(), first: 0, slots: VecDeque::new() };
        for number in 0..count {
            assert_eq!(under_way.reply(), format!("_INBOX.x.{number}"));
            under_way.push(100 + number, Instant::now());
        }
        under_way
    }

    #[test]
    fn each_token_comes_back_once_whatever_order_acks_come_in() {
        let mut under_way = under_way(3);
        assert_eq!(under_way.take("_INBOX.x.1"), Some(101));
        assert_eq!(under_way.take("_INBOX.x.1"), None, "twice");
        assert_eq!(under_way.take("_INBOX.x.9"), None, "never published");
        assert_eq!(under_way.take("_INBOX.y.0"), None, "not ours");
        assert_eq!(under_way.expired(Instant::now()), Some(100));
        assert_eq!(under_way.take("_INBOX.x.0"), None, "late");
        assert_eq!(under_way.drain(), [102]);
        assert_eq!(under_way.reply(), "_INBOX.x.3", "numbers are not used again");
        assert_eq!(under_way.deadline(), None);
    }

    #[test]
    fn answers_are_sorted_by_what_to_do_next() {
        let read = |text: &'static str| read_ack(None, &Bytes::from_static(text.as_bytes()), "E");
        assert_eq!(read(r#"{"stream":"E","seq":1}"#), Ok(()));
        assert_eq!(read(r#"{"stream":"E","seq":1,"duplicate":true}"#), Ok(()));
        let transient = |result| matches!(result, Err(PublishError::Transient(_)));
        assert!(transient(read(r#"{"stream":"F","seq":1}"#)));
        assert!(transient(read(
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"E","seq":0}"#
        )));
        assert!(transient(read("+OK")));
        assert!(transient(read_ack(Some(StatusCode::NO_RESPONDERS), &Bytes::new(), "E")));
        assert!(matches!(
            read(
                r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#
            ),
            Err(PublishError::Permanent(_))
        ));
    }

    #[test]
    fn a_line_break_in_a_header_is_refused_without_a_panic() {
        assert!(matches!(header("a\r\nb"), Err(PublishError::Permanent(_))));
    }
}
