//! The Kafka sink, on librdkafka's idempotent producer. The only user of rdkafka besides the
//! in-process cluster of the demo.
//!
//! What is relied on: a delivery report is the only success; librdkafka retries inside one
//! producer session without reordering or repeating within a partition. What is not: its
//! time-outs (switched off: the spool keeps events for as long as an outage lasts), its queue
//! (bounded by our window), and that a session lasts: after a fatal error the producer is thrown
//! away, everything under way is reported as failed for now, and a new one is fed from the window.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio_retry::Retry;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::{
    Busy, KafkaConfig, KeyOrder, Message, Outcome, Outcomes, PublishError, Sink, SinkStatus, StartError,
    TopicSpec,
};
use crate::envelope::CONTENT_TYPE;

/// How long one question to the cluster may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Bytes in the client's queue; the window's own cap is smaller.
const QUEUE_KBYTES: u32 = 64 * 1024;

type Producer = ThreadedProducer<Reports>;

pub(super) struct KafkaSink {
    client: ClientConfig,
    producer: Option<Arc<Producer>>,
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
    fatal: Arc<AtomicBool>,
    caretaker: mpsc::Sender<Errand>,
}

/// Receives librdkafka's callbacks, on the producer's polling thread.
struct Reports {
    outcomes: Arc<Outcomes>,
    status: Arc<SinkStatus>,
    fatal: Arc<AtomicBool>,
    caretaker: mpsc::Sender<Errand>,
}

/// A topic that the client knows nothing of, and whose client that is.
struct Errand {
    topic: String,
    producer: Option<Weak<Producer>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "librdkafka");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::debug!(facility, message, "librdkafka")
            }
            _ => tracing::trace!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::Fatal) => self.fatal.store(true, Ordering::Relaxed),
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
                self.status.set_connected(true);
                Ok(())
            }
            Err((error, message)) => {
                if let Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) =
                    error.rdkafka_error_code()
                {
                    let topic = rdkafka::Message::topic(message).to_owned();
                    // A full queue means that the topic is being looked at already.
                    drop(self.caretaker.try_send(Errand { topic, producer: None }));
                }
                Err(self.sort(error))
            }
        };
        self.outcomes.push(Outcome { token: as_u64(token), result });
    }
}

impl Reports {
    fn sort(&self, error: &KafkaError) -> PublishError {
        let sorted = sort(error);
        if let PublishError::Transient(reason) = &sorted {
            self.status.set_error(reason.clone());
        }
        sorted
    }
}

/// What only another message can cure is a short list; the rest, time or an operator can.
fn sort(error: &KafkaError) -> PublishError {
    match error.rdkafka_error_code() {
        // A broker refuses whole batches: all of one whose messages are each small enough, if the
        // topic's limit is below the client's batch size.
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidMessage,
        ) => PublishError::Suspect(error.to_string()),
        _ => PublishError::Transient(error.to_string()),
    }
}

impl KafkaSink {
    pub(super) fn start(config: KafkaConfig, outcomes: Arc<Outcomes>) -> Result<Self, StartError> {
        let client = client_config(&config);
        let (caretaker, errands) = mpsc::channel(64);
        let mut sink = Self {
            producer: None,
            outcomes,
            status: Arc::default(),
            fatal: Arc::default(),
            caretaker,
            client,
        };
        let producer = sink.build().map_err(|error| StartError::Config(error.to_string()))?;
        for topic in &config.topics {
            let errand = Errand { topic: topic.clone(), producer: Some(Arc::downgrade(&producer)) };
            // More topics than fit are looked at when they are published to.
            drop(sink.caretaker.try_send(errand));
        }
        tokio::spawn(take_care(sink.client.clone(), config.create_topics, errands, Arc::clone(&sink.status)));
        sink.producer = Some(producer);
        Ok(sink)
    }

    fn build(&self) -> Result<Arc<Producer>, KafkaError> {
        let reports = Reports {
            outcomes: Arc::clone(&self.outcomes),
            status: Arc::clone(&self.status),
            fatal: Arc::clone(&self.fatal),
            caretaker: self.caretaker.clone(),
        };
        Ok(Arc::new(self.client.create_with_context(reports)?))
    }

