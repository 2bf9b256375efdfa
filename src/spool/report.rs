//! What opening a spool tells: why it could not be done, or what was found.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Offset;

/// Why a spool could not be opened. None of these is cured by trying again.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("spool {} is locked by another process", dir.display())]
    Locked { dir: PathBuf },
    /// Written by a newer version; an older one must not guess.
    #[error("{} has format {format}, this version reads format 1", path.display())]
    UnknownFormat { path: PathBuf, format: u16 },
    #[error("sink name {name:?} may have 1 to 100 letters, digits, '-' and '_', once each name")]
    SinkName { name: String },
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What recovery found and did. Everything here but the numbers deserves a line in the log.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Segments that are there, and how many of them had to be read.
    pub segments: usize,
    pub scanned: usize,
    pub remembered_ids: usize,
    /// Where offsets go on.
    pub durable_end: Offset,
    /// Bytes after the last record that were never answered for, cut off.
    pub torn_tail: Option<TornTail>,
    /// Damage to accepted records in segments that were read; readers report it as lost when they
    /// come there. Damage elsewhere is found by reading.
    pub damage: Vec<DamageReport>,
    /// Segment files too damaged to say anything; moved to quarantine.
    pub set_aside: Vec<PathBuf>,
    /// Sinks whose cursor was unusable: they begin again at the oldest record.
    pub cursors_reset: Vec<String>,
    /// Cursors beyond the last record: confirmed records are gone from the disk.
    pub cursors_ahead: Vec<(String, Offset)>,
    /// Offsets at the end that a cursor file knows to have been durable and no segment holds.
    pub missing_end: Option<Range<Offset>>,
    /// Cursors of sinks that are not configured; they keep their segments until removed.
    pub orphan_cursors: Vec<(String, Offset)>,
}

/// The half-written end of the last segment.
#[derive(Clone, Debug)]
pub struct TornTail {
    pub bytes: u64,
    /// The copy; `None` if the disk had no room for it.
    pub quarantined: Option<PathBuf>,
}

/// A stretch of a segment that does not validate.
#[derive(Clone, Debug)]
pub struct DamageReport {
    pub path: PathBuf,
    pub first: Offset,
    /// One past the last offset lost.
    pub end: Offset,
    pub position: u64,
    pub bytes: u64,
    pub reason: &'static str,
}

/// Names what failed and where; for `map_err`.
pub(crate) fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RecoveryError + 'a {
    move |source| RecoveryError::Io { what, path: path.to_owned(), source }
}
