//! The identity of a spool, which its cursors must carry.

use std::io;
use std::path::Path;

use super::codec::{Fields, Seed, checked};
use super::report::{RecoveryError, at};
use super::segment::{WriteFailure, create_synced};
use super::storage::{Storage, read_vec};

const ID_MAGIC: [u8; 8] = *b"hbid\0\0\0\x1a";

/// The identity of this spool, which its cursors must carry: made at the first start.
pub(crate) fn spool_id(storage: &dyn Storage, dir: &Path) -> Result<[u8; 16], RecoveryError> {
    let path = dir.join("spool.id");
    match storage.open(&path) {
        Ok(file) => {
            let bytes = read_vec(&*file, 0, 28).map_err(at("cannot read", &path))?;
            if let Some(id) = decode_id(&bytes) {
                return Ok(id);
            }
            // Torn while it was made, before any cursor; or rotten, and then every record is sent
            // again, which is the safe side.
            storage.unlink(&path).map_err(at("cannot replace", &path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at("cannot open", &path)(error)),
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| at("cannot draw", &path)(io::Error::other(error)))?;
    let mut bytes = [ID_MAGIC.as_slice(), id.as_slice()].concat();
    bytes.extend_from_slice(&Seed::PLAIN.crc(&bytes).to_le_bytes());
    match create_synced(storage, &path, |file| file.write_all_at(&bytes, 0)) {
        Ok(_) => {}
        Err(WriteFailure::NoSpace) => {
            return Err(at("cannot create", &path)(io::ErrorKind::StorageFull.into()));
        }
        Err(WriteFailure::Broken { what, error }) => return Err(at(what, &path)(error)),
    }
    // The directory itself is new: its name must last as long as what is in it.
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        storage.sync_dir(parent).map_err(at("cannot sync", parent))?;
    }
    Ok(id)
}

/// The id in the bytes of a `spool.id` file.
pub(crate) fn decode_id(bytes: &[u8]) -> Option<[u8; 16]> {
    let mut fields = Fields(checked(bytes.first_chunk::<28>()?, Seed::PLAIN)?);
    (fields.bytes()? == ID_MAGIC).then(|| fields.bytes()).flatten()
}
