//! Looking at a spool directory without writing to it or locking it, also while a bridge runs on it.
//!
//! What a running bridge does meanwhile shows as files that vanish, which are skipped, and as an
//! unfinished tail of the last segment, which is no damage. Records at its end may not be synced yet.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::identity::decode_id;
use super::reader::ReadItem;
use super::report::DamageReport;
use super::scan::{Found, Scan, scan_all};
use super::segment::{self, HeaderRead, SegmentHeader};
use super::sidecar::{self, Sidecar};
use super::storage::{Storage, StorageFile, read_vec};
use super::{Offset, cursor, quarantine};

/// What is in a spool directory.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// In the order of their offsets.
    pub segments: Vec<SegmentInfo>,
    pub cursors: Vec<CursorInfo>,
    /// Files of remembered ids, in the order of their offsets.
    pub ids: Vec<IdsInfo>,
    /// Names and lengths in bytes of the files in quarantine.
    pub quarantine: Vec<(String, u64)>,
}

/// One segment file.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    pub path: PathBuf,
    pub first: Offset,
    /// One past the last offset; `None` if that is known by reading only (see [`verify`]).
    pub end: Option<Offset>,
    pub bytes: u64,
    /// Milliseconds since 1970; `None` if the header is damaged or of an unknown format.
    pub created_ms: Option<u64>,
    /// Milliseconds since 1970; `None` if the segment has no sidecar: it is the active one.
    pub sealed_ms: Option<u64>,
    pub state: HeaderState,
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderState {
    Good,
    Damaged,
    /// Of a format this version does not read.
    Unknown(u16),
}

/// One sink's cursor; `offset` is `None` if no slot is usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorInfo {
    pub sink: String,
    pub offset: Option<Offset>,
}

/// One sidecar: it stays after its segment to recognise repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdsInfo {
    pub path: PathBuf,
    pub first: Offset,
    pub end: Offset,
    pub ids: u32,
    pub sealed_ms: u64,
}

/// What checking every byte showed.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    pub segments: usize,
    pub records: u64,
    pub bytes: u64,
    /// Accepted records that cannot be read.
    pub damage: Vec<DamageReport>,
    /// Offsets between segments that no segment holds, and that some cursor has not passed.
    pub gaps: Vec<(Offset, Offset)>,
    /// Bytes after the last record that were never answered for: a torn tail, or a batch that a
    /// running bridge is writing just now.
    pub unfinished_tail: u64,
    /// Sinks whose cursor is beyond the last record.
    pub cursors_ahead: Vec<String>,
    /// Segments of a format this version does not read; not checked.
    pub unknown: Vec<PathBuf>,
}

impl Verification {
    /// Whether every accepted record can be read.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.gaps.is_empty() && self.cursors_ahead.is_empty()
    }
}

/// A segment that could be opened.
struct Seen {
    info: SegmentInfo,
    header: Option<SegmentHeader>,
    file: Box<dyn StorageFile>,
    /// From the sidecar, if there is one.
    sealed_len: Option<u64>,
}

