//! The Kafka sink, on librdkafka's idempotent producer.
//!
//! What is relied on: a delivery report is the only success, and every message gets one; within
//! one producer session librdkafka retries without reordering or repeating in a partition. What
//! is not: its time-outs (switched off: the spool keeps events for as long as an outage lasts),
//! its queue (bounded by the dispatcher's window), and that a session lasts.
//!
//! A session ends when the client fails for good, and when a message is refused for a reason that
//! is its own or its batch's. Then all that is under way is purged, which gives each message its
//! outcome, and a new producer is fed from the window, in order. (A purge alone would not do: it
//! leaves a gap in the sequence that the broker expects.)
//!
//! `enable.gapless.guarantee` is set. librdkafka calls it experimental; without it, it renumbers
//! and sends what is queued behind a refused batch before the purge comes, so that those messages
//! overtake it, within a key too: seen on the mock cluster and on Kafka 4.1, and gone with it on
//! both. Its price is a new session after any such refusal, and repeats of what was under way.
//!
//! Some errors hold for a whole topic (missing, not permitted); all its messages meet them, so the
//! session goes on for the others. Left over there is the instant in which permission is granted.
//!
//! Kafka limits the size of a *batch*. A small message can be refused for its neighbours, so a
//! refusal is final only for a message that was alone in its batch; otherwise batches shrink.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use secrecy::ExposeSecret as _;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::kafka_topics::Topics;
use super::{
    Busy, KafkaConfig, KeyOrder, Message, Outcome, Outcomes, PublishError, Sink, SinkStatus, StartError,
};
use crate::envelope::CONTENT_TYPE;

/// Bytes in the client's queue, at least; the window's own cap is smaller.
const QUEUE_KBYTES: usize = 64 * 1024;
/// librdkafka's default for `batch.size`.
const BATCH_BYTES: usize = 1_000_000;
/// After so long in peace, batches that had to shrink are tried at full size again.
const REGROW_AFTER: Duration = Duration::from_secs(300);
/// Errands that wait to be run; more are asked for again by the next failure.
const ERRANDS: usize = 256;

pub(super) struct KafkaSink {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

pub(super) struct Shared {
    client: ClientConfig,
    /// None while a new one is being made. Held while a message is handed over, so that none
    /// slips into a session that is being purged.
    session: Mutex<Option<Session>>,
    ended: Arc<Notify>,
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
    topics: mpsc::Sender<String>,
    batch_max: usize,
}

/// One producer, from its making to its end.
#[derive(Clone)]
struct Session {
    producer: ThreadedProducer<Reports>,
    end: Arc<End>,
    started: Instant,
}

/// Set from callbacks, acted upon by the keeper.
struct End {
    over: AtomicBool,
    /// Batches must be smaller.
    shrink: AtomicBool,
    /// Bytes that make a message fill a batch alone.
    batch_bytes: usize,
    /// The first reason.
    why: OnceLock<String>,
    notify: Arc<Notify>,
}

impl End {
    fn set(&self, why: &str) {
        let _first = self.why.get_or_init(|| why.to_owned());
        self.over.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn is_set(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Receives librdkafka's callbacks, on the producer's polling thread.
struct Reports {
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
    topics: mpsc::Sender<String>,
    end: Arc<End>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::Fatal) => self.end.set(reason),
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Authentication) => {
                self.status.set_connected(false);
            }
            _ => {}
        }
        self.status.set_error(reason.to_owned());
        tracing::debug!(?code, reason, "kafka client");
    }
}

impl ProducerContext for Reports {
    /// The token: no allocation per message.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let result = match result {
            Ok(_) => {
                self.status.acked();
                Ok(())
            }
            Err((error, message)) => {
                let bytes = message.payload_len() + message.key_len();
                Err(self.refused(error, message.topic(), bytes))
            }
        };
        self.outcomes.push(Outcome { token: as_u64(token), result });
    }
}

