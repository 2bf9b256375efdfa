//! An orderly stop: SIGTERM, exit code 0 in time, and nothing that was accepted is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Broker, Kind};
use crate::kit::bridge::Bridge;
use crate::kit::oracle;
use crate::kit::provider::{Ledger, Load};

const SENDERS: usize = 8;
const GRACE: Duration = Duration::from_secs(5);
/// Beyond the grace: for a busy machine. What is longer, a service manager would cut off.
const MARGIN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_exits_in_time_and_loses_nothing_for_nats() {
    shutdown(Kind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_exits_in_time_and_loses_nothing_for_kafka() {
    shutdown(Kind::Kafka).await;
}

async fn shutdown(kind: Kind) {
    let mut broker = Broker::start(kind).await;
    let grace = format!("shutdown_grace: {}s", GRACE.as_secs());
    let mut bridge = broker.behind(Bridge::builder().lines(&grace)).start().await;
    let ledger = Arc::new(Ledger::new());
    let load = Load::start(SENDERS, bridge.addresses(), Arc::clone(&ledger));

    load.acked_more(300).await;
    let with_broker = stop(&mut bridge).await;
    bridge.restart().await;
    load.acked_more(100).await;

    // Without a broker nothing can leave: it stays on disk, and the stop is as orderly.
    broker.kill();
    load.acked_more(100).await;
    let without_broker = stop(&mut bridge).await;
    bridge.restart().await;
    load.acked_more(100).await;
    load.finish().await;
    broker.restart().await;

    broker.has_all_of(&ledger.entries()).await;
    stop(&mut bridge).await;
    eprintln!("{kind:?}: stopped in {with_broker:.1?} with the broker, in {without_broker:.1?} without");
    oracle::check(&format!("{kind:?}: stopped under load"), &ledger.entries(), &broker.read_all().await);
}

async fn stop(bridge: &mut Bridge) -> Duration {
    let begun = Instant::now();
    let status = bridge.sigterm(GRACE + MARGIN).await;
    assert_eq!(status.code(), Some(0), "an orderly stop: {status}");
    begun.elapsed()
}
