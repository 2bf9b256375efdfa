//! Reading forward for one sink, and its cursor.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::watch;
use tracing::error;

use super::appender::Queue;
use super::catalog::{Place, Segment};
use super::codec::{millis, now_ms};
use super::cursor::CursorFile;
use super::quarantine;
use super::scan::{Damage, Found, Scan};
use super::segment::file_name;
use super::shared::Shared;
use super::{Offset, Record};

/// Confirmed records after which the cursor is stored without waiting for the interval: the most
/// that a crash repeats under load.
const STORE_AFTER: u64 = 4096;
/// A chunk is not smaller than this, in bytes: small reads cost more than they save.
const CHUNK_MIN: usize = 64 << 10;
const CHUNK_MAX: usize = 1 << 20;

/// What lies at a reader's position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadItem {
    Record(Record),
    /// Records that were accepted and cannot be read. The cursor may pass them.
    Lost {
        first: Offset,
        /// One past the last lost offset.
        end: Offset,
        reason: String,
        /// Where the bytes were copied to; `None` if there are none, or they could not be copied
        /// (then the whole segment is kept when it is freed).
        quarantined: Option<PathBuf>,
    },
}

/// A segment could not be read. Trying again is right; the position has not moved past it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Reads one sink's records in order, and moves its cursor.
pub struct Reader {
    pub(crate) sink: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) durable: watch::Receiver<Offset>,
    pub(crate) cursor_file: CursorFile,
    /// The next offset to read.
    pub(crate) position: Offset,
    pub(crate) confirmed: Offset,
    pub(crate) stored_at: Instant,
    pub(crate) scan: Option<(Offset, Scan)>,
}

impl Reader {
    /// The sink this reader was opened for.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Everything below is confirmed.
    pub fn cursor(&self) -> Offset {
        self.confirmed
    }

    /// The next offset that `read` returns.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Waits until there is something to read; `false` if the writer has ended and all is read.
    pub async fn wait(&mut self) -> bool {
        let position = self.position;
        self.durable.wait_for(|end| *end > position).await.is_ok()
    }

    /// Reads on from the position: about `max_bytes` of records, at least one if there is one.
    /// Blocks on the disk. Only records below the durable end are returned.
    ///
    /// # Errors
    /// The disk refused to read; the items before are returned first, so an `Err` loses nothing.
    pub fn read(&mut self, max_bytes: usize) -> Result<Vec<ReadItem>, ReadError> {
        let mut items = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes.max(1) {
            let read = match self.shared.catalog.place(self.position) {
                Place::End => break,
                Place::Gap(end) => {
                    items.push(self.lost(end, "no segment holds these records".into(), None));
                    continue;
                }
                Place::In(segment) => self.read_segment(&segment, max_bytes, &mut bytes, &mut items),
            };
            if let Err((path, source)) = read {
                // The scan may stand anywhere; the next read begins a new one.
                self.scan = None;
                if items.is_empty() {
                    return Err(ReadError { path, source });
                }
                break;
            }
        }
        Ok(items)
    }

    /// Reads in one segment until `bytes` reaches `max_bytes` or the segment's synced part ends.
    fn read_segment(
        &mut self,
        segment: &Segment,
        max_bytes: usize,
        bytes: &mut usize,
        items: &mut Vec<ReadItem>,
    ) -> Result<(), (PathBuf, io::Error)> {
        let at = |error| (segment.path.clone(), error);
        let mut scan = match self.scan.take().filter(|(first, _)| *first == segment.first) {
            Some((_, scan)) => scan,
            None => match self.open(segment) {
                Ok(scan) => scan,
                Err(lost) => {
                    items.push(lost.map_err(at)?);
                    return Ok(());
                }
            },
        };
        scan.set_chunk(max_bytes.clamp(CHUNK_MIN, CHUNK_MAX));
        while *bytes < max_bytes.max(1) && self.position < segment.end {
            match scan.step(segment.len).map_err(at)? {
                Some(Found::Record { record, .. }) => {
                    // Below the position only after opening: the way to the cursor.
                    if record.offset >= self.position {
                        self.position = record.offset + 1;
                        *bytes += super::record::HEADER_LEN + record.payload.len();
                        items.push(ReadItem::Record(record));
                    }
                }
                Some(Found::Damage(damage)) => {
                    let end = damage.end.unwrap_or(segment.end).min(segment.end);
                    scan.next = scan.next.max(end);
                    if end > self.position {
                        items.push(self.damaged(segment, &scan, &damage, end));
                    }
                }
                None => {
                    let reason = "the segment ends before them".into();
                    items.push(self.lost(segment.end, reason, None));
                }
            }
        }
        self.scan = Some((segment.first, scan));
        Ok(())
    }

