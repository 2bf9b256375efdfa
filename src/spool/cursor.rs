//! The durable cursor of one sink: two slots in one small file, overwritten in turn.
//!
//! Overwriting in place needs no new blocks, so dispatching goes on when the disk is full. A torn
//! write spoils one slot; the other one is then a little behind, which repeats and never loses.

use std::io;
use std::path::{Path, PathBuf};

use super::Offset;
use super::codec::{Fields, Seed, checked};
use super::record::MAX_OFFSET;
use super::storage::{Storage, StorageFile, read_vec};

pub(crate) const DIR: &str = "cursors";
pub(crate) const SUFFIX: &str = ".cursor";
const SLOT_LEN: usize = 64;
const SLOT_DISTANCE: u64 = 4096;
const MAGIC: [u8; 8] = *b"hbcursr\x1a";
const FORMAT: u16 = 1;

/// One valid slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) generation: u64,
    pub(crate) offset: Offset,
    /// The spool's durable end when this was stored: tells, after a crash, that records which are
    /// not there have been.
    pub(crate) durable_end: Offset,
    pub(crate) spool_id: [u8; 16],
}

impl Slot {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SLOT_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&self.durable_end.to_le_bytes());
        bytes.extend_from_slice(&self.spool_id);
        bytes.extend_from_slice(&[0; 4]);
        let crc = Seed::PLAIN.crc(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(checked(bytes.first_chunk::<SLOT_LEN>()?, Seed::PLAIN)?);
        if fields.bytes()? != MAGIC || fields.u16()? != FORMAT {
            return None;
        }
        let _reserved: [u8; 6] = fields.bytes()?;
        let slot = Self {
            generation: fields.u64()?,
            offset: fields.u64()?,
            durable_end: fields.u64()?,
            spool_id: fields.bytes()?,
        };
        (slot.offset < MAX_OFFSET && slot.durable_end < MAX_OFFSET).then_some(slot)
    }
}

/// The newest valid slot of this spool in a cursor file.
pub(crate) fn read(file: &dyn StorageFile, spool_id: &[u8; 16]) -> io::Result<Option<Slot>> {
    let mut newest: Option<Slot> = None;
    for position in [0, SLOT_DISTANCE] {
        let slot = Slot::decode(&read_vec(file, position, SLOT_LEN)?);
        let ours = slot.filter(|slot| slot.spool_id == *spool_id);
        newest = newest.into_iter().chain(ours).max_by_key(|slot| slot.generation);
    }
    Ok(newest)
}

/// The name of a sink's cursor file.
pub(crate) fn path(dir: &Path, sink: &str) -> PathBuf {
    dir.join(DIR).join(format!("{sink}{SUFFIX}"))
}

/// An open cursor file.
#[derive(Debug)]
pub(crate) struct CursorFile {
    file: Box<dyn StorageFile>,
    last: Slot,
    /// A sync failed: the file's state is unknown, and syncing again would only seem to help.
    broken: bool,
}

impl CursorFile {
    /// Makes what is on disk the truth, then reads it: `None` if neither slot is usable.
    pub(crate) fn open(file: Box<dyn StorageFile>, spool_id: [u8; 16]) -> io::Result<Option<Self>> {
        file.forget_cached()?;
        let Some(last) = read(&*file, &spool_id)? else {
            return Ok(None);
        };
        // A slot written before a kill may still be in memory only, and segments are freed by it.
        file.sync_data()?;
        Ok(Some(Self { file, last, broken: false }))
    }

    /// Creates the file at its full size with both slots at `offset`, durably; or repairs one whose
    /// slots are both unusable.
    pub(crate) fn create(
        storage: &dyn Storage,
        path: &Path,
        offset: Offset,
        spool_id: [u8; 16],
    ) -> io::Result<Self> {
        let file = match storage.create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => storage.open_rw(path)?,
            created => created?,
        };
        let last = Slot { generation: 1, offset, durable_end: offset, spool_id };
        let mut bytes = last.encode();
        bytes.resize(2 * 4096, 0);
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        storage.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { file, last, broken: false })
    }

    pub(crate) fn offset(&self) -> Offset {
        self.last.offset
    }

    /// Everything below was synced when the cursor was stored.
    pub(crate) fn durable_end(&self) -> Offset {
        self.last.durable_end.max(self.last.offset)
    }

    /// Writes the other slot and syncs it.
    ///
    /// # Errors
    /// After a failed write the next call tries the same slot again; after a failed sync every
    /// further call fails.
    pub(crate) fn store(&mut self, offset: Offset, durable_end: Offset) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier sync of this cursor failed"));
        }
        let next = Slot { generation: self.last.generation + 1, offset, durable_end, ..self.last };
        let position = if next.generation.is_multiple_of(2) { SLOT_DISTANCE } else { 0 };
        self.file.write_all_at(&next.encode(), position)?;
        if let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(error);
        }
        self.last = next;
        Ok(())
    }
}