impl Reports {
    /// What becomes of a message that was not confirmed, and of its session.
    fn refused(&self, error: &KafkaError, topic: &str, bytes: usize) -> PublishError {
        let text = error.to_string();
        match error.rdkafka_error_code().map_or(Verdict::EndsSession, verdict) {
            Verdict::Poison if bytes >= self.end.batch_bytes => return PublishError::Permanent(text),
            Verdict::Poison => {
                self.end.shrink.store(true, Ordering::Release);
                self.end.set(&text);
            }
            Verdict::EndsSession => self.end.set(&text),
            Verdict::TopicUnusable => {
                // A full queue means that much is being looked at already.
                drop(self.topics.try_send(topic.to_owned()));
            }
            // Why is in the status already.
            Verdict::Purged => {
                self.status.count_retry();
                return PublishError::Transient(text);
            }
        }
        self.status.failed(&text);
        PublishError::Transient(text)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// This message, or one in the same batch, will never be taken.
    Poison,
    /// Every message to this topic meets this, until an operator or time cures it.
    TopicUnusable,
    /// By ourselves, at the end of a session.
    Purged,
    /// Anything else: messages behind this one must not overtake it.
    EndsSession,
}

fn verdict(code: RDKafkaErrorCode) -> Verdict {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => Verdict::Poison,
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::LeaderNotAvailable
        | Code::TopicAuthorizationFailed => Verdict::TopicUnusable,
        Code::PurgeQueue | Code::PurgeInflight => Verdict::Purged,
        _ => Verdict::EndsSession,
    }
}

impl KafkaSink {
    pub(super) fn start(config: KafkaConfig, outcomes: Arc<Outcomes>) -> Result<Self, StartError> {
        let (topics, asked) = mpsc::channel(ERRANDS.max(config.topics.len()));
        let configured = config.options.get("batch.size").and_then(|text| text.parse().ok());
        let shared = Arc::new(Shared {
            client: client_config(&config),
            session: Mutex::new(None),
            ended: Arc::default(),
            outcomes,
            status: Arc::default(),
            topics,
            batch_max: configured.unwrap_or(BATCH_BYTES),
        });
        let session =
            shared.build(shared.batch_max).map_err(|error| StartError::Config(error.to_string()))?;
        *shared.lock() = Some(session);
        for topic in config.topics {
            // There is a place for each.
            drop(shared.topics.try_send(topic));
        }
        tokio::spawn(Topics::new(config.create_topics, Arc::downgrade(&shared)).run(asked));
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Ok(Self { shared, keeper })
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Sink for KafkaSink {
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy> {
        let shared = &self.shared;
        if shared.outcomes.has_failures() {
            // The dispatcher would hand over what belongs behind the one that failed.
            return Err(Busy);
        }
        let session = shared.lock();
        let Some(Session { producer, end, .. }) = session.as_ref().filter(|s| !s.end.is_set()) else {
            return Err(Busy);
        };
        let headers = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: "content-type", value: Some(CONTENT_TYPE) })
            .insert(Header { key: "event-id", value: Some(&message.event_id) })
            .insert(Header { key: "event-type", value: Some(&message.event_type) });
        let opaque = usize::try_from(token).map_err(|_| Busy)?;
        let record = BaseRecord::with_opaque_to(&message.destination, opaque)
            .key(&message.key)
            .payload(message.payload.as_ref())
            .headers(headers);
        let Err((error, _)) = producer.send(record) else { return Ok(()) };
        let error = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => return Err(Busy),
            Some(RDKafkaErrorCode::Fatal) => {
                end.set(&error.to_string());
                return Err(Busy);
            }
            // Refused here, before any batch was made.
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => PublishError::Permanent(error.to_string()),
            Some(_) => producer.context().refused(&error, &message.destination, 0),
            // A topic with a zero byte.
            None => PublishError::Permanent(error.to_string()),
        };
        drop(session);
        shared.outcomes.push(Outcome { token, result: Err(error) });
        Ok(())
    }

    fn key_order(&self) -> KeyOrder {
        KeyOrder::Pipelined
    }

    fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.shared.status)
    }

    fn close(self: Box<Self>, deadline: Instant) -> BoxFuture<'static, ()> {
        self.keeper.abort();
        let session = self.shared.lock().take();
        let (closed, wait) = oneshot::channel();
        // Ending a producer blocks.
        let thread = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
            if let Some(session) = session {
                while session.producer.in_flight_count() > 0 && Instant::now() < deadline {
                    std::thread::sleep(LOOK_EVERY);
                }
                session.retire();
            }
            drop(self);
            closed.send(()).unwrap_or_default();
        });
        async move {
            match thread {
                Ok(_) => drop(wait.await),
                Err(error) => tracing::warn!(%error, "no thread to close the kafka producer on"),
            }
        }
        .boxed()
    }
}

