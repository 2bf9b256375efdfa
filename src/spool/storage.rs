//! The few file operations that the spool needs, as a trait.
//!
//! Everything that decides whether an answered append survives goes through here, so that a
//! simulated disk can drop, tear and refuse it.

use std::fmt::Debug;
use std::io;
use std::path::Path;

/// A directory tree that can be synced.
pub trait Storage: Debug + Send + Sync {
    /// Creates `dir` and its parents; no error if it exists.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Creates a file that must not exist (`AlreadyExists` otherwise), for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Opens an existing file for reading only.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Opens an existing file for reading and writing.
    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Names of the files in `dir`, in no order; empty if `dir` does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames a file; durable after [`Storage::sync_dir`] of both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable after [`Storage::sync_dir`].
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes created, renamed and removed names of `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged process may still write below `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Takes an exclusive lock on `path`, creating it; `WouldBlock` if another holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Held>>;
}

/// One open file.
pub trait StorageFile: Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes at `position`; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `position`; after an error any part may have been written.
    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content, length and all metadata durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Sets the length; also gives back blocks reserved behind it.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Reserves blocks up to `len` without changing the length; no error where the filesystem
    /// cannot. A failure keeps what it had already taken: truncate or unlink at once.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Lets go of clean cached pages: after a failed sync they may show bytes the disk lacks.
    fn forget_cached(&self) -> io::Result<()>;
}

/// A held lock; dropping it unlocks.
pub trait Held: Send + Sync {}

impl<T: Send + Sync> Held for T {}

/// Reads until `buffer` is full or the file ends; the number of bytes read.
pub(crate) fn read_full(file: &dyn StorageFile, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The bytes `position..position + len`, or fewer at the end of the file.
pub(crate) fn read_vec(file: &dyn StorageFile, position: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = read_full(file, &mut bytes, position)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Whether an error means "no room", which passes, and not a broken disk.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
