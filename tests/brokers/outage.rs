//! The promise, at its hardest: brokers and bridge die, and nothing accepted is lost.

use std::sync::Arc;

use crate::broker::{Broker, Kind};
use crate::kit::bridge::Bridge;
use crate::kit::oracle::{self, judge};
use crate::kit::provider::{Delivery, Entry, Ledger, Load};
use crate::kit::seen::{Position, Seen};
use crate::kit::{PATIENCE, eventually};

const SENDERS: usize = 8;
const BACKLOG: &str = "hookbus_sink_backlog_records";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_when_nats_and_the_bridge_are_killed() {
    outage(Kind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_when_kafka_and_the_bridge_are_killed() {
    outage(Kind::Kafka).await;
}

async fn outage(kind: Kind) {
    let mut broker = Broker::down(kind).await;
    let mut bridge = broker.behind(Bridge::builder()).start().await;
    let ledger = Arc::new(Ledger::new());
    let load = Load::start(SENDERS, bridge.addresses(), Arc::clone(&ledger));

    // No broker has ever been there.
    load.acked_more(200).await;
    assert!(bridge.metric(BACKLOG).await >= 200.0, "what waits is counted");
    broker.restart().await;
    broker.has_all_of(&ledger.entries()).await;

    // The bridge dies while it publishes: what it had sent and not noted, it sends again.
    for _ in 0..3 {
        load.acked_more(200).await;
        bridge.kill9();
        bridge.restart().await;
    }

    // The broker dies, then the bridge with a backlog; both come back.
    broker.kill();
    load.acked_more(200).await;
    bridge.kill9();
    broker.restart().await;
    bridge.restart().await;
    load.acked_more(200).await;
    load.finish().await;

    broker.has_all_of(&ledger.entries()).await;
    eventually(PATIENCE, "nothing waits any more", async || match bridge.metric(BACKLOG).await {
        0.0 => Ok(()),
        backlog => Err(format!("{backlog} records do")),
    })
    .await;
    assert!(bridge.sigterm(PATIENCE).await.success());
    let (entries, seen) = (ledger.entries(), broker.read_all().await);
    oracle::check(&format!("{kind:?}: killed four times the bridge, once the broker"), &entries, &seen);
    the_oracle_can_fail(&entries, &seen);
}

#[test]
fn the_oracle_finds_loss_disorder_forgery_and_altered_repeats() {
    let ledger = Ledger::new();
    let deliveries: Vec<Delivery> =
        (0..6).map(|n| Delivery::of_server(&format!("srv-{}", n % 2), n)).collect();
    for (sequence, delivery) in (0..).zip(&deliveries) {
        let number = ledger.sent(delivery, sequence);
        ledger.acked(number);
    }
    let seen: Vec<Seen> =
        (0..).zip(&deliveries).map(|(offset, delivery)| message(delivery, offset)).collect();
    the_oracle_can_fail(&ledger.entries(), &seen);

    let with = |extra: Seen| judge(&ledger.entries(), &[seen.as_slice(), &[extra]].concat());
    let repeated = with(seen[0].clone());
    assert_eq!((repeated.figures.repeats, repeated.faults.len()), (1, 0), "an equal repeat is no fault");
    let mut altered = seen[0].clone();
    altered.payload.push(b' ');
    assert_eq!(with(altered).faults.len(), 1, "a repeat that differs is");
    assert_eq!(
        with(message(&Delivery::of_server("srv-0", 99), 7)).faults.len(),
        1,
        "so is an event nobody sent"
    );
    let mut unreadable = seen[0].clone();
    unreadable.payload.clear();
    assert_eq!(with(unreadable).faults.len(), 1, "and a message that is no event");
}

/// The negative control: the same run, with what must be found put into it.
fn the_oracle_can_fail(entries: &[Entry], seen: &[Seen]) {
    let sound = judge(entries, seen);
    assert!(sound.faults.is_empty(), "{:?}", sound.faults);
    let entry = |message: &Seen| {
        let id = message.id()?;
        entries.iter().find(|entry| entry.id == id && entry.acked)
    };

    let victim = seen.iter().find_map(&entry).expect("something was acknowledged").id.clone();
    let without: Vec<Seen> =
        seen.iter().filter(|message| message.id().as_ref() != Some(&victim)).cloned().collect();
    let loss = judge(entries, &without);
    assert_eq!((loss.figures.lost, loss.faults.len()), (1, 1), "one event is missing: {:?}", loss.faults);

    // Two neighbours of one key, neither of them repeated.
    let once = |message: &&Seen| seen.iter().filter(|other| other.id() == message.id()).count() == 1;
    let (first, second) = seen
        .iter()
        .enumerate()
        .filter(|(_, message)| once(message))
        .find_map(|(first, message)| {
            let key = &entry(message)?.key;
            let later = seen.iter().enumerate().skip(first + 1);
            let (second, _) = later
                .filter(|(_, other)| entry(other).is_some_and(|entry| entry.key == *key))
                .find(|(_, other)| once(other))?;
            Some((first, second))
        })
        .expect("some key has two events");
    let mut swapped = seen.to_vec();
    swapped.swap(first, second);
    let disorder = judge(entries, &swapped);
    assert!(disorder.figures.disordered > 0, "two events are swapped: {:?}", disorder.faults);
    assert_eq!(disorder.figures.lost, 0);
}

/// As a consumer would see this delivery.
fn message(delivery: &Delivery, offset: u64) -> Seen {
    let envelope = serde_json::json!({ "id": delivery.id, "partitionkey": delivery.key });
    Seen {
        destination: "events.cdhosting".to_owned(),
        key: Some(delivery.key.clone()),
        headers: [].into(),
        payload: envelope.to_string().into_bytes(),
        position: Position { partition: 0, offset },
    }
}
