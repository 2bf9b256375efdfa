//! `cargo bench --bench load [-- full]`: what hookbus costs, beside the bare limit, in one run.
//!
//! Everything is bounded in count and time and stays on loopback. The generator shares the
//! machine's cores with what it measures, so events/s compare within one run only; CPU per event
//! comes from the server process's own accounting and is the figure that holds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::let_underscore_must_use,
    clippy::cast_lossless,
    unused_imports,
    reason = "a measurement may stop at the first surprise; counts are far below 2^52"
)]

mod bare;
mod disk;
mod drive;
#[path = "../../tests/kit/mod.rs"]
mod kit;
mod machine;

use std::time::{Duration, Instant};

use drive::{Figures, Requests};
use kit::bridge::Bridge;
use kit::kafka::Kafka;
use kit::nats::Nats;
use machine::Cpu;

/// Sizes of one run.
#[derive(Clone, Copy)]
struct Plan {
    /// Of each closed loop and of the fixed rate.
    lasts: Duration,
    /// Signed ahead of time, each sent once.
    requests: usize,
    backlog: usize,
}

const QUICK: Plan = Plan { lasts: Duration::from_secs(3), requests: 250_000, backlog: 100_000 };
const FULL: Plan = Plan { lasts: Duration::from_secs(8), requests: 600_000, backlog: 1_000_000 };
/// Deliveries a second of the fixed rate.
const RATE: u64 = 2_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if arguments.iter().any(|a| a == bare::ARGUMENT) {
        return runtime.block_on(bare::serve());
    }
    let plan = if arguments.iter().any(|a| a == "full") { FULL } else { QUICK };
    runtime.block_on(run(plan));
}

async fn run(plan: Plan) {
    println!("{}", machine::describe());
    println!("disk, fdatasync of 4 KiB appends: {}", disk::measure(Duration::from_secs(2)));
    println!();
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>8} {:>8}",
        "", "events/s", "CPU us/ev", "p50 ms", "p99 ms", "RSS MiB"
    );
    let bare = bare::Child::start();
    for connections in [64, 512] {
        let name = format!("bare warp + HMAC, {connections} connections");
        closed(&name, bare.address, bare.id(), connections, plan).await;
    }
    drop(bare);

    for connections in [64, 512] {
        let nats = Nats::down().await;
        let bridge = Bridge::builder().nats(&nats.url()).max_bytes("8GiB").start().await;
        let name = format!("accept durably, {connections} connections");
        closed(&name, bridge.address(), bridge.id(), connections, plan).await;
    }
    {
        let nats = Nats::down().await;
        let bridge = Bridge::builder().nats(&nats.url()).max_bytes("8GiB").start().await;
        fixed("accept durably", &bridge, plan).await;
    }

    for connections in [64, 512] {
        let nats = Nats::start().await;
        let bridge = Bridge::builder().nats(&nats.url()).max_bytes("8GiB").start().await;
        end_to_end(&format!("to NATS, {connections} connections"), &bridge, connections, plan).await;
    }
    {
        let nats = Nats::start().await;
        let bridge = Bridge::builder().nats(&nats.url()).max_bytes("8GiB").start().await;
        fixed("to NATS", &bridge, plan).await;
    }
    for connections in [64, 512] {
        let kafka = Kafka::start().await;
        let bridge = Bridge::builder().kafka(&kafka.bootstrap()).max_bytes("8GiB").start().await;
        end_to_end(&format!("to Kafka, {connections} connections"), &bridge, connections, plan).await;
    }
    {
        let kafka = Kafka::start().await;
        let bridge = Bridge::builder().kafka(&kafka.bootstrap()).max_bytes("8GiB").start().await;
        fixed("to Kafka", &bridge, plan).await;
    }

    let mut nats = Nats::down().await;
    let bridge = Bridge::builder().nats(&nats.url()).max_bytes("8GiB").start().await;
    let mut bridge = fill(bridge, plan).await;
    reopen(&mut bridge).await;
    nats.restart().await;
    drain("drain into NATS", &bridge, plan).await;
    drop((bridge, nats));
    let mut kafka = Kafka::down().await;
    let bridge = Bridge::builder().kafka(&kafka.bootstrap()).max_bytes("8GiB").start().await;
    let bridge = fill(bridge, plan).await;
    kafka.restart().await;
    drain("drain into Kafka", &bridge, plan).await;
}

