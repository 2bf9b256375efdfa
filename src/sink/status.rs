//! What a sink knows of its broker; read by readiness and logs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct SinkStatus {
    connected: AtomicBool,
    since: Instant,
    /// Milliseconds after `since`, plus one; 0 for never.
    last_ack: AtomicU64,
    /// Publishes that failed for now.
    retries: AtomicU64,
    /// Clients thrown away and built anew.
    rebuilds: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Default for SinkStatus {
    fn default() -> Self {
        Self {
            connected: AtomicBool::new(false),
            since: Instant::now(),
            last_ack: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }
}

impl SinkStatus {
    /// As far as the client can tell; a confirmation is the only proof.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// How long ago the broker confirmed something; `None` for never.
    pub fn last_ack(&self) -> Option<Duration> {
        let at = self.last_ack.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// The broker confirmed something just now.
    pub fn acked(&self) {
        let at = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_ack.store(at + 1, Ordering::Relaxed);
        self.set_connected(true);
    }

    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    pub fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A publish failed for now.
    pub fn failed(&self, reason: &str) {
        self.count_retry();
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(reason) {
            *last = Some(reason.to_owned());
        }
    }

    pub fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    pub fn rebuilt(&self) {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
    }

    /// What the client complained of last.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}
