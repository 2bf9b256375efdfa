//! The committer: the one thread that writes segments. Encode a batch, write once, sync once,
//! publish, then answer.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

use super::appender::{AppendError, Pace, Queue, Request, Work};
use super::catalog::{KeptIds, Segment};
use super::codec::{millis, now_ms};
use super::recent::Recent;
use super::segment::{self, SegmentHeader, WriteFailure, file_name};
use super::shared::Shared;
use super::sidecar::{self, Sidecar};
use super::storage::{StorageFile, is_no_space};
use super::{Appended, Offset, record};

/// The segment that takes appends.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: Box<dyn StorageFile>,
    pub(crate) header: SegmentHeader,
    /// Synced length in bytes; the next batch goes here.
    pub(crate) len: u64,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) active: Option<Active>,
    /// The next offset, and so the durable end between batches.
    pub(crate) next: Offset,
    pub(crate) next_segment_id: u64,
    pub(crate) recent: Recent,
    pub(crate) durable: watch::Sender<Offset>,
    /// Reused for every batch.
    pub(crate) buffer: Vec<u8>,
}

type Reply = oneshot::Sender<Result<Appended, AppendError>>;

/// Records that share one write and one sync.
#[derive(Default)]
struct Group {
    replies: Vec<(Reply, Appended)>,
    /// How many of them are new, and have an id in `recent`.
    new: usize,
}

impl Writer {
    /// Runs until every appender is gone. An `Err` is the reason for which the spool is poisoned.
    pub(crate) fn run(mut self) -> Result<(), String> {
        // Also when this thread panics, nobody may wait for it for ever.
        let ending = Ending(Arc::clone(&self.shared), Arc::clone(&self.queue));
        let result = self.serve().map_err(|failure| {
            let reason = match failure {
                WriteFailure::NoSpace => "no space left".to_owned(),
                WriteFailure::Broken { what, error } => format!("{what}: {error}"),
            };
            error!(reason, "the spool is poisoned");
            // Only this thread sets it.
            drop(self.shared.status.poisoned.set(reason.clone()));
            reason
        });
        if result.is_ok() {
            self.queue.end(&AppendError::Closed);
        }
        drop(ending);
        result
    }

    fn serve(&mut self) -> Result<(), WriteFailure> {
        let window = self.shared.config.commit_window;
        let mut batch = VecDeque::new();
        let mut pace = Pace::default();
        loop {
            match self.queue.take(&mut batch, window, pace) {
                Work::Batch => {
                    let before = Instant::now();
                    pace.records = batch.len();
                    while !batch.is_empty() {
                        self.commit(&mut batch)?;
                    }
                    pace.took = before.elapsed();
                }
                Work::Seal => self.seal_confirmed()?,
                Work::Closed => break,
            }
        }
        // Gives back the reserved blocks. All records are synced already.
        if let Some(active) = &self.active {
            let given_back = active.file.truncate(active.len).and_then(|()| active.file.sync_all());
            given_back.map_err(WriteFailure::broken("closing the active segment"))?;
        }
        Ok(())
    }

    /// Writes, syncs and answers the requests at the front of `batch` that fit into one segment.
    fn commit(&mut self, batch: &mut VecDeque<Request>) -> Result<(), WriteFailure> {
        self.buffer.clear();
        let mut group = Group::default();
        let disk_low = self.shared.disk_low();
        while let Some(request) = batch.pop_front() {
            match self.recent.age(request.entry.key) {
                // It is new in this group: durable with it or not at all.
                Some(age) if age < group.new => {
                    group.replies.push((request.reply, Appended::Repeat));
                    continue;
                }
                Some(_) => {
                    self.shared.status.repeats.fetch_add(1, Relaxed);
                    request.answer(Ok(Appended::Repeat));
                    continue;
                }
                None => {}
            }
            if disk_low || !self.within_budget(request.frame_len() as u64) {
                self.refuse(request);
                continue;
            }
            let pending = self.buffer.len() as u64;
            if !self.fits_segment(pending + request.frame_len() as u64) {
                if pending > 0 {
                    batch.push_front(request);
                    break;
                }
                if let ControlFlow::Break(()) = self.rotate()? {
                    self.refuse(request);
                    batch.drain(..).for_each(|request| self.refuse(request));
                    break;
                }
            }
            self.encode(request, &mut group);
        }
        self.write(group)
    }

    fn refuse(&self, request: Request) {
        self.shared.status.full.store(true, Relaxed);
        request.answer(Err(AppendError::Full));
    }

    fn within_budget(&self, frame: u64) -> bool {
        let header = if self.active.is_none() { segment::HEADER_LEN } else { 0 };
        let used = self.shared.status.bytes() + self.buffer.len() as u64;
        used + header + frame <= self.shared.config.max_bytes
    }

    /// Whether the active segment takes `more` bytes. An empty one takes any record.
    fn fits_segment(&self, more: u64) -> bool {
        self.active.as_ref().is_some_and(|active| {
            let empty = active.len <= segment::HEADER_LEN && self.buffer.is_empty();
            empty || active.len + more <= self.shared.config.segment_bytes
        })
    }

    fn encode(&mut self, request: Request, group: &mut Group) {
        let Request { entry, reply } = request;
        let active = self.active.as_ref().expect("commit has made sure of a segment");
        let offset = self.next + group.new as u64;
        let seed = active.header.seed();
        record::encode(&mut self.buffer, seed, offset, self.next, entry.key, &entry.payload);
        self.recent.insert(entry.key);
        group.new += 1;
        group.replies.push((reply, Appended::New(offset)));
    }

