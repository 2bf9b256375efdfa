//! One HTTP request from a provider, as it lies in the spool.
//!
//! Layout, little-endian, no padding:
//!
//! | field | width | |
//! |---|---|---|
//! | version | u8 | 1 |
//! | source length, source | u8, bytes | configured name, UTF-8 |
//! | received | i64 | Unix milliseconds |
//! | event id length, event id | u16, bytes | UTF-8 |
//! | header count | u8 | |
//! | per header: name length, name, value length, value | u8, bytes, u16, bytes | the chosen few; never the signature |
//! | body | to the end | exactly as it came |

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use warp::http::{HeaderMap, header};

const VERSION: u8 = 1;
/// Longest header value kept, in bytes; longer ones are cut.
const HEADER_VALUE_MAX: usize = 256;
/// Headers kept with the body: enough to tell what the body claims to be and who sent it.
const CHOSEN: [header::HeaderName; 2] = [header::CONTENT_TYPE, header::USER_AGENT];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Name of the configured source.
    pub source: Arc<str>,
    /// When the body was complete, Unix milliseconds.
    pub received_ms: i64,
    pub event_id: String,
    pub headers: Vec<(String, Bytes)>,
    /// The body, byte for byte.
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeliveryError {
    #[error("delivery of version {0}; this program reads version {VERSION}")]
    Version(u8),
    #[error("delivery ends early")]
    Short,
    #[error("delivery holds a name that is not UTF-8")]
    Text,
}

pub(super) fn chosen_headers(headers: &HeaderMap) -> Vec<(String, Bytes)> {
    CHOSEN
        .iter()
        .filter_map(|name| {
            let value = headers.get(name)?.as_bytes();
            let cut = value.get(..HEADER_VALUE_MAX).unwrap_or(value);
            Some((name.as_str().to_owned(), Bytes::copy_from_slice(cut)))
        })
        .collect()
}

impl Delivery {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128 + self.event_id.len() + self.body.len());
        out.put_u8(VERSION);
        put_u8_prefixed(&mut out, self.source.as_bytes());
        out.put_i64_le(self.received_ms);
        put_u16_prefixed(&mut out, self.event_id.as_bytes());
        out.put_u8(u8::try_from(self.headers.len()).expect("only the chosen few headers are kept"));
        for (name, value) in &self.headers {
            put_u8_prefixed(&mut out, name.as_bytes());
            put_u16_prefixed(&mut out, value);
        }
        out.extend_from_slice(&self.body);
        out.freeze()
    }

    /// # Errors
    /// On bytes that no version of this program wrote.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DeliveryError> {
        let version = bytes.try_get_u8().map_err(|_| DeliveryError::Short)?;
        if version != VERSION {
            return Err(DeliveryError::Version(version));
        }
        let source = take_u8_prefixed(&mut bytes)?;
        let received_ms = bytes.try_get_i64_le().map_err(|_| DeliveryError::Short)?;
        let event_id = take_u16_prefixed(&mut bytes)?;
        let count = bytes.try_get_u8().map_err(|_| DeliveryError::Short)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_u8_prefixed(&mut bytes)?;
            headers.push((text(&name)?.to_owned(), take_u16_prefixed(&mut bytes)?));
        }
        Ok(Self {
            source: text(&source)?.into(),
            received_ms,
            event_id: text(&event_id)?.to_owned(),
            headers,
            body: bytes,
        })
    }
}

fn put_u8_prefixed(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u8(u8::try_from(bytes.len()).expect("names are checked to be at most 64 bytes"));
    out.extend_from_slice(bytes);
}

fn put_u16_prefixed(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).expect("ids and header values are cut to some hundred bytes"));
    out.extend_from_slice(bytes);
}

fn take_u8_prefixed(bytes: &mut Bytes) -> Result<Bytes, DeliveryError> {
    let len = bytes.try_get_u8().map_err(|_| DeliveryError::Short)?;
    take(bytes, usize::from(len))
}

fn take_u16_prefixed(bytes: &mut Bytes) -> Result<Bytes, DeliveryError> {
    let len = bytes.try_get_u16_le().map_err(|_| DeliveryError::Short)?;
    take(bytes, usize::from(len))
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, DeliveryError> {
    if bytes.len() < len {
        return Err(DeliveryError::Short);
    }
    Ok(bytes.split_to(len))
}

fn text(bytes: &Bytes) -> Result<&str, DeliveryError> {
    std::str::from_utf8(bytes).map_err(|_| DeliveryError::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reads_back_what_encode_wrote_and_refuses_every_shorter_head() {
        let delivery = Delivery {
            source: "prod".into(),
            received_ms: 1_757_011_080_214,
            event_id: "prod:evt_1".to_owned(),
            headers: vec![("content-type".to_owned(), Bytes::from_static(b"application/json"))],
            body: Bytes::from_static(b"{\xff\0}"),
        };
        let encoded = delivery.encode();
        assert_eq!(Delivery::decode(encoded.clone()), Ok(delivery.clone()));
        for len in 0..encoded.len() - delivery.body.len() {
            assert!(Delivery::decode(encoded.slice(..len)).is_err(), "{len} bytes");
        }
    }
}
