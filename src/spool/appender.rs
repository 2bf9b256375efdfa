//! Handing records to the writer thread: a queue bounded in bytes, and one reply per record.
//!
//! An own queue and not a channel, because the writer waits for "enough or late enough", takes all
//! that waits under one lock, and is woken once for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::codec::to_usize;
use super::record::HEADER_LEN;
use super::{Appended, Entry};

/// Bytes that may wait for the writer; above, `append` waits in turn.
const QUEUE_BYTES: usize = 16 << 20;
/// Bytes written and synced at once.
const BATCH_BYTES: usize = 4 << 20;
/// A batch of fewer records is shallow.
const SHALLOW: usize = 8;

/// Why a record was not taken. Nothing of it is on disk, except after `Poisoned`: then only the next
/// start can tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The spool has reached its configured size, or the disk is full. Passes once records have been
    /// delivered.
    #[error("the spool is full")]
    Full,
    #[error("record of {len} bytes exceeds the limit of {limit}")]
    TooLarge { len: usize, limit: u32 },
    /// An empty payload cannot be told from none on disk.
    #[error("record is empty")]
    Empty,
    /// A write or sync failed; the process must end and recover.
    #[error("the spool has failed and takes no more records")]
    Poisoned,
    /// The writer has ended.
    #[error("the spool is closed")]
    Closed,
}

pub(crate) struct Request {
    pub(crate) entry: Entry,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Request {
    /// Bytes of the record on disk.
    pub(crate) fn frame_len(&self) -> usize {
        HEADER_LEN + self.entry.payload.len()
    }

    /// A caller that has gone away does not mind.
    pub(crate) fn answer(self, answer: Result<Appended, AppendError>) {
        drop(self.reply.send(answer));
    }
}

/// How the batch before went: what the next one is worth waiting for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    pub(crate) records: usize,
    /// To write, sync and answer it.
    pub(crate) took: Duration,
}

/// What the writer finds when it looks into the queue.
pub(crate) enum Work {
    Batch,
    /// A reader asks to seal the active segment, which is all confirmed.
    Seal,
    /// Every appender is gone and nothing waits.
    Closed,
}

struct State {
    waiting: VecDeque<Request>,
    seal: bool,
    closed: bool,
    /// Set by the writer when it ends: what later appends are told.
    ended: Option<AppendError>,
    /// How many waiting requests wake the writer; `usize::MAX` while it works.
    wake_at: usize,
}

pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// Bytes that may still be queued.
    room: Semaphore,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                seal: false,
                closed: false,
                ended: None,
                wake_at: usize::MAX,
            }),
            wake: Condvar::new(),
            room: Semaphore::new(QUEUE_BYTES),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, request: Request) -> Result<(), AppendError> {
        let mut state = self.lock();
        if let Some(end) = &state.ended {
            return Err(end.clone());
        }
        state.waiting.push_back(request);
        if state.waiting.len() >= state.wake_at {
            state.wake_at = usize::MAX;
            drop(state);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Asks the writer to seal the active segment if all of it is confirmed.
    pub(crate) fn request_seal(&self) {
        self.lock().seal = true;
        self.wake.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    fn end_reason(&self) -> AppendError {
        self.lock().ended.clone().unwrap_or(AppendError::Poisoned)
    }

    /// The writer ends: everybody waiting, now or later, is told `reason`.
    pub(crate) fn end(&self, reason: &AppendError) {
        let mut state = self.lock();
        state.ended = Some(reason.clone());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.room.close();
        for request in waiting {
            request.answer(Err(reason.clone()));
        }
    }

    /// Blocks until there is work; moves up to one batch of requests into `batch`.
    ///
    /// A sync costs the same for one record as for many, so it may pay to wait for more, `window`
    /// at most. If few are waiting and the batch before was shallow too, all of it. If the batch
    /// before was deep, those that it answered are about to come again: until as many are there,
    /// but no longer than that batch took.
    pub(crate) fn take(&self, batch: &mut VecDeque<Request>, window: Duration, previous: Pace) -> Work {
        let mut state = self.lock();
        state.wake_at = 1;
        while state.waiting.is_empty() && !state.seal && !state.closed {
            state.wake_at = 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (enough, patience) = if previous.records < SHALLOW {
            (SHALLOW, window)
        } else {
            (previous.records, window.min(previous.took))
        };
        if !state.waiting.is_empty() && !patience.is_zero() {
            state.wake_at = enough;
            let few = |state: &mut State| state.waiting.len() < enough && !state.closed;
            let waited = self.wake.wait_timeout_while(state, patience, few);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.wake_at = usize::MAX;
        if state.waiting.is_empty() {
            let seal = std::mem::take(&mut state.seal);
            return if seal { Work::Seal } else { Work::Closed };
        }
        let mut bytes = 0;
        let fits = |request: &&Request| {
            bytes += request.frame_len();
            bytes <= BATCH_BYTES
        };
        let count = state.waiting.iter().take_while(fits).count().max(1);
        batch.extend(state.waiting.drain(..count));
        let taken = batch.iter().map(|request| room(request.entry.payload.len())).sum();
        drop(state);
        self.room.add_permits(taken);
        Work::Batch
    }
}

/// Closes the queue when the last appender is dropped.
struct Closer(Arc<Queue>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Appends records; clones share one queue. The writer ends when every clone is dropped.
#[derive(Clone)]
pub struct Appender {
    queue: Arc<Closer>,
    max_record_bytes: u32,
}

impl Appender {
    pub(crate) fn new(queue: Arc<Queue>, max_record_bytes: u32) -> Self {
        Self { queue: Arc::new(Closer(queue)), max_record_bytes }
    }

    /// Appends one record; resolves after the sync that covers it. Dropping the future may leave the
    /// record unwritten or written, never half-written.
    ///
    /// # Errors
    /// See [`AppendError`]. Only `Full` is worth trying again.
    pub async fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        let queue = &*self.queue.0;
        let len = entry.payload.len();
        if len == 0 {
            return Err(AppendError::Empty);
        }
        let limit = self.max_record_bytes;
        if len > to_usize(limit.into()) {
            return Err(AppendError::TooLarge { len, limit });
        }
        let permits = u32::try_from(room(len)).expect("at most QUEUE_BYTES");
        let Ok(permit) = queue.room.acquire_many(permits).await else {
            return Err(queue.end_reason());
        };
        let (reply, answer) = oneshot::channel();
        queue.push(Request { entry, reply })?;
        permit.forget();
        answer.await.unwrap_or_else(|_| Err(queue.end_reason()))
    }
}

/// Bytes a record takes in the queue; one larger than the queue takes all of it.
fn room(payload: usize) -> usize {
    payload.saturating_add(HEADER_LEN).min(QUEUE_BYTES)
}

impl std::fmt::Debug for Appender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Appender").field("max_record_bytes", &self.max_record_bytes).finish_non_exhaustive()
    }
}
