//! Checksums and fixed-width little-endian fields, shared by every file format of the spool.

/// Start value of a checksum: the CRC-32C of a segment's salt.
///
/// Seeding with random bytes means that stale bytes of another segment can never validate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// For files that exist once and are never reused: cursors, sidecars, segment headers.
    pub(crate) const PLAIN: Self = Self(0);

    pub(crate) fn of_salt(salt: &[u8; 16]) -> Self {
        Self(crc32c::crc32c(salt))
    }

    /// Masked CRC-32C (Castagnoli) of `bytes`.
    ///
    /// The mask (`LevelDB`'s: rotate by 15 bits, add a constant) keeps the checksum of nothing or of
    /// zeros from being zero, and keeps a checksum stored inside checksummed bytes harmless.
    pub(crate) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes).rotate_right(15).wrapping_add(0xa282_ead8)
    }
}

/// Takes fixed-width little-endian fields from the front of a byte slice; `None` once it is short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

/// Splits `bytes` into a body and its trailing masked CRC; the body, if the checksum agrees.
pub(crate) fn checked(bytes: &[u8], seed: Seed) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (seed.crc(body) == u32::from_le_bytes(*crc)).then_some(body)
}

/// A length in memory; saturates where addresses are narrower than 64 bits, which a read then
/// reports as a short read.
pub(crate) fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Milliseconds since 1970 by the wall clock: for display, retention and the window of remembered
/// ids only. It never orders anything.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, millis)
}

/// A duration in whole milliseconds, saturating.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_never_validate() {
        for len in 4..200 {
            assert_eq!(checked(&vec![0; len], Seed::PLAIN), None, "{len} zeros");
        }
    }

    #[test]
    fn is_castagnoli() {
        // The check value of CRC-32C in every catalogue: "123456789" -> e3069283.
        let unmasked = Seed::PLAIN.crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
    }
}
