//! What consumers find at the broker, for every recorded delivery of every provider.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use crate::broker::{Broker, Kind};
use crate::kit::bridge::Bridge;
use crate::kit::fixtures::{self, Fixture};
use crate::kit::provider::Delivery;
use crate::kit::{PATIENCE, Seen, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fixture_reaches_nats_once_and_as_expected() {
    contract(Kind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fixture_reaches_kafka_once_and_as_expected() {
    contract(Kind::Kafka).await;
}

/// A fixture as it is sent, and what must come of it.
struct Case {
    fixture: Fixture,
    delivery: Delivery,
}

async fn contract(kind: Kind) {
    let cases = cases();
    let broker = Broker::start(kind).await;
    let mut bridge = broker.behind(Bridge::builder()).start().await;

    // A provider that repeats itself at once, and after a restart of ours.
    for round in 0..3 {
        if round == 2 {
            all_are_there(&broker, &cases).await;
            assert!(bridge.sigterm(PATIENCE).await.success());
            bridge.restart().await;
        }
        let mut client = bridge.client();
        for case in &cases {
            case.delivery.must_be_accepted(&mut client).await;
        }
    }
    all_are_there(&broker, &cases).await;
    // What is in flight is confirmed before it exits, so no repeat can come later.
    assert!(bridge.sigterm(Duration::from_secs(30)).await.success());

    let seen = broker.read_all().await;
    let mut by_id: BTreeMap<String, Vec<&Seen>> = BTreeMap::new();
    for message in &seen {
        by_id.entry(message.id().expect("an envelope has an id")).or_default().push(message);
    }
    for Case { fixture, delivery } in &cases {
        let name = format!("{}/{}", fixture.provider, fixture.case);
        let messages = by_id.remove(&delivery.id).unwrap_or_default();
        let [message] = messages.as_slice() else { panic!("{name}: published {} times", messages.len()) };
        let mut envelope = message.envelope();
        let recorded = envelope.as_object_mut().expect("an object").remove("recordedtime");
        assert!(recorded.is_some_and(|time| time.is_string()), "{name}: no recordedtime");
        assert_eq!(envelope, fixture.expected, "{name}");
        broker.check_wire_form(message, &fixture.provider, event_type(fixture));
    }
    assert!(by_id.is_empty(), "nobody sent these: {:?}", by_id.keys());
    eprintln!("{kind:?}: {} fixtures sent three times each, {} messages read back", cases.len(), seen.len());
}

async fn all_are_there(broker: &Broker, cases: &[Case]) {
    eventually(PATIENCE, "every fixture is at the broker", async || {
        let seen: HashSet<String> = broker.read_all().await.iter().filter_map(Seen::id).collect();
        let missing: Vec<&str> =
            cases.iter().map(|case| case.delivery.id.as_str()).filter(|id| !seen.contains(*id)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing: {missing:?}")) }
    })
    .await;
}

/// Every fixture, with ids of their own: two recorded deliveries of one id would count as a repeat.
fn cases() -> Vec<Case> {
    let mut ids = HashSet::new();
    let mut cases = Vec::new();
    for mut fixture in fixtures::all() {
        let mut delivery = delivery(&fixture.provider, fixture.body.clone());
        if !ids.insert(delivery.id.clone()) {
            let mut body: Value =
                serde_json::from_slice(&fixture.body).expect("only an id in JSON can be altered");
            body["id"] = format!("{}-{}", body["id"].as_str().expect("it has an id"), fixture.case).into();
            delivery = self::delivery(&fixture.provider, body.to_string().into_bytes());
            fixture.expected["id"] = delivery.id.clone().into();
            assert!(ids.insert(delivery.id.clone()), "{}: no id of its own", fixture.case);
        }
        assert_eq!(
            fixture.expected["id"], delivery.id,
            "{}/{}: the fixture expects another id than its body has",
            fixture.provider, fixture.case
        );
        if let Some(expected) = fixture.expected.as_object_mut() {
            expected.remove("recordedtime");
        }
        cases.push(Case { fixture, delivery });
    }
    cases
}

fn delivery(provider: &str, body: Vec<u8>) -> Delivery {
    match provider {
        "cloud66" => Delivery::cloud66(body),
        "cdhosting" => Delivery::cdhosting(body),
        other => panic!("the kit does not know how {other} delivers"),
    }
}

/// The envelope's `type` without the provider's prefix.
fn event_type(fixture: &Fixture) -> &str {
    let prefix = match fixture.provider.as_str() {
        "cloud66" => "com.cloud66.",
        _ => "host.cdhosting.",
    };
    let full = fixture.expected["type"].as_str().expect("an envelope has a type");
    full.strip_prefix(prefix).unwrap_or_else(|| panic!("{full} does not begin with {prefix}"))
}