fn row(name: &str, figures: &Figures, cpu: Duration, rss_kib: u64) {
    println!(
        "{name:<34} {:>9.0} {:>9.1} {:>8.2} {:>8.2} {:>8.1}",
        figures.accepted as f64 / figures.took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / figures.accepted.max(1) as f64,
        figures.percentile(50.0).as_secs_f64() * 1e3,
        figures.percentile(99.0).as_secs_f64() * 1e3,
        rss_kib as f64 / 1024.0
    );
    if figures.refused > 0 {
        println!("{:<34} {} refused", "", figures.refused);
    }
}

async fn closed(name: &str, address: std::net::SocketAddr, id: u32, connections: usize, plan: Plan) {
    let requests = Requests::signed(plan.requests);
    let cpu = Cpu::of(id);
    let figures = drive::closed_loop(address, &requests, connections, plan.lasts).await;
    row(name, &figures, cpu.spent(), machine::peak_rss_kib(id));
}

/// CPU counts until the last event is confirmed.
async fn end_to_end(name: &str, bridge: &Bridge, connections: usize, plan: Plan) {
    let requests = Requests::signed(plan.requests);
    let cpu = Cpu::of(bridge.id());
    let figures = drive::closed_loop(bridge.address(), &requests, connections, plan.lasts).await;
    caught_up(bridge).await;
    row(name, &figures, cpu.spent(), machine::peak_rss_kib(bridge.id()));
}

async fn fixed(name: &str, bridge: &Bridge, plan: Plan) {
    let count = RATE * plan.lasts.as_secs();
    let requests = Requests::signed(count as usize);
    let cpu = Cpu::of(bridge.id());
    let figures = drive::fixed_rate(bridge.address(), &requests, 64, RATE).await;
    let name = format!("{name}, {RATE}/s fixed");
    row(&name, &figures, cpu.spent(), machine::peak_rss_kib(bridge.id()));
}

/// Accepts a backlog while the broker is down.
async fn fill(bridge: Bridge, plan: Plan) -> Bridge {
    let mut left = plan.backlog;
    while left > 0 {
        let part = left.min(plan.requests);
        let requests = Requests::signed(part);
        let figures = drive::closed_loop(bridge.address(), &requests, 256, Duration::from_secs(300)).await;
        assert_eq!(figures.accepted, part as u64, "all of the backlog was accepted");
        left -= part;
    }
    bridge
}

/// From the start of the process to its readiness, with the whole backlog undelivered.
async fn reopen(bridge: &mut Bridge) {
    bridge.kill9();
    let began = Instant::now();
    bridge.restart().await;
    println!("start after kill -9 with this backlog: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
}

async fn drain(name: &str, bridge: &Bridge, plan: Plan) {
    let resident = machine::rss_kib(bridge.id());
    let sink_published = published(bridge).await;
    let cpu = Cpu::of(bridge.id());
    // The clock runs from the first confirmation: a client's reconnect is no part of the rate.
    while published(bridge).await == sink_published {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (began, first) = (Instant::now(), published(bridge).await);
    caught_up(bridge).await;
    let drained = plan.backlog as f64 - (first - sink_published);
    println!(
        "{name:<34} {:>9.0} {:>9.1} {:>8} {:>8} {:>8.1}   resident with the backlog {:.1} MiB",
        drained / began.elapsed().as_secs_f64(),
        cpu.spent().as_secs_f64() * 1e6 / plan.backlog as f64,
        "",
        "",
        machine::peak_rss_kib(bridge.id()) as f64 / 1024.0,
        resident as f64 / 1024.0
    );
}

async fn published(bridge: &Bridge) -> f64 {
    let metrics = bridge.metrics().await;
    metrics.iter().filter(|(name, _)| name.starts_with("hookbus_sink_published_total")).map(|(_, v)| v).sum()
}

async fn caught_up(bridge: &Bridge) {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let metrics = bridge.metrics().await;
        let backlog: f64 = metrics
            .iter()
            .filter(|(name, _)| name.starts_with("hookbus_sink_backlog_records"))
            .map(|(_, v)| v)
            .sum();
        if backlog == 0.0 {
            return;
        }
        assert!(Instant::now() < deadline, "{backlog} records are still undelivered after 300 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
