//! Builds the parts, joins them, stops them in order. The only file that knows them all.
//!
//! Stop order: not ready -> stop accepting, let handlers end -> the spool's writer drains, syncs
//! and ends -> each dispatcher lets its window end and stores its cursor -> done. What is not
//! published by then lies on disk for the next start.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::config::{Broker, Config, SinkConfig, SourceConfig};
use crate::dead_letter::DeadLetters;
use crate::dispatch::{self, DispatchError, Dispatcher, Progress};
use crate::http::{self, Intake, Listener, Readiness, SinkReadiness};
use crate::metrics::{Metrics, SpoolSnapshot};
use crate::sink::{self, Outcomes, Sink};
use crate::source::Source;
use crate::spool::{self, DiskStorage, Spool};

#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error("cannot listen on {address} ({key})")]
    Listen { key: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("the spool at {} is on {filesystem}, which forgets what is synced", dir.display())]
    Volatile { dir: std::path::PathBuf, filesystem: &'static str },
    #[error("cannot use {} for the spool (spool.dir)", dir.display())]
    Place { dir: std::path::PathBuf, source: std::io::Error },
    #[error("cannot open the spool")]
    Recovery(#[from] spool::RecoveryError),
    #[error("cannot start sink {name}")]
    Sink { name: String, source: sink::StartError },
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("the spool's writer ended: {0}")]
    Writer(String),
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// Where a running bridge can be reached.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

/// Runs until `stop` completes and everything has been stopped in order, or until a part ends by
/// itself, which is an error. `started` learns the bound addresses.
///
/// # Errors
/// When a part cannot start, or ends while it should run.
pub async fn run(
    config: Config,
    started: impl FnOnce(Addresses),
    stop: impl Future<Output = ()>,
) -> Result<(), BridgeError> {
    let grace = config.shutdown_grace;
    let mut bridge = Bridge::start(config).await?;
    tracing::info!(addr = %bridge.addresses.http, "listening");
    tracing::info!(addr = %bridge.addresses.admin, "admin listening");
    started(bridge.addresses);
    tokio::select! {
        () = stop => {}
        failure = bridge.failure() => {
            tracing::error!(error = %failure, "a part ended by itself: stopping");
            // Whatever still works may finish; the process ends with the first failure.
            bridge.not_ready();
            if let Err(error) = bridge.stop(grace).await {
                tracing::debug!(%error, "further failure while stopping");
            }
            return Err(failure);
        }
    }
    bridge.stop(grace).await
}

/// The running parts.
struct Bridge {
    addresses: Addresses,
    stopping: Arc<AtomicBool>,
    http: Task<usize>,
    admin: Task<usize>,
    /// When providers are to be turned away, and by when handlers must have ended.
    stop_http: watch::Sender<Option<Instant>>,
    stop_admin: watch::Sender<Option<Instant>>,
    stop_dispatch: watch::Sender<Option<Instant>>,
    writer: spool::WriterHandle,
    dispatchers: Vec<Running>,
}

/// The end of a task or thread; an error if it ended without a word, by a panic.
type Task<T> = oneshot::Receiver<T>;

/// A dispatcher on its thread; it ends with how many records were still under way.
type Running = (Arc<Progress>, Task<Result<usize, DispatchError>>);

impl Bridge {
    async fn start(config: Config) -> Result<Self, BridgeError> {
        let Config { http, admin, spool, allow_volatile, sources, sinks, shutdown_grace: _ } = config;
        let admin = http::Config::admin(admin);
        let http_listener = bind("http.listen", http.clone()).await?;
        let admin_listener = bind("admin.listen", admin).await?;
        let addresses = Addresses {
            http: http_listener.address().unwrap_or(http.listen),
            admin: admin_listener.address().unwrap_or(http.listen),
        };

        check_place(&spool.dir, allow_volatile)?;
        let (spool_dir, spool_max) = (spool.dir.clone(), spool.max_bytes);
        let names: Vec<String> = sinks.iter().map(|sink| sink.name.clone()).collect();
        let Spool { appender, readers, writer, status, recovery } =
            Spool::open(spool, &names, Arc::new(DiskStorage))?;
        log_recovery(&spool_dir, &recovery);

        let metrics = Metrics::new();
        let (stop_dispatch, dispatch_stop) = watch::channel(None);
        let by_name = Arc::new(share(&sources));
        let mut dispatchers = Vec::new();
        for (sink, reader) in sinks.into_iter().zip(readers) {
            let parts = parts(sink, reader, &status, &by_name, &metrics, &spool_dir)?;
            dispatchers.push(spawn_dispatcher(parts, dispatch_stop.clone())?);
        }

        let stopping = Arc::new(AtomicBool::new(false));
        let (stop_admin, admin_stop) = watch::channel(None);
        let (stop_http, http_stop) = watch::channel(None);
        let view = Arc::new(View {
            stopping: Arc::clone(&stopping),
            spool: Arc::clone(&status),
            spool_max,
            sinks: dispatchers.iter().map(|(progress, _)| Arc::clone(progress)).collect(),
            metrics: Arc::clone(&metrics),
        });
        let for_ready = Arc::clone(&view);
        let admin_routes = http::admin_routes(move || for_ready.readiness(), move || view.metrics());
        let intake = Arc::new(Intake::new(&http, sources, appender, &metrics));
        let hooks = http::routes(intake);
        Ok(Self {
            addresses,
            stopping,
            http: spawn(serve(http_listener, hooks, http_stop)),
            admin: spawn(serve(admin_listener, admin_routes, admin_stop)),
            stop_http,
            stop_admin,
            stop_dispatch,
            writer,
            dispatchers,
        })
    }

    fn not_ready(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Completes when any part ends by itself.
    async fn failure(&mut self) -> BridgeError {
        let mut dispatchers: futures_util::stream::FuturesUnordered<_> =
            self.dispatchers.iter_mut().map(|(_, task)| task).collect();
        let dispatcher = async {
            match futures_util::StreamExt::next(&mut dispatchers).await {
                Some(Ok(Err(error))) => BridgeError::Dispatch(error),
                _ => BridgeError::Ended("dispatcher"),
            }
        };
        tokio::select! {
            _ = &mut self.http => BridgeError::Ended("HTTP listener"),
            _ = &mut self.admin => BridgeError::Ended("admin listener"),
            ended = self.writer.ended() => {
                BridgeError::Writer(ended.err().map_or_else(|| "early".to_owned(), |error| error.to_string()))
            }
            error = dispatcher => error,
        }
    }

    async fn stop(self, grace: Duration) -> Result<(), BridgeError> {
        let began = Instant::now();
        let deadline = began + grace;
        self.not_ready();
        tracing::info!(grace_s = grace.as_secs(), "stopping: no new connections");
        // Handlers wait for the disk alone, so half of the grace is plenty for them; the rest is
        // the brokers'.
        self.stop_http.send_replace(Some(began + grace / 2));
        let cut_off = self.http.await.unwrap_or(0);
        if cut_off > 0 {
            tracing::warn!(connections = cut_off, "cut off connections that did not end in time");
        }
        // The last appender went with the listener's routes: the writer drains and ends.
        let writer = tokio::task::spawn_blocking(move || self.writer.join()).await;
        tracing::info!("spool synced and closed");

        self.stop_dispatch.send_replace(Some(deadline));
        let mut failure = None;
        for (progress, task) in self.dispatchers {
            let sink = &progress.name;
            match task.await {
                Ok(Ok(under_way)) => {
                    let backlog = progress.snapshot().backlog;
                    tracing::info!(sink, cursor = progress.cursor(), backlog, under_way, "sink stopped");
                }
                Ok(Err(error)) => failure = Some(BridgeError::Dispatch(error)),
                Err(_) => failure = Some(BridgeError::Ended("dispatcher")),
            }
        }
        self.stop_admin.send_replace(Some(deadline));
        let _cut_off = self.admin.await.unwrap_or(0);
        match writer {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failure = Some(BridgeError::Writer(error.to_string())),
            Err(_) => failure = Some(BridgeError::Ended("spool writer")),
        }
        tracing::info!(took_ms = began.elapsed().as_millis(), "stopped");
        failure.map_or(Ok(()), Err)
    }
}

/// What the admin listener shows.
struct View {
    stopping: Arc<AtomicBool>,
    spool: Arc<spool::Status>,
    spool_max: u64,
    sinks: Vec<Arc<Progress>>,
    metrics: Arc<Metrics>,
}

impl View {
    fn accepting(&self) -> bool {
        self.spool.accepting() && !self.stopping.load(Ordering::Relaxed)
    }

    fn readiness(&self) -> Readiness {
        let sinks: Vec<_> = self
            .sinks
            .iter()
            .map(|sink| SinkReadiness { name: sink.name.clone(), publishing: sink.snapshot().publishing })
            .collect();
        let publishing = sinks.iter().all(|sink| sink.publishing);
        Readiness { accepting: self.accepting(), publishing, sinks }
    }

    fn metrics(&self) -> String {
        let spool = SpoolSnapshot {
            accepting: self.accepting(),
            bytes: self.spool.bytes(),
            max_bytes: self.spool_max,
            segments: u64::try_from(self.spool.segments()).unwrap_or(u64::MAX),
            durable_end: self.spool.durable_end(),
            syncs: self.spool.syncs().0,
            torn_bytes: self.spool.truncated_tail_bytes(),
            lost_records: self.spool.lost_records(),
            remembered_ids: self.spool.remembered_ids(),
        };
        self.metrics.encode(spool, self.sinks.iter().map(|sink| (sink.name.as_str(), sink.snapshot())))
    }
}

async fn bind(key: &'static str, config: http::Config) -> Result<Listener, BridgeError> {
    let address = config.listen;
    Listener::bind(config).await.map_err(|source| BridgeError::Listen { key, address, source })
}

/// A sync onto memory promises nothing.
fn check_place(dir: &std::path::Path, allow_volatile: bool) -> Result<(), BridgeError> {
    let place = std::fs::create_dir_all(dir).and_then(|()| spool::volatile_filesystem(dir));
    let place = place.map_err(|source| BridgeError::Place { dir: dir.to_owned(), source })?;
    let Some(filesystem) = place else { return Ok(()) };
    if !allow_volatile {
        return Err(BridgeError::Volatile { dir: dir.to_owned(), filesystem });
    }
    tracing::warn!(dir = %dir.display(), filesystem, "spool.allow_volatile: what is accepted does not survive a reboot");
    Ok(())
}

/// What was found, and loudly what was not.
fn log_recovery(dir: &std::path::Path, report: &spool::RecoveryReport) {
    tracing::info!(
        dir = %dir.display(),
        segments = report.segments,
        records_end = report.durable_end,
        remembered_ids = report.remembered_ids,
        "spool open"
    );
    if let Some(tail) = &report.torn_tail {
        let kept = tail.quarantined.as_ref().map(|path| path.display().to_string());
        tracing::warn!(bytes = tail.bytes, kept, "torn tail set aside: it was never answered");
    }
    for damage in &report.damage {
        tracing::error!(
            segment = %damage.path.display(),
            first = damage.first,
            end = damage.end,
            reason = damage.reason,
            "accepted records are damaged"
        );
    }
    if let Some(missing) = &report.missing_end {
        tracing::error!(first = missing.start, end = missing.end, "accepted records are missing at the end");
    }
    for path in &report.set_aside {
        tracing::error!(path = %path.display(), "a file that is not what its name says was set aside");
    }
    for sink in &report.cursors_reset {
        tracing::warn!(sink, "cursor unreadable: publishing again from the oldest record");
    }
    for (sink, offset) in &report.cursors_ahead {
        tracing::error!(sink, offset, "cursor is beyond the last record: records are missing");
    }
    for (sink, offset) in &report.orphan_cursors {
        tracing::warn!(
            sink,
            offset,
            "a cursor of a sink that is configured no more keeps its records; \
             remove cursors/<sink>.cursor to let them go"
        );
    }
}

/// The dispatchers' view of the sources: they outlive the listener.
fn share(sources: &[SourceConfig]) -> HashMap<Arc<str>, Arc<Source>> {
    sources
        .iter()
        .map(|configured| (Arc::clone(configured.source.name()), Arc::clone(&configured.source)))
        .collect()
}

fn parts(
    config: SinkConfig,
    reader: spool::Reader,
    spool: &Arc<spool::Status>,
    sources: &Arc<HashMap<Arc<str>, Arc<Source>>>,
    metrics: &Metrics,
    spool_dir: &std::path::Path,
) -> Result<dispatch::Parts, BridgeError> {
    let SinkConfig { name, template, broker, in_flight_max, retry } = config;
    let outcomes = Outcomes::new();
    let sink =
        start_sink(broker, &outcomes).map_err(|source| BridgeError::Sink { name: name.clone(), source })?;
    Ok(dispatch::Parts {
        metrics: metrics.sink(&name),
        dead_letters: DeadLetters::of(spool_dir, &name),
        template,
        in_flight_max,
        retry,
        sink,
        outcomes,
        reader,
        spool: Arc::clone(spool),
        sources: Arc::clone(sources),
        name,
    })
}

fn start_sink(broker: Broker, outcomes: &Arc<Outcomes>) -> Result<Box<dyn Sink>, sink::StartError> {
    let outcomes = Arc::clone(outcomes);
    match broker {
        Broker::Kafka(config) => sink::start_kafka(config, outcomes),
        Broker::Nats(config) => sink::start_nats(config, outcomes),
    }
}

/// A dispatcher on a thread and a runtime of its own.
fn spawn_dispatcher(parts: dispatch::Parts, stop: dispatch::Stop) -> Result<Running, BridgeError> {
    let thread_name = format!("sink-{}", parts.name.chars().take(10).collect::<String>());
    let dispatcher = Dispatcher::new(parts);
    let progress = dispatcher.progress();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(BridgeError::Thread)?;
    let (ended, task) = oneshot::channel();
    std::thread::Builder::new()
        .name(thread_name)
        .spawn(move || {
            let result = runtime.block_on(dispatcher.run(stop));
            // Nobody to tell means that the bridge is gone.
            drop(ended.send(result));
        })
        .map_err(BridgeError::Thread)?;
    Ok((progress, task))
}

fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    let (ended, task) = oneshot::channel();
    tokio::spawn(async move { drop(ended.send(work.await)) });
    task
}

async fn serve<F>(listener: Listener, routes: F, mut stop: watch::Receiver<Option<Instant>>) -> usize
where
    F: warp::Filter<Error = warp::Rejection> + Clone + Send + Sync + 'static,
    F::Extract: warp::Reply,
{
    let stop = async move {
        let deadline = stop.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
        deadline.unwrap_or_else(Instant::now).into()
    };
    listener.serve(routes, stop).await
}