/// How often a queue that should become empty is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Session {
    /// Gives everything under way its outcome, then ends the producer. Blocks.
    fn retire(self) {
        let mut looks = 0_u32;
        while self.producer.in_flight_count() > 0 {
            if looks.is_multiple_of(200) {
                self.producer.purge(PurgeConfig::default().queue().inflight());
            }
            looks += 1;
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Shared {
    fn build(&self, batch_bytes: usize) -> Result<Session, KafkaError> {
        let end = Arc::new(End {
            over: AtomicBool::new(false),
            shrink: AtomicBool::new(false),
            batch_bytes,
            why: OnceLock::new(),
            notify: Arc::clone(&self.ended),
        });
        let reports = Reports {
            outcomes: Arc::clone(&self.outcomes),
            status: Arc::clone(&self.status),
            topics: self.topics.clone(),
            end: Arc::clone(&end),
        };
        let mut client = self.client.clone();
        client.set("batch.size", batch_bytes.to_string());
        let producer = client.create_with_context(reports)?;
        Ok(Session { producer, end, started: Instant::now() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        // A panic while holding it leaves a session or none, both of which are fine.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self) -> &ClientConfig {
        &self.client
    }

    pub(super) fn status(&self) -> &SinkStatus {
        &self.status
    }

    /// Makes the producer ask the cluster about a topic, and thereby forget that it knew none.
    /// Blocks. The number of its replicas, `None` if there is no such topic.
    pub(super) fn refresh(&self, topic: &str, within: Duration) -> Result<Option<usize>, String> {
        let producer = self.lock().as_ref().map(|session| session.producer.clone());
        let producer = producer.ok_or("the producer is being built anew")?;
        let metadata =
            producer.client().fetch_metadata(Some(topic), within).map_err(|error| error.to_string())?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None => Ok(Some(found.partitions().iter().map(|part| part.replicas().len()).min().unwrap_or(0))),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
            Some(code) => Err(format!("topic {topic}: {code}")),
        }
    }
}

/// Replaces each session that ended.
async fn keep(shared: Arc<Shared>) {
    let backoff = || ExponentialBackoff::from_millis(2).factor(50).max_delay(Duration::from_secs(30));
    let mut waits = backoff();
    let mut batch_bytes = shared.batch_max;
    let mut shrunk = Instant::now();
    loop {
        let regrow_in = REGROW_AFTER.saturating_sub(shrunk.elapsed()).max(Duration::from_secs(1));
        tokio::select! {
            () = shared.ended.notified() => {}
            () = tokio::time::sleep(regrow_in), if batch_bytes < shared.batch_max => {}
        }
        let regrow = batch_bytes < shared.batch_max && shrunk.elapsed() >= REGROW_AFTER;
        let taken = shared
            .lock()
            .take_if(|session| session.end.is_set() || regrow && session.producer.in_flight_count() == 0);
        let Some(session) = taken else { continue };
        if session.end.shrink.load(Ordering::Acquire) {
            batch_bytes = (batch_bytes / 4).max(1);
            shrunk = Instant::now();
            let why = session.end.why.get();
            tracing::warn!(why, batch_bytes, "the broker refused a batch: trying smaller ones");
        } else if regrow {
            batch_bytes = shared.batch_max;
        } else {
            let why = session.end.why.get();
            tracing::warn!(why, "the kafka producer can go on no more: building a new one");
        }
        let started = session.started;
        if tokio::task::spawn_blocking(move || session.retire()).await.is_err() {
            tracing::warn!("the thread that ended a kafka producer panicked");
        }
        if shared.status.last_ack().is_some_and(|ago| ago < started.elapsed()) {
            // It did some work; so may the next, at once.
            waits = backoff();
        } else if let Some(wait) = waits.next() {
            tokio::time::sleep(jitter(wait)).await;
        }
        let fresh = loop {
            match shared.build(batch_bytes) {
                Ok(session) => break session,
                // The same settings worked before: files of certificates, or memory.
                Err(error) => shared.status.set_error(error.to_string()),
            }
            tokio::time::sleep(jitter(waits.next().unwrap_or(Duration::from_secs(30)))).await;
        };
        *shared.lock() = Some(fresh);
        shared.status.rebuilt();
        shared.outcomes.room();
    }
}

/// Everything that the promise rests on comes last, so that no option can undo it.
fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "hookbus")
        .set("linger.ms", "5")
        // A frozen broker is noticed after this long.
        .set("socket.timeout.ms", "15000")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "5000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        // As Java's clients do, so that consumers that join streams find equal keys together.
        .set("partitioner", "murmur2_random");
    for (key, value) in &config.options {
        client.set(key, value);
    }
    let queue_kbytes = QUEUE_KBYTES.max(config.max_message_bytes / 512);
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("enable.idempotence", "true")
        // Without it, what is queued behind a refused batch overtakes it.
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("delivery.report.only.error", "false")
        .set("allow.auto.create.topics", "false")
        .set("queue.buffering.max.messages", (config.in_flight_max * 2).to_string())
        .set("queue.buffering.max.kbytes", queue_kbytes.to_string())
        .set("message.max.bytes", config.max_message_bytes.to_string());
    let protocol = match (&config.tls, &config.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    if let Some(tls) = &config.tls {
        let files = [
            ("ssl.ca.location", &tls.ca_file),
            ("ssl.certificate.location", &tls.cert_file),
            ("ssl.key.location", &tls.key_file),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                client.set(key, file.to_string_lossy());
            }
        }
    }
    if let Some(sasl) = &config.sasl {
        client
            .set("sasl.mechanisms", &sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", sasl.password.expose_secret());
    }
    client
}

/// librdkafka repeats itself while a broker is down, so little of it is louder than `debug`; what
/// matters is in the status.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::debug!(facility, message, "librdkafka");
        }
        _ => tracing::trace!(facility, message, "librdkafka"),
    }
}

fn as_u64(token: usize) -> u64 {
    u64::try_from(token).expect("tokens were 64 bits before they were handed over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_size_and_shape_are_poison() {
        for (code, expected) in [
            (RDKafkaErrorCode::MessageSizeTooLarge, Verdict::Poison),
            (RDKafkaErrorCode::InvalidRecord, Verdict::Poison),
            (RDKafkaErrorCode::InvalidDifferentRecord, Verdict::EndsSession),
            (RDKafkaErrorCode::UnknownTopic, Verdict::TopicUnusable),
            (RDKafkaErrorCode::TopicAuthorizationFailed, Verdict::TopicUnusable),
            (RDKafkaErrorCode::PurgeInflight, Verdict::Purged),
            (RDKafkaErrorCode::MessageTimedOut, Verdict::EndsSession),
            (RDKafkaErrorCode::InvalidMessage, Verdict::EndsSession),
            (RDKafkaErrorCode::Fatal, Verdict::EndsSession),
        ] {
            assert_eq!(verdict(code), expected, "{code:?}");
        }
    }
}
