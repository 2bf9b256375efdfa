//! The sidecar of a sealed segment: how far it goes, and the ids of its records.

use std::io;
use std::path::Path;

use super::codec::{Fields, Seed, checked};
use super::record::MAX_OFFSET;
use super::segment::{WriteFailure, create_synced};
use super::storage::{Storage, StorageFile, read_vec};
use super::{IdKey, Offset};

pub(crate) const SUFFIX: &str = ".ids";
const HEADER_LEN: usize = 80;
const MAGIC: [u8; 8] = *b"hbids\0\0\x1a";
const FORMAT: u16 = 1;

/// What a sidecar says of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    pub(crate) segment_id: u64,
    pub(crate) first: Offset,
    /// One past the last offset of the segment, all of it synced.
    pub(crate) end: Offset,
    /// Length of the segment file in bytes.
    pub(crate) segment_len: u64,
    pub(crate) created_ms: u64,
    pub(crate) sealed_ms: u64,
    /// Number of ids that follow the header: the newest of the segment, oldest first. Fewer than
    /// records if records were lost or fewer ids are remembered.
    pub(crate) ids: u32,
    ids_crc: u32,
}

impl Sidecar {
    pub(crate) fn new(
        segment_id: u64,
        range: std::ops::Range<Offset>,
        segment_len: u64,
        created_ms: u64,
        sealed_ms: u64,
    ) -> Self {
        Self {
            segment_id,
            first: range.start,
            end: range.end,
            segment_len,
            created_ms,
            sealed_ms,
            ids: 0,
            ids_crc: 0,
        }
    }

    /// Writes and syncs the sidecar at `path`, replacing one that is there; returns it with the
    /// fields about its ids filled in.
    pub(crate) fn write(
        mut self,
        storage: &dyn Storage,
        path: &Path,
        keys: &[IdKey],
    ) -> Result<Self, WriteFailure> {
        let mut ids = Vec::with_capacity(keys.len() * 16);
        for key in keys {
            ids.extend_from_slice(&key.0);
        }
        self.ids = u32::try_from(keys.len()).expect("a segment holds fewer than 2^32 records");
        self.ids_crc = Seed::PLAIN.crc(&ids);
        // One is there only if a crash tore it or rot made it useless.
        match storage.unlink(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(WriteFailure::Broken { what: "removing an old sidecar", error });
            }
        }
        let header = self.encode();
        create_synced(storage, path, |file| {
            file.write_all_at(&header, 0)?;
            file.write_all_at(&ids, HEADER_LEN as u64)
        })?;
        Ok(self)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&80_u16.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&self.segment_id.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&self.end.to_le_bytes());
        bytes.extend_from_slice(&self.segment_len.to_le_bytes());
        bytes.extend_from_slice(&self.created_ms.to_le_bytes());
        bytes.extend_from_slice(&self.sealed_ms.to_le_bytes());
        bytes.extend_from_slice(&self.ids.to_le_bytes());
        bytes.extend_from_slice(&self.ids_crc.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        let crc = Seed::PLAIN.crc(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header only; `None` if it is damaged or of another format, which costs a scan of
    /// the segment and nothing else.
    pub(crate) fn read(file: &dyn StorageFile) -> io::Result<Option<Self>> {
        Ok(Self::decode(&read_vec(file, 0, HEADER_LEN)?))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(checked(bytes.first_chunk::<HEADER_LEN>()?, Seed::PLAIN)?);
        if fields.bytes()? != MAGIC || fields.u16()? != FORMAT {
            return None;
        }
        let _header_len = fields.u16()?;
        let _flags = fields.u32()?;
        let sidecar = Self {
            segment_id: fields.u64()?,
            first: fields.u64()?,
            end: fields.u64()?,
            segment_len: fields.u64()?,
            created_ms: fields.u64()?,
            sealed_ms: fields.u64()?,
            ids: fields.u32()?,
            ids_crc: fields.u32()?,
        };
        (sidecar.first <= sidecar.end && sidecar.end < MAX_OFFSET).then_some(sidecar)
    }

    /// The newest `most` of the ids, oldest first; `None` if they are damaged.
    pub(crate) fn read_ids(&self, file: &dyn StorageFile, most: usize) -> io::Result<Option<Vec<IdKey>>> {
        let len = u64::from(self.ids) * 16;
        if HEADER_LEN as u64 + len > file.len()? {
            return Ok(None);
        }
        let bytes = read_vec(file, HEADER_LEN as u64, super::codec::to_usize(len))?;
        if Seed::PLAIN.crc(&bytes) != self.ids_crc {
            return Ok(None);
        }
        let (ids, _) = bytes.as_chunks::<16>();
        let skip = ids.len().saturating_sub(most);
        Ok(Some(ids.iter().skip(skip).copied().map(IdKey).collect()))
    }
}
