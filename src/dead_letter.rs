//! Dead letters: what a broker will never take, kept with its reason.
//!
//! One file per letter and sink, `<spool>/dead/<sink>/<20-digit offset>.json`, so that an operator
//! can look at one with nothing but `cat`. A letter is written, synced and renamed into place
//! before the cursor may pass its record. To replay one, it is moved into `replay/` beside it,
//! where the dispatcher of a running bridge, or of the next one, picks it up.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Layout of the file; raised with every change of meaning.
const VERSION: u32 = 1;
const REPLAY: &str = "replay";

/// One letter, as it stands in its file.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct DeadLetter {
    pub version: u32,
    pub sink: String,
    /// Offset of the record in the spool.
    pub offset: u64,
    /// What the broker said, or what made the record unreadable.
    pub reason: String,
    pub event_id: String,
    pub event_type: String,
    /// Subject or topic that was tried.
    pub destination: String,
    /// When it was given up, RFC 3339.
    pub died: String,
    /// The spooled record, base64: what a replay works from.
    pub record: String,
}

impl DeadLetter {
    #[expect(clippy::too_many_arguments, reason = "all of it is what an operator asks for")]
    pub fn new(
        sink: &str,
        offset: u64,
        reason: String,
        event_id: &str,
        event_type: &str,
        destination: &str,
        died: String,
        record: &[u8],
    ) -> Self {
        Self {
            version: VERSION,
            sink: sink.to_owned(),
            offset,
            reason,
            event_id: event_id.to_owned(),
            event_type: event_type.to_owned(),
            destination: destination.to_owned(),
            died,
            record: BASE64.encode(record),
        }
    }

    /// The spooled record.
    ///
    /// # Errors
    /// When the file was edited into something that is not base64.
    pub fn record(&self) -> io::Result<Bytes> {
        BASE64.decode(&self.record).map(Bytes::from).map_err(io::Error::other)
    }
}

/// The letters of one sink.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    dir: PathBuf,
}

impl DeadLetters {
    /// Of one sink of the spool in `spool_dir`. Makes no directory before the first letter.
    pub fn of(spool_dir: &Path, sink: &str) -> Self {
        Self { dir: spool_dir.join("dead").join(sink) }
    }

    /// The sinks that have letters, or had some.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sinks(spool_dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        match fs::read_dir(spool_dir.join("dead")) {
            Ok(entries) => {
                for entry in entries {
                    names.extend(entry?.file_name().into_string().ok());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes a letter durable. Storing one twice, as after a crash before the cursor moved, is
    /// the same as once.
    ///
    /// # Errors
    /// When the disk refuses; the record must then stay undelivered.
    pub fn store(&self, letter: &DeadLetter) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(letter.offset);
        let unfinished = path.with_extension("tmp");
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(letter).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        sync_dir(&self.dir)?;
        self.dir.parent().map_or(Ok(()), sync_dir)
    }

    /// Offsets of all letters, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<u64>> {
        offsets_in(&self.dir)
    }

    /// # Errors
    /// When there is no such letter, or it is not ours to read.
    pub fn load(&self, offset: u64) -> io::Result<DeadLetter> {
        load(&self.path(offset))
    }

    /// Puts a letter back on its way: from here on the dispatcher has it.
    ///
    /// # Errors
    /// When there is no such letter or it cannot be moved.
    pub fn replay(&self, offset: u64) -> io::Result<()> {
        let replay = self.dir.join(REPLAY);
        fs::create_dir_all(&replay)?;
        fs::rename(self.path(offset), file_in(&replay, offset))?;
        sync_dir(&replay)?;
        sync_dir(&self.dir)
    }

    /// Letters that wait to be replayed, oldest first.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn replays(&self) -> io::Result<Vec<DeadLetter>> {
        let dir = self.dir.join(REPLAY);
        offsets_in(&dir)?.into_iter().map(|offset| load(&file_in(&dir, offset))).collect()
    }

    /// A replayed letter was confirmed by the broker: it is no more.
    ///
    /// # Errors
    /// When it cannot be removed; it will then be published once more.
    pub fn replayed(&self, offset: u64) -> io::Result<()> {
        let dir = self.dir.join(REPLAY);
        fs::remove_file(file_in(&dir, offset))?;
        sync_dir(&dir)
    }

    fn path(&self, offset: u64) -> PathBuf {
        file_in(&self.dir, offset)
    }
}

fn file_in(dir: &Path, offset: u64) -> PathBuf {
    dir.join(format!("{offset:020}.json"))
}

fn offsets_in(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut offsets = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        offsets.extend(name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<u64>().ok()));
    }
    offsets.sort_unstable();
    Ok(offsets)
}

fn load(path: &Path) -> io::Result<DeadLetter> {
    let letter: DeadLetter = serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)?;
    if letter.version != VERSION {
        let text =
            format!("{} is of version {}; this program reads {VERSION}", path.display(), letter.version);
        return Err(io::Error::other(text));
    }
    Ok(letter)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_kept_listed_and_put_back_on_its_way() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let letters = DeadLetters::of(dir.path(), "lake");
        assert_eq!(letters.list().expect("list"), Vec::<u64>::new());
        let letter = DeadLetter::new(
            "lake",
            7,
            "too large".to_owned(),
            "prod:1",
            "a.b",
            "t",
            "now".to_owned(),
            b"\0record",
        );
        letters.store(&letter).expect("store");
        letters.store(&letter).expect("storing twice is storing once");
        assert_eq!(DeadLetters::sinks(dir.path()).expect("sinks"), ["lake"]);
        assert_eq!(letters.list().expect("list"), [7]);
        assert_eq!(letters.load(7).expect("load").record().expect("record"), &b"\0record"[..]);
        letters.replay(7).expect("replay");
        assert!(letters.list().expect("list").is_empty());
        assert_eq!(letters.replays().expect("replays"), [letter]);
        letters.replayed(7).expect("replayed");
        assert!(letters.replays().expect("replays").is_empty());
    }
}
