//! One append-only file: its header, its name, its creation.

use std::io;
use std::path::Path;

use super::Offset;
use super::codec::{Fields, Seed, checked};
use super::record::{self, MAX_OFFSET};
use super::storage::{Storage, StorageFile, read_vec};

/// Bytes of a segment header on disk; the first record follows.
pub(crate) const HEADER_LEN: u64 = 64;
/// The only format this code writes and reads.
pub(crate) const FORMAT: u16 = 1;
pub(crate) const SUFFIX: &str = ".seg";

const MAGIC: [u8; 8] = *b"hbspool\x1a";

/// What the first 64 bytes of a segment say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u64,
    pub(crate) first: Offset,
    /// Wall clock when the segment was created, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    pub(crate) salt: [u8; 16],
}

/// What was found where a header should be.
#[derive(Debug)]
pub(crate) enum HeaderRead {
    Valid(SegmentHeader),
    /// The header is intact but of a format we do not know.
    Unknown(u16),
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn seed(&self) -> Seed {
        Seed::of_salt(&self.salt)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&64_u16.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&self.created_ms.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        let crc = Seed::PLAIN.crc(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of `file`.
    pub(crate) fn read(file: &dyn StorageFile) -> io::Result<HeaderRead> {
        let bytes = read_vec(file, 0, 64)?;
        Ok(Self::decode(&bytes).unwrap_or(HeaderRead::Damaged))
    }

    fn decode(bytes: &[u8]) -> Option<HeaderRead> {
        // The checksum first: a flipped bit in the format number is damage, not a newer format.
        let mut fields = Fields(checked(bytes.first_chunk::<64>()?, Seed::PLAIN)?);
        if fields.bytes()? != MAGIC {
            return None;
        }
        let format = fields.u16()?;
        if format != FORMAT {
            return Some(HeaderRead::Unknown(format));
        }
        let _header_len = fields.u16()?;
        let _flags = fields.u32()?;
        let header = Self {
            id: fields.u64()?,
            first: fields.u64()?,
            created_ms: fields.u64()?,
            salt: fields.bytes()?,
        };
        (header.first < MAX_OFFSET).then_some(HeaderRead::Valid(header))
    }
}

/// `<20-digit first offset><suffix>`.
pub(crate) fn file_name(first: Offset, suffix: &str) -> String {
    format!("{first:020}{suffix}")
}

/// The first offset a file name with `suffix` speaks of; `None` for a stray file.
pub(crate) fn parse_name(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|first| *first < MAX_OFFSET)
}

/// The most records that `len` bytes of segment can hold.
pub(crate) fn capacity(len: u64) -> u64 {
    len.saturating_sub(HEADER_LEN) / record::MIN_LEN
}

/// Why a file could not be made or extended.
#[derive(Debug)]
pub(crate) enum WriteFailure {
    /// No room; everything is as it was before.
    NoSpace,
    /// The disk's state is unknown: no further write may be answered.
    Broken { what: &'static str, error: io::Error },
}

impl WriteFailure {
    pub(crate) fn broken(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Broken { what, error }
    }
}

/// Creates a segment so that it is durable before its first record is written.
///
/// Order: exclusive create, reserve `reserve` bytes, header, sync file, sync directory. Without room
/// the file is removed again.
pub(crate) fn create(
    storage: &dyn Storage,
    path: &Path,
    header: &SegmentHeader,
    reserve: u64,
) -> Result<Box<dyn StorageFile>, WriteFailure> {
    create_synced(storage, path, |file| {
        file.allocate(reserve)?;
        file.write_all_at(&header.encode(), 0)
    })
}

/// Creates a file, fills it with `fill`, syncs it and its directory; removes it again if there is no
/// room for it.
pub(crate) fn create_synced(
    storage: &dyn Storage,
    path: &Path,
    fill: impl FnOnce(&dyn StorageFile) -> io::Result<()>,
) -> Result<Box<dyn StorageFile>, WriteFailure> {
    use super::storage::is_no_space;
    let file = match storage.create_new(path) {
        Ok(file) => file,
        Err(error) if is_no_space(&error) => return Err(WriteFailure::NoSpace),
        Err(error) => {
            return Err(WriteFailure::Broken { what: "creating a file", error });
        }
    };
    match fill(&*file) {
        Ok(()) => {}
        Err(error) if is_no_space(&error) => {
            // A failed reservation keeps what it took until the file is gone.
            storage.unlink(path).map_err(WriteFailure::broken("removing an unfinished file"))?;
            return Err(WriteFailure::NoSpace);
        }
        Err(error) => {
            return Err(WriteFailure::Broken { what: "writing a new file", error });
        }
    }
    file.sync_all().map_err(WriteFailure::broken("syncing a new file"))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    storage.sync_dir(dir).map_err(WriteFailure::broken("syncing the directory"))?;
    Ok(file)
}
