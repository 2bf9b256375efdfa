//! The spool: what has been accepted and not yet confirmed, on disk.
//!
//! An append is answered after the sync that covers it; a sink's cursor passes a record after the
//! sink has confirmed it; a segment is freed behind every sink's *synced* cursor. This page is the
//! specification of the files. Reading order of the code: `record`, `segment`, `writer`, `reader`,
//! `recovery`.
//!
//! # Files
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | locked by the process that owns the directory; empty |
//! | `spool.id` | identity of the spool: magic `hbid\0\0\0\x1a`, 16 random bytes, CRC (28 bytes) |
//! | `<first>.seg` | a segment: records from offset `<first>`, 20 decimal digits, on |
//! | `<first>.ids` | the sidecar of a sealed segment; stays after it to recognise repeats |
//! | `cursors/<sink>.cursor` | the cursor of one sink |
//! | `quarantine/` | copies of bytes that do not validate; never read again, never removed |
//!
//! Other files are ignored. All integers are little-endian. A CRC is CRC-32C (Castagnoli) over all
//! bytes before it in its structure, rotated right by 15 bits, plus `0xa282ead8`: so neither nothing
//! nor zeros validate. In records it starts from the CRC-32C of the segment's salt: so stale bytes
//! of another segment never validate. A CRC is not proof against tampering; permissions (0600, 0700)
//! are. Clocks (`_ms`: milliseconds since 1970) never order anything.
//!
//! # Segment
//!
//! A header of 64 bytes, then records without padding. The length of the file is the truth: blocks
//! are reserved behind it (`fallocate`, size kept), and nothing is zero-filled in advance. The
//! header wins over the name.
//!
//! | at | bytes | field | valid if |
//! |---|---|---|---|
//! | 0 | 8 | magic | `hbspool\x1a` |
//! | 8 | 2 | format | 1; another one with a good CRC: refuse to start |
//! | 10 | 2 | header length | 64, written, not checked |
//! | 12 | 4 | flags | 0, written, not checked |
//! | 16 | 8 | segment id | greater than of every segment before |
//! | 24 | 8 | first offset | below 2^62 |
//! | 32 | 8 | created, ms | |
//! | 40 | 16 | salt, random | |
//! | 56 | 4 | reserved, 0 | |
//! | 60 | 4 | CRC, not salted | agrees; every later format keeps these 64 bytes so |
//!
//! # Record
//!
//! | at | bytes | field | valid if |
//! |---|---|---|---|
//! | 0 | 4 | magic | `hbR\xb1` |
//! | 4 | 1 | version | 1 |
//! | 5 | 3 | flags, reserved | 0 |
//! | 8 | 4 | length of the payload | 1 to 2^30, and the record ends within the file |
//! | 12 | 4 | durable delta | offset minus the durable end when written, at most 2^32 - 1 |
//! | 16 | 8 | offset | the one expected; a greater one: records are missing before it |
//! | 24 | 16 | id | opaque |
//! | 40 | 4 | CRC of the payload | agrees |
//! | 44 | 4 | CRC of the header | agrees |
//! | 48 | | payload | |
//!
//! Two CRCs: a good header lets us trust the length, so that a rotten payload costs one record.
//! Lengths are checked before memory is taken for them.
//!
//! # Sidecar
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `hbids\0\0\x1a` |
//! | 8 | 2, 2, 4 | format 1, header length 80, flags 0 |
//! | 16 | 8 | segment id; must be the segment's |
//! | 24 | 8, 8 | first offset, end offset (one past the last) |
//! | 40 | 8 | length of the segment file |
//! | 48 | 8, 8 | created, sealed, ms |
//! | 64 | 4 | number of ids: the newest of the segment's, as far as they are remembered |
//! | 68 | 4 | CRC of the ids |
//! | 72 | 4 | reserved, 0 |
//! | 76 | 4 | CRC of the header |
//! | 80 | 16 each | ids, oldest first |
//!
//! A valid sidecar says that the segment was synced to its end. It makes opening independent of the
//! amount undelivered, carries the ids over restarts, and tells where offsets go on when every
//! segment is gone: therefore the newest one is never removed. One that does not validate costs a
//! reading of its segment.
//!
//! # Cursor
//!
//! 8192 bytes, a slot at 0 and one at 4096, overwritten in turn: no new blocks, so it works on a full
//! disk. The valid slot of the greater generation counts. Neither valid, or of another spool: the
//! sink begins at the oldest record, which repeats and never loses.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `hbcursr\x1a` |
//! | 8 | 2, 6 | format 1, reserved 0 |
//! | 16 | 8 | generation |
//! | 24 | 8 | cursor: everything below is confirmed |
//! | 32 | 8 | durable end when this was stored |
//! | 40 | 16 | id of the spool |
//! | 56 | 4 | reserved, 0 |
//! | 60 | 4 | CRC |
//!
//! # Order of operations
//!
//! - **Append**: encode the batch, one write at the known length, one `fdatasync`, publish the
//!   durable end, answer. No room (ENOSPC, EDQUOT, EFBIG): cut back, sync, answer `Full`, go on. Any
//!   other failed write, a failed cut back, any failed sync: `Poisoned` until the process restarts,
//!   and the file is never synced again.
//! - **Seal**: truncate to the length (gives back reserved blocks), `fsync`, write the sidecar,
//!   `fsync` it, `fsync` the directory. When the next record does not fit; or when all is confirmed
//!   and the segment is old or the spool is full.
//! - **Create**: exclusive create, reserve, header, `fsync`, `fsync` the directory; then the first
//!   record. After the one before is sealed, never earlier.
//! - **Cursor**: write the other slot, `fdatasync`; then the cursor counts for freeing.
//! - **Free**: unlink sealed segments wholly below every synced cursor, also of sinks that are no
//!   longer configured, in order; `fsync` the directory. Expired sidecars likewise.
//!
//! # Recovery
//!
//! *Known durable* is everything below: the durable end in any valid record header, the end in a
//! sidecar, the marks in the cursor files; and all of a segment that a later one follows.
//!
//! 1. A segment with a valid sidecar is not read. Any other is, uncached, and is then synced: what a
//!    killed process wrote without syncing must be durable before anybody relies on it.
//! 2. Bytes that do not validate: with a good header, that record is lost; else the next good header
//!    of a greater offset is searched. If one follows, the stretch counts as damage, also when it
//!    may never have been answered for, and what follows is kept.
//! 3. After the last valid record of the last segment: a **torn tail** if known durable goes no
//!    further. It is copied to quarantine and cut off. Else it is **damage**: the segment is sealed as
//!    it is, up to known durable.
//! 4. Damage stays in place. A reader that comes there copies the bytes to quarantine and reports
//!    [`ReadItem::Lost`]; offsets that no segment holds are reported the same way.
//! 5. A segment header that does not validate hides the salt, and with it the records: all of them
//!    are lost, and the file moves to quarantine when it would be freed. Too short to hold a record,
//!    and without a sidecar, it was never finished being created: it moves at once.
//! 6. Offsets go on at the greatest of the last segment's end, every sidecar's end and every cursor
//!    file's marks; if that leaves a gap, in a new segment.
//!
//! Each step may be cut short and begun again, and no CRC is ever computed over bytes that were not
//! validated first.

mod appender;
mod catalog;
mod codec;
mod cursor;
mod disk;
mod identity;
pub mod inspect;
mod quarantine;
mod reader;
mod recent;
mod record;
mod recovery;
mod report;
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
pub use report::{DamageReport, RecoveryError, RecoveryReport, TornTail};
pub use status::{Status, SyncHook};
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
    pub fn open(config: Config, sinks: &[String], storage: Arc<dyn Storage>) -> Result<Self, RecoveryError> {
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
        let writer = WriterHandle::spawn(writer).map_err(|source| RecoveryError::Io {
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
