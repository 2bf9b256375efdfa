//! What the spool tells the rest of the process about itself; read from anywhere, without waiting.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::catalog::{Catalog, State};
use super::{Offset, RecoveryReport};

/// Called by the writer thread after every sync of records with how long it took.
pub type SyncHook = Box<dyn Fn(Duration) + Send + Sync>;

/// Gauges and counters of a spool. Counters start at 0 when the spool is opened.
#[derive(Default)]
pub struct Status {
    pub(crate) bytes: AtomicU64,
    pub(crate) durable_end: AtomicU64,
    pub(crate) full: AtomicBool,
    pub(crate) disk_low: AtomicBool,
    pub(crate) ended: AtomicBool,
    pub(crate) poisoned: OnceLock<String>,
    pub(crate) truncated_tail_bytes: AtomicU64,
    pub(crate) lost_records: AtomicU64,
    pub(crate) remembered_ids: AtomicU64,
    pub(crate) repeats: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) batched_records: AtomicU64,
    pub(crate) last_batch: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) sync_hook: OnceLock<SyncHook>,
    pub(crate) catalog: Arc<Catalog>,
}

impl Status {
    pub(crate) fn of(state: State, report: &RecoveryReport) -> Self {
        let torn = report.torn_tail.as_ref().map_or(0, |tail| tail.bytes);
        Self {
            bytes: state.segments.iter().map(|segment| segment.len).sum::<u64>().into(),
            durable_end: state.durable_end.into(),
            truncated_tail_bytes: torn.into(),
            remembered_ids: (report.remembered_ids as u64).into(),
            catalog: Arc::new(Catalog::new(state)),
            ..Self::default()
        }
    }

    /// Bytes in segments: what `Config::max_bytes` limits.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Number of segment files.
    pub fn segments(&self) -> usize {
        self.catalog.lock().segments.len()
    }

    /// Every offset below is synced, and is the number of records ever accepted.
    pub fn durable_end(&self) -> Offset {
        self.durable_end.load(Relaxed)
    }

    /// Every offset below is confirmed by every sink, by synced cursors.
    pub fn confirmed_end(&self) -> Offset {
        self.catalog.lock().confirmed()
    }

    /// Whether an append is likely to succeed now. Advice for a readiness check: an append is what
    /// finds out, so do not stop trying because of it.
    pub fn accepting(&self) -> bool {
        !self.full.load(Relaxed)
            && !self.disk_low.load(Relaxed)
            && !self.ended.load(Relaxed)
            && self.poisoned.get().is_none()
    }

    /// Why no append can succeed until the process has been restarted.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// Bytes of a torn tail that recovery moved to quarantine.
    pub fn truncated_tail_bytes(&self) -> u64 {
        self.truncated_tail_bytes.load(Relaxed)
    }

    /// Records reported as [`super::ReadItem::Lost`], summed over all readers.
    pub fn lost_records(&self) -> u64 {
        self.lost_records.load(Relaxed)
    }

    /// When the segment with the oldest record not confirmed by every sink was created, in
    /// milliseconds since 1970; `None` if all is confirmed. That record is at most this old.
    pub fn oldest_undelivered_ms(&self) -> Option<u64> {
        let state = self.catalog.lock();
        let confirmed = state.confirmed();
        let waiting = |segment: &&super::catalog::Segment| segment.end > confirmed;
        state.segments.iter().find(waiting).map(|segment| segment.created_ms)
    }

    /// Ids remembered for recognising repeats.
    pub fn remembered_ids(&self) -> u64 {
        self.remembered_ids.load(Relaxed)
    }

    /// Appends answered with [`super::Appended::Repeat`].
    pub fn repeats(&self) -> u64 {
        self.repeats.load(Relaxed)
    }

    /// Batches of records written.
    pub fn batches(&self) -> u64 {
        self.batches.load(Relaxed)
    }

    /// Records written, in all batches.
    pub fn batched_records(&self) -> u64 {
        self.batched_records.load(Relaxed)
    }

    /// Records in the last batch.
    pub fn last_batch(&self) -> u64 {
        self.last_batch.load(Relaxed)
    }

    /// Syncs of records, and the time they took in all.
    pub fn syncs(&self) -> (u64, Duration) {
        (self.syncs.load(Relaxed), Duration::from_nanos(self.sync_nanos.load(Relaxed)))
    }

    /// Has `hook` called after every sync of records; `false` if there was one already.
    pub fn on_sync(&self, hook: SyncHook) -> bool {
        self.sync_hook.set(hook).is_ok()
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.syncs.fetch_add(1, Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sync_nanos.fetch_add(nanos, Relaxed);
        if let Some(hook) = self.sync_hook.get() {
            hook(took);
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("bytes", &self.bytes)
            .field("durable_end", &self.durable_end)
            .field("accepting", &self.accepting())
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}