    /// One write, one sync, then the world may know.
    fn write(&mut self, group: Group) -> Result<(), WriteFailure> {
        let Some(active) = self.active.as_mut().filter(|_| group.new > 0) else {
            return Ok(());
        };
        match active.file.write_all_at(&self.buffer, active.len) {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => {
                warn!(%error, "no room for a batch of records");
                // Half a record must never stay in front of a later one.
                let cut_back = active.file.truncate(active.len);
                let cut_back = cut_back.and_then(|()| active.file.sync_all());
                cut_back.map_err(WriteFailure::broken("cutting back an unfinished batch"))?;
                self.recent.take_back(group.new);
                self.shared.status.full.store(true, Relaxed);
                for (reply, _) in group.replies {
                    drop(reply.send(Err(AppendError::Full)));
                }
                return Ok(());
            }
            Err(error) => {
                return Err(WriteFailure::Broken { what: "writing records", error });
            }
        }
        let before = Instant::now();
        active.file.sync_data().map_err(WriteFailure::broken("syncing records"))?;
        self.shared.status.synced(before.elapsed());
        active.len += self.buffer.len() as u64;
        self.next += group.new as u64;
        let len = active.len;
        self.publish(&group, len);
        for (reply, appended) in group.replies {
            // A caller that has gone away does not mind.
            drop(reply.send(Ok(appended)));
        }
        Ok(())
    }

    fn publish(&self, group: &Group, len: u64) {
        let mut state = self.shared.catalog.lock();
        if let Some(last) = state.segments.back_mut() {
            last.end = self.next;
            last.len = len;
        }
        state.durable_end = self.next;
        drop(state);
        let status = &self.shared.status;
        status.bytes.fetch_add(self.buffer.len() as u64, Relaxed);
        status.durable_end.store(self.next, Relaxed);
        status.full.store(false, Relaxed);
        status.batches.fetch_add(1, Relaxed);
        status.batched_records.fetch_add(group.new as u64, Relaxed);
        status.last_batch.store(group.new as u64, Relaxed);
        status.repeats.fetch_add((group.replies.len() - group.new) as u64, Relaxed);
        status.remembered_ids.store(self.recent.len() as u64, Relaxed);
        self.durable.send_replace(self.next);
    }

    /// Seals the active segment, if there is one, and begins the next. `Break` if there is no room.
    fn rotate(&mut self) -> Result<ControlFlow<()>, WriteFailure> {
        match self.seal().and_then(|()| self.create()) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(WriteFailure::NoSpace) => Ok(ControlFlow::Break(())),
            Err(broken) => Err(broken),
        }
    }

    /// Gives back reserved blocks, syncs, writes the sidecar. Without room for the sidecar the
    /// segment stays active and a later rotation tries again.
    fn seal(&mut self) -> Result<(), WriteFailure> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let header = active.header;
        let given_back = active.file.truncate(active.len).and_then(|()| active.file.sync_all());
        given_back.map_err(WriteFailure::broken("sealing a segment"))?;
        let now = now_ms();
        let path = self.shared.config.dir.join(file_name(header.first, sidecar::SUFFIX));
        let range = header.first..self.next;
        let sidecar = Sidecar::new(header.id, range, active.len, header.created_ms, now);
        sidecar.write(&*self.shared.storage, &path, &self.recent.active_ids())?;
        self.active = None;
        self.recent.seal(now);
        self.recent.expire(now, millis(self.shared.config.repeats_window));
        let mut state = self.shared.catalog.lock();
        if let Some(last) = state.segments.back_mut() {
            last.sealed_ms = Some(now);
        }
        state.ids.push_back(KeptIds { path, first: header.first, sealed_ms: now });
        Ok(())
    }

    fn create(&mut self) -> Result<(), WriteFailure> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| WriteFailure::Broken {
            what: "drawing a salt",
            error: io::Error::other(error),
        })?;
        let created_ms = now_ms();
        let header = SegmentHeader { id: self.next_segment_id, first: self.next, created_ms, salt };
        let config = &self.shared.config;
        let path = config.dir.join(file_name(self.next, segment::SUFFIX));
        let file = segment::create(&*self.shared.storage, &path, &header, config.segment_bytes)?;
        self.next_segment_id += 1;
        self.active = Some(Active { file, header, len: segment::HEADER_LEN });
        self.shared.status.bytes.fetch_add(segment::HEADER_LEN, Relaxed);
        self.shared.catalog.lock().segments.push_back(Segment {
            path,
            header: Some(header),
            first: self.next,
            end: self.next,
            len: segment::HEADER_LEN,
            created_ms,
            sealed_ms: None,
            damaged: false,
        });
        Ok(())
    }

    /// A reader asked: what is all confirmed need not wait for a full segment to be freed.
    fn seal_confirmed(&mut self) -> Result<(), WriteFailure> {
        if self.shared.catalog.lock().confirmed_active().is_none() {
            return Ok(());
        }
        match self.seal() {
            Ok(()) | Err(WriteFailure::NoSpace) => {}
            Err(broken) => return Err(broken),
        }
        if let Err(error) = self.shared.free() {
            warn!(%error, "cannot free confirmed segments");
        }
        Ok(())
    }
}

/// Tells everybody that the writer is gone, whatever the reason.
struct Ending(Arc<Shared>, Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.status.ended.store(true, Relaxed);
        if std::thread::panicking() || self.0.status.poisoned().is_some() {
            self.1.end(&AppendError::Poisoned);
        }
    }
}
