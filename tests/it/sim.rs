//! A disk in memory that keeps what was synced apart from what was only written, stops at the n-th
//! operation, and comes back after a power cut with as little, or as torn, as a real one may.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hookbus::spool::{
    Appended, Config, Entry, Held, IdKey, ReadItem, Reader, Record, Spool, Storage, StorageFile,
};

#[derive(Clone, Debug, Default)]
struct Inode {
    written: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    locks: HashSet<PathBuf>,
    ops: usize,
    stop_at: Option<usize>,
    /// Syncs say yes and do nothing: the negative control.
    lying: bool,
    fail_sync_of: Option<&'static str>,
    capacity: Option<usize>,
    bytes_read: usize,
    read_from: Vec<PathBuf>,
}

/// What survives a power cut besides what was synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Nothing.
    Drop,
    /// Everything, as after `kill -9`.
    Keep,
    /// Each 16-byte sector and each name as a coin falls.
    Tear(u64),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sim(Arc<Mutex<Disk>>);

#[derive(Debug)]
struct SimFile {
    sim: Sim,
    path: PathBuf,
    inode: usize,
}

fn random(state: &mut u64) -> bool {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state & 16 == 0
}

impl Disk {
    /// Counts an operation that changes something; fails from the one to stop at.
    fn op(&mut self) -> io::Result<()> {
        self.ops += 1;
        match self.stop_at {
            Some(stop) if self.ops > stop => Err(io::Error::other("power cut")),
            _ => Ok(()),
        }
    }

    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].written.len()).sum()
    }
}

impl Sim {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    pub(crate) fn stop_at(self, op: usize) -> Self {
        self.disk().stop_at = Some(op);
        self
    }

    pub(crate) fn lying(self) -> Self {
        self.disk().lying = true;
        self
    }

    pub(crate) fn set_capacity(&self, bytes: Option<usize>) {
        self.disk().capacity = bytes;
    }

    /// Syncs of files whose name ends so fail from now on.
    pub(crate) fn fail_sync_of(&self, suffix: &'static str) {
        self.disk().fail_sync_of = Some(suffix);
    }

    pub(crate) fn stopped(&self) -> bool {
        let disk = self.disk();
        disk.stop_at.is_some_and(|stop| disk.ops > stop)
    }

    pub(crate) fn used(&self) -> usize {
        self.disk().used()
    }

    /// Bytes read since the last call, and from which files.
    pub(crate) fn take_reads(&self) -> (usize, Vec<PathBuf>) {
        let mut disk = self.disk();
        (std::mem::take(&mut disk.bytes_read), std::mem::take(&mut disk.read_from))
    }

    pub(crate) fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let disk = self.disk();
        let ends = |path: &&PathBuf| path.to_string_lossy().ends_with(suffix);
        disk.names.keys().filter(ends).cloned().collect()
    }

    pub(crate) fn contents(&self, path: &Path) -> Vec<u8> {
        let disk = self.disk();
        disk.inodes[disk.names[path]].written.clone()
    }

    /// Replaces a file's bytes, durably, behind the spool's back.
    pub(crate) fn tamper(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.disk();
        let inode = disk.names[path];
        disk.inodes[inode] = Inode { written: bytes.clone(), synced: bytes };
    }

    pub(crate) fn remove(&self, path: &Path) {
        let mut disk = self.disk();
        disk.names.remove(path);
        disk.synced_names.remove(path);
    }

    /// The disk as the next start finds it.
    pub(crate) fn after(&self, cut: Cut) -> Self {
        let disk = self.disk();
        let mut coin = match cut {
            Cut::Tear(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            Cut::Drop | Cut::Keep => 1,
        };
        let mut keep = || match cut {
            Cut::Drop => false,
            Cut::Keep => true,
            Cut::Tear(_) => random(&mut coin),
        };
        let mut names = disk.synced_names.clone();
        for path in disk.names.keys().chain(disk.synced_names.keys()) {
            if disk.names.get(path) != disk.synced_names.get(path) && keep() {
                match disk.names.get(path) {
                    Some(inode) => names.insert(path.clone(), *inode),
                    None => names.remove(path),
                };
            }
        }
        let inodes = disk.inodes.iter().map(|inode| {
            let mut bytes = if keep() { inode.written.clone() } else { inode.synced.clone() };
            for (at, byte) in inode.written.chunks(16).enumerate() {
                let range = at * 16..(at * 16 + byte.len());
                let torn = bytes.len().min(range.end);
                let Some(sector) = bytes.get_mut(range.start..torn) else {
                    continue;
                };
                if inode.synced.get(range.clone()) == Some(byte) || keep() {
                    sector.copy_from_slice(&byte[..sector.len()]);
                    continue;
                }
                // What was synced stays; what was not may be zeros where the file has grown.
                let synced = inode.synced.get(range.start..).unwrap_or_default();
                let old = synced.len().min(sector.len());
                sector[..old].copy_from_slice(&synced[..old]);
                sector[old..].fill(0);
            }
            Inode { written: bytes.clone(), synced: bytes }
        });
        let inodes = inodes.collect();
        let disk = Disk { inodes, synced_names: names.clone(), names, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    /// The disk after `kill -9`: everything is readable, and what was not synced still is not.
    pub(crate) fn killed(&self) -> Self {
        let disk = self.disk();
        let disk = Disk {
            inodes: disk.inodes.clone(),
            names: disk.names.clone(),
            synced_names: disk.synced_names.clone(),
            ..Disk::default()
        };
        Self(Arc::new(Mutex::new(disk)))
    }

    /// An independent copy of everything, as written.
    pub(crate) fn copy(&self) -> Self {
        self.after(Cut::Keep)
    }
}

struct SimLock(Sim, PathBuf);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.disk().locks.remove(&self.1);
    }
}

