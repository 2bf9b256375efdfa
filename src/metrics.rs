//! Every metric's name, unit and meaning. Labels come from the configuration or from fixed lists,
//! never from a request, so their number is bounded.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    source: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    accepted: Family<SourceLabel, Counter>,
    repeated: Family<SourceLabel, Counter>,
    refused: Family<RefusalLabels, Counter>,
    spool: SpoolGauges,
    sinks: SinkFamilies,
}

#[derive(Default)]
struct SpoolGauges {
    accepting: Gauge,
    bytes: Gauge,
    max_bytes: Gauge,
    segments: Gauge,
    durable_end: Gauge,
    syncs: Gauge,
    torn: Gauge,
    lost: Gauge,
    remembered: Gauge,
}

struct SinkFamilies {
    published: Family<SinkLabel, Counter>,
    retries: Family<SinkLabel, Counter>,
    dead_letters: Family<SinkLabel, Counter>,
    backlog: Family<SinkLabel, Gauge>,
    in_flight: Family<SinkLabel, Gauge>,
    oldest: Family<SinkLabel, FloatGauge>,
    publishing: Family<SinkLabel, Gauge>,
    latency: Family<SinkLabel, Histogram, fn() -> Histogram>,
}

/// What `/metrics` shows of the spool at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpoolSnapshot {
    pub accepting: bool,
    pub bytes: u64,
    pub max_bytes: u64,
    pub segments: u64,
    pub durable_end: u64,
    pub syncs: u64,
    pub torn_bytes: u64,
    pub lost_records: u64,
    pub remembered_ids: u64,
}

/// What `/metrics` shows of one sink at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct SinkSnapshot {
    pub backlog: u64,
    pub in_flight: u64,
    /// Age of the oldest record that is not confirmed, in seconds; 0 without a backlog.
    pub oldest_seconds: f64,
    pub publishing: bool,
}

/// The counters of one source.
pub struct SourceMetrics {
    name: String,
    accepted: Counter,
    repeated: Counter,
    refused: Family<RefusalLabels, Counter>,
}

/// The counters of one sink.
#[derive(Clone)]
pub struct SinkMetrics {
    pub published: Counter,
    pub retries: Counter,
    pub dead_letters: Counter,
    /// From the hand-over to the broker's ack, in seconds.
    pub latency: Histogram,
}

/// 0.5 ms to 16 s, doubling.
fn latency_buckets() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("hookbus");
        let accepted = Family::default();
        let repeated = Family::default();
        let refused = Family::default();
        registry.register(
            "deliveries_accepted",
            "Deliveries answered 2xx after they were made durable",
            accepted.clone(),
        );
        registry.register(
            "deliveries_repeated",
            "Deliveries answered 2xx because their first copy was durable already",
            repeated.clone(),
        );
        registry.register("deliveries_refused", "Deliveries answered with an error", refused.clone());

        let spool = SpoolGauges::default();
        let gauges: [(&str, &str, &Gauge); 9] = [
            ("accepting", "1 while deliveries are made durable, else 0", &spool.accepting),
            ("spool_bytes", "Bytes of all segments", &spool.bytes),
            ("spool_max_bytes", "Configured cap of spool_bytes", &spool.max_bytes),
            ("spool_segments", "Segment files", &spool.segments),
            ("spool_durable_end", "Offset below which every record is synced", &spool.durable_end),
            ("spool_syncs", "Syncs of segments since the start", &spool.syncs),
            ("spool_tail_truncated_bytes", "Bytes of torn tails set aside at the start", &spool.torn),
            ("spool_lost_records", "Records found damaged; each is reported in the log", &spool.lost),
            ("spool_remembered_ids", "Event ids by which repeats are recognised", &spool.remembered),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }

        let sinks = SinkFamilies {
            published: Family::default(),
            retries: Family::default(),
            dead_letters: Family::default(),
            backlog: Family::default(),
            in_flight: Family::default(),
            oldest: Family::default(),
            publishing: Family::default(),
            latency: Family::new_with_constructor(latency_buckets),
        };
        registry.register("sink_published", "Events confirmed by the broker", sinks.published.clone());
        registry.register("sink_retries", "Publishes that failed and are tried again", sinks.retries.clone());
        registry.register(
            "sink_dead_letters",
            "Events that the broker refused for good, kept with their reason",
            sinks.dead_letters.clone(),
        );
        registry.register(
            "sink_backlog_records",
            "Records accepted and not yet confirmed",
            sinks.backlog.clone(),
        );
        registry.register(
            "sink_in_flight",
            "Events published and not yet confirmed",
            sinks.in_flight.clone(),
        );
        registry.register_with_unit(
            "sink_oldest_undelivered",
            "Age of the oldest record that is not confirmed",
            Unit::Seconds,
            sinks.oldest.clone(),
        );
        registry.register(
            "sink_publishing",
            "1 while the broker confirms or nothing waits, else 0",
            sinks.publishing.clone(),
        );
        registry.register_with_unit(
            "sink_publish_latency",
            "From the hand-over of an event to its confirmation",
            Unit::Seconds,
            sinks.latency.clone(),
        );
        Arc::new(Self { registry, accepted, repeated, refused, spool, sinks })
    }

    pub fn source(&self, name: &str) -> SourceMetrics {
        let label = SourceLabel { source: name.to_owned() };
        SourceMetrics {
            name: name.to_owned(),
            accepted: self.accepted.get_or_create(&label).clone(),
            repeated: self.repeated.get_or_create(&label).clone(),
            refused: self.refused.clone(),
        }
    }

    pub fn sink(&self, name: &str) -> SinkMetrics {
        let label = SinkLabel { sink: name.to_owned() };
        SinkMetrics {
            published: self.sinks.published.get_or_create(&label).clone(),
            retries: self.sinks.retries.get_or_create(&label).clone(),
            dead_letters: self.sinks.dead_letters.get_or_create(&label).clone(),
            latency: self.sinks.latency.get_or_create(&label).clone(),
        }
    }

    /// The OpenMetrics text, with the gauges as they are now.
    pub fn encode<'a>(
        &self,
        spool: SpoolSnapshot,
        sinks: impl IntoIterator<Item = (&'a str, SinkSnapshot)>,
    ) -> String {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let gauges = &self.spool;
        gauges.accepting.set(i64::from(spool.accepting));
        gauges.bytes.set(number(spool.bytes));
        gauges.max_bytes.set(number(spool.max_bytes));
        gauges.segments.set(number(spool.segments));
        gauges.durable_end.set(number(spool.durable_end));
        gauges.syncs.set(number(spool.syncs));
        gauges.torn.set(number(spool.torn_bytes));
        gauges.lost.set(number(spool.lost_records));
        gauges.remembered.set(number(spool.remembered_ids));
        for (name, sink) in sinks {
            let label = SinkLabel { sink: name.to_owned() };
            self.sinks.backlog.get_or_create(&label).set(number(sink.backlog));
            self.sinks.in_flight.get_or_create(&label).set(number(sink.in_flight));
            self.sinks.oldest.get_or_create(&label).set(sink.oldest_seconds);
            self.sinks.publishing.get_or_create(&label).set(i64::from(sink.publishing));
        }
        let mut out = String::new();
        encode(&mut out, &self.registry).expect("writing to a String cannot fail");
        out
    }
}

impl SourceMetrics {
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    pub fn repeated(&self) {
        self.repeated.inc();
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusalLabels { source: self.name.clone(), reason }).inc();
    }
}
