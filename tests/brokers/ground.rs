//! The ground that the other tests stand on: our consumers find what plain producers have written,
//! and it survives kill -9 of the broker. A consumer that found nothing would make every test of
//! absence pass.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use crate::kit::kafka::{Isolation, Kafka};
use crate::kit::nats::{Nats, durable_stream};
use crate::kit::proxy::{Proxy, Weather};
use crate::kit::{PATIENCE, eventually};

const EVENTS: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_gives_back_what_it_acknowledged_after_kill_9() {
    let begun = Instant::now();
    let mut nats = Nats::start().await;
    let started = begun.elapsed();
    assert!(nats.read("HOOKS").await.is_empty(), "there is no stream yet");

    let jetstream = nats.jetstream().await;
    jetstream.create_stream(durable_stream("HOOKS", &["events.>"])).await.expect("a stream is made");
    assert!(nats.read("HOOKS").await.is_empty(), "it is empty");
    for number in 0..EVENTS {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("id-{number}").as_str());
        let payload = format!("{{\"id\":\"id-{number}\"}}");
        let ack = jetstream.publish_with_headers("events.a.b", headers, payload.into()).await;
        ack.expect("it is queued").await.expect("it is stored");
    }

    let begun = Instant::now();
    nats.kill();
    nats.restart().await;
    let restarted = begun.elapsed();
    let begun = Instant::now();
    let seen = nats.read("HOOKS").await;
    eprintln!(
        "NATS: up in {started:.2?}, killed and up in {restarted:.2?}, {EVENTS} read in {:.2?}",
        begun.elapsed()
    );
    let ids: Vec<_> = seen.iter().map(|message| message.id().expect("our own JSON")).collect();
    assert_eq!(ids, (0..EVENTS).map(|number| format!("id-{number}")).collect::<Vec<_>>());
    assert!(seen.iter().all(|message| message.destination == "events.a.b" && message.key.is_none()));
    assert!(seen.iter().all(|message| message.headers.get("Nats-Msg-Id") == message.id().as_ref()));
    assert!(seen.is_sorted_by_key(|message| message.position.offset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_nats_answers_again_when_it_is_thawed() {
    let mut nats = Nats::start_with("authorization { user: kit, password: secret }", "kit:secret").await;
    assert!(async_nats::connect(nats.url()).await.is_err(), "without a login nobody comes in");
    let jetstream = nats.jetstream().await;
    nats.stop();
    let asked = tokio::time::timeout(Duration::from_millis(300), jetstream.query_account()).await;
    assert!(asked.is_err(), "a frozen server says nothing");
    nats.cont();
    eventually(PATIENCE, "NATS answers", async || jetstream.query_account().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_gives_back_what_it_acknowledged_after_kill_9() {
    // Installing is not part of the figures below.
    let mut kafka = Kafka::down().await;
    let begun = Instant::now();
    kafka.restart().await;
    let started = begun.elapsed();
    assert!(kafka.topics().await.is_empty(), "there is no topic yet");

    let first = produce(&kafka.bootstrap(), None).await;
    let begun = Instant::now();
    kafka.kill();
    kafka.restart().await;
    let restarted = begun.elapsed();
    assert_eq!(kafka.topics().await, ["events.a", "events.b"]);

    let begun = Instant::now();
    let seen = kafka.read(&["events.a"], Isolation::Committed).await;
    eprintln!(
        "Kafka: up in {started:.2?}, killed and up in {restarted:.2?}, {EVENTS} read in {:.2?}",
        begun.elapsed()
    );
    let mut ids: Vec<_> = seen.iter().map(|message| message.id().expect("our own JSON")).collect();
    ids.sort_by_key(|id| id.trim_start_matches("id-").parse::<usize>().expect("our own number"));
    assert_eq!(ids, first);
    for message in &seen {
        assert_eq!(message.headers.get("event-id"), message.id().as_ref());
        assert!(message.key.is_some(), "{:?}", message.position);
    }
    assert!(kafka.read(&["events.b"], Isolation::Committed).await.is_empty());

    // An aborted transaction is seen only by those who ask for it; its marker at the end stops nobody.
    produce(&kafka.bootstrap(), Some("kit")).await;
    assert_eq!(kafka.read(&["events.a"], Isolation::Committed).await.len(), EVENTS);
    assert_eq!(kafka.read(&["events.a"], Isolation::Uncommitted).await.len(), 2 * EVENTS);
    assert_eq!(kafka.read_all().await.len(), EVENTS);
}

/// Writes `EVENTS` events; with a transactional id all in one transaction, which is then aborted.
async fn produce(bootstrap: &str, transactional_id: Option<&str>) -> Vec<String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true");
    let topics = ["events.a", "events.b"].map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(1)));
    let admin: AdminClient<_> = config.create().expect("a client");
    admin.create_topics(&topics, &AdminOptions::new()).await.expect("Kafka answers");

    if let Some(id) = transactional_id {
        config.set("transactional.id", id);
    }
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    if transactional_id.is_some() {
        producer.init_transactions(PATIENCE).expect("transactions");
        producer.begin_transaction().expect("a transaction");
    }
    let ids: Vec<String> = (0..EVENTS).map(|number| format!("id-{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        let key = format!("key-{}", number % 7);
        let payload = format!("{{\"id\":\"{id}\"}}");
        let headers = OwnedHeaders::new().insert(Header { key: "event-id", value: Some(id) });
        let record = BaseRecord::to("events.a").key(&key).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("it is queued");
    }
    producer.flush(PATIENCE).expect("all are stored");
    if transactional_id.is_some() {
        producer.abort_transaction(PATIENCE).expect("it is aborted");
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_holds_back_loses_and_resets() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let nats = Nats::start().await;
    let proxy = Proxy::start(([127, 0, 0, 1], nats.port()).into()).await;
    let mut buffer = [0_u8; 4096];
    let mut open = tokio::net::TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let read = open.read(&mut buffer).await.expect("the greeting passes");
    assert!(buffer[..read].starts_with(b"INFO "));

    proxy.set(Weather::Hole);
    open.write_all(b"PING\r\n").await.expect("the proxy takes it");
    let silence = tokio::time::timeout(Duration::from_millis(200), open.read(&mut buffer)).await;
    assert!(silence.is_err(), "nothing passes");
    proxy.set(Weather::Slow(Duration::from_millis(50)));
    let begun = Instant::now();
    let read = open.read(&mut buffer).await.expect("what was held back passes");
    assert_eq!(&buffer[..read], b"PONG\r\n");
    assert!(begun.elapsed() >= Duration::from_millis(100), "and slowly, both ways");

    proxy.set(Weather::DeafClient);
    open.write_all(b"PING\r\n").await.expect("the proxy takes it");
    let silence = tokio::time::timeout(Duration::from_millis(200), open.read(&mut buffer)).await;
    assert!(silence.is_err(), "the answer is lost");
    proxy.set(Weather::Fair);
    let end = open.read(&mut buffer).await.expect_err("a stream with a gap is reset");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);

    let mut other = tokio::net::TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    assert!(other.read(&mut buffer).await.expect("the greeting passes") > 0);
    proxy.reset_all();
    let end = other.read(&mut buffer).await.expect_err("it is reset");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}