    /// Opens a segment; an inner `Ok` is the loss of all of it, an inner `Err` the disk's.
    fn open(&mut self, segment: &Segment) -> Result<Scan, io::Result<ReadItem>> {
        let Some(header) = &segment.header else {
            let path = Some(segment.path.clone());
            return Err(Ok(self.lost(segment.end, "the segment's header is damaged".into(), path)));
        };
        match self.shared.storage.open(&segment.path) {
            Ok(file) => Ok(Scan::new(file, header)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Ok(self.lost(segment.end, "the segment's file is missing".into(), None)))
            }
            Err(error) => Err(Err(error)),
        }
    }

    fn damaged(&mut self, segment: &Segment, scan: &Scan, damage: &Damage, end: Offset) -> ReadItem {
        let name = format!("{}.at-{}", file_name(segment.first, ""), damage.position);
        let Damage { position, len, .. } = *damage;
        let (storage, dir) = (&*self.shared.storage, &self.shared.config.dir);
        let copied =
            (len > 0).then(|| quarantine::copy(storage, dir, &name, &*scan.file, position, len)).transpose();
        let quarantined = copied.unwrap_or_else(|error| {
            error!(file = %segment.path.display(), %error, "cannot quarantine damaged bytes");
            let mut state = self.shared.catalog.lock();
            if let Some(kept) = state.segments.iter_mut().find(|kept| kept.first == segment.first) {
                kept.damaged = true;
            }
            None
        });
        let reason =
            format!("{} at byte {position} of {}, {len} bytes", damage.reason, segment.path.display());
        self.lost(end, reason, quarantined)
    }

    /// Reports everything from the position to `end` as lost, and moves past it.
    fn lost(&mut self, end: Offset, reason: String, quarantined: Option<PathBuf>) -> ReadItem {
        let first = self.position;
        self.position = end.max(first);
        self.shared.status.lost_records.fetch_add(self.position - first, Relaxed);
        error!(sink = self.sink, first, end, reason, "accepted records are lost");
        ReadItem::Lost { first, end, reason, quarantined }
    }

    /// Confirms everything below `up_to` that has been read. Cheap; see [`Reader::store_due`].
    pub fn confirm(&mut self, up_to: Offset) {
        self.confirmed = self.confirmed.max(up_to.min(self.position));
    }

    /// Whether `store` has something to do and enough has happened since the last one.
    pub fn store_due(&self) -> bool {
        let behind = self.confirmed - self.cursor_file.offset();
        if behind >= STORE_AFTER {
            return true;
        }
        self.stored_at.elapsed() >= self.shared.config.cursor_interval
            && (behind > 0 || self.seal_wanted() || self.freeable())
    }

    fn freeable(&self) -> bool {
        self.shared.catalog.has_freeable(now_ms(), millis(self.shared.config.retention))
    }

    /// A confirmed active segment keeps its bytes until it is sealed: when it is old, or when the
    /// spool is full, the writer is asked to.
    fn seal_wanted(&self) -> bool {
        let full = self.shared.status.full.load(Relaxed) || self.shared.status.disk_low.load(Relaxed);
        let age = millis(self.shared.config.seal_age);
        let state = self.shared.catalog.lock();
        state
            .confirmed_active()
            .is_some_and(|active| full || now_ms().saturating_sub(active.created_ms) >= age)
    }

    /// Stores the cursor durably, then frees what lies behind every sink's stored cursor. Blocks on
    /// the disk. Never needs new blocks, so it works on a full disk.
    ///
    /// # Errors
    /// Writing or syncing the cursor failed: it may repeat records, and after a failed sync it stays
    /// failed. Or a confirmed segment could not be removed: it is tried again.
    pub fn store(&mut self) -> io::Result<()> {
        self.stored_at = Instant::now();
        if self.confirmed > self.cursor_file.offset() {
            let durable_end = *self.durable.borrow();
            self.cursor_file.store(self.confirmed, durable_end)?;
            self.shared.catalog.set_cursor(&self.sink, self.confirmed);
        }
        self.shared.free()?;
        if self.shared.status.disk_low.load(Relaxed) {
            self.shared.disk_low();
        }
        if self.seal_wanted() {
            self.queue.request_seal();
        }
        Ok(())
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("sink", &self.sink)
            .field("position", &self.position)
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}
