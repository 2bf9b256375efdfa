//! Reading a body under a cap, a deadline and a budget of memory.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, pin_mut};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    TooLarge,
    TooSlow,
    /// Other bodies hold all the memory there is for bodies.
    NoMemory,
    /// The client broke off, or its chunks were malformed.
    Broken,
}

/// All bodies that are held at one time.
pub(super) struct Bodies {
    max_body: u32,
    timeout: Duration,
    /// Permits are bytes.
    memory: Semaphore,
}

impl Bodies {
    pub(super) fn new(max_body: u64, timeout: Duration, memory: u64) -> Self {
        Self {
            max_body: u32::try_from(max_body).unwrap_or(u32::MAX),
            timeout,
            memory: Semaphore::new(usize::try_from(memory).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)),
        }
    }

    /// Reads a body that announces `announced` bytes, or nothing about its length. The permit
    /// stands for its memory and must live as long as the body does.
    pub(super) async fn read<B: Buf, E>(
        &self,
        announced: Option<u64>,
        stream: impl Stream<Item = Result<B, E>>,
    ) -> Result<(Bytes, SemaphorePermit<'_>), BodyError> {
        let reserve = match announced {
            Some(bytes) if bytes > u64::from(self.max_body) => return Err(BodyError::TooLarge),
            Some(bytes) => u32::try_from(bytes).unwrap_or(self.max_body),
            // The length shows only at the end: reserve for the longest.
            None => self.max_body,
        };
        let read = async {
            let permit = self.memory.acquire_many(reserve).await.map_err(|_| BodyError::NoMemory)?;
            Ok((collect(stream, self.max_body).await?, permit))
        };
        match timeout(self.timeout, read).await {
            Ok(result) => result,
            Err(_) if self.memory.available_permits() == 0 => Err(BodyError::NoMemory),
            Err(_) => Err(BodyError::TooSlow),
        }
    }
}

/// The cap counts what arrives, whatever was announced.
async fn collect<B: Buf, E>(stream: impl Stream<Item = Result<B, E>>, max: u32) -> Result<Bytes, BodyError> {
    pin_mut!(stream);
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    // Most bodies come in one piece, which is then handed on as it is.
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk.map_err(|_| BodyError::Broken)?;
        let len = chunk.remaining();
        if first.len() + rest.len() + len > max {
            return Err(BodyError::TooLarge);
        }
        let chunk = chunk.copy_to_bytes(len);
        if rest.is_empty() && first.is_empty() {
            first = chunk;
        } else {
            rest.extend_from_slice(&chunk);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}
