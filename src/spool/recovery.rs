//! Opening after any crash. Every step may be cut short and begun again.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{KeptIds, Segment, State};
use super::codec::{millis, now_ms};
use super::cursor::{self, CursorFile};
use super::identity::spool_id;
use super::recent::Recent;
use super::report::{DamageReport, RecoveryError, RecoveryReport, TornTail, at};
use super::scan::{Scan, scan_all};
use super::segment::{self, HeaderRead, SegmentHeader, WriteFailure, file_name};
use super::sidecar::{self, Sidecar};
use super::storage::Storage;
use super::writer::Active;
use super::{Config, IdKey, Offset, quarantine};

/// Everything the running parts start from.
pub(crate) struct Recovered {
    pub(crate) state: State,
    pub(crate) active: Option<Active>,
    pub(crate) next_segment_id: u64,
    pub(crate) recent: Recent,
    /// One per sink, in order.
    pub(crate) cursors: Vec<CursorFile>,
    pub(crate) report: RecoveryReport,
}

/// Letters, digits, '-' and '_': a sink's name is part of a file name.
fn check_sinks(sinks: &[String]) -> Result<(), RecoveryError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    for (at, name) in sinks.iter().enumerate() {
        let good = (1..=100).contains(&name.len()) && name.bytes().all(allowed);
        if !good || sinks.iter().take(at).any(|other| other == name) {
            return Err(RecoveryError::SinkName { name: name.clone() });
        }
    }
    Ok(())
}

/// Makes the directories and takes the lock.
pub(crate) fn lock(
    storage: &dyn Storage,
    dir: &Path,
    sinks: &[String],
) -> Result<Box<dyn super::storage::Held>, RecoveryError> {
    check_sinks(sinks)?;
    for folder in [dir.to_owned(), dir.join(cursor::DIR), dir.join(quarantine::DIR)] {
        storage.create_dir_all(&folder).map_err(at("cannot create", &folder))?;
    }
    let path = dir.join("LOCK");
    storage.lock(&path).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => RecoveryError::Locked { dir: dir.to_owned() },
        _ => at("cannot lock", &path)(source),
    })
}

/// Brings the directory into a state that the writer and the readers can go on from.
pub(crate) fn recover(
    storage: &Arc<dyn Storage>,
    config: &Config,
    sinks: &[String],
) -> Result<Recovered, RecoveryError> {
    let dir = &config.dir;
    let mut recovery = Recovery {
        storage: &**storage,
        config,
        spool_id: spool_id(&**storage, dir)?,
        report: RecoveryReport::default(),
        known_ids: Vec::new(),
        scanned_keys: Vec::new(),
    };
    // Whatever an earlier run created or removed without living to sync it becomes durable here.
    storage.sync_dir(dir).map_err(at("cannot sync", dir))?;
    let mut cursors = recovery.open_cursors(sinks)?;
    let marks = cursors.iter().filter_map(|(_, _, file)| file.as_ref());
    let cursor_end = marks.map(CursorFile::durable_end).max().unwrap_or(0);
    recovery.read_sidecars()?;
    let headers = recovery.read_headers(cursor_end)?;
    let (mut segments, mut active) = recovery.open_segments(headers, cursor_end)?;

    let data_end = segments.back().map_or(0, |last| last.end);
    let ids_end = recovery.known_ids.iter().map(|(_, sidecar)| sidecar.end).max().unwrap_or(0);
    let next = data_end.max(ids_end).max(cursor_end);
    for (sink, offset, _) in &cursors {
        if *offset > data_end.max(ids_end) {
            recovery.report.cursors_ahead.push((sink.clone(), *offset));
        }
    }
    if next > data_end.max(ids_end) {
        recovery.report.missing_end = Some(data_end.max(ids_end)..next);
    }
    if next > data_end
        && let Some(last) = segments.back_mut().filter(|_| active.is_some())
    {
        // Offsets are never used twice, so they go on after a gap, and a segment has no gaps.
        recovery.seal(last)?;
        active = None;
    }
    let oldest = segments.front().map_or(next, |oldest| oldest.first);
    let files = recovery.start_cursors(sinks, &mut cursors, oldest)?;
    let recent = recovery.remember(&segments, active.is_some())?;
    let mut report = recovery.report;
    report.segments = segments.len();
    report.remembered_ids = recent.len();
    report.durable_end = next;
    let mut sidecars = recovery.known_ids;
    sidecars.sort_unstable_by_key(|(_, sidecar)| sidecar.first);
    let next_id = segments.iter().filter_map(|segment| segment.header.map(|header| header.id));
    let next_id = next_id.chain(sidecars.iter().map(|(_, sidecar)| sidecar.segment_id)).max();
    let ids = sidecars.into_iter().map(|(path, sidecar)| KeptIds {
        path,
        first: sidecar.first,
        sealed_ms: sidecar.sealed_ms,
    });
    Ok(Recovered {
        state: State {
            ids: ids.collect(),
            cursors: cursors.into_iter().map(|(sink, offset, _)| (sink, offset)).collect(),
            durable_end: next,
            segments,
        },
        active,
        next_segment_id: next_id.map_or(0, |id| id + 1),
        recent,
        cursors: files,
        report,
    })
}

