//! One checksummed record: a 48-byte header and its payload, no padding.

use super::codec::{Fields, Seed, checked};
use super::{IdKey, Offset};

/// Bytes of a record header on disk.
pub(crate) const HEADER_LEN: usize = 48;
/// The smallest record: a header and one byte.
pub(crate) const MIN_LEN: u64 = HEADER_LEN as u64 + 1;
/// No payload on disk is longer. A reader's bound, independent of the configured limit of appends,
/// so that lowering the limit never turns old records into damage.
pub(crate) const MAX_PAYLOAD: u32 = 1 << 30;
/// Offsets stay below this, so that adding to one never overflows.
pub(crate) const MAX_OFFSET: Offset = 1 << 62;

const MAGIC: [u8; 4] = *b"hbR\xb1";
const VERSION: u8 = 1;

/// A record header whose checksum agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) offset: Offset,
    pub(crate) key: IdKey,
    /// Length of the payload in bytes.
    pub(crate) len: u32,
    durable_delta: u32,
    payload_crc: u32,
}

impl RecordHeader {
    /// Every offset below this was synced when the record was written.
    pub(crate) fn durable_end(&self) -> Offset {
        self.offset.saturating_sub(self.durable_delta.into())
    }

    /// Length of header and payload in bytes.
    pub(crate) fn frame_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.len)
    }

    pub(crate) fn payload_agrees(&self, payload: &[u8], seed: Seed) -> bool {
        seed.crc(payload) == self.payload_crc
    }
}

/// Appends one record to `into`. `payload.len()` is what the appender has already checked to be
/// within `1..=MAX_PAYLOAD`.
pub(crate) fn encode(
    into: &mut Vec<u8>,
    seed: Seed,
    offset: Offset,
    durable_end: Offset,
    key: IdKey,
    payload: &[u8],
) {
    let len = u32::try_from(payload.len()).expect("the appender refuses payloads above MAX_PAYLOAD");
    let durable_delta = u32::try_from(offset.saturating_sub(durable_end)).unwrap_or(u32::MAX);
    let mut header = [0; HEADER_LEN];
    let mut rest = header.as_mut_slice();
    let mut put = |field: &[u8]| {
        let (place, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = tail;
    };
    put(&MAGIC);
    put(&[VERSION, 0, 0, 0]);
    put(&len.to_le_bytes());
    put(&durable_delta.to_le_bytes());
    put(&offset.to_le_bytes());
    put(&key.0);
    put(&seed.crc(payload).to_le_bytes());
    let body = header.first_chunk::<{ HEADER_LEN - 4 }>().expect("shorter than the header");
    let crc = seed.crc(body);
    into.extend_from_slice(body);
    into.extend_from_slice(&crc.to_le_bytes());
    into.extend_from_slice(payload);
}

/// The header at the front of `bytes`, or `None` if it is short, foreign or damaged.
///
/// A `Some` says that the header is as it was written; whether the payload fits into the file and
/// agrees is for the caller to check.
pub(crate) fn decode(bytes: &[u8], seed: Seed) -> Option<RecordHeader> {
    let bytes = bytes.first_chunk::<HEADER_LEN>()?;
    // Before the checksum: a search for the next record comes here for every byte.
    if bytes.first_chunk() != Some(&MAGIC) {
        return None;
    }
    let mut fields = Fields(checked(bytes, seed)?);
    let _magic: [u8; 4] = fields.bytes()?;
    if fields.bytes()? != [VERSION, 0, 0, 0] {
        return None;
    }
    let len = fields.u32()?;
    let durable_delta = fields.u32()?;
    let offset = fields.u64()?;
    let key = IdKey(fields.bytes()?);
    let payload_crc = fields.u32()?;
    (len > 0 && len <= MAX_PAYLOAD && offset < MAX_OFFSET).then_some(RecordHeader {
        offset,
        key,
        len,
        durable_delta,
        payload_crc,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let seed = Seed::of_salt(&[7; 16]);
        let mut bytes = Vec::new();
        encode(&mut bytes, seed, 12, 9, IdKey([3; 16]), b"payload");
        let header = decode(&bytes, seed).unwrap();
        assert_eq!((header.offset, header.durable_end(), header.len), (12, 9, 7));
        assert!(header.payload_agrees(b"payload", seed));
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, seed), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes, Seed::of_salt(&[8; 16])), None, "another segment's salt");
    }
}
