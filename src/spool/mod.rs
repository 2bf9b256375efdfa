//! The spool: what has been accepted and not yet confirmed, on disk.

mod appender;
mod catalog;
mod codec;
mod cursor;
mod disk;
mod quarantine;
mod reader;
mod recent;
mod record;
mod recovery;
mod scan;
mod segment;
mod shared;
mod sidecar;
mod status;
mod storage;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

pub use appender::{AppendError, Appender};
pub use disk::{DiskStorage, volatile_filesystem};
pub use reader::{ReadError, ReadItem, Reader};
pub use recovery::{RecoveryError, RecoveryReport};
pub use status::Status;
pub use storage::{Held, Storage, StorageFile};

use appender::Queue;
use shared::Shared;
use writer::Writer;

/// The number of a record: from 0, without gaps as appended, never used twice.
pub type Offset = u64;

/// What makes two deliveries the same: a digest that the spool compares and does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdKey(pub [u8; 16]);

/// What is to be appended.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: IdKey,
    pub payload: Bytes,
}

/// What was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: Offset,
    pub key: IdKey,
    /// A slice of the chunk that was read: holding it holds the chunk (64 KiB to 1 MiB).
    pub payload: Bytes,
}

/// How an append ended; in either case the record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    New(Offset),
    /// A record with this id is already durable; nothing was written.
    Repeat,
}

/// Settings of a spool.
#[derive(Clone, Debug)]
pub struct Config {
    /// Made if it does not exist; belongs to the spool alone.
    pub dir: PathBuf,
    /// Most bytes in segments; at it, appends answer `Full`. Sidecars come on top: 16 bytes per
    /// remembered id.
    pub max_bytes: u64,
    /// A segment is sealed when the next record would make it longer. At most a fourth of
    /// `max_bytes` is sensible: confirmed bytes are freed by whole segments.
    pub segment_bytes: u64,
    /// Longest payload that an append may have, in bytes.
    pub max_record_bytes: u32,
    /// How long a shallow batch waits for more records; never waited when many are queued.
    pub commit_window: Duration,
    /// How long an id is remembered after its segment was sealed.
    pub repeats_window: Duration,
    /// Most ids remembered; 21 to 44 bytes of memory each.
    pub repeats_max: usize,
    /// A cursor is stored at most this often, unless thousands of records were confirmed.
    pub cursor_interval: Duration,
    /// How long a confirmed segment is kept after it was sealed; zero frees it at once.
    pub retention: Duration,
    /// Age at which an active segment that is all confirmed is sealed, so that it can be freed.
    pub seal_age: Duration,
}

/// An opened spool, in its parts.
#[derive(Debug)]
pub struct Spool {
    pub appender: Appender,
    /// One per sink, in the order of the names given.
    pub readers: Vec<Reader>,
    pub writer: WriterHandle,
    pub status: Arc<Status>,
    pub recovery: RecoveryReport,
}

impl Spool {
    /// Recovers the directory and starts the writer thread. Blocks on the disk.
    ///
    /// # Errors
    /// See [`RecoveryError`]; damage is no error but part of the report.
    pub fn open(
        config: Config,
        sinks: &[String],
        storage: Arc<dyn Storage>,
    ) -> Result<Self, RecoveryError> {
        let lock = recovery::lock(&*storage, &config.dir, sinks)?;
        let recovery::Recovered { state, active, next_segment_id, recent, cursors, report } =
            recovery::recover(&storage, &config, sinks)?;
        let next = state.durable_end;
        let status = Arc::new(Status::of(state, &report));
        let max_record_bytes = config.max_record_bytes.min(record::MAX_PAYLOAD);
        let shared = Arc::new(Shared {
            storage,
            catalog: Arc::clone(&status.catalog),
            status: Arc::clone(&status),
            freeing: Mutex::new(()),
            _lock: lock,
            config,
        });
        let queue = Arc::new(Queue::new());
        let (durable, watch) = watch::channel(next);
        let reader = |(sink, cursor_file): (&String, cursor::CursorFile)| Reader {
            sink: sink.clone(),
            shared: Arc::clone(&shared),
            queue: Arc::clone(&queue),
            durable: watch.clone(),
            position: cursor_file.offset(),
            confirmed: cursor_file.offset(),
            cursor_file,
            stored_at: Instant::now(),
            scan: None,
        };
        let readers = sinks.iter().zip(cursors).map(reader).collect();
        let writer = Writer {
            shared: Arc::clone(&shared),
            queue: Arc::clone(&queue),
            active,
            next,
            next_segment_id,
            recent,
            durable,
            buffer: Vec::new(),
        };
        let writer = WriterHandle::spawn(writer)
            .map_err(|source| RecoveryError::Io {
                what: "cannot start the writer of",
                path: shared.config.dir.clone(),
                source,
            })?;
        let appender = Appender::new(queue, max_record_bytes);
        Ok(Self { appender, readers, writer, status, recovery: report })
    }
}

/// The writer thread has failed. Nothing appended after can be answered with success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    #[error("the spool is poisoned: {0}")]
    Poisoned(String),
    #[error("the spool's writer thread panicked")]
    Panicked,
}

/// The writer thread. It ends when every [`Appender`] is dropped and all that waited is synced; or
/// early, by a failure.
#[derive(Debug)]
pub struct WriterHandle {
    thread: JoinHandle<Result<(), WriterError>>,
    ended: watch::Receiver<Option<Result<(), WriterError>>>,
}

impl WriterHandle {
    fn spawn(writer: Writer) -> std::io::Result<Self> {
        let (tell, ended) = watch::channel(None);
        let thread = std::thread::Builder::new().name("spool-writer".into()).spawn(move || {
            let result = writer.run().map_err(WriterError::Poisoned);
            tell.send_replace(Some(result.clone()));
            result
        })?;
        Ok(Self { thread, ended })
    }

    /// Resolves when the thread has ended; may be awaited any number of times.
    ///
    /// # Errors
    /// Why it ended early.
    pub async fn ended(&mut self) -> Result<(), WriterError> {
        match self.ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(WriterError::Panicked)),
            Err(_) => Err(WriterError::Panicked),
        }
    }

    /// Waits for the thread to end. Blocks: await [`WriterHandle::ended`] first on a runtime.
    ///
    /// # Errors
    /// Why it ended early.
    pub fn join(self) -> Result<(), WriterError> {
        self.thread.join().unwrap_or(Err(WriterError::Panicked))
    }
}
