//! Copies of bytes that do not validate, kept for an operator; the spool never reads them again.

use std::io;
use std::path::{Path, PathBuf};

use super::codec::to_usize;
use super::storage::{Storage, StorageFile, read_vec};

pub(crate) const DIR: &str = "quarantine";
const COPY: u64 = 1 << 20;
/// Different bytes from the same place get a number; after so many, something writes damage faster
/// than anybody looks, and further copies help no one.
const MOST: u32 = 100;

/// Copies `len` bytes of `file` at `position` to `<dir>/quarantine/<name>[.n]` and syncs the copy.
/// A copy of the same length that is already there is taken for the same bytes: meeting one damage
/// at each start must not fill the disk.
///
/// # Errors
/// Any I/O error; the caller must then keep the original.
pub(crate) fn copy(
    storage: &dyn Storage,
    dir: &Path,
    name: &str,
    file: &dyn StorageFile,
    position: u64,
    len: u64,
) -> io::Result<PathBuf> {
    let folder = dir.join(DIR);
    for number in 0..MOST {
        let path = numbered(&folder, name, number);
        let copy = match storage.create_new(&path) {
            Ok(copy) => copy,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if storage.open(&path)?.len()? == len {
                    return Ok(path);
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let written = fill(&*copy, file, position, len).and_then(|()| copy.sync_all());
        if let Err(error) = written {
            storage.unlink(&path)?;
            return Err(error);
        }
        storage.sync_dir(&folder)?;
        return Ok(path);
    }
    Err(io::Error::other(format!("{} already has {MOST} copies of {name}", folder.display())))
}

fn fill(copy: &dyn StorageFile, file: &dyn StorageFile, from: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let bytes = read_vec(file, from + done, to_usize(COPY.min(len - done)))?;
        if bytes.is_empty() {
            break;
        }
        copy.write_all_at(&bytes, done)?;
        done += bytes.len() as u64;
    }
    Ok(())
}

/// Moves a whole file to `<dir>/quarantine/`, durably.
pub(crate) fn take(storage: &dyn Storage, dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let folder = dir.join(DIR);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 0;
    let target = loop {
        let target = numbered(&folder, &name, number);
        match storage.open(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break target,
            Err(error) => return Err(error),
            Ok(_) => number += 1,
        }
    };
    storage.rename(path, &target)?;
    storage.sync_dir(&folder)?;
    storage.sync_dir(dir)?;
    Ok(target)
}

fn numbered(folder: &Path, name: &str, number: u32) -> PathBuf {
    match number {
        0 => folder.join(name),
        _ => folder.join(format!("{name}.{number}")),
    }
}
