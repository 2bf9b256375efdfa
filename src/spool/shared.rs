//! What the writer and the readers of one spool share, and freeing, which either may do.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::Config;
use super::catalog::{Catalog, Segment};
use super::codec::{millis, now_ms};
use super::quarantine;
use super::status::Status;
use super::storage::{Held, Storage};

pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) config: Config,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) status: Arc<Status>,
    /// Held while one thread frees; the catalog stays unlocked during the I/O.
    pub(crate) freeing: Mutex<()>,
    /// The directory is ours until the writer and the last reader are gone.
    pub(crate) _lock: Box<dyn Held>,
}

impl Shared {
    /// Removes the segments that lie behind every sink's synced cursor, and old sidecars.
    ///
    /// # Errors
    /// The first I/O error; what could not be removed stays in the catalog, to be tried again.
    pub(crate) fn free(&self) -> io::Result<()> {
        let _one_at_a_time = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        let segments = self.catalog.take_freeable(now, millis(self.config.retention));
        let ids = self.catalog.take_expired_ids(now, millis(self.config.repeats_window));
        if segments.is_empty() && ids.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for ids in &ids {
            // At worst it stays: it is found and expires again at the next start.
            if let Err(error) = self.storage.unlink(&ids.path) {
                warn!(file = %ids.path.display(), %error, "cannot remove old ids");
            }
        }
        let mut kept = Vec::new();
        for segment in segments {
            // In order, and none after a failure: what is on disk has no holes.
            match if result.is_ok() { self.remove(&segment) } else { Ok(false) } {
                Ok(true) => {
                    self.status.bytes.fetch_sub(segment.len, Relaxed);
                    self.status.full.store(false, Relaxed);
                }
                Ok(false) => kept.push(segment),
                Err(error) => {
                    result = Err(error);
                    kept.push(segment);
                }
            }
        }
        let mut state = self.catalog.lock();
        for segment in kept.into_iter().rev() {
            state.segments.push_front(segment);
        }
        drop(state);
        result.and(self.storage.sync_dir(&self.config.dir))
    }

    fn remove(&self, segment: &Segment) -> io::Result<bool> {
        if segment.damaged {
            let path = quarantine::take(&*self.storage, &self.config.dir, &segment.path)?;
            info!(file = %path.display(), "kept a damaged segment");
            return Ok(true);
        }
        match self.storage.unlink(&segment.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }

    /// Looks at the free space of the disk. Below two segments' worth the spool refuses records, so
    /// that a 503 comes before ENOSPC; it takes them again above three.
    pub(crate) fn disk_low(&self) -> bool {
        let status = &self.status;
        let was_low = status.disk_low.load(Relaxed);
        let mark = self.config.segment_bytes.saturating_mul(if was_low { 3 } else { 2 });
        // An unknown amount is no reason to refuse: ENOSPC is handled too.
        let low = self.storage.free_bytes(&self.config.dir).is_ok_and(|free| free < mark);
        if low != was_low {
            status.disk_low.store(low, Relaxed);
            warn!(low, "free space of the spool's disk");
        }
        low
    }
}
