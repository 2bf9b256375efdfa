//! Reading a segment forward, over damage: the one decoder behind recovery, readers and inspection.

use std::io;

use bytes::Bytes;

use super::codec::{Seed, to_usize};
use super::record::{self, RecordHeader};
use super::segment::{self, SegmentHeader};
use super::storage::{StorageFile, read_vec};
use super::{IdKey, Offset, Record};

/// Bytes read at once unless told otherwise.
pub(crate) const CHUNK: usize = 1 << 20;

/// One step of a scan.
#[derive(Debug)]
pub(crate) enum Found {
    Record {
        record: Record,
        /// Every offset below was synced when this record was written.
        durable_end: Offset,
    },
    Damage(Damage),
}

/// A stretch of a segment whose bytes do not validate.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// The first offset that is lost.
    pub(crate) first: Offset,
    /// One past the last that is lost; `None` if nothing valid follows in the segment.
    pub(crate) end: Option<Offset>,
    /// Where the bytes are in the file, and how many; 0 if they are simply not there.
    pub(crate) position: u64,
    pub(crate) len: u64,
    /// From the record's header, if that is intact.
    pub(crate) durable_end: Option<Offset>,
    pub(crate) reason: &'static str,
}

/// A position in a segment that moves over records.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) file: Box<dyn StorageFile>,
    seed: Seed,
    /// Byte position of the next record.
    pub(crate) position: u64,
    /// Offset that the next record must have.
    pub(crate) next: Offset,
    chunk: Bytes,
    chunk_at: u64,
    chunk_len: usize,
}

impl Scan {
    pub(crate) fn new(file: Box<dyn StorageFile>, header: &SegmentHeader) -> Self {
        Self {
            file,
            seed: header.seed(),
            position: segment::HEADER_LEN,
            next: header.first,
            chunk: Bytes::new(),
            chunk_at: 0,
            chunk_len: CHUNK,
        }
    }

    /// How much to read at once from now on, in bytes.
    pub(crate) fn set_chunk(&mut self, len: usize) {
        self.chunk_len = len;
    }

    /// The next record, or damage, in the first `limit` bytes of the file; `None` at the limit.
    pub(crate) fn step(&mut self, limit: u64) -> io::Result<Option<Found>> {
        if self.position >= limit {
            return Ok(None);
        }
        let bytes = self.bytes(record::HEADER_LEN, limit)?;
        let header = record::decode(&bytes, self.seed)
            .filter(|header| header.offset >= self.next && self.fits(header, self.position, limit));
        let Some(header) = header else {
            return self.search(limit).map(|damage| Some(Found::Damage(damage)));
        };
        if header.offset > self.next {
            let damage = Damage {
                first: self.next,
                end: Some(header.offset),
                position: self.position,
                len: 0,
                durable_end: None,
                reason: "records are missing",
            };
            self.next = header.offset;
            return Ok(Some(Found::Damage(damage)));
        }
        let frame = self.bytes(to_usize(header.frame_len()), limit)?;
        let payload = frame.slice(record::HEADER_LEN.min(frame.len())..);
        let at = self.position;
        self.position += header.frame_len();
        self.next += 1;
        if header.payload_agrees(&payload, self.seed) {
            let record = Record { offset: header.offset, key: header.key, payload };
            return Ok(Some(Found::Record { record, durable_end: header.durable_end() }));
        }
        Ok(Some(Found::Damage(Damage {
            first: header.offset,
            end: Some(self.next),
            position: at,
            len: header.frame_len(),
            durable_end: Some(header.durable_end()),
            reason: "the payload's checksum does not agree",
        })))
    }

    fn fits(&self, header: &RecordHeader, position: u64, limit: u64) -> bool {
        position + header.frame_len() <= limit
    }

    /// `want` bytes at the current position, or what there is of them before `limit` and the end of
    /// the file. A slice of the chunk: no copy.
    fn bytes(&mut self, want: usize, limit: u64) -> io::Result<Bytes> {
        let start = to_usize(self.position.wrapping_sub(self.chunk_at));
        if self.position >= self.chunk_at && start.saturating_add(want) <= self.chunk.len() {
            return Ok(self.chunk.slice(start..start + want));
        }
        let len = want.max(self.chunk_len).min(to_usize(limit - self.position));
        self.chunk = Bytes::from(read_vec(&*self.file, self.position, len)?);
        self.chunk_at = self.position;
        Ok(self.chunk.slice(..want.min(self.chunk.len())))
    }

    /// The bytes at the current position are no record: goes to the next place with a valid header
    /// of a greater offset. A damaged length makes this the only way to find anything after it.
    fn search(&mut self, limit: u64) -> io::Result<Damage> {
        let start = self.position;
        let mut at = start + 1;
        let mut found = None;
        while found.is_none() && at < limit {
            let window = read_vec(&*self.file, at, CHUNK.min(to_usize(limit - at)))?;
            found = window
                .windows(record::HEADER_LEN)
                .zip(at..)
                .filter_map(|(bytes, at)| Some((record::decode(bytes, self.seed)?, at)))
                .find(|(header, at)| header.offset > self.next && self.fits(header, *at, limit));
            if window.len() < record::HEADER_LEN {
                break;
            }
            // The last bytes of a window may begin a header.
            at += (window.len() - record::HEADER_LEN + 1) as u64;
        }
        let first = self.next;
        self.position = found.map_or(limit, |(_, at)| at);
        self.next = found.map_or(self.next, |(header, _)| header.offset);
        Ok(Damage {
            first,
            end: found.map(|(header, _)| header.offset),
            position: start,
            len: self.position - start,
            durable_end: None,
            reason: "no valid record header",
        })
    }
}

/// What reading a whole segment shows.
#[derive(Default)]
pub(crate) struct Scanned {
    /// One past the last valid record, and where it ends in the file.
    pub(crate) end: Offset,
    pub(crate) len: u64,
    /// Bytes in the file after that.
    pub(crate) tail: u64,
    /// The greatest durable end that any header speaks of.
    pub(crate) durable_end: Offset,
    /// Damage before the last valid record.
    pub(crate) damage: Vec<Damage>,
    pub(crate) keys: Vec<IdKey>,
}

/// Reads the first `file_len` bytes of a segment.
pub(crate) fn scan_all(scan: &mut Scan, file_len: u64) -> io::Result<Scanned> {
    let mut all = Scanned { end: scan.next, len: segment::HEADER_LEN, ..Scanned::default() };
    let mut pending = Vec::new();
    while let Some(found) = scan.step(file_len)? {
        match found {
            Found::Record { record, durable_end } => {
                all.durable_end = all.durable_end.max(durable_end);
                all.end = record.offset + 1;
                all.len = scan.position;
                all.keys.push(record.key);
                all.damage.append(&mut pending);
            }
            Found::Damage(damage) => {
                all.durable_end = all.durable_end.max(damage.durable_end.unwrap_or(0));
                pending.push(damage);
            }
        }
    }
    all.tail = file_len.saturating_sub(all.len);
    Ok(all)
}