/// Opens unless the file has vanished.
fn open(storage: &dyn Storage, path: &Path) -> io::Result<Option<Box<dyn StorageFile>>> {
    match storage.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn named(storage: &dyn Storage, dir: &Path, suffix: &str) -> io::Result<Vec<(Offset, PathBuf)>> {
    let parse = |name: String| Some((segment::parse_name(&name, suffix)?, dir.join(name)));
    let mut names: Vec<_> = storage.list(dir)?.into_iter().filter_map(parse).collect();
    names.sort_unstable();
    Ok(names)
}

fn segments(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for (named, path) in named(storage, dir, segment::SUFFIX)? {
        let Some(file) = open(storage, &path)? else {
            continue;
        };
        let (header, state) = match SegmentHeader::read(&*file)? {
            HeaderRead::Valid(header) => (Some(header), HeaderState::Good),
            HeaderRead::Damaged => (None, HeaderState::Damaged),
            HeaderRead::Unknown(format) => (None, HeaderState::Unknown(format)),
        };
        let first = header.map_or(named, |header| header.first);
        let ids = dir.join(segment::file_name(first, sidecar::SUFFIX));
        let ids = open(storage, &ids)?.map(|file| Sidecar::read(&*file)).transpose()?.flatten();
        let sidecar =
            ids.filter(|ids| ids.first == first && header.is_none_or(|header| header.id == ids.segment_id));
        let info = SegmentInfo {
            path,
            first,
            end: sidecar.map(|sidecar| sidecar.end),
            bytes: file.len()?,
            created_ms: header.map(|header| header.created_ms),
            sealed_ms: sidecar.map(|sidecar| sidecar.sealed_ms),
            state,
        };
        let sealed_len = sidecar.map(|sidecar| sidecar.segment_len);
        seen.push(Seen { info, header, file, sealed_len });
    }
    seen.sort_by_key(|seen| seen.info.first);
    Ok(seen)
}

fn cursors(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<CursorInfo>> {
    let id = match open(storage, &dir.join("spool.id"))? {
        Some(file) => decode_id(&read_vec(&*file, 0, 28)?),
        None => None,
    };
    let mut cursors = Vec::new();
    for name in storage.list(&dir.join(cursor::DIR))? {
        let Some(sink) = name.strip_suffix(cursor::SUFFIX) else {
            continue;
        };
        let Some(file) = open(storage, &cursor::path(dir, sink))? else {
            continue;
        };
        let slot = id.map(|id| cursor::read(&*file, &id)).transpose()?.flatten();
        let offset = slot.map(|slot| slot.offset);
        cursors.push(CursorInfo { sink: sink.to_owned(), offset });
    }
    cursors.sort_by(|one, other| one.sink.cmp(&other.sink));
    Ok(cursors)
}

/// Lists what is there. Reads headers only.
///
/// # Errors
/// Any I/O error, but not that a file vanished meanwhile.
pub fn list(storage: &dyn Storage, dir: &Path) -> io::Result<Listing> {
    let mut ids = Vec::new();
    for (_, path) in named(storage, dir, sidecar::SUFFIX)? {
        let Some(file) = open(storage, &path)? else {
            continue;
        };
        if let Some(Sidecar { first, end, ids: count, sealed_ms, .. }) = Sidecar::read(&*file)? {
            ids.push(IdsInfo { path, first, end, ids: count, sealed_ms });
        }
    }
    let folder = dir.join(quarantine::DIR);
    let mut kept = Vec::new();
    for name in storage.list(&folder)? {
        if let Some(file) = open(storage, &folder.join(&name))? {
            kept.push((name, file.len()?));
        }
    }
    kept.sort_unstable();
    Ok(Listing {
        segments: segments(storage, dir)?.into_iter().map(|seen| seen.info).collect(),
        cursors: cursors(storage, dir)?,
        ids,
        quarantine: kept,
    })
}

/// Reads everything and checks every checksum.
///
/// # Errors
/// Any I/O error. Damage is no error but the result.
pub fn verify(storage: &dyn Storage, dir: &Path) -> io::Result<Verification> {
    // Before the segments: a cursor only moves behind what is there already.
    let cursors = cursors(storage, dir)?;
    let offsets = || cursors.iter().map(|cursor| cursor.offset.unwrap_or(0));
    let (lowest, highest) = (offsets().min().unwrap_or(0), offsets().max().unwrap_or(0));
    let mut result = Verification::default();
    let mut end: Option<Offset> = None;
    let mut seen = segments(storage, dir)?.into_iter().peekable();
    while let Some(Seen { info, header, file, sealed_len }) = seen.next() {
        result.segments += 1;
        result.bytes += info.bytes;
        if let Some(end) = end.filter(|end| *end < info.first && lowest < info.first) {
            result.gaps.push((end, info.first));
        }
        let next = seen.peek().map(|next| next.info.first);
        let known = info.end.or(next);
        let mut damage = |first, end, position, bytes, reason| {
            let path = info.path.clone();
            result.damage.push(DamageReport { path, first, end, position, bytes, reason });
        };
        let Some(header) = header else {
            if let HeaderState::Unknown(_) = info.state {
                result.unknown.push(info.path);
                end = known;
                continue;
            }
            // Without room for a record it is a segment that was never finished being created.
            let last = known.unwrap_or(info.first + segment::capacity(info.bytes));
            if last > info.first {
                damage(info.first, last, 0, info.bytes, "no valid segment header");
            }
            end = Some(last);
            continue;
        };
        let mut scan = Scan::new(file, &header);
        let len = sealed_len.map_or(info.bytes, |len| len.min(info.bytes));
        let scanned = scan_all(&mut scan, len)?;
        for hole in &scanned.damage {
            let last = hole.end.unwrap_or(scanned.end);
            damage(hole.first, last, hole.position, hole.len, hole.reason);
        }
        let known = known.unwrap_or(scanned.durable_end.max(highest));
        if scanned.end < known && (scanned.tail > 0 || sealed_len.is_some()) {
            damage(scanned.end, known, scanned.len, scanned.tail, "no valid record to the end");
        } else {
            result.unfinished_tail += scanned.tail;
        }
        result.records += scanned.keys.len() as u64;
        end = Some(scanned.end.max(info.end.unwrap_or(0)));
    }
    if let Some(end) = end {
        let ahead = |info: &&CursorInfo| info.offset.is_some_and(|offset| offset > end);
        result.cursors_ahead = cursors.iter().filter(ahead).map(|info| info.sink.clone()).collect();
    }
    Ok(result)
}

/// The records of a directory from an offset on; see [`records`].
pub struct Records {
    segments: VecDeque<Seen>,
    scan: Option<(Scan, u64, Option<Offset>)>,
    from: Offset,
}

/// Iterates over the records from offset `from` on, over damage. The segments are those that are
/// there now.
///
/// # Errors
/// Any I/O error.
pub fn records(storage: &Arc<dyn Storage>, dir: &Path, from: Offset) -> io::Result<Records> {
    let all = segments(&**storage, dir)?;
    let segments = all.into_iter().filter(|seen| seen.info.end.is_none_or(|end| end > from));
    Ok(Records { segments: segments.collect(), scan: None, from })
}

impl Records {
    fn step(&mut self) -> io::Result<Option<ReadItem>> {
        loop {
            let Some((scan, len, end)) = &mut self.scan else {
                let Some(Seen { info, header, file, sealed_len }) = self.segments.pop_front() else {
                    return Ok(None);
                };
                let next = self.segments.front().map(|next| next.info.first);
                let end = info.end.or(next);
                let Some(header) = header else {
                    let end = end.unwrap_or(info.first + segment::capacity(info.bytes));
                    if end > info.first.max(self.from) {
                        let reason = "no valid segment header".into();
                        return Ok(Some(lost(info.first.max(self.from), end, reason)));
                    }
                    continue;
                };
                let len = sealed_len.map_or(info.bytes, |len| len.min(info.bytes));
                self.scan = Some((Scan::new(file, &header), len, end));
                continue;
            };
            match scan.step(*len)? {
                None => self.scan = None,
                Some(Found::Record { record, .. }) if record.offset >= self.from => {
                    return Ok(Some(ReadItem::Record(record)));
                }
                Some(Found::Record { .. }) => {}
                Some(Found::Damage(damage)) => {
                    // To the end of the last segment it is a torn tail, or being written just now.
                    if let Some(end) = damage.end.or(*end).filter(|end| *end > self.from) {
                        let first = damage.first.max(self.from);
                        return Ok(Some(lost(first, end, damage.reason.into())));
                    }
                }
            }
        }
    }
}

fn lost(first: Offset, end: Offset, reason: String) -> ReadItem {
    ReadItem::Lost { first, end, reason, quarantined: None }
}

impl Iterator for Records {
    type Item = io::Result<ReadItem>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