    /// After a fatal error nothing goes through this producer any more. Dropping it reports
    /// everything under way as failed, before the new one takes anything.
    fn rebuild(&mut self) -> Option<Arc<Producer>> {
        tracing::warn!(
            last_error = self.status.last_error(),
            "the Kafka producer failed for good: building a new one"
        );
        self.producer = None;
        self.fatal.store(false, Ordering::Relaxed);
        self.status.rebuilt();
        self.producer = self.build().map_err(|error| self.status.set_error(error.to_string())).ok();
        self.producer.clone()
    }
}

impl Sink for KafkaSink {
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy> {
        let producer = match &self.producer {
            Some(producer) if !self.fatal.load(Ordering::Relaxed) => Arc::clone(producer),
            _ => self.rebuild().ok_or(Busy)?,
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
        match producer.send(record) {
            Ok(()) => Ok(()),
            Err((error, _)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => Err(Busy),
                code => {
                    if code == Some(RDKafkaErrorCode::UnknownTopic) {
                        let topic = message.destination.to_string();
                        let producer = Some(Arc::downgrade(&producer));
                        drop(self.caretaker.try_send(Errand { topic, producer }));
                    }
                    if producer.client().fatal_error().is_some() {
                        self.fatal.store(true, Ordering::Relaxed);
                    }
                    let error = match code {
                        // The client's own limit, and it looked at this message alone.
                        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                            PublishError::Permanent(error.to_string())
                        }
                        _ => sort(&error),
                    };
                    self.outcomes.push(Outcome { token, result: Err(error) });
                    Ok(())
                }
            },
        }
    }

    fn key_order(&self) -> KeyOrder {
        KeyOrder::Pipelined
    }

    fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.status)
    }

    fn close(self: Box<Self>, _: Instant) -> BoxFuture<'static, ()> {
        // Dropping the producer waits half a second at most: it purges what is left.
        async move { drop(self) }.boxed()
    }
}

/// Everything that the promise rests on comes last, so that no option can undo it.
fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "hookbus")
        .set("linger.ms", "5")
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
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("allow.auto.create.topics", "false")
        .set("queue.buffering.max.messages", (config.in_flight_max * 2).to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
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

/// Looks at topics that the producer knows nothing of, off every other thread: makes those that
/// are missing where the operator wants that, and tells the producer to look again. librdkafka
/// may otherwise hold a topic for missing long after it was made.
async fn take_care(
    client: ClientConfig,
    create: Option<TopicSpec>,
    mut errands: mpsc::Receiver<Errand>,
    status: Arc<SinkStatus>,
) {
    while let Some(Errand { topic, producer }) = errands.recv().await {
        let waits =
            ExponentialBackoff::from_millis(2).factor(100).max_delay(Duration::from_secs(5)).map(jitter);
        // Ten tries; after that the next failed publish asks again.
        let looked = Retry::start(waits.take(10), || look(&client, create, &topic, producer.clone())).await;
        match looked {
            Ok(()) => status.set_connected(true),
            Err(problem) => {
                tracing::warn!(topic, problem, "topic not usable: its events wait on disk");
                status.set_error(problem);
            }
        }
    }
}

async fn look(
    client: &ClientConfig,
    create: Option<TopicSpec>,
    topic: &str,
    producer: Option<Weak<Producer>>,
) -> Result<(), String> {
    if let Some(spec) = create {
        create_topic(client, spec, topic).await?;
    }
    let Some(producer) = producer.as_ref().and_then(Weak::upgrade) else { return Ok(()) };
    let name = topic.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let metadata =
            producer.client().fetch_metadata(Some(&name), ASK_WITHIN).map_err(|error| error.to_string())?;
        let found = metadata.topics().iter().any(|t| t.name() == name && t.error().is_none());
        if found { Ok(()) } else { Err(format!("topic {name} does not exist or may not be seen")) }
    });
    asked.await.map_err(|error| error.to_string())?
}

async fn create_topic(client: &ClientConfig, spec: TopicSpec, topic: &str) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(|error| error.to_string())?;
    let new = NewTopic::new(topic, spec.partitions, TopicReplication::Fixed(spec.replication));
    let options = AdminOptions::new().operation_timeout(Some(ASK_WITHIN)).request_timeout(Some(ASK_WITHIN));
    let results = admin.create_topics([&new], &options).await.map_err(|error| error.to_string())?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic, partitions = spec.partitions, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(format!("cannot create topic {topic}: {code}")),
        }
    }
    Ok(())
}

fn as_u64(token: usize) -> u64 {
    u64::try_from(token).expect("tokens were 64 bits before they were handed over")
}