/// A sink's name, its synced cursor, and its file if it is usable.
type FoundCursor = (String, Offset, Option<CursorFile>);

struct Recovery<'a> {
    storage: &'a dyn Storage,
    config: &'a Config,
    spool_id: [u8; 16],
    report: RecoveryReport,
    known_ids: Vec<(PathBuf, Sidecar)>,
    /// Ids of the active segment, oldest first.
    scanned_keys: Vec<IdKey>,
}

impl Recovery<'_> {
    fn open_cursors(&mut self, sinks: &[String]) -> Result<Vec<FoundCursor>, RecoveryError> {
        let folder = self.config.dir.join(cursor::DIR);
        let names = self.storage.list(&folder).map_err(at("cannot list", &folder))?;
        let mut found = Vec::new();
        for sink in names.iter().filter_map(|name| name.strip_suffix(cursor::SUFFIX)) {
            let path = cursor::path(&self.config.dir, sink);
            let file = self.storage.open_rw(&path).map_err(at("cannot open", &path))?;
            let file = CursorFile::open(file, self.spool_id).map_err(at("cannot read", &path))?;
            let ours = sinks.iter().any(|name| name == sink);
            match file {
                Some(file) => {
                    if !ours {
                        self.report.orphan_cursors.push((sink.to_owned(), file.offset()));
                    }
                    found.push((sink.to_owned(), file.offset(), Some(file)));
                }
                None if ours => self.report.cursors_reset.push(sink.to_owned()),
                // Nobody can say what it confirmed, and nobody reads for it.
                None => {}
            }
        }
        Ok(found)
    }

    /// Takes the files of the configured sinks out of `found`; a sink without one begins at the
    /// oldest record there is, which repeats and never loses.
    fn start_cursors(
        &self,
        sinks: &[String],
        found: &mut Vec<FoundCursor>,
        oldest: Offset,
    ) -> Result<Vec<CursorFile>, RecoveryError> {
        let mut files = Vec::new();
        for sink in sinks {
            let entry = found.iter_mut().find(|(name, ..)| name == sink);
            let file = match entry.and_then(|(.., file)| file.take()) {
                Some(file) => file,
                None => {
                    let path = cursor::path(&self.config.dir, sink);
                    let file = CursorFile::create(self.storage, &path, oldest, self.spool_id)
                        .map_err(at("cannot create", &path))?;
                    found.push((sink.clone(), oldest, None));
                    file
                }
            };
            files.push(file);
        }
        Ok(files)
    }

    fn names(&self, suffix: &str) -> Result<Vec<(Offset, PathBuf)>, RecoveryError> {
        let dir = &self.config.dir;
        let names = self.storage.list(dir).map_err(at("cannot list", dir))?;
        let parse = |name: String| Some((segment::parse_name(&name, suffix)?, dir.join(name)));
        Ok(names.into_iter().filter_map(parse).collect())
    }

    fn read_sidecars(&mut self) -> Result<(), RecoveryError> {
        for (_, path) in self.names(sidecar::SUFFIX)? {
            let file = self.storage.open(&path).map_err(at("cannot open", &path))?;
            // A damaged one is written anew if its segment is there, else it is of no use.
            if let Some(sidecar) = Sidecar::read(&*file).map_err(at("cannot read", &path))? {
                self.known_ids.push((path, sidecar));
            }
        }
        Ok(())
    }

    /// The segments in order. The header wins over the name; the name speaks where it is damaged.
    fn read_headers(&mut self, cursor_end: Offset) -> Result<Vec<Segment>, RecoveryError> {
        let mut segments = Vec::new();
        for (named, path) in self.names(segment::SUFFIX)? {
            let file = self.storage.open(&path).map_err(at("cannot open", &path))?;
            let len = file.len().map_err(at("cannot read", &path))?;
            let header = match SegmentHeader::read(&*file).map_err(at("cannot read", &path))? {
                HeaderRead::Valid(header) => Some(header),
                HeaderRead::Unknown(format) => {
                    return Err(RecoveryError::UnknownFormat { path, format });
                }
                HeaderRead::Damaged => None,
            };
            let sealed = self.known_ids.iter().any(|(_, sidecar)| sidecar.first == named);
            if header.is_none() && segment::capacity(len) == 0 && !sealed {
                // A crash while it was created. No record was ever written: it was not yet synced.
                let path = quarantine::take(self.storage, &self.config.dir, &path)
                    .map_err(at("cannot set aside", &path))?;
                self.report.set_aside.push(path);
                continue;
            }
            let first = header.map_or(named, |header| header.first);
            segments.push(Segment {
                path,
                header,
                first,
                // A damaged header hides how many records follow: no offset of them is used again.
                end: (first + segment::capacity(len)).max(cursor_end),
                len,
                created_ms: header.map_or(0, |header| header.created_ms),
                sealed_ms: None,
                damaged: header.is_none(),
            });
        }
        // Of two that claim the same offsets, the one with the matching name is no copy.
        segments.sort_by_key(|segment: &Segment| {
            let matches = segment.path.ends_with(file_name(segment.first, segment::SUFFIX));
            (segment.first, !matches)
        });
        segments.dedup_by_key(|segment| segment.first);
        Ok(segments)
    }

    /// Finds the end of every segment: by its sidecar if it has one, else by reading it. Returns the
    /// active one too, unless the last is sealed.
    fn open_segments(
        &mut self,
        headers: Vec<Segment>,
        cursor_end: Offset,
    ) -> Result<(VecDeque<Segment>, Option<Active>), RecoveryError> {
        let mut segments: VecDeque<_> = headers.into();
        let mut active = None;
        let nexts = segments.iter().skip(1).map(|segment| Some(segment.first));
        let nexts: Vec<_> = nexts.chain([None]).collect();
        for (segment, next) in segments.iter_mut().zip(nexts) {
            let sidecar = self.known_ids.iter().map(|(_, sidecar)| sidecar).find(|sidecar| {
                let same = segment.header.is_none_or(|header| header.id == sidecar.segment_id);
                sidecar.first == segment.first && same
            });
            if let Some(sidecar) = sidecar {
                segment.end = sidecar.end;
                segment.len = segment.len.min(sidecar.segment_len);
                segment.created_ms = sidecar.created_ms;
                segment.sealed_ms = Some(sidecar.sealed_ms);
            } else if let Some(header) = segment.header {
                active = self.scan(segment, &header, next, cursor_end)?;
            } else {
                segment.end = next.unwrap_or(segment.end);
                segment.sealed_ms = Some(now_ms());
                self.damage(segment, segment.first, segment.end, 0, segment.len, "no valid segment header");
            }
        }
        Ok((segments, active))
    }

    /// Reads a segment that has no sidecar. If it is the last (`next` is `None`), it becomes the
    /// active one, unless accepted records at its end are damaged.
    fn scan(
        &mut self,
        segment: &mut Segment,
        header: &SegmentHeader,
        next: Option<Offset>,
        cursor_end: Offset,
    ) -> Result<Option<Active>, RecoveryError> {
        let path = segment.path.clone();
        let read = at("cannot read", &path);
        let file = self.storage.open_rw(&path).map_err(at("cannot open", &path))?;
        // After a failed sync the cache may show what the disk does not have.
        file.forget_cached().map_err(at("cannot read", &path))?;
        let mut scan = Scan::new(file, header);
        let scanned = scan_all(&mut scan, segment.len).map_err(read)?;
        let file = scan.file;
        self.report.scanned += 1;
        for damage in &scanned.damage {
            let end = damage.end.unwrap_or(scanned.end);
            self.damage(segment, damage.first, end, damage.position, damage.len, damage.reason);
        }
        // That a later segment exists proves that this one was synced to its end.
        let known = next.unwrap_or(scanned.durable_end.max(cursor_end));
        segment.end = scanned.end;
        self.scanned_keys = scanned.keys;
        if scanned.tail > 0 && known > scanned.end {
            segment.end = known;
            let (from, bytes) = (scanned.len, scanned.tail);
            self.damage(segment, scanned.end, known, from, bytes, "no valid record to the end");
        } else if scanned.tail > 0 {
            self.cut(segment, &*file, scanned.len, scanned.tail)?;
        }
        // What a killed process wrote and never synced is readable: before anybody relies on it, it
        // becomes durable.
        file.sync_all().map_err(at("cannot sync", &path))?;
        if next.is_some() || segment.end > scanned.end {
            self.seal(segment)?;
            return Ok(None);
        }
        Ok(Some(Active { file, header: *header, len: segment.len }))
    }

    /// Cuts off a torn tail, keeping a copy.
    fn cut(
        &mut self,
        segment: &mut Segment,
        file: &dyn super::storage::StorageFile,
        len: u64,
        tail: u64,
    ) -> Result<(), RecoveryError> {
        let name = format!("{}.torn-{len}", file_name(segment.first, ""));
        let dir = &self.config.dir;
        let quarantined = match quarantine::copy(self.storage, dir, &name, file, len, tail) {
            Ok(path) => Some(path),
            // Nobody was answered for these bytes, and starting on a full disk frees it.
            Err(error) if super::storage::is_no_space(&error) => None,
            Err(error) => return Err(at("cannot quarantine the tail of", &segment.path)(error)),
        };
        file.truncate(len).map_err(at("cannot truncate", &segment.path))?;
        segment.len = len;
        self.report.torn_tail = Some(TornTail { bytes: tail, quarantined });
        Ok(())
    }

    /// Marks a synced segment as sealed and writes its sidecar. Without room for that it is sealed in
    /// memory, and read again at the next start.
    fn seal(&mut self, segment: &mut Segment) -> Result<(), RecoveryError> {
        let now = now_ms();
        segment.sealed_ms = Some(now);
        let Some(header) = segment.header else {
            return Ok(());
        };
        let path = self.config.dir.join(file_name(segment.first, sidecar::SUFFIX));
        let range = segment.first..segment.end;
        let sidecar = Sidecar::new(header.id, range, segment.len, segment.created_ms, now);
        let keys = std::mem::take(&mut self.scanned_keys);
        let keys = keys.get(keys.len().saturating_sub(self.config.repeats_max)..).unwrap_or(&[]);
        self.known_ids.retain(|(_, known)| known.first != segment.first);
        match sidecar.write(self.storage, &path, keys) {
            Ok(sidecar) => self.known_ids.push((path, sidecar)),
            Err(WriteFailure::NoSpace) => {}
            Err(WriteFailure::Broken { what, error }) => return Err(at(what, &path)(error)),
        }
        Ok(())
    }

    fn damage(
        &mut self,
        segment: &Segment,
        first: Offset,
        end: Offset,
        position: u64,
        bytes: u64,
        reason: &'static str,
    ) {
        let path = segment.path.clone();
        self.report.damage.push(DamageReport { path, first, end, position, bytes, reason });
    }

    /// Loads the newest ids, as many as are to be remembered, from the sidecars.
    fn remember(&mut self, segments: &VecDeque<Segment>, active: bool) -> Result<Recent, RecoveryError> {
        let max = self.config.repeats_max;
        let mut recent = Recent::new(max);
        let (now, window) = (now_ms(), millis(self.config.repeats_window));
        let keys = std::mem::take(&mut self.scanned_keys);
        let mut room = max.saturating_sub(keys.len());
        self.known_ids.sort_unstable_by_key(|(_, sidecar)| sidecar.first);
        let mut generations = Vec::new();
        for (path, sidecar) in self.known_ids.iter().rev() {
            if room == 0 || now.saturating_sub(sidecar.sealed_ms) > window {
                continue;
            }
            let file = self.storage.open(path).map_err(at("cannot open", path))?;
            let ids = sidecar.read_ids(&*file, room).map_err(at("cannot read", path))?;
            let ids = ids.unwrap_or_default();
            room -= ids.len();
            generations.push((sidecar.sealed_ms, ids));
        }
        for (sealed_ms, ids) in generations.into_iter().rev() {
            ids.into_iter().for_each(|key| recent.insert(key));
            recent.seal(sealed_ms);
        }
        if active && !segments.is_empty() {
            keys.into_iter().for_each(|key| recent.insert(key));
        }
        Ok(recent)
    }
}