impl Sim {
    fn file(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let disk = self.disk();
        let inode = *disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { sim: self.clone(), path: path.to_owned(), inode }))
    }
}

impl Storage for Sim {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut disk = self.disk();
        disk.op()?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        disk.names.insert(path.to_owned(), inode);
        drop(disk);
        self.file(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        self.file(path)
    }

    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        self.file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.op()?;
        let inode = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.op()?;
        disk.names.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.op()?;
        if !disk.lying {
            let inside = |path: &Path| path.parent() == Some(dir);
            disk.synced_names.retain(|path, _| !inside(path));
            let names = disk.names.clone();
            disk.synced_names.extend(names.into_iter().filter(|(path, _)| inside(path)));
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Held>> {
        if !self.disk().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock(self.clone(), path.to_owned())))
    }
}

impl StorageFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut disk = self.sim.disk();
        let written = &disk.inodes[self.inode].written;
        let from = written.len().min(usize::try_from(position).unwrap());
        let len = buffer.len().min(written.len() - from);
        buffer[..len].copy_from_slice(&written[from..from + len]);
        disk.bytes_read += len;
        disk.read_from.push(self.path.clone());
        Ok(len)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut disk = self.sim.disk();
        let stopped = disk.op();
        let position = usize::try_from(position).unwrap();
        // A write that does not succeed may have got half way.
        let mut len = if stopped.is_ok() { bytes.len() } else { bytes.len() / 2 };
        if disk.stop_at.is_some_and(|stop| disk.ops > stop + 1) {
            len = 0;
        }
        let grows = (position + len).saturating_sub(disk.inodes[self.inode].written.len());
        let room = disk.capacity.map_or(usize::MAX, |most| most.saturating_sub(disk.used()));
        let full = grows > room;
        if full {
            len -= grows - room;
        }
        let written = &mut disk.inodes[self.inode].written;
        if len > 0 {
            written.resize(written.len().max(position + len), 0);
            written[position..position + len].copy_from_slice(&bytes[..len]);
        }
        stopped?;
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.sim.disk();
        disk.op()?;
        if disk.fail_sync_of.is_some_and(|suffix| self.path.to_string_lossy().ends_with(suffix)) {
            return Err(io::Error::other("sync failed"));
        }
        if !disk.lying {
            let inode = &mut disk.inodes[self.inode];
            inode.synced = inode.written.clone();
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.sim.disk();
        disk.op()?;
        disk.inodes[self.inode].written.truncate(usize::try_from(len).unwrap());
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        self.sim.disk().op()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.sim.disk().inodes[self.inode].written.len() as u64)
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A configuration small enough that a few records fill a segment.
pub(crate) fn config(dir: impl Into<PathBuf>) -> Config {
    Config {
        dir: dir.into(),
        max_bytes: 1 << 30,
        segment_bytes: 600,
        max_record_bytes: 100_000,
        commit_window: Duration::ZERO,
        repeats_window: Duration::from_secs(3600),
        repeats_max: 1000,
        cursor_interval: Duration::ZERO,
        retention: Duration::ZERO,
        seal_age: Duration::from_secs(3600),
    }
}

pub(crate) fn sinks() -> Vec<String> {
    vec!["nats".to_owned()]
}

pub(crate) fn open(sim: &Sim) -> Spool {
    Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone())).unwrap()
}

/// A key that differs for every number.
pub(crate) fn key(number: u64) -> IdKey {
    IdKey(u128::from(number).to_le_bytes())
}

/// An entry whose payload, of a length that varies, can be told from every other number's.
pub(crate) fn entry(number: u64) -> Entry {
    let payload = format!("<{number}>").repeat(1 + usize::try_from(number % 13).unwrap());
    Entry { key: key(number), payload: payload.into() }
}

pub(crate) async fn append(spool: &Spool, number: u64) -> u64 {
    match spool.appender.append(entry(number)).await.unwrap() {
        Appended::New(offset) => offset,
        Appended::Repeat => panic!("{number} is no repeat"),
    }
}

/// Ends the spool in order, as a process does.
pub(crate) fn close(spool: Spool) {
    let Spool { appender, readers, writer, .. } = spool;
    drop(appender);
    writer.join().unwrap();
    drop(readers);
}

/// Reads all there is.
pub(crate) fn read_all(reader: &mut Reader) -> Vec<ReadItem> {
    let mut items = Vec::new();
    loop {
        let more = reader.read(300).unwrap();
        if more.is_empty() {
            return items;
        }
        items.extend(more);
    }
}

/// Reads all there is; nothing may be lost.
#[track_caller]
pub(crate) fn read_records(reader: &mut Reader) -> Vec<Record> {
    let record = |item| match item {
        ReadItem::Record(record) => record,
        ReadItem::Lost { .. } => panic!("{item:?}"),
    };
    read_all(reader).into_iter().map(record).collect()
}
